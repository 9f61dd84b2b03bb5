"""A run: stage after stage every trial that has no outcome yet, from its order to its record, then the report.

`run` chooses the run's folder, has the stages run and writes the report. `_run_stages` makes a `Bench` for each
lane and asks `next_stage`, again after each stage, what the records say is to be run next. `_run_stage` has each
bench run its rounds of a stage; `Bench.run` takes one trial from waiting for its GPUs to its record on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from pathlib import Path
from shutil import disk_usage
from tempfile import gettempdir
from threading import Lock
from typing import Any, NamedTuple

from msgspec.structs import replace as structs_replace

from selectbench.analysis.family import alpha_of, judgement_number
from selectbench.analysis.gate import Differing, differing, differing_words
from selectbench.analysis.lanes import interference_lines
from selectbench.analysis.metrics import is_unclean, state_of
from selectbench.analysis.result import Ranking
from selectbench.analysis.screening import screened_out, screened_words
from selectbench.choices.choice import has_changed, own_code_sha256
from selectbench.choices.model import OwnModel, PretrainedModel
from selectbench.data.prepared import Prepared, model_contents, pinned_model
from selectbench.errors import ExitCode, UserError, disk_problem
from selectbench.gpu.devices import Gpu
from selectbench.gpu.meters import GpuWatch
from selectbench.launch.command import command_order, meeting_place
from selectbench.launch.display import Display, Rerun
from selectbench.launch.gpus import Lane, Notify, lanes_in, my_turn
from selectbench.launch.nodes import GROWS, Agent, NodeRequest, Nodes, Team, difference, facts_of, join
from selectbench.launch.own_code import check_own_code
from selectbench.launch.preparation import (
    CONTEST,
    INTERFERES,
    NEW_SEEDS,
    SCREENING,
    Extended,
    Preparation,
    Request,
    check_cuda,
    extended_preparation,
    original_suite,
    resolve,
    stages,
    with_more_seeds,
)
from selectbench.launch.publish import publish, read_run
from selectbench.launch.references import ask_references, unsettled
from selectbench.launch.site import (
    Round,
    SlurmRun,
    attached,
    limit_problems,
    read_site,
    run_under_slurm,
    states,
    this_node,
    watch,
)
from selectbench.launch.trial import Stop, StopRequest, TrialEnd, TrialRunner, TrialServers, server_environment
from selectbench.machine import usable_cores
from selectbench.planning.plan import PlannedTrial, in_run_order
from selectbench.record.environment import read_environment
from selectbench.record.record import SOFTWARE, Completed, Failed, Record, Trial
from selectbench.record.run_folder import (
    ENVIRONMENT,
    MODEL,
    RANKING,
    RECORDS_FILE,
    ROUNDS,
    SUITE,
    TRIALS,
    WEIGHTS,
    RunLock,
    create_run,
    extend_run,
    find_run,
    fingerprint,
    fingerprint_part,
    last_attempts,
    newest_run,
    read_records,
    run_name,
    runs_of,
    suite_text,
    sweep_weights,
    update_references,
    weights_folder,
    without_references,
    write_whole,
    writing,
)
from selectbench.record.wire import CommandOrder, Evaluating, Order, Phase, Place, Progress
from selectbench.suite.load import find, load_suite
from selectbench.suite.suite import Suite
from selectbench.text import one_line


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: Path
    ranking: Ranking
    exit_code: ExitCode


def run(
    preparation: Preparation, results: Path, make_display: Callable[[], Display], *, fresh: bool = False,
    retried: Retried | None = None, again: Callable[[Path], Rerun] = lambda _: "anew", nodes: Nodes | None = None,
    slurm: SlurmRun | None = None, notify: Notify = print, make_stop: Callable[[], StopRequest] = StopRequest,
) -> Result:  # fmt: skip
    """Run what has no outcome yet in the newest folder of the same run, or all in a new one. Raises UserError.

    `retried`: what is run again; None: nothing. `again` says what to do where such a run is complete; where trials
    were to be run again it is shown. `nodes`: the other nodes of a run over several; `slurm`: the run that the
    preparation's round is part of; `make_stop`: makes what takes signals meanwhile.
    """
    retried = retried or Retried()
    with preparation.claim, ExitStack() as until_its_end:
        if nodes is not None:
            nodes.gather(preparation)
        if fresh and preparation.extended is not None:
            raise UserError("--fresh starts a run of its own; leave it out with --extend")
        may_resume = slurm is None and not fresh and preparation.extended is None
        complete = _newest(preparation, results, retry_failed=retried.failed) if may_resume else None
        if complete is not None and not (
            (complete / RANKING).exists() and _has_all(preparation, complete, retried)
        ):
            complete = None  # it is resumed
        answer = "anew" if complete is None else "show" if any(retried) else again(complete)
        if complete is not None and answer == "show":
            display = make_display()
            display.note(f"nothing was run: {complete} is complete")
            ranking = publish(complete, read_run(complete), display.note)
            return Result(complete, ranking, exit_code(preparation.suite, complete))
        if complete is not None and isinstance(answer, int):
            preparation = extended_preparation(preparation, complete, answer)
        check_cuda(preparation.plan, preparation.claim.gpus)
        with my_turn():  # of two runs that start at once the second one sees which folder the first has chosen
            if slurm is None:
                sweep_weights(results)
                newest = None if fresh else _newest(preparation, results, retry_failed=retried.failed)
                folder = _choose_folder(preparation, results, newest if newest != complete else None)
            else:
                assert preparation.round is not None
                facts = facts_of(preparation)
                if (why := difference(slurm.first_facts(facts), facts)) is not None:
                    raise UserError(f"{this_node() or 'this node'}: {why}; --fresh begins a run anew")
                folder = slurm.enter(preparation.round, preparation.suite, preparation.environment)
            lock = until_its_end.enter_context(RunLock(folder, notify))
        before = 0 if slurm is None else len(slurm.ended_trials(preparation.round or 0))
        with make_stop() as stop:
            if preparation.extended is not None:
                extend_run(folder, preparation.suite, preparation.extended.suite)
            update_references(folder, preparation.suite)
            display = make_display()
            ask = partial(ask_references, preparation.suite, preparation.prepared, folder, stop, display.note)
            try:
                ask(tries=True)
                _run_stages(preparation, lock, display, stop, nodes, retried=retried)
                if not stop:  # nothing is timed any more
                    ask()
            finally:
                display.close()
            # A job of Slurm's is queued again for what has no outcome alone, as some trials may stay unclean.
            is_cut_off = stop and not _has_all(preparation, folder, retried if slurm is None else Retried())
            status = ExitCode.INTERRUPTED if is_cut_off else exit_code(preparation.suite, folder)
            if slurm is not None:
                slurm.gather()
                folder = slurm.folder
            ranking = publish(folder, read_run(folder), display.note)
            if slurm is not None and is_cut_off:
                did_something = len(slurm.ended_trials(preparation.round or 0)) > before
                display.note(slurm.queue_again(did_something=did_something) or "the job was cancelled")
            return Result(folder, ranking, status)


def submit(
    request: Request, results: Path, notify: Notify, *, fresh: bool, retried: Retried,
    again: Callable[[Path], Rerun],
) -> SlurmRun:  # fmt: skip
    """Give Slurm the incomplete rounds of the newest run of the same, else of a new run. Raises UserError.

    `again` says what to do where such a run is complete.
    """
    flags = {"--budget": request.budget_seconds, "--gpus": request.gpus}
    if unfit := [flag for flag, value in flags.items() if value is not None]:
        raise UserError(f"{' and '.join(unfit)}: not for a run under Slurm; leave it out")
    suite, machine = resolve(request)
    if suite.references:
        raise UserError("references are not asked under Slurm: leave them out, --set references=null")
    site = read_site(request.site, request.lanes)
    for line in check_own_code(suite, machine, find(request.suite)):
        notify(line)
    if problems := limit_problems(site):
        raise UserError(*problems)
    own_code = own_code_sha256(suite.code) if suite.code else None
    if request.extend is not None:
        run = _with_more_rounds(request, suite)
    else:
        run = run_under_slurm(site, suite, own_code, results, fresh=fresh)
    rounds = run.rounds()
    if request.extend is None and not any(retried) and all(r.is_complete and r.task is None for r in rounds):
        if (answer := again(run.folder)) == "show":
            return run
        if isinstance(answer, int):
            seeds = ",".join(map(str, suite.unused_seeds(answer)))
            extended = replace(request, extend=str(run.folder), seeds=seeds)
            return submit(extended, results, notify, fresh=fresh, retried=retried, again=again)
        run = run_under_slurm(site, suite, own_code, results, fresh=True)
        rounds = run.rounds()
    missing = [r.number for r in rounds if r.task is None and (any(retried) or not r.is_complete)]
    if missing:
        job = run.submit(site, suite.name, missing, retried.flags)
        notify(f"{run.folder}: job {job} of Slurm: {len(missing)} of {len(rounds)} rounds")
    else:
        notify(f"{run.folder}: Slurm has all rounds that are not complete already")
    return run


def _with_more_rounds(request: Request, suite: Suite) -> SlurmRun:
    """Add the request's seeds to a complete run, as further rounds. Raises UserError where it ran another suite."""
    if request.seeds is None:
        raise UserError(NEW_SEEDS)
    run = attached(find_run(request.extend or "", request.results, suite.name, to_extend=True))
    whole, declared = (
        load_suite(str(path), device="cpu", require_files=False) for path in (run.folder / SUITE, run.suite_file)
    )
    differences = [
        [d for d in differing(suite.resolved, s.resolved) if d.path not in GROWS] for s in (declared, whole)
    ]
    if all(differences):
        words = differing_words(differences[0], "there", "here")
        raise UserError(f"{run.folder}: seeds are added to what is the same run but for them; {words}")
    more, _ = with_more_seeds(whole.model_copy(update={"seeds": suite.seeds}), run.folder)
    extend_run(run.folder, more, whole)
    declared = declared.model_copy(update={"resolved": {**declared.resolved, "seeds": more.seeds}})
    with writing(run.folder):
        write_whole(run.suite_file, suite_text(declared))
    return SlurmRun(run.folder)


def attend(run: SlurmRun, display: Display, notify: Notify) -> Result | None:
    """Show a run under Slurm until no job of it runs or waits, then write its report; None: it has no records.

    Raises UserError, and KeyboardInterrupt where the user stops looking; the run goes on then.
    """
    planned = Counter(option for trials in run.planned.values() for option, _ in trials)
    counted, may_run_again = set[str](), dict[str, int]()
    """Ids of trials: those that the display has counted; those that had failed, with the attempt, at the first look
    while a job of their round was there."""
    states_before: dict[int, str] = {}

    def show(rounds: Sequence[Round]) -> None:
        if is_first_look := not states_before:
            with_job = [record for r in rounds if r.task is not None for record in r.ended]
            may_run_again.update((r.trial.trial_id, r.attempt) for r in with_job if isinstance(r.outcome, Failed))
        ended = [
            record for r in rounds for record in r.ended if record.trial.trial_id not in counted
            and (r.task is None or may_run_again.get(record.trial.trial_id) != record.attempt)
        ]  # fmt: skip
        counted.update(record.trial.trial_id for record in ended)
        if is_first_look:
            display.run_started(run.folder.parent.name, planned, ended)
        display.lanes = sum(r.task is not None and r.task.state == "RUNNING" for r in rounds)
        if changed := [r for r in rounds if states_before.get(r.number) != r.state]:
            display.note(states(changed))
        states_before.update((r.number, r.state) for r in rounds)
        if is_first_look:
            display.note(f"what its jobs say: {run.folder / ROUNDS}/*/job.log")
        else:
            for r in ended:
                display.trial_ended(r.trial.option, r.trial.seed, r.outcome, r.wall_seconds)
        display.tick()

    try:
        rounds = watch(run, show)
    finally:
        display.close()
    run.gather()
    if missing := [r for r in rounds if not r.is_complete]:
        for r in missing[:5]:
            last = f": {words}" if (words := run.last_said(r.number)) else ""
            notify(f"round {r.number} (seed {r.seed}) is not complete, {len(r.ended)} of {r.of} trials{last}")
        notify("the same `selectbench run` line has Slurm run what is missing")
    if not (run.folder / SUITE).is_file() or not (run.folder / RECORDS_FILE).is_file():
        return None
    stored = read_run(run.folder)
    ranking = publish(run.folder, stored, notify)
    return Result(run.folder, ranking, ExitCode.INTERRUPTED if missing else exit_code(stored.suite, run.folder))


def _choose_folder(preparation: Preparation, results: Path, incomplete: Path | None) -> Path:
    """The folder of the run to extend, else of the incomplete one, else a new one. Raises UserError."""
    if preparation.extended is not None:
        return _folder_to_extend(preparation, preparation.extended)
    digest = _fingerprint(preparation, preparation.suite)
    return incomplete or create_run(results, preparation.suite, preparation.environment, digest)


def _has_all(preparation: Preparation, folder: Path, retried: Retried) -> bool:
    """Whether the run has the outcome of every trial and every answer of its references."""
    is_trained = next_stage(preparation, folder, retried=retried) is None
    return is_trained and not unsettled(preparation.suite, preparation.prepared, folder)


def _newest(preparation: Preparation, results: Path, *, retry_failed: bool) -> Path | None:
    """The newest run of the same; where failed trials are retried, also one with an earlier state of own code."""
    suite = preparation.suite
    newest = newest_run(results, suite, _fingerprint(preparation, suite))
    if newest is not None or not (retry_failed and suite.code):
        return newest
    for folder in runs_of(results / suite.name):
        with contextlib.suppress(UserError):
            stored = load_suite(str(folder / SUITE), device="cpu", require_files=False)
            if not _differences(preparation, suite, folder, stored):
                return folder
    return None


def _fingerprint(preparation: Preparation, suite: Suite) -> str:
    data = " ".join(dict.fromkeys(prepared.key for prepared in preparation.prepared.values()))
    return fingerprint(suite, preparation.environment, data, preparation.plan.own_code_sha256)


def _folder_to_extend(preparation: Preparation, extended: Extended) -> Path:
    """The run's folder. Raises UserError, with what differs, where the run was not begun as it would be now."""
    folder, suite = extended.folder, original_suite(preparation.suite, extended)
    if folder.name.rpartition("-")[2] == _fingerprint(preparation, suite):
        return folder
    differences = [d for d in _differences(preparation, suite, folder, extended.suite) if d.path not in GROWS]
    why = differing_words(differences, "there", "here")
    if not differences and suite.code:
        last = last_attempts(read_records(folder / RECORDS_FILE)[0]).values()
        outdated = [r.trial for r in last if isinstance(r.outcome, Completed) and _has_changed_code(r, suite)]
        if not outdated:
            return folder
        first = f"{one_line(outdated[0].option)}, seed {outdated[0].seed}"
        why = (
            f"own code was changed since {len(outdated)} of its trials ran (such as {first}): put it back, or "
            "have these run again first, with --retry-failed and without --extend"
        )
    raise UserError(f"{folder}: seeds are added to what is the same run but for them; {why or 'its data changed'}")


def _differences(preparation: Preparation, suite: Suite, folder: Path, stored: Suite) -> list[Differing]:
    """What differs in suite and environment between a run, whose suite is `stored`, and what would be run now."""
    then, now = read_environment(folder / ENVIRONMENT), json.loads(json.dumps(preparation.environment, default=str))
    settings = differing(without_references(suite.resolved), without_references(stored.resolved))
    return [*settings, *differing(fingerprint_part(now), fingerprint_part(then))]


def _run_stages(
    preparation: Preparation, lock: RunLock, display: Display, stop: StopRequest, nodes: Nodes | None, *,
    retried: Retried,
) -> None:  # fmt: skip
    """Run stage after stage until the records say that every trial has its outcome, or `stop` is asked for."""
    folder = lock.folder
    if nodes is not None:
        nodes.begin_trials(stop, display.note)

    def pause(lane: int, seconds: float) -> None:
        with display.on_lane(lane):
            display.tick()
        stop.wait(seconds)

    suite, ended, lanes = preparation.suite, set[str](), lanes_in(preparation.machine, preparation.claim.gpus)
    with weights_folder(folder), ExitStack() as until_its_end:
        traffic, display.lanes = Traffic(), len(lanes)
        benches: list[Bench] = []
        for lane in lanes:
            servers = trial_servers(preparation, lane.gpus, folder, f"-lane{lane.number + 1}" * (len(lanes) > 1))
            watch = GpuWatch(lane.gpus, suite.meters, partial(pause, lane.number), lambda: bool(stop))
            for context in (servers, watch):
                until_its_end.enter_context(context)
            rdzv = until_its_end.enter_context(meeting_place("127.0.0.1" if nodes is None else nodes.address))
            benches.append(
                Bench(preparation, folder, lock, servers, watch, display, stop, lane, traffic, rdzv, nodes)
            )
        threads = [until_its_end.enter_context(ThreadPoolExecutor(1, initializer=b.lane.enter)) for b in benches]
        while not stop and (stage := next_stage(preparation, folder, retried=retried, ended=ended)):
            if (folder / RANKING).is_file():
                with writing(folder):
                    (folder / RANKING).unlink()  # it says that a run is done
            _announce(stage, folder, display, is_first=not ended)
            benches = [replace(bench, preparation=stage.preparation) for bench in benches]
            _run_stage(stage, benches, threads, ended)
        if not ended and not stop:
            has_answers = not unsettled(suite, preparation.prepared, folder)
            left = "only the report was still to be written" if has_answers else "references are still to be asked"
            display.note(f"{folder}: every trial has its outcome; {left}")


def _run_stage(stage: Stage, benches: Sequence[Bench], threads: Sequence[Executor], ended: set[str]) -> None:
    """Run every trial of a stage: in the contest, lane n of N runs the rounds whose number modulo N is n.

    All trials of other stages run on the first lane. `threads`: one for each lane; `ended` takes up the trials'
    ids. Raises UserError, once all lanes have ended, with what any of them raised first.
    """
    number_of, of = stage.numbers()
    working = benches if stage.title == CONTEST else benches[:1]

    def work(bench: Bench, neighbours: Sequence[tuple[Bench, Executor]]) -> None:
        for planned, attempt in stage.trials:
            if bench.stop:
                return
            if planned.round % len(working) != bench.lane.number:
                continue
            with bench.with_neighbours(planned.beside, neighbours):
                bench.run(planned, attempt, number_of[planned.trial.trial_id], of)
            ended.add(planned.trial.trial_id)

    if len(benches) == 1:
        work(benches[0], [])
        return
    others = list(zip(benches[1:], threads[1:], strict=True))
    lanes = [
        thread.submit(work, b, others if b is benches[0] else [])
        for b, thread in zip(working, threads, strict=False)
    ]
    if failed := [lane for lane in wait(lanes, return_when=FIRST_EXCEPTION).done if lane.exception()]:
        benches[0].stop.ask("the run stopped in another lane")
        wait(lanes)
        failed[0].result()


def run_agent(
    request: NodeRequest, preparation: Preparation, runs: Path, secret: bytes, notify: Notify
) -> ExitCode:
    """Run this node's ranks of all trials, as the bench says. Returns the exit status. Raises UserError.

    `runs`: the folder of the suite's runs; `secret`: the run's.
    """
    with preparation.claim, StopRequest() as stop:
        gpus, suite = preparation.claim.gpus, preparation.suite
        check_cuda(preparation.plan, gpus)
        with GpuWatch(gpus, suite.meters, stop.wait, lambda: bool(stop)) as watch:
            channel = join(request, preparation, secret, stop, notify)
            servers = partial(trial_servers, preparation, gpus)
            return Agent(request, preparation, runs, channel, watch, servers, stop, notify).serve()


def _announce(stage: Stage, folder: Path, display: Display, *, is_first: bool) -> None:
    """Say what is to be run now, and what was run before: by this process, or by one that was cut off."""
    still_open = {planned.trial.trial_id for planned, _ in stage.trials}
    trials = [planned.trial for planned in stage.preparation.plan.trials if stage.runs_here(planned)]
    last = last_attempts(read_records(folder / RECORDS_FILE)[0])
    done = [last[trial.trial_id] for trial in trials if trial.trial_id not in still_open]
    display.run_started(
        stage.preparation.suite.name, Counter(trial.option for trial in trials), done,
        before_contest=stage.title != CONTEST,
    )  # fmt: skip
    if stage.title == CONTEST:
        for line in stage.told:
            display.note(line)
    else:
        number = len(stage.trials)
        more, bounds = " more" if stage.done else "", stage.preparation.suite.screen
        purpose = f"; asked for: {' and '.join(bounds)}" if stage.title == SCREENING and not stage.done else ""
        display.note(f"{stage.title}: {number}{more} trial{'s' if number > 1 else ''} before the contest{purpose}")
    if stage.done and is_first:
        what = "resuming"
        if stage.preparation.extended is not None:
            look = judgement_number(stage.preparation.suite.looks)
            what = f"for judgement {look}, at {100 * alpha_of(look):g}%, extending"
        display.note(f"{what} {folder}: {display.done} of {display.planned} trials have an outcome")


def exit_code(suite: Suite, folder: Path) -> ExitCode:
    """The process's exit status for a run that went to its end, from its records. Raises UserError."""
    records, _ = read_records(folder / RECORDS_FILE)
    last = last_attempts(records).values()
    broken = any(isinstance(r.outcome, Failed) and r.outcome.kind in ("crashed", "timeout") for r in last)
    baseline = [r for r in last if r.trial.option == suite.baseline and r.phase == "contest"]
    has_baseline = any(isinstance(r.outcome, Completed) for r in baseline)
    return ExitCode.TRIALS_FAILED if broken or not has_baseline else ExitCode.OK


# Which trials a run still has to do, from the records alone.


STATE_MAY_MATTER = ("oom", "timeout", "crashed")
"""Kinds of failures that a busy or hot GPU may have caused; others would come again."""


class Retried(NamedTuple):
    """Which trials are run again though they have an outcome."""

    failed: bool = False
    """Trials that failed, or imported own code that was changed since."""
    unclean: bool = False
    """Trials during which a CPU was busy, or GPUs were throttled or shared, whatever their outcome."""

    @property
    def flags(self) -> list[str]:
        """The flags of the command line that ask for this."""
        return ["--retry-failed"] * self.failed + ["--rerun-unclean"] * self.unclean


@dataclass(frozen=True)
class Stage:
    """Trials that can be run now, with what they are launched from."""

    title: str
    preparation: Preparation
    trials: list[tuple[PlannedTrial, int]]
    """In order, each with the number of its attempt."""
    done: int
    """Trials of the stage that have an outcome."""
    told: list[str]
    """What stages before it decided."""

    def runs_here(self, planned: PlannedTrial) -> bool:
        """Whether the trial can run here; one that can't has its outcome without being launched."""
        return self.preparation.plan.planned(planned.trial.option).unsupported is None

    def numbers(self) -> tuple[dict[str, int], int]:
        """By id, each trial's number, from 1, among those of the stage that can run here; and how many these are.

        One that can't run has the number of the one before it.
        """
        of = sum(map(self.runs_here, self.preparation.plan.trials))
        runs = [self.runs_here(planned) for planned, _ in self.trials]
        first = of - sum(runs)
        ids = [planned.trial.trial_id for planned, _ in self.trials]
        return {i: first + number for i, number in zip(ids, accumulate(runs), strict=True)}, of


def next_stage(
    preparation: Preparation, folder: Path, *, retried: Retried, ended: Collection[str] = ()
) -> Stage | None:
    """The first stage with trials to run; None: the run is complete. Raises UserError.

    `ended`: ids of trials that this process has run; one that failed is not run again at once.
    """
    records, _ = read_records(folder / RECORDS_FILE)
    for title, whole in stages(preparation, records, reruns_busy=retried.unclean):
        stage = whole if preparation.round is None else _of_round(whole, preparation.round, title)
        trials = [p for p in in_run_order(stage.plan.trials, run_name(folder)) if p.trial.trial_id not in ended]
        still_open = pending(trials, stage.suite, records, retried=retried)
        if still_open:
            out = screened_out(preparation.suite, records)
            told = [f"{name} is screened out: {screened_words(found)}" for name, found in out.items()]
            told += interference_lines(stage.suite, records)
            return Stage(title, stage, still_open, len(stage.plan.trials) - len(still_open), told)
    return None


def _of_round(stage: Preparation, number: int, title: str) -> Preparation:
    """The part of a stage that the job of a round runs; the first job runs all that comes before the contest."""
    trials = [planned for planned in stage.plan.trials if title != CONTEST or planned.round == number]
    return replace(stage, plan=replace(stage.plan, trials=trials if title == CONTEST or number == 0 else []))


def pending(
    trials: Sequence[PlannedTrial], suite: Suite, records: Sequence[Record], *, retried: Retried
) -> list[tuple[PlannedTrial, int]]:
    """The trials to run, in order, each with the number of its attempt."""
    attempts: dict[str, list[Record]] = {}
    for record in records:
        attempts.setdefault(record.trial.trial_id, []).append(record)
    still_open = []
    for planned in trials:
        earlier = attempts.get(planned.trial.trial_id, [])
        if _is_open(earlier, suite, retried=retried):
            still_open.append((planned, earlier[-1].attempt + 1 if earlier else 1))
    return still_open


def _is_open(attempts: Sequence[Record], suite: Suite, *, retried: Retried) -> bool:
    if not attempts or _is_rerun_due(attempts, suite) or (retried.unclean and _is_spoiled(attempts[-1])):
        return True
    outcome = attempts[-1].outcome
    if isinstance(outcome, Completed):
        return retried.failed and _has_changed_code(attempts[-1], suite)
    return outcome.kind == "interrupted" or (retried.failed and outcome.kind != "unsupported")


def _has_changed_code(record: Record, suite: Suite) -> bool:
    """Whether own code that the trial imported was changed since."""
    files = record.watched.code_files if record.watched else None  # None: nobody knows what it imported
    return bool(suite.code) and (files is None or has_changed(files, suite.code))


def _is_rerun_due(attempts: Sequence[Record], suite: Suite) -> bool:
    """Whether the suite has a trial run again, of whose attempts the last one alone was spoiled by the machine.

    `attempts`: all attempts at one trial, in order.
    """
    if not suite.meters.rerun_unclean or not _is_spoiled(attempts[-1]):
        return False
    return sum(_is_spoiled(record) for record in attempts) == 1


def _is_spoiled(record: Record) -> bool:
    """Whether a busy CPU, or GPUs that were throttled or shared, may have changed the trial's outcome."""
    outcome = record.outcome
    fits = outcome.kind in STATE_MAY_MATTER if isinstance(outcome, Failed) else True
    return fits and is_unclean(record)


# One planned trial from waiting for its GPUs to its record on disk.


LEAST_ROOM_BYTES = 1 << 20
"""Where a disk has less room than this, a trial that crashes is taken to have crashed for that."""


class Traffic:
    """Counts how many lanes train at the same time; the benches of all lanes share one.

    Each bench enters its lane before a trial and leaves it afterwards. The trial's record then says how many
    neighbours it had, as trials that run side by side may slow each other down.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._most_neighbours: dict[int, int] = {}
        """By lane that trains now, the most others that trained at any moment since it began."""

    def enter(self, lane: int) -> None:
        """Note that the lane begins with a trial."""
        with self._lock:
            self._most_neighbours[lane] = 0
            now = len(self._most_neighbours) - 1
            self._most_neighbours = {other: max(most, now) for other, most in self._most_neighbours.items()}

    def trains(self, lane: int) -> bool:
        """Whether the lane trains now."""
        with self._lock:
            return lane in self._most_neighbours

    def leave(self, lane: int) -> tuple[int, int]:
        """Note that the lane's trial has ended; the most neighbours that it had, and those that there still are."""
        with self._lock:
            return self._most_neighbours.pop(lane, 0), len(self._most_neighbours)


@dataclass(frozen=True)
class Bench:
    """One lane's side of a run: launches its trials one after the other, and writes their records.

    `_run_stages` makes one for each lane, and for each stage a copy with the stage's preparation. For each trial it
    waits until the lane's GPUs are idle, has a `TrialRunner` submit the order to the lane's trial server, reads the
    GPUs meanwhile, and appends the record to the run's. A `Team` does the same with the run's other nodes. The
    display, the run's lock and `traffic` are shared by the benches of all lanes, which run in a thread each.
    """

    preparation: Preparation
    """The preparation of the stage."""
    folder: Path
    """The run's folder."""
    lock: RunLock
    servers: TrialServers
    watch: GpuWatch
    display: Display
    stop: StopRequest
    lane: Lane
    traffic: Traffic
    rdzv: str
    """HOST:PORT where the processes of a command can meet."""
    nodes: Nodes | None = None
    """The other nodes of a run over several."""

    @contextlib.contextmanager
    def with_neighbours(
        self, trials: Sequence[Trial], neighbours: Sequence[tuple[Bench, Executor]]
    ) -> Iterator[None]:
        """Keep the other lanes training these trials while inside, which begins once all train that can."""
        if not trials or self.stop:
            yield
            return
        with Stop() as end:
            lanes = {
                bench.lane.number: thread.submit(bench.keep_busy, [*trials[n:], *trials[:n]], end)
                for n, (bench, thread) in enumerate(neighbours)
            }
            try:
                while not (self.stop or all(self.traffic.trains(n) or lane.done() for n, lane in lanes.items())):
                    self.stop.wait(0.05)
                yield
            finally:
                end.ask("its neighbour has ended")
                wait(lanes.values())
            for lane in lanes.values():
                lane.result()

    def keep_busy(self, trials: Sequence[Trial], end: Stop) -> None:
        """Train the first of these trials that does not fail, again and again until `end`, without a record."""
        lane = self.lane.number

        def hear(event: Phase | Progress | Evaluating | None) -> None:
            if self.stop:
                end.ask(str(self.stop.why))
            if isinstance(event, Phase) and event.phase == "train":
                self.traffic.enter(lane)

        try:
            for trial in trials:
                while not end:
                    lane_trial = structs_replace(trial, trial_id=f"{trial.trial_id}-lane{lane + 1}")
                    ranks = self.preparation.plan.planned(trial.option).world_size
                    order = _endless(self._order(PlannedTrial(lane_trial, 0), ranks))
                    server = self.servers.of(self._python(trial.option))
                    runner = TrialRunner(server, self.preparation.suite.limits, end, hear)
                    if isinstance(runner.run(order).outcome, Failed):
                        break
        finally:
            self.traffic.leave(lane)

    def _python(self, option: str) -> str | None:
        """The interpreter of an option's trials; None: the bench's, also for a command, which names its own."""
        planned = self.preparation.plan.planned(option)
        return None if self.preparation.suite.command is not None else planned.option.choices.python

    def run(self, planned: PlannedTrial, attempt: int, number: int, of: int) -> None:
        """Run trial `number`, from 1, of so many; once more where the machine spoiled it and the suite allows."""
        trial, suite = planned.trial, self.preparation.suite
        record, server_start_seconds = self._attempt(planned, attempt, number, of)
        if not self.stop and suite.meters.rerun_unclean:
            records, _ = read_records(self.folder / RECORDS_FILE)
            if _is_rerun_due([r for r in records if r.trial.trial_id == trial.trial_id], suite):
                state = state_of(record)
                assert state is not None, "only a state makes a trial unclean"
                with self._display() as display:
                    display.note(f"{trial.option}, seed {trial.seed}: {state.words}: run again")
                record, server_start_seconds = self._attempt(planned, attempt + 1, number, of)
        with self._display() as display:
            display.trial_ended(trial.option, trial.seed, record.outcome, record.wall_seconds, server_start_seconds)

    def _display(self) -> AbstractContextManager[Display]:
        """The display for this lane, which no other lane uses meanwhile."""
        return self.display.on_lane(self.lane.number)

    def _attempt(self, planned: PlannedTrial, attempt: int, number: int, of: int) -> tuple[Record, float]:
        """Run the trial once. Returns its record, which is on disk, and the seconds in which its server started."""
        trial = planned.trial
        option, machine = self.preparation.plan.planned(trial.option), self.preparation.machine
        make_order = partial(self._order, planned, option.world_size)
        team = Team(self.nodes, self.preparation, option.world_size, self.stop, make_order)
        meters, neighbours = None, 0
        if option.unsupported is not None:
            started_at = _now()
            end = TrialEnd(Failed(kind="unsupported", detail=option.unsupported), 0.0, finished=None, software={})
        else:
            with self._display() as display:
                display.trial_started(trial.option, trial.seed, number, of)
            python = self._python(trial.option)
            team.prepare(self.folder.name, python)
            ready = self.watch.settle(machine.ranks_per_node(option.world_size))
            for sentence in [*(ready.held if ready and not self.stop else []), *team.wait_until_ready()]:
                with self._display() as display:
                    display.note(f"memory has not been released: {sentence}")
            started_at = _now()
            runner = TrialRunner(
                self.servers.of(python), self.preparation.suite.limits, self.stop, self._hear, team
            )
            order = team.first_order()
            self.traffic.enter(self.lane.number)
            try:
                with self.watch.during(ready, Path(order.trial_folder)) as watching:
                    end = runner.run(order)
            finally:
                most, still_there = self.traffic.leave(self.lane.number)
                neighbours = min(most, still_there) if planned.phase == INTERFERES else most
            self._raise_if_blameless(end.outcome, order)
            meters = team.all_meters(watching.meters(team.with_bench_gpus(end.finished)), end.finished)
        certificate: dict[str, Any] = {}
        if (done := end.finished) is not None:
            certificate = {
                "identity": done.identity, "watched": done.watched, "evaluation_curve": done.evaluation_curve,
                "loss_curve": done.loss_curve, "inside": done.inside, "resolved_config": done.resolved_config,
                "script": done.script,
            }  # fmt: skip
        record = Record(
            trial=trial, phase=planned.phase, round=planned.round, attempt=attempt,
            outcome=end.outcome, wall_seconds=end.wall_seconds, started_at=started_at,
            software=SOFTWARE.as_json((done and done.software) or end.software), meters=meters,
            nodes=team.other_nodes(), lane=self.lane.number if self.lane.cores else None, neighbours=neighbours,
            node=None if self.preparation.round is None else this_node(), **certificate,
        )  # fmt: skip
        self.lock.append(record)
        return record, end.server_start_seconds

    def _order(self, planned: PlannedTrial, ranks: int, place: Place | None = None) -> Order | CommandOrder:
        if self.preparation.suite.command is not None:
            facts = self.preparation.plan.command_facts
            assert facts is not None
            lane = self.lane.number if self.lane.cores else None
            return command_order(self.preparation.suite, planned, ranks, self.folder, facts, self.rdzv, lane, place)
        return structs_replace(make_order(self.preparation, planned, self.folder), place=place)

    def _hear(self, event: Phase | Progress | Evaluating | None) -> None:
        self.lock.check()
        with self._display() as display:
            display.handle(event)

    def _raise_if_blameless(self, outcome: Completed | Failed, order: Order | CommandOrder) -> None:
        """Raises UserError where the trial failed for what no option is to blame for; it has no record then."""
        if isinstance(outcome, Completed) or outcome.kind == "interrupted":
            return
        self.lock.check()
        name, again = order.trial.option, "run the same command again, which goes on here"
        if isinstance(order, Order):
            try:
                Prepared.open(order.data_folder)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{order.data_folder}: the prepared data were removed or damaged while this run went on "
                    f"({error}): {again} after it has prepared them anew"
                ) from None
            if model_contents({name: order.job.model}).get(name) != self.preparation.plan.pretrained.get(name):
                changed = "model.pretrained: it was removed or changed while this run went on"
                raise UserError(f"{changed}: put it back and {again}")
        if outcome.kind != "crashed":
            return
        places = (self.folder, order.data_folder if isinstance(order, Order) else order.directory, gettempdir())
        full = (f"{place} has no room" for place in places if disk_usage(place).free < LEAST_ROOM_BYTES)
        if (why := disk_problem(outcome.detail) or next(full, None)) is not None:
            raise UserError(
                f"{name}, seed {order.trial.seed}: a disk did not take what was written: {why}; every record "
                f"before this one is kept: make room and {again}"
            )


def _endless(order: Order | CommandOrder) -> Order | CommandOrder:
    """The same order for a trial that goes on until it is ended; a script may end by itself."""
    if isinstance(order, Order):
        return structs_replace(order, min_timed_seconds=1e9)
    return structs_replace(order, stop="natural_end")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# What a worker gets: a trial's order, and the modules that its server imports.


def make_order(preparation: Preparation, planned: PlannedTrial, folder: Path) -> Order:
    """The order of a trial in the run's folder."""
    suite, name = preparation.suite, planned.trial.option
    choices = suite.option(name).built
    job = suite.built.of(choices)
    world_size = preparation.plan.planned(name).world_size
    trial_folder = (folder / TRIALS / planned.trial.trial_id).resolve()
    return Order(
        trial=planned.trial, choices=choices, device=suite.device, world_size=world_size, code=suite.code,
        job=job.model_copy(update={"model": pinned_model(job.model, preparation.plan.pretrained.get(name))}),
        threads=rank_threads(preparation.machine.ranks_per_node(world_size)),
        data_folder=str(preparation.prepared[name].folder), trial_folder=str(trial_folder),
        weights_folder=str((folder / WEIGHTS).resolve()),
        min_timed_seconds=suite.built.timing.least_seconds(suite.device),
        model_folder=str(trial_folder / MODEL) if planned.trial.seed in suite.saved_seeds else None,
    )  # fmt: skip


def rank_threads(world_size: int) -> int:
    """Threads of a rank's CPU operations: OMP_NUM_THREADS where the user set it, else its share of the cores."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdigit() and int(stated) > 0 else max(1, int(usable_cores()) // world_size)


def trial_servers(preparation: Preparation, gpus: Sequence[Gpu], folder: Path, mark: str = "") -> TrialServers:
    """The servers of trials on these GPUs, in the order of ranks; `folder`, `mark`: place and end of their logs."""
    suite = preparation.suite
    environment = partial(
        server_environment, device=suite.device, gpus=gpus, keeps_environment=suite.command is not None
    )
    return TrialServers(partial(preload, preparation), folder, environment, mark)


def preload(preparation: Preparation, python: str | None) -> list[str]:
    """What an interpreter's server imports once: the worker, the model's family, what the choices name."""
    if preparation.suite.command is not None:
        return ["selectbench.worker.command"]
    modules = ["selectbench.worker.trial"]
    for planned in preparation.plan.options:
        option, choices = planned.option, planned.option.choices
        if planned.unsupported is not None or choices.python != python:
            continue
        job = preparation.suite.job_of(option)
        if isinstance(job.model, OwnModel):  # own code is imported in the trial alone: what it does is the trial's
            family = None
        elif isinstance(job.model, PretrainedModel):
            family = job.model.model_type
        else:
            vocab_size = preparation.prepared[option.name].vocab_size
            family = job.model.transformers_config(vocab_size, job.seq_len)["model_type"]
        modules += [f"transformers.models.{family}.modeling_{family}"] if family else []
        modules += [name for choice in choices.by_dimension().values() for name in choice.preload]
    return list(dict.fromkeys(modules))

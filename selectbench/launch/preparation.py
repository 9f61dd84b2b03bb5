"""What is decided before trials are launched: suite, data, GPUs, the stages and their plans, a budget of time."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from selectbench import units
from selectbench.analysis.family import DEFAULT_SPREAD, detectable
from selectbench.analysis.screening import screened_out, screening_trials
from selectbench.analysis.tuning import (
    speed_attempts,
    speed_candidates,
    tuning_attempts,
    tuning_candidates,
    with_best_settings,
    with_fastest_sizes,
)
from selectbench.choices.choice import own_code_sha256
from selectbench.choices.model import HUB_FIX, AnyTokenizer
from selectbench.data.prepare import prepare, streamed_datasets
from selectbench.data.prepared import Prepared, Samples, cache_root, check_enough, evaluable_tokens, uncached_models
from selectbench.data.reading import dataset_commit, download_bytes, fetch_snapshot
from selectbench.data.split import BLOCK_CHARACTERS
from selectbench.errors import MissingPackageError, NotDownloadedError, UnreachableError, UserError
from selectbench.gpu.devices import PROBE, PROBE_SECONDS, Gpu, first_difference, read_probe
from selectbench.launch.command import command_facts
from selectbench.launch.gpus import Claim, Notify, candidates, claim_cores, claim_gpus, idle_now
from selectbench.launch.own_code import check_own_code
from selectbench.launch.references import reference_lines
from selectbench.launch.site import job_script, limit_problems, plan_lines, read_site
from selectbench.launch.trial import server_environment
from selectbench.machine import INSTALL, Machine, inspect_machine, wrong_device_reason, wrong_system_reason
from selectbench.planning.duration import History, Outlook, estimate, past_trials, stage_costs
from selectbench.planning.plan import (
    Plan,
    PlannedTrial,
    gpus_used,
    heldout_warnings,
    lanes_of,
    make_plan,
    split_warnings,
    target_warnings,
    unused_row_warnings,
    with_machine_choices,
)
from selectbench.record.environment import code_sha256, collect_environment
from selectbench.record.record import Record, RunPhase
from selectbench.record.run_folder import SUITE, find_run, is_complete
from selectbench.suite.command import nodes_problem
from selectbench.suite.document import Written, placed, read_document
from selectbench.suite.load import find, folder_of, load_suite
from selectbench.suite.sources import TextFiles
from selectbench.suite.stages import (
    interference_suite,
    repeat_suite,
    screening_suite,
    speed_suite,
    tuning_suite,
    without,
)
from selectbench.suite.suite import Suite, Values
from selectbench.text import unwritable, visible

_OWN_TEXT = """text of your own, --set 'job.data={text: ["corpus/*.txt"]}'"""


@dataclass(frozen=True)
class Request:
    """What the user asked for on the command line."""

    suite: str | Written
    """A path, the name of a shipped suite, or a suite that is no file."""
    profile: str | None = None
    settings: Sequence[str] = field(default_factory=list)
    """`PATH=VALUE` each."""
    axes: Sequence[str] = field(default_factory=list)
    """`PATH=A,B` each."""
    seeds: str | None = None
    quick: bool = False
    gpus: str | None = None
    """Numbers, UUIDs or beginnings of UUIDs, by commas; None: the idle ones."""
    wait: bool = False
    """Whether to wait until GPUs, or the CPU, are free."""
    budget_seconds: float | None = None
    """Time for all trials in seconds; rounds that do not fit into it are left out. None: no limit."""
    results: Path = Path("results")
    """Folder of earlier runs, from which the duration of trials is estimated."""
    site: str | None = None
    """Path of the site's file."""
    lanes: str | None = None
    """`auto` or a number, in place of the site file's."""
    interference_check: bool = True
    """Whether a stage tests that lanes do not slow each other down."""
    extend: str | None = None
    """A complete run to extend by the seeds, named as `find_run` accepts it; None: start a new run."""
    nodes: int = 1
    """Machines that trials run on together, this one among them."""


NEW_SEEDS = "--extend needs --seeds with the new ones, such as --seeds 5,6"


@dataclass(frozen=True)
class Planned:
    """A suite's plan and what it was made from."""

    machine: Machine
    prepared: Mapping[str, Prepared] | None
    """The data by option, as tokenizers may differ; None: they could not be prepared."""
    plan: Plan
    checks_interference: bool = field(default=True, kw_only=True)
    """Whether a stage tests that lanes, where there are several, do not slow each other down."""

    @property
    def suite(self) -> Suite:
        """The suite that is planned."""
        return self.plan.suite

    def with_suite(self, suite: Suite) -> Self:
        """The plan of another suite here: a stage's, or one with fewer rounds."""
        prepared = self.prepared and {o.name: self.prepared[o.tunes or o.name] for o in suite.options}
        plan = make_plan(suite, self.machine, prepared, code_sha256(), self.plan.command_facts)
        return replace(self, prepared=prepared, plan=plan)


AnyPlanned = TypeVar("AnyPlanned", bound=Planned)


@dataclass(frozen=True)
class Preparation(Planned):
    """Everything that a run needs before its first trial."""

    prepared: Mapping[str, Prepared]
    environment: dict[str, Any]
    extended: Extended | None
    """The complete run that gets more seeds; None: this is a new run."""
    claim: Claim
    """The GPUs, or the cores, that trials run on; the caller releases them at the end."""
    round: int | None = field(default=None, kw_only=True)
    """The round that this process runs; None: all."""


def resolve(request: Request) -> tuple[Suite, Machine]:
    """The suite for this machine's device, and the machine with all GPUs that the run may take.

    Raises UserError with everything that is wrong with the suite or with the names of GPUs.
    """
    site = read_site(request.site, request.lanes)
    if site.launcher == "slurm" and request.nodes > 1:
        raise UserError("--nnodes: under Slurm, `nodes` of the site file says how many: leave it out")
    device = "cpu" if request.profile == "cpu" else site.device or inspect_machine().device
    suite = load_suite(
        request.suite, device=device, profile=request.profile, settings=request.settings,
        axes=request.axes, seeds=request.seeds, quick=request.quick,
    )  # fmt: skip
    suite = site.over(suite)
    suite = _with_looks(suite, [])  # the file has the looks of the run that wrote it
    if suite.command is not None and request.nodes > 1 and (problem := nodes_problem(suite.command)) is not None:
        raise UserError(problem)
    machine = site.of_nodes(replace(inspect_machine(suite.device), nodes=request.nodes))
    if request.gpus is None:
        return suite, machine
    if suite.device != "cuda":
        raise UserError(f"--gpus {request.gpus}: the job's device is {suite.device}; leave --gpus out")
    return suite, machine.on([candidate.gpu for candidate in candidates(request.gpus)])


def prepare_all(request: Request, notify: Notify) -> Preparation:
    """Decide suite, data, plan and environment, and take the GPUs; nothing is launched.

    Raises UserError, with no GPU taken, among others where not even one round fits the budget.
    """
    if (reason := wrong_system_reason()) is not None:
        raise UserError(reason)
    for folder in (request.results.resolve(), cache_root()):  # whose names are sent to trials
        if unwritable(str(folder)) is not None:
            raise UserError(f"{visible(folder, 300)}: the name of this folder is no printable UTF-8")
    suite, machine = resolve(request)
    if (reason := device_problem(request, suite)) is not None:
        raise UserError(reason)
    extended = None
    if request.extend is not None:
        if request.seeds is None:
            raise UserError(NEW_SEEDS)
        if request.budget_seconds is not None:
            raise UserError("--budget cuts rounds: with --extend, --seeds says how many there are to be")
        suite, extended = with_more_seeds(
            suite, find_run(request.extend, request.results, suite.name, to_extend=True)
        )
    if not machine.trains and suite.command is None:
        raise MissingPackageError(f"training needs torch, which is not installed: {INSTALL}")
    for line in check_own_code(suite, machine, find(request.suite)):
        notify(line)
    with ExitStack() as undo:
        claim = Claim()
        if suite.device == "cpu":  # before the data are prepared, which takes all cores, too
            claim = undo.enter_context(claim_cores(wait=request.wait, notify=notify))
        prepared: dict[str, Prepared] = {}
        with data_problems_placed(request, suite):
            facts = None if suite.command is None else command_facts(suite, notify)
            if suite.command is None:
                prepared = prepare_data(suite, notify)
                for model in uncached_models(suite):
                    fetch_snapshot("model.pretrained", model.pretrained, model.revision, ["config.json"])
        requested_lanes = read_site(request.site, request.lanes).lanes
        if request.nodes > 1 and requested_lanes != 1:
            raise UserError("lanes: over several nodes, a trial has all that it needs of each: leave them out")
        lanes, need = lanes_of(requested_lanes, with_machine_choices(suite, machine, prepared), machine)
        if suite.device == "cuda":
            claim = undo.enter_context(claim_gpus(request.gpus, need, wait=request.wait, notify=notify))
            machine = machine.on(claim.gpus)
            if lanes > 1 and len(names := sorted({gpu.name for gpu in claim.gpus})) > 1:
                kinds = " and ".join(names)
                raise UserError(f"lanes: they are to be equal, and there are {kinds}: name one kind, --gpus")
        machine = machine.in_lanes(lanes)
        suite = with_machine_choices(suite, machine, prepared)
        plan = make_plan(suite, machine, prepared, code_sha256(), facts)
        if suite.device == "cuda" and lanes == 1:
            claim.keep(gpus_used(plan, machine))
        for line in unused_row_warnings(suite, plan.unused_rows):
            notify(f"warning: {line}")
        interpreters = {o.name: o.choices.python for o in suite.options if o.choices.python is not None}
        environment = collect_environment(folder_of(request.suite), interpreters, claim.gpus, suite.device)
        parts = {
            "lanes": lanes if lanes > 1 else None, "nodes": request.nodes if request.nodes > 1 else None,
            "data": data_facts(suite, prepared, plan) if facts is None else None, "command": facts,
            "own_files_sha256": own_code_sha256(suite.code, modules=False), "pretrained": plan.pretrained,
            "machine_choices": [choice.model_dump(mode="json") for choice in suite.left_open.machine_choices],
        }  # fmt: skip
        environment |= {key: part for key, part in parts.items() if part}
        preparation = Preparation(
            machine, prepared, plan, environment, extended, claim, checks_interference=request.interference_check
        )
        if request.budget_seconds is not None:
            history = past_trials(request.results / suite.name, machine)
            preparation, notes = cut_to_budget(request.budget_seconds, preparation, history)
            for line in notes:
                notify(line)
        undo.pop_all()
    return preparation


@contextmanager
def data_problems_placed(request: Request, suite: Suite) -> Iterator[None]:
    """Adds to UserErrors about data where the suite has the setting, and what works without the hub."""
    try:
        yield
    except (MissingPackageError, NotDownloadedError):
        raise
    except UserError as error:
        other = (
            f"selectbench run {request.suite}" if request.profile and isinstance(request.suite, str) else _OWN_TEXT
        )
        way = f"; without a network this works: {other}" if isinstance(error, UnreachableError) else ""
        document = read_document(find(request.suite))
        raise UserError(*(f"{placed(p, document, suite.profile)}{way}" for p in error.problems)) from None


def prepare_data(suite: Suite, notify: Notify, *, downloads: bool = True) -> dict[str, Prepared]:
    """Each option's data, by its name. Raises UserError where they are unavailable or too few.

    `downloads` False: raises NotDownloadedError for rows that would be read as they are downloaded.
    """
    by_tokenizer: dict[AnyTokenizer | None, Prepared] = {}
    for option in suite.options:
        job = suite.job_of(option)
        if job.tokenizer not in by_tokenizer:
            by_tokenizer[job.tokenizer] = prepare(
                job.data, job.tokenizer, cleaning=job.cleaning, specials=job.specials, code=suite.code,
                notify=notify, downloads=downloads,
            )  # fmt: skip
        check_enough(by_tokenizer[job.tokenizer], job)
    return {option.name: by_tokenizer[suite.job_of(option).tokenizer] for option in suite.options}


def device_problem(request: Request, suite: Suite) -> str | None:
    """Why the suite would not run on the device that the user expects, or None.

    A machine with a GPU runs on it unless `--profile cpu` is given.
    """
    return wrong_device_reason("cpu" if request.profile == "cpu" else "cuda" if suite.device == "cuda" else None)


def data_facts(suite: Suite, prepared: Mapping[str, Prepared], plan: Plan) -> dict[str, Any]:
    """The data in environment.json: the baseline's counts and content key, options that differ, and no path."""
    baseline = prepared[suite.baseline]
    commits = {dataset.dataset: dataset_commit(dataset) for dataset in streamed_datasets(suite.built.data)}
    others = {name: data.facts() for name, data in prepared.items() if data.key != baseline.key}
    more = {"commits": commits, "by_option": others, "unused_rows": plan.unused_rows}
    return {**baseline.facts(), "epochs": plan.epochs, **{key: value for key, value in more.items() if value}}


def check_cuda(plan: Plan, gpus: Sequence[Gpu]) -> None:
    """Ask torch, in a process of its own for each interpreter, whether it can use these GPUs, in this order.

    The question is put as trials run: CUDA_VISIBLE_DEVICES names the GPUs. Raises UserError.
    """
    if plan.suite.device != "cuda":
        return
    for python in dict.fromkeys(p.option.choices.python for p in plan.options if p.unsupported is None):
        check_torch_shows(gpus, python)


def check_torch_shows(gpus: Sequence[Gpu], python: str | None) -> None:
    """Raises UserError where the interpreter's torch does not show exactly these GPUs, in this order."""
    torch = f"torch of python {python}" if python else "torch"
    try:
        probe = subprocess.run(
            [python or sys.executable, "-P", "-c", PROBE], capture_output=True, text=True, check=False,
            env=server_environment(python, "cuda", gpus), timeout=PROBE_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        limit = units.duration(PROBE_SECONDS)
        raise UserError(f"{torch} does not name its GPUs within {limit}: does nvidia-smi answer?") from None
    torch_gpus = read_probe(probe.stdout) if probe.returncode == 0 else None
    if not torch_gpus:
        stderr_tail = "\n".join(probe.stderr.strip().splitlines()[-3:])
        raise UserError(
            f"this job runs on CUDA, but {torch} cannot use the GPU"
            + (f": {stderr_tail}" if stderr_tail else "")
            + " (`selectbench doctor` says what is missing; --profile cpu runs on the CPU instead)"
        )
    if (difference := first_difference(torch_gpus, gpus)) is not None:
        raise UserError(f"{torch} does not run on the GPUs that were taken: {difference}")


# A complete run gets more seeds: further rounds after its last one, and a further judgement.


@dataclass(frozen=True)
class Extended:
    """A complete run that gets more seeds."""

    folder: Path
    suite: Suite
    """The run's suite as its file had it before."""


def with_more_seeds(suite: Suite, folder: Path) -> tuple[Suite, Extended]:
    """The suite with the run's seeds before its own and one judgement more, and the run to extend.

    A run whose extension was interrupted gets no further seeds: the extension is resumed. Raises UserError.
    """
    folder = folder if folder.name.strip(".") else folder.resolve()  # its name tells the order of trials
    run = load_suite(str(folder / SUITE), device="cpu", require_files=False)
    if suite.quick or run.quick:
        raise UserError(f"{folder}: a --quick run has one seed and claims nothing: run without --quick instead")
    new, known = ([s for s in suite.seeds if (s in run.seeds) is is_known] for is_known in (False, True))
    complete = is_complete(folder)
    if not complete and (new or not run.looks):
        last = ",".join(map(str, run.seeds[run.looks[-2] :])) if run.looks else None
        how = f"--extend with --seeds {last}" if last else "the same command without --extend"
        raise UserError(f"{folder}: only a complete run is extended; finish it first: {how}")
    if complete and known:
        what = f"has {'seed' if len(known) == 1 else 'seeds'} {', '.join(map(str, known))} already"
        raise UserError(f"{folder}: {what}; name new ones only, such as --seeds {max(run.seeds) + 1}")
    seeds = [*run.seeds, *new]
    looks = [*(run.looks or [len(run.seeds)]), len(seeds)] if new else run.looks
    return _with_looks(_with_seeds(suite, seeds), looks), Extended(folder, run)


def extended_preparation(preparation: Preparation, folder: Path, seeds: int) -> Preparation:
    """The preparation that adds `seeds` unused seeds to a complete run of the same suite. Raises UserError."""
    run = load_suite(str(folder / SUITE), device="cpu", require_files=False)
    requested = preparation.suite.model_copy(update={"seeds": run.unused_seeds(seeds)})
    suite, extended = with_more_seeds(requested, folder)
    return replace(preparation.with_suite(suite), extended=extended)


def _with_seeds(suite: Suite, seeds: Sequence[int]) -> Suite:
    return suite.model_copy(update={"seeds": list(seeds), "resolved": {**suite.resolved, "seeds": list(seeds)}})


def _with_looks(suite: Suite, looks: Sequence[int]) -> Suite:
    """The suite with these numbers of seeds after which the run is judged; empty: only at the end."""
    resolved = {key: value for key, value in suite.resolved.items() if key != "looks"}
    resolved |= {"looks": list(looks)} if looks else {}
    return suite.model_copy(update={"looks": list(looks), "resolved": resolved})


def original_suite(suite: Suite, extended: Extended) -> Suite:
    """The suite with the seeds that the run had before it was ever extended, as its fingerprint was taken."""
    before = extended.suite
    return _with_looks(_with_seeds(suite, before.seeds[: before.looks[0]] if before.looks else before.seeds), [])


# The stages of a run: settings that make each option fastest, then those that make it best, then the contest.
#
# Each stage is a suite of its own, planned as any other. What was chosen follows from the records alone, so that a
# run that was cut off goes on where it was.


CONTEST = "contest"
"""The title of the last stage."""
SCREENING = "screening"
"""The title of the stage whose trials may screen options out."""
INTERFERES: RunPhase = "interference"
"""The phase of trials that show whether lanes disturb each other."""


def stages(
    planned: AnyPlanned, records: Sequence[Record], *, reruns_busy: bool = False
) -> list[tuple[str, AnyPlanned]]:
    """Title and plan of each stage that the records decide so far.

    `planned`: the suite as its file declares it; `reruns_busy`: whether options that a busy machine screened out
    are screened again though the contest has begun.
    """
    suite, earlier = planned.suite, []
    if suite.best_of is not None:
        ranks = {p.option.name: p.world_size for p in planned.plan.options}
        sizes = _supported(planned.plan, speed_candidates(suite, ranks, speed_attempts(suite, records)))
        if sizes:
            earlier.append(("micro-batch size", planned.with_suite(speed_suite(suite, sizes))))
    sized = with_fastest_sizes(suite, records)
    supported = [p.option.name for p in planned.plan.options if not p.unsupported]
    if screening := screening_trials(sized, records, supported, reruns_busy=reruns_busy):
        earlier.append((SCREENING, _screening_stage(planned.with_suite(screening_suite(sized)), screening)))
    out = screened_out(sized, records)
    if suite.tune is not None:
        values = _supported(planned.plan, tuning_candidates(without(sized, out), tuning_attempts(sized, records)))
        if values:
            earlier.append(("tuning", planned.with_suite(tuning_suite(sized, values))))
    final = without(with_best_settings(suite, records), out)
    has_begun = any(record.phase == "contest" and record.neighbours for record in records)
    can_check = len(suite.seeds) > 1 and not planned.plan.planned(suite.baseline).unsupported
    if planned.machine.lanes > 1 and planned.checks_interference and can_check and not has_begun:
        earlier.append(("interference check", _with_neighbours(planned.with_suite(interference_suite(final)))))
    if suite.command is not None and not suite.quick and not planned.plan.planned(suite.baseline).unsupported:
        short = planned.with_suite(repeat_suite(final))
        trials = [replace(trial, phase="repeat") for trial in short.plan.trials]
        earlier.append(("does the job repeat", replace(short, plan=replace(short.plan, trials=trials))))
    return [*earlier, (CONTEST, planned if final is suite else planned.with_suite(final))]


def _with_neighbours(stage: AnyPlanned) -> AnyPlanned:
    """The baseline in pairs of trials, alone and with neighbours on the other lanes, in alternating order.

    Neighbours train the suite's options, in each pair another one first.
    """
    plan, baseline = stage.plan, stage.suite.baseline
    names = [p.option.name for p in plan.options if not p.unsupported]
    by_name = {(p.trial.option, p.trial.seed): p.trial for p in plan.trials}
    trials: list[PlannedTrial] = []
    for pair in range(len(stage.suite.seeds) // 2):
        alone_seed, neighbours_seed = stage.suite.seeds[2 * pair : 2 * pair + 2]
        others = [by_name[names[(pair + place) % len(names)], neighbours_seed] for place in range(len(names))]
        order = [(alone_seed, []), (neighbours_seed, others)]
        for place, (seed, neighbours) in enumerate(reversed(order) if pair % 2 else order):
            trial = by_name[baseline, seed]
            trials.append(PlannedTrial(trial, 2 * pair + place, INTERFERES, neighbours))
    return replace(stage, plan=replace(plan, trials=trials))


def _screening_stage(stage: AnyPlanned, to_run: Sequence[tuple[str, int, int]]) -> AnyPlanned:
    """The stage with only the trials to run, given by option, seed and round."""
    by_name = {(p.trial.option, p.trial.seed): p.trial for p in stage.plan.trials}
    trials = [PlannedTrial(by_name[name, seed], number, "screen") for name, seed, number in to_run]
    return replace(stage, plan=replace(stage.plan, trials=trials))


def _supported(plan: Plan, candidates: Mapping[str, Sequence[Values]]) -> dict[str, Sequence[Values]]:
    """Candidates without options that this machine can't run, which the contest reports, or that have none."""
    return {name: values for name, values in candidates.items() if values and not plan.planned(name).unsupported}


# The best use of a given time: rounds are cut, schedules never.


def budget_of(text: str | None) -> float | None:
    """Seconds of `2h`, `90min`, `45 s`; None: no limit. Raises UserError."""
    seconds = None if text is None else units.seconds_of(text)
    if text is not None and seconds is None:
        raise UserError(f"--budget {text}: expected a time with its unit, such as 2h, 90min or 45s")
    return seconds


def cut_to_budget(seconds: float, planned: AnyPlanned, history: History) -> tuple[AnyPlanned, list[str]]:
    """The plan with as many rounds as fit into the time, and notes on them. Raises UserError where none fits."""
    costs = stage_costs([(title, stage.plan) for title, stage in stages(planned, [])], planned.machine, history)
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    suite, declared = planned.suite, len(planned.suite.seeds)
    if len(known) < len(costs):
        return planned, ["--budget: how long trials take is not known here; run once with --quick, then ask again"]
    *_, contest = costs
    per_round = (known[-1] - contest.start_seconds) / declared
    earlier_seconds = math.fsum([*known[:-1], contest.start_seconds])
    rounds = min(declared, math.floor((seconds - earlier_seconds) / per_round)) if per_round else declared
    if rounds < 1:
        raise UserError(
            f"--budget: {units.duration(seconds)} is too short: one round takes about {units.duration(per_round)}"
            + (f" and what comes before {units.duration(earlier_seconds)}" if earlier_seconds else "")
            + "; a schedule is never cut: lower job.max_steps, or leave options out"
        )
    suite = _with_seeds(suite, suite.seeds[:rounds])
    expected = units.duration(earlier_seconds + rounds * per_round)
    head = f"--budget {units.duration(seconds)}: {rounds} of {declared} rounds, about {expected} in all"
    return planned.with_suite(suite), [head, _power_of(planned, rounds)]


def _power_of(planned: Planned, rounds: int) -> str:
    """A sentence on which differences this number of rounds can show."""
    if rounds < 2:
        return "one round gives no verdict: without a measure of spread, figures are only shown"
    supported = sum(p.unsupported is None for p in planned.plan.options)
    tests = max(1, (supported - 1) + supported * len(planned.suite.decide.constraints))
    least = detectable(rounds, supported, tests)
    return (
        f"{rounds} rounds can show differences of about {least:.1%} or more (with a chance of 80 %, if a trial's "
        f"figures vary by {DEFAULT_SPREAD:.0%}, as speed does on an idle machine); smaller ones, and constraints "
        "nearer to their bound, will stay undecided"
    )


# What `plan` and `data` show: the run that would be, without launching anything, and its data.


def preview(request: Request, notify: Notify) -> Outlook:
    """Plan only. Raises UserError for a wrong suite or data; what is missing or in use here is noted."""
    suite, machine = resolve(request)
    site, obstacles, notes = read_site(request.site, request.lanes), list[str](), list[str]()
    is_here = site.launcher == "local"
    if is_here and (reason := device_problem(request, suite)) is not None:
        obstacles.append(reason)
    if not is_here and suite.device == "cuda" and not machine.gpus:
        notes.append("planned for GPUs of which nothing is known: a site file may say `machine: 8 x H100-SXM-80GB`")
    elif suite.device == "cuda" and not machine.gpus:
        sizes = [option.choices.world_size for option in suite.options]
        lanes = site.lanes
        count = max((ranks for ranks in sizes if ranks != "auto"), default=1) * (1 if lanes == "auto" else lanes)
        machine = replace(machine, device_count=count)
        notes.append(
            f"planned as if this machine had {count} GPU{'s' if count > 1 else ''}, of which nothing is known"
        )
    prepared, facts, reason = None, None, wrong_system_reason()
    if suite.command is not None:  # it is not run here: its first trial shows what it does
        notes += [reason] if reason is not None else []
        with data_problems_placed(request, suite):
            facts = command_facts(suite, notify)
    else:
        if reason is None and machine.trains:
            notes += check_own_code(suite, machine, find(request.suite))
        with data_problems_placed(request, suite):
            try:
                prepared = prepare_data(suite, notify, downloads=False)
            except MissingPackageError as error:
                obstacles += error.problems
            except NotDownloadedError:
                for dataset in streamed_datasets(suite.built.data):
                    size = units.size(download_bytes(dataset))
                    notes.append(f"a run first downloads about {size} of {dataset.dataset} and keeps its tokens")
        for model in uncached_models(suite):
            notes.append(f"model.pretrained: {visible(model.pretrained)} is not in the hub's cache: {HUB_FIX}")
        if reason is not None:
            obstacles.append(f"{reason}; planned as if it could, with what {INSTALL} brings")
            machine = machine.with_training()
        elif not machine.trains:
            obstacles.append(f"torch is not installed: {INSTALL}; planned as if it were")
            machine = machine.with_training()
    lanes, need = lanes_of(site.lanes, with_machine_choices(suite, machine, prepared), machine)
    if machine.gpus and is_here:
        try:
            idle, busy = idle_now(request.gpus, need)
        except UserError as error:  # the folder of locks
            notes += error.problems
        else:
            notes += busy
            machine = machine.on(idle)
    machine = machine.in_lanes(lanes) if lanes > 1 else machine
    plan = make_plan(with_machine_choices(suite, machine, prepared), machine, prepared, code_sha256(), facts)
    notes += reference_lines(suite, prepared) if prepared is not None else ()
    planned = Planned(machine, prepared, plan, checks_interference=request.interference_check)
    return _outlook_of(request, planned, obstacles, notes)


def _outlook_of(request: Request, planned: Planned, obstacles: list[str], notes: list[str]) -> Outlook:
    suite, machine = planned.suite, planned.machine
    history = past_trials(request.results / suite.name, machine)
    if request.budget_seconds is not None:
        planned, rounds = cut_to_budget(request.budget_seconds, planned, history)
        notes += rounds
    costs = stage_costs([(title, stage.plan) for title, stage in stages(planned, [])], machine, history)
    outlook = Outlook(planned.plan, estimate(planned.plan, machine, history), costs, obstacles, notes)
    site = read_site(request.site, request.lanes)
    if site.launcher == "local":
        return outlook
    *_, contest = costs
    round_seconds = None
    if contest.seconds is not None:
        round_seconds = (contest.seconds - contest.start_seconds) / len(suite.seeds) + costs[0].start_seconds
    lines = list(plan_lines(site, suite, round_seconds))
    used = max((p.world_size for p in planned.plan.options), default=0)
    if used < (job_gpus := site.gpus * site.nodes):
        lines.append(f"at most {used} of a job's {job_gpus} GPUs are used: gpus_per_node and nodes may be less")
    try:
        lines += [f"does not fit: {problem}" for problem in limit_problems(site)]
    except UserError as error:
        lines.append(f"the partition's limits were not looked at: {error}")
    script = job_script(site, suite.name, request.results.resolve() / suite.name / "RUN", range(len(suite.seeds)))
    return replace(outlook, slurm=lines, script=script)


def prepared_data(request: Request, notify: Notify) -> list[tuple[Prepared, list[str], Samples]]:
    """Each distinct preparation, its options and samples. Raises UserError for a wrong suite or unfit data."""
    suite, _ = resolve(request)
    if suite.command is not None:
        raise UserError(f"{request.suite}: the data of a command are its script's own: there is nothing to prepare")
    with data_problems_placed(request, suite):
        by_option = prepare_data(suite, notify)
    if any(isinstance(part, TextFiles) for part in suite.built.data.parts):
        notify(f"text files are cut between paragraphs into documents of about {BLOCK_CHARACTERS:,} characters")
    options: dict[str, list[str]] = {}
    for name, prepared in by_option.items():
        options.setdefault(prepared.key, []).append(name)
    heldout = {name: evaluable_tokens(prepared, suite.built) for name, prepared in by_option.items()}
    jobs = {names[0]: suite.job_of(suite.option(names[0])) for names in options.values()}
    previews = [(d := by_option[names[0]], names, Samples.draw(d, jobs[names[0]])) for names in options.values()]
    for line in [
        *heldout_warnings(suite, heldout), *split_warnings(suite, by_option),
        *target_warnings(samples.targets for *_, samples in previews),
    ]:  # fmt: skip
        notify(f"warning: {line}")
    return previews

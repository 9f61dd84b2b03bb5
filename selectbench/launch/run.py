"""A run: every planned trial that has no outcome yet, from waiting for its GPUs to its record, then the report."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from selectbench.analysis.metrics import state_of
from selectbench.analysis.result import Ranking
from selectbench.errors import ExitCode
from selectbench.gpu.meters import GpuWatch, Pause, Ready
from selectbench.launch.display import Display, Narrator
from selectbench.launch.preparation import Preparation, check_cuda, make_order, preload
from selectbench.launch.publish import publish, read_run
from selectbench.launch.server import TrialServers
from selectbench.launch.stages import CONTEST, Stage, is_rerun_due, next_stage
from selectbench.launch.trial import StopRequest, TrialEnd, TrialRunner
from selectbench.plan.plan import PlannedTrial
from selectbench.record.record import SOFTWARE, Completed, Failed, Meters, Record
from selectbench.record.run_folder import RunLock, create_run, fingerprint, newest_run, weights_folder
from selectbench.record.store import FILE_NAME, append_record, last_attempts, read_records
from selectbench.record.wire import Finished

# One planned trial from waiting for its GPUs to its record on disk.


@dataclass
class Bench:
    """What every trial of a run is launched with."""

    preparation: Preparation
    folder: Path
    """The run's."""
    servers: TrialServers
    watch: GpuWatch
    display: Display
    stop: StopRequest
    server_start_seconds: float = 0.0
    """What the latest attempt waited for a trial server to start."""

    def run(self, planned: PlannedTrial, attempt: int, number: int, of: int) -> None:
        """Run trial `number`, from 1, of so many; once more where its GPUs spoiled it and the suite allows."""
        record = self._attempt(planned, attempt, number, of)
        if not self.stop and self._is_rerun_due(planned):
            state = state_of(record)
            assert state is not None, "only a state makes a trial unclean"
            trial = record.trial
            self.display.note(
                f"{trial.option}, seed {trial.seed}: the GPU was {state.verdict} ({state.detail}): run again"
            )
            record = self._attempt(planned, attempt + 1, number, of)
        with _terminal_may_be_gone(self.stop):
            self.display.trial_ended(
                record.trial.option, record.trial.seed, record.outcome, record.wall_seconds,
                self.server_start_seconds,
            )  # fmt: skip

    def _is_rerun_due(self, planned: PlannedTrial) -> bool:
        if not self.preparation.suite.meters.rerun_unclean:
            return False
        records, _ = read_records(self.folder / FILE_NAME)
        attempts = [record for record in records if record.trial.trial_id == planned.trial.trial_id]
        return is_rerun_due(attempts, self.preparation.suite)

    def _attempt(self, planned: PlannedTrial, attempt: int, number: int, of: int) -> Record:
        self.server_start_seconds = 0.0
        reason = self.preparation.plan.planned(planned.trial.option).unsupported
        if reason is None:
            record = self._launched(planned, attempt, number, of)
        else:
            refused = Failed(kind="unsupported", detail=reason)
            record = Record(
                trial=planned.trial, phase=_phase(planned), round=planned.round, attempt=attempt,
                wall_seconds=0.0, started_at=_now(), outcome=refused,
            )  # fmt: skip
        append_record(self.folder / FILE_NAME, record)
        return record

    def _launched(self, planned: PlannedTrial, attempt: int, number: int, of: int) -> Record:
        self.display.trial_started(planned.trial.option, planned.trial.seed, number, of)
        ready, started_at = self._ready(planned), _now()
        end, meters = self._metered(planned, ready)
        return Record(
            trial=planned.trial, phase=_phase(planned), round=planned.round, attempt=attempt, outcome=end.outcome,
            wall_seconds=end.wall_seconds, started_at=started_at, software=SOFTWARE.keep(end.software),
            meters=meters, **(_certificate(end.completed) if end.completed else {}),
        )  # fmt: skip

    def _ready(self, planned: PlannedTrial) -> Ready | None:
        """The trial's GPUs as they are when they have come to rest, or when waiting has taken long enough."""
        world_size = self.preparation.plan.planned(planned.trial.option).world_size
        ready = self.watch.settle(world_size)
        for sentence in ready.held if ready and not self.stop else []:
            self.display.note(f"memory has not come back: {sentence}")
        return ready

    def _metered(self, planned: PlannedTrial, ready: Ready | None) -> tuple[TrialEnd, Meters]:
        suite = self.preparation.suite
        server = self.servers.of(suite.option(planned.trial.option).choices.python)
        runner = TrialRunner(server, suite.limits, self.stop, Narrator(self.display))
        order = make_order(self.preparation, planned, self.folder)
        with self.watch.during(ready, Path(order.trial_folder)) as watching:
            end = runner.run(order)
        self.server_start_seconds = end.server_start_seconds
        return end, watching.meters(end.completed)


def _phase(planned: PlannedTrial) -> Literal["tune", "contest"]:
    return "contest" if planned.trial.tunes is None else "tune"


def _certificate(done: Finished) -> dict[str, Any]:
    return {
        "identity": done.identity,
        "watched": done.watched,
        "evaluation_curve": done.evaluation_curve,
        "loss_curve": done.loss_curve,
        "inside": done.inside,
        "resolved_config": done.resolved_config,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@contextlib.contextmanager
def _terminal_may_be_gone(stop: StopRequest) -> Iterator[None]:
    try:
        yield
    except OSError:
        if not stop:
            raise


# A run: every planned trial that has no outcome yet, then the ranking and the report.


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: Path
    ranking: Ranking
    exit_code: ExitCode


def run(
    preparation: Preparation,
    results: Path,
    make_display: Callable[[], Display],
    *,
    fresh: bool = False,
    retry_failed: bool = False,
) -> Result:
    """Run what has no outcome yet in the newest fitting folder, or all of it in a new one. Raises UserError."""
    with preparation.claim:
        check_cuda(preparation.plan, preparation.claim.gpus)
        folder = _choose_folder(preparation, results, fresh=fresh, retry_failed=retry_failed)
        return _run_in(folder, preparation, make_display, retry_failed=retry_failed)


def _run_in(
    folder: Path, preparation: Preparation, make_display: Callable[[], Display], *, retry_failed: bool
) -> Result:
    with RunLock(folder), StopRequest() as stop:
        display = make_display()
        try:
            _run_trials(preparation, folder, display, stop, retry_failed=retry_failed)
        finally:
            with contextlib.suppress(OSError):  # after SIGHUP there is no terminal to restore
                display.close()
        ranking = publish(folder, read_run(folder))
        return Result(folder, ranking, ExitCode.INTERRUPTED if stop else exit_code(preparation, folder))


def _choose_folder(preparation: Preparation, results: Path, *, fresh: bool, retry_failed: bool) -> Path:
    own_code = preparation.plan.own_code_sha256
    data = " ".join(dict.fromkeys(one.key for one in preparation.prepared.values()))
    mark = fingerprint(preparation.suite, preparation.environment, data, own_code)
    newest = None if fresh else newest_run(results, preparation.suite, mark)
    if newest is not None and next_stage(preparation, newest, retry_failed=retry_failed) is not None:
        return newest
    return create_run(results, preparation.suite, preparation.environment, mark)


def _run_trials(
    preparation: Preparation, folder: Path, display: Display, stop: StopRequest, *, retry_failed: bool
) -> None:
    """Stage after stage, as the records of the one before ask."""
    pause, ended = _pause(display, stop), frozenset[str]()
    with (
        weights_folder(folder), _servers(preparation, folder) as servers,
        GpuWatch(preparation.claim.gpus, preparation.suite.meters, pause, lambda: bool(stop)) as watch,
    ):  # fmt: skip
        while not stop and (stage := next_stage(preparation, folder, retry_failed=retry_failed, ended=ended)):
            _announce(stage, folder, display, ended)
            bench = Bench(stage.preparation, folder, servers, watch, display, stop)
            ended |= _run_stage(bench, stage, stop)


def _run_stage(bench: Bench, stage: Stage, stop: StopRequest) -> set[str]:
    """The ids of the trials that were run."""
    ended: set[str] = set()
    of = stage.done + len(stage.trials)
    for number, (planned, attempt) in enumerate(stage.trials, start=stage.done + 1):
        if stop:
            break
        bench.run(planned, attempt, number, of)
        ended.add(planned.trial.trial_id)
    return ended


def _announce(stage: Stage, folder: Path, display: Display, ended: frozenset[str]) -> None:
    """What is to be run now, and what was run before: by this process, or by one that was cut off."""
    suite = stage.preparation.suite
    still_open = Counter(planned.trial.option for planned, _ in stage.trials)
    display.run_started(
        suite, stage.done + len(stage.trials), stage.done,
        {option.name: len(suite.seeds) - still_open[option.name] for option in suite.options},
    )  # fmt: skip
    if stage.title != CONTEST:
        display.note(f"{stage.title}: {len(stage.trials)} trials before the contest")
    if stage.done and not ended:
        display.note(f"resuming {folder}: {stage.done} of {stage.done + len(stage.trials)} trials have an outcome")


def _pause(display: Display, stop: StopRequest) -> Pause:
    def pause(seconds: float) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone
            display.tick()
        stop.wait(seconds)

    return pause


def _servers(preparation: Preparation, folder: Path) -> TrialServers:
    device, gpus = preparation.suite.device, preparation.claim.gpus
    return TrialServers(lambda python: preload(preparation, python), folder, device, gpus)


def exit_code(preparation: Preparation, folder: Path) -> ExitCode:
    """From the records: what the process's status says of a run that went to its end."""
    records, _ = read_records(folder / FILE_NAME)
    last = last_attempts(records).values()
    broken = any(isinstance(r.outcome, Failed) and r.outcome.kind in ("crashed", "timeout") for r in last)
    baseline = preparation.suite.baseline
    has_baseline = any(r.trial.option == baseline and isinstance(r.outcome, Completed) for r in last)
    return ExitCode.TRIALS_FAILED if broken or not has_baseline else ExitCode.OK

"""A run: every planned trial that has no outcome yet, then the ranking and the report."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selectbench.analysis.ranking import Ranking
from selectbench.errors import ExitCode
from selectbench.launch.bench import Bench
from selectbench.launch.display import Display
from selectbench.launch.order import preload
from selectbench.launch.preparation import Preparation, check_cuda
from selectbench.launch.publish import publish, read_run
from selectbench.launch.server import TrialServers
from selectbench.launch.signals import StopRequest
from selectbench.launch.stages import CONTEST, Stage, next_stage
from selectbench.meters.settle import Pause
from selectbench.meters.watch import GpuWatch
from selectbench.record.record import Completed, Failed
from selectbench.record.run_folder import RunLock, create_run, fingerprint, newest_run, weights_folder
from selectbench.record.store import FILE_NAME, last_attempts, read_records


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

"""A run: every planned trial that has no outcome yet, then the ranking and the report."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from selectbench.analysis.ranking import Ranking
from selectbench.errors import ExitCode
from selectbench.launch.display import Display
from selectbench.launch.preparation import Preparation, check_cuda
from selectbench.launch.publish import publish, read_run
from selectbench.launch.server import TrialServers
from selectbench.launch.signals import StopRequest
from selectbench.launch.trial import TrialRunner
from selectbench.machine import usable_cores
from selectbench.plan.plan import PlannedTrial
from selectbench.record.record import Completed, Failed, Record
from selectbench.record.run_folder import (
    TRIALS,
    WEIGHTS,
    RunLock,
    create_run,
    fingerprint,
    newest_run,
    weights_folder,
)
from selectbench.record.store import FILE_NAME, append_record, last_attempts, read_records
from selectbench.record.wire import Order, Phase, Progress
from selectbench.suite.model import OwnModel

CUDA_TIMED_SECONDS = 10.0
"""Least timed duration on CUDA where the suite states none: short windows on fast GPUs mislead."""


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
    check_cuda(preparation.plan, preparation.claim.gpus)
    folder = _choose_folder(preparation, results, fresh=fresh, retry_failed=retry_failed)
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
    mark = fingerprint(preparation.suite, preparation.environment, preparation.prepared.key, own_code)
    newest = None if fresh else newest_run(results, preparation.suite, mark)
    if newest is not None and _pending(preparation, newest, retry_failed=retry_failed):
        return newest
    return create_run(results, preparation.suite, preparation.environment, mark)


def _pending(preparation: Preparation, folder: Path, *, retry_failed: bool) -> list[tuple[PlannedTrial, int]]:
    """The trials to run, in order, each with the number of its attempt."""
    records, _ = read_records(folder / FILE_NAME)
    last = last_attempts(records)
    pending = []
    for planned in preparation.plan.trials:
        record = last.get(planned.trial.trial_id)
        if record is None:
            pending.append((planned, 1))
        elif _is_open(record.outcome, retry_failed=retry_failed):
            pending.append((planned, record.attempt + 1))
    return pending


def _is_open(outcome: Completed | Failed, *, retry_failed: bool) -> bool:
    if isinstance(outcome, Completed):
        return False
    return outcome.kind == "interrupted" or (retry_failed and outcome.kind != "unsupported")


def _run_trials(
    preparation: Preparation, folder: Path, display: Display, stop: StopRequest, *, retry_failed: bool
) -> None:
    total = len(preparation.plan.trials)
    pending = _pending(preparation, folder, retry_failed=retry_failed)
    still_open = {(planned.trial.option, planned.trial.seed) for planned, _ in pending}
    done = Counter(
        p.trial.option for p in preparation.plan.trials if (p.trial.option, p.trial.seed) not in still_open
    )
    display.run_started(preparation.suite, total, total - len(pending), done)
    if len(pending) < total:
        display.note(f"resuming {folder}: {total - len(pending)} of {total} trials have an outcome")
    with weights_folder(folder), _servers(preparation, folder) as servers:
        for number, (planned, attempt) in enumerate(pending, start=total - len(pending) + 1):
            if stop:
                return
            server = servers.of(preparation.suite.option(planned.trial.option).choices.python)
            runner = TrialRunner(server, preparation.suite.limits, stop, Narrator(display))
            record = _run_one(
                preparation, folder, runner, planned, attempt, _starting(display, planned, number, total)
            )
            append_record(folder / FILE_NAME, record)
            with _terminal_may_be_gone(stop):
                display.trial_ended(record.trial.option, record.trial.seed, record.outcome, record.wall_seconds)


def _servers(preparation: Preparation, folder: Path) -> TrialServers:
    device, gpus = preparation.suite.device, preparation.claim.gpus
    return TrialServers(lambda python: preload(preparation, python), folder, device, gpus)


def _starting(display: Display, planned: PlannedTrial, number: int, total: int) -> Callable[[], None]:
    return lambda: display.trial_started(planned.trial.option, planned.trial.seed, number, total)


@contextlib.contextmanager
def _terminal_may_be_gone(stop: StopRequest) -> Iterator[None]:
    try:
        yield
    except OSError:
        if not stop:
            raise


def _run_one(
    preparation: Preparation,
    folder: Path,
    runner: TrialRunner,
    planned: PlannedTrial,
    attempt: int,
    announce: Callable[[], None],
) -> Record:
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    reason = preparation.plan.planned(planned.trial.option).unsupported
    if reason is not None:
        return Record(
            trial=planned.trial, round=planned.round, attempt=attempt, wall_seconds=0.0, started_at=started_at,
            outcome=Failed(kind="unsupported", detail=reason),
        )  # fmt: skip
    announce()
    end = runner.run(make_order(preparation, planned, folder))
    certificate = {
        "identity": end.finished.identity,
        "evaluation_curve": end.finished.evaluation_curve,
        "loss_curve": end.finished.loss_curve,
        "resolved_config": end.finished.resolved_config,
    } if end.finished and isinstance(end.outcome, Completed) else {}  # fmt: skip
    return Record(
        trial=planned.trial, round=planned.round, attempt=attempt, outcome=end.outcome,
        wall_seconds=end.wall_seconds, started_at=started_at, software=end.software, **certificate,
    )  # fmt: skip


def make_order(preparation: Preparation, planned: PlannedTrial, folder: Path) -> Order:
    """What the worker is told."""
    suite = preparation.suite
    stated = suite.job.timing.min_timed_seconds
    world_size = preparation.plan.planned(planned.trial.option).world_size
    return Order(
        trial=planned.trial,
        job=suite.job,
        choices=suite.option(planned.trial.option).choices,
        device=suite.device,
        threads=rank_threads(world_size),
        world_size=world_size,
        data_folder=str(preparation.prepared.folder),
        trial_folder=str((folder / TRIALS / planned.trial.trial_id).resolve()),
        weights_folder=str((folder / WEIGHTS).resolve()),
        code=suite.code,
        min_timed_seconds=stated if stated is not None else CUDA_TIMED_SECONDS if suite.device == "cuda" else 0.0,
    )


def rank_threads(world_size: int) -> int:
    """Threads of a rank's CPU operations: OMP_NUM_THREADS where the user set it, else its share of the cores."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdigit() and int(stated) > 0 else max(1, int(usable_cores()) // world_size)


def preload(preparation: Preparation, python: str | None) -> list[str]:
    """What an interpreter's server imports once: the worker, the model's family, what the choices name."""
    modules = ["selectbench.worker.trial", *_model_modules(preparation)]
    for planned in preparation.plan.options:
        choices = planned.option.choices
        if planned.unsupported is None and choices.python == python:
            modules += [name for choice in choices.each().values() for name in choice.preload]
    return list(dict.fromkeys(modules))


def _model_modules(preparation: Preparation) -> list[str]:
    model, vocab_size = preparation.suite.job.model, preparation.prepared.vocab_size
    if isinstance(model, OwnModel):  # own code is imported in the trial alone: what it does is the trial's
        return []
    family = model.transformers_config(vocab_size, preparation.suite.job.seq_len)["model_type"]
    return [f"transformers.models.{family}.modeling_{family}"]


class Narrator:
    """Passes a trial's events on to the display; a terminal that is gone does not end the trial."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def __call__(self, event: Phase | Progress | None) -> None:
        """None: time has passed."""
        with contextlib.suppress(OSError):
            if isinstance(event, Progress):
                self._display.progress(event.step, event.of, event.loss, event.tokens_per_second)
            elif isinstance(event, Phase):
                self._display.phase_changed(event.phase)
            self._display.tick()


def exit_code(preparation: Preparation, folder: Path) -> ExitCode:
    """From the records: what the process's status says of a run that went to its end."""
    records, _ = read_records(folder / FILE_NAME)
    last = last_attempts(records).values()
    broken = any(isinstance(r.outcome, Failed) and r.outcome.kind in ("crashed", "timeout") for r in last)
    baseline = preparation.suite.baseline
    has_baseline = any(r.trial.option == baseline and isinstance(r.outcome, Completed) for r in last)
    return ExitCode.TRIALS_FAILED if broken or not has_baseline else ExitCode.OK

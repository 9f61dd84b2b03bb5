"""What earlier runs of a suite on hardware like this machine's tell of how long trials take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from selectbench.errors import UserError
from selectbench.machine import Machine, cpu_model, usable_cores
from selectbench.record.record import Completed, Measurement, Record
from selectbench.record.run_files import ENVIRONMENT, read_json
from selectbench.record.store import FILE_NAME, read_records
from selectbench.suite.evaluate import Eval
from selectbench.suite.job import Job


@dataclass(frozen=True)
class History:
    """Completed trials, those of the newest run last."""

    trials: list[Record] = field(default_factory=list)
    """Without those that waited for a server to start."""
    start_seconds: float | None = None
    """What a trial waits for its interpreter's imports, on average; None: not known."""


def past_trials(suite_folder: Path, machine: Machine) -> History:
    """Of all runs of a suite that ran on hardware of this machine's kind; what can't be read says nothing."""
    trials, starts = [], []
    for path in sorted(suite_folder.glob(f"*/{FILE_NAME}")):
        if not _is_alike(path.parent, machine):
            continue
        done = [record for record in read_records(path)[0] if isinstance(record.outcome, Completed)]
        waited = _that_waited(done)
        trials += [record for record in done if not any(record is each for each in waited)]
        starts += [_beyond_the_others(record, done) for record in waited]
    return History(trials, fmean(starts) if starts else None)


def _is_alike(run: Path, machine: Machine) -> bool:
    """Whether the run's GPUs are of the kind of this machine's, or its processor and the cores of it are."""
    try:
        then = read_json(run / ENVIRONMENT)
    except UserError:
        return False
    gpus = {gpu.get("name") for gpu in then.get("gpus") or []}
    if machine.device == "cuda":
        return bool(gpus) and gpus <= {gpu.name for gpu in machine.gpus}
    limits = [then.get("cores_by_affinity"), then.get("cores_by_cgroup")]
    cores = min((float(limit) for limit in limits if limit is not None), default=None)
    return not gpus and then.get("cpu_model") == cpu_model() and cores == usable_cores()


def _that_waited(done: Sequence[Record]) -> list[Record]:
    """The first trial of each interpreter, which waited for its imports, where its option has another.

    Of a run that was resumed the first of its first part alone is known.
    """
    first = {record.trial.every_setting().get("python"): record for record in reversed(done)}.values()
    alike = Counter(record.trial.option for record in done)
    return [record for record in first if alike[record.trial.option] > 1]


def _beyond_the_others(waited: Record, done: Sequence[Record]) -> float:
    others = [r.wall_seconds for r in done if r.trial.option == waited.trial.option and r is not waited]
    return max(0.0, waited.wall_seconds - fmean(others))


def does_like_work(record: Record, settings: dict[str, Any], parameters: int | None) -> bool:
    """Whether a trial of these settings and a model of so many parameters takes as long per token as the record's.

    What the optimizer's numbers are, and the global batch, changes nothing of what a micro-batch takes.
    """
    if parameters is None or record.identity is None or record.identity.parameters != parameters:
        return False
    return _that_take_time(record.trial.every_setting()) == _that_take_time(settings)


def _that_take_time(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in settings.items() if name != "global_batch_size" and value is not None}
    optimizer = {name: value for name, value in kept.get("optimizer", {}).items() if not isinstance(value, float)}
    return {**kept, "optimizer": optimizer}


def seconds_of(job: Job, record: Record, least_timed_seconds: float) -> float:
    """What the job takes in the settings of a trial that did it, or another of such work, before.

    Steps by their tokens, evaluations by the tokens that they score; what is neither stays as it was.
    """
    assert isinstance(record.outcome, Completed)
    before = record.outcome.measurement
    step = _seconds_per_token(before) * job.tokens_per_step
    compiling = before.compile_seconds or 0.0
    timed = (job.max_steps - job.timing.warmup_steps) * step
    return (
        _beside(before, record.wall_seconds)
        + compiling
        + job.max_steps * step
        + max(0.0, least_timed_seconds - max(0.0, timed))
        + _evaluation_seconds(job, record, step)
    )


def _seconds_per_token(before: Measurement) -> float:
    if before.step_time_median_seconds is not None:
        return before.step_time_median_seconds / before.tokens_per_step
    steps = before.steps_applied + before.steps_skipped
    return before.training_seconds / max(1, steps * before.tokens_per_step)


def _beside(before: Measurement, wall_seconds: float) -> float:
    """Of a trial's wall, what was neither training, timing nor evaluating: starting and ending."""
    steps = before.steps_applied + before.steps_skipped
    added = max(0, before.timed_steps - steps) * (before.step_time_median_seconds or 0.0)
    return max(0.0, wall_seconds - before.training_seconds - before.evaluation_seconds - added)


def scored_tokens(job: Job) -> int:
    """Held-out tokens of all evaluations of a trial."""
    if not isinstance(job.eval, Eval):
        return 0
    between = (job.max_steps - 1) // job.eval.every_steps if job.eval.every_steps else 0
    return job.eval.tokens * (1 + between + job.eval.at_start)


def _evaluation_seconds(job: Job, record: Record, step_seconds: float) -> float:
    """As the record's went; where it had none, a token is taken to be scored as slowly as it is trained."""
    assert isinstance(record.outcome, Completed)
    before, asked = record.outcome.measurement, scored_tokens(job)
    scored = (before.heldout_tokens or 0) * len(record.evaluation_curve)
    if scored:
        return before.evaluation_seconds * asked / scored
    return step_seconds * asked / job.tokens_per_step

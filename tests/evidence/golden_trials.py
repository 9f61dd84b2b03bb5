"""What made runs are made of: suites, trials and folders, the same everywhere.

Every value is written out or follows from one: nothing comes from the clock, the machine, torch or the versions
that are installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from made_records import IDENTITY, make_failure, make_meters, make_record, speed
from msgspec.structs import replace

from selectbench.record.record import LOSSES, SETTINGS, EvaluationPoint, Record
from selectbench.record.run_folder import ENVIRONMENT as ENVIRONMENT_FILE
from selectbench.record.run_folder import RECORDS_FILE, line_with_checksum, suite_text
from selectbench.record.run_folder import SUITE as SUITE_FILE
from selectbench.suite.load import load_suite

MIB, GIB = 1 << 20, 1 << 30
STEPS, TOKENS_PER_STEP = 60, 2048
DATA: dict[str, Any] = {
    "kind": "text", "epochs": 0.11, "heldout_bytes": 215_477, "heldout_documents": 58, "heldout_tokens": 60_104,
    "key": "d" * 32, "removed_documents": 0, "removed_lines": 54, "train_bytes": 3_931_490,
    "train_documents": 1131, "train_tokens": 1_109_133, "vocab_size": 512,
}  # fmt: skip
ENVIRONMENT: dict[str, Any] = {
    "allocator": {}, "code_sha256": "c" * 64, "cores_by_affinity": 2, "cores_by_cgroup": None, "cpu_count": 2,
    "cpu_features": ["avx", "avx2", "fma"], "cpu_model": "A processor", "cuda_driver_version": None, "data": DATA,
    "driver_version": None, "git_dirty": False, "git_revision": "7" * 40, "gpu_topology": [], "gpus": [],
    "interpreters": {}, "kernel": "6.1.0", "libc": "glibc 2.36",
    "libraries": {"deepspeed": None, "numpy": "2.4.6", "torch": "2.13.0", "transformers": "5.23.0"},
    "memory_limit_bytes": None, "memory_total_bytes": 24 * GIB, "python": "CPython 3.11.7",
    "selectbench_version": "0.1.0", "switches": {}, "system": "Linux x86_64", "threads": {"OMP_NUM_THREADS": "2"},
    "torch_cuda_version": None,
}  # fmt: skip
H100 = "NVIDIA H100 80GB HBM3"
FREE: dict[str, Any] = {"constraints": []}
Speeds = Sequence[float | str | None]
"""Of each seed: tokens per second, the word of a failure, or None for no record at all."""


@dataclass(frozen=True)
class Run:
    """What a run's folder is made of."""

    suite: Mapping[str, Any]
    """The suite as its author wrote it."""
    records: Sequence[Record]
    environment: Mapping[str, Any] = field(default_factory=lambda: ENVIRONMENT)
    more_lines: Sequence[str] = ()
    """Of records.jsonl, after the records; the last one has no end."""

    def write(self, folder: Path) -> None:
        """As a run leaves it before its report is made."""
        folder.mkdir(parents=True)
        declared = folder / "declared.yaml"
        declared.write_text(json.dumps(self.suite))
        resolved = load_suite(str(declared), device="cpu", require_files=False)
        declared.unlink()
        (folder / SUITE_FILE).write_text(suite_text(resolved))
        (folder / ENVIRONMENT_FILE).write_text(json.dumps(self.environment, indent=2, sort_keys=True) + "\n")
        lines = [line_with_checksum(record).decode() + "\n" for record in self.records]
        (folder / RECORDS_FILE).write_text("".join(lines) + "\n".join(self.more_lines))


def suite_of(options: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A suite of these options, of which the first is the baseline; `job` and `choices` are laid over its own."""
    job = {
        "model": {"family": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2}, "tokenizer": {"bpe": 512},
        "seq_len": 128, "global_batch_size": 16, "max_steps": STEPS, "eval": {"tokens": 16384, "every_steps": 20},
        **changes.pop("job", {}),
    }  # fmt: skip
    choices = {"optimizer": {"name": "adamw", "lr": 1e-3}, "micro_batch_size": 16, **changes.pop("choices", {})}
    whole = {
        "name": "made", "question": "Which option is best?", "job": job, "choices": choices,
        "options": dict(options), "baseline": next(iter(options), None), "seeds": [0, 1, 2], **changes,
    }  # fmt: skip
    whole["job"] = {key: value for key, value in job.items() if value is not None}
    return {key: value for key, value in whole.items() if value is not None}


def by_rate(*names: str) -> dict[str, Any]:
    """Options of one job, told apart by their learning rates."""
    rates = {name: {"name": "adamw", "lr": round(1e-3 * (1 + number), 4)} for number, name in enumerate(names)}
    return {name: {"optimizer": rate} for name, rate in rates.items()}


def trials(option: str, speeds: Speeds, **more: Any) -> list[Record]:
    """Those of one option. `more`: what `trial` takes; a tuple has a value for each seed."""
    found = []
    for seed, value in enumerate(speeds):
        own = {key: given[seed] if isinstance(given, tuple) else given for key, given in more.items()}
        if isinstance(value, str):
            found.append(failed(option, seed, value, meters=own.get("meters")))
        elif value is not None:
            found.append(trial(option, seed, value, **own))
    return found


def trial(
    option: str, seed: int, tokens_per_second: float, *, identity: dict[str, Any] | None = None,
    curve: Sequence[float] | None = (7.0, 6.0), settings: dict[str, Any] | None = None,
    whole: dict[str, Any] | None = None, **measured: Any,
) -> Record:  # fmt: skip
    """A completed one.

    `curve`: held-out losses before the final one, None: none was taken; `settings`: as recorded; `whole`: fields of
    the record; the rest are those of `make_record`.
    """
    each = TOKENS_PER_STEP / tokens_per_second
    steps = [round(each * share, 9) for share in (0.97, 0.99, 1.0, 1.01, 1.06)]
    measured = {**speed(tokens_per_second), "step_seconds": steps, **measured}
    made = make_record(option, seed, identity={"compute_dtype": "float32", **(identity or {})}, **measured)
    m = made.outcome.measurement  # type: ignore[union-attr]
    losses = [*curve, m.final_loss] if curve is not None and m.final_loss is not None else []
    places = [(made.identity or IDENTITY).steps_requested * n // len(losses) for n in range(1, len(losses) + 1)]
    points = [
        EvaluationPoint(
            step=step,
            tokens=step * m.tokens_per_step,
            training_seconds=step * m.tokens_per_step / tokens_per_second,
            loss=loss,
        )
        for step, loss in zip(places, losses, strict=True)
    ]
    training = LOSSES.as_json([(step, round(7.7 - step / 30 + seed / 100, 3)) for step in range(0, STEPS, 4)])
    if settings is not None:
        made = replace(made, trial=replace(made.trial, settings=SETTINGS.as_json(settings)))
    return replace(
        made, evaluation_curve=points, loss_curve=training, started_at=begun(seed), wall_seconds=15.0 + seed,
        **(whole or {}),
    )  # fmt: skip


def at_seed(record: Record, seed: int) -> Record:
    """The same trial with another seed, a little slower."""
    named = replace(record.trial, seed=seed, trial_id=f"{record.trial.option}-{seed}")
    measured = record.outcome.measurement  # type: ignore[union-attr]
    slower = replace(measured, timed_seconds=measured.timed_seconds * (1 + seed / 100))
    return replace(record, trial=named, round=seed, outcome=replace(record.outcome, measurement=slower))


def begun(round_number: int) -> str:
    """When the trials of a round began."""
    return f"2026-01-02T03:{4 + round_number % 50:02d}:05Z"


DETAILS = {
    "oom": "CUDA out of memory. Tried to allocate 2.00 GiB",
    "diverged": "the loss of step 17 is NaN",
    "unsupported": "attention flash_attention_2: the package flash-attn is not installed",
    "timeout": "no step, evaluation or compilation ended within 1,800 s",
    "crashed": 'RuntimeError: boom\nTraceback (most recent call last):\n  File "train.py", line 7\n| <boom>',
    "interrupted": "stopped by a signal",
}


def failed(option: str, seed: int, kind: str, **more: Any) -> Record:
    """A trial that failed so."""
    return replace(make_failure(option, seed, kind, DETAILS[kind], **more), started_at=begun(seed))


def tried(
    option: str, values: Mapping[str, int | float], found: float | str, metric: str = "final_loss", **measured: Any
) -> Record:
    """A trial before the contest; a word is how it failed."""
    name = " ".join([option, *(f"{path.rpartition('.')[2]}={value:g}" for path, value in values.items())])
    if isinstance(found, str):
        made = failed(name, 1000, found)
    else:
        fast = found if metric == "tokens_per_second" else 100
        made = trial(name, 1000, fast, **({} if metric == "tokens_per_second" else {metric: found}), **measured)
    return replace(made, trial=replace(made.trial, tunes=option, tried=dict(values)), phase="tune", round=0)


def on_gpus(count: int = 1) -> dict[str, Any]:
    """The environment of a run that took so many GPUs."""
    facts = {
        "name": H100, "memory_total_bytes": 80 * GIB, "compute_capability": [9, 0], "power_limit_watts": 700.0,
        "ecc_enabled": True, "max_sm_clock_hertz": 1.98e9,
    }  # fmt: skip
    links = [["X" if one == other else "NV18" for other in range(count)] for one in range(count)]
    return {
        **ENVIRONMENT, "gpus": [facts] * count, "gpu_topology": links, "driver_version": "570.124.06",
        "cuda_driver_version": [12, 8], "torch_cuda_version": "12.8",
    }  # fmt: skip


CUDA: dict[str, Any] = {
    "peak_pss_growth_bytes": None, "peak_memory_allocated_bytes": (5 * GIB, 5 * GIB + MIB, 5 * GIB + 2 * MIB),
    "peak_memory_reserved_bytes": 6 * GIB,
}  # fmt: skip


def measured_on_gpus(speeds: Mapping[str, Speeds], **more: Any) -> list[Record]:
    """Clean trials on one GPU each."""
    return [
        record
        for name, own in speeds.items()
        for record in trials(name, own, **{"meters": make_meters(), **CUDA, **more})
    ]

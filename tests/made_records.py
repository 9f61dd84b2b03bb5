"""Small suites and records, made without training, for the tests of analysis, report and display."""

from __future__ import annotations

from typing import Any

from msgspec import convert, to_builtins
from msgspec.structs import replace

from selectbench.analysis.result import Certificate
from selectbench.record.record import (
    LOSSES,
    NOTHING,
    Architecture,
    Completed,
    EvaluationPoint,
    Failed,
    GpuMeters,
    Identity,
    Measurement,
    Meters,
    Record,
    Trial,
)
from selectbench.report.ranking import unverified_text
from selectbench.suite.job import LrSchedule, shape_sha256, shares
from selectbench.suite.suite import Suite

ADAMW = {"name": "adamw", "lr": 1e-3}
MEASUREMENT = Measurement(
    tokens_per_step=2048, steps_applied=60, steps_skipped=0, timed_steps=50, timed_seconds=10.0,
    step_seconds=[0.2] * 50, step_time_median_seconds=0.2, step_time_iqr_seconds=0.01, warmup_seconds=0.7,
    startup_seconds=0.25, compile_seconds=None, recompilations=0, training_seconds=12.5, evaluation_seconds=1.5,
    first_loss=7.7, last_loss=5.6, final_loss=5.5, heldout_tokens=16384, heldout_bytes=60000,
    peak_pss_growth_bytes=300 << 20,
)  # fmt: skip
IDENTITY = Identity(
    initial_weights_sha256="a" * 64, token_stream_sha256="b" * 64, evaluation_set_sha256="c" * 64,
    parameters=1_000_000, tokens_per_step=2048, steps_requested=60, steps_applied=60,
    gradient_accumulation_steps=1, learning_rate_shape_sha256=shape_sha256(shares(LrSchedule(), 60)),
    parameter_dtype="float32",
    gradient_dtype="float32", working_dtype="float32", compute_dtype="float32",
    optimizer_state_dtype=["float32"], matmul_tf32=False, attention="sdpa", optimizer=["AdamW(fused)"],
    compiled=False, first_step_loss=7.7,
    first_step_gradient_norm=1.5,
)  # fmt: skip
GPU = GpuMeters(
    name="NVIDIA H100 80GB HBM3", pci_bus_id="0000:1B:00.0", is_mig=False, memory_total_bytes=80 << 30,
    idle_memory_bytes=1 << 30, idle_utilization=0.0, peak_device_memory_bytes=9 << 30,
    driver_reserved_bytes=512 << 20, memory_readings=200, readings=100, metered_seconds=10.0, counter_joules=3000.0,
    instant_power_joules=3030.0, average_power_joules=2900.0, mean_utilization=0.95, mean_sm_clock_hertz=1.755e9,
    mean_memory_clock_hertz=2.619e9, highest_temperature_celsius=61.0,
    clock_limit_shares={"sw_power_cap": 0.4, "hw_thermal_slowdown": 0.0}, other_processes=[],
)  # fmt: skip
"""Over a clean trial of ten timed seconds at 300 W."""
ARCHITECTURE = Architecture(
    matmul_parameters=1_000_000, block_matmul_parameters=900_000, attention_width=128, seq_len=128
)
HOT = {"clock_limit_shares": {"hw_thermal_slowdown": 0.31}}
"""Of a GPU that was throttled."""
SHARED = {"other_processes": [{"pid": 4711, "name": "python", "memory_bytes": 5 << 30}]}
"""Of a GPU that another process computed on."""


def make_gpu(**changes: Any) -> GpuMeters:
    """A clean GPU; keywords replace its fields."""
    return convert({**to_builtins(GPU), **changes}, GpuMeters)


def make_meters(*gpus: dict[str, Any], **changes: Any) -> Meters:
    """Of a trial on one clean GPU, or on one for each mapping, which replaces that GPU's fields."""
    return Meters(gpus=[make_gpu(**own) for own in gpus or ({},)], settled=True, **changes)


def make_suite(*options: str | tuple[str, dict[str, Any]], **changes: Any) -> Suite:
    """A suite of these options, by name or as (name, choices); the first one is the baseline."""
    pairs = [(o, {"precision": {"name": "fp32"}}) if isinstance(o, str) else o for o in options]
    rows = [
        {"name": name, "choices": {"optimizer": ADAMW, "micro_batch_size": 16, **own},
         "differs_in": [] if name == pairs[0][0] else list(own)}
        for name, own in pairs
    ]  # fmt: skip
    job = {
        "model": {"family": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2},
        "tokenizer": {"bpe": 512}, "seq_len": 128, "global_batch_size": 16, "max_steps": 60,
        **changes.pop("job", {}),
    }  # fmt: skip
    content = {
        "name": "precision", "question": "Which precision is fastest at equal quality?", "profile": None,
        "device": "cpu", "job": job, "options": rows, "baseline": pairs[0][0], "seeds": [0, 1, 2],
        "decide": {}, "limits": {}, "resolved": {},
    }  # fmt: skip
    return Suite.model_validate({**content, **changes})


def make_record(
    option: str,
    seed: int,
    *,
    identity: dict[str, Any] | None = None,
    attempt: int = 1,
    trial_id: str | None = None,
    started_at: str = "2026-01-02T03:04:05Z",
    meters: Meters | None = None,
    **measured: Any,
) -> Record:
    """A completed trial; keywords replace fields of its measurement, `identity` those of its certificate.

    What both tell is the same in both where only one is given.
    """
    told_twice = {"first_loss": "first_step_loss", "steps_applied": "steps_applied"}
    both = {theirs: measured[ours] for ours, theirs in told_twice.items() if ours in measured}
    certificate = replace(IDENTITY, **{"compute_dtype": _computes(option), **both, **(identity or {})})
    skipped = max(0, certificate.steps_requested - certificate.steps_applied)
    own = {ours: getattr(certificate, theirs) for ours, theirs in told_twice.items()} | {"steps_skipped": skipped}
    return Record(
        trial=Trial(trial_id=trial_id or f"{option}-{seed}", option=option, seed=seed, settings=NOTHING),
        round=seed, attempt=attempt,
        outcome=Completed(measurement=replace(MEASUREMENT, **{**own, **measured})), identity=certificate,
        meters=meters, evaluation_curve=[], loss_curve=LOSSES.as_json([(0, 7.7), (30, 6.1), (59, 5.6)]),
        wall_seconds=15.0, started_at=started_at,
    )  # fmt: skip


def with_curve(record: Record, seconds: float, *losses: float) -> Record:
    """The same trial with an evaluation every so many seconds of training, the final loss at its end."""
    assert isinstance(record.outcome, Completed)
    assert record.identity is not None
    m, steps = record.outcome.measurement, record.identity.steps_requested
    places = [steps * n // len(losses) for n in range(1, len(losses) + 1)]
    points = [
        EvaluationPoint(step=step, tokens=step * m.tokens_per_step, training_seconds=seconds * n, loss=loss)
        for n, (step, loss) in enumerate(zip(places, losses, strict=True), start=1)
    ]
    outcome = Completed(measurement=replace(m, final_loss=losses[-1]))
    return replace(record, evaluation_curve=points, outcome=outcome)


def _computes(option: str) -> str:
    """The dtype that an option named after its precision is found to compute in."""
    return {"bf16": "bfloat16", "fp16": "float16"}.get(option[:4], "float32")


def make_failure(
    option: str, seed: int, kind: str, detail: str = "what happened", attempt: int = 1,
    meters: Meters | None = None,
) -> Record:  # fmt: skip
    """A failed trial."""
    return Record(
        trial=Trial(trial_id=f"{option}-{seed}", option=option, seed=seed, settings=NOTHING), round=seed,
        attempt=attempt, outcome=convert({"kind": kind, "detail": detail}, Failed), wall_seconds=3.0,
        meters=meters, started_at="2026-01-02T03:04:05Z",
    )  # fmt: skip


def speed(tokens_per_second: float) -> dict[str, float]:
    """The measurement's fields of a trial that ran so fast."""
    return {"timed_seconds": 50 * 2048 / tokens_per_second, "step_time_median_seconds": 2048 / tokens_per_second}


def entries(certificate: Certificate) -> list[str]:
    """What is not verified, as reports say it."""
    return [unverified_text(entry) for entry in certificate.not_verified]

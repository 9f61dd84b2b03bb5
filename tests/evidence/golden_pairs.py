"""Made runs that stand beside each other: compared, held to a gate, and listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evidence.golden_trials import (
    ENVIRONMENT,
    FREE,
    Run,
    Speeds,
    at_seed,
    by_rate,
    failed,
    measured_on_gpus,
    on_gpus,
    suite_of,
    trials,
)

from selectbench.record.record import Record


def compared_runs() -> dict[str, Run]:
    """Runs to compare with the one called reference."""
    names, cost = ("base", "a", "b", "c", "gone"), {"usd_per_gpu_hour": 2.0}
    speeds: dict[str, Speeds] = {
        "base": (100, 101, 99), "a": (110, 111, 109), "b": (120, 125, 118), "c": (130, 131, 128),
        "gone": (90, 91, 92),
    }  # fmt: skip
    suite = suite_of(by_rate(*names), device="cuda", cost=cost, decide=FREE)
    reference = Run(suite, measured_on_gpus(speeds), on_gpus())
    faster: dict[str, Speeds] = {
        **speeds, "a": (130, 131, 129), "b": (119, 100, 140), "c": (128, 129, 126), "gone": ("oom", "oom", None)
    }  # fmt: skip
    drifted = {
        name: [value * (1.02 + ((5 * place + 3 * seed) % 7 - 3) / 500) for seed, value in enumerate(own)]
        for place, (name, own) in enumerate(speeds.items())
    }  # fmt: skip
    libraries = {f"library {number}": "2" for number in range(30)}
    moved = {**on_gpus(2), "cpu_model": "Another | processor", "libraries": libraries, "kernel": "6.2.0"}
    changed = suite_of(
        {**by_rate(*names), "b": {"precision": "bf16_mixed", "attention": "eager"}, "new": {"micro_batch_size": 8}},
        device="cuda", cost=cost, decide=FREE, job={"clip_norm": 0.5}, limits={"stall_seconds": 60},
    )  # fmt: skip
    other = {"token_stream_sha256": "f" * 64}
    bf16 = {**other, "compute_dtype": "bfloat16", "attention": "eager"}
    records = measured_on_gpus({**faster, "b": (None, None, None)}, identity=other, final_loss=(5.6, 5.61, 5.62))
    records += measured_on_gpus({"b": faster["b"]}, identity=bf16)
    records += measured_on_gpus({"new": (95, 96, 97)})
    later = [at_seed(record, record.trial.seed + 5) for record in reference.records]
    single = [record for record in reference.records if record.trial.seed == 0]
    nothing = [failed(name, seed, "crashed") for name in names for seed in range(3)]
    return {
        "reference": reference,
        "same": Run(suite, measured_on_gpus(speeds), on_gpus()),
        "drifted": Run(suite, measured_on_gpus(drifted), on_gpus()),
        "changed": Run(changed, records, moved, ["not JSON"]),
        "later": Run({**suite, "seeds": [5, 6, 7]}, later, on_gpus()),
        "single": Run(suite, single, on_gpus()),
        "nothing": Run(suite, nothing, on_gpus()),
    }


def gated_runs() -> tuple[dict[str, Run], list[list[str]]]:
    """Runs, and the words of every gate on them."""
    names = ("base", "a", "b")
    limits = ["tokens_per_second >= 0.97x reference", "final_perplexity <= 1.01x reference",
              "peak_memory_bytes <= 1 GiB"]  # fmt: skip
    suite = suite_of(by_rate(*names), gate=limits)
    good: dict[str, Speeds] = {"base": (100, 101, 99), "a": (110, 111, 109), "b": (120, 121, 119)}

    def run(changes: Mapping[str, Speeds] | None = None, **more: Any) -> list[Record]:
        return [r for name, own in {**good, **(changes or {})}.items() for r in trials(name, own, **more)]

    ungated, scored_zero = suite_of(by_rate(*names)), {"scores": {"bleu": 0.0}}
    source = {"source_loss": 1.2, "source_loss_error": 0.01}
    blown = run(final_loss=(5.5, 800.0, 5.5))
    job = suite_of(by_rate(*names), job={"clip_norm": 0.5, "max_steps": 30}, gate=limits)
    runs = {
        "reference": Run(suite, run()), "same": Run(suite, run()), "slow": Run(suite, run({"a": (80, 81, 79)})),
        "noisy": Run(suite, run({"a": (110, 90, 125)})), "stopped": Run(suite, run({"a": (110, None, None)})),
        "failing": Run(suite, run({"a": (110, "oom", "timeout"), "b": (120, 121, "interrupted")})),
        "fewer": Run(suite_of(by_rate("base", "a")), run({"b": ()}), ENVIRONMENT, ["torn"]),
        "blown": Run(suite, blown),
        "elsewhere": Run(suite, run(), {**ENVIRONMENT, "cpu_model": "Another", "cores_by_affinity": 4}),
        "older": Run(suite, run(), {k: v for k, v in ENVIRONMENT.items() if k != "cpu_features"}),
        "other_job": Run(job, run()), "other_data": Run(suite, run(identity={"evaluation_set_sha256": "f" * 64})),
        "other_settings": Run(suite_of({**by_rate(*names), "a": {"precision": "bf16_mixed"}}), run()),
        "stranger": Run(suite, run({"a": (110, 111, 109)}, identity={"parameters": 5, "optimizer": ["SGD"]})),
        "ungated": Run(ungated, run({"a": ()})), "nothing": Run(suite, run(dict.fromkeys(names, ("oom",)))),
        "zero": Run(ungated, run(**scored_zero)), "scored": Run(ungated, run(scores={"bleu": 20.0})),
        "lossless": Run(ungated, run(final_loss=1.18, **source)),
        "above": Run(ungated, run(final_loss=1.3, **source)),
    }  # fmt: skip
    plain = ["same", "slow", "noisy", "stopped", "failing", "fewer", "blown", "older", "stranger", "elsewhere",
             "other_job", "other_data", "other_settings", "reference"]  # fmt: skip
    gates = [[name, "--against", "reference"] for name in plain]
    bleu, excess = ["--limit", "bleu >= 0.9x reference"], ["--limit", "excess_loss <= 1.5x reference"]
    gates += [
        ["elsewhere", "--against", "reference", "--any-machine"], ["same", "--against", "ungated"],
        ["reference", "--against", "nothing"], ["ungated", "--against", "zero"],
        ["blown", "--against", "blown_too"], ["scored", "--against", "reference", *bleu],
        ["zero", "--against", "scored", *bleu], ["scored", "--against", "zero", *bleu],
        ["scored", "--against", "scored_too", *bleu, "--limit", "bleu >= 21"],
        ["lossless", "--against", "above", *excess, "--limit", "excess_loss <= 0.2"],
        ["above", "--against", "lossless", *excess],
        ["same", "--against", "reference", "--limit", "final_loss <= 5.6", "--limit", "final_loss < 5.5 nats"],
        ["same", "--against", "reference", "--limit", "joules_per_token <= 1.1x reference"],
        ["same", "--against", "reference", "--limit", "tokens_per_second <= 1x reference"],
    ]  # fmt: skip
    return {**runs, "scored_too": runs["scored"], "blown_too": runs["blown"]}, gates


def listed_runs() -> dict[str, Run]:
    """By their folders below results/."""
    options, control = by_rate("base", "a"), True
    records = [*trials("base", (100, 101, 102)), *trials("a", (120, "oom", None))]
    return {
        "made/20260102T030405.000Z-a1b2c3d4e5f6": Run(suite_of(options, control=control), records),
        "made/20260203T040506.000Z-a1b2c3d4e5f6": Run(suite_of(options, device="cuda"), records[:1], on_gpus()),
    }

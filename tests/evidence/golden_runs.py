"""Made runs that hold what the kept runs under results/ lack, for the goldens beside this file.

Every value is written out here or follows from one: nothing comes from the clock, the machine, torch or the
versions that are installed. `python tests/evidence/golden_runs.py --write` writes the goldens anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it, for the command above

from evidence.golden_scores import scored
from evidence.golden_trials import (
    CUDA,
    DATA,
    ENVIRONMENT,
    FREE,
    GIB,
    MIB,
    STEPS,
    Run,
    by_rate,
    failed,
    on_gpus,
    suite_of,
    trial,
    trials,
    tried,
)
from made_records import HOT, SHARED, make_meters
from msgspec.structs import replace

from selectbench.record.record import Architecture, Inspection, Meters, RankMemory, Record, Sample
from selectbench.record.run_folder import RECORDS
from selectbench.suite.job import LrSchedule, shape_sha256, shares

SHAPE = Architecture(
    matmul_parameters=10**11, block_matmul_parameters=9 * 10**10, attention_width=4096, seq_len=128
)
NO_COUNTER = {"counter_joules": None, "instant_power_joules": None}


def gpus() -> Run:
    """Every state of a GPU, every source of its energy, and every reason why a figure of it is not known."""
    names = ("clean", "throttled", "hot", "hidden", "slice", "disagreeing", "averaged", "powerless", "impossible",
             "crowded", "unmetered", "own")  # fmt: skip
    options = by_rate(*names)
    options["clean"] |= {"activation_checkpointing": True}
    options["own"] |= {"framework": "ourlib.loop:train"}
    options["averaged"] |= {"precision": "tf32"}
    constraints = ["joules_per_token <= 4 J", "peak_device_memory_bytes <= 12 GiB",
                   "tokens_per_second >= 0.5x baseline"]  # fmt: skip
    suite = suite_of(
        options, device="cuda", question="What did the GPUs do?", meters={"memory_interval_seconds": 0.02},
        cost={"usd_per_gpu_hour": 2.5, "usd_per_kwh": 0.3}, decide={"constraints": constraints},
    )  # fmt: skip
    rated = {"matmul_flops_per_second": {"float32": 6.2e13}}
    series = {"memory_series": [(0.0, 1e9), (1.0, 9e9), (2.0, 8.5e9)], "power_series": [(0.0, 90.0), (1.0, 310.0)]}
    clean, hot = make_meters({**rated, **series}), make_meters(HOT)
    hidden = make_meters({"other_processes": None, "metered_seconds": 1.0, "name": "Another board",
                          "clock_limit_shares": None})  # fmt: skip
    blind = make_meters({"readings": 0, "idle_memory_bytes": None, "problem": "the driver was lost"})
    stopped = replace(make_meters(), settled=False, problem="the sampler stopped")
    work = {**CUDA, "architecture": SHAPE}
    records = [
        *trials("clean", (100, 101, 102), meters=clean, **work),
        *trials("throttled", (140, 141, 90), meters=(clean, clean, hot), **work),
        *trials("hot", (90, 91, 92), meters=(hot, make_meters(SHARED), hot), **work),
        *trials("hidden", (100, 100, 101), meters=(hidden, hidden, blind), **work),
        *trials("slice", (50, 51, 50), meters=make_meters({"is_mig": True}), **work),
        *trials("disagreeing", (99, 99, 98), meters=make_meters({"instant_power_joules": 4000.0}), **work),
        *trials("averaged", (101, 102, 104), meters=make_meters(NO_COUNTER), recompilations=(0, 1, 0),
                identity={"matmul_tf32": True}, **work),
        *trials("powerless", (99, 101, 99), meters=make_meters({**NO_COUNTER, "average_power_joules": None}),
                num_alloc_retries=(2, 0, 0), whole=({}, {}, {"identity": None}), **work),
        *trials("impossible", (300, 301, 303), meters=make_meters({**rated, "counter_joules": None}), **work),
        *trials("crowded", ("oom", "timeout", "crashed"),
                meters=(make_meters(SHARED), hot, make_meters({"idle_utilization": 0.4}))),
        *trials("unmetered", (100, 99, 98), meters=Meters(problem="the driver's library is not there"), **CUDA),
        *trials("own", (100, 103, 101), meters=stopped, identity={"framework": "ourlib.loop:train"}, **work),
    ]  # fmt: skip
    return Run(suite, records, on_gpus())


def laid_out(strategy: str, ranks: int, accumulated: int = 1) -> dict[str, Any]:
    """What a trial on so many ranks is found to have."""
    return {"strategy": strategy, "world_size": ranks, "gradient_accumulation_steps": accumulated,
            "reduction_dtype": "float32" if ranks > 1 else None}  # fmt: skip


def by_rank(count: int, peak: int, **more: Any) -> list[RankMemory]:
    """The memory of so many ranks, each a little larger than the one before."""
    state = {"parameter_bytes": 4 * MIB, "gradient_bytes": 4 * MIB, "optimizer_state_bytes": 8 * MIB, **more}
    return [RankMemory(rank=rank, peak_memory_allocated_bytes=peak + rank * MIB, **state) for rank in range(count)]


def ranks() -> Run:
    """One job over one to sixteen GPUs, by three strategies."""
    zero = {"name": "zero", "stage": 2}
    options = {
        "one": {"strategy": "ddp"},
        "two": {"strategy": "ddp", "world_size": 2, "micro_batch_size": 8},
        "four": {"strategy": "fsdp", "world_size": 4, "micro_batch_size": 4},
        "sixteen": {"strategy": zero, "world_size": 16, "micro_batch_size": 1},
        "alone": {"strategy": {"name": "zero", "stage": 3}},
        "auto": {"strategy": "ddp", "world_size": "auto", "micro_batch_size": 4},
    }
    peaks = {"peak_pss_growth_bytes": None, "peak_memory_allocated_bytes": (GIB, GIB + MIB, GIB + 2 * MIB)}
    low = {"peak_pss_growth_bytes": None, "peak_memory_allocated_bytes": (90 * MIB, 91 * MIB, 91 * MIB)}
    one_hot = (make_meters({}, {}), make_meters({}, HOT), make_meters({}, {}))
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}}
    ddp, found = "DistributedDataParallel", laid_out
    records = [
        *trials("one", (100, 101, 102), meters=make_meters(), memory_by_rank=by_rank(1, GIB),
                identity=found(ddp, 1), **peaks),
        *trials("two", (190, 192, 191), meters=one_hot, memory_by_rank=by_rank(2, GIB), identity=found(ddp, 2),
                architecture=SHAPE, **peaks),
        *trials("four", (360, 361, 365), meters=make_meters({}, {}, {}, {}), identity=found("FSDPModule", 4),
                memory_by_rank=by_rank(4, 300 * MIB, optimizer_state_bytes=None), **peaks),
        *trials("sixteen", (900, 905, 910), meters=make_meters(*[{}] * 16), memory_by_rank=by_rank(16, 90 * MIB),
                identity=found("DeepSpeedEngine zero 2", 16), whole={"resolved_config": config}, **low),
        *trials("alone", (80, 81, 80), meters=make_meters(), memory_by_rank=by_rank(1, GIB),
                identity=found("DeepSpeedEngine zero 3", 1), **peaks),
        *trials("auto", (300, 301, 180), meters=(make_meters(*[{}] * 4), make_meters(*[{}] * 4), make_meters()),
                memory_by_rank=(by_rank(4, GIB), by_rank(4, GIB), by_rank(2, GIB)), architecture=SHAPE,
                identity=(found(ddp, 4), found(ddp, 4), found(ddp, 2, 2)), **peaks),
    ]  # fmt: skip
    suite = suite_of(options, device="cuda", question="How far does the job scale?")
    return Run(suite, records, on_gpus(16))


def cpu_ranks() -> Run:
    """Ranks that share the cores of a CPU."""
    options = {
        "one": {"strategy": "ddp"},
        "two": {"strategy": "ddp", "world_size": 2, "micro_batch_size": 8},
        "four": {"strategy": "ddp", "world_size": 4, "micro_batch_size": 4},
    }
    ddp = "DistributedDataParallel"
    records = [
        *trials("one", (100, 101, 102), identity=laid_out(ddp, 1)),
        *trials("two", (90, 92, 91), identity=laid_out(ddp, 2)),
        *trials("four", (60, 61, 65), identity=laid_out(ddp, 4) | {"reduction_dtype": None}),
    ]
    return Run(suite_of(options), records, {**ENVIRONMENT, "cores_by_cgroup": 1.5})


def grid() -> Run:
    """Three factors, two of which always change together; what two of them do together is more than each alone."""
    options = {"plain": {}, "eager": {"attention": "eager", "activation_checkpointing": True}}
    axes = {"precision": ["fp32", "bf16_mixed"], "micro_batch_size": [16, 8]}
    records: list[Record] = []
    for number, (kernel, dtype, size) in enumerate(
        (k, d, s) for k in options for d in axes["precision"] for s in axes["micro_batch_size"]
    ):
        alone = (0.7 if kernel == "eager" else 1) * (1.6 if dtype != "fp32" else 1) * (0.95 if size == 8 else 1)
        base = 1000 * alone * (1.1 if kernel == "plain" and dtype != "fp32" else 1.0)
        speeds = [round(base * (1 + ((7 * number + 3 * seed) % 5 - 2) / 400), 3) for seed in range(3)]
        found = {
            "attention": "eager" if kernel == "eager" else "sdpa", "gradient_accumulation_steps": 16 // int(size),
            "compute_dtype": "float32" if dtype == "fp32" else "bfloat16",
        }  # fmt: skip
        name = f"{kernel} + {dtype} + micro_batch_size={size}"
        holes: list[float | str | None] = [*speeds[:2], "oom"] if number == 6 else [*speeds]
        records += trials(name, holes, identity=found, final_loss=(5.5, 5.51, 5.49))
    suite = suite_of(
        options, axes=axes, baseline="plain + fp32 + micro_batch_size=16", question="What does each factor do?"
    )
    return Run(suite, records)


def learnt(option: str) -> Inspection:
    """A look inside."""
    return Inspection(
        samples=[Sample(prompt="een twee", said=f"drie {option}", reference="drie vier"),
                 Sample(prompt="vijf |<b>", said="zes", reference=None)],
        tokens=["een", "\n", " twee"], token_losses=[0.5, 2.0, 9.0],
        attention=[[1.0, 0.0], [0.25, 0.75]], attention_rows=["een", "\n"], attention_columns=["a", "b"],
    )  # fmt: skip


SEQ2SEQ: dict[str, Any] = {
    "task": "seq2seq", "model": {"family": "t5", "num_layers": 2, "d_model": 64, "num_heads": 2, "d_ff": 128},
    "data": {"pairs": ["/data/pairs.tsv"]}, "seq_len": 64,
    "eval": {"tokens": 8192, "every_steps": 20, "generate": 24,
             "scores": ["bleu", "chrf", "exact_match", "token_f1", "ourlib.score:mine"]},
}  # fmt: skip


def scores() -> Run:
    """Pairs with scores of what was generated, compared and, each for its own reason, not compared."""
    names = ("base", "better", "same", "poor", "worst", "few", "unkept", "untrue", "lost")
    better, same = scored(24, 11), scored(24, 5)
    untrue = {**better, "scores": {**better["scores"], "chrf": 99.0}}
    nothing = {"scores": dict.fromkeys(better["scores"], 0.0), "sentences": None}
    records = [
        *trials("base", (100, 101), **same, whole={"inside": learnt("base")}),
        *trials("better", (90, 91), **better, whole={"inside": learnt("better")}),
        *trials("same", (100, 102), **same),
        *trials("poor", (100, 102), **scored(24, 2)),
        *trials("worst", (100, 102), **scored(24, 0)),
        *trials("few", (100, 102), **scored(9, 11)),
        *trials("unkept", (100, 103), **nothing),
        *trials("untrue", (100, 103), **untrue),
        *trials("lost", (100, "oom"), identity={"token_stream_sha256": "f" * 64}, **better),
    ]
    decide = {"objective": "bleu", "constraints": ["chrf >= 0.9x baseline", "own_score >= 30"]}
    suite = suite_of(by_rate(*names), job=SEQ2SEQ, seeds=[0, 1], decide=decide, question="Which translates best?")
    return Run(suite, records, {**ENVIRONMENT, "data": {**DATA, "kind": "pairs"}})


LR, WARMUP, SIZE = "optimizer.lr", "optimizer.warmup_fraction", "micro_batch_size"


def tuned() -> Run:
    """Micro-batch sizes, then one setting: within the grid, at its edge, extended, and where nothing worked."""
    options = {name: {"optimizer": {"name": name, "lr": lr}}
               for name, lr in (("adamw", 1e-3), ("sgd", 0.1), ("adafactor", 1e-2), ("adam", 1e-3))}  # fmt: skip
    sizes: dict[str, dict[int, float | str]] = {
        "adamw": {4: 90, 8: 100, 16: 99.9}, "sgd": {4: 80, 8: 95, 16: "oom"}, "adafactor": {4: 90, 8: 91, 16: 120},
        "adam": {4: "crashed", 8: "crashed", 16: "oom"},
    }  # fmt: skip
    rates: dict[str, dict[float, float | str]] = {
        "adamw": {3e-4: 5.9, 3e-3: 5.5, 0.03: 5.52, 9.49e-3: 5.495},
        "sgd": {0.03: 7.0, 0.3: 6.0, 3.0: 5.8, 30.0: 5.7},
        "adafactor": {3e-3: 6.0, 0.03: 5.8, 0.3: "diverged", 0.01: "interrupted"},
        "adam": dict.fromkeys((3e-4, 3e-3, 0.03), "diverged"),
    }  # fmt: skip
    records = [tried(o, {SIZE: s}, v, "tokens_per_second") for o, own in sizes.items() for s, v in own.items()]
    records.append(tried("adamw", {SIZE: 2}, 50, "tokens_per_second", timed_steps=0))
    records += [tried(o, {LR: lr}, v) for o, own in rates.items() for lr, v in own.items()]
    two, kinds = {"gradient_accumulation_steps": 2}, {"sgd": "SGD(fused)", "adam": "Adam(fused)"}
    records += [
        *trials("adamw", (100, 101, 102), identity=two),
        *trials("sgd", (120, 121, 122), identity={**two, "optimizer": [kinds["sgd"]]}, final_loss=(5.9, 5.8, 5.9)),
        *trials("adafactor", (110, 112, 111), identity={"optimizer": ["Adafactor"]}, final_loss=(5.4, 5.41, 5.42)),
        *trials("adam", (90, 91, 92), identity={"optimizer": [kinds["adam"]]}),
    ]
    suite = suite_of(
        options, tune={"parameters": {LR: {"n": 3}}}, best_of={SIZE: [2, 4, 8, 16], "max_steps": 10}, control=True,
        decide={"objective": "final_loss"},
    )  # fmt: skip
    records += trials("control", (99, 103, 101), identity=two)
    return Run(suite, records)


def tuned_together() -> Run:
    """Two settings at once: the best on no edge, and on an edge of one of them."""
    options = {name: {"optimizer": {"name": name, "lr": lr}} for name, lr in (("adamw", 1e-3), ("sgd", 0.1))}
    shape = shape_sha256(shares(LrSchedule(warmup_steps=6), STEPS))
    points = [(1e-3, 0.1), (1e-2, 0.2), (2e-3, 0.05), (5e-4, 0.15)]
    records = [
        tried(name, {LR: lr, WARMUP: share}, 5.0 + (place > 0) + place / 10)
        for name in options for place, (lr, share) in enumerate(points)
    ]  # fmt: skip
    records[5] = tried("sgd", {LR: 1e-2, WARMUP: 0.1}, 4.9)
    found = {"learning_rate_shape_sha256": shape}
    records += trials("adamw", (100, 101, 102), identity=found)
    records += trials("sgd", (120, 121, 122), identity={**found, "optimizer": ["SGD(fused)"]}, final_loss=5.6)
    box = {LR: {"log": [1e-4, 1e-1]}, WARMUP: {"linear": [0.0, 0.2]}}
    return Run(suite_of(options, tune={"parameters": box, "trials": 4, "metric": "final_perplexity"}), records)


def failures() -> Run:
    """Every kind of failure, of all seeds and of some."""
    names = ("base", "oom", "diverged", "unsupported", "timeout", "crashed", "interrupted", "again")
    again = failed("again", 1, "crashed")
    records = [
        *trials("base", (100, 101, 102)),
        *trials("oom", ("oom", "oom", "oom")),
        *trials("diverged", (200, 201, "diverged"), final_loss=(5.4, 5.41, 0.0)),
        *trials("unsupported", ("unsupported", "unsupported", "unsupported")),
        *trials("timeout", (110, "timeout", 112)),
        *trials("crashed", ("crashed", "crashed", 90)),
        *trials("interrupted", ("interrupted", None, None)),
        *trials("again", (100, None, 101)), again, replace(trial("again", 1, 102), attempt=2),
    ]  # fmt: skip
    return Run(suite_of(by_rate(*names), control=True), [*records, *trials("control", (100, 103, "oom"))])


def holes() -> Run:
    """Seeds without a record, figures that a seed lacks, records of no trial, and lines that are none."""
    names = ("base", "half", "single", "none", "untimed", "blown", "stalled", "skipping", "zero")
    twice = replace(trial("base", 0, 90), trial=replace(trial("base", 0, 90).trial, trial_id="another"))
    strays = [trial("stranger", seed, 100) for seed in range(7)] + [trial("base", 9, 100)]
    records = [
        twice, *trials("base", (100, 101, 102, 100)), replace(trial("base", 1, 99), wall_seconds=1.0),
        *trials("half", (110, 111, None, None)),
        *trials("single", (400, None, None, None), peak_pss_growth_bytes=None, peak_memory_allocated_bytes=GIB),
        *trials("untimed", (120, 121, 122, 120), timed_steps=(50, 0, 50, 50), curve=None),
        *trials("blown", (130, 131, 132, 130), final_loss=(5.5, 720.0, 5.5, 5.5)),
        *trials("stalled", (90, 91, 90, 92), step_time_median_seconds=(5.0, 5.0, 22.0, 22.0),
                timed_seconds=(1137.8, 1125.3, 1137.8, 0.9)),
        *trials("skipping", (95, 95, 96, 97), steps_applied=(50, 50, 60, 60), steps_skipped=(10, 10, 0, 0),
                identity=({"steps_applied": 50}, {"steps_applied": 50}, {}, {}), initial_loss=7.7,
                compile_seconds=3.0),
        *trials("zero", (96, 95, 95, 97), peak_pss_growth_bytes=(0, 110 * MIB, 111 * MIB, 110 * MIB)),
        *strays,
    ]  # fmt: skip
    old = json.loads(RECORDS.write(trial("zero", 3, 97)))
    lines = [
        "not JSON", '{"schema_version": 2, "trial": {}}', '{"some": "thing"}',
        json.dumps({**old, "schema_version": 0}), json.dumps({**old, "schema_version": 2}), "", '{"schema_ver',
    ]  # fmt: skip
    data = {**DATA, "epochs": 5.2, "heldout_tokens": 9000, "documents_in": 1300, "train_documents": 1131,
            "removed": {"duplicate": 40, "too_short": 2}, "changed": {"unicode": 12}, "removed_documents": 3,
            "unknown_tokens": 17}  # fmt: skip
    decide = {"constraints": ["final_perplexity <= 1.01x baseline", "peak_memory_bytes <= 80 GiB"]}
    suite = suite_of(by_rate(*names), seeds=[0, 1, 2, 3], decide=decide)
    return Run(suite, records, {**ENVIRONMENT, "data": data}, lines)


def no_baseline() -> Run:
    """The baseline failed, and two of the others share no seed."""
    names = ("base", "a", "b", "even", "odd")
    records = [
        *trials("base", ("oom", "oom", "oom", "interrupted")),
        *trials("a", (100, 101, 102, 103)),
        *trials("b", (200, 202, 201, 199)),
        *trials("even", (300, None, 301, None)),
        *trials("odd", (None, 90, None, 91)),
    ]
    return Run(suite_of(by_rate(*names), seeds=[0, 1, 2, 3]), records)


def nothing() -> Run:
    """No trial has run yet."""
    return Run(suite_of(by_rate("base", "a")), [])


def quick() -> Run:
    """Speed and memory only."""
    shape = shape_sha256(shares(LrSchedule(), 20))
    found = {"steps_requested": 20, "steps_applied": 20, "learning_rate_shape_sha256": shape,
             "evaluation_set_sha256": None}  # fmt: skip
    unscored = dict.fromkeys(("final_loss", "heldout_tokens", "heldout_bytes"))
    measured = {"identity": found, "steps_applied": 20, "evaluation_seconds": 0.0, **unscored}
    records = [*trials("base", (100,), **measured), *trials("a", (120,), **measured)]
    return Run(suite_of(by_rate("base", "a"), quick=True), records)


def violations() -> Run:
    """Jobs that are not the baseline's, differences that are declared, and what no trial could see."""
    options = by_rate("base", "weights", "asked", "edited", "hidden", "masked", "uncertified", "close")
    options["bf16_pure"] = {"precision": "bf16_pure"}
    options["halves"] = {"micro_batch_size": 8}
    options["quarters"] = {"micro_batch_size": 4}
    hidden = {"initial_weights_sha256": None, "token_stream_sha256": None, "gradient_dtype": None, "attention": "",
              "learning_rate_shape_sha256": None, "dropout": None, "loss": None}  # fmt: skip
    pure = dict.fromkeys(("compute_dtype", "parameter_dtype", "working_dtype", "gradient_dtype"), "bfloat16")
    settings = {
        "optimizer": {"name": "adamw", "lr": 0.1},
        "micro_batch_size": 16,
        "precision": {"name": "bf16_mixed"},
    }
    drawn = {"initial_weights_sha256": "f" * 64, "dropout": 0.1}
    records = [
        *trials("base", (100, 101, 102), identity={"dropout": 0.1}),
        *trials("weights", (300, 301, 302), identity=({"dropout": 0.1}, drawn, {"dropout": 0.2})),
        *trials("asked", (120, 121, 122), identity={"attention": "eager", "world_size": 2, "steps_requested": 59,
                "optimizer": ["SGD(fused)", "AdamW"], "dropout": 0.1}),
        *trials("edited", (130, 131, 132), settings=settings, identity={"dropout": 0.1}),
        *trials("hidden", (140, 141, 142), identity=hidden),
        *trials("masked", (150, 151, 152), identity={"dropout": 0.1, "compiled": True}),
        *trials("uncertified", (110, 111, 112), whole=({}, {"identity": None}, {}), identity={"dropout": 0.1}),
        *trials("close", (90, 91, 92), identity={"dropout": 0.1, "first_step_loss": 7.7003,
                "first_step_gradient_norm": 1.5006}),
        *trials("bf16_pure", (180, 181, 182), identity={**pure, "optimizer_state_dtype": ["bfloat16"],
                "first_step_loss": 7.71, "first_step_gradient_norm": 1.52, "dropout": 0.1}),
        *trials("quarters", (93, 94, 95), identity={"gradient_accumulation_steps": 4, "parameters": 5,
                "dropout": 0.1}),
        *trials("halves", (95, 96, 97), identity={"gradient_accumulation_steps": 2, "first_step_loss": 7.9,
                "dropout": 0.1}),
    ]  # fmt: skip
    return Run(suite_of(options), records)


def constraints() -> Run:
    """Constraints of all three answers, relative and absolute."""
    names = ("base", "holds", "fails", "open", "promising", "small")
    near = tuple(n * MIB for n in (299, 303, 300, 299, 301))
    losses = {"base": (5.5, 5.52, 5.51, 5.49, 5.5), "open": (5.51, 5.5298, 5.52, 5.4999, 5.51005)}
    records = [
        *trials("base", (100, 101, 100, 99, 100), final_loss=losses["base"], peak_pss_growth_bytes=280 * MIB),
        *trials("holds", (110, 112, 111, 110, 109), final_loss=5.4, peak_pss_growth_bytes=290 * MIB),
        *trials("fails", (210, 211, 210, 212, 210), final_loss=(5.8, 5.81, 5.82, 5.8, 5.79)),
        *trials("open", (150, 151, 150, 149, 150), final_loss=losses["open"], peak_pss_growth_bytes=near),
        *trials("promising", (120, 121, 120, 119, 120), final_loss=losses["base"], peak_pss_growth_bytes=near),
        *trials("small", (30, 31, 30, 30, 31), final_loss=5.4, peak_pss_growth_bytes=100 * MIB),
    ]
    bounds = ["final_perplexity <= 1.01x baseline", "peak_memory_bytes <= 302 MiB",
              "tokens_per_second > 50 tokens/s", "step_time_median_seconds < 30 s"]  # fmt: skip
    decide = {"constraints": bounds, "thresholds": {"tokens_per_second": 0.02, "final_loss": 0.001}}
    return Run(suite_of(by_rate(*names), seeds=[0, 1, 2, 3, 4], decide=decide), records)


def ties() -> Run:
    """Rows that differ by less than matters, rows that are not told apart, and a control that differs."""
    names = ("base", "alike", "near", "noisy", "slow", "lean")
    memory = {"peak_pss_growth_bytes": 300 * MIB}
    records = [
        *trials("base", (100, 101, 99, 100, 102), **memory),
        *trials("alike", (100.1, 101.1, 99.2, 100, 102.1), **memory),
        *trials("near", (101, 101.5, 101, 100.4, 101), **memory),
        *trials("noisy", (80, 150, 95, 130, 88), **memory),
        *trials("slow", (70, 71, 70, 70, 71), final_loss=(6.0, 6.01, 6.0, 6.02, 6.0), **memory),
        *trials("lean", (100, 101, 99, 100, 102), peak_pss_growth_bytes=200 * MIB),
        *trials("control", (80, 81, 79, 80, 82), **memory),
    ]
    suite = suite_of(by_rate(*names), seeds=[0, 1, 2, 3, 4], control=True, decide=FREE)
    return Run(suite, records)


def tokenizers() -> Run:
    """Options whose tokens are not the same: bits per byte decide."""
    options = {"bpe": {}, "larger": {"tokenizer": {"bpe": 1024}}, "bytes": {"tokenizer": {"bytes": True}}}
    other = {"token_stream_sha256": "9" * 64, "evaluation_set_sha256": "8" * 64, "initial_weights_sha256": "7" * 64,
             "parameters": 1_033_000, "first_step_loss": 6.9, "first_step_gradient_norm": 1.1}  # fmt: skip
    records = [
        *trials("bpe", (100, 101, 102), final_loss=(5.5, 5.51, 5.52)),
        *trials("larger", (98, 97, 99), final_loss=(5.8, 5.81, 5.8), heldout_bytes=70_000, identity=other),
        *trials("bytes", (150, 151, 152), final_loss=(2.1, 2.11, 2.1), heldout_bytes=16_384, identity=other),
    ]
    apart = {"larger": {**DATA, "vocab_size": 700}, "bytes": {**DATA, "vocab_size": 257, "heldout_tokens": 12_000}}
    environment = {**ENVIRONMENT, "data": {**DATA, "by_option": apart}}
    return Run(suite_of(options, question="Which tokenizer models the text best?"), records, environment)


def to_loss() -> Run:
    """How soon each reaches the baseline's loss; one never does."""
    names = ("base", "soon", "late", "never", "wild")
    records = [
        *trials("base", (100, 101, 102), curve=[6.0, 5.6]),
        *trials("soon", (150, 151, 153), curve=[5.4, 5.3], final_loss=5.2),
        *trials("late", (90, 91, 92), curve=[6.4, 5.9], final_loss=5.48),
        *trials("never", (200, 201, 202), curve=[6.5, 6.1], final_loss=(5.7, 5.4, 5.71)),
        *trials("wild", (200, 201, "diverged"), curve=[5.5, 5.4], final_loss=(5.3, 5.3, 0.0)),
    ]
    decide = {"objective": "seconds_to_baseline_loss", "constraints": ["seconds_to_baseline_loss <= 1.5x baseline"]}
    return Run(suite_of(by_rate(*names), decide=decide), records)


def floor() -> Run:
    """A made-up source whose entropy is known: above it, below it by chance, and below it by more than that."""
    names = ("base", "better", "chance", "broken")
    source = {"source_loss": 1.2, "source_loss_error": 0.01, "heldout_bytes": None}
    records = [
        *trials("base", (100, 101, 102), final_loss=(1.3, 1.31, 1.32), curve=[2.0, 1.5], **source),
        *trials("better", (99, 100, 101), final_loss=(1.25, 1.26, 1.255), curve=[2.0, 1.4], **source),
        *trials("chance", (98, 99, 97), final_loss=(1.199, 1.21, 1.22), curve=[2.0, 1.4], **source),
        *trials("broken", (98, 99, 97), final_loss=(1.1, 1.11, 1.25), curve=[2.0, 1.4], **source),
    ]
    job = {"data": {"markov": 32, "vocab_size": 64}, "tokenizer": None}
    decide = {
        "objective": "excess_loss",
        "constraints": ["excess_loss <= 1.5x baseline", "excess_loss <= 0.2 nats"],
    }
    data = {"kind": "markov", "heldout_tokens": 50_000, "vocab_size": 64, "epochs": 1.5}
    return Run(suite_of(by_rate(*names), job=job, decide=decide), records, {**ENVIRONMENT, "data": data})


def own() -> Run:
    """Own code, another interpreter, a warm-up, a schedule and a global batch of their own."""
    plain = {"name": "adamw", "lr": 1e-3}
    options = {
        "base": {},
        "loop": {"framework": "ourlib.loop:train"},
        "loss": {"loss": "ourlib.losses:smooth"},
        "elsewhere": {"python": "/opt/other/bin/python"},
        "trainer": {"framework": "hf_trainer"},
        "warm": {"optimizer": {**plain, "warmup_fraction": 0.2}},
        "free": {"optimizer": {"name": "schedule_free_adamw", "lr": 1e-3}},
        "batches": {"global_batch_size": 8, "micro_batch_size": 8},
        "muon": {"optimizer": {"name": "muon", "lr": 1e-2}},
    }
    constant, warm, twice = (
        {"learning_rate_shape_sha256": shape_sha256(shares(schedule, steps))}
        for schedule, steps in ((LrSchedule(name="constant"), STEPS), (LrSchedule(warmup_steps=12), STEPS),
                                (LrSchedule(), 2 * STEPS))
    )  # fmt: skip
    batches = {"tokens_per_step": 1024, "steps_requested": 120, "steps_applied": 120, "first_step_loss": 7.8,
               "token_stream_sha256": "5" * 64, **twice}  # fmt: skip
    code = {"code_sha256": "e" * 64}
    found: dict[str, dict[str, Any]] = {
        "base": {}, "loop": {"framework": "ourlib.loop:train", "optimizer": None},
        "loss": {"loss": "ourlib.losses:smooth", "first_step_loss": 8.0}, "elsewhere": {},
        "trainer": {"framework": "transformers.Trainer"}, "warm": warm,
        "free": {**constant, "optimizer": ["AdamWScheduleFree"]}, "batches": batches,
        "muon": {"optimizer": ["Muon", "AdamW(fused)"]},
    }  # fmt: skip
    unseen = [RankMemory(rank=0, peak_pss_growth_bytes=300 * MIB)]
    more = {"batches": {"tokens_per_step": 1024, "steps_applied": 120}, "muon": {"memory_by_rank": unseen},
            "base": {"memory_by_rank": [replace(unseen[0], parameter_bytes=1, gradient_bytes=2,
                                                optimizer_state_bytes=3)]}}  # fmt: skip
    records = [
        record
        for place, (name, identity) in enumerate(found.items())
        for record in trials(
            name, [100 + 5 * place + share for share in (0.0, 0.5, 1.0)], identity={**code, **identity},
            final_loss=(5.5, 5.51, 5.52), **more.get(name, {}),
        )
    ]  # fmt: skip
    other = {"python": "CPython 3.12.1", "libraries": {"torch": "2.9.0"}, "torch_cuda_version": None}
    suite = suite_of(options, code=["/opt/ours"])
    return Run(suite, records, {**ENVIRONMENT, "interpreters": {"elsewhere": other}})


def adapted() -> Run:
    """A model that was trained before, trained whole and by low-rank additions."""
    options = {
        "full": {},
        "lora": {"adaptation": {"name": "lora", "r": 8, "alpha": 16}},
        "qlora": {"adaptation": {"name": "qlora", "r": 8, "alpha": 16}},
        "other": {"model": {"pretrained": "org/other"}},
    }
    fewer = {"trainable_parameters": 40_000, "first_step_gradient_norm": 0.4}
    four = {**fewer, "working_dtype": "float32+uint8", "first_step_loss": 7.72}
    other = {"parameters": 2_000_000, "initial_weights_sha256": "3" * 64, "first_step_loss": 7.0,
             "token_stream_sha256": "2" * 64, "evaluation_set_sha256": "1" * 64}  # fmt: skip
    start = {"initial_loss": 6.2}
    records = [
        *trials("full", (100, 101, 102), identity={"trainable_parameters": 1_000_000}, **start),
        *trials("lora", (140, 141, 142), identity=fewer, peak_pss_growth_bytes=150 * MIB, **start),
        *trials("qlora", (60, 61, "unsupported"), identity=four, peak_pss_growth_bytes=80 * MIB, **start),
        *trials("other", (100, 103, 102), identity=other, final_loss=5.2, initial_loss=5.9, heldout_bytes=70_000),
    ]
    job = {"model": {"pretrained": "/models/small"}, "tokenizer": None, "eval": {"tokens": 16384, "at_start": True}}
    environment = {**ENVIRONMENT, "pretrained": {"full": "4" * 64, "other": "6" * 40}}
    decide = {"objective": "peak_memory_bytes", "constraints": ["bits_per_byte <= 1.02x baseline"]}
    return Run(suite_of(options, job=job, decide=decide), records, environment)


RUNS: dict[str, Callable[[], Run]] = {
    one.__name__: one
    for one in (gpus, ranks, cpu_ranks, grid, scores, tuned, tuned_together, failures, holes, no_baseline, nothing,
                quick, violations, constraints, ties, tokenizers, to_loss, floor, own, adapted)
}  # fmt: skip
"""Runs whose every report is a golden, by the name of the folder of goldens."""


if __name__ == "__main__":
    from evidence.golden_texts import write

    if sys.argv[1:2] != ["--write"]:
        sys.exit("usage: python tests/evidence/golden_runs.py --write [CASE ...]")
    write(sys.argv[2:])

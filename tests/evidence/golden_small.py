"""Small made runs, of which the terminal's words are enough: each has something that no other has."""

from __future__ import annotations

from evidence.golden_runs import SEQ2SEQ, SHAPE, WARMUP
from evidence.golden_scores import scored
from evidence.golden_trials import (
    CUDA,
    FREE,
    MIB,
    STEPS,
    Run,
    at_seed,
    by_rate,
    on_gpus,
    suite_of,
    trial,
    trials,
    tried,
)
from made_records import HOT, make_meters

from selectbench.suite.job import LrSchedule, shape_sha256, shares


def mixed_states() -> Run:
    """GPUs that were clean, throttled and not known, of one option; two whose energy is not known alike."""
    hot, short = make_meters({**HOT, "mean_sm_clock_hertz": 9e8}), make_meters({"metered_seconds": 2.0})
    hidden = make_meters({"other_processes": None, "mean_sm_clock_hertz": 1.5e9})
    states = {"base": make_meters(), "a": (hidden, hot, make_meters()), "b": (hot, make_meters(), make_meters()),
              "c": short, "d": short}  # fmt: skip
    records = [
        record
        for place, (name, meters) in enumerate(states.items())
        for record in trials(name, [100 + 10 * place + seed for seed in range(3)], meters=meters, **CUDA)
    ]
    return Run(
        suite_of(by_rate(*states), device="cuda", cost={"usd_per_kwh": 0.3}, decide=FREE), records, on_gpus()
    )


def warm_grid() -> Run:
    """A warm-up of an option's own as one of two factors."""
    warm = {"optimizer": {"name": "adamw", "lr": 1e-3, "warmup_fraction": 0.1}}
    shapes = [
        {"learning_rate_shape_sha256": shape_sha256(shares(LrSchedule(warmup_steps=n), STEPS))} for n in (0, 6)
    ]
    records = [
        record
        for place, (name, shape, dtype) in enumerate((
            ("cold", shapes[0], "float32"), ("cold bf16", shapes[0], "bfloat16"), ("warm", shapes[1], "float32"),
            ("warm bf16", shapes[1], "bfloat16"),
        ))
        for record in trials(name, [100 + 9 * place * place + seed for seed in range(3)],
                             identity={**shape, "compute_dtype": dtype})
    ]  # fmt: skip
    half = {"precision": "bf16_mixed"}
    options = {"cold": {}, "cold bf16": half, "warm": warm, "warm bf16": {**warm, **half}}
    return Run(suite_of(options, decide=FREE), records)


def tuned_share() -> Run:
    """A setting on a linear scale, whose best lies where there is nothing below."""
    found = {0.0: 5.4, 0.1: 5.42, 0.2: 5.6}
    records = [tried("base", {WARMUP: share}, loss) for share, loss in found.items()]
    suite = suite_of(by_rate("base"), tune={"parameters": {WARMUP: {"linear": [0.0, 0.2], "n": 3}}}, decide=FREE)
    return Run(suite, [*records, *trials("base", (100, 101, 102))])


def crowded_picture() -> Run:
    """Options of long names that lie so close to each other that not all can be named where they are."""
    names = [f"an option of a long name {number}" for number in range(12)]
    records = [
        record
        for place, name in enumerate(names)
        for record in trials(name, [100 + place / 4 + seed for seed in range(3)],
                             peak_pss_growth_bytes=(300 + place % 3) * MIB)
    ]  # fmt: skip
    return Run(suite_of(by_rate(*names), decide=FREE), records)


def small_runs() -> dict[str, Run]:
    """Runs of which the terminal's words are enough: each for a sentence that no other has."""
    hot, clean = make_meters(HOT), make_meters()
    on_cuda = suite_of(
        by_rate("base", "a"), device="cuda", decide={"constraints": ["tokens_per_second >= 0.5x baseline"]}
    )
    two, free = suite_of(by_rate("base", "a")), suite_of(by_rate("base", "a"), decide=FREE)
    good, work = trials("base", (100, 101, 102)), {**CUDA, "architecture": SHAPE}
    four = {**free, "seeds": [0, 1, 2, 3]}
    by_memory = suite_of(by_rate("base", "a"), decide={"constraints": ["peak_memory_bytes <= 80 GiB"]})
    by_score = suite_of(by_rate("base", "a"), job=SEQ2SEQ,
                        decide={"objective": "bleu", "constraints": ["bleu >= 1", "own_score >= 1"]})  # fmt: skip
    cells = {f"{dtype} {size}": {"precision": dtype, "micro_batch_size": size}
             for dtype in ("fp32", "bf16_mixed") for size in (16, 8)}  # fmt: skip
    grid_of_one = [
        trial(name, 0, 100 + 7 * place, identity={
            "gradient_accumulation_steps": 16 // own["micro_batch_size"],
            "compute_dtype": "float32" if own["precision"] == "fp32" else "bfloat16",
        }) for place, (name, own) in enumerate(cells.items())
    ]  # fmt: skip
    noisy = {
        "base": (100, 125, 80, 110, 90),
        "a": (110, 110.1, 109.9, 110.2, 110),
        "b": (108, 108.1, 107.9, 108, 108.2),
    }
    held = (5.5, 5.52, 5.51, 5.49, 5.5, 5.53)
    return {
        "unclean baseline": Run(on_cuda, [*trials("base", (100, 101, 102), meters=hot, **CUDA),
                                          *trials("a", (120, 121, 122), meters=clean, **CUDA)], on_gpus()),
        "never clean together": Run(on_cuda, [*trials("base", (100, 101, 102), meters=(clean, hot, hot), **CUDA),
                                              *trials("a", (120, 121, 122), meters=(hot, clean, clean), **CUDA)]),
        "all spoiled": Run(on_cuda, [*trials("base", (100, 101, 102), meters=hot, **CUDA),
                                     *trials("a", (120, 121, 122), meters=hot, **CUDA)]),
        "untimed": Run(on_cuda, [*trials("base", (100, 101, 102), meters=clean, **work),
                                 *trials("a", (120, 121, 122), meters=clean, timed_steps=0, **work)]),
        "priced on a CPU": Run({**free, "cost": {"usd_per_gpu_hour": 2.0}}, good),
        "cheapest": Run({**free, "device": "cuda", "cost": {"usd_per_kwh": 0.5}},
                        [*trials("base", (100, 101, 102), meters=clean, **CUDA),
                         *trials("a", (120, 121, 122), meters=clean, timed_steps=(50, 0, 50), **CUDA)]),
        "all barred": Run(suite_of(by_rate("base", "a"), decide={"constraints": ["final_loss <= 1 nats"]}),
                          [*good, *trials("a", (120, 121, 122))]),
        "one figure": Run(two, [*trials("base", ("oom", "oom", "oom")), *trials("a", (100, None, None))]),
        "apart": Run(four, [*trials("base", (100, None, 101, None)), *trials("a", (None, 120, None, 121))]),
        "apart, constrained": Run({**two, "seeds": [0, 1, 2, 3]}, [*trials("base", (100, None, 101, None)),
                                                                   *trials("a", (None, 120, None, 121))]),
        "disturbed": Run(free, [*trials("base", (100, 101, 102), step_time_median_seconds=5.0),
                                *trials("a", (120, 121, 122), step_time_median_seconds=17.0)]),
        "lossless": Run(two, [*good, *trials("a", (120, 121, 122), final_loss=None, curve=None)]),
        "no growth": Run(by_memory, [*good, *trials("a", (120, 121, 122), peak_pss_growth_bytes=0)]),
        "no scores": Run(by_score, [*trials("base", (100, 101, 102), scores={"bleu": 0.0}),
                                    *trials("a", (120, 121, 122), scores={"bleu": 0.2})]),
        "scores of nothing": Run({**by_score, "decide": {"objective": "bleu", "constraints": []}},
                                 [*trials("base", (100, 101, 102), scores={"bleu": 0.0}),
                                  *trials("a", (120, 121, 122), scores={"bleu": 0.2})]),
        "few sentences": Run(by_score, [*trials("base", (100, 101, 102), **scored(9, 8)),
                                        *trials("a", (120, 121, 122), **scored(9, 11))]),
        "unevaluated": Run(suite_of(by_rate("base", "a"), job={"eval": "none"}),
                           [*trials("base", (100, 101, 102), final_loss=None, curve=None),
                            *trials("a", (120, 121, 122), final_loss=None, curve=None)]),
        "nothing to evaluate": Run(suite_of(by_rate("base", "a"), job={"eval": "none"}), []),
        "one option": Run(suite_of(by_rate("base"), decide=FREE), good),
        "one seed": Run(
            suite_of(by_rate("base", "a", "b"), seeds=[0], decide={"constraints": [
                "peak_memory_bytes <= 310 MiB", "final_loss <= 1.01x baseline", "final_loss <= 4 nats",
                "tokens_per_second >= 10 tokens/s",
            ]}),
            [*trials("base", (100,)), *trials("a", (120,)), *trials("b", (80,), final_loss=9.0)],
        ),
        "grid of one seed": Run(suite_of(cells, seeds=[0], decide=FREE), grid_of_one),
        "grid with holes": Run(
            suite_of(cells, seeds=[0, 1], decide=FREE),
            [*grid_of_one[:3], *(at_seed(one, 1) for one in (*grid_of_one[:2], grid_of_one[3]))],
        ),
        "torn grid": Run(suite_of(cells, seeds=[0, 1], decide=FREE),
                         [*grid_of_one[:2], *(at_seed(one, 1) for one in grid_of_one[2:])]),
        "mixed states": mixed_states(), "warm grid": warm_grid(), "tuned share": tuned_share(),
        "crowded picture": crowded_picture(),
        "noisy baseline": Run({**suite_of(by_rate("base", "a", "b"), decide=FREE), "seeds": list(range(5))},
                              [record for name, own in noisy.items() for record in trials(name, own)]),
        "more seeds than options": Run({**suite_of(by_rate("base", "a", "b")), "seeds": list(range(6))}, [
            *trials("base", (100, 101, 102, 99, 100, 103), final_loss=held),
            *trials("a", (120, 121, 122, 118, 120, 124), final_loss=held),
            *trials("b", (110, 111, None, 109, 110, 112), final_loss=held),
        ]),
    }  # fmt: skip

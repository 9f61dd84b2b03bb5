"""One run against another: changes, and gates that fail for a reason and not for noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from made_records import make_failure, make_record, make_suite, speed
from msgspec.structs import replace
from scipy import stats

from selectbench.analysis.gate import Gate, ReadRun, compare, hold_gate
from selectbench.analysis.statistics import changes
from selectbench.errors import UserError
from selectbench.record.record import SOFTWARE, Record
from selectbench.suite.suite import Suite

NAMES = ("fp32", "bf16", "fp16", "lr2", "lr3")
LIMIT = "tokens_per_second >= 0.97x reference"


def suite_of(names: Sequence[str] = NAMES, **changes: Any) -> Suite:
    rows = [(name, {"optimizer": {"name": "adamw", "lr": 1e-3 * (1 + i)}}) for i, name in enumerate(names)]
    return make_suite(*rows, seeds=list(range(5)), **changes).model_copy(update={"resolved": {"job": {"a": 1}}})


def trials(draw: np.random.Generator, factors: Mapping[str, float], spread: float = 0.01) -> list[Record]:
    rounds = draw.normal(0, 0.005, 5)
    same = {"compute_dtype": "float32"}
    return [
        make_record(name, s, identity=same,
                    **speed(1000 * factor * float(np.exp(rounds[s] + draw.normal(0, spread)))))
        for name, factor in factors.items() for s in range(5)
    ]  # fmt: skip


def read(records: list[Record], name: str = "run", environment: dict[str, Any] | None = None) -> ReadRun:
    return ReadRun(name, suite_of(), records, environment or {"cpu_model": "X"})


def gate(seed: int, factors: Mapping[str, float], spread: float = 0.01, limits: Sequence[str] = (LIMIT,)) -> Gate:
    draw = np.random.default_rng(seed)
    reference = read(trials(draw, dict.fromkeys(NAMES, 1.0), spread), "reference")
    return hold_gate(read(trials(draw, {**dict.fromkeys(NAMES, 1.0), **factors}, spread)), reference, limits)


def test_noise_alone_is_no_regression_and_a_slow_option_is() -> None:
    quiet = [gate(seed, {}).verdict for seed in range(200)]
    slow = [gate(seed, {"fp16": 0.93}).verdict for seed in range(200)]
    assert quiet.count("regression") == 0  # the limit lies 3 % away from what is true
    assert quiet.count("pass") > 120
    assert slow.count("regression") > 150
    assert slow.count("pass") == 0


def test_at_the_limit_itself_noise_fails_in_at_most_five_percent() -> None:
    verdicts = [gate(seed, {}, limits=["tokens_per_second >= 1x reference"]).verdict for seed in range(400)]
    assert verdicts.count("regression") / 400 <= 0.05


def test_a_gate_names_what_fails() -> None:
    found = gate(1, {"fp16": 0.5})
    assert found.verdict == "regression"
    (check,) = (check for check in found.checks if check.verdict == "regression")
    assert (check.option, check.limit) == ("fp16", LIMIT)
    assert check.detail.startswith("tokens_per_second is 0.50")
    assert "x reference (0." in check.detail
    assert found.tests == 5


def test_one_seed_is_inconclusive() -> None:
    one = [r for r in trials(np.random.default_rng(0), dict.fromkeys(NAMES, 1.0)) if r.trial.seed == 0]
    found = hold_gate(read(one), read(one, "reference"), [LIMIT])
    assert found.verdict == "inconclusive"
    assert "which shows no spread" in found.checks[0].detail


def test_an_option_that_no_longer_completes_is_a_regression() -> None:
    draw = np.random.default_rng(0)
    reference = trials(draw, dict.fromkeys(NAMES, 1.0), 0.0)
    for kind, expected in (("oom", "regression"), ("crashed", "regression"), ("interrupted", "inconclusive")):
        run = [r for r in reference if r.trial.option != "bf16"] + [make_failure("bf16", s, kind) for s in range(5)]
        found = hold_gate(read(run), read(reference, "reference"), [LIMIT])
        assert found.verdict == expected
        assert any(kind in check.detail for check in found.checks)


def test_an_option_that_never_completed_holds_nothing_up() -> None:
    records = trials(np.random.default_rng(0), dict.fromkeys(NAMES[:4], 1.0), 0.0)
    records += [make_failure("lr3", s, "unsupported") for s in range(5)]
    assert hold_gate(read(records), read(records, "reference"), [LIMIT]).verdict == "pass"


def test_absolute_limits() -> None:
    assert gate(0, {}, limits=["peak_memory_bytes <= 80 GiB"]).verdict == "pass"
    assert gate(0, {}, limits=["peak_memory_bytes <= 1 MiB"]).verdict == "regression"


@pytest.mark.parametrize(
    ("limits", "message"),
    [([], "the gate has no limit"), (["speed > 3"], "unknown metric 'speed'"),
     (["tokens_per_second >= 1x baseline"], "expected `1x reference`")],
)  # fmt: skip
def test_wrong_limits(limits: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        gate(0, {}, limits=limits)


def test_other_jobs_and_other_machines_are_refused() -> None:
    records = trials(np.random.default_rng(0), dict.fromkeys(NAMES, 1.0))
    other = read(records, "reference", {"cpu_model": "Y"})
    with pytest.raises(UserError, match="not the same machine: cpu_model: Y there, X here"):
        hold_gate(read(records), other, [LIMIT])
    assert hold_gate(read(records), other, [LIMIT], any_machine=True).verdict == "pass"
    longer = ReadRun(
        "r", suite_of().model_copy(update={"resolved": {"job": {"a": 2}}}), records, {"cpu_model": "X"}
    )
    with pytest.raises(UserError, match=r"not the same job.*job.a: 2 there, 1 here"):
        hold_gate(read(records), longer, [LIMIT])


def test_compare_says_how_threads_waited_and_in_which_library() -> None:
    def read_with(openmp: str | None, name: str, **threads: str) -> ReadRun:
        records = trials(np.random.default_rng(0), dict.fromkeys(NAMES, 1.0))
        software = SOFTWARE.as_json({"torch": "2.13", **({"openmp": openmp} if openmp else {})})
        return read([replace(record, software=software) for record in records], name, {"threads": threads})

    before = read_with("libgomp.so.1", "a", GOMP_SPINCOUNT="1000")
    waits = {("threads.GOMP_SPINCOUNT", "1000", None), ("threads.OMP_WAIT_POLICY", None, "ACTIVE")}
    for openmp, more in (("libomp.so", {("openmp", "libgomp.so.1", "libomp.so")}), (None, set())):
        found = compare(read_with(openmp, "b", OMP_WAIT_POLICY="ACTIVE"), before)
        assert {(d.path, d.reference, d.run) for d in found.environment} == waits | more


def test_compare_says_what_differs_first_and_then_what_changed() -> None:
    draw = np.random.default_rng(0)
    before = read(trials(draw, dict.fromkeys(NAMES, 1.0)), "a", {"libraries": {"torch": "2.5"}, "git_dirty": True})
    after = read(trials(draw, {**dict.fromkeys(NAMES, 1.0), "bf16": 1.2}), "b", {"libraries": {"torch": "2.6"}})
    found = compare(after, before)
    assert [(d.path, d.reference, d.run) for d in found.environment] == [("libraries.torch", "2.5", "2.6")]
    change = next(c for c in found.changes if (c.option, c.metric) == ("bf16", "tokens_per_second"))
    assert change.decision == "better"
    assert change.low is not None
    assert change.high is not None
    assert change.low < 1.2 < change.high
    others = {c.decision for c in found.changes if c.option != "bf16" and c.metric == "tokens_per_second"}
    assert others <= {"undecided", "no_difference"}
    shown = next(c for c in found.changes if c.metric == "final_perplexity")
    assert (shown.p_adjusted, shown.ratio) == (None, pytest.approx(1.0))


def test_the_means_that_are_shown_are_those_whose_ratio_is_shown() -> None:
    """Arithmetic means may point the other way: 100 and 1 against 49 and 49."""
    runs = [
        read([make_record("fp32", seed, **speed(value)) for seed, value in enumerate(values)])
        for values in ((100.0, 1.0), (49.0, 49.0))
    ]
    change = next(c for c in compare(*runs).changes if c.metric == "tokens_per_second")
    assert (change.run, change.reference) == (pytest.approx(10.0), pytest.approx(49.0))
    assert change.ratio == pytest.approx(change.run / change.reference)


def test_runs_without_common_seeds_are_two_samples() -> None:
    draw = np.random.default_rng(5)
    a, b = draw.normal(0, 0.02, 4), draw.normal(0.1, 0.01, 6)
    found = changes({"x": dict(enumerate(np.exp(b)))}, {"x": {100 + i: v for i, v in enumerate(np.exp(a))}})["x"]
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert found.estimate / (found.standard_error or 0) == pytest.approx(expected.statistic)
    assert found.degrees_of_freedom == pytest.approx(expected.df)


def test_two_options_are_compared_by_their_own_pairs() -> None:
    draw = np.random.default_rng(6)
    run = {n: dict(enumerate(np.exp(draw.normal(0, 0.02, 5)))) for n in "xy"}
    reference = {n: dict(enumerate(np.exp(draw.normal(0, 0.02, 5)))) for n in "xy"}
    found = changes(run, reference)["x"]
    expected = stats.ttest_rel(*(np.log(list(v["x"].values())) for v in (run, reference)))
    assert found.estimate / (found.standard_error or 0) == pytest.approx(expected.statistic)
    assert found.degrees_of_freedom == 4


@pytest.mark.parametrize("shared", [0.0, 0.03])
def test_a_disturbance_of_whole_rounds_is_no_change(shared: float) -> None:
    """What every option of a round suffers together widens the interval, pooled or not."""
    draw, covered = np.random.default_rng(7), 0
    for _ in range(400):
        tables = [draw.normal(0, 0.01, (5, 5)) + draw.normal(0, shared, 5) for _ in "ab"]
        run, reference = ({n: dict(enumerate(np.exp(t[i]))) for i, n in enumerate(NAMES)} for t in tables)
        found = changes(run, reference)["bf16"]
        critical = stats.t.isf(0.025, found.degrees_of_freedom)
        covered += abs(found.estimate) <= critical * (found.standard_error or 0)
    assert covered / 400 >= 0.93


@pytest.mark.parametrize("metric", ["tokens_per_second", "final_perplexity"])
def test_compare_and_gate_show_the_same_interval_of_a_change(metric: str) -> None:
    """Though their families differ: one limit on each option here, every figure of each option there."""
    draw = np.random.default_rng(5)

    def run(factor: float) -> list[Record]:
        losses = iter(draw.normal(5.5, 0.002, 5 * len(NAMES)).tolist())
        records = trials(draw, dict.fromkeys(NAMES, factor))
        measured = [replace(r.outcome.measurement, final_loss=next(losses)) for r in records]  # type: ignore[union-attr]
        return [
            replace(r, outcome=replace(r.outcome, measurement=m)) for r, m in zip(records, measured, strict=True)
        ]

    reference, other = read(run(1.0), "reference"), read(run(0.99))
    bound = ">= 0.97x reference" if metric == "tokens_per_second" else "<= 1.02x reference"
    found = {c.option: c for c in compare(other, reference).changes if c.metric == metric}
    checks = hold_gate(other, reference, [f"{metric} {bound}"]).checks
    assert len(checks) == len(NAMES)
    for check in checks:
        change = found[check.option]
        assert change.low is not None
        assert change.high is not None
        assert f"({change.low:.4g}x to {change.high:.4g}x)" in check.detail

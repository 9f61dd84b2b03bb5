"""What a ranking claims and leaves open: constraints, ties, the control, verdicts, the Pareto set, factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_records import make_failure, make_meters, make_record, make_suite, speed, with_curve

from selectbench.analysis.factors import factors_of
from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking, Row
from selectbench.analysis.summary import crossing
from selectbench.record.record import EvaluationPoint, Record

SAME = {"compute_dtype": "float32"}


def option(name: str, number: int = 1) -> tuple[str, dict[str, Any]]:
    return name, {"optimizer": {"name": "adamw", "lr": 1e-3 * (1 + number)}}


def trials(name: str, speeds: list[float], losses: list[float] | float = 5.5, **more: Any) -> list[Record]:
    found = losses if isinstance(losses, list) else [losses] * len(speeds)
    return [
        make_record(name, s, identity=SAME, **{"final_loss": found[s], **speed(value), **more})
        for s, value in enumerate(speeds)
    ]


def row(ranking: Ranking, name: str) -> Row:
    return next(row for row in ranking.rows if row.option == name)


def around(value: float, spread: float, seeds: int = 5, seed: int = 0) -> list[float]:
    return [float(v) for v in value * np.exp(np.random.default_rng(seed).normal(0, spread, seeds))]


FIVE = {"seeds": list(range(5))}


class TestConstraints:
    def verdict(self, losses: list[float], constraint: str = "final_perplexity <= 1.01x baseline") -> Any:
        suite = make_suite("base", option("new"), decide={"constraints": [constraint]}, **FIVE)
        base = [5.5, 5.52, 5.48, 5.51, 5.49]
        ranking = rank(suite, trials("base", [100] * 5, base) + trials("new", [200] * 5, losses))
        return ranking, row(ranking, "new").constraints[0]

    def test_three_answers(self) -> None:
        ranking, found = self.verdict([5.501, 5.521, 5.480, 5.512, 5.489])
        assert found.verdict == "holds"
        assert (row(ranking, "new").rank, row(ranking, "new").eligible) == (1, True)
        ranking, found = self.verdict([5.55, 5.57, 5.53, 5.56, 5.54])
        assert found.verdict == "fails"
        assert "1.051x baseline" in found.detail
        ranking, found = self.verdict([5.40, 5.57, 5.33, 5.60, 5.38])
        assert found.verdict == "undecided"
        assert found.settling is not None
        assert found.settling.seeds > 0
        assert (row(ranking, "new").rank, row(ranking, "new").eligible) == (None, False)
        assert "new (200 tokens/s) may be better, but it is open whether it holds" in ranking.answer
        assert f"{found.settling.seeds} more seed" in ranking.answer

    def test_the_figure_has_its_interval(self) -> None:
        _, found = self.verdict([5.501, 5.521, 5.480, 5.512, 5.489])
        assert found.detail.startswith("final_perplexity is 1.00")
        assert "x baseline (0.99" in found.detail or "x baseline (1.00" in found.detail

    def test_no_spread_is_decided_by_the_bound_alone(self) -> None:
        assert self.verdict([5.5, 5.52, 5.48, 5.51, 5.49], "final_loss <= 1x baseline")[1].verdict == "holds"
        assert self.verdict([5.5, 5.52, 5.48, 5.51, 5.49], "final_loss < 1x baseline")[1].verdict == "fails"

    @pytest.mark.parametrize(
        ("constraint", "expected"),
        [("peak_memory_bytes <= 1 GiB", "holds"), ("peak_memory_bytes <= 100 MiB", "fails"),
         ("peak_memory_bytes <= 300 MiB", "holds"), ("step_time_median_seconds <= 1 ms", "fails"),
         ("tokens_per_second >= 0", "holds"), ("final_loss <= 0 nats", "fails")],
    )  # fmt: skip
    def test_absolute_bounds_with_units(self, constraint: str, expected: str) -> None:
        assert self.verdict([5.5, 5.52, 5.48, 5.51, 5.49], constraint)[1].verdict == expected

    def test_one_seed_decides_nothing(self) -> None:
        suite = make_suite("base", option("new"), seeds=[0])
        ranking = rank(suite, trials("base", [100]) + trials("new", [200], 9.0))
        found = row(ranking, "new")
        assert found.constraints[0].verdict == "undecided"
        assert "one seed, which shows no spread" in found.constraints[0].detail
        assert [r.rank for r in ranking.rows] == [None, None]
        assert ranking.answer.startswith(
            "No verdict: it is open whether the options hold final_perplexity <= 1.01x"
        )
        assert row(ranking, "base").constraints[0].verdict == "holds"


class TestRanks:
    def test_ties_share_a_rank(self) -> None:
        suite = make_suite("base", option("near", 1), option("far", 2), option("last", 3),
                           decide={"constraints": []}, **FIVE)  # fmt: skip
        records = trials("base", around(100, 0.01, seed=1)) + trials("near", around(100.3, 0.01, seed=2))
        records += trials("far", around(150, 0.01, seed=3)) + trials("last", around(80, 0.01, seed=4))
        ranking = rank(suite, records)
        assert {r.option: r.rank for r in ranking.rows} == {"far": 1, "base": 2, "near": 2, "last": 4}
        assert row(ranking, "near").tied_with == ["base"]
        assert row(ranking, "far").tied_with == []
        last = row(ranking, "last").against_best
        assert last is not None
        assert (last.against, last.decision) == ("far", "worse")
        assert ranking.family is not None
        assert (ranking.family.tests, ranking.family.objective) == (3, "tokens_per_second")

    def test_a_small_difference_is_no_better_however_sure(self) -> None:
        suite = make_suite("base", option("new"), decide={"constraints": []}, **FIVE)
        base = around(100, 0.02)
        records = trials("base", base) + trials("new", [v * 1.004 + 1e-9 * i for i, v in enumerate(base)])
        found = row(rank(suite, records), "new").against_baseline
        assert found is not None
        assert found.p_adjusted is not None
        assert found.p_adjusted < 1e-6
        assert found.decision == "no_difference"
        finer = suite.model_copy(update={"decide": suite.decide.model_copy(
            update={"thresholds": {"tokens_per_second": 0.001}})})  # fmt: skip
        found = row(rank(finer, records), "new").against_baseline
        assert found is not None
        assert found.decision == "better"

    def test_an_open_question_says_what_would_settle_it(self) -> None:
        suite = make_suite("base", option("new"), decide={"constraints": []}, **FIVE)
        records = trials("base", around(100, 0.02, seed=1)) + trials("new", around(103, 0.02, seed=2))
        ranking = rank(suite, records)
        found = row(ranking, "new").against_baseline
        assert found is not None
        assert found.settling is not None
        assert found.decision == "undecided"
        assert found.settling.seconds == found.settling.seeds * 30.0  # two options of 15 s each
        assert f"{found.settling.seeds} more seed" in ranking.answer
        assert "would probably settle it" in ranking.answer

    def test_two_seeds_are_called_few(self) -> None:
        suite = make_suite("base", option("new"), decide={"constraints": []}, seeds=[0, 1])
        ranking = rank(suite, trials("base", [100, 101]) + trials("new", [200, 203]))
        assert "2 seeds; with so few seeds only large differences show" in ranking.answer

    def test_an_option_with_one_seed_has_no_rank_among_others(self) -> None:
        suite = make_suite("base", option("a", 1), option("b", 2), decide={"constraints": []}, **FIVE)
        records = trials("base", around(100, 0.01)) + trials("a", around(120, 0.01, seed=1)) + trials("b", [500])
        ranking = rank(suite, records)
        assert (row(ranking, "b").rank, row(ranking, "a").rank) == (None, 1)
        found = row(ranking, "b").against_baseline
        assert found is not None
        assert (found.spread, found.low, found.p) == ("unknown", None, None)


class TestTheControl:
    def ranked(self, factor: float) -> Ranking:
        suite = make_suite("base", option("new"), ("control", {}), control=True, decide={"constraints": []}, **FIVE)
        base = around(100, 0.01)
        again = [v * factor * (1 + 1e-4 * i) for i, v in enumerate(base)]
        return rank(
            suite, trials("base", base) + trials("control", again) + trials("new", around(130, 0.01, seed=5))
        )

    def test_it_is_shown_and_never_taken(self) -> None:
        ranking = self.ranked(1.5)
        control = row(ranking, "control")
        assert (control.control, control.rank, control.eligible, control.pareto) == (True, None, False, None)
        assert ranking.answer.startswith("new is the fastest")
        assert "control" not in {v.option for v in ranking.verdicts}
        assert ranking.family is not None
        assert ranking.family.tests == 1

    def test_a_control_that_differs_is_a_warning(self) -> None:
        assert any("the control, which repeats the baseline, differs" in w for w in self.ranked(1.1).warnings)
        assert not any("the control" in w for w in self.ranked(1.0).warnings)


class TestThePareto:
    def test_domination_needs_a_difference_that_is_shown(self) -> None:
        mib = 1 << 20
        suite = make_suite("base", option("big", 1), option("small", 2), option("poor", 3),
                           decide={"constraints": []}, **FIVE)  # fmt: skip
        records = trials("base", around(100, 0.01), peak_pss_growth_bytes=300 * mib)
        records += trials("big", around(150, 0.01, seed=1), peak_pss_growth_bytes=400 * mib)
        records += trials("small", around(90, 0.01, seed=2), peak_pss_growth_bytes=200 * mib)
        records += trials("poor", around(80, 0.01, seed=3), peak_pss_growth_bytes=300 * mib)
        ranking = rank(suite, records)
        assert {r.option: r.pareto for r in ranking.rows} == {
            "base": True,
            "big": True,
            "small": True,
            "poor": False,
        }
        assert row(ranking, "poor").dominated_by == ["base", "small"]

    def test_one_seed_dominates_nothing(self) -> None:
        suite = make_suite("base", option("new"), decide={"constraints": []}, seeds=[0])
        ranking = rank(suite, trials("base", [100]) + trials("new", [900]))
        assert [r.pareto for r in ranking.rows] == [True, True]


def curve(*losses: float) -> list[EvaluationPoint]:
    return [
        EvaluationPoint(step=10 * i, tokens=1000 * i, training_seconds=2.0 * i, loss=loss)
        for i, loss in enumerate(losses, start=1)
    ]


class TestToTheBaselinesLoss:
    def test_between_evaluations_the_loss_falls_in_a_straight_line(self) -> None:
        assert crossing(curve(6.0, 5.0, 4.0), 4.5) == pytest.approx((5.0, 2500.0))
        assert crossing(curve(6.0, 5.0, 4.0), 5.0) == pytest.approx((4.0, 2000.0))
        assert crossing(curve(6.0, 5.0), 7.0) == (2.0, 1000.0)
        assert crossing(curve(6.0, 5.0), 4.0) is None
        assert crossing(curve(6.0, 4.9, 5.2), 5.0) == pytest.approx((2 + 2 / 1.1, 1000 + 1000 / 1.1))
        assert crossing([], 5.0) is None

    def test_an_option_that_does_not_get_there_has_no_figure(self) -> None:
        suite = make_suite("base", option("new"), option("poor", 2), seeds=[0, 1], decide={"constraints": []})
        curves = {"base": [6.0, 5.5], "new": [5.0, 4.5], "poor": [7.0, 6.0]}
        records = [
            with_curve(make_record(name, s, identity=SAME), 2.0, *losses)
            for name, losses in curves.items() for s in (0, 1)
        ]  # fmt: skip
        found = {r.option: r.to_loss for r in rank(suite, records).rows}
        assert found["poor"] is not None
        assert found["new"] is not None
        assert found["base"] is not None
        assert (found["poor"].seconds, found["poor"].not_reached) == (None, [0, 1])
        assert (found["new"].seconds, found["new"].tokens, found["new"].reached) == (2.0, 30 * 2048, [0, 1])
        assert found["base"].seconds == pytest.approx(4.0 - 2.0 * 0.011 / 0.5)  # the threshold of final_loss, 0.2 %

    def test_money_and_energy_to_it(self) -> None:
        suite = make_suite("base", option("new"), seeds=[0, 1], device="cuda", decide={"constraints": []},
                           cost={"usd_per_gpu_hour": 3.6})  # fmt: skip
        records = [
            with_curve(make_record(name, s, identity=SAME, meters=make_meters()), 2.0, 6.0, 5.5)
            for name in ("base", "new") for s in (0, 1)
        ]  # fmt: skip
        ranking = rank(suite, records)
        found = row(ranking, "new").to_loss
        assert found is not None
        assert found.seconds is not None
        assert found.tokens is not None
        assert found.usd == pytest.approx(found.seconds / 1000)
        assert found.joules == pytest.approx(3000 / (50 * 2048) * found.tokens)
        assert "cheapest" not in {v.name for v in ranking.verdicts}


class TestVerdicts:
    def test_each_with_its_sentence_confidence_and_settings(self) -> None:
        mib = 1 << 20
        suite = make_suite("base", option("fast", 1), option("lean", 2), option("wise", 3), **FIVE)
        records = trials("base", around(100, 0.01), around(5.5, 1e-4, seed=7))
        records += trials("fast", around(150, 0.01, seed=1), around(5.5, 1e-4, seed=8))
        records += trials(
            "lean", around(90, 0.01, seed=2), around(5.5, 1e-4, seed=9), peak_pss_growth_bytes=99 * mib
        )
        records += trials("wise", around(80, 0.01, seed=3), around(5.3, 1e-4, seed=10))
        found = {v.name: v for v in rank(suite, records).verdicts}
        assert {name: v.option for name, v in found.items()} == {
            "fastest": "fast", "smallest_memory": "lean", "best_quality": "wise",
        }  # fmt: skip
        assert all(v.sure for v in found.values())
        assert found["fastest"].title == "Fastest at equal quality"
        assert (found["fastest"].file, found["fastest"].command) == ("best.yaml", "selectbench run best.yaml")
        assert found["smallest_memory"].file == "best_smallest_memory.yaml"
        assert found["fastest"].choices["optimizer"]["lr"] == 2e-3
        assert found["fastest"].sentence.startswith("fast: ")

    def test_a_worse_model_is_not_the_fastest_at_equal_quality(self) -> None:
        suite = make_suite("base", option("hasty"), **FIVE)
        records = trials("base", around(100, 0.01)) + trials("hasty", around(300, 0.01), 6.5)
        found = {v.name: v.option for v in rank(suite, records).verdicts}
        assert found["fastest"] == "base"

    def test_equal_options_are_said_to_be_equal(self) -> None:
        suite = make_suite("base", option("twin"), **FIVE)
        speeds = around(100, 0.01)
        ranking = rank(suite, trials("base", speeds) + trials("twin", speeds))
        (quality,) = (v for v in ranking.verdicts if v.name == "best_quality")
        assert not quality.sure
        assert quality.confidence.startswith("No difference that matters")


class TestFactors:
    def grid(self, seeds: int = 3, interaction: float = 1.0, noise: float = 0.001) -> Ranking:
        draw, rows, records = np.random.default_rng(2), [], []
        for precision, gain in (("fp32", 1.0), ("bf16_mixed", 1.3)):
            for attention, more in (("eager", 1.0), ("sdpa", 1.2)):
                for size, least in ((16, 1.0), (8, 0.9)):
                    name = f"{precision} {attention} {size}"
                    rows.append((name, {"precision": {"name": precision}, "attention": {"name": attention},
                                        "micro_batch_size": size}))  # fmt: skip
                    fast = 100 * gain * more * least * (interaction if gain > 1 and more > 1 else 1.0)
                    records += [
                        make_record(name, s, identity={"compute_dtype": "bfloat16" if gain > 1 else "float32",
                                    "attention": attention, "gradient_accumulation_steps": 16 // size},
                                    **speed(fast * float(np.exp(draw.normal(0, noise)))))
                        for s in range(seeds)
                    ]  # fmt: skip
        return rank(make_suite(*rows, seeds=list(range(seeds)), decide={"constraints": []}), records)

    def test_main_effects_and_the_gain_taken_apart(self) -> None:
        view = self.grid().factors
        assert view is not None
        effects = {(e.factor, e.level): e for e in view.effects}
        assert effects["precision", "bf16_mixed"].ratio == pytest.approx(1.3, rel=0.01)
        assert effects["attention", "sdpa"].ratio == pytest.approx(1.2, rel=0.01)
        assert effects["micro_batch_size", "8"].ratio == pytest.approx(0.9, rel=0.01)
        strongest = effects["precision", "bf16_mixed"]
        assert view.effects[0] == strongest
        assert strongest.low is not None
        assert strongest.high is not None
        assert strongest.low < 1.3 < strongest.high
        assert view.best == "bf16_mixed sdpa 16"
        assert view.best_ratio == pytest.approx(1.56, rel=0.01)
        assert {s.factor: s.level for s in view.shares} == {"precision": "bf16_mixed", "attention": "sdpa"}
        assert view.together == pytest.approx(1.0, rel=0.01)

    def test_the_strongest_interaction_comes_first(self) -> None:
        view = self.grid(interaction=1.1).factors
        assert view is not None
        first = view.interactions[0]
        assert first.factors == ["precision", "attention"]
        assert first.levels == ["bf16_mixed", "sdpa"]
        assert first.ratio == pytest.approx(1.1, rel=0.01)

    def test_a_warm_up_of_its_own_is_a_factor_beside_the_job_s(self) -> None:
        rows = [
            (f"{precision} {share}", {"precision": {"name": precision}, "optimizer": {"name": "adamw", "lr": 1e-3,
             **({} if share is None else {"warmup_fraction": share})}})
            for precision in ("fp32", "bf16_mixed") for share in (None, 0.1)
        ]  # fmt: skip
        factors = factors_of(make_suite(*rows).options, "fp32 None")
        assert {(f.name, f.base) for f in factors} == {("precision", "fp32"), ("optimizer.warmup_fraction", "None")}

    def test_levels_are_called_what_a_suite_calls_them(self) -> None:
        options = [
            ("base", {"tokenizer": {"bpe": 512}, "model": {"family": "gpt2", "n_layer": 2}}),
            ("bytes", {"tokenizer": {"bytes": True}, "model": {"family": "gpt2", "n_layer": 2}}),
            ("deep", {"tokenizer": {"bpe": 2048}, "model": {"family": "gpt2", "n_layer": 4}}),
        ]
        found = {factor.name: factor.levels for factor in factors_of(make_suite(*options).options, "base")}
        assert found == {
            "model.n_layer": {"base": "2", "bytes": "2", "deep": "4"},
            "tokenizer": {"base": "bpe 512", "bytes": "bytes", "deep": "bpe 2048"},
        }

    def test_all_settings_that_change_together_are_one_factor(self) -> None:
        sizes: list[Any] = [
            (f"{precision} {n}", {"precision": {"name": precision}, "model": {
                "family": "gpt2", "n_layer": n, "n_embd": 64 * n, "n_head": n}})
            for precision in ("fp32", "bf16_mixed") for n in (2, 4)
        ]  # fmt: skip
        precision, size = factors_of(make_suite(*sizes).options, "fp32 2")
        assert precision.settings == ("precision",)
        assert set(size.settings) == {"model.n_layer", "model.n_embd", "model.n_head"}
        assert size.levels["fp32 4"] in ("4", "256")

    def test_named_options_are_no_grid(self) -> None:
        suite = make_suite("base", option("a", 1), option("b", 2), **FIVE)
        assert rank(suite, trials("base", [100] * 5)).factors is None


def test_options_that_differ_in_n_and_all_failed_beside_each_other() -> None:
    suite = make_suite("base", option("short", 1), option("dead", 2), decide={"constraints": []}, **FIVE)
    records = trials("base", around(100, 0.01)) + trials("short", around(130, 0.01, seeds=3, seed=1))
    records += [make_failure("dead", s, "oom") for s in range(5)]
    ranking = rank(suite, records)
    found = row(ranking, "short").against_baseline
    assert found is not None
    assert (found.seeds, found.decision) == (3, "better")
    assert [r.option for r in ranking.rows] == ["short", "base", "dead"]
    assert "Not ranked: dead (oom)" in ranking.answer

"""What records with holes, ties and few seeds must not lead a reader to believe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from made_records import SHARED, make_failure, make_meters, make_record, make_suite, speed, with_curve
from msgspec.structs import replace

from selectbench.analysis.factors import _is_grid, factors_of
from selectbench.analysis.gate import ReadRun, compare, hold_gate
from selectbench.analysis.ranking import rank
from selectbench.analysis.recommendation import with_ratio
from selectbench.analysis.result import Ranking, Row
from selectbench.errors import UserError
from selectbench.record.record import SETTINGS, Record
from selectbench.report.ranking import constraint_failure_lines, table_notes, violation_text
from selectbench.suite.metrics import METRICS
from selectbench.suite.suite import BestOf, Suite

FREE: list[str] = []
QUALITY = ["final_perplexity <= 1.01x baseline"]


def suite_of(*names: str, seeds: int = 5, constraints: Sequence[str] = FREE, **changes: Any) -> Suite:
    rows = [(name, {"optimizer": {"name": "adamw", "lr": 1e-3 * (1 + i)}}) for i, name in enumerate(names)]
    decide = {"constraints": list(constraints), **changes.pop("decide", {})}
    return make_suite(*rows, seeds=list(range(seeds)), decide=decide, **changes)


def trials(name: str, speeds: Sequence[float | str] | Mapping[int, float | str], **measured: Any) -> list[Record]:
    """A word in place of a speed is the kind of a failure."""
    found = []
    for seed, value in (speeds if isinstance(speeds, Mapping) else dict(enumerate(speeds))).items():
        if isinstance(value, str):
            found.append(make_failure(name, seed, value))
            continue
        own = {key: v[seed] if isinstance(v, list) else v for key, v in measured.items()}
        record = make_record(name, seed, identity={"compute_dtype": "float32"}, **{**speed(value), **own})
        loss = record.outcome.measurement.final_loss  # type: ignore[union-attr]
        found.append(with_curve(record, 20 * 2048 / value, loss + 40, loss + 20, loss) if loss else record)
    return found


def row(ranking: Ranking, option: str) -> Row:
    return next(row for row in ranking.rows if row.option == option)


def verdict(ranking: Ranking, name: str) -> Any:
    return next(found for found in ranking.verdicts if found.name == name)


def test_means_over_other_seeds_name_nobody() -> None:
    """The option that failed with the slow seeds has the higher mean, and is slower with every seed of both."""
    records = trials("base", [100, 101, 100, 140, 141])
    records += trials("b", {0: "oom", 1: "oom", 2: "oom", 3: 126, 4: 127})
    ranking = rank(suite_of("base", "b"), records)
    assert verdict(ranking, "fastest").option == "base"
    assert "Some seeds failed: b (3 of 5, oom)." in ranking.answer


def test_a_row_that_shares_no_seed_with_the_first_is_not_called_equal() -> None:
    records = trials("base", {s: 100.3 + 0.01 * s if s < 5 else "oom" for s in range(10)})
    records += trials("a", [100.2 + 0.01 * s for s in range(10)])
    records += trials("c", {s: "oom" if s < 5 else 70 + 0.01 * s for s in range(10)})
    answer = rank(suite_of("base", "a", "c", seeds=10), records).answer
    assert "No difference that matters" not in answer
    assert "c shared no seed with base" in answer


def test_one_seed_among_many_is_named_and_is_no_winner() -> None:
    records = trials("base", [100, 101, 99, 100, 102]) + trials("a", [120, 121, 119, 120, 122])
    records += trials("b", {0: 500, **dict.fromkeys(range(1, 5), "crashed")})
    ranking = rank(suite_of("base", "a", "b", quick=True), records)
    assert "Not ranked: b (too few seeds)" in ranking.answer
    fastest = verdict(ranking, "fastest")
    assert fastest.option == "a"
    assert not fastest.sure
    assert fastest.tied_with == ["b"]


def test_what_diverged_flatters_nobody() -> None:
    records = trials("base", [100, 101, 102, 100, 99], final_loss=5.5)
    records += trials("a", {0: 150, 1: 151, 2: 152, 3: "diverged", 4: "diverged"}, final_loss=5.3)
    ranking = rank(suite_of("base", "a"), records)
    assert "a (2 of 5, diverged)" in ranking.answer
    assert verdict(ranking, "best_quality").option == "base"
    assert row(ranking, "base").dominated_by == []
    reached = row(ranking, "a").to_loss
    assert reached is not None
    assert (reached.not_reached, reached.seconds) == ([3, 4], None)


@pytest.mark.parametrize("seeds", [1, 2])
def test_undecided_quality_does_not_crown_the_baseline(seeds: int) -> None:
    records = trials("base", [100, 101][:seeds], final_loss=[5.5, 5.52])
    records += trials("a", [200, 203][:seeds], final_loss=[5.501, 5.519])
    fastest = verdict(rank(suite_of("base", "a", seeds=seeds, constraints=QUALITY), records), "fastest")
    assert (fastest.option, fastest.file) == (None, None)
    assert fastest.sentence == "Open: whether a holds the constraints is undecided."


OPEN_LOSS = [5.40, 5.60, 5.45, 5.58, 5.47]
"""Whether it holds QUALITY beside 5.5 is open."""


def test_an_open_constraint_is_blamed_only_where_its_option_could_lead() -> None:
    """It takes more memory, as is shown; that it is slower is measured and not shown."""
    mib = 2**20
    records = trials(
        "base", [100, 108, 95, 104, 99], peak_pss_growth_bytes=[n * mib for n in (300, 301, 302, 301, 300)]
    )
    records += trials(
        "a", [103, 101, 99, 107, 95], peak_pss_growth_bytes=[n * mib for n in (299, 302, 301, 300, 301)]
    )
    records += trials(
        "open", [98, 104, 93, 108, 94], final_loss=OPEN_LOSS,
        peak_pss_growth_bytes=[n * mib for n in (306, 308, 307, 309, 306)],
    )  # fmt: skip
    ranking = rank(suite_of("base", "a", "open", constraints=QUALITY), records)
    assert ranking.answer.startswith("Too close to call between")
    smallest, fastest = verdict(ranking, "smallest_memory"), verdict(ranking, "fastest")
    assert (smallest.option, smallest.headline) == ("base", "base")
    assert "Open" not in smallest.sentence + smallest.confidence
    assert fastest.option == "base"
    assert fastest.confidence == "Not shown to differ from a. Open: whether open holds the constraints."
    faster = [r for r in records if r.trial.option != "open"]
    faster += trials("open", [140, 145, 150, 141, 143], final_loss=OPEN_LOSS)
    fastest = verdict(rank(suite_of("base", "a", "open", constraints=QUALITY), faster), "fastest")
    assert (fastest.option, fastest.headline) == (None, "open")
    assert fastest.sentence == (
        "Open: whether open holds the constraints is undecided. Of those that qualify, it is too close to call "
        "between base, a."
    )


def test_a_headline_names_no_baseline_as_the_fastest_that_another_is_ahead_of() -> None:
    records = trials("base", [100, 120, 90, 115, 95]) + trials("a", [150, 95, 140, 110, 160])
    fastest = verdict(rank(suite_of("base", "a"), records), "fastest")
    assert (fastest.option, fastest.headline) == ("base", "stay with base, as none is shown to be faster")
    slower = trials("base", [100, 101, 100, 101, 100]) + trials("a", [50, 51, 50, 50, 51])
    assert verdict(rank(suite_of("base", "a"), slower), "fastest").headline == "base"


def test_what_wide_intervals_leave_open_dominates_nothing() -> None:
    mib = 2**20
    small = {"peak_pss_growth_bytes": 300 * mib, "final_loss": 5.5}
    large = {"peak_pss_growth_bytes": [400 * mib + n for n in range(5)], "final_loss": 5.5}
    records = trials("base", [100, 150, 80, 130, 90], **small) + trials("a", [120, 80, 140, 70, 120], **large)
    ranking = rank(suite_of("base", "a"), records)
    assert (row(ranking, "a").dominated_by, row(ranking, "a").pareto) == ([], True)
    assert not any("Dominated" in str(note) for note in table_notes(ranking))
    shown = trials("base", [100, 101, 100, 101, 100], **small) + trials("a", [90, 91, 90, 91, 90], **large)
    ranking = rank(suite_of("base", "a"), shown)
    assert (row(ranking, "a").dominated_by, row(ranking, "a").pareto) == (["base"], False)
    assert any("a by base" in str(note) for note in table_notes(ranking))


def test_a_baseline_without_spread_hides_no_difference_of_the_others() -> None:
    records = trials("base", {0: 100, **dict.fromkeys(range(1, 5), "oom")})
    records += trials("a", [200, 201, 200.5, 199, 200]) + trials("b", [100, 101, 100.5, 99, 100.2])
    ranking = rank(suite_of("base", "a", "b"), records)
    assert ranking.answer.startswith("a is the fastest")
    assert (row(ranking, "a").rank, row(ranking, "b").rank) == (1, 2)


def test_a_noisy_baseline_hides_no_sure_difference_of_the_others() -> None:
    records = trials("base", [100, 125, 80, 110, 90])
    records += trials("a", [110, 110.1, 109.9, 110.2, 110]) + trials("b", [99.1, 99.2, 99, 99.3, 99.1])
    ranking = rank(suite_of("base", "a", "b"), records)
    assert row(ranking, "b").against_best is not None or row(ranking, "a").against_best is not None
    assert row(ranking, "b").rank == 2


def test_open_constraints_are_not_called_a_lack_of_spread() -> None:
    memory = [mib << 20 for mib in (280, 330, 290, 320, 300)]
    records = trials("base", [100, 101, 100, 99, 100], peak_pss_growth_bytes=memory)
    records += trials("a", [120, 121, 120, 119, 120], peak_pss_growth_bytes=memory)
    ranking = rank(suite_of("base", "a", constraints=["peak_memory_bytes <= 301 MiB"]), records)
    assert ranking.answer.startswith(
        "No verdict: it is open whether the options hold peak_memory_bytes <= 301 MiB."
    )


def test_seeds_that_are_not_shared_are_said() -> None:
    records = trials("base", {0: 100, 2: 101, 4: 99}) + trials("a", {1: 120, 3: 121, 5: 119})
    answer = rank(suite_of("base", "a", seeds=6), records).answer
    assert "no two options share two seeds that both completed" in answer


def test_a_promise_covers_all_that_is_open() -> None:
    """One constraint could be settled by some seeds more, the other by none: nothing is promised."""
    memory = [mib << 20 for mib in (299, 303, 300, 299, 301)]
    records = trials("base", [100, 101, 100, 99, 100], final_loss=[5.5, 5.52, 5.51, 5.49, 5.5])
    records += trials("a", [120, 121, 120, 119, 120], peak_pss_growth_bytes=memory,
                      final_loss=[5.51, 5.5298, 5.52, 5.4999, 5.51005])  # fmt: skip
    constraints = ["peak_memory_bytes <= 302 MiB", "final_perplexity <= 1.01x baseline"]
    ranking = rank(suite_of("base", "a", constraints=constraints), records)
    settling = [c.settling for c in row(ranking, "a").constraints if c.verdict == "undecided"]
    assert [bool(found) for found in settling] == [True, False]
    assert ("would probably settle it" in ranking.answer) == (None not in settling)


def test_two_seeds_foretell_nothing() -> None:
    ranking = rank(suite_of("base", "a", seeds=2), trials("base", [100, 103]) + trials("a", [102, 101]))
    found = row(ranking, "a").against_baseline
    assert found is not None
    assert (found.decision, found.settling) == ("undecided", None)


def test_quality_that_was_not_judged_is_not_called_equal() -> None:
    records = trials("base", ["oom"] * 5) + trials("a", [200] * 5) + trials("b", [100] * 5)
    ranking = rank(suite_of("base", "a", "b", constraints=QUALITY), records)
    assert verdict(ranking, "fastest").title == "Fastest (equal quality could not be judged)"


def test_extremes_break_nothing() -> None:
    ranking = rank(suite_of("base", "a", seeds=3), trials("base", [1e-300] * 3) + trials("a", [1e300] * 3))
    assert row(ranking, "a").rank == 1
    assert row(ranking, "a").metrics["tokens_per_second"].ratio_to_baseline is None


def test_no_growth_of_memory_is_not_known() -> None:
    records = trials("base", [1] * 5, peak_pss_growth_bytes=[109, 110, 111, 109, 108])
    records += trials("a", [1] * 5, peak_pss_growth_bytes=[0, 0, 0, 110, 112])
    ranking = rank(suite_of("base", "a", decide={"objective": "peak_memory_bytes"}), records)
    assert row(ranking, "a").metrics["peak_memory_bytes"].n == 2


def test_an_interval_agrees_with_its_decision() -> None:
    for seed in range(20):
        draw = np.random.default_rng(seed)
        names = ("base", "a", "b", "c")
        speeds = 1000 * np.exp(0.02 * np.arange(4)[:, None] + draw.normal(0, 0.01, (4, 3)))
        records = [r for name, own in zip(names, speeds.tolist(), strict=True) for r in trials(name, own)]
        for found in (r.against_best for r in rank(suite_of(*names, seeds=3), records).rows):
            if found and found.low is not None and found.high is not None and found.decision in ("better", "worse"):
                assert not found.low <= 1 <= found.high


def test_exactly_the_threshold_is_not_above_it() -> None:
    for base in (104857600, 314572800, 123456700):
        records = trials("base", [1] * 3, peak_pss_growth_bytes=base)
        records += trials("a", [1] * 3, peak_pss_growth_bytes=base + base // 100)
        ranking = rank(suite_of("base", "a", seeds=3, decide={"objective": "peak_memory_bytes"}), records)
        found = row(ranking, "a").against_baseline
        assert found is not None
        assert found.decision == "no_difference"


def test_what_has_no_spread_takes_no_part_of_alpha() -> None:
    records = trials("base", [100, 101, 99, 100, 102]) + trials("a", [104, 103.5, 103, 104.8, 104])
    alone, beside = (
        row(rank(suite_of("base", "a", constraints=c), records), "a").against_baseline
        for c in (FREE, ["final_loss <= 1x baseline"])
    )
    assert alone is not None
    assert beside is not None
    assert alone.p_adjusted == beside.p_adjusted


def test_a_limit_on_memory_bars_an_option_from_every_verdict() -> None:
    mib = 1 << 20
    suite = suite_of("base", "a", constraints=["peak_memory_bytes <= 100 MiB"])
    records = trials("base", [100] * 5, final_loss=5.5, peak_pss_growth_bytes=90 * mib)
    records += trials("a", [100] * 5, final_loss=5.0, peak_pss_growth_bytes=120 * mib)
    ranking = rank(suite, records)
    assert {v.name: v.option for v in ranking.verdicts} == {
        "fastest": "base", "smallest_memory": "base", "best_quality": "base",
    }  # fmt: skip


def test_nothing_better_than_the_baseline_leaves_it() -> None:
    """Ahead by the means alone is no reason to change; the one ahead is named all the same."""
    records = trials("base", [100, 102, 98, 101, 99]) + trials("a", [103, 101, 100, 105, 98])
    fastest = verdict(rank(suite_of("base", "a"), records), "fastest")
    assert fastest.option == "base"
    assert fastest.sentence.startswith("none is shown to be better than base: ")
    assert "best measured: a" in fastest.sentence
    assert not fastest.sure


def test_one_that_is_ahead_by_less_than_the_figures_show_is_not_named_as_ahead() -> None:
    """`5.500 ..., 1.0000x the baseline` beside `5.500 ...` tells a reader nothing."""
    speeds = [100, 101, 99, 100, 102]
    records = trials("base", speeds, final_loss=[5.5, 5.52, 5.48, 5.51, 5.49])
    records += trials("a", speeds, final_loss=[5.49999, 5.51999, 5.47999, 5.51, 5.49])
    quality = verdict(rank(suite_of("base", "a"), records), "best_quality")
    assert quality.option == "base"
    assert quality.sentence == "base: 5.500 nats per token (the baseline), at 100 tokens/s."
    assert quality.confidence == "No difference that matters (less than 0.20%) to a."


def test_of_options_that_hardly_differ_the_better_ranked_is_named() -> None:
    mib = 1 << 20
    records = trials("base", [100, 101, 99, 100, 102], peak_pss_growth_bytes=200 * mib)
    records += trials("fast", [150, 151, 149, 150, 152], peak_pss_growth_bytes=102 * mib)
    records += trials("slow", [10, 10.1, 9.9, 10, 10.2], peak_pss_growth_bytes=100 * mib)
    smallest = verdict(rank(suite_of("base", "fast", "slow"), records), "smallest_memory")
    assert smallest.option == "fast"
    assert "at 150 tokens/s (1.50x)" in smallest.sentence
    assert smallest.sentence.endswith("(better by less than 5.0%, and after it in the ranking).")


def test_an_option_that_is_taken_in_the_baselines_place_is_not_called_like_the_baseline() -> None:
    """Adjusted for the options against the baseline the memory differs, adjusted for all pairs it does not."""
    bytes_by_option = {
        "base": [51938304, 50061312, 52157440], "same": [52887552, 47571968, 52493312],
        "fast": [45379584, 34149376, 45560832], "slow": [45658112, 34138112, 44978176],
    }  # fmt: skip
    speeds = {"base": [200, 201, 199], "same": [199, 200, 198], "fast": [150, 151, 149], "slow": [100, 101, 99]}
    records = [
        record for name, sizes in bytes_by_option.items()
        for record in trials(name, speeds[name], peak_pss_growth_bytes=sizes)
    ]  # fmt: skip
    smallest = verdict(rank(suite_of(*bytes_by_option, seeds=3), records), "smallest_memory")
    assert smallest.option == "fast"
    assert smallest.tied_with == ["same", "slow"]
    assert smallest.sentence == (
        "fast: 39.4 MiB, 0.80x the baseline (0.69x to 0.94x), at 150 tokens/s (0.75x); best measured: slow, 39.3 "
        "MiB, 0.80x the baseline (0.69x to 0.94x) (better by less than 5.0%, and after it in the ranking)."
    )
    assert smallest.confidence == "Shown to be better than the baseline; not shown to differ from same, slow."


def test_the_baseline_does_not_stay_where_the_leader_beats_it_and_a_noisy_neighbour_does_not() -> None:
    sizes = {
        "base": [200, 200.2, 199.8, 200.1, 199.9], "near": [125, 205, 158, 215, 136],
        "lean": [160, 160.2, 159.8, 159.9, 160.1],
    }  # fmt: skip
    speeds = {"base": 200, "near": 150, "lean": 100}
    records = [
        record for name, found in sizes.items()
        for record in trials(name, [speeds[name] + seed for seed in range(5)],
                             peak_pss_growth_bytes=[int(size * 2**20) for size in found])
    ]  # fmt: skip
    smallest = verdict(rank(suite_of(*sizes), records), "smallest_memory")
    assert (smallest.option, smallest.tied_with) == ("lean", ["near"])
    assert smallest.confidence == "Shown to be better than the baseline; not shown to differ from near."


def test_an_interval_that_leaves_out_1_beside_a_baseline_that_stays_is_explained() -> None:
    """By itself the memory of one differs from the baseline's; adjusted for six options it does not."""
    sizes = {
        "base": [200, 204, 197], "a": [200, 202, 204], "b": [198, 202, 202], "c": [201, 197, 196],
        "d": [199, 202, 198], "e": [200, 199, 203], "less": [166, 188, 174],
    }  # fmt: skip
    records = [
        record for name, found in sizes.items()
        for record in trials(name, [100, 101, 99], peak_pss_growth_bytes=[int(size * 2**20) for size in found])
    ]  # fmt: skip
    smallest = verdict(rank(suite_of(*sizes, seeds=3), records), "smallest_memory")
    assert smallest.option == "base"
    assert smallest.sentence == (
        "none is shown to be better than base: 200 MiB (the baseline), at 100 tokens/s; best measured: less, 176 "
        "MiB, 0.88x the baseline (0.78x to 0.99x) (an interval for this ratio alone; for all options together it "
        "is not shown)."
    )


def test_one_seed_far_from_an_absolute_bound_decides() -> None:
    records = trials("base", [100]) + trials("a", [120])
    ranking = rank(suite_of("base", "a", seeds=1, constraints=["peak_memory_bytes <= 80 GiB"]), records)
    assert [r.constraints[0].verdict for r in ranking.rows] == ["holds", "holds"]
    near = rank(suite_of("base", "a", seeds=1, constraints=["peak_memory_bytes <= 310 MiB"]), records)
    assert [r.constraints[0].verdict for r in near.rows] == ["undecided", "undecided"]


def test_the_control_is_not_tested_and_stands_last() -> None:
    suite = suite_of("base", "a", constraints=["peak_memory_bytes <= 301 MiB"])
    control = suite.options[0].model_copy(update={"name": "control"})
    suite = suite.model_copy(update={"control": True, "options": [*suite.options, control]})
    records = [r for n in ("base", "a", "control") for r in trials(n, [100, 101, 99, 100, 102])]
    ranking = rank(suite, records)
    assert ranking.rows[-1].option == "control"
    assert ranking.rows[-1].constraints == []
    assert "control" not in ranking.answer


def test_a_quiet_control_seldom_warns() -> None:
    draw, warned = np.random.default_rng(5), 0
    suite = suite_of("base", "a")
    control = suite.options[0].model_copy(update={"name": "control"})
    suite = suite.model_copy(update={"control": True, "options": [*suite.options, control]})
    for _ in range(200):
        records = [
            r for n in ("base", "a", "control")
            for r in trials(n, [1000 * float(np.exp(draw.normal(0, 0.02))) for _ in range(5)],
                            final_loss=[5.5 * float(np.exp(draw.normal(0, 0.004))) for _ in range(5)],
                            peak_pss_growth_bytes=[int(3e8 * np.exp(draw.normal(0, 0.02))) for _ in range(5)])
        ]  # fmt: skip
        warned += any("the control" in line for line in rank(suite, records).warnings)
    assert warned / 200 <= 0.08  # 5 % and twice its Monte Carlo error


def read(suite: Suite, records: list[Record], name: str = "run") -> ReadRun:
    return ReadRun(name, suite.model_copy(update={"resolved": {"job": {}}}), records, {"cpu_model": "X"})


class TestGateAndCompare:
    suite = suite_of("base", "a")
    records = trials("base", [100, 101, 99, 100, 102]) + trials("a", [120, 121, 119, 120, 122])
    limit = ("tokens_per_second >= 0.9x reference",)

    def test_a_run_that_stopped_half_way_passes_no_gate(self) -> None:
        half = [r for r in self.records if r.trial.option == "base" or r.trial.seed < 2]
        found = hold_gate(read(self.suite, half), read(self.suite, self.records, "reference"), self.limit)
        assert found.verdict == "inconclusive"
        assert "no outcome for seed 2, 3, 4" in next(c.detail for c in found.checks if c.limit == "completes")

    def test_other_data_is_refused(self) -> None:
        other = [
            replace(r, identity=replace(r.identity, token_stream_sha256="9" * 64))
            for r in self.records if r.identity
        ]  # fmt: skip
        with pytest.raises(UserError, match="not the same data"):
            hold_gate(read(self.suite, other), read(self.suite, self.records, "reference"), self.limit)
        notes = compare(read(self.suite, other), read(self.suite, self.records, "reference")).notes
        assert "the runs did not read the same data: token_stream_sha256 of base with seed 0" in notes

    def test_a_lost_option_is_told(self) -> None:
        failed = [r for r in self.records if r.trial.option == "base"]
        failed += [make_failure("a", s, "oom") for s in range(5)]
        found = compare(read(self.suite, failed), read(self.suite, self.records, "reference"))
        assert found.lost == {"a": "oom"}

    def test_figures_are_of_the_seeds_that_the_ratio_is_of(self) -> None:
        part = [r for r in self.records if r.trial.seed > 1]
        found = compare(read(self.suite, part), read(self.suite, self.records, "reference"))
        for change in found.changes:
            assert change.run == change.reference


def test_an_option_that_is_as_good_as_the_baseline_is_named_beside_it() -> None:
    suite = make_suite("a", "b", decide={"constraints": []})  # b is the first row, as it is faster
    peaks = {"a": (100.0, 101.0, 99.0), "b": (100.2, 100.9, 99.4)}
    records = [
        make_record(name, seed, peak_pss_growth_bytes=int(peak * 1e6), **speed({"a": 1000, "b": 2000}[name] + seed))
        for name, values in peaks.items() for seed, peak in enumerate(values)
    ]  # fmt: skip
    found = next(v for v in rank(suite, records).verdicts if v.name == "smallest_memory")
    assert (found.option, found.tied_with, found.sure) == ("a", ["b"], False)


def test_an_unranked_option_that_is_shown_to_be_worse_is_no_tie() -> None:
    bound = {"objective": "final_loss", "constraints": ["final_loss <= 1.01x baseline"]}
    suite = make_suite("a", "twin", "worse", decide=bound)
    losses = {"a": 5.0, "twin": 5.001, "worse": 6.0}
    records = [
        make_record(name, seed, final_loss=loss + 0.01 * seed) for name, loss in losses.items() for seed in range(3)
    ]
    found = next(v for v in rank(suite, records).verdicts if v.name == "best_quality")
    assert "worse" not in found.tied_with
    assert "worse" not in found.confidence


def test_a_score_of_nothing_is_told_as_the_reason_of_no_verdict() -> None:
    suite = make_suite("a", "b", decide={"objective": "bleu", "constraints": []})
    records = [
        make_record(name, seed, scores={"bleu": bleu})
        for name, bleu in (("a", 0.0), ("b", 0.2))
        for seed in (0, 1, 2)
    ]
    assert "BLEU is 0 for a, and of nothing no ratio can be taken" in rank(suite, records).answer


@pytest.mark.parametrize(("device", "decision"), [("cuda", "better"), ("cpu", "no_difference")])
def test_pages_of_a_process_are_no_gain_in_memory(device: str, decision: str) -> None:
    """3 % less in every seed is what an allocator on a GPU counts, and on a CPU what chance of pages does."""
    key = "peak_memory_allocated_bytes" if device == "cuda" else "peak_pss_growth_bytes"
    noise = [0, 1 << 20, 2 << 20, 1 << 20, 0]
    records = [
        record
        for name, share in (("base", 1.0), ("b", 0.97))
        for record in trials(name, [100.0] * 5, **{key: [int(share * ((1 << 30) + n)) for n in noise]})
    ]
    suite = suite_of("base", "b", device=device, decide={"objective": "peak_memory_bytes"})
    ranking = rank(suite, records)
    against = row(ranking, "b").against_baseline
    assert against is not None
    assert against.decision == decision
    own = suite_of(
        "base", "b", decide={"objective": "peak_memory_bytes", "thresholds": {"peak_memory_bytes": 0.01}}
    )
    assert row(rank(own, records), "b").against_baseline.decision == "better"  # type: ignore[union-attr]


@pytest.mark.parametrize("blown", [[0], [0, 1, 2]])
def test_a_seed_whose_loss_blew_up_is_not_left_out_of_the_perplexity(blown: list[int]) -> None:
    losses = [720.0 if seed in blown else 5.5 for seed in range(5)]
    records = trials("base", [100.0] * 5) + trials("b", [200.0] * 5, final_loss=losses)
    ranking = rank(suite_of("base", "b", constraints=QUALITY), records)
    found = row(ranking, "b")
    seeds = "seed 0" if len(blown) == 1 else "seeds 0, 1, 2"
    assert not found.eligible
    assert found.constraints[0].verdict == "fails"
    assert found.constraints[0].detail == f"no finite final_perplexity with {seeds}"
    gate = hold_gate(*_as_runs("b", records, trials("base", [100.0] * 5) + trials("b", [200.0] * 5)), QUALITY_LIMIT)
    assert gate.verdict == "regression"


def test_an_absolute_limit_is_not_held_against_a_reference_of_zero() -> None:
    run, reference = (
        [r for name in ("base", "b") for r in trials(name, [100.0] * 3, scores=[{"bleu": b} for b in scores])]
        for scores in ((5.0, 5.2, 4.9), (0.0, 0.0, 0.0))
    )
    assert hold_gate(*_as_runs("b", run, reference), ["bleu >= 3"]).verdict == "pass"
    assert hold_gate(*_as_runs("b", run, reference), ["bleu >= 20"]).verdict == "regression"


QUALITY_LIMIT = ["final_perplexity <= 1.01x reference"]


def _as_runs(other: str, *runs: list[Record]) -> list[ReadRun]:
    suite = suite_of("base", other)
    return [ReadRun(name, suite, records, {}) for name, records in zip(("run", "reference"), runs, strict=True)]


def test_seeds_without_the_figure_leave_a_constraint_and_a_gate_open() -> None:
    whole = trials("base", [100.0] * 5) + trials("b", [200.0] * 5)
    without = trials("base", [100.0] * 5) + trials("b", [200.0] * 5, final_loss=[5.5, None, 5.5, None, 5.5])
    ranking = rank(suite_of("base", "b", constraints=QUALITY), without)
    assert row(ranking, "b").constraints[0].verdict == "undecided"
    assert not row(ranking, "b").eligible
    limits = ["final_loss <= 1.01x reference"]
    assert hold_gate(*_as_runs("b", without, whole), limits).verdict == "inconclusive"
    assert hold_gate(*_as_runs("b", whole, whole), limits).verdict == "pass"
    untimed = trials("base", [100.0] * 5) + trials("b", [200.0] * 5, timed_steps=[50, 0, 50, 0, 0])
    speeds = ["tokens_per_second >= 0.97x reference"]
    assert hold_gate(*_as_runs("b", untimed, whole), speeds).verdict == "inconclusive"
    unranked = rank(suite_of("base", "b"), untimed)
    assert [found.option for found in unranked.rows if found.rank] == ["base"]
    assert constraint_failure_lines(row(unranked, "b")) == [
        "tokens_per_second of every seed: none with seeds 1, 3, 4"
    ]


def test_a_loss_below_the_sources_own_never_ranks() -> None:
    floor = {"source_loss": 5.0, "source_loss_error": 0.01}
    records = trials("base", [100.0] * 3, final_loss=[6.0, 6.1, 6.2], **floor)
    records += trials("b", [100.0] * 3, final_loss=[5.5, 4.5, 5.6], **floor)
    ranking = rank(suite_of("base", "b", seeds=3, decide={"objective": "excess_loss"}), records)
    assert [found.option for found in ranking.rows if found.rank] == ["base"]
    assert "b: excess_loss is not above 0 with seed 1: they are left out of ratios" in ranking.warnings
    (violation,) = row(ranking, "b").identity.violations
    assert (violation.field, violation.seeds, violation.option) == ("final_loss", [1], 4.5)
    assert all(found.option != "b" for found in ranking.verdicts)
    gate = hold_gate(*_as_runs("b", records, trials("base", [100.0] * 3, final_loss=6.0, **floor)
                               + trials("b", [100.0] * 3, final_loss=6.0, **floor)),
                     ["excess_loss <= 1.01x reference"])  # fmt: skip
    assert next(c for c in gate.checks if c.option == "b").verdict == "inconclusive"


def test_a_suite_that_was_edited_does_not_lend_its_settings_to_the_records() -> None:
    def with_lr(name: str, lr: float) -> list[Record]:
        settings = {"optimizer": {"name": "adamw", "lr": lr}, "micro_batch_size": 16}
        return [
            replace(record, trial=replace(record.trial, settings=SETTINGS.as_json(settings)))
            for record in trials(name, [100.0, 101.0, 102.0])
        ]

    suite = suite_of("base", "b", seeds=3)
    honest = rank(suite, with_lr("base", 1e-3) + with_lr("b", 2e-3))
    assert [found.eligible for found in honest.rows] == [True, True]
    edited = row(rank(suite, with_lr("base", 1e-3) + with_lr("b", 0.1)), "b")
    assert not edited.eligible
    (violation,) = edited.identity.violations
    assert (violation.asked, violation.option) == ("optimizer.lr 0.002", "optimizer.lr 0.1")
    assert violation_text(violation) == "settings: asked optimizer.lr 0.002, found optimizer.lr 0.1 (seeds 0, 1, 2)"
    gate = hold_gate(
        ReadRun("run", suite, with_lr("base", 1e-3) + with_lr("b", 0.1), {}),
        ReadRun("reference", suite, with_lr("base", 1e-3) + with_lr("b", 2e-3), {}),
        ["tokens_per_second >= 0.97x reference"],
    )
    assert gate.verdict == "inconclusive"


def test_runs_whose_options_were_set_otherwise_say_so_first() -> None:
    first = make_suite("base", ("b", {"micro_batch_size": 8}), seeds=[0, 1, 2])
    second = make_suite("base", ("b", {"micro_batch_size": 4}), seeds=[0, 1, 2])
    records = trials("base", [100.0] * 3) + trials("b", [200.0] * 3)
    compared = compare(
        ReadRun("run", second, records, {}), ReadRun("reference", first, records, {"data": {"a": None}})
    )
    assert compared.notes[0] == "b has other settings: micro_batch_size 8 -> 4"
    assert compared.environment == []


def test_a_gate_names_the_options_that_it_does_not_hold() -> None:
    suite = suite_of("base", "b")
    run = ReadRun("run", suite, trials("base", [100.0] * 5) + trials("b", [200.0] * 5), {})
    gate = hold_gate(run, ReadRun("reference", suite, trials("base", [100.0] * 5), {}), QUALITY_LIMIT)
    assert gate.notes == ["not gated, as the reference completed no trial of them: b"]


def test_a_speed_without_a_unit_is_a_factor_whose_yardstick_was_forgotten() -> None:
    suite = suite_of("base", "b")
    runs = [ReadRun(name, suite, trials("base", [100.0] * 5), {}) for name in ("run", "reference")]
    with pytest.raises(UserError, match=r"in `0.97x reference`, or the unit"):
        hold_gate(*runs, ["tokens_per_second >= 0.97"])
    assert hold_gate(*runs, ["tokens_per_second >= 0.97 tokens/s"]).verdict == "pass"


def test_options_that_took_their_own_best_sizes_are_no_grid() -> None:
    rows = [(f"{precision} {size}", {"precision": {"name": precision}, "micro_batch_size": size})
            for precision in ("fp32", "bf16_mixed") for size in (16, 8)]  # fmt: skip
    zero = [
        {"strategy": {"name": "zero", "stage": stage}, "world_size": 2, "micro_batch_size": 8} for stage in (1, 2)
    ]
    grid = make_suite(*rows, seeds=[0, 1], decide={"constraints": []})
    records = [
        make_record(name, seed, identity={"compute_dtype": "float32" if "fp32" in name else "bfloat16",
                    "gradient_accumulation_steps": 1 if name.endswith(" 16") else 2}, **speed(100.0 + seed))
        for name, _ in rows for seed in (0, 1)
    ]  # fmt: skip
    assert rank(grid, records).factors is not None
    assert rank(grid.model_copy(update={"best_of": BestOf(micro_batch_size=[8, 16])}), records).factors is None
    alike = make_suite(*rows, ("one", zero[0]), ("two", zero[1]), seeds=[0, 1]).options
    assert not _is_grid([alike[0], alike[4], alike[5], alike[1], alike[2]], factors_of([*alike], "fp32 16"))


def test_a_card_says_who_among_equals_is_better_in_something_else() -> None:
    memory = {"peak_pss_growth_bytes": [int((1 << 30) * share) for share in (1.0, 1.01, 1.02)]}
    less = {"peak_pss_growth_bytes": [int((1 << 30) * share * 0.7) for share in (1.0, 1.01, 1.02)]}
    records = trials("base", [100.0, 101.0, 102.0], **memory) + trials("b", [100.1, 100.9, 102.0], **less)
    fastest = verdict(rank(suite_of("base", "b", seeds=3), records), "fastest")
    assert fastest.option == "base"
    assert fastest.confidence.endswith(
        " b is shown to be better in another figure, and shown to be worse by less than matters, if at all, in the "
        "rest."
    )


def test_scores_of_nothing_are_held_seed_by_seed() -> None:
    def scored(name: str, *values: float) -> list[Record]:
        return trials(name, [100.0] * 3, scores=[{"bleu": value} for value in values])

    suite = suite_of("base", "b", "c", seeds=3, constraints=["bleu >= 0.9x baseline"])
    records = scored("base", 25, 26, 0) + scored("b", 0, 0, 0) + scored("c", 25, 26, 1)
    verdicts = {found.option: found.constraints[0].verdict for found in rank(suite, records).rows}
    assert verdicts == {"base": "holds", "b": "undecided", "c": "holds"}
    nothing = scored("base", 25, 26, 27) + scored("b", 0, 0, 0)
    assert row(rank(suite, nothing), "b").constraints[0].verdict == "fails"
    limits = ["bleu >= 0.97x reference"]
    fine, lost = scored("base", 25, 26, 27), scored("base", 0, 0, 0)
    for ours, theirs, expected in ((lost, fine, "regression"), (fine, lost, "pass"), (lost, lost, "pass")):
        runs = [ReadRun(name, suite, found, {}) for name, found in (("run", ours), ("reference", theirs))]
        assert hold_gate(*runs, limits).verdict == expected


def test_a_perplexity_that_blew_up_with_every_seed_is_a_regression_unless_it_did_before() -> None:
    fine, blown = (trials("base", [100.0] * 3, final_loss=loss) for loss in (5.5, 800.0))
    suite = suite_of("base", "b", seeds=3)
    for theirs, expected in ((fine, "regression"), (blown, "inconclusive")):
        runs = [ReadRun(name, suite, found, {}) for name, found in (("run", blown), ("reference", theirs))]
        assert hold_gate(*runs, QUALITY_LIMIT).verdict == expected


def test_memory_that_did_not_grow_breaks_no_bound() -> None:
    records = trials("base", [100.0] * 3) + trials("b", [200.0] * 3, peak_pss_growth_bytes=[0, 1 << 28, 1 << 28])
    records += trials("c", [300.0] * 3, peak_pss_growth_bytes=0)
    suite = suite_of("base", "b", "c", seeds=3, constraints=["peak_memory_bytes <= 80 GiB"])
    found = {one.option: (one.constraints[0].verdict, one.eligible) for one in rank(suite, records).rows}
    assert found["b"] == ("holds", True)
    assert found["c"] == ("not_judged", True)


def test_an_objective_that_a_seed_lacks_crowns_nobody_by_the_others() -> None:
    records = trials("base", [100.0] * 3, final_loss=5.5) + trials("b", [100.0] * 3, final_loss=[5.3, 5.31, 800.0])
    ranking = rank(suite_of("base", "b", seeds=3, decide={"objective": "final_perplexity"}), records)
    assert [one.option for one in ranking.rows if one.rank] == ["base"]
    assert verdict(ranking, "best_quality").option == "base"


def test_a_tie_tells_who_of_it_is_better_than_the_baseline_and_of_whom_it_is_shown_by_how_much() -> None:
    """Two options beat the baseline and can't be told from each other; a third is too noisy to beat anybody."""
    records = trials("base", [100, 100.3, 99.8, 100.1, 99.9])
    records += trials("fast", [103, 103.2, 102.9, 103.1, 102.8])
    records += trials("near", [103.1, 102.8, 103.2, 102.7, 103.3])
    records += trials("noisy", [90, 120, 104, 117, 96])
    ranking = rank(suite_of("base", "fast", "near", "noisy"), records)
    assert "Too close to call between" in ranking.answer
    told = "near and fast are shown to be better than the baseline by more than 1.0%; noisy is not shown to be"
    assert told in ranking.answer
    pairs = [row(ranking, name).against_baseline for name in ("fast", "near", "noisy")]
    assert [pair is not None and pair.exceeds for pair in pairs] == [True, True, False]


def test_better_by_a_measured_difference_above_the_threshold_is_not_called_more() -> None:
    records = trials("base", [100, 100.5, 99.6, 100.2, 99.8])
    records += trials("a", [101.2, 101.4, 101.1, 101.6, 100.9])
    ranking = rank(suite_of("base", "a"), records)
    against = row(ranking, "a").against_baseline
    assert against is not None
    assert against.low is not None
    assert (against.decision, against.exceeds, against.low > 1.01) == ("better", False, False)
    assert "a is shown to be better than the baseline, though not by more than 1.0%." in ranking.answer
    notes = " ".join(map(str, table_notes(ranking)))
    assert "with a measured difference above 1.0%" in notes
    assert "No row is shown to be better by more than 1.0%" in notes
    assert "Ranked by tokens_per_second (more is better). " in notes


def test_what_the_rows_are_ranked_by_is_said_where_some_are_and_of_constraints_where_there_are_some() -> None:
    records = trials("base", [100, 100.5, 99.6]) + trials("a", [130, 130.5, 129.8])
    held = rank(suite_of("base", "a", seeds=3, constraints=["peak_memory_bytes <= 80 GiB"]), records)
    notes = " ".join(map(str, table_notes(held)))
    assert "Ranked by tokens_per_second (more is better) among the rows that hold every constraint." in notes
    assert "a is shown to be better by more than 1.0%" in notes
    one_seed = rank(suite_of("base", "a", seeds=1), [r for r in records if r.trial.seed == 0])
    assert all(found.rank is None for found in one_seed.rows)
    assert "Ranked by" not in " ".join(map(str, table_notes(one_seed)))


@pytest.mark.parametrize("limit", ["final_perplexity <= 1.01x baseline", "tokens_per_second >= 0.9x baseline"])
def test_one_ratio_has_one_interval_in_the_table_and_where_it_is_tested(limit: str) -> None:
    losses = [5.5, 5.503, 5.498, 5.501, 5.499]
    records = trials("base", [100, 101, 99, 100, 102], final_loss=losses)
    records += trials("a", [104, 103, 105, 102, 106], final_loss=losses[::-1])
    records += trials("b", [98, 99, 97, 96, 101], final_loss=losses[2:] + losses[:2])
    ranking = rank(suite_of("base", "a", "b", constraints=[limit]), records)
    for found in (row(ranking, "a"), row(ranking, "b")):
        metric = found.metrics[limit.partition(" ")[0]]
        assert metric.ratio_low is not None
        assert metric.ratio_high is not None
        assert f"({metric.ratio_low:.4g}x to {metric.ratio_high:.4g}x)" in found.constraints[0].detail
        speed_ratio, against = found.metrics["tokens_per_second"], found.against_baseline
        assert against is not None
        assert (speed_ratio.ratio_low, speed_ratio.ratio_high) == (against.low, against.high)


def test_a_ratio_that_its_spread_makes_meaningless_has_no_figure_anywhere() -> None:
    records = trials("base", [100, 101, 99]) + trials("wild", [20, 900, 150])
    ranking = rank(suite_of("base", "wild", seeds=3, constraints=["tokens_per_second >= 0.5x baseline"]), records)
    wild = row(ranking, "wild")
    assert wild.constraints[0].detail == "tokens_per_second against the baseline is not measurable here"
    wild = row(rank(suite_of("base", "wild", seeds=3), records), "wild")
    assert "its ratio to the baseline not measurable here" in verdict_text(wild)


def test_what_noise_hides_is_not_called_close_and_of_several_ratios_that_is_said_once() -> None:
    records = trials("base", [3100, 900, 1800]) + trials("slow", [40, 1500, 170])
    ranking = rank(suite_of("base", "slow", seeds=3), records)
    assert "Too close to call" not in ranking.answer
    told = "The seeds spread too much to tell base and slow apart by tokens/s: base 1,712 tokens/s (the baseline); "
    assert told in ranking.answer
    assert ranking.answer.count("not measurable here") == 1
    records += trials("wild", [2900, 30, 1500])
    ranking = rank(suite_of("base", "slow", "wild", seeds=3), records)
    assert "; their ratios to the baseline are not measurable here." in ranking.answer
    assert ranking.answer.count("not measurable here") == 1
    better = trials("base", [3100, 900, 1800]) + trials("slow", [40, 1500, 170], final_loss=5.0)
    quality = verdict(rank(suite_of("base", "slow", seeds=3), better), "best_quality")
    assert ", at 217 tokens/s (ratio to the baseline not measurable here)" in quality.sentence


def verdict_text(found: Row) -> str:
    return str(with_ratio(suite_of("base", found.option), METRICS["tokens_per_second"], found))


def test_a_run_that_was_interrupted_is_not_told_to_use_more_seeds() -> None:
    base, a = [100, 104, 99, 103], [101.5, 104, 103, 102]
    whole = rank(suite_of("base", "a", seeds=4), trials("base", base) + trials("a", a))
    assert "more seeds" in whole.answer
    begun = trials("base", base) + trials("a", [*a[:3], "interrupted"])
    ranking = rank(suite_of("base", "a", seeds=4), begun)
    assert ranking.answer.startswith("Incomplete, 7 of 8 trials have an outcome; so far:")
    assert "the run is incomplete: 1 trial" in " ".join(ranking.warnings)
    assert "more seeds" not in ranking.answer
    first_round = rank(suite_of("base", "a", seeds=4), trials("base", base[:1]) + trials("a", a[:1]))
    assert "one seed shows no spread" in first_round.answer
    assert "--seeds" not in first_round.answer


@pytest.mark.parametrize(
    ("objective", "kind", "how", "good", "bad"),
    [
        ("tokens_per_second", "timeout", "ran out of time", {}, {}),
        ("final_loss", "diverged", "diverged", {"final_loss": 5.3}, {"final_loss": 5.9}),
    ],
)
def test_the_seeds_that_are_left_of_an_option_judge_it_by_nothing_that_the_others_failed_for(
    objective: str, kind: str, how: str, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    suite = suite_of("base", "a", "b", decide={"objective": objective})
    base = trials("base", [100, 101, 102, 100, 99], final_loss=[5.5, 5.52, 5.49, 5.51, 5.5])
    fast = {0: 150, 1: 151, 2: 149, 3: kind, 4: kind}
    slow = {0: 70, 1: 71, 2: 70, 3: kind, 4: 70}
    ranking = rank(suite, base + trials("a", fast, **good) + trials("b", slow, **bad))
    lucky, poor = row(ranking, "a"), row(ranking, "b")
    assert lucky.against_baseline is not None
    assert poor.against_baseline is not None
    assert (lucky.rank, lucky.against_baseline.decision) == (None, "undecided")
    assert poor.against_baseline.decision == "worse"  # even its lucky seeds are
    assert f"{objective} of every seed: {how} with seeds 3, 4" in constraint_failure_lines(lucky)
    assert all(found.option != "a" for found in ranking.verdicts if found.name != "smallest_memory")
    assert row(ranking, "base").dominated_by == []
    assert "a is the" not in ranking.answer


def test_beside_the_lucky_seeds_of_a_baseline_nothing_is_worse() -> None:
    limit = "tokens_per_second >= 0.99x baseline"
    records = trials("base", {0: 100, 1: 101, 2: 99, 3: "timeout", 4: "timeout"})
    records += trials("a", [90, 91, 90, 92, 91]) + trials("b", [130, 131, 130, 132, 131])
    ranking = rank(suite_of("base", "a", "b", constraints=[limit]), records)
    slower, faster = row(ranking, "a"), row(ranking, "b")
    assert slower.against_baseline is not None
    assert faster.against_baseline is not None
    assert (slower.against_baseline.decision, slower.constraints[0].verdict) == ("undecided", "undecided")
    assert (faster.against_baseline.decision, faster.constraints[0].verdict) == ("better", "holds")
    assert "The baseline base ran out of time with seeds 3, 4: nothing is called worse than its other seeds." in (
        ranking.answer
    )


def test_out_of_memory_and_a_gpu_that_others_used_say_nothing_of_the_other_seeds() -> None:
    records = trials("base", [100, 101, 102, 100, 99]) + trials("a", {0: 150, 1: 151, 2: 149, 3: "oom", 4: "oom"})
    assert row(rank(suite_of("base", "a"), records), "a").rank == 1
    shared = [make_failure("a", seed, "timeout", meters=make_meters(SHARED)) for seed in (3, 4)]
    assert row(rank(suite_of("base", "a"), records[:8] + shared), "a").rank == 1

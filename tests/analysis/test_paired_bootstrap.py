"""The paired bootstrap over test sentences: against sacrebleu, and by its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sentences import hypotheses, measured, references
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest, _compute_p_value, estimate_ci

from selectbench.analysis.scores import RESAMPLES, SEED, Paired, Scores, corpus_score, paired, resampled, table_of
from selectbench.record.record import Sentences
from selectbench.suite.job import SCORES
from selectbench.worker.evaluation import score

TRUTH = references(40)
LIBRARY = {"bleu": BLEU, "chrf": CHRF}
PRINTED = {"bleu": "BLEU", "chrf": "chrF2"}
TEXTS = st.lists(st.text(alphabet="ab c.,é\u3000", max_size=12), min_size=1, max_size=6)


def table(name, texts, truth):
    return table_of(name, measured(texts, truth, [name])["sentences"])


def table_of_shares(shares):
    return table_of("rouge_l", Sentences(references_sha256="", shares={"rouge_l": list(shares)}))


def drawn(name, texts, truth=TRUTH) -> Scores:
    return resampled(name, table(name, texts, truth))


# What is stored, and the scores made of it


@pytest.mark.parametrize("name", LIBRARY)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_sentences_hold_what_sacrebleu_sums(name, data):
    texts = data.draw(TEXTS)
    truth = data.draw(st.lists(st.text(alphabet="ab c.,é", max_size=12), min_size=len(texts), max_size=len(texts)))
    found = table(name, texts, truth)
    assert found.tolist() == LIBRARY[name]()._extract_corpus_statistics(texts, [truth])
    assert corpus_score(name, found) == pytest.approx(LIBRARY[name]().corpus_score(texts, [truth]).score, abs=1e-9)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("wrong", [0.0, 0.02, 0.3, 0.9])
def test_the_score_of_the_sentences_is_the_score(name, wrong):
    texts = hypotheses(TRUTH, wrong)
    found = score(name, texts, TRUTH, texts)
    assert corpus_score(name, table(name, texts, TRUTH)) == pytest.approx(found.value, abs=1e-9)


# Against sacrebleu


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize("wrong", [(0.30, 0.32), (0.3, 0.45)])
def test_the_draws_are_those_of_sacrebleu(name, wrong):
    """Its p, by its own formula from our draws, is the one that it prints, and so are its mean and interval."""
    first, second = (hypotheses(TRUTH, share, seed) for seed, share in enumerate(wrong, start=1))
    _, found = PairedTest(
        [("baseline", first), ("option", second)], {name: LIBRARY[name]()}, [TRUTH], test_type="bs"
    )()
    theirs, ours = found[PRINTED[name]]
    mine, base = drawn(name, second), drawn(name, first)
    assert (base.whole, mine.whole) == pytest.approx((theirs.score, ours.score), abs=1e-9)
    mean, half = estimate_ci(np.array(mine.drawn))
    assert (mean, half) == pytest.approx((ours.mean, ours.ci), abs=1e-4)
    apart = np.abs(np.array(mine.drawn) - np.array(base.drawn))
    one_sided = _compute_p_value(apart - apart.mean(), abs(mine.whole - base.whole))
    assert one_sided == ours.p_value
    assert paired([mine], [base]).difference == pytest.approx(ours.score - theirs.score, abs=1e-8)


def test_p_is_that_of_both_sides():
    """sacrebleu's asks for one: of values that are as often higher as lower it is about half as large."""
    draw = np.random.default_rng(3)
    shares = draw.random(200)
    mine = resampled("rouge_l", table_of_shares(0.5 * shares + 0.25))
    base = resampled("rouge_l", table_of_shares(0.5 * draw.permutation(shares) + 0.22))
    apart = np.abs(np.array(mine.drawn) - np.array(base.drawn))
    theirs = _compute_p_value(apart - apart.mean(), abs(mine.whole - base.whole))
    ours = paired([mine], [base]).p
    assert 0.02 < ours < 0.2
    assert ours == pytest.approx(2 * theirs, rel=0.35)


def test_p_and_interval_by_hand():
    """Of 1,000 differences, sorted: 24 of them at most 0 leave 0 out of the interval, 25 do not."""
    for below in (24, 25):
        values = [-1.0] * below + [float(one) for one in range(1, RESAMPLES - below + 1)]
        found = paired([Scores(5.0, values)], [Scores(2.0, [0.0] * RESAMPLES)])
        assert found.p == 2 * (below + 1) / 1001
        assert (found.p <= 0.05) is (found.low > 0) is (below == 24)
        assert (found.difference, found.high) == (3.0, 1000.0 - below - 24)


# Laws


@pytest.mark.parametrize("name", SCORES)
def test_an_option_against_itself(name):
    one = drawn(name, hypotheses(TRUTH, 0.4))
    assert paired([one], [one]) == Paired(0.0, 0.0, 0.0, 1.0)
    other = drawn(name, hypotheses(TRUTH, 0.4, seed=7))
    assert paired([one, other], [other, one]) == Paired(0.0, 0.0, 0.0, 1.0), "what one seed gains the other loses"


def test_what_rounding_leaves_is_no_difference():
    ours, theirs = Scores(0.1 + 0.2, [0.1 + 0.2] * RESAMPLES), Scores(0.3, [0.3] * RESAMPLES)
    assert ours != theirs
    assert paired([ours], [theirs]) == Paired(0.0, 0.0, 0.0, 1.0)


SHARES = st.lists(st.floats(0, 1), min_size=8, max_size=8)


@given(ours=SHARES, theirs=SHARES, seeds=st.integers(1, 2))
@settings(max_examples=15, deadline=None)
def test_swapping_the_options_flips_the_sign(ours, theirs, seeds):
    a, b = (resampled("rouge_l", table_of_shares(shares)) for shares in (ours, theirs))
    found, swapped = paired([a] * seeds, [b] * seeds), paired([b] * seeds, [a] * seeds)
    assert swapped == Paired(-found.difference, -found.high, -found.low, found.p)
    assert found.low <= found.high
    assert 2 / 1001 <= found.p <= 1
    assert (found.p <= 0.05) is (found.low > 0 or found.high < 0)


@given(order=st.permutations(range(12)))
@settings(max_examples=8, deadline=None)
def test_the_whole_score_does_not_depend_on_the_order_of_sentences(order):
    for name in SCORES:
        rows = table(name, hypotheses(TRUTH, 0.3)[:12], TRUTH[:12])
        assert corpus_score(name, rows[list(order)]) == corpus_score(name, rows)


def test_sentences_that_are_all_equal_show_the_same_in_every_draw():
    truth = ["een twee drie vier vijf"] * 30
    worse = ["een twee drie vier zes"] * 30
    for name in ("bleu", "chrf", "token_f1"):
        good, bad = drawn(name, truth, truth), drawn(name, worse, truth)
        found = paired([bad], [good])
        assert found.low == found.high == found.difference < 0
        assert found.p == 2 / 1001
        assert paired([bad], [bad]) == Paired(0.0, 0.0, 0.0, 1.0)


def test_the_statistic_is_the_mean_over_seeds():
    ours = [drawn("bleu", hypotheses(TRUTH, 0.3, seed)) for seed in (1, 2)]
    theirs = [drawn("bleu", hypotheses(TRUTH, 0.5, seed)) for seed in (3, 4)]
    found = paired(ours, theirs)
    assert found.difference == pytest.approx(
        math.fsum(one.whole for one in ours) / 2 - math.fsum(one.whole for one in theirs) / 2, abs=1e-8
    )
    draws = [math.fsum(o.drawn[i] - t.drawn[i] for o, t in zip(ours, theirs, strict=True)) / 2 for i in range(1000)]
    assert found.low == pytest.approx(sorted(draws)[24], abs=1e-8)
    assert found.high == pytest.approx(sorted(draws)[975], abs=1e-8)


def test_the_same_seed_is_the_same_draws():
    """Of numpy's generator: a kept report depends on them."""
    found = resampled("rouge_l", table_of_shares(number / 100 for number in range(30))).drawn
    assert [round(one * 30) for one in found[:4]] == FIRST_DRAWS


def test_draws_of_many_sentences_are_made_in_blocks_of_one_stream():
    shares = np.random.default_rng(1).random(600)
    found = resampled("rouge_l", table_of_shares(shares)).drawn
    at_once = np.random.default_rng(SEED).choice(600, size=(RESAMPLES, 600))
    assert found == pytest.approx(100 * shares[at_once].mean(axis=1), abs=1e-9)


FIRST_DRAWS = [466, 335, 540, 351]

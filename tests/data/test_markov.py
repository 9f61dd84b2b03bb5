"""A source of known entropy: the stated rate is what long walks show, and the truth is what a hand computes."""

import math
import subprocess
import sys

import numpy as np
import pytest
from data.made import in_cache
from hypothesis import given
from hypothesis import strategies as st
from processes import start

from selectbench.data.prepare import prepare
from selectbench.data.sources import Source, emit, make_source
from selectbench.suite.sources import MarkovSource

SPECS = st.builds(
    MarkovSource, markov=st.integers(2, 6), vocab_size=st.integers(6, 60), branches=st.integers(2, 6),
    train_tokens=st.just(1000), seed=st.integers(0, 10**6),
)  # fmt: skip
SPEC = MarkovSource(markov=16, vocab_size=32, branches=4, train_tokens=200_000)
make_source(SPEC)  # the first imports scipy, for which a drawn example has no time


def transitions(source):
    """Matrix of the probability of the next state."""
    matrix = np.zeros((len(source.tokens),) * 2)
    for state, (tokens, chances) in enumerate(zip(source.tokens, source.probabilities, strict=True)):
        for token, chance in zip(tokens, chances, strict=True):
            matrix[state, source.next_state[token]] += chance
    return matrix


@given(SPECS)
def test_each_state_emits_distinct_tokens_with_probabilities_that_sum_to_one(spec):
    source = make_source(spec)
    assert len(source.tokens) == spec.markov
    for tokens, chances in zip(source.tokens, source.probabilities, strict=True):
        assert len(set(tokens)) == spec.branches == len(chances)
        assert math.fsum(chances) == pytest.approx(1, abs=1e-12)
        assert max(tokens) < spec.vocab_size
        weights = 1 / np.arange(1, spec.branches + 1)
        assert sorted(chances, reverse=True) == pytest.approx(weights / weights.sum())


@given(SPECS)
def test_the_stationary_distribution_stays_as_it_is(spec):
    source = make_source(spec)
    share = np.array(source.stationary())
    assert share.sum() == pytest.approx(1, abs=1e-12)
    assert share @ transitions(source) == pytest.approx(share, abs=1e-12)


@given(SPECS)
def test_from_the_start_every_state_that_is_reached_leads_back(spec):
    """Else one walk would settle in a part of the source whose rate is another than the stated one."""
    source = make_source(spec)
    reach = np.linalg.matrix_power((transitions(source) > 0) + np.eye(spec.markov), spec.markov) > 0
    reached = np.flatnonzero(reach[source.start])
    assert reach[reached, source.start].all()
    assert (np.array(source.stationary())[reached] > 0).all()


def test_a_source_of_two_parts_has_the_rate_of_the_part_it_starts_in():
    """Two states that never meet: one tosses a fair coin, the other a biased one."""
    tokens, next_state = [[0, 1], [2, 3]], [0, 0, 1, 1]
    fair, biased = [0.5, 0.5], [0.9, 0.1]
    rates = [Source(tokens, [fair, biased], next_state, start).entropy_rate() for start in (0, 1)]
    assert rates == pytest.approx([math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.1)])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("states", "vocab_size", "branches"), [(2, 23, 5), (16, 32, 4), (40, 40, 2)])
def test_the_rate_is_the_mean_of_a_long_walk_within_four_standard_errors(states, vocab_size, branches, seed):
    """Of given seeds: among thousands of drawn ones some walk would be farther off by chance."""
    source = make_source(MarkovSource(markov=states, vocab_size=vocab_size, branches=branches, seed=seed))
    _, nats = emit(source, 40_000, [seed, 9])
    blocks = nats.reshape(200, 200).mean(axis=1)  # tokens near each other depend on each other
    error = blocks.std(ddof=1) / math.sqrt(len(blocks))
    assert abs(nats.mean() - source.entropy_rate()) <= 4 * error + 1e-9


def test_visits_of_a_long_walk_follow_the_stationary_distribution():
    source = make_source(SPEC)
    tokens, _ = emit(source, 200_000, [0, 9])
    visits = np.bincount(np.array(source.next_state)[tokens], minlength=SPEC.markov) / len(tokens)
    assert visits == pytest.approx(source.stationary(), abs=0.01)


def test_the_truth_is_minus_log_of_each_transitions_probability():
    prepared, source = prepare(SPEC, None), make_source(SPEC)
    state = source.start
    for token, nats in zip(prepared.heldout().tolist(), prepared.truth_of_heldout().tolist(), strict=True):
        chance = source.probabilities[state][source.tokens[state].index(token)]
        assert nats == -math.log(chance)
        state = source.next_state[token]
    assert prepared.truth_of_heldout().mean() == pytest.approx(prepared.entropy_rate, rel=0.02)


def test_what_is_seen_of_the_next_token_is_its_probability():
    """Counted over training tokens: the token before names the state."""
    prepared, source = prepare(SPEC, None), make_source(SPEC)
    tokens = prepared.train().astype(int)
    states = np.array(source.next_state)[tokens[:-1]]
    for state in set(states.tolist()):
        seen = np.bincount(tokens[1:][states == state], minlength=SPEC.vocab_size)
        assert set(np.flatnonzero(seen)) <= set(source.tokens[state])
        shares = seen[source.tokens[state]] / seen.sum()
        assert shares == pytest.approx(source.probabilities[state], abs=5 / math.sqrt(seen.sum()))


def test_the_same_seed_gives_the_same_tokens_and_another_others(tmp_path, monkeypatch):
    first = prepare(SPEC, None)
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "elsewhere"))
    second = prepare(SPEC, None)
    assert first.facts() == second.facts()
    assert first.folder != second.folder
    assert first.train().tolist() == second.train().tolist()
    assert first.heldout().tolist() == second.heldout().tolist()
    other = prepare(SPEC.model_copy(update={"seed": 1}), None)
    assert other.key != first.key
    assert other.train().tolist() != first.train().tolist()


def test_a_longer_walk_begins_as_a_shorter_one():
    source = make_source(SPEC)
    assert emit(source, 150_000, [1])[0][:5000].tolist() == emit(source, 5000, [1])[0].tolist()


def test_sizes_and_facts():
    prepared = prepare(SPEC, None)
    assert (prepared.kind, prepared.train_tokens, prepared.heldout_tokens) == ("markov", 200_000, 10_000)
    assert prepared.vocab_size == 32
    assert 0 < prepared.entropy_rate < math.log(4)
    assert prepared.bytes_of_heldout() is None
    small = prepare(MarkovSource(markov=2, train_tokens=1000), None)
    assert small.heldout_tokens == 1000


def test_two_runs_at_once_agree():
    code = (
        "from selectbench.data.prepare import prepare; from selectbench.suite.sources import MarkovSource; "
        "input(); "
        "p = prepare(MarkovSource(markov=8, train_tokens=100_000), None); print(p.key, p.train().sum())"
    )
    runs = [start([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    said = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(said) == 1
    assert in_cache() == [said.pop().split()[0]]

"""A source whose entropy rate is known: tokens that it emits, with the probability of each."""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selectbench.suite.data import MarkovSource


@dataclass(frozen=True)
class Source:
    """States that emit tokens; a token names the state that follows, so the token before tells the state."""

    tokens: list[list[int]]
    """Of each state, those that it can emit."""
    probabilities: list[list[float]]
    """Of each state's tokens."""
    next_state: list[int]
    """By token."""

    def entropy_rate(self) -> float:
        """Nats per token: the states' entropies weighed by how often they are visited in the long run.

        Source: Cover and Thomas 2006, Elements of Information Theory, theorem 4.2.4.
        """
        visits = self._stationary()
        entropies = [-math.fsum(p * math.log(p) for p in own) for own in self.probabilities]
        return math.fsum(v * h for v, h in zip(visits, entropies, strict=True))

    def _stationary(self) -> list[float]:
        """By repeated steps of a walk that stays where it is half of the time, so that it can't alternate."""
        states = len(self.tokens)
        share = [1 / states] * states
        for _ in range(10_000):
            after = [value / 2 for value in share]
            for state, value in enumerate(share):
                for token, p in zip(self.tokens[state], self.probabilities[state], strict=True):
                    after[self.next_state[token]] += value * p / 2
            if max(abs(a - b) for a, b in zip(after, share, strict=True)) < 1e-15:
                break
            share = after
        return share


def make_source(spec: MarkovSource) -> Source:
    """Drawn from the seed: each state emits `branches` tokens, with probabilities as 1, 1/2, 1/3, ... in some order."""
    draw = np.random.default_rng([spec.seed, 1])
    weights = 1 / np.arange(1, spec.branches + 1)
    tokens = [
        sorted(draw.choice(spec.vocab_size, spec.branches, replace=False).tolist()) for _ in range(spec.markov)
    ]
    probabilities = [draw.permutation(weights / weights.sum()).tolist() for _ in range(spec.markov)]
    next_state = draw.integers(spec.markov, size=spec.vocab_size).tolist()
    return Source(tokens, probabilities, next_state)


def emit(source: Source, count: int, seed: list[int]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64]]:
    """So many tokens of one walk, and the nats of each, -log of its probability given the token before it."""
    cumulative = [list(itertools.accumulate(own)) for own in source.probabilities]
    nats = [[-math.log(p) for p in own] for own in source.probabilities]
    chances = np.random.default_rng(seed).random(count).tolist()
    state, last = 0, [len(own) - 1 for own in source.tokens]
    tokens, surprise = np.empty(count, np.uint16), np.empty(count)
    for number, chance in enumerate(chances):
        branch = min(bisect.bisect_right(cumulative[state], chance), last[state])
        token = source.tokens[state][branch]
        tokens[number], surprise[number] = token, nats[state][branch]
        state = source.next_state[token]
    return tokens, surprise

"""A source whose entropy rate is known: tokens that it emits, with the probability of each."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selectbench.suite.data import MarkovSource

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Source:
    """States that emit tokens; a token names the state that follows, so the token before tells the state."""

    tokens: list[list[int]]
    """Of each state, those that it can emit."""
    probabilities: list[list[float]]
    """Of each state's tokens."""
    next_state: list[int]
    """By token."""
    start: int
    """State of the beginning. From it a walk comes everywhere it can go again and again: there is one long run."""

    def entropy_rate(self) -> float:
        """Nats per token: the states' entropies weighed by how often they are visited in the long run.

        Source: Cover and Thomas 2006, Elements of Information Theory, theorem 4.2.4.
        """
        visits = self.stationary()
        entropies = [-math.fsum(p * math.log(p) for p in own) for own in self.probabilities]
        return math.fsum(v * h for v, h in zip(visits, entropies, strict=True))

    def stationary(self) -> list[float]:
        """Share of the steps that a long walk spends in each state.

        By repeated steps of a walk that stays where it is half of the time, so that it can't alternate.
        """
        states = len(self.tokens)
        to = np.array(self.next_state)[np.array(self.tokens)].ravel()
        p = np.array(self.probabilities)
        share = np.zeros(states)
        share[self.start] = 1.0
        for _ in range(100_000):
            after = (share + np.bincount(to, (share[:, None] * p).ravel(), states)) / 2
            moved, share = np.abs(after - share).sum(), after / after.sum()
            if moved < 1e-14:
                break
        found: list[float] = share.tolist()
        return found


def make_source(spec: MarkovSource) -> Source:
    """Drawn from the seed: a state emits `branches` tokens, with probabilities as 1, 1/2, 1/3, ... in some order.

    The tokens name all states equally often, as far as there are tokens.
    """
    draw = np.random.default_rng([spec.seed, 1])
    weights = 1 / np.arange(1, spec.branches + 1)
    tokens = [
        sorted(draw.choice(spec.vocab_size, spec.branches, replace=False).tolist()) for _ in range(spec.markov)
    ]
    probabilities = [draw.permutation(weights / weights.sum()).tolist() for _ in range(spec.markov)]
    next_state = draw.permutation(np.arange(spec.vocab_size) % spec.markov).tolist()
    return Source(tokens, probabilities, next_state, _recurrent(tokens, next_state))


def _recurrent(tokens: list[list[int]], next_state: list[int]) -> int:
    """A state to which every state that can be reached from it leads back.

    A random graph may have places that are left for ever, or several that are never left: from such a beginning
    the rate of one walk would not be the one that is stated.
    """
    after = [{next_state[token] for token in own} for own in tokens]
    before: list[set[int]] = [set() for _ in tokens]
    for state, following in enumerate(after):
        for each in following:
            before[each].add(state)
    start = 0
    while one_way := _reached(start, after) - _reached(start, before):
        start = min(one_way)  # from there the beginning can't be reached: fewer states are left each time
    return start


def _reached(start: int, edges: list[set[int]]) -> set[int]:
    seen, waiting = {start}, [start]
    while waiting:
        new = edges[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def emit(source: Source, count: int, seed: list[int]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64]]:
    """So many tokens of one walk, and the nats of each, -log of its probability given the token before it."""
    cumulative = [list(itertools.accumulate(own)) for own in source.probabilities]
    nats = [[-math.log(p) for p in own] for own in source.probabilities]
    state, last = source.start, [len(own) - 1 for own in source.tokens]
    tokens, surprise = np.empty(count, np.uint16), np.empty(count)
    for number, chance in enumerate(_chances(count, seed)):
        branch = min(bisect.bisect_right(cumulative[state], chance), last[state])
        token = source.tokens[state][branch]
        tokens[number], surprise[number] = token, nats[state][branch]
        state = source.next_state[token]
    return tokens, surprise


def _chances(count: int, seed: list[int]) -> Iterator[float]:
    """Numbers from 0 to 1, a chunk in memory at a time: as Python's own they take four times their room."""
    draw = np.random.default_rng(seed)
    for begun in range(0, count, _CHUNK):
        yield from draw.random(min(_CHUNK, count - begun)).tolist()

"""What an option took until its held-out loss was the baseline's final one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from selectbench.analysis.comparison import ToLoss
from selectbench.analysis.cost import usd_for
from selectbench.analysis.energy import joules_per_token
from selectbench.analysis.formulas import finite_of_each
from selectbench.analysis.observed import Observed
from selectbench.analysis.summary import Summary, mean

RULE = (
    "Time, tokens, energy and money to the baseline's loss run until an option's held-out loss is the "
    "baseline's final "
    "one with the same seed, plus the share of the loss that the suite calls too small to matter; for the baseline "
    "too. Between evaluations the loss is taken to fall in a straight line; where it is there at the first "
    "evaluation already, that one counts. Seconds are of training alone. An option that gets there early does "
    "so in "
    "the midst of its own schedule: one made for fewer steps would get there otherwise."
)


class _Reached(NamedTuple):
    """Where one trial was when its loss was low enough."""

    seconds: float
    tokens: float
    observed: Observed


def to_loss(summary: Summary) -> ToLoss | None:
    """Means over the seeds that the baseline completed too; trials on throttled or shared GPUs are left out."""
    there = _reached(summary)
    if not there and not summary.not_reached:
        return None
    every = {} if summary.not_reached else there
    means = {name: _mean(every, read) for name, read in PRICES.items()}
    return ToLoss(
        seconds=means["seconds"], tokens=means["tokens"], joules=means["joules"], usd=means["usd"],
        reached=list(there), not_reached=summary.not_reached,
    )  # fmt: skip


def _reached(summary: Summary) -> dict[int, _Reached]:
    """Of the seeds that got there, those whose time counts."""
    return {
        seed: _Reached(*place, summary.observed[seed])
        for seed, place in summary.reached.items()
        if place is not None and seed in summary.values["training_seconds"]
    }


def price_by_seed(summary: Summary, price: str) -> dict[int, float]:
    """`seconds`, `tokens`, `joules` or `usd` of each seed that reached the loss and tells it."""
    return finite_of_each(PRICES[price], _reached(summary))


def _joules(reached: _Reached) -> float | None:
    each = joules_per_token(reached.observed)
    return None if each is None else each * reached.tokens


def _usd(reached: _Reached) -> float | None:
    return usd_for(reached.observed, seconds=lambda: reached.seconds, tokens=reached.tokens)


PRICES: dict[str, Callable[[_Reached], float | None]] = {
    "seconds": lambda reached: reached.seconds, "tokens": lambda reached: reached.tokens,
    "joules": _joules, "usd": _usd,
}  # fmt: skip


def _mean(reached: Mapping[int, _Reached], read: Callable[[_Reached], float | None]) -> float | None:
    """None where one is not known."""
    known = finite_of_each(read, reached)
    return mean(list(known.values())) if len(known) == len(reached) else None

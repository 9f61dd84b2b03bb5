"""What an option took until its held-out loss was the baseline's final one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from selectbench.analysis.comparison import ToLoss
from selectbench.analysis.cost import usd_for
from selectbench.analysis.energy import joules_per_token
from selectbench.analysis.formulas import finite
from selectbench.analysis.observed import Observed
from selectbench.analysis.summary import Summary, mean
from selectbench.record.record import EvaluationPoint
from selectbench.suite.suite import Option, Suite

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


def to_loss(suite: Suite, summary: Summary, baseline: Summary) -> ToLoss | None:
    """Means over the seeds that the baseline completed too; trials on throttled or shared GPUs are left out."""
    found = _by_seed(suite, summary, baseline)
    if not found or other_tokens(suite, summary.option):
        return None
    there = {seed: reached for seed, reached in found.items() if reached is not None}
    every = list(there.values()) if len(there) == len(found) else []
    means = {name: _mean(every, read) for name, read in PRICES.items()}
    return ToLoss(
        seconds=means["seconds"], tokens=means["tokens"], joules=means["joules"], usd=means["usd"],
        reached=list(there), not_reached=[seed for seed in found if seed not in there],
    )  # fmt: skip


def other_tokens(suite: Suite, option: Option) -> bool:
    """Whether a token is another thing to the option than to the baseline."""
    baseline = suite.option(suite.baseline).choices
    return suite.job.of(option.choices).tokenizer != suite.job.of(baseline).tokenizer


def price_by_seed(suite: Suite, summary: Summary, baseline: Summary, price: str) -> dict[int, float]:
    """`seconds`, `tokens`, `joules` or `usd` of each seed that reached the loss and tells it."""
    found = {seed: r for seed, r in _by_seed(suite, summary, baseline).items() if r is not None}
    values = {seed: finite(PRICES[price], r) for seed, r in found.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _by_seed(suite: Suite, summary: Summary, baseline: Summary) -> dict[int, _Reached | None]:
    margin, targets = 1 + suite.decide.threshold("final_loss"), baseline.values["final_loss"]
    seeds = [seed for seed in summary.values["training_seconds"] if seed in targets]
    seeds = [seed for seed in seeds if summary.completed[seed].evaluation_curve]
    found = {seed: _reached(summary, seed, targets[seed] * margin) for seed in seeds}
    diverged = [seed for seed, f in summary.failed.items() if f.kind == "diverged" and seed in targets]
    return {**found, **dict.fromkeys(diverged if found else [])}


def _reached(summary: Summary, seed: int, target: float) -> _Reached | None:
    place = crossing(summary.completed[seed].evaluation_curve, target)
    return None if place is None else _Reached(place[0], place[1], summary.observed[seed])


def crossing(curve: Sequence[EvaluationPoint], target: float) -> tuple[float, float] | None:
    """(training seconds, tokens) at which the loss first is at most `target`; None where it never is.

    Linear between evaluations; the first evaluation where the loss is there already.
    """
    points = sorted(curve, key=lambda point: point.step)
    for number, point in enumerate(points):
        if point.loss > target:
            continue
        if number == 0:
            return point.training_seconds, float(point.tokens)
        before = points[number - 1]
        share = (before.loss - target) / (before.loss - point.loss)
        seconds = before.training_seconds + share * (point.training_seconds - before.training_seconds)
        return seconds, before.tokens + share * (point.tokens - before.tokens)
    return None


def _joules(reached: _Reached) -> float | None:
    each = joules_per_token(reached.observed)
    return None if each is None else each * reached.tokens


def _usd(reached: _Reached) -> float | None:
    return usd_for(reached.observed, seconds=lambda: reached.seconds, tokens=reached.tokens)


PRICES: dict[str, Callable[[_Reached], float | None]] = {
    "seconds": lambda reached: reached.seconds, "tokens": lambda reached: reached.tokens,
    "joules": _joules, "usd": _usd,
}  # fmt: skip


def _mean(reached: Sequence[_Reached], read: Callable[[_Reached], float | None]) -> float | None:
    """None where one is not known."""
    values = [finite(read, r) for r in reached]
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None

"""What is asked of a ranking besides its objective: the questions, and which rows may answer each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from selectbench import units
from selectbench.analysis import ranks
from selectbench.analysis.comparison import VerdictName
from selectbench.analysis.contest import Contest
from selectbench.analysis.pareto import counts, has_diverged
from selectbench.analysis.row import Row
from selectbench.analysis.statistics import Blocks, make_blocks
from selectbench.analysis.summary import Summary, mean, other_tokens
from selectbench.analysis.to_loss import price_by_seed
from selectbench.suite.constraint import parse_constraint
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS
from selectbench.suite.suite import Suite

_PRICES: dict[str, tuple[str, Callable[[float | None], str], str]] = {
    "usd": ("Cheapest", units.usd, "money"), "joules": ("Least energy", units.joules, "energy"),
    "seconds": ("Soonest", units.seconds, "time"),
}  # fmt: skip


@dataclass(frozen=True)
class Told:
    """An option's figure, with its unit, beside the baseline's."""

    figure: str
    ratio: str = ""
    """Empty: the baseline's own, or not known."""
    interval: str = ""
    is_one: bool = False
    """Whether the ratio is shown as 1."""
    is_baseline: bool = False

    def __str__(self) -> str:
        """`200 tokens/s, 1.25x the baseline (1.20x to 1.31x)`."""
        if self.is_baseline:
            return f"{self.figure} (the baseline)"
        ratio = f", {self.ratio} the baseline" if self.ratio else ""
        return f"{self.figure}{ratio}{f' ({self.interval})' if self.interval else ''}"

    def looks_like(self, other: Told) -> bool:
        """Whether a reader would see the same figure twice; a ratio of 1 says no more than the baseline's none."""
        ratios = ["" if one.is_one else one.ratio for one in (self, other)]
        return self.figure == other.figure and ratios[0] == ratios[1]


@dataclass(frozen=True)
class Question:
    """One way of asking which option is best."""

    name: VerdictName
    title: str
    rows: Sequence[Row]
    """Those that qualify."""
    blocks: Blocks
    threshold: float
    more_is_better: bool
    show: Callable[[str, float], Told]
    """Option and mean value to a figure with its unit."""
    values: Mapping[str, float]
    """Means, by option."""
    metric: str | None = None
    """None: none of a trial's own."""
    is_objective: bool = False
    open: Sequence[str] = ()
    """Options that may qualify: a constraint of theirs is undecided."""


def questions(
    suite: Suite, rows: Sequence[Row], summaries: Mapping[str, Summary], contest: Contest
) -> list[Question]:
    """Those that the run has figures for. `rows` in the order of the ranking."""
    equal = [row for row in rows if row.eligible and row.n]
    within = [row for row in rows if _within_limits(row)]
    learnt = [row for row in within if not has_diverged(row)]
    words = _at_equal_quality(suite, equal)
    memory = "peak_device_memory_bytes" if all(counts(r, "peak_device_memory_bytes") for r in equal) else None
    apart = any(other_tokens(suite, summary.option) for summary in summaries.values())
    quality = "bits_per_byte" if apart else "final_loss"
    quality = suite.decide.objective if METRICS[suite.decide.objective].quality else quality
    speed = "bytes_per_second" if apart else "tokens_per_second"
    found = [
        _by_metric("fastest", f"Fastest{words}", equal, contest, speed),
        None
        if ranks.share_main_memory(suite.device, list(summaries.values()))
        else _by_metric(
            "smallest_memory", f"Smallest memory{words}", equal, contest, memory or "peak_memory_bytes"
        ),
        None if apart else _to_loss(within, summaries),
        _by_metric("best_quality", "Best quality", learnt, contest, quality),
    ]
    objective = suite.decide.objective
    return [replace(q, open=_open(q, rows), is_objective=q.metric == objective) for q in found if q]


def _within_limits(row: Row) -> bool:
    """Whether it did the job and holds every limit that is not on quality."""
    limits = [c for c in row.constraints if not METRICS[parse_constraint(c.constraint).metric].quality]
    done = row.n and row.identity.comparable and not row.control
    return bool(done) and all(c.verdict in ("holds", "not_judged") for c in limits)


def _open(question: Question, rows: Sequence[Row]) -> list[str]:
    """Rows that would qualify if it were known that they hold their constraints."""
    return [
        row.option for row in rows
        if row.option not in question.values and row.n and row.identity.comparable and not row.control
        and not row.constraint_failures and any(c.verdict == "undecided" for c in row.constraints)
        and not (question.name == "best_quality" and has_diverged(row))
    ]  # fmt: skip


def _at_equal_quality(suite: Suite, rows: Sequence[Row]) -> str:
    """What may be said of quality in the titles."""
    if suite.quick or not suite.job.evaluates:
        return " (quality was not measured)"
    held = [c for row in rows for c in row.constraints if METRICS[parse_constraint(c.constraint).metric].quality]
    if any(c.verdict != "holds" for c in held):
        return " (equal quality could not be judged)"
    asked = any(METRICS[parse_constraint(text).metric].quality for text in suite.decide.constraints)
    return " at equal quality" if asked else " (whatever the quality: no constraint is on it)"


def _by_metric(
    name: VerdictName, title: str, rows: Sequence[Row], contest: Contest, metric_name: str
) -> Question | None:
    known = [row for row in rows if counts(row, metric_name) and not _has_gap(row, metric_name)]
    if rows and not known:
        return None
    metric = METRICS[metric_name]

    def show(option: str, value: float) -> Told:
        return _told(contest, next(row for row in known if row.option == option), metric_name, value)

    values = {row.option: value for row in known if (value := row.metrics[metric_name].value) is not None}
    threshold = contest.suite.threshold(metric_name)
    return Question(
        name,
        title,
        known,
        contest.blocks[metric_name],
        threshold,
        metric.better == "more",
        show,
        values,
        metric_name,
    )


def _has_gap(row: Row, metric: str) -> bool:
    """Whether seeds that completed lack the figure, which the others would flatter."""
    found = row.metrics[metric]
    return METRICS[metric].quality and found.n + len(found.left_out) < row.n


def _told(contest: Contest, row: Row, metric_name: str, value: float) -> Told:
    metric, found = METRICS[metric_name], row.metrics[metric_name]
    shown = f"{metric.show(value)}{metric.after_figure}"
    ratio, ends = units.ratio_and_range(found.ratio_to_baseline, found.ratio_low, found.ratio_high)
    one, _ = units.ratio_and_range(1.0, found.ratio_low, found.ratio_high)
    if row.option == contest.baseline.name:
        return Told(shown, is_baseline=True)
    return Told(shown) if found.ratio_to_baseline is None else Told(shown, ratio, ends, is_one=ratio == one)


def _to_loss(rows: Sequence[Row], summaries: Mapping[str, Summary]) -> Question | None:
    """By money where it is known, else by energy, else by time."""
    there = [row for row in rows if row.to_loss and row.to_loss.seconds is not None]
    for price, (title, show, noun) in _PRICES.items():
        known = [row for row in there if getattr(row.to_loss, price) is not None]
        if known:
            found = {r.option: price_by_seed(summaries[r.option], price) for r in known}
            values = {
                option: average for option, v in found.items() if (average := mean(list(v.values()))) is not None
            }
            return Question(
                "cheapest", f"{title} to the baseline's loss", known, make_blocks(found), 0.01, False,
                lambda _, value, show=show, noun=noun: Told(f"{show(value)} of {noun}"), values,  # type: ignore[misc]
                SECONDS_TO_LOSS if price == "seconds" else None,
            )  # fmt: skip
    return None

"""What ranking.json says of differences between options. Every key is documented here."""

from __future__ import annotations

from typing import Any, Literal

from selectbench.analysis.shown import Number, Shown

Decision = Literal["better", "worse", "no_difference", "undecided"]
Spread = Literal["pooled", "moderated", "own", "none", "unknown"]
VerdictName = Literal["fastest", "smallest_memory", "cheapest", "best_quality"]


class Settling(Shown):
    """What would probably settle an open question."""

    seeds: int
    """More seeds for every option."""
    seconds: Number | None
    """Expected time of these rounds; None: not known."""


class Comparison(Shown):
    """One option's metric against another's, over the seeds that both completed."""

    against: str
    """The other option."""
    ratio: Number | None
    """Geometric mean, over those seeds, of this option's value over the other's with the same seed; None: more or
    less than a float holds."""
    low: Number | None
    """Lower end of the simultaneous 95 % interval of the ratio; None: one seed, no measure of spread."""
    high: Number | None
    """Its upper end."""
    p: Number | None
    """Two-sided probability of such a difference by chance, by itself; None: no measure of spread."""
    p_adjusted: Number | None
    """The same adjusted for all tests of its family (Holm 1979)."""
    decision: Decision
    """`better` or `worse`: p_adjusted is at most alpha, and the difference is above the metric's threshold;
    `no_difference`: the whole interval lies within the threshold; else `undecided`."""
    spread: Spread
    """Whose: `pooled` over all options, `moderated` between that and the pair's own, `own` of this pair, `none`:
    all seeds show the very same difference, so that the threshold alone decides; `unknown`: one seed."""
    degrees_of_freedom: Number | None
    """Of the spread; None where there is none."""
    seeds: int
    """Seeds that both completed."""
    settling: Settling | None = None
    """What would probably decide it, where it is undecided and spread is known."""


class ScoreDifference(Shown):
    """One option's score of generated text against the baseline's, over the choice of the test sentences.

    By `analysis/paired_bootstrap.py`. It says nothing of other seeds, and no claim is made with it.
    """

    score: str
    """`bleu`, `chrf`, `rouge_l`, `exact_match` or `token_f1`."""
    option: str
    against: str
    """The baseline."""
    seeds: int
    """Those that both completed; the figures are of the mean over them."""
    sentences: int | None = None
    """How many were drawn from; None, as the four figures: not compared."""
    difference: Number | None = None
    """This option's score less the baseline's."""
    low: Number | None = None
    """Lower end of its 95 % interval, by itself."""
    high: Number | None = None
    """Its upper end."""
    p: Number | None = None
    """Two-sided, by itself."""
    not_compared: str | None = None
    """Why not."""


class Family(Shown):
    """The tests whose joint error is held."""

    alpha: float
    """Probability that any claim of the family is false, at most."""
    objective: str
    """Every option against the baseline on this metric ..."""
    constraints: list[str]
    """... and every option on each of these constraints."""
    tests: int
    """How many that were: options without figures, and values without any spread, take no part."""
    thresholds: dict[str, float]
    """Smallest difference that matters, as a share, by metric."""


class ToLoss(Shown):
    """What an option took until its held-out loss was the baseline's final one; means over `seeds`."""

    seconds: Number | None
    """Training time, warm-up and compilation among it, evaluation not."""
    tokens: Number | None
    """Training tokens."""
    joules: Number | None
    """Energy of the GPUs; None: not known."""
    usd: Number | None
    """Rent and electricity at the suite's prices; None: not known."""
    reached: list[int]
    """Seeds with which it got there."""
    not_reached: list[int]
    """Seeds with which it did not, or diverged; any makes the four figures None: the others would flatter it."""


class NamedVerdict(Shown):
    """One answer to one way of asking which option is best."""

    name: VerdictName
    title: str
    """`Fastest at equal quality`."""
    option: str | None
    """The best by the means among the rows that qualify; None: no row qualifies."""
    sentence: str
    confidence: str
    """How sure that is, in words."""
    sure: bool
    """Whether it was shown to be better than every other row that qualifies."""
    tied_with: list[str]
    """Rows that qualify and that it was not shown to be better than."""
    choices: dict[str, Any]
    """The option's settings, every dimension, as a suite writes them."""
    file: str | None
    """The suite of this option alone, in the run's folder."""
    command: str | None
    """What trains it."""


class Effect(Shown):
    """How much a factor's level changes the objective."""

    factor: str
    """A dimension or a setting, `optimizer.lr`; aliases of one another are joined by ` = `."""
    level: str
    against: str
    """The baseline's level."""
    ratio: Number
    """Of the objective, averaged over the other factors' levels (geometric)."""
    low: Number | None
    """Of its own 95 % interval over seeds; None below two seeds."""
    high: Number | None


class Interaction(Shown):
    """What two levels do together beyond what each does alone."""

    factors: list[str]
    levels: list[str]
    ratio: Number
    """Of the objective over what the main effects alone would give."""
    low: Number | None
    high: Number | None


class Share(Shown):
    """One factor's part in the gain of the best row over the baseline."""

    factor: str
    level: str
    ratio: Number


class FactorView(Shown):
    """A grid taken apart: main effects and the strongest interactions, shown without a claim."""

    effects: list[Effect]
    """By factor, strongest first."""
    interactions: list[Interaction]
    """The strongest."""
    best: str | None
    """The row whose gain is taken apart."""
    best_ratio: Number | None
    """Its ratio to the baseline by the means."""
    shares: list[Share]
    """Their product with `together` is best_ratio."""
    together: Number | None
    """What the factors do beyond the product of their main effects."""

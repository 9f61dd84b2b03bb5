"""A run's records sorted to one summary per option, and what a reader must know before trusting the figures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from selectbench.analysis import metrics
from selectbench.analysis.lanes import doubts
from selectbench.analysis.result import ConstraintFailure, Screening
from selectbench.analysis.screening import screenings
from selectbench.record.record import (
    Completed,
    EvaluationPoint,
    Failed,
    Measurement,
    Record,
    has_ended,
    was_cut_off_again,
)
from selectbench.record.run_folder import last_attempts
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS, metrics_of, parse_constraint
from selectbench.suite.suite import Option, Suite


def contest_trials(records: Sequence[Record]) -> list[Record]:
    """Counted trials as they began: the last attempt, or one that a clean machine completed with the same code.

    One that was interrupted does not take the place of one that had completed.
    """
    of_contest = [record for record in records if record.phase == "contest"]
    in_order = sorted(of_contest, key=lambda record: (record.attempt, record.started_at))
    attempts = {(record.trial.trial_id, record.attempt): record for record in in_order}  # of two alike the later
    counting: dict[str, Record] = {}
    for (trial_id, _), record in attempts.items():
        prior = counting.get(trial_id)
        files = [(r.watched and r.watched.code_files) or None for r in (prior, record) if r]
        is_other_code = None not in files and files[0] != files[-1]
        is_valid = prior is not None and isinstance(prior.outcome, Completed) and not metrics.is_unclean(prior)
        if (not is_valid or is_other_code) and not (prior and was_cut_off_again(record, prior)):
            counting[trial_id] = record
    return sorted(counting.values(), key=lambda record: (record.started_at, record.trial.trial_id))


def counted(records: Sequence[Record]) -> list[Record]:
    """One of each option and seed: of two trials, as two runs of a copied folder have them, the later one."""
    return list({(r.trial.option, r.trial.seed): r for r in contest_trials(records)}.values())


class Crossing(NamedTuple):
    """Where a trial's held-out loss first was low enough."""

    seconds: float
    """Time of training alone."""
    tokens: float


def crossing(curve: Sequence[EvaluationPoint], target: float) -> Crossing | None:
    """Where the loss first is at most `target`, linear between evaluations; None where it never is."""
    points = sorted(curve, key=lambda point: point.step)
    for number, point in enumerate(points):
        if point.loss > target:
            continue
        if number == 0:
            return Crossing(point.training_seconds, float(point.tokens))
        before = points[number - 1]
        share = (before.loss - target) / (before.loss - point.loss)
        seconds = before.training_seconds + share * (point.training_seconds - before.training_seconds)
        return Crossing(seconds, before.tokens + share * (point.tokens - before.tokens))
    return None


MOST_NAMED = 5
"""Most trials that a warning names."""


@dataclass(frozen=True)
class Summary:
    """One option over its seeds, in the suite's order of seeds."""

    option: Option
    planned: list[int]
    """The suite's seeds."""
    completed: dict[int, Record] = field(default_factory=dict)
    measurements: dict[int, Measurement] = field(default_factory=dict)
    """The measurements of the completed seeds."""
    failed: dict[int, Failed] = field(default_factory=dict)
    observed: dict[int, metrics.Observed] = field(default_factory=dict)
    """By completed seed, what metrics are derived from."""
    states: dict[int, metrics.State] = field(default_factory=dict)
    """By seed, the state of GPUs or of a busy CPU; of failed trials too, but of none without a verdict."""
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    """Values that count, by metric and seed: known, and not spoiled by the state of the GPUs."""
    spoiled: dict[str, dict[int, float]] = field(default_factory=dict)
    """Known values that the state of the GPUs spoils: shown where there is no other, never compared."""
    reached: dict[int, Crossing | None] = field(default_factory=dict)
    """By seed that the baseline completed too, where the held-out loss first was the baseline's final one; None:
    it never was, or the trial diverged. Empty: nothing to tell it by, or other tokens than the baseline's."""
    doubted: dict[int, Mapping[str, str]] = field(default_factory=dict)
    """By seed and metric, how trials were measured whose figures claim nothing: beside neighbours (those of trials
    that happened to have none too, as they alone would be compared with nothing, or with the wrong ones), or on
    another node than the round."""
    counts_busy: bool = False
    """Whether trials of a busy CPU count: there are too few others."""
    screening: Screening | None = None
    """Its short trials before the contest; None: there were none."""

    @property
    def is_screened_out(self) -> bool:
        """Whether they showed that it should take no part in the contest."""
        return self.screening is not None and self.screening.screened_out

    @property
    def not_reached(self) -> list[int]:
        """Seeds that never had the baseline's final loss."""
        return [seed for seed, place in self.reached.items() if place is None]

    def not_reached_words(self) -> str:
        """`the baseline's loss was not reached with 1 of 3 seeds`."""
        return f"the baseline's loss was not reached with {len(self.not_reached)} of {len(self.reached)} seeds"

    @property
    def busy(self) -> list[int]:
        """Seeds during whose trials something else kept the CPU busy."""
        return [seed for seed, state in self.states.items() if state.verdict == "busy"]

    @property
    def missing(self) -> list[int]:
        """Seeds without any record that should have one."""
        if self.is_screened_out:
            return []
        return [seed for seed in self.planned if seed not in self.completed and seed not in self.failed]

    @property
    def name(self) -> str:
        """The option's name."""
        return self.option.name

    def is_spoiled(self, seed: int, metric: str) -> bool:
        """Whether the seed's value of the metric claims nothing, for where or in what state it was measured."""
        is_doubted = metric in self.doubted.get(seed, {})
        return is_doubted or metrics.spoils(self.states.get(seed), metric, counts_busy=self.counts_busy)

    def only_spoiled(self, metric: str) -> bool:
        """Whether every known value of the metric is spoiled by the state of the GPUs."""
        return bool(self.spoiled[metric]) and not self.values[metric]

    def unknown(self, metric: str) -> list[int]:
        """Completed seeds without a value where others have one; meters may have gaps, losses not be reached."""
        known = METRICS[metric]
        if known.metered or known.may_be_missing or not (self.values[metric] or self.spoiled[metric]):
            return []
        return [s for s in self.completed if s not in self.values[metric] and s not in self.spoiled[metric]]

    def overflowing(self, metric: str) -> list[int]:
        """Seeds with a known loss whose perplexity is more than a float holds."""
        if metric != "final_perplexity":
            return []
        known = {**self.values[metric], **self.spoiled[metric]}
        return [s for s, m in self.measurements.items() if s not in known and m.final_loss is not None]

    def without_ratio(self, metric: str) -> list[int]:
        """Seeds whose value is not above 0."""
        return [seed for seed, value in self.values[metric].items() if value <= 0]

    def lost_seeds(self, metric: str) -> list[int]:
        """Seeds that failed for what the metric measures, not for a GPU's state, so that lucky ones are left."""
        known = METRICS[metric]
        kinds = {"timeout" if "throttled" in known.spoiled_by else "", "diverged" if known.quality else ""}
        excused = {s for s, state in self.states.items() if state.verdict in metrics.UNCLEAN}
        return [s for s, f in self.failed.items() if f.kind in kinds and not (f.kind == "timeout" and s in excused)]

    def lost_words(self, metric: str) -> str:
        """`ran out of time with seeds 3, 4`; empty where nothing flatters it."""
        seeds = self.lost_seeds(metric)
        how = "diverged" if METRICS[metric].quality else "ran out of time"
        return f"{how} with {seeds_words(seeds)}" if seeds else ""

    def unclean_words(self, metric: str) -> str:
        """How the GPUs were where they spoilt the metric: `throttled`, `shared and throttled`; '' if nowhere."""
        spoiled = [(seed, self.states.get(seed)) for seed in self.spoiled[metric]]
        states = {s.verdict for _, s in spoiled if s and metrics.spoils(s, metric, counts_busy=self.counts_busy)}
        doubted = {self.doubted[seed][metric] for seed, _ in spoiled if metric in self.doubted.get(seed, {})}
        return " and ".join([*sorted(states), *sorted(doubted)])

    def common(self, other: Summary, metric: str) -> list[int]:
        """Seeds for which both know the metric."""
        return [seed for seed in self.values[metric] if seed in other.values[metric]]

    def mean(self, metric: str, seeds: Iterable[int] | None = None) -> float | None:
        """`centre` over these seeds (all that know the metric where not given)."""
        known = self.values[metric]
        return centre([known[seed] for seed in (known if seeds is None else seeds)])


def seeds_words(seeds: Sequence[int]) -> str:
    """`seed 3`, `seeds 0, 1, 2`; of many the first few; '' of none."""
    if not seeds:
        return ""
    listed = ", ".join(map(str, seeds[:8]))
    return f"seed{'s' if len(seeds) > 1 else ''} {listed}{', ...' if len(seeds) > 8 else ''}"


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing. Each value is divided first, so that no sum overflows."""
    count = len(values)
    return metrics.finite(lambda: math.fsum([v / count for v in values])) if count else None


def centre(values: Sequence[float]) -> float | None:
    """Geometric mean, as ratios are means of ratios; arithmetic where a value is not above 0; None of nothing."""
    if not values or min(values) <= 0 or min(values) == max(values):
        return mean(values)
    return metrics.finite(lambda: math.exp(math.fsum(map(math.log, values)) / len(values)))


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1), scaled by the largest value against overflow; None below two."""
    if len(values) < 2 or min(values) == max(values):  # the rounding of the mean is no spread
        return 0.0 if len(values) > 1 else None
    largest = max(map(abs, values))
    return metrics.finite(lambda: largest * float(np.std(np.divide(values, largest), ddof=1)))


def summarise(
    suite: Suite, records: Sequence[Record], *, is_all_clean: bool = False
) -> tuple[list[Summary], list[str]]:
    """Summaries in the suite's order, and warnings of records left out; `is_all_clean`: every trial counts."""
    counted, warnings = _trials_by_seed(suite, records)
    screened = screenings(suite, records)
    all_states = {key: metrics.state_of(record) for key, record in counted.items() if not is_all_clean}
    states = {key: state for key, state in all_states.items() if state is not None}
    counts_busy, doubted = _counts_busy(suite, counted, states), doubts(suite, records)
    summaries = [
        replace(_summary(suite, option, counted, states, counts_busy, doubted), screening=screened.get(option.name))
        for option in suite.options
    ]
    baseline = next(summary for summary in summaries if summary.name == suite.baseline)
    for summary in summaries:
        if not other_tokens(suite, summary.option):
            _add_crossings(baseline, summary, 1 + suite.threshold("final_loss"))
    return summaries, warnings


def outcomes(summaries: Iterable[Summary]) -> tuple[int, int]:
    """Trials that have an outcome, of so many planned."""
    done, planned = 0, 0
    for summary in summaries:
        planned += 0 if summary.is_screened_out else len(summary.planned)
        done += len(summary.completed) + sum(map(has_ended, summary.failed.values()))
    return done, planned


def other_tokens(suite: Suite, option: Option) -> bool:
    """Whether a token is another thing to the option than to the baseline."""
    baseline = suite.option(suite.baseline)
    return suite.command is None and suite.job_of(option).tokenizer != suite.job_of(baseline).tokenizer


def _add_crossings(baseline: Summary, summary: Summary, margin: float) -> None:
    """Adds where each seed first had the baseline's final loss; its time is a metric if every seed had it."""
    targets = baseline.values["final_loss"]
    curves = {s: r.evaluation_curve for s, r in summary.completed.items() if s in targets and r.evaluation_curve}
    summary.reached.update({seed: crossing(curve, targets[seed] * margin) for seed, curve in curves.items()})
    diverged = [seed for seed, failure in summary.failed.items() if failure.kind == "diverged" and seed in targets]
    summary.reached.update(dict.fromkeys(diverged if summary.reached else []))
    if not summary.not_reached:
        for seed, place in summary.reached.items():
            assert place is not None
            spoiled = summary.is_spoiled(seed, SECONDS_TO_LOSS)
            (summary.spoiled if spoiled else summary.values)[SECONDS_TO_LOSS][seed] = place.seconds


def _trials_by_seed(suite: Suite, records: Sequence[Record]) -> tuple[dict[tuple[str, int], Record], list[str]]:
    """The last attempt of each contest trial, by option and seed, and warnings of records that are left out."""
    names = {option.name for option in suite.options}
    counted: dict[tuple[str, int], Record] = {}
    trials_by_warning: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for record in contest_trials(records):
        key = (record.trial.option, record.trial.seed)
        if key[0] not in names or key[1] not in suite.seeds:
            trials_by_warning["its record belongs to no trial of this suite and is left out"].add(key)
            continue
        counted[key] = record
    latest = last_attempts([record for record in records if record.phase == "contest"])
    for trial_id, record in latest.items():
        chosen = counted.get(key := (record.trial.option, record.trial.seed))
        if chosen is not None and chosen.trial.trial_id == trial_id and chosen.attempt < record.attempt:
            reason = "it had completed, and no reading of the machine speaks against it"
            trials_by_warning[f"attempt {chosen.attempt} counts, not {record.attempt}: {reason}"].add(key)
    lines = []
    for what, keys in trials_by_warning.items():
        trials = [f"option {option}, seed {seed}" for option, seed in sorted(keys)]
        if len(trials) <= MOST_NAMED:
            lines += [f"{trial}: {what}" for trial in trials]
        else:
            lines.append(f"{'; '.join(trials[:MOST_NAMED])} and {len(trials) - MOST_NAMED:,} more: {what}")
    return counted, sorted(lines)


FEWEST_QUIET = 2
States = Mapping[tuple[str, int], metrics.State]


def _counts_busy(suite: Suite, counted: Mapping[tuple[str, int], Record], states: States) -> bool:
    """Whether trials of a busy CPU count, as some option has under FEWEST_QUIET others or under half its seeds."""
    seeds: dict[str, set[int]] = defaultdict(set)
    clean: dict[str, set[int]] = defaultdict(set)
    for (option, seed), record in counted.items():
        if isinstance(record.outcome, Completed):
            seeds[option].add(seed)
            state = states.get((option, seed))
            clean[option] |= set() if state is not None and state.verdict == "busy" else {seed}
    base = clean[suite.baseline] if seeds[suite.baseline] else set(suite.seeds)
    common = {option: len(clean[option] & base) for option in seeds}
    return any(common[option] < max(FEWEST_QUIET, len(done) / 2) for option, done in seeds.items() if done)


def _summary(
    suite: Suite, option: Option, counted: Mapping[tuple[str, int], Record], states: States, counts_busy: bool,
    doubted: Callable[[Record], Mapping[str, str]],
) -> Summary:  # fmt: skip
    """The trials' values are each among those that count or those that are spoiled."""
    names = metrics_of(suite.job)
    values, spoiled = ({m: dict[int, float]() for m in names} for _ in range(2))
    summary = Summary(option, suite.seeds, values=values, spoiled=spoiled, counts_busy=counts_busy)
    for seed in suite.seeds:
        record = counted.get((option.name, seed))
        if record is None:
            continue
        if (state := states.get((option.name, seed))) is not None:
            summary.states[seed] = state
        if isinstance(record.outcome, Completed):
            summary.completed[seed] = record
            summary.measurements[seed] = record.outcome.measurement
            summary.observed[seed] = metrics.observe(record, suite, option.choices)
            summary.doubted.update({seed: why} if (why := doubted(record)) else {})
        else:
            summary.failed[seed] = record.outcome
    metered = any(trial.gpus for trial in summary.observed.values())
    scored = any(measured.scores for measured in summary.measurements.values())
    for name in names:
        metric = METRICS[name]
        if (metric.metered and not metered) or (metric.scored and not scored):
            continue
        known = summary.values[name] = metrics.finite_of_each(metrics.formula_of(name), summary.observed)
        for seed in dict.fromkeys([*summary.states, *summary.doubted]):
            if seed in known and summary.is_spoiled(seed, name):
                summary.spoiled[name][seed] = known.pop(seed)
    return summary


# What a reader must know before trusting the figures, the certificate apart.

STALLED_MEAN_OVER_MEDIAN = 1.5
"""Mean over median of a trial's step times from which its timing counts as disturbed."""
SHORTEST_TIMED_SECONDS = 1.0
"""Timed for less, a trial's speed is mostly chance."""
FLOOR_ERRORS = 3.0
"""Standard errors below the source's own loss from which chance is no explanation."""
LEFT_SHARE_TOLERATED = 0.01
"""Share of a model's parameters that an option's rule is for and does not reach from which a reader is told."""
SKIPPED_SHARE_TOLERATED = 0.01
"""Share of skipped fp16 steps above which a reader is told: such an option trained on less."""


def busy_warnings(summaries: Sequence[Summary]) -> list[str]:
    """One line for all trials during which something else kept the CPU busy."""
    busy = [summary for summary in summaries if summary.busy]
    if not busy:
        return []
    trials, total = sum(len(s.busy) for s in busy), sum(len(s.completed) for s in summaries)
    names = "; ".join(f"{s.name} {seeds_words(s.busy)}" for s in busy[:6]) + (" and more" if len(busy) > 6 else "")
    first = busy[0]
    example = f"{first.name}, seed {first.busy[0]}: {first.states[first.busy[0]].detail}"
    finding = f"the machine was busy with something else in {trials} of {total} trials ({names}; {example})"
    consequence = "left out of speed. "
    if first.counts_busy:
        consequence = "too many to leave out, so speeds are those of a busy machine. Once it is quiet, "
    return [f"{finding}: {consequence}`--rerun-unclean` with the same command runs them again in this run"]


def trial_warnings(summaries: Sequence[Summary]) -> list[str]:
    """What makes single options' figures doubtful, one line per option and cause."""
    short = f"timed for less than {SHORTEST_TIMED_SECONDS:g} s, too short to trust small differences"
    causes: dict[str, Callable[[Measurement], object]] = {
        "a recompilation voided a timed window": lambda m: m.recompilations,
        "the allocator ran short and retried, which slows training": lambda m: m.num_alloc_retries,
        "timing disturbed: the mean step took more than "
        f"{STALLED_MEAN_OVER_MEDIAN:g} times the median one; is anything else running on this machine?": stalled,
        f"{short} (job.timing.min_timed_seconds)": lambda m: m.pause_seconds is None and _is_short(m),
        f"{short} (more steps: job.stop, job.max_steps)": lambda m: m.pause_seconds is not None and _is_short(m),
        "ALARM: its loss is below the source's own entropy by more than chance explains: the loss, the optimizer "
        "or the precision is broken": below_the_floor,
        f"more than {SKIPPED_SHARE_TOLERATED:.0%} of the optimizer steps were skipped": lambda m: (
            (metrics.finite(metrics.skipped_share, m) or 0.0) > SKIPPED_SHARE_TOLERATED
        ),
    }
    lines = [
        f"{summary.name}: {text} ({seeds_words(seeds)})"
        for summary in summaries for text, doubtful in causes.items()
        if (seeds := [seed for seed, m in summary.measurements.items() if doubtful(m)])
    ]  # fmt: skip
    for summary in summaries:
        identity = next((record.identity for record in summary.completed.values()), None)
        left = next((m.left_parameters or 0 for m in summary.measurements.values()), 0)
        if identity is not None and left > LEFT_SHARE_TOLERATED * identity.parameters:
            lines.append(
                f"{summary.name}: {left:,} of {identity.parameters:,} parameters are matrices that its adaptation "
                "does not reach (experts of a mixture, for instance): they stay as they are, in fp32"
            )
    return lines


def _is_short(m: Measurement) -> bool:
    return m.timed_seconds < SHORTEST_TIMED_SECONDS


def stalled(measurement: Measurement) -> bool:
    """Whether some steps waited, which all do the same work, so that speed, a mean over time, is theirs."""
    median = measurement.step_time_median_seconds
    if not median or not measurement.timed_steps:
        return False
    return measurement.timed_seconds / measurement.timed_steps > STALLED_MEAN_OVER_MEDIAN * median


def below_the_floor(measurement: Measurement) -> bool:
    """Whether a model claims to know more than there is to know, beyond so many standard errors of the sample."""
    excess, error = metrics.excess_loss(measurement), measurement.source_loss_error
    return excess is not None and error is not None and excess < -FLOOR_ERRORS * error


def objective_gap(suite: Suite, summary: Summary) -> ConstraintFailure | None:
    """Why an option can't be ranked by the seeds that have the figure; None: they do not flatter it."""
    metric = suite.decide.objective
    if unknown := summary.unknown(metric):
        return ConstraintFailure(constraint=f"{metric} of every seed", detail=f"none with {seeds_words(unknown)}")
    if lost := summary.lost_words(metric):
        return ConstraintFailure(constraint=f"{metric} of every seed", detail=lost)
    without = summary.without_ratio(metric)
    only_some = 0 < len(without) < len(summary.values[metric])  # where all are so, nothing is left to rank by
    if not only_some:
        return None
    return ConstraintFailure(
        constraint=f"{metric} above 0 with every seed", detail=f"not with {seeds_words(without)}"
    )


def memory_warnings(summaries: Sequence[Summary]) -> list[str]:
    """One line where peaks of different kinds stand in one table."""
    kinds = memory_kinds(summaries)
    return [f"peak memory mixes different quantities: {', '.join(kinds)}"] if len(kinds) > 1 else []


def memory_kinds(summaries: Sequence[Summary]) -> list[metrics.MemoryKind]:
    """Which kinds of peak memory the completed trials measured, sorted."""
    measurements = [m for summary in summaries for m in summary.measurements.values()]
    return sorted({kind for m in measurements if (kind := metrics.memory_kind(m))})


def ratio_warnings(suite: Suite, summaries: Sequence[Summary]) -> list[str]:
    """What decides and has no ratio."""
    metrics_asked = [suite.decide.objective, *(parse_constraint(text).metric for text in suite.decide.constraints)]
    return [
        f"{summary.name}: {metric} is not above 0 with {seeds_words(seeds)}: they are left out of ratios"
        for summary in summaries for metric in dict.fromkeys(metrics_asked)
        if (seeds := summary.without_ratio(metric))
    ]  # fmt: skip

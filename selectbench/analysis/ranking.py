"""Records to the Ranking: the contest's claims, ranks that ties share, constraints, failures last. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from selectbench import units
from selectbench.analysis import hardware
from selectbench.analysis.contest import Contest, Ranks, control_warnings, is_control
from selectbench.analysis.factors import factor_view
from selectbench.analysis.family import FEWEST_TO_PROPOSE, judgement_number
from selectbench.analysis.identity import certify
from selectbench.analysis.lanes import describe_lanes, describe_nodes, lane_count, lanes_in_answer, nodes_in_answer
from selectbench.analysis.metrics import is_unclean, state_of
from selectbench.analysis.recommendation import Figure, counts, figure, to_loss, verdicts, with_pareto, with_ratio
from selectbench.analysis.result import (
    Certificate,
    ConstraintFailure,
    ExtraSeeds,
    Failure,
    MetricValue,
    Ranking,
    Row,
    Violation,
)
from selectbench.analysis.scores import score_differences
from selectbench.analysis.screening import busy_screening_warnings, unscreened
from selectbench.analysis.scripts import pause_notes, repeats_in_answer, script_warnings
from selectbench.analysis.summary import (
    Summary,
    busy_warnings,
    centre,
    contest_trials,
    memory_kinds,
    memory_warnings,
    objective_gap,
    outcomes,
    ratio_warnings,
    seeds_words,
    stalled,
    standard_deviation,
    summarise,
    trial_warnings,
)
from selectbench.analysis.watched import (
    OWN_CODE,
    learning_in_answer,
    learning_warnings,
    learnt_nothing,
    plausibility_warnings,
)
from selectbench.record.record import Completed, Record
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS, parse_constraint
from selectbench.suite.suite import Suite, besides_the_rate
from selectbench.text import listed

MOST_TO_LIST = 30
"""Most seeds that the command to extend a run lists."""


def _without_outcome(trials: int) -> str:
    return "1 trial has no outcome" if trials == 1 else f"{trials} trials have no outcome"


def rank(suite: Suite, records: Sequence[Record], warnings: Sequence[str] = ()) -> Ranking:
    """`warnings` go before those found here. Raises ValueError for a constraint that cannot be read."""
    summaries, left_out = summarise(suite, records)
    certificates = certify(suite, summaries)
    comparable = {name: certificate.comparable is True for name, certificate in certificates.items()}
    contest = Contest(suite, summaries, comparable)
    rows = _rows(contest, certificates)
    done, planned = outcomes(summaries)
    kinds = memory_kinds(summaries)
    doubts = [
        *([f"the run is incomplete: {_without_outcome(planned - done)}"] if done < planned else []),
        *unscreened(suite, records), *busy_screening_warnings(suite, records),
        *script_warnings(suite, records, summaries),
        *disturbances(records, contest),
        *hardware.gpu_warnings(suite.device, summaries), *trial_warnings(summaries),
        *learning_warnings(suite, summaries), *plausibility_warnings(suite, summaries),
        *ratio_warnings(suite, summaries), *hardware.rank_warnings(suite.device, summaries),
        *memory_warnings(summaries), *control_warnings(contest),
    ]  # fmt: skip
    values = {
        name: {s.name: {**s.values.get(name, {}), **s.spoiled.get(name, {})} for s in summaries if s.completed}
        for name in contest.baseline.values
    }
    lanes, nodes = describe_lanes(suite, records, values), describe_nodes(suite, records, values)
    answer = _Answer(contest, rows, records)
    return Ranking(
        suite=suite.name, baseline=suite.baseline, question=suite.question, settled=answer.is_settled,
        answer=f"{answer.text()}"
        f"{hardware.ranks_in_answer(suite.device, summaries)}"
        f"{learning_in_answer(suite, summaries)}{repeats_in_answer(suite, records)}{lanes_in_answer(lanes)}"
        f"{nodes_in_answer(nodes, list(contest.of_rounds), suite.decide.objective)}",
        objective=suite.decide.objective, device=suite.device, quick=suite.quick, seeds=list(suite.seeds),
        memory_kind=kinds[0] if len(kinds) == 1 else None, rows=rows, family=contest.declared(),
        verdicts=verdicts(contest, rows), factors=factor_view(suite, contest.summaries, rows),
        score_differences=score_differences(contest.baseline, rows, contest.summaries),
        warnings=[*warnings, *left_out, *doubts], lanes=lanes, nodes=nodes,
    )  # fmt: skip


def _rows(contest: Contest, certificates: Mapping[str, Certificate]) -> list[Row]:
    """The rows in the order of the ranking."""
    suite, summaries = contest.suite, contest.summaries
    rows = [_row(contest, summary, certificates[summary.name]) for summary in summaries.values()]
    if hardware.is_about_scaling(list(summaries.values())):
        ratios = {row.option: row.metrics["tokens_per_second"].ratio_to_baseline for row in rows}
        scalings = {n: hardware.scaling(suite.device, s, contest.baseline, ratios[n]) for n, s in summaries.items()}
        rows = [row.model_copy(update={"scaling": scalings[row.option]}) for row in rows]
    ranks = Ranks(contest, [row.option for row in rows if _can_be_ranked(suite, row)])
    places = {n: {"rank": ranks.rank(n), "tied_with": ranks.ties(n)} for n in ranks.ranked}
    rows = _sorted_rows(suite, [row.model_copy(update=places.get(row.option, {})) for row in rows])
    best = rows[0].option
    comparisons = {n: {"against_best": ranks.comparison(n, best)} for n in ranks.ranked if n != best}
    rows = [row.model_copy(update=comparisons.get(row.option, {})) for row in rows]
    return with_pareto(contest, rows)


def _row(contest: Contest, summary: Summary, identity: Certificate) -> Row:
    suite, judged = contest.suite, identity.comparable is True
    constraints = contest.constraints(summary.name) if judged else []
    failing = [c for c in constraints if c.verdict == "fails"]
    broken = [ConstraintFailure(constraint=c.constraint, detail=c.detail) for c in failing]
    broken += [gap] if judged and (gap := objective_gap(suite, summary)) else []
    control = is_control(suite, summary.name)
    return Row(
        option=summary.name, rank=None, status=_status(summary, identity), control=control,
        n=len(summary.completed), planned=len(summary.planned), missing_seeds=summary.missing,
        differs_in=summary.option.differs_in,
        besides_the_rate=besides_the_rate(summary.option.choices, suite.option(suite.baseline).choices),
        eligible=judged and not control and not broken and all(c.verdict != "undecided" for c in constraints),
        constraints=constraints, constraint_failures=broken, identity=identity,
        notes=[*hardware.rank_notes(summary), *pause_notes(summary)],
        metrics={name: _metric(name, summary, None if identity.violations else contest) for name in summary.values},
        memory=hardware.memory_by_rank(summary), scaling=None,
        against_baseline=contest.against_baseline(summary.name), to_loss=to_loss(summary) if judged else None,
        failures=[
            Failure(seed=s, kind=f.kind, detail=f.detail, note=hardware.failure_note(f, summary.states.get(s)))
            for s, f in summary.failed.items()
        ],
        busy_seeds=summary.busy, gpu=hardware.gpu_row(summary), cost_unknown=hardware.cost_unknown(summary),
        screening=summary.screening,
    )  # fmt: skip


def _status(
    summary: Summary, identity: Certificate
) -> Literal["completed", "partial", "failed", "not_comparable", "screened_out"]:
    if summary.is_screened_out:
        return "screened_out"
    if identity.violations:
        return "not_comparable"
    if len(summary.failed) == len(summary.planned):
        return "failed"
    return "completed" if len(summary.completed) == len(summary.planned) else "partial"


def _metric(name: str, summary: Summary, contest: Contest | None) -> MetricValue:
    unclean = summary.only_spoiled(name)
    known = list((summary.spoiled if unclean else summary.values)[name].values())
    ratio, low, high = contest.interval(summary.name, name) if contest else (None, None, None)
    return MetricValue(
        value=centre(known), ratio_to_baseline=ratio, ratio_low=low, ratio_high=high, n=len(known), unclean=unclean,
        standard_deviation=standard_deviation(known), left_out=list(summary.spoiled[name]),
    )  # fmt: skip


def _can_be_ranked(suite: Suite, row: Row) -> bool:
    """Whether a row can have a rank: it is eligible, and its figure counts."""
    return row.eligible and counts(row, suite.decide.objective)


def _sorted_rows(suite: Suite, rows: list[Row]) -> list[Row]:
    """Rows by rank, then by the objective; those that could not be ranked last, in the order of `_sort_group`."""
    sign = -1 if METRICS[suite.decide.objective].better == "more" else 1

    def place(row: Row) -> tuple[int, int, float]:
        value = row.metrics[suite.decide.objective].value
        return _sort_group(suite, row), row.rank or 0, 0.0 if value is None else sign * value

    return sorted(rows, key=place)


def _sort_group(suite: Suite, row: Row) -> int:
    if row.rank is not None:
        return 0
    if row.eligible:
        return 1 if _can_be_ranked(suite, row) else 2
    if row.control:
        return 8
    if row.n == 0:
        return 7 if row.status == "failed" else 6
    if row.identity.violations:
        return 5
    return 4 if row.constraint_failures else 3


# The sentence that answers the suite's question, and what it must not claim.

_NO_CERTIFICATE = "its records do not say what it was trained with, so it may be another job"


class _Answer:
    """One paragraph: what is best and by how much, how sure that is, and what was left out."""

    def __init__(self, contest: Contest, rows: Sequence[Row], records: Sequence[Record]) -> None:
        """`rows` in the order of the ranking."""
        self.contest, self.rows, self.records = contest, rows, records
        self.suite, self.summaries = contest.suite, contest.summaries
        self.metric = contest.objective
        self.ranked = [row for row in rows if row.rank is not None]
        self.best = self.ranked[0].metrics[self.metric.name].value if self.ranked else None
        self.proposed: list[int] = []
        """How many more seeds sentences propose."""

    def text(self) -> str:
        """The paragraph."""
        done, planned = outcomes(self.summaries.values())
        unseen = [row.option for row in self.rows if any(u.field == OWN_CODE for u in row.identity.not_verified)]
        sentences = [
            "" if self.contest.is_complete else f"Incomplete, {done} of {planned} trials have an outcome; so far:",
            self._verdict(), self._wins_over_baseline(), self._open_candidates(), self._speed_doubts(),
            *self._baseline_problems(), self._quality_note(), self._certainty(), self._unranked(),
            f"Not verified for {listed(unseen)}: what own code does beyond what was counted." if unseen else "",
            self._how_to_extend(max(self.proposed, default=0)) if self.contest.is_complete else "",
        ]  # fmt: skip
        return " ".join(sentence for sentence in sentences if sentence)

    @property
    def is_settled(self) -> bool:
        """Whether a complete run shows one option to be the best of several, and no sentence questions that."""
        if not self.contest.is_complete or len(self.ranked) < 2 or self.ranked[0].tied_with:
            return False
        unjudged = any(c.verdict == "not_judged" for row in self.ranked for c in row.constraints)
        learnt = not any(learnt_nothing(self.suite, self.summaries[row.option]) for row in self.ranked)
        doubts = (self._rests_on_busy, self._stalled, self._open_candidates(), self._baseline_problems(), unjudged)
        return learnt and not any(doubts)

    @property
    def _rests_on_busy(self) -> bool:
        """Whether figures of a busy machine decide."""
        return self.contest.is_busy and "busy" in self.metric.spoiled_by

    @property
    def _stalled(self) -> list[str]:
        """Options whose timing was disturbed, where it decides."""
        name = self.metric.name
        if name not in ("tokens_per_second", "step_time_median_seconds", SECONDS_TO_LOSS):
            return []
        by_name = self.summaries.items()
        return [n for n, s in by_name if any(stalled(s.measurements[seed]) for seed in s.values[name])]

    def _speed_doubts(self) -> str:
        """Doubts about speed that a reader must know."""
        summaries = list(self.summaries.values())
        if self._rests_on_busy:
            busy = sum(len(summary.busy) for summary in summaries)
            total = sum(len({*summary.completed, *summary.busy}) for summary in summaries)
            text = f"The machine was busy with something else in {busy} of {total} trials"
            return f"{text}: run these again on a quiet one (see the warnings)."
        text = ""
        if outliers := self.contest.outliers(self.metric.name):
            trials = listed([f"{option}, seed {seed}" for option, seed in list(outliers)[:4]])
            verb = "stand out and widen" if len(outliers) > 1 else "stands out and widens"
            text = f"{trials} {verb} the intervals (see the warnings). "
        if not (names := self._stalled):
            return text.rstrip()
        return (
            f"{text}The timing of {listed(names)} was disturbed (see the warnings): run again on an idle machine."
        )

    def _how_to_extend(self, seeds: int) -> str:
        """The command that adds so many seeds to the run."""
        if not 0 < seeds <= MOST_TO_LIST:
            return ""
        if self.suite.quick:
            return "A run without --quick has more seeds."
        flags = f" --lanes {lanes}" if (lanes := lane_count(self.records)) > 1 else ""
        flags = " --site site.yaml" if any(record.node for record in self.records) else flags
        options = f"--extend . --seeds {','.join(map(str, self.suite.unused_seeds(seeds)))}{flags}"
        return f"To add seeds: selectbench run suite.yaml {options} (in the run's folder)."

    def _with_ratio(self, row: Row) -> Figure:
        return with_ratio(self.suite, self.metric, row)

    @property
    def _by(self) -> str:
        """What decides, where a figure alone does not say it."""
        return "" if self.metric.after_figure else f" by {self.metric.title}"

    def _verdict(self) -> str:
        if not self.ranked:
            return self._without_ranks()
        best, *others = self.ranked
        if len(self.suite.options) == 1:
            alone = "there is no other option to compare it with"
            title = f"{self.metric.title} " if self._by else ""
            return f"{best.option}: {title}{figure(self.metric, best)}; {alone}."
        if not others:
            return f"{best.option} is the only option that could be ranked{self._by}: {self._with_ratio(best)}."
        if tied := [row for row in others if row.option in best.tied_with]:
            return self._tie(best, tied)
        held = [c.constraint for c in best.constraints if c.verdict == "holds"]
        within = f" of those that hold {listed(held)}" if held else ""
        return (
            f"{best.option} {self.metric.superlative}{within}: {self._with_ratio(best)}; "
            f"next {others[0].option}: {self._with_ratio(others[0])}."
        )

    def _wins_over_baseline(self) -> str:
        """Which rows that may be first are shown to be better than the baseline, and which by how much."""
        leader = self.ranked[0] if self.ranked else None
        first = [row for row in self.ranked if leader and row.option in (leader.option, *leader.tied_with)]
        exceeds = {
            row.option: against.exceeds
            for row in first if (against := row.against_baseline) and against.decision == "better"
        }  # fmt: skip
        if not exceeds:
            return ""
        matters = units.share(self.contest.threshold)
        undecided = [row.option for row in first if row.option not in (*exceeds, self.suite.baseline)]
        not_beyond = [name for name in exceeds if not exceeds[name]]
        groups = {
            f"shown to be better than the baseline by more than {matters}": [n for n in exceeds if exceeds[n]],
            f"shown to be better than the baseline, though not by more than {matters}": not_beyond,
            "not shown to be better than the baseline": undecided,
        }
        groups = {words: names for words, names in groups.items() if names}
        parts = [f"{listed(names)} {'is' if len(names) == 1 else 'are'} {words}" for words, names in groups.items()]
        return f"{'; '.join(parts)}."

    def _without_ranks(self) -> str:
        """The sentence where there is no measure of spread, or nothing that could be ranked."""
        name = self.metric.name
        measured = [row for row in self.rows if row.n and counts(row, name) and not row.identity.violations]
        measured = [row for row in measured if not row.constraint_failures and not row.control]
        if not measured:
            clean = "clean " if any(summary.only_spoiled(name) for summary in self.summaries.values()) else ""
            return f"No answer: no option completed with a {clean}{name} and held the constraints."
        sign = -1 if self.metric.better == "more" else 1
        first, *others = sorted(measured, key=lambda row: sign * (row.metrics[name].value or 0.0))
        if not others:
            return (
                f"{first.option} is the only option with a figure that fails no constraint{self._by}: "
                f"{self._with_ratio(first)}."
            )
        return (
            f"No verdict: {self._no_order(measured)}. By the measured figures alone {first.option} comes first"
            f"{self._by}: {self._with_ratio(first)}; next {others[0].option}: {self._with_ratio(others[0])}."
        )

    def _no_order(self, measured: Sequence[Row]) -> str:
        """Why no row has a rank though some have figures."""
        one_seed = max(row.n for row in measured) == 1
        self.proposed += [FEWEST_TO_PROPOSE - 1] if one_seed else []
        undecided = [c for row in measured if not row.eligible for c in row.constraints if c.verdict == "undecided"]
        if undecided and sum(row.eligible for row in measured) < 2:
            why = ", as one seed shows no spread" if one_seed else ""
            names = list(dict.fromkeys(c.constraint for c in undecided))
            return f"it is open whether the options hold {listed(names)}{why}"
        if one_seed:
            return "one seed shows no spread, so the order may be chance"
        if zero := [row.option for row in measured if not row.metrics[self.metric.name].value]:
            return f"{self.metric.title} is 0 for {listed(zero)}, and of nothing no ratio can be taken"
        return (
            "no two options share two seeds that both completed, so there is no spread to judge their difference by"
        )

    def _tie(self, best: Row, tied: Sequence[Row]) -> str:
        """The sentence on rows that share the first rank: they do not differ, or that is open."""
        names = listed([best.option, *(row.option for row in tied)])
        figures = self._figures_of([best, *tied])
        pairs = [row.against_best for row in tied if row.against_best]
        matters = f"{units.share(self.contest.threshold)} of {self.metric.name}"
        if len(pairs) == len(tied) and all(pair.decision == "no_difference" for pair in pairs):
            return f"No difference that matters between {names}: less than {matters}: {figures}."
        more = ""
        if proposals := [pair.settling for pair in pairs if pair.settling]:
            least = min(proposals, key=lambda settling: settling.seeds)
            self.proposed.append(least.seeds)
            what = "it" if len(pairs) == 1 else "one of these pairs"
            more = f" If the difference is as measured, {_more_seeds(least)} would probably settle {what}."
        apart = [row.option for row in tied if row.against_best is None]
        no_pair = (
            f" {listed(apart)} shared no seed with {best.option}, so the two can't be compared." if apart else ""
        )
        if any(not units.is_measurable(pair.low, pair.high) for pair in pairs):
            by = self._by or f" by {self.metric.title}"
            return f"The seeds spread too much to tell {names} apart{by}: {figures}.{more}{no_pair}"
        return f"Too close to call between {names}{self._by}: {figures}.{more}{no_pair}"

    def _figures_of(self, rows: Sequence[Row]) -> str:
        """The rows' figures with their ratios; of those that have none it is said once."""
        figures = {row.option: self._with_ratio(row) for row in rows}
        without = [name for name, found in figures.items() if not found.has_ratio]
        if len(without) < 2:
            return "; ".join(f"{name} {found}" for name, found in figures.items())
        parts = [f"{name} {found if found.has_ratio else found.figure}" for name, found in figures.items()]
        others = figures.keys() - {self.suite.baseline}
        whose = "their ratios" if len(others) == len(without) else f"the ratios of {listed(without)}"
        return f"{'; '.join(parts)}; {whose} to the baseline are {units.NOT_MEASURABLE}"

    def _open_candidates(self) -> str:
        """Rows that might come first if they were known to hold their constraints."""
        lines = []
        for row in self.rows if self.ranked else ():  # else that the constraints are open is said already
            undecided = [c for c in row.constraints if c.verdict == "undecided"]
            if not undecided or row.constraint_failures or row.control or not self._beats(row):
                continue
            proposals = [c.settling for c in undecided if c.settling]
            more = ""
            if len(proposals) == len(undecided):
                most = max(proposals, key=lambda s: s.seeds)
                self.proposed.append(most.seeds)
                more = f"; {_more_seeds(most)} would probably settle it"
            details = listed([f"{c.constraint} ({c.detail})" for c in undecided])
            candidate = f"{row.option} ({figure(self.metric, row)})"
            lines.append(f"{candidate} may be better, but it is open whether it holds {details}{more}.")
        return " ".join(lines)

    def _baseline_problems(self) -> list[str]:
        """Why nothing is compared with the baseline, or nothing that its GPUs' state spoils has a ratio."""
        name, sentences = self.suite.baseline, list[str]()
        baseline, by_option = self.summaries[name], {row.option: row.identity.violations for row in self.rows}
        if not baseline.completed:
            kinds = sorted({failure.kind for failure in baseline.failed.values()})
            why = f" ({listed(kinds)})" if kinds else " (it has not run yet)"
            sentences.append(f"No comparison: the baseline {name} did not complete{why}.")
        elif not any(record.identity for record in baseline.completed.values()):
            sentences.append(f"No comparison: of the baseline {name}, {_NO_CERTIFICATE}.")
        elif violations := by_option[name]:
            others = {v.field for option, vs in by_option.items() if option != name for v in vs}
            is_odd = any(v.baseline is not None and v.asked is None and v.field not in others for v in violations)
            opening = "is the odd one: it differs from all others in" if is_odd else "did not do the job:"
            sentences.append(f"No comparison: the baseline {name} {opening} {_field_names(violations)}.")
        elif lost := baseline.lost_words(self.metric.name):
            sentences.append(f"The baseline {name} {lost}: nothing is called worse than its other seeds.")
        if baseline.only_spoiled("tokens_per_second"):
            sentences.append(
                f"No ratios of speed, energy or cost: every trial of the baseline {name} was "
                f"{baseline.unclean_words('tokens_per_second')}, so there is nothing to compare with."
            )
        return sentences

    def _quality_note(self) -> str:
        if self.suite.quick or not self.suite.job.evaluates:
            return "Speed and memory only: quality was not measured."
        constraints = (c for row in self.rows if row.eligible for c in row.constraints)
        unjudged = next((c for c in constraints if c.verdict == "not_judged"), None)
        return f"Whether the rows hold {unjudged.constraint} is not known: {unjudged.detail}." if unjudged else ""

    def _certainty(self) -> str:
        """What the claims rest on: seeds, tests and the level of intervals."""
        numbers = [row.metrics[self.metric.name].n for row in self.ranked or self.rows if row.n]
        if not numbers:
            return ""
        fewest, most = min(numbers), max(numbers)
        if most <= 1:
            return "(1 seed: there is no measure of spread, so a difference may be chance.)"
        seeds = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
        if (look := judgement_number(self.suite.looks)) > 1:
            seeds += f", judgement {look} of this run"
        level, tests = units.confidence(self.contest.alpha), self.contest.tests
        seeds += "; with so few seeds only large differences show" if most == 2 else ""
        joint = f"{level} intervals and claims that hold together for all {tests} tests"
        basis = f"; one test, with its {level} interval" if tests == 1 else f"; {joint}" if tests else ""
        return f"({seeds}{basis}.)"

    def _beats(self, row: Row) -> bool:
        value = row.metrics[self.metric.name].value
        is_better = value is not None and (self.best is None or self.metric.is_better(value, self.best))
        return is_better and counts(row, self.metric.name)

    def _unranked(self) -> str:
        """Rows without a rank, each with a short reason; and those of which some seeds failed."""
        why = {row.option: self._reason(row) for row in self.rows if row.rank is None and not row.control}
        unranked = [f"{name} ({reason})" for name, reason in why.items() if reason]
        parts = [f"Not ranked: {', '.join(unranked)}"] if unranked else []
        failed = [
            f"{row.option} ({len(row.failures)} of {row.planned}, {_failure_kinds(row)})"
            for row in self.rows if row.failures and row.n and not why.get(row.option)
        ]  # fmt: skip
        parts += [f"{'s' if parts else 'S'}ome seeds failed: {', '.join(failed)}"] if failed else []
        return f"{'; '.join(parts)}." if parts else ""

    def _reason(self, row: Row) -> str:
        """A word or two on why a row has no rank; '' where another sentence says it."""
        summary, verdicts = self.summaries[row.option], {c.verdict for c in row.constraints}
        not_reached = self.metric.name == SECONDS_TO_LOSS and bool(summary.not_reached)
        failed = f"{len(row.failures)} of {row.planned} seeds: {_failure_kinds(row)}"
        reasons = {
            "did another job": bool(row.identity.violations),
            "screened out": summary.is_screened_out,
            _failure_kinds(row) or "not run yet": row.n == 0,
            "job not verified": row.identity.comparable is None,
            summary.unclean_words(self.metric.name): summary.only_spoiled(self.metric.name),
            "loss not reached": not_reached,
            "fails a constraint": "fails" in verdicts,
            failed if row.failures else "some seeds have no figure to rank by": bool(row.constraint_failures),
            "constraint undecided": "undecided" in verdicts and bool(self.ranked) and not self._beats(row),
            "too few seeds": row.eligible and bool(self.ranked),
        }
        return next((words for words, applies in reasons.items() if applies), "")


def _failure_kinds(row: Row) -> str:
    """The kinds of a row's failures, and whether the hardware's state may have caused all of them."""
    may_be_machine = bool(row.failures) and all(failure.note for failure in row.failures)
    kinds = listed(sorted({failure.kind for failure in row.failures}))
    return f"{kinds}, perhaps the machine's fault" if may_be_machine else kinds


def _more_seeds(settling: ExtraSeeds) -> str:
    time = "" if settling.seconds is None else f", about {units.duration(settling.seconds)},"
    return f"{settling.seeds} more seed{'s' if settling.seeds > 1 else ''}{time}"


def _field_names(violations: Sequence[Violation]) -> str:
    return listed(["a record that contradicts itself" if v.field == "record" else v.field for v in violations])


def disturbances(records: Sequence[Record], contest: Contest) -> list[str]:
    """What the machine did to single trials: which were busy, stand out or were run again, with which figures."""
    summaries, metric = list(contest.summaries.values()), contest.objective.name
    lines = [*busy_warnings(summaries), *_outlier_lines(contest)]
    if not (first := _first_attempts(records)):
        return lines
    first_summaries, _ = summarise(contest.suite, list(first.values()), is_all_clean=True)
    before = Contest(contest.suite, first_summaries, contest.comparable)
    for summary, first_summary in zip(summaries, first_summaries, strict=True):
        trials = [record for record in first.values() if record.trial.option == summary.name]
        reruns = {r.trial.seed: r for r in trials if r is not summary.completed.get(r.trial.seed) and is_unclean(r)}
        if reruns and (state := state_of(reruns[min(reruns)])):
            sides = ((before, first_summary), (contest, summary))
            figures = [_figure_with_ratio(c, s) for c, s in sides if s.values[metric]]
            lines.append(
                f"{summary.name}, {seeds_words(sorted(reruns))}: run again, as {state.words}. "
                f"By {metric} with what was replaced {', without it '.join(figures)}"
            )
    return lines


def _outlier_lines(contest: Contest) -> list[str]:
    """A line for each trial that is an outlier by the objective, by speed or by a constraint's metric."""
    decide = contest.suite.decide
    constrained = [parse_constraint(text).metric for text in decide.constraints]
    lines = []
    for metric in dict.fromkeys([decide.objective, "tokens_per_second", *constrained]):
        for (option, seed), factor in contest.outliers(metric).items():
            lines.append(
                f"{option}, seed {seed} stands out: its {metric} is {units.ratio(factor)} of what its option and "
                "round let expect. It counts and widens the intervals, so more seeds are no remedy: look into its "
                "log for the cause"
            )
    return lines


def _first_attempts(records: Sequence[Record]) -> dict[str, Record]:
    """All trials of the contest, with the first attempts of those that were run again; {} where none was."""
    counting = {record.trial.trial_id: record for record in contest_trials(records)}
    first: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: record.attempt):
        later = counting.get(record.trial.trial_id)
        is_earlier = later is not None and record.phase == "contest" and record.attempt < later.attempt
        if is_earlier and isinstance(record.outcome, Completed) and is_unclean(record):
            first.setdefault(record.trial.trial_id, record)
    return {**counting, **first} if first else {}


def _figure_with_ratio(contest: Contest, summary: Summary) -> str:
    """`129 tokens/s (against the baseline: 1.29x, 1.28x to 1.30x)`."""
    metric, value = contest.objective, summary.mean(contest.objective.name)
    words = f"{metric.show(value)}{metric.after_figure}"
    ratio, low, high = contest.interval(summary.name, metric.name)
    if ratio is None or summary.name == contest.baseline.name:
        return words
    against = metric.against(ratio, low, high, value / ratio if value else None)
    return f"{words} (against the baseline: {', '.join(filter(None, against))})"

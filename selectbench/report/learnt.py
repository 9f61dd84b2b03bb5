"""What was learnt, to look at: scores of generated text, samples side by side, where the loss lies. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from selectbench import units
from selectbench.analysis.result import Ranking, ScoreDifference
from selectbench.analysis.scores import RESAMPLES, SEED
from selectbench.analysis.summary import mean
from selectbench.record.record import Completed, Inside, Measurement, Record
from selectbench.report.charts import Counting, attention_chart
from selectbench.report.document import (
    Amount,
    Amounts,
    Block,
    Cell,
    Charts,
    Column,
    Details,
    Listing,
    Section,
    Shaded,
    Table,
    clean,
    one_line,
)
from selectbench.suite.job import OWN_SCORE, SCORES
from selectbench.suite.metrics import METRICS

_COPY = "copying the source"
_MOST_OPTIONS = 8
_MOST_MAPS = 3
_DARKEST_NATS = 8.0
_LONGEST = 240
_MEANING = (
    "They say whether other test sentences would have shown the same order; they say nothing of other seeds, which "
    "the ranking's own intervals do."
)
_METHOD = (
    f"Paired bootstrap (Koehn 2004): {RESAMPLES:,} draws of the test sentences with replacement, the same for all "
    f"options and seeds (generator's seed {SEED}), each scored as a whole; mean over the seeds that both "
    "completed. Interval and two-sided p are of each comparison by itself, not adjusted for the others; "
    "nothing is claimed with them."
)


def learnt_sections(ranking: Ranking, done: Counting) -> Iterator[Section]:
    """Nothing for runs that are older."""
    scores = list(_scores(ranking, done))
    if scores:
        yield Section("scores", "Scores of what was generated", scores)
    looks = _first_looks(done)
    found: list[Block] = [*_samples(looks), *_inside(looks)]
    if found:
        yield Section("learnt", "What the trained models say", found)


def _measurements(own: Sequence[Record]) -> list[Measurement]:
    return [record.outcome.measurement for record in own if isinstance(record.outcome, Completed)]


def _scores(ranking: Ranking, done: Counting) -> Iterator[Block]:
    """Means over seeds, a row for each option and one for copying the source, and how they were computed."""
    every = [m for own in done.values() for m in _measurements(own)]
    scored = {name for m in every for name in m.scores}
    names = [name for name in (*SCORES, OWN_SCORE) if name in scored]
    if not names:
        return
    rows: list[list[Cell]] = [
        [option, *(_mean([m.scores.get(name) for m in _measurements(own)]) for name in names)]
        for option, own in done.items() if own
    ]  # fmt: skip
    rows.append([_COPY, *(_mean([m.copy_scores.get(name) for m in every]) for name in names)])
    yield Table(
        [Column("option"), *(Column(METRICS[name].title, "right") for name in names)], rows,
        "Scores of what was generated, means over seeds; the last row is what no understanding at all scores",
    )  # fmt: skip
    signed = dict.fromkeys((n, m.score_signatures[n]) for m in every for n in names if n in m.score_signatures)
    yield Listing([f"{METRICS[name].title}: {signature}" for name, signature in signed])
    yield from _differences(ranking)


def _mean(values: Sequence[float | None]) -> Amount:
    return Amount(mean([value for value in values if value is not None]), units.significant)


def _differences(ranking: Ranking) -> Iterator[Block]:
    """Differences of scores over the choice of the test sentences, and what they say and do not."""
    if not ranking.score_differences:
        return
    left, right = ("option", "score"), ("difference", "95 % interval", "p", "sentences", "seeds")
    columns = [*map(Column, left), *(Column(head, "right") for head in right)]
    rows = [_difference_cells(found) for found in ranking.score_differences]
    yield Table(columns, rows, "Scores against the baseline's, over the choice of the test sentences")
    from_baseline = f"Differences are from the baseline {one_line(ranking.baseline)}. {_MEANING}"
    yield Listing([from_baseline, _METHOD, *_missing(ranking)])


def _difference_cells(found: ScoreDifference) -> list[Cell]:
    return [
        found.option, METRICS[found.score].title, Amount(found.difference, units.score_difference),
        Amounts(() if found.difference is None else (found.low, found.high), units.score_difference),
        Amount(found.p, _two_digits),
        Amount(found.sentences, units.count), str(found.seeds),
    ]  # fmt: skip


def _two_digits(value: float | None) -> str:
    return units.significant(value, 2)


def _missing(ranking: Ranking) -> list[str]:
    reasons = {(found.option, found.not_compared): None for found in ranking.score_differences}
    told = [f"{option} is not compared: {reason}." for option, reason in reasons if reason]
    own = any(row.metrics[OWN_SCORE].value is not None for row in ranking.rows)
    return [*told, *(["A score of own code is known as a whole only: it is not drawn anew."] if own else [])]


def difference_lines(ranking: Ranking) -> list[str]:
    """A line of a terminal for each score."""
    told: dict[str, list[str]] = {}
    for found in ranking.score_differences:
        if found.difference is not None:
            ends = f"{units.score_difference(found.low)} to {units.score_difference(found.high)}"
            said = f"{one_line(found.option)} {units.score_difference(found.difference)} ({ends})"
            told.setdefault(METRICS[found.score].title, []).append(said)
    against = f"against {one_line(ranking.baseline)}, 95 % over other test sentences, not over seeds"
    return [f"{title} {against}: {', '.join(lines)}" for title, lines in told.items()]


def _first_looks(done: Counting) -> dict[str, Inside]:
    """Of each option the first seed's."""
    found = {option: next((r.inside for r in own if r.inside), None) for option, own in done.items() if own}
    return {option: inside for option, inside in list(found.items())[:_MOST_OPTIONS] if inside}


def _samples(looks: Mapping[str, Inside]) -> Iterator[Table]:
    """Samples side by side; of options with other tokenizers prompts differ, and stand by themselves."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for option, inside in looks.items():
        for sample in inside.samples:
            found.setdefault((sample.prompt, sample.reference or ""), []).append((option, sample.said))
    for (prompt, reference), said in found.items():
        itself = [["(the text itself)", one_line(reference, _LONGEST)]] if reference else []
        rows = [*itself, *([option, one_line(words, _LONGEST)] for option, words in said)]
        caption = f"Given: {one_line(prompt, _LONGEST)}"
        yield Table([Column("option"), Column("goes on")], rows, caption, is_titled=True)


def _inside(looks: Mapping[str, Inside]) -> Iterator[Details]:
    """Where the loss lies in held-out text, and what is attended to."""
    shaded = [_shaded(option, inside) for option, inside in looks.items() if inside.tokens]
    if shaded:
        yield Details("Where the loss lies: held-out text, the darker the worse it was foretold", shaded)
    seen = [(option, inside) for option, inside in looks.items() if inside.attention][:_MOST_MAPS]
    if seen:
        maps = [attention_chart(option, inside) for option, inside in seen]
        yield Details("What is attended to: last layer, mean over heads", [Charts(maps)])


def _shaded(option: str, inside: Inside) -> Shaded:
    """Each token with the share of the darkest colour."""
    average = units.significant(sum(inside.token_losses) / len(inside.token_losses), 3)
    words = [
        (_visible(word), min(1.0, nats / _DARKEST_NATS), f"{nats:.2f} nats")
        for word, nats in zip(inside.tokens, inside.token_losses, strict=True)
    ]
    return Shaded(f"{one_line(option, 120)} (mean {average} nats)", words)


def _visible(word: str) -> str:
    return clean(word.replace("\n", "\u21b5")).replace("\n", " ")[:40]

"""What was learnt, to look at: scores of generated text, samples side by side, where the loss lies. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selectbench import units
from selectbench.analysis.row import Ranking
from selectbench.analysis.summary import mean
from selectbench.record.inside import Inside
from selectbench.record.record import Completed, Measurement, Record
from selectbench.report.counting import Counting
from selectbench.report.escape import markdown, one_line, table
from selectbench.report.score_differences import difference_section
from selectbench.suite.evaluate import OWN_SCORE, SCORES
from selectbench.suite.metrics import METRICS

COPY = "copying the source"
MOST_OPTIONS = 8
_LONGEST = 240


def _measurements(own: Sequence[Record]) -> list[Measurement]:
    return [record.outcome.measurement for record in own if isinstance(record.outcome, Completed)]


def score_rows(done: Counting) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings, a row for each option and one for copying the source, and how the scores were computed."""
    every = [m for own in done.values() for m in _measurements(own)]
    scored = {name for m in every for name in m.scores}
    names = [name for name in (*SCORES, OWN_SCORE) if name in scored]
    if not names:
        return [], [], []
    rows = [
        [option, *(_mean([m.scores.get(name) for m in _measurements(own)]) for name in names)]
        for option, own in done.items()
        if own
    ]
    rows.append([COPY, *(_mean([m.copy_scores.get(name) for m in every]) for name in names)])
    signatures = dict.fromkeys(f"{METRICS[n].title}: {m.score_signatures[n]}" for m in every for n in names
                               if n in m.score_signatures)  # fmt: skip
    return ["option", *(METRICS[name].title for name in names)], rows, list(signatures)


def _mean(values: Sequence[float | None]) -> str:
    return units.significant(mean([value for value in values if value is not None]), 4)


@dataclass(frozen=True)
class Said:
    """What the options said to one prompt."""

    prompt: str
    reference: str
    by_option: list[tuple[str, str]]


def first_looks(done: Counting) -> dict[str, Inside]:
    """Of each option the first seed's."""
    found = {option: next((r.inside for r in own if r.inside), None) for option, own in done.items() if own}
    return {option: inside for option, inside in list(found.items())[:MOST_OPTIONS] if inside}


def said(looks: Mapping[str, Inside]) -> list[Said]:
    """Samples side by side; of options with other tokenizers prompts differ, and stand by themselves."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for option, inside in looks.items():
        for sample in inside.samples:
            found.setdefault((sample.prompt, sample.reference or ""), []).append((option, sample.said))
    return [Said(prompt, reference, options) for (prompt, reference), options in found.items()]


def learnt_section(ranking: Ranking, done: Counting) -> list[str]:
    """The section in Markdown, or nothing for runs that are older."""
    heads, rows, signatures = score_rows(done)
    parts: list[str] = []
    if rows:
        parts += [
            "## Scores of what was generated",
            table(heads, [[markdown(c) for c in row] for row in rows], right=1),
        ]
        parts.append("\n".join(f"- {markdown(line)}" for line in signatures))
        parts += difference_section(ranking)
    samples = said(first_looks(done))
    if samples:
        parts.append("## What the trained models say")
    for sample in samples:
        own = [["(the text itself)", _text(sample.reference)]] if sample.reference else []
        own += [[markdown(option), _text(words)] for option, words in sample.by_option]
        parts += [f"Given: {_text(sample.prompt)}", table(["option", "goes on"], own, right=2)]
    return parts


def _text(text: str) -> str:
    return markdown(one_line(text, _LONGEST))

"""Whether the rows did the same job, in a few plain lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from selectbench.analysis.result import Ranking, Row, Violation
from selectbench.report.document import one_line

_THE_JOB = {
    "initial_weights_sha256": "weights", "token_stream_sha256": "tokens", "evaluation_set_sha256": "evaluation set",
    "learning_rate_shape_sha256": "schedule", "steps_applied": "step count",
}  # fmt: skip
"""What a reader calls the job, by identity field."""
_MOST_NAMES = 12


def in_full(ranking: Ranking) -> list[str]:
    """A sentence for each group of rows that differ from the baseline alike, then every violation."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in _compared(ranking):
        found = row.identity
        key = (*found.compared_with, *found.differs_as_declared, *found.not_verified, *_dimensions([row]))
        groups.setdefault(key, []).append(row)
    sentences = [line for rows in groups.values() for line in _said(ranking, rows, one_group=len(groups) == 1)]
    return sentences + [line for row in ranking.rows for line in not_the_same_job(row)]


def in_short(ranking: Ranking) -> list[str]:
    """The same in one line for all rows that are comparable, and one for what was not verified."""
    return _said(ranking, _compared(ranking), one_group=True)


def not_the_same_job(row: Row) -> list[str]:
    """A line for each violation: field and both values."""
    return [f"{one_line(row.option)}: not the same job: {violation_text(v)}" for v in row.identity.violations]


def violation_text(violation: Violation) -> str:
    """`attention: asked eager, found sdpa (seed 0)`, or the option's value and the one compared with."""
    option, other = _brief(violation.option), _brief(violation.baseline)
    seeds = f"seed{'s' if len(violation.seeds) > 1 else ''} {', '.join(map(str, violation.seeds))}"
    if violation.asked is not None:
        return f"{violation.field}: asked {_brief(violation.asked)}, found {option} ({seeds})"
    return f"{violation.field} is {option}, {other} for {one_line(violation.against)} ({seeds})"


def _compared(ranking: Ranking) -> list[Row]:
    return [row for row in ranking.rows if row.identity.comparable and row.identity.compared_with]


def _said(ranking: Ranking, rows: Sequence[Row], one_group: bool) -> list[str]:
    """The sentence for these rows, and a line for what of them could not be seen."""
    hidden = _united(row.identity.not_verified for row in rows)
    same = _same(ranking, {*hidden, *_united(row.identity.differs_as_declared for row in rows)})
    lines = []
    if rows and same:
        opening = "Same job, as far as verified" if hidden else "Same job"
        verb = "is" if len(same) == 1 else "are"
        lines.append(f"{opening}: {_difference(ranking, rows, one_group)}; {_and(same)} {verb} the same.")
    if hidden:
        rows_by_entry = {entry: [row for row in rows if entry in row.identity.not_verified] for entry in hidden}
        said = [f"{_words(entry)} ({_names(found)})" for entry, found in rows_by_entry.items()]
        lines.append(f"Not verified: {'; '.join(said)}.")
    return lines


def _difference(ranking: Ranking, rows: Sequence[Row], one_group: bool) -> str:
    every = one_group and len(rows) > 1
    who = "every other row" if every else _names(rows)
    verb = "differs" if every or len(rows) == 1 else "differ"
    references = _united(row.identity.compared_with for row in rows)
    against = f"{who} {verb} from {_and([one_line(name) for name in references])}"
    fields = _united(row.identity.differs_as_declared for row in rows)
    if not fields:
        return f"{against} in nothing that was checked"
    alike = all(row.identity.differs_as_declared == fields for row in rows)
    declared = (
        f" (declared: {', '.join(_dimensions(rows))})" if references == [ranking.baseline] else ", as declared"
    )
    return f"{against} {'only' if alike else 'at most'} in {_and([_words(field) for field in fields])}{declared}"


def _same(ranking: Ranking, others: set[str]) -> list[str]:
    """The parts of the job that are shown to be equal; an evaluation set only where there was one."""
    if any(entry.startswith("identity:") for entry in others):
        return []
    evaluated = any(row.metrics["final_loss"].value is not None for row in ranking.rows)
    shown = [f for f in _THE_JOB if f not in others and (evaluated or f != "evaluation_set_sha256")]
    return [_THE_JOB[field] for field in shown]


def _dimensions(rows: Sequence[Row]) -> list[str]:
    return _united([path.partition(".")[0] for path in row.differs_in] for row in rows)


def _united(lists: Iterable[list[str]]) -> list[str]:
    """Every member once, in order."""
    return list(dict.fromkeys(member for members in lists for member in members))


def _names(rows: Sequence[Row]) -> str:
    names = [one_line(row.option) for row in rows]
    more = len(names) - _MOST_NAMES
    return _and(names) if more <= 0 else f"{', '.join(names[:_MOST_NAMES])} and {more} more"


def _words(entry: str) -> str:
    """A field's name as words; a reason stays."""
    name, colon, reason = entry.partition(":")
    return name.removesuffix("_sha256").replace("_", " ") + colon + reason


def _brief(value: object) -> str:
    """Digests by their first twelve digits, lists by their members, the rest whole."""
    if isinstance(value, list):
        return one_line("+".join(map(str, value))) or "none"
    return value[:12] if isinstance(value, str) and len(value) == 64 else one_line(str(value))


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))

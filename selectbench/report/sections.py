"""The whole report of a run as a document, and what was found about the options, section by section. Pure.

What it was found under (GPUs, memory, cost, the job itself) is in `conditions`, the ranking's table in `ranking`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from selectbench import units
from selectbench.analysis.recommendation import TIME_TO_LOSS_RULE
from selectbench.analysis.result import FactorView, Ranking, Row, Share
from selectbench.record.record import Record
from selectbench.report.charts import Counting, charts, counting, without_meters
from selectbench.report.document import (
    Block,
    Card,
    Cards,
    Charts,
    Code,
    Column,
    Details,
    Document,
    Listing,
    Literally,
    Paragraph,
    Ratio,
    Section,
    Table,
    first_line,
    one_line,
)
from selectbench.report.evidence import cleaning_lines, cost_section, gpu_section, memory_sections, method
from selectbench.report.files import by_option
from selectbench.report.learnt import difference_lines, learnt_sections
from selectbench.report.own_best import own_best_section, search_lines
from selectbench.report.ranking import (
    causes,
    in_full,
    in_short,
    noted,
    ranking_table,
    table_notes,
    ties_note,
    to_loss,
)
from selectbench.suite.suite import Suite
from selectbench.text import choices_yaml

Medium = Literal["markdown", "page"]
_DETAIL_LINES = 20
_FACTORS = (
    "Each factor's effect is on the objective, against the baseline's level, averaged over the other factors' "
    "levels within every seed; an interaction is what two levels do together beyond their effects. Intervals are "
    "95 % each by itself, over seeds; no claim is made of them."
)
_SAME_JOB = {True: "same job", False: "not the same job", None: "nothing to compare"}
_PRICES = {"seconds": "time", "tokens": "tokens", "joules": "energy", "usd": "cost"}


def report(
    suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any], command: str,
    medium: Medium,
) -> Document:  # fmt: skip
    """The whole report. `records`: those that count; `command` repeats the run; `environment`: environment.json.

    `medium` decides the columns of the ranking, and pictures are drawn for a page alone.
    """
    done = counting(ranking, records)
    sections = [
        *_found(ranking, records, done, medium),
        *gpu_section(ranking),
        *cost_section(suite, ranking),
        *_failures(ranking),
        *_listed("warnings", "Warnings", ranking.warnings, is_warning=True),
        *_listed("text", "The text", cleaning_lines(environment.get("data") or {})),
        *_listed("method", "How it was measured", method(suite, ranking, records, environment)),
        Section("again", "Run it again", [Code(command)]),
        Section("environment", "Environment", [_pairs("what", _flat(environment), "Where it ran")], is_folded=True),
        Section("options", "Options", _options(suite), is_folded=True),
    ]
    return Document(
        ranking.suite, sections, ranking.question, ranking.answer, _is_decided(ranking),
        _facts(suite, ranking, environment),
    )  # fmt: skip


def _found(ranking: Ranking, records: Sequence[Record], done: Counting, medium: Medium) -> Iterator[Section]:
    table = ranking_table(ranking, medium)
    yield Section("ranking", "Ranking", [table, Listing(table_notes(ranking)), *_constraints(ranking)])
    yield from _verdicts(ranking)
    if medium == "page":
        yield _pictures(ranking, records, done)
    yield from learnt_sections(ranking, done)
    yield from _factors(ranking)
    yield from own_best_section(ranking)
    yield from _to_loss(ranking)
    yield _same_job(ranking)
    yield from memory_sections(ranking)


def _is_decided(ranking: Ranking) -> bool:
    """Whether one row was shown to be first."""
    return bool(ranking.rows) and ranking.rows[0].rank == 1 and not ranking.rows[0].tied_with


def _facts(suite: Suite, ranking: Ranking, environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    gpus = environment.get("gpus") or []
    names = dict.fromkeys(str(gpu.get("name")) for gpu in gpus if isinstance(gpu, Mapping))
    hardware = ", ".join(names) if suite.device == "cuda" and names else environment.get("cpu_model")
    torch = (environment.get("libraries") or {}).get("torch")
    facts = [
        ("baseline", ranking.baseline), ("ranked by", ranking.objective), ("device", ranking.device),
        ("hardware", hardware), ("torch", torch), ("seeds", ", ".join(map(str, ranking.seeds[:12]))),
        ("constraints", "; ".join(suite.decide.constraints)),
    ]  # fmt: skip
    return [(key, one_line(str(value), 160)) for key, value in facts if value]


def _listed(name: str, heading: str, lines: Sequence[str], *, is_warning: bool = False) -> list[Section]:
    return [Section(name, heading, [Listing(lines, is_warning)])] if lines else []


def _pairs(head: str, pairs: Iterator[tuple[str, str]], caption: str) -> Table:
    return Table([Column(head), Column("value")], [list(pair) for pair in pairs], caption)


def _constraints(ranking: Ranking) -> list[Block]:
    """What was tested of each row."""
    heads = ("option", "constraint", "verdict", "found", "to settle it")
    rows = [
        [row.option, c.constraint, c.verdict.replace("_", " "), c.detail,
         f"{c.settling.seeds} more seeds" if c.settling else ""]
        for row in ranking.rows for c in row.constraints
    ]  # fmt: skip
    table = Table([Column(head) for head in heads], rows, "What was tested of each row")
    return [Details("Constraints, row by row", [table])] if rows else []


def _verdicts(ranking: Ranking) -> Iterator[Section]:
    """The named verdicts with their options' settings; nothing where the run has no figures for any."""
    if not ranking.verdicts:
        return
    cards = [Card(v.title, v.option, v.sentence, v.confidence, v.sure) for v in ranking.verdicts]
    settings = [
        Code(choices_yaml(v.choices), (
            f"Settings of {v.option}, in ", Literally(str(v.file)), " of the run's folder; typed there, ",
            Literally(str(v.command)), " trains it:"))
        for v in by_option(ranking)
    ]  # fmt: skip
    yield Section("verdicts", "Which to take", [Cards(cards), *settings])


def _pictures(ranking: Ranking, records: Sequence[Record], done: Counting) -> Section:
    drawn: list[Block] = [Charts(charts(ranking, done))]
    if not any(row.gpu for row in ranking.rows):
        drawn.append(Paragraph(f"Memory and power over time are not drawn: {without_meters(records)}."))
    return Section("pictures", "Pictures", drawn)


def factor_lines(ranking: Ranking) -> list[str]:
    """The gain of the first row taken apart, or nothing where the options are no grid."""
    view = ranking.factors
    if view is None or view.best is None or not view.shares:
        return []
    parts = [
        f"{units.ratio(share.ratio)} from {_named(share.factor, share.level)}{_doubt(view, share)}"
        for share in view.shares
    ]
    more = view.together
    rest = f", and {units.ratio(more)} from what they do together" if more is not None and len(parts) > 1 else ""
    return [f"{one_line(view.best)} is {units.ratio(view.best_ratio)} the baseline: {', '.join(parts)}{rest}"]


def _named(factor: str, level: str) -> str:
    """`precision bf16_mixed`; of factors that always change together the first, with the others beside it."""
    first, *others = factor.split(" = ")
    beside = f" (with {one_line(', '.join(others))})" if others else ""
    return f"{one_line(first)} {one_line(level)}{beside}"


def _doubt(view: FactorView, share: Share) -> str:
    """Said where the effect's own interval does not leave 1 out."""
    found = next(e for e in view.effects if (e.factor, e.level) == (share.factor, share.level))
    told = found.low is not None and found.high is not None and not found.low <= 1 <= found.high
    return "" if told else " (not told from none)"


def _factors(ranking: Ranking) -> Iterator[Section]:
    """A grid's main effects and interactions."""
    view = ranking.factors
    if view is None:
        return
    effects = Table(
        [Column("factor"), Column("level"), Column("against"), Column("objective", "right")],
        [[e.factor, e.level, e.against, Ratio(e.ratio, e.low, e.high)] for e in view.effects],
        "Effect on the objective, averaged over the other factors; intervals each by itself",
    )
    together = Table(
        [Column("strongest interactions"), Column("beyond their effects", "right")],
        [[" and ".join(f"{f}={level}" for f, level in zip(i.factors, i.levels, strict=True)),
          Ratio(i.ratio, i.low, i.high)] for i in view.interactions],
        "Strongest interactions: beyond what each does alone",
    )  # fmt: skip
    lines = [Paragraph(f"{line}.") for line in factor_lines(ranking)]
    tables = [effects, *([together] if view.interactions else [])]
    yield Section("factors", "Factors", [*lines, *tables, Paragraph(_FACTORS)])


def _to_loss(ranking: Ranking) -> Iterator[Section]:
    """What the baseline's final loss takes, or nothing where no row tells."""
    rows = [row for row in ranking.rows if row.to_loss]
    known = [name for name in _PRICES if any(getattr(row.to_loss, name) is not None for row in rows)]
    if known:
        columns = [Column("option"), *(Column(_PRICES[name], "right") for name in known)]
        cells = [[row.option, *(to_loss(row, name) for name in known)] for row in rows]
        table = Table(columns, cells, "What it takes to reach the loss that the baseline ends with")
        yield Section("to-loss", "To the baseline's final loss", [table, Paragraph(TIME_TO_LOSS_RULE)])


def _same_job(ranking: Ranking) -> Section:
    heads = ("option", "verdict", "differs as declared", "violations", "not verified")
    rows = [
        [row.option, _SAME_JOB[row.identity.comparable],
         ", ".join(row.identity.differs_as_declared) or units.DASH,
         ", ".join(v.field for v in row.identity.violations) or "none",
         "; ".join(row.identity.not_verified) or "nothing"]
        for row in ranking.rows
    ]  # fmt: skip
    table = Table([Column(head) for head in heads], rows, "What differs from the baseline")
    blocks: list[Block] = [Listing(in_full(ranking)), Details("The certificate, row by row", [table])]
    return Section("identity", "Whether it was the same job", blocks)


def _failures(ranking: Ranking) -> Iterator[Section]:
    """Rows that fail constraints, then every failed trial with its detail."""
    barred = [[row.option, why] for row in ranking.rows for why in _why_not(row)]
    if barred:
        table = Table([Column("option"), Column("why")], barred, "Rows that may not be ranked")
        yield Section("not-eligible", "Not eligible", [table])
    failed = [(row.option, failure) for row in ranking.rows for failure in row.failures]
    if not failed:
        return
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for name, f in failed:
        seeds.setdefault((name, f.kind, first_line(f.detail, 200) + noted(f)), []).append(str(f.seed))
    rows = [[name, ", ".join(numbers), kind, detail] for (name, kind, detail), numbers in seeds.items()]
    table = Table([Column(head) for head in ("option", "seeds", "kind", "detail")], rows, "Failed trials")
    yield Section("failures", "Failed trials", [table, *_details(ranking)])


def _details(ranking: Ranking) -> Iterator[Code]:
    """The end of what a failed trial said, where the table does not hold all of it."""
    failed = [(row.option, f) for row in ranking.rows for f in row.failures]
    for text in dict.fromkeys(f.detail for _, f in failed if one_line(f.detail) != first_line(f.detail, 200)):
        names = dict.fromkeys(f"{one_line(name)}, seed {f.seed}" for name, f in failed if f.detail == text)
        yield Code("\n".join(text.strip().splitlines()[-_DETAIL_LINES:]), f"In full: {'; '.join(names)}")


def _why_not(row: Row) -> list[str]:
    """Constraints that it fails, and those that are undecided."""
    undecided = [f"undecided: {c.constraint}: {c.detail}" for c in row.constraints if c.verdict == "undecided"]
    return [*row.constraint_failures, *undecided]


def _options(suite: Suite) -> list[Block]:
    """Every setting of every option: a column each where options differ, the shared ones once."""
    settings = {option.name: dict(_flat(option.choices.model_dump(mode="json"))) for option in suite.options}
    paths = list(dict.fromkeys(path for found in settings.values() for path in found))
    differing = [path for path in paths if len({found.get(path) for found in settings.values()}) > 1]
    first = settings[suite.options[0].name]
    shared = ((path, first[path]) for path in paths if path not in differing)
    own = [[name, *(found.get(path, units.DASH) for path in differing)] for name, found in settings.items()]
    blocks: list[Block] = []
    if differing:
        blocks.append(Table([Column(head) for head in ("option", *differing)], own, "Where options differ"))
    return [*blocks, replace(_pairs("setting", shared, "Every option:"), is_titled=True)]


def summary(ranking: Ranking) -> Document:
    """For a terminal: the table, causes of what was not ranked, and warnings; the answer is said last."""
    lines = [
        *ties_note(ranking), *in_short(ranking), *causes(ranking), *_other_verdicts(ranking),
        *difference_lines(ranking), *factor_lines(ranking), *search_lines(ranking),
    ]  # fmt: skip
    blocks = (ranking_table(ranking, "terminal"), Listing(lines), Listing(ranking.warnings, is_warning=True))
    return Document(ranking.suite, (), ranking.question, ranking.answer, _is_decided(ranking), opening=blocks)


def _other_verdicts(ranking: Ranking) -> list[str]:
    """A line for each question whose answer is another option than the first row."""
    best = ranking.rows[0].option if ranking.rows and ranking.rows[0].rank is not None else None
    return [
        f"{found.title}: {found.sentence} {found.confidence}"
        for found in ranking.verdicts
        if found.option not in (None, best)
    ]


def _flat(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Pairs on one line each, not escaped for any language; empty parts left out."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            yield from _flat(part, f"{path}[{number}]")
    elif isinstance(value, (list, tuple)):
        yield one_line(path), one_line(", ".join(map(str, value))) or units.DASH
    else:
        yield one_line(path), units.DASH if value is None else one_line(str(value)) or units.DASH

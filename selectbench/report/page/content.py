"""What the page says, as plain strings and rows for its template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from selectbench import units
from selectbench.analysis.row import MetricValue, Ranking, Row
from selectbench.analysis.to_loss import RULE
from selectbench.record.record import Record
from selectbench.report.counting import counting
from selectbench.report.data import cleaning_lines
from selectbench.report.escape import clean, first_line, one_line
from selectbench.report.factors import factor_lines, together, with_ends
from selectbench.report.figures import (
    DOMINATION_NOTE,
    against_baseline,
    figure,
    known_columns,
    place,
    ties_note,
    unclean_note,
)
from selectbench.report.flat import flat
from selectbench.report.identity import in_full
from selectbench.report.method import method
from selectbench.report.own_best import search_cost, search_notes, search_tables
from selectbench.report.page.charts import charts
from selectbench.report.page.interval import interval_bars
from selectbench.report.page.learnt import learnt
from selectbench.report.page.series import without_meters
from selectbench.report.terminal import scaling_cells, scaling_headings, state
from selectbench.report.verdicts import by_option, to_loss_figure
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS, columns_of
from selectbench.suite.suite import Suite
from selectbench.yaml_text import choices_yaml

_COLUMNS = columns_of("page")


_SAME_JOB = {True: "same job", False: "not the same job", None: "nothing to compare"}


def content(
    suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """By the template's names. Strings are raw: the template escapes them."""
    done = counting(ranking, records)
    has_meters = any(row.gpu for row in ranking.rows)
    return {
        "name": one_line(ranking.suite), "question": one_line(ranking.question), "answer": one_line(ranking.answer),
        "decided": _decided(ranking), "scaling": scaling_headings(ranking),
        "facts": _facts(suite, ranking, environment), "verdicts": _verdicts(ranking),
        "settings": _settings(ranking),
        "warnings": [one_line(w) for w in ranking.warnings], "columns": _columns(ranking), "rows": _rows(ranking),
        "notes": _notes(ranking), "open": _open(ranking),
        "failures": _failures(ranking), "factors": _factors(ranking), "search": _search(ranking),
        "to_loss_rule": RULE if any(r.to_loss for r in ranking.rows) else "",
        "charts": charts(ranking, done), "meters": "" if has_meters else without_meters(records),
        "learnt": learnt(ranking, done), "text": cleaning_lines(environment.get("data") or {}),
        "identity": in_full(ranking), "certificates": _certificates(ranking),
        "method": [_bare(line) for line in method(suite, ranking, records, environment).split("\n")],
        "command": clean(command), "environment": list(flat(environment)), "options": _options(suite),
    }  # fmt: skip


def _decided(ranking: Ranking) -> bool:
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


def _verdicts(ranking: Ranking) -> list[dict[str, Any]]:
    return [
        {"title": one_line(v.title), "option": one_line(v.option or units.DASH), "sentence": one_line(v.sentence),
         "confidence": one_line(v.confidence), "sure": v.sure}
        for v in ranking.verdicts
    ]  # fmt: skip


def _settings(ranking: Ranking) -> list[dict[str, str]]:
    return [
        {"option": one_line(v.option or ""), "file": v.file or "", "command": v.command or "",
         "yaml": clean(choices_yaml(v.choices))}
        for v in by_option(ranking)
    ]  # fmt: skip


def _columns(ranking: Ranking) -> list[dict[str, Any]]:
    return [
        {"title": METRICS[name].title, "help": f"{name}; {METRICS[name].better} is better"}
        for name in _shown(ranking)
    ]


def _shown(ranking: Ranking) -> list[str]:
    known = known_columns(ranking, _COLUMNS)
    return [ranking.objective, *(name for name in known if name != ranking.objective)]


def _rows(ranking: Ranking) -> list[dict[str, Any]]:
    bars = interval_bars(ranking)
    reaches = any(row.to_loss for row in ranking.rows) and ranking.objective != SECONDS_TO_LOSS
    return [
        {"place": place(row), "order": number, "option": one_line(row.option, 120), "kind": _kind(row),
         "differs": "the baseline" if row.option == ranking.baseline else one_line(", ".join(row.differs_in), 160),
         **_ratio(row.metrics[ranking.objective]), "bar": bars.get(row.option, ""),
         "ratio_value": _sortable(row.metrics[ranking.objective].ratio_to_baseline),
         "scaling": scaling_cells(ranking, row), "cells": [_cell(row, name) for name in _shown(ranking)],
         "to_loss": {"text": to_loss_figure(row, "seconds"),
                     "value": _sortable(row.to_loss.seconds if row.to_loss else None)} if reaches else None,
         "n": f"{row.n} of {row.planned}", "n_value": row.n, "state": state(row),
         "dominated": ", ".join(row.dominated_by[:4])}
        for number, row in enumerate(ranking.rows, start=1)
    ]  # fmt: skip


def _ratio(metric: MetricValue) -> dict[str, str]:
    """The ratio, and its interval for a line of its own: on one line the two are the widest of all columns."""
    ratio, _, ends = against_baseline(metric).partition(" (")
    return {"ratio": ratio, "interval": ends.removesuffix(")")}


def _kind(row: Row) -> str:
    return "first" if row.rank == 1 else "ranked" if row.rank else "failed" if row.n == 0 else "barred"


def _cell(row: Row, name: str) -> dict[str, Any]:
    metric = row.metrics[name]
    deviation = metric.standard_deviation
    text = to_loss_figure(row, "seconds") if name == SECONDS_TO_LOSS else figure(name, metric)
    spread = f"±{METRICS[name].show(deviation)}" if deviation else ""
    return {"text": text, "wraps": name == SECONDS_TO_LOSS, "spread": spread, "value": _sortable(metric.value)}


def _sortable(value: float | None) -> str:
    return "" if value is None else repr(value)


def _notes(ranking: Ranking) -> list[str]:
    objective = METRICS[ranking.objective]
    return [
        f"Ranked by {objective.name} ({objective.better} is better).",
        *(f"{note}." for note in ties_note(ranking)),
        "Against the baseline: ratio with its simultaneous 95 % interval. ±: one standard deviation between seeds.",
        *([f"{DOMINATION_NOTE}."] if any(row.dominated_by for row in ranking.rows) else []),
        *(f"{one_line(row.option)}: {note}" for row in ranking.rows for note in row.notes),
        *unclean_note(ranking, _shown(ranking)),
    ]


def _open(ranking: Ranking) -> list[dict[str, str]]:
    """Constraints that a row fails, and those that are undecided or not judged."""
    return [
        {"option": one_line(row.option, 120), "verdict": c.verdict.replace("_", " "),
         "constraint": one_line(c.constraint),
         "detail": one_line(c.detail), "more": f"{c.settling.seeds} more seeds" if c.settling else ""}
        for row in ranking.rows for c in row.constraints
    ]  # fmt: skip


def _failures(ranking: Ranking) -> list[dict[str, str]]:
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in ranking.rows:
        for failure in row.failures:
            note = f" ({failure.note})" if failure.note else ""
            found.setdefault((row.option, failure.kind, failure.detail + note), []).append(str(failure.seed))
    return [
        {"option": one_line(option, 120), "seeds": ", ".join(seeds), "kind": kind,
         "detail": first_line(detail, 240),
         "full": "\n".join(clean(detail).strip().splitlines()[-20:]) if "\n" in detail.strip() else ""}
        for (option, kind, detail), seeds in found.items()
    ]  # fmt: skip


def _factors(ranking: Ranking) -> dict[str, Any] | None:
    view = ranking.factors
    if view is None:
        return None
    return {
        "lines": factor_lines(ranking),
        "effects": [[one_line(e.factor), one_line(e.level), one_line(e.against), with_ends(e.ratio, e.low, e.high)]
                    for e in view.effects],
        "interactions": [[one_line(together(i)), with_ends(i.ratio, i.low, i.high)] for i in view.interactions],
    }  # fmt: skip


def _search(ranking: Ranking) -> dict[str, Any] | None:
    if ranking.search is None:
        return None
    return {
        "cost": search_cost(ranking.search), "note": " ".join(search_notes(ranking.search)),
        "tables": [
            {"title": title, "heads": heads, "rows": [[one_line(cell, 200) for cell in row] for row in rows]}
            for title, heads, rows in search_tables(ranking.search)
        ],
    }  # fmt: skip


def _certificates(ranking: Ranking) -> list[dict[str, str]]:
    return [
        {"option": one_line(row.option, 120),
         "verdict": _SAME_JOB[row.identity.comparable],
         "declared": ", ".join(row.identity.differs_as_declared) or units.DASH,
         "violations": ", ".join(v.field for v in row.identity.violations) or "none",
         "hidden": one_line("; ".join(row.identity.not_verified)) or "nothing"}
        for row in ranking.rows
    ]  # fmt: skip


def _bare(line: str) -> str:
    """A line of a Markdown list as plain text."""
    return re.sub(r"\\([\\`*\[\]<>|#~&$_])", r"\1", line.removeprefix("- "))


def _options(suite: Suite) -> list[dict[str, Any]]:
    return [
        {"option": one_line(o.name, 120), "yaml": clean(choices_yaml(o.choices.model_dump(mode="json")))}
        for o in suite.options[:60]
    ]

"""ranking.csv: one row for each option, every metric with its ratio and interval. Pure."""

from __future__ import annotations

import csv
from io import StringIO

from selectbench.analysis.row import MetricValue, Ranking, Row
from selectbench.report.escape import one_line
from selectbench.suite.metrics import METRICS

_FIRST = ("rank", "option", "differs_in", "status", "eligible", "n", "planned")
_LAST = ("pareto", "tied_with", "dominated_by", "constraints", "failures")
_OF_A_METRIC = ("", "_standard_deviation", "_ratio_to_baseline", "_ratio_low", "_ratio_high")
_FORMULA = ("=", "+", "-", "@")


def render_csv(ranking: Ranking) -> str:
    """Rows in the ranking's order; unknown is an empty cell, a number is written so that it reads back the same.

    Words that a spreadsheet would take for a formula get an apostrophe in front.
    """
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*_FIRST, *(f"{name}{part}" for name in METRICS for part in _OF_A_METRIC), *_LAST])
    for row in ranking.rows:
        figures = [figure for name in METRICS for figure in _figures(row.metrics[name])]
        writer.writerow([*_first(row), *figures, *_last(row)])
    return stream.getvalue()


def _first(row: Row) -> list[object]:
    differs = "; ".join(row.differs_in)
    return [_number(row.rank), _words(row.option), _words(differs), row.status, row.eligible, row.n, row.planned]


def _figures(metric: MetricValue) -> list[str]:
    known = (metric.value, metric.standard_deviation, metric.ratio_to_baseline, metric.ratio_low, metric.ratio_high)
    return [_number(value) for value in known]


def _last(row: Row) -> list[str]:
    constraints = "; ".join(f"{c.constraint}: {c.verdict}" for c in row.constraints)
    failures = "; ".join(f"{f.kind} with seed {f.seed}" for f in row.failures)
    pareto = "" if row.pareto is None else str(row.pareto)
    return [pareto, *map(_words, ("; ".join(row.tied_with), "; ".join(row.dominated_by), constraints, failures))]


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _words(text: str) -> str:
    told = one_line(text)
    return f"'{told}" if told.startswith(_FORMULA) else told

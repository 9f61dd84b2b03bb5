"""The files of a run: report.md, report.html, ranking.csv, benchmark.json, and the head of a suite. Pure."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from io import StringIO
from itertools import chain
from textwrap import fill
from typing import Any

import numpy as np

from selectbench.analysis.result import Ranking, Row
from selectbench.record.record import Completed, Record
from selectbench.report import document as doc
from selectbench.report.charts import completed_by_option, interval_bars
from selectbench.report.ranking import table_rows
from selectbench.suite.metrics import METRICS
from selectbench.suite.suite import Suite
from selectbench.text import clean, json_text, one_line

_FIRST_COLUMNS = ("rank", "option", "differs_in", "status", "eligible", "n", "planned")
_LAST_COLUMNS = ("pareto", "tied_with", "dominated_by", "constraints", "failures")
_METRIC_SUFFIXES = ("", "_standard_deviation", "_ratio_to_baseline", "_ratio_low", "_ratio_high")
_FORMULA_STARTS = ("=", "+", "-", "@")


def render_csv(ranking: Ranking, *, guards: bool = True) -> str:
    """Rows in the ranking's order; numbers read back the same, unknown ones are empty.

    `guards`: words like a formula get an apostrophe in front.
    """
    text_of = _guarded_words if guards else "; ".join
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    other_metrics = [name for name in (ranking.rows[0].metrics if ranking.rows else ()) if name not in METRICS]
    names = [*METRICS, *other_metrics]
    metric_columns = [f"{name}{suffix}" for name in names for suffix in _METRIC_SUFFIXES]
    writer.writerow([*_FIRST_COLUMNS, *metric_columns, *_LAST_COLUMNS])
    for row in table_rows(ranking):
        metrics = [row.metrics[name] for name in names]
        figures = ((m.value, m.standard_deviation, m.ratio_to_baseline, m.ratio_low, m.ratio_high) for m in metrics)
        constraints = [f"{c.constraint}: {c.verdict}" for c in row.constraints]
        failures = [f"{f.kind} with seed {f.seed}" for f in row.failures]
        writer.writerow([
            row.rank, text_of([row.option]), text_of(row.differs_in), row.status, row.eligible, row.n, row.planned,
            *chain.from_iterable(figures), row.pareto,
            *map(text_of, (row.tied_with, row.dominated_by, constraints, failures)),
        ])  # fmt: skip
    return stream.getvalue()


def _guarded_words(parts: Sequence[str]) -> str:
    text = one_line("; ".join(parts))
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def benchmark_json(
    suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any]
) -> str:
    """The run as JSON of pytest-benchmark, with the time of the first trial. `records`: those that count."""
    seconds = {o: _seconds_per_step(suite, trials) for o, trials in completed_by_option(ranking, records).items()}
    cpu, system = environment.get("cpu_model") or "", environment.get("system") or ""
    content = {
        "machine_info": {
            "node": "", "processor": cpu, "machine": system,
            "python_version": environment.get("python") or "", "system": system,
            "cpu": {"brand_raw": cpu, "count": environment.get("cpu_count")},
            "gpus": environment.get("gpus") or [], "libraries": environment.get("libraries") or {},
        },
        "commit_info": {
            "id": environment.get("git_revision") or "unversioned", "dirty": bool(environment.get("git_dirty")),
            "project": suite.name, "time": None, "author_time": None, "branch": "",
        },
        "benchmarks": [_benchmark(suite, row, seconds[row.option]) for row in ranking.rows if seconds[row.option]],
        "datetime": min((r.started_at for r in records), default="1970-01-01T00:00:00Z"), "version": "5.0.0",
    }  # fmt: skip
    return json_text(content)


def _seconds_per_step(suite: Suite, completed: Sequence[Record]) -> list[float]:
    """Seconds per step of each completed seed of an option, in the suite's order."""
    measurements = {r.trial.seed: r.outcome.measurement for r in completed if isinstance(r.outcome, Completed)}
    measured = [measurements[seed] for seed in suite.seeds if seed in measurements]
    return [m.timed_seconds / m.timed_steps for m in measured if m.timed_steps and m.timed_seconds > 0]


def _benchmark(suite: Suite, row: Row, seconds: Sequence[float]) -> dict[str, Any]:
    extra = {name: row.metrics[name].value for name, metric in METRICS.items() if metric.exported}
    return {
        "group": suite.name, "name": row.option, "fullname": f"{suite.name}::{row.option}", "params": None,
        "param": None, "extra_info": {"rank": row.rank, "eligible": row.eligible, **extra},
        "options": {"disable_gc": False, "timer": "perf_counter", "min_rounds": len(seconds), "max_time": 0.0,
                    "min_time": 0.0, "warmup": True},
        "stats": _statistics(seconds),
    }  # fmt: skip


def _statistics(seconds: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(seconds)
    low, middle, high = (float(q) for q in np.percentile(ordered, (25, 50, 75), method="hazen"))
    mean, deviation = statistics.mean(seconds), statistics.stdev(seconds) if len(seconds) > 1 else 0.0
    inside = [value for value in ordered if low - 1.5 * (high - low) <= value <= high + 1.5 * (high - low)]
    far_from_mean = sum(abs(value - mean) > deviation for value in seconds)
    outside = len(seconds) - len(inside)
    return {
        "min": min(seconds), "max": max(seconds), "mean": mean, "stddev": deviation, "rounds": len(seconds),
        "median": middle,
        "iqr": high - low, "q1": low, "q3": high, "iqr_outliers": outside, "stddev_outliers": far_from_mean,
        "outliers": f"{far_from_mean};{outside}", "ld15iqr": inside[0], "hd15iqr": inside[-1],
        "ops": len(seconds) / sum(seconds), "total": sum(seconds), "data": list(seconds), "iterations": 1,
    }  # fmt: skip


def best_head(ranking: Ranking, file: str) -> str:
    """The comment at the head of a named option's file: the questions that the option answers, and how surely."""
    lines = ["A single option of a suite, ready for `selectbench run`. Why it was named:"]
    lines += [f"{v.title}: {v.headline}. {v.confidence}" for v in ranking.verdicts if v.file == file]
    # names of options are on one line, so that none breaks out of YAML's comment
    comments = (fill(
        one_line(line), 110, initial_indent="# ", subsequent_indent="#   ",
        break_long_words=False, break_on_hyphens=False,
    ) for line in lines)  # fmt: skip
    return "".join(f"{comment}\n" for comment in comments)


# report.html: one page that asks nothing of the network and works without scripts.


_NAME_MOST, _CELL_MOST = 120, 300
"""Most characters of a row's name, and of any other cell."""


def render_html(document: doc.Document, *, is_fragment: bool = False) -> str:
    """One page, the same bytes for the same arguments; `is_fragment`: an element for a notebook, no script."""
    from jinja2 import Environment, StrictUndefined  # slow to import, and needed here alone

    package = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "kind": lambda block: type(block).__name__, "rows": _html_rows, "line": one_line, "clean": clean,
        "coded": _code_markup,
    }  # fmt: skip
    template = environment.from_string(package.joinpath("page.html.j2").read_text(encoding="utf-8"))
    style, script = (package.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    style = _scoped(style) if is_fragment else style
    page = template.render(style=style, script=script, document=document, is_fragment=is_fragment)
    return page.rstrip("\n") + "\n"


# A notebook says whether it is light or dark, in JupyterLab, nbconvert, Colab and VS Code; else the system does.
_LIGHT = ":is([data-jp-theme-light=true],[theme=light],.vscode-light)"
_DARK = ":is([data-jp-theme-light=false],[theme=dark],.vscode-dark)"
_NOTEBOOK_RESETS = (
    "&{border:1px solid var(--rule);border-radius:8px;padding:4px 0 16px;font-size:15px;margin:4px 0}"
    "h1,h2,h3,p,li,summary,dd,th,td,pre,code{color:inherit;background:none}p,ul{margin:.6em 0}"
    "dt,dd{float:none;width:auto;margin:0;font-weight:400}dt{white-space:nowrap}"
    "table{margin:0;border:0;table-layout:auto}"
    "tr,tr:hover,tr:nth-child(odd),tr:nth-child(even){background:none}"
)
"""Resets the notebook's own rules for these elements; rules of the page come later and win."""
_FRAGMENT_STYLE = "h1{font-size:1.4rem}main{padding-bottom:0}"


def _scoped(style: str) -> str:
    """The page's style, scoped to one element and of more weight than the notebook's own (CSS nesting)."""
    places = {
        ":root:not([data-theme=light])": f"&:not({_LIGHT} .selectbench)", ":root[data-theme=dark]": f"{_DARK} &",
        ":root[data-theme=light]": f"{_LIGHT} &", ":root": "&",
    }  # fmt: skip
    for selector, element in places.items():
        style = style.replace(selector, element)
    scoped = re.sub(r"(?<![-a-z])body\{(margin:0;)?", "&{", style)
    return f".selectbench.selectbench.selectbench{{{_NOTEBOOK_RESETS}{scoped}{_FRAGMENT_STYLE}}}"


def _code_markup(text: str) -> Any:
    """One line as markup, with the words between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(one_line(text)))))


def _html_rows(table: doc.Table) -> list[list[dict[str, Any]]]:
    """Rows of cells, as the template names their parts; ratios in a column with bars have a bar each."""
    naming = {place for place, column in enumerate(table.columns) if column.names_row} or {0}
    columns = []
    for place, column in enumerate(table.columns):
        cells = [row[place] for row in table.rows]
        bars = interval_bars([cell for cell in cells if column.has_bars and isinstance(cell, doc.Ratio)])
        html = (_html_cell(cell, column, place in naming) for cell in cells)
        columns.append([{**cell, "bar": bar} for cell, bar in zip(html, bars or [""] * len(cells), strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _html_cell(cell: doc.Cell, column: doc.Column, names_row: bool) -> dict[str, Any]:
    """A cell by the template's names. A ratio's interval is below it: on one line both make the widest column."""
    value, remark = (cell.value, cell.remark) if isinstance(cell, doc.Stack) else (cell, "")
    text = one_line(doc.value_text(value), _NAME_MOST if names_row else _CELL_MOST)
    below = one_line(remark, _CELL_MOST)
    if isinstance(value, doc.Ratio) and column.has_bars:
        text, below = value.texts()
    if isinstance(value, doc.Figure):
        below = doc.spread(value)
    key = None if isinstance(value, str) else value.value
    is_words = isinstance(value, doc.Amount) and value.is_words
    wraps = "words" if column.align == "left" else "reach" if is_words else ""
    return {
        "text": text, "below": below, "names_row": names_row, "class": wraps,
        "key": "" if key is None else repr(key), "sorts_by_text": isinstance(value, str),
    }  # fmt: skip


# report.md, and what is pasted into issues.


_SPECIAL_CHARACTERS = re.compile(r"([\\`*\[\]<>|#~&$]|(?<![^\W_])_|_(?![^\W_]))")


def render_markdown(document: doc.Document) -> str:
    """The whole document as Markdown, everything escaped. The same arguments give the same bytes."""
    parts = [f"# {escape(document.title)}"]
    parts += [f"Question: {escape(document.question)}"] if document.question else []
    parts += [f"**{escape(document.answer)}**"] if document.answer else []
    parts += _markdown_blocks(document.opening)
    for section in document.sections:
        blocks = list(_markdown_blocks(section.blocks))
        parts += [f"## {section.heading}", *blocks] if blocks else []
    return "\n\n".join(parts) + "\n"


def _markdown_blocks(blocks: Sequence[doc.Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case doc.Paragraph():
                yield f"**{prose(block.text)}**" if block.is_strong else prose(block.text)
            case doc.Listing(items=items) if items:
                yield "\n".join(f"- {prose(item)}" for item in items)
            case doc.Table():
                yield from [prose(block.caption)] if block.is_titled else []
                yield markdown_table(block)
            case doc.Code():
                yield from [prose(block.caption)] if block.caption else []
                lines = clean(block.text).strip("\n").split("\n")
                yield "\n".join(f"    {line}".rstrip() for line in lines)  # indented: nothing inside can end it
            case doc.Cards():
                rows = [[card.title, card.sentence, card.confidence] for card in block.cards]
                yield markdown_table(doc.table("", ("asked for", "take", "how sure"), (), rows))


def markdown_table(block: doc.Table) -> str:
    """A table as Markdown."""
    rules = ["---:" if column.align == "right" else "---" for column in block.columns]
    heads = [escape(column.heading).replace(r"\#", "#") for column in block.columns]  # no heading within a cell
    rows = [[_markdown_cell(cell) for cell in row] for row in block.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rules, *rows))


def _markdown_cell(cell: doc.Cell) -> str:
    if isinstance(cell, doc.Stack):
        return escape(" ".join(filter(None, (doc.value_text(cell.value), cell.remark))))
    if isinstance(cell, doc.Figure):
        return " ".join(filter(None, (doc.value_text(cell), doc.spread(cell))))
    return escape(cell) if isinstance(cell, str) else doc.value_text(cell)


def prose(text: doc.Text) -> str:
    """A sentence on one line, escaped so that no name in it is read as Markdown or HTML."""
    if isinstance(text, str):
        return escape(text)
    return "".join(
        f"`{one_line(part.text)}`" if isinstance(part, doc.Literally)
        else " " * part[:1].isspace() + escape(part) + " " * part[-1:].isspace()  # its ends stay apart
        for part in text
    )  # fmt: skip


def escape(text: str) -> str:
    """One line, escaped so that nothing is read as Markdown or HTML; underscores within words need no escape."""
    return _SPECIAL_CHARACTERS.sub(r"\\\1", one_line(text))

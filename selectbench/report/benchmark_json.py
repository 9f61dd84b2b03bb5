"""benchmark.json: the run as pytest-benchmark writes its results, for `pytest-benchmark compare` and others.

One benchmark for each option; a round is a completed trial, its time the mean seconds of a timed optimizer step.
The keys and the definitions of the statistics are those of pytest-benchmark 5 (pytest_benchmark/stats.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selectbench.analysis.row import Ranking, Row
from selectbench.json_text import json_text
from selectbench.record.record import Completed, Record
from selectbench.report.counting import counting
from selectbench.suite.metrics import METRICS
from selectbench.suite.suite import Suite


def benchmark_json(
    suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any]
) -> str:
    """`records`: those that count. The same arguments give the same bytes: the time is that of the first trial."""
    rounds = {option: _rounds(suite, own) for option, own in counting(ranking, records).items()}
    content = {
        "machine_info": _machine(environment), "commit_info": _commit(suite, environment),
        "benchmarks": [_benchmark(suite, row, rounds[row.option]) for row in ranking.rows if rounds[row.option]],
        "datetime": min((r.started_at for r in records), default="1970-01-01T00:00:00Z"), "version": "5.0.0",
    }  # fmt: skip
    return json_text(content)


def _rounds(suite: Suite, done: Sequence[Record]) -> list[float]:
    """Seconds per step of each completed seed of an option, in the suite's order."""
    own = {r.trial.seed: r.outcome.measurement for r in done if isinstance(r.outcome, Completed)}
    measured = [own[seed] for seed in suite.seeds if seed in own]
    return [m.timed_seconds / m.timed_steps for m in measured if m.timed_steps and m.timed_seconds > 0]


def _machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "node": "", "processor": environment.get("cpu_model") or "", "machine": environment.get("system") or "",
        "python_version": environment.get("python") or "", "system": environment.get("system") or "",
        "cpu": {"brand_raw": environment.get("cpu_model") or "", "count": environment.get("cpu_count")},
        "gpus": environment.get("gpus") or [], "libraries": environment.get("libraries") or {},
    }  # fmt: skip


def _commit(suite: Suite, environment: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": environment.get("git_revision") or "unversioned", "dirty": bool(environment.get("git_dirty")),
        "project": suite.name, "time": None, "author_time": None, "branch": "",
    }  # fmt: skip


def _benchmark(suite: Suite, row: Row, data: Sequence[float]) -> dict[str, Any]:
    extra = {name: row.metrics[name].value for name, metric in METRICS.items() if metric.exported}
    return {
        "group": suite.name, "name": row.option, "fullname": f"{suite.name}::{row.option}", "params": None,
        "param": None, "extra_info": {"rank": row.rank, "eligible": row.eligible, **extra},
        "options": {"disable_gc": False, "timer": "perf_counter", "min_rounds": len(data), "max_time": 0.0,
                    "min_time": 0.0, "warmup": True},
        "stats": _stats(data),
    }  # fmt: skip


def _stats(data: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(data)
    low, middle, high = (float(q) for q in np.percentile(ordered, (25, 50, 75), method="hazen"))
    mean, deviation = statistics.mean(data), statistics.stdev(data) if len(data) > 1 else 0.0
    within = (low - 1.5 * (high - low), high + 1.5 * (high - low))
    inside = [value for value in ordered if within[0] <= value <= within[1]]
    far = sum(abs(value - mean) > deviation for value in data)
    outside = len(data) - len(inside)
    return {
        "min": min(data), "max": max(data), "mean": mean, "stddev": deviation, "rounds": len(data),
        "median": middle,
        "iqr": high - low, "q1": low, "q3": high, "iqr_outliers": outside, "stddev_outliers": far,
        "outliers": f"{far};{outside}", "ld15iqr": min(v for v in ordered if v >= within[0]),
        "hd15iqr": max(v for v in ordered if v <= within[1]), "ops": len(data) / sum(data), "total": sum(data),
        "data": list(data), "iterations": 1,
    }  # fmt: skip

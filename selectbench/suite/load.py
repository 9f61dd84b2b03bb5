"""From a suite file and the command line to a Suite. Every mistake is collected and told with its place.

Order: the file, then its profile, then `--set`, then `--axis` and `--seeds`, then `--quick`. Relative
paths of the file (text globs, a model's configuration, own code, interpreters) are relative to the suite's
folder; the suite holds them absolute, so that a worker anywhere, and a run's own suite.yaml, find them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from selectbench.choices import Choices
from selectbench.errors import did_you_mean
from selectbench.suite.auto_size import with_first_sizes, with_sizes_searched
from selectbench.suite.check import (
    check_accumulation,
    check_constraints,
    check_control,
    check_distinct,
    check_files,
    check_gate,
    check_interpreters,
    check_jobs,
    check_seeds,
    chosen_baseline,
    differences,
    tokenizers_differ,
    unmeasured_metrics,
    without_quality,
)
from selectbench.suite.check_tune import check_tune
from selectbench.suite.data import kind_of
from selectbench.suite.document import Node, Place, Problems, read_document
from selectbench.suite.grid import Row, excluded, rows_of
from selectbench.suite.job import Job
from selectbench.suite.left_open import LeftOpen, of_these_rows, taken_out, with_placeholders
from selectbench.suite.merge import merge_document
from selectbench.suite.metrics import METRICS
from selectbench.suite.overrides import apply_axes, apply_seeds, apply_settings
from selectbench.suite.paths import with_absolute_paths, with_interpreter
from selectbench.suite.problems import validate
from selectbench.suite.shipped import find
from selectbench.suite.suite import CONTROL, Decide, Option, Suite
from selectbench.suite.suitefile import SuiteFile

QUICK_STEPS = 20
"""Most optimizer steps of a `--quick` trial."""
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class _Request:
    """What the command line asks of a suite."""

    profile: str | None
    settings: Sequence[str]
    axes: Sequence[str]
    seeds: str | None
    quick: bool

    def applied(self, document: Node, problems: Problems) -> Node:
        document = apply_settings(document, self.settings, problems)
        return apply_seeds(apply_axes(document, self.axes, problems), self.seeds, problems)


def load_suite(
    reference: str, *, device: str, profile: str | None = None, settings: Sequence[str] = (),
    axes: Sequence[str] = (), seeds: str | None = None, quick: bool = False, require_files: bool = True,
) -> Suite:  # fmt: skip
    """The suite of a file, or the shipped one of that name, with the command line's changes.

    `device`, cpu or cuda, picks the profile of its name where the file has one and `profile` is None.
    `profile` cpu or cuda also decides the device, even where the file has no such profile; a `device`
    key in the file comes next. `require_files` False lets a model's configuration, own code and interpreters
    be gone, as a report of an old run needs none. Raises UserError with one line per mistake.
    """
    path = find(reference)
    top = read_document(path)
    problems = Problems()
    request = _Request(profile, settings, axes, seeds, quick)
    chosen_device = _device(top, profile, device)
    used = _profile_name(top, profile, chosen_device, problems)
    document = _prepared(top, used, path, request, problems)
    if require_files:
        check_files(document, problems)
    suite = _suite(document, path, used, chosen_device, request, problems, require_files=require_files)
    _check_other_profiles(top, used, path, problems)
    problems.raise_if_any()
    assert suite is not None
    return suite


def _device(top: Node, profile: str | None, device: str) -> Device:
    stated = top.mapping["device"].value if "device" in top.mapping else None
    asked = profile if profile in ("cpu", "cuda") else stated if stated in ("cpu", "cuda") else device
    return "cuda" if asked == "cuda" else "cpu"


def _profile_name(top: Node, asked: str | None, device: Device, problems: Problems) -> str | None:
    node = top.mapping.get("profiles")
    if node is not None and node.value is not None and not isinstance(node.value, dict):
        problems.at(node, "expected a mapping of profiles")
    profiles = list(node.mapping) if node is not None else []
    if asked is None or asked in profiles:
        return asked or (device if device in profiles else None)
    if asked not in ("cpu", "cuda"):
        hint = did_you_mean(asked, profiles) or f" (known: {', '.join(dict.fromkeys([*profiles, 'cpu', 'cuda']))})"
        problems.add(Place(f"--profile {asked}"), "", f"the suite has no such profile{hint}")
    return None


def _prepared(top: Node, profile: str | None, path: Path, request: _Request | None, problems: Problems) -> Node:
    """The file with the profile and the command line laid over it, its name and absolute paths put in."""
    document = top.without("profiles")
    if profile is not None:
        over = top.mapping["profiles"].mapping[profile]
        if over.value is not None and not isinstance(over.value, dict):
            problems.at(over, "expected a mapping")
        if "profiles" in over.mapping:
            problems.at(over.mapping["profiles"], "a profile has no profiles of its own")
        document = merge_document(document, over.without("profiles") if over.mapping else replace(over, value={}))
    if request is not None:
        document = request.applied(document, problems)
    # A key without a value (`axes:`) is one that is not given.
    document = document.without(*(key for key, node in document.mapping.items() if node.value is None))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "suite"
    named = (
        document if "name" in document.mapping else document.with_entries(name=Node(stem, document.place, "name"))
    )
    return with_absolute_paths(with_sizes_searched(named, problems), path.resolve().parent)


def _check_other_profiles(top: Node, used: str | None, path: Path, problems: Problems) -> None:
    """A misspelt key in the profile of another machine is told here already."""
    profiles = top.mapping["profiles"].mapping if "profiles" in top.mapping else {}
    for name in profiles:
        if name == used:
            continue
        found = Problems()
        document = _prepared(top, name, path, None, found)
        _, document = taken_out(document, found)
        validate(SuiteFile, document, found, own_only=True)
        for row in rows_of(document, found):
            validate(Choices, row.choices, found, own_only=True)
        problems.extend(found)


def _suite(
    document: Node, path: Path, profile: str | None, device: Device, request: _Request, problems: Problems, *,
    require_files: bool,
) -> Suite | None:  # fmt: skip
    asked, document = taken_out(document, problems)
    content: SuiteFile | None = validate(SuiteFile, document, problems)
    names, rows, left_open = _rows(
        document, path.resolve().parent, asked, from_command_line=bool(request.axes), problems=problems
    )
    check_accumulation(rows, document, device, problems)
    check_distinct(rows, document, problems)
    if require_files:
        check_interpreters(rows, problems)
    check_seeds(document, problems)
    quick = request.quick or (content is not None and content.quick)
    evaluates = quick or document.at(["job", "eval"]).value != "none"
    other_tokens = content is not None and tokenizers_differ([choices for _, choices in rows], content.job)
    unmeasured = unmeasured_metrics(
        evaluates=evaluates, on_the_way=quick or content is None or content.job.evaluates_on_the_way, device=device,
        has_prices="cost" in document.mapping, other_tokens=other_tokens,
        kind=kind_of(content.job.data) if content else "text",
        scored=content.job.scored if content else frozenset(),
    )  # fmt: skip
    if content is not None:
        check_jobs(rows, content.job, document, problems)
    check_constraints(document, problems, unmeasured)
    check_gate(document, problems, unmeasured)
    check_control(document, names, problems)
    if content is not None:
        check_tune(content, [choices for _, choices in rows], document, problems, complete=len(rows) == len(names))
    baseline = chosen_baseline(document, names, fall_back=bool(request.axes), problems=problems)
    if problems.found or content is None:
        return None
    return _assembled(content, rows, left_open, baseline, profile or content.profile, device, quick=quick)


def _rows(
    document: Node, folder: Path, open_choices: LeftOpen, *, from_command_line: bool, problems: Problems
) -> tuple[list[str], list[tuple[Row, Choices]], LeftOpen]:
    """Names of all rows that are not excluded, those rows that are valid, and what they leave open."""
    written = rows_of(document, problems)
    left_open = of_these_rows(open_choices, written, document, problems)
    begun = with_placeholders(with_first_sizes(written, document), left_open)
    asked = [replace(row, choices=with_interpreter(row.choices, folder)) for row in begun]
    validated = [(row, validate(Choices, row.choices, problems)) for row in asked]
    rows = [(row, choices) for row, choices in validated if choices is not None]
    gone: set[str] = set()
    if "exclude" in document.mapping and len(rows) == len(asked):
        gone = excluded(rows, document.mapping["exclude"], problems, strict=not from_command_line)
    kept = [pair for pair in rows if pair[0].name not in gone]
    return [row.name for row in asked if row.name not in gone], kept, left_open


def _assembled(
    content: SuiteFile, rows: list[tuple[Row, Choices]], left_open: LeftOpen, baseline: str, profile: str | None,
    device: Device, *, quick: bool,
) -> Suite:  # fmt: skip
    base = next(choices for row, choices in rows if row.name == baseline)
    sizes = [c.global_batch_size or content.job.global_batch_size for _, c in rows]
    job = _quickened(content.job, sizes) if quick else content.job
    apart = tokenizers_differ([c for _, c in rows], job)
    decide = _of_quality(_by_bytes(content.decide) if apart else content.decide)
    options = [Option(name=r.name, choices=c, differs_in=differences(job, c, base)) for r, c in rows]
    suite = Suite(
        name=content.name, question=content.question, profile=profile, device=device, quick=quick, job=job,
        options=[*options, *([Option(name=CONTROL, choices=base, differs_in=[])] if content.control else [])],
        baseline=baseline, seeds=content.seeds[:1] if quick else content.seeds,
        decide=decide if job.evaluates else without_quality(decide, other_tokens=apart),
        limits=content.limits, cost=content.cost, meters=content.meters, code=content.code, resolved={},
        control=content.control, gate=content.gate, left_open=left_open,
        tune=None if quick else content.tune, best_of=None if quick else content.best_of,
    )  # fmt: skip
    given = content.model_fields_set & {"cost", "meters", "control", "gate"}
    given |= {key for key in ("tune", "best_of") if getattr(suite, key) is not None}
    return suite.model_copy(update={"resolved": _resolved(suite, given)})


def _of_quality(decide: Decide) -> Decide:
    """Where quality itself is the objective, nothing is asked of quality besides unless the suite says so."""
    asks = "constraints" in decide.model_fields_set or not METRICS[decide.objective].quality
    return decide if asks else decide.model_copy(update={"constraints": []})


def _by_bytes(decide: Decide) -> Decide:
    """Where tokenizers differ a suite decides by default on text, not on tokens."""
    defaults = {"constraints": ["bits_per_byte <= 1.01x baseline"], "objective": "bytes_per_second"}
    return decide.model_copy(update={k: v for k, v in defaults.items() if k not in decide.model_fields_set})


def _quickened(job: Job, sizes: Sequence[int]) -> Job:
    """`sizes`: global batches of the options, for which the tokens must be the same."""
    steps = job.steps_for_all(QUICK_STEPS, sizes)
    schedule = job.lr_schedule.model_copy(update={"warmup_steps": min(job.lr_schedule.warmup_steps, steps)})
    return job.model_copy(update={"eval": "none", "max_steps": steps, "lr_schedule": schedule})


def _resolved(suite: Suite, given: set[str]) -> dict[str, Any]:
    """The suite as a file without profiles, axes or defaults left to chance; dimensions all share said once.

    Of what decides no figure of a trial, only the keys that were `given`.
    """
    asked = [option for option in suite.options if not (suite.control and option.name == CONTROL)]
    dumped = {option.name: option.choices.model_dump(mode="json") for option in asked}
    first = next(iter(dumped.values()))
    shared = {d: value for d, value in first.items() if all(row[d] == value for row in dumped.values())}
    own = {name: {d: v for d, v in row.items() if d not in shared} for name, row in dumped.items()}
    return {
        **suite.model_dump(mode="json", include={"name", "question", "device", "profile", "quick", "job", "code"}),
        "choices": {**shared, **suite.left_open.settings}, "options": own,
        **suite.model_dump(mode="json", include={"baseline", "seeds", "decide", "limits", *given}),
    }  # fmt: skip

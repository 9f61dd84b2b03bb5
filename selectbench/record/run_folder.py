"""A run's folder: its files, what a look at it tells, how it is found again, and its lock."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selectbench.errors import UserError
from selectbench.machine import lock
from selectbench.record.environment import Stored, fingerprint_part
from selectbench.suite.suite import Suite
from selectbench.text import suite_yaml

# The files of a run's folder besides its records and its trials: their names, how they are read and written.


SUITE = "suite.yaml"
ENVIRONMENT = "environment.json"
RANKING = "ranking.json"
REPORT = "report.md"
PAGE = "report.html"
TABLE = "ranking.csv"
BENCHMARK = "benchmark.json"


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once: a reader sees the old text or the new one. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")  # the same bytes on every system
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping of a run folder. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON mapping was expected")
    return content


# What a look at a run's folder tells.


class PastRun(Stored):
    """One run; unknown is None."""

    folder: str
    suite: str
    started_at: str | None
    """UTC, to the minute."""
    device: str | None
    hardware: str | None
    """GPUs' names, or the CPU's."""
    trials_done: int | None
    """Of those planned, with a whole record, failed ones among them."""
    trials_planned: int | None
    answer: str | None
    """Of its ranking.json; None: there is none yet."""
    note: str | None
    """What is wrong with the folder."""


# A run's folder: found again where it is incomplete, locked while it is written, whole at every moment.


TRIALS = "trials"
WEIGHTS = "weights"


def fingerprint(suite: Suite, environment: dict[str, Any], data_key: str, own_code: str | None = None) -> str:
    """Equal for runs that may be continued by one another: same suite, environment, code and data.

    `own_code`: the digest of the suite's folders of own code; None: it has none.
    """
    content = {
        "suite": suite.resolved, "environment": fingerprint_part(environment), "data": data_key,
        "own_code": own_code,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def newest_run(results: Path, suite: Suite, mark: str) -> Path | None:
    """The latest run folder with this fingerprint, complete or not."""
    return max((results / suite.name).glob(f"*-{mark}"), default=None)


def create_run(results: Path, suite: Suite, environment: dict[str, Any], mark: str) -> Path:
    """A new run folder with its suite and environment written. Raises UserError where it can't be."""
    moment = datetime.now(UTC)
    folder = results / suite.name / f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z-{mark}"
    try:
        (folder / TRIALS).mkdir(parents=True)
        write_whole(folder / SUITE, suite_text(suite))
        write_whole(folder / ENVIRONMENT, json.dumps(environment, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write: {error.strerror}; choose a folder that you may write: --results DIR"
        ) from None
    return folder


def suite_text(suite: Suite) -> str:
    """The resolved suite as YAML, with a line that says what it is."""
    head = "# The suite as it was resolved for this run; `selectbench run` takes it as it is.\n"
    return head + suite_yaml(suite.resolved)


@contextmanager
def weights_folder(folder: Path) -> Iterator[None]:
    """The run's folder of initial weights: empty at first, gone at the end, as it can be many times the rest."""
    shutil.rmtree(folder / WEIGHTS, ignore_errors=True)  # what a killed run left
    try:
        yield
    finally:
        shutil.rmtree(folder / WEIGHTS, ignore_errors=True)


class RunLock:
    """Held by the one process that writes a run; the kernel lets go of it when that process ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"

    def __enter__(self) -> RunLock:
        try:
            self._stream = self.path.open("w")
            is_ours = lock(self._stream.fileno(), wait=False)
        except OSError as error:
            raise UserError(f"{self.path}: cannot lock: {error.strerror}; choose another --results DIR") from None
        if not is_ours:
            self._stream.close()
            raise UserError(
                f"{self.path.parent}: another selectbench is running this; wait for it, or start one of its own "
                "beside it with --fresh (its speed would suffer from the other's)"
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

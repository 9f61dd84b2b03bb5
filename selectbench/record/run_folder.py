"""A run's folder: found again where it is incomplete, locked while it is written, whole at every moment."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selectbench.errors import UserError
from selectbench.file_lock import lock
from selectbench.record.environment import fingerprint_part
from selectbench.record.run_files import ENVIRONMENT, SUITE, write_whole
from selectbench.suite.suite import Suite
from selectbench.yaml_text import suite_yaml

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

"""Past runs of a results folder, found without reading their records whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from selectbench.errors import UserError
from selectbench.record.past_run import PastRun
from selectbench.record.run_files import ENVIRONMENT, RANKING, SUITE, read_json
from selectbench.record.store import FILE_NAME
from selectbench.suite.suite import CONTROL

_TRIAL = re.compile(rb'"trial_id":"([0-9a-zA-Z_.-]+)"')
_NAME = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)")


def past_runs(results: Path) -> list[PastRun]:
    """Every folder RESULTS/SUITE/RUN that holds a suite, the newest first; RESULTS may be one of the inner folders.

    Raises UserError where there is no such folder.
    """
    if not results.is_dir():
        raise UserError(f"{results}: there is no such folder; runs are kept where `run --results DIR` put them")
    depths = ("", "*/", "*/*/")  # a run, a folder of runs, or folders of these
    folders = [suite.parent for depth in depths for suite in results.glob(f"{depth}{SUITE}")]
    return [_past_run(folder) for folder in sorted(folders, key=lambda f: f.name, reverse=True)]


def _past_run(folder: Path) -> PastRun:
    """What a look tells; whatever is broken is said in its note."""
    try:
        suite = YAML(typ="safe", pure=True).load(folder / SUITE)
        environment = read_json(folder / ENVIRONMENT)
        options = len(suite["options"]) + bool(suite.get("control") and CONTROL not in suite["options"])
        planned, done = options * len(suite["seeds"]), _trials(folder / FILE_NAME)
    except (OSError, YAMLError, UserError, KeyError, TypeError, AttributeError) as error:
        return PastRun(
            folder=str(folder), suite=folder.parent.name, started_at=_started(folder), device=None, hardware=None,
            trials_done=None, trials_planned=None, answer=None,
            note=f"cannot be read: {str(error).splitlines()[0]}",
        )  # fmt: skip
    return PastRun(
        folder=str(folder), suite=str(suite.get("name") or folder.parent.name), started_at=_started(folder),
        device=suite.get("device"), hardware=_hardware(suite.get("device"), environment), trials_done=done,
        trials_planned=planned, answer=_answer(folder / RANKING), note=None,
    )  # fmt: skip


def _started(folder: Path) -> str | None:
    found = _NAME.match(folder.name)
    return None if found is None else "{}-{}-{} {}:{}".format(*found.groups())


def _trials(path: Path) -> int:
    """Trials of the contest with a record: their ids, as they stand in the lines."""
    if not path.is_file():
        return 0
    lines = [line for line in path.read_bytes().split(b"\n") if b'"phase":"tune"' not in line]
    return len({trial for line in lines for trial in _TRIAL.findall(line)})


def _hardware(device: object, environment: dict[str, Any]) -> str | None:
    gpus = dict.fromkeys(str(gpu.get("name")) for gpu in environment.get("gpus") or [])
    return ", ".join(gpus) if device == "cuda" and gpus else environment.get("cpu_model")


def _answer(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["answer"])
    except (OSError, ValueError, KeyError, TypeError):
        return None

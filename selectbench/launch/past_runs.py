"""Past runs of a results folder."""

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
from selectbench.record.store import FILE_NAME, read_records
from selectbench.suite.suite import CONTROL

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
        options = {*suite["options"], *([CONTROL] if suite.get("control") else [])}
        planned = {(option, seed) for option in options for seed in suite["seeds"]}
        done = planned & _trials(folder / FILE_NAME)
    except (OSError, YAMLError, UserError, KeyError, TypeError, AttributeError) as error:
        return PastRun(
            folder=str(folder), suite=folder.parent.name, started_at=_started(folder), device=None, hardware=None,
            trials_done=None, trials_planned=None, answer=None,
            note=f"cannot be read: {str(error).splitlines()[0]}",
        )  # fmt: skip
    return PastRun(
        folder=str(folder), suite=str(suite.get("name") or folder.parent.name), started_at=_started(folder),
        device=suite.get("device"), hardware=_hardware(suite.get("device"), environment), trials_done=len(done),
        trials_planned=len(planned), answer=_answer(folder / RANKING), note=None,
    )  # fmt: skip


def _started(folder: Path) -> str | None:
    found = _NAME.match(folder.name)
    return None if found is None else "{}-{}-{} {}:{}".format(*found.groups())


def _trials(path: Path) -> set[tuple[str, int]]:
    """Option and seed of the contest's trials with a whole record."""
    return {
        (record.trial.option, record.trial.seed) for record in read_records(path)[0] if record.phase == "contest"
    }


def _hardware(device: object, environment: dict[str, Any]) -> str | None:
    gpus = dict.fromkeys(str(gpu.get("name")) for gpu in environment.get("gpus") or [])
    return ", ".join(gpus) if device == "cuda" and gpus else environment.get("cpu_model")


def _answer(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["answer"])
    except (OSError, ValueError, KeyError, TypeError):
        return None

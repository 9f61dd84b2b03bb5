"""Own code is checked before anything trains: in a child process, with the interpreter that trials run in.

A mistake that is reported there, once and within a bounded time, would otherwise end every trial of every seed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selectbench import units
from selectbench.choices.choice import OwnCall, is_own
from selectbench.choices.model import OwnModel
from selectbench.errors import UserError
from selectbench.launch.trial import linked_code, log_tail, server_environment
from selectbench.machine import Machine, machine_for, worker_problem
from selectbench.suite.document import Written, placed, read_document
from selectbench.suite.job import OWN_METRIC_GETS, OWN_SCORE_GETS, Eval
from selectbench.suite.suite import Option, Suite
from selectbench.text import visible

CHECK_SECONDS = 120.0
"""Longest time for the imports of one interpreter's own code."""
_MOST_CHARACTERS = 400
"""Of what is wrong with one call: its signature is among it."""


def check_own_code(
    suite: Suite, machine: Machine, file: Path | Written, *, seconds: float = CHECK_SECONDS
) -> list[str]:
    """Have what the suite names imported and its signatures read; notes on what could not be checked.

    Raises UserError with the place in the suite's `file` of all that is not there or can't be called as trials call
    it. Options whose interpreter can't run trials are passed over: the plan tells of them.
    """
    options: dict[str | None, dict[OwnCall, list[str]]] = {}
    for option in suite.options:
        for call in _calls(suite, option):
            options.setdefault(option.choices.python, {}).setdefault(call, []).append(option.name)
    problems, notes = [], []
    for python, calls in options.items():
        if worker_problem(machine_for(machine, python)) is not None:
            continue
        named = ", ".join(dict.fromkeys(call.name for call in calls))
        question = {"code": suite.code, "calls": [asdict(call) for call in calls]}
        try:
            found = ask_worker("own_code", question, python, suite, seconds, f"importing own code ({named})")
        except TimeoutError:
            told = f"importing it ({named}) takes longer than {units.duration(seconds)}"
            notes.append(f"own code was not checked: {told}")
            continue
        for (call, names), problem in zip(calls.items(), found, strict=True):
            if problem is not None:
                of = "" if len(names) == len(suite.options) else f"option {', '.join(names)}: "
                told = f"{of}{call.setting} {call.name}: {visible(problem, _MOST_CHARACTERS)}"
                problems.append(placed(told, read_document(file), suite.profile, call.name, names[0]))
    if problems:
        raise UserError(*problems)
    return notes


def _calls(suite: Suite, option: Option) -> Iterator[OwnCall]:
    """What trials of the option call; documents are read before, in the preparation of the data."""
    if suite.command is not None:
        return
    job = suite.job_of(option)
    if isinstance(job.model, OwnModel):
        yield job.model.call
    yield from (call for choice in option.choices.by_dimension().values() if (call := choice.call) is not None)
    for name in job.eval.scores if isinstance(job.eval, Eval) else []:
        if is_own(name):
            yield OwnCall("eval.scores", name, OWN_SCORE_GETS)
    for name, metric in job.own_metrics.items():
        yield OwnCall(f"eval.metrics.{name}", metric.call, OWN_METRIC_GETS, tuple(metric.settings))


def ask_worker(
    role: str, question: dict[str, object], python: str | None, suite: Suite, seconds: float, what: str
) -> Any:
    """The answer of a child process of the worker that has this role.

    Raises TimeoutError after so many seconds, and UserError where `what` ended the process.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="selectbench-")))
        asked, answer, log = (folder / name for name in ("question.json", "answer.json", "log"))
        asked.write_text(json.dumps(question), encoding="utf-8")
        environment = server_environment(python, suite.device)
        arguments = [python or sys.executable, "-P", "-m", "selectbench.worker", role, str(asked), str(answer)]
        if python is not None:
            environment["PYTHONPATH"] = stack.enter_context(linked_code())
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env=environment,
        )  # fmt: skip
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            if sys.platform == "win32":
                process.kill()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        try:
            return json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said = log_tail(log)
            died = f"{what} ended its process with status {status}"
            raise UserError(f"suite {suite.name}: {died}" + (f":\n{said}" if said else "")) from None

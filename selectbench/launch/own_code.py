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
"""Length of the message on one call, which holds its signature."""


def check_own_code(
    suite: Suite, machine: Machine, file: Path | Written, *, seconds: float = CHECK_SECONDS
) -> list[str]:
    """Have what the suite names imported and its signatures read. Returns notes on what could not be checked.

    Raises UserError with the place in the suite's `file` of all that is missing or can't be called as trials call
    it. Options whose interpreter can't run trials are passed over, as the plan says why.
    """
    options: dict[str | None, dict[OwnCall, list[str]]] = {}
    for option in suite.options:
        for call in _calls(suite, option):
            options.setdefault(option.choices.python, {}).setdefault(call, []).append(option.name)
    problems, notes = [], []
    for python, calls in options.items():
        if worker_problem(machine_for(machine, python)) is not None:
            continue
        call_names = ", ".join(dict.fromkeys(call.name for call in calls))
        question = {"code": suite.code, "calls": [asdict(call) for call in calls]}
        try:
            answers = ask_worker("own_code", question, python, suite, seconds, f"importing own code ({call_names})")
        except TimeoutError:
            reason = f"importing it ({call_names}) takes longer than {units.duration(seconds)}"
            notes.append(f"own code was not checked: {reason}")
            continue
        for (call, options_of_call), problem in zip(calls.items(), answers, strict=True):
            if problem is not None:
                is_of_all = len(options_of_call) == len(suite.options)
                options_named = "" if is_of_all else f"option {', '.join(options_of_call)}: "
                message = f"{options_named}{call.setting} {call.name}: {visible(problem, _MOST_CHARACTERS)}"
                problems.append(placed(message, read_document(file), suite.profile, call.name, options_of_call[0]))
    if problems:
        raise UserError(*problems)
    return notes


def _calls(suite: Suite, option: Option) -> Iterator[OwnCall]:
    """What trials of the option call, but for readers of documents, which the preparation of the data calls."""
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
    """The answer of a child process that runs this role of the worker; `what` it does, for messages.

    Raises TimeoutError after so many seconds, and UserError where the process ended without an answer.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="selectbench-")))
        question_file, answer_file, log = (folder / n for n in ("question.json", "answer.json", "log"))
        question_file.write_text(json.dumps(question), encoding="utf-8")
        environment = server_environment(python, suite.device)
        command = [python or sys.executable, "-P", "-m", "selectbench.worker", role]
        arguments = [*command, str(question_file), str(answer_file)]
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
            return json.loads(answer_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            tail = log_tail(log)
            problem = f"suite {suite.name}: {what} ended its process with status {status}"
            raise UserError(problem + (f":\n{tail}" if tail else "")) from None

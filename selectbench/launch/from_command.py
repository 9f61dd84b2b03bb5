"""`init --from-command`: runs a training command for a few steps, says what was seen of it, and writes a suite."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from string import Template
from typing import Any

import msgspec
from pydantic import ValidationError

from selectbench import suite, units
from selectbench.errors import UserError
from selectbench.launch.gpus import Notify
from selectbench.launch.trial import StopRequest, TrialRunner, TrialServer, log_tail
from selectbench.machine import wrong_system_reason
from selectbench.record.record import Failed, Trial
from selectbench.record.wire import LOG_NAME, CommandOrder, Evaluating, Finished, Phase, Progress
from selectbench.suite.command import CommandChoices, CommandJob, arguments, program_problem, words
from selectbench.suite.suite import Limits
from selectbench.text import one_line, visible

TEMPLATE = Path(suite.__file__).with_name("command_template.yaml")
STEPS = 6
"""Optimizer steps that are watched."""
MOST_SECONDS = 900.0
"""Longest time for them, with all that comes before: a model that is loaded, a graph that is compiled."""
UNKNOWN_STEPS = 200
"""Of a trial where the command does not say how many it makes."""
LONG_SECONDS = 600.0
"""A trial that takes longer is cut off, in the suite that is written, after SHOWN_SECONDS."""
SHOWN_SECONDS = 120.0
WARMUP_STEPS = 20
MAY_BE_HIDDEN = ("initial_weights_sha256", "gradient_dtype", "optimizer_state_dtype", "attention", "dropout")
"""Fields of the certificate that some scripts do not show, without a reason that is told."""
_SEEDS = "(?:random[-_])?seed"
_STEPS = "(?:max|num|total|train)[-_](?:train[-_])?(?:steps|iters|iterations)|(?:trainer|training)[-_]steps|steps"
_RANKS = "nproc[-_]per[-_]node|num[-_]processes"
_CHANGES = {
    "bf16": "compute_dtype", "fp16": "compute_dtype", "amp": "compute_dtype", "tf32": "matmul_tf32",
    "compile": "compiled", "fused": "optimizer",
}  # fmt: skip
"""Flags that are a choice: what they change of the certificate."""


@dataclass(frozen=True)
class Observed:
    """What a few steps of a command showed."""

    finished: Finished
    model: Mapping[str, Any]
    """The observer's own line on the model: its class and device."""


def observe(command: str, notify: Notify) -> Observed:
    """Run the command, unchanged, in the working directory until it has made some steps. Raises UserError."""
    if (reason := wrong_system_reason()) is not None:
        raise UserError(reason)
    job = _job(command)
    if (problem := program_problem(job, CommandChoices(), os.environ.get("PATH", os.defpath))) is not None:
        raise UserError(f"--from-command: {problem}")
    notify(
        f"running it here, unchanged, for {STEPS} steps or at most {units.duration(MOST_SECONDS)}; Ctrl-C ends it"
    )
    with tempfile.TemporaryDirectory(prefix="selectbench-") as made, StopRequest() as stop:
        folder = Path(made)
        order = CommandOrder(
            trial=Trial(trial_id="init", option="init", seed=0, settings=msgspec.Raw(b"{}")),
            arguments=arguments(job, CommandChoices(), 0, 1), directory=job.directory, environment={}, world_size=1,
            max_steps=STEPS, stop="at_max_steps", warmup_steps=1, heldout=None, heldout_sha256=None,
            heldout_tokens=0, seq_len=None, trial_folder=str(folder / "trial"),
        )  # fmt: skip
        server = TrialServer([], folder / "server.log", keeps_environment=True)

        def hear(event: Phase | Progress | Evaluating | None) -> None:
            if isinstance(event, Progress):
                loss = "" if event.loss is None else f", loss {units.significant(event.loss)}"
                notify(f"step {event.step} of {STEPS}{loss}")

        try:
            end = TrialRunner(server, Limits(trial_seconds=MOST_SECONDS), stop, hear).run(order)
        finally:
            server.close()
        if stop:
            notify("interrupted; no suite was written")
            raise KeyboardInterrupt
        log = folder / "trial" / LOG_NAME
        if isinstance(end.outcome, Failed) or end.finished is None:
            raise UserError(_why(end.outcome, log))
        return Observed(end.finished, _model_line(folder / "trial" / "observed"))


def _job(command: str) -> CommandJob:
    literal = command.replace("{", "{{").replace("}", "}}")
    try:
        return CommandJob(command=literal, directory=str(Path.cwd()), max_steps=STEPS)
    except ValidationError as error:
        told = "; ".join(str(detail.get("ctx", {}).get("error") or detail["msg"]) for detail in error.errors())
        raise UserError(f"--from-command {visible(command)}: {told}") from None


def _why(outcome: object, log: Path) -> str:
    """What went wrong, with the end of the command's output."""
    detail = outcome.detail if isinstance(outcome, Failed) else ""
    kind = f" ({outcome.kind})" if isinstance(outcome, Failed) and outcome.kind in ("oom", "timeout") else ""
    tail = log_tail(log)
    told = f"--from-command: no suite was written{kind}: {detail}"
    return told if not tail or tail in detail else f"{told}\nThe end of its output:\n{tail}"


def _model_line(observed: Path) -> Mapping[str, Any]:
    for file in sorted(observed.glob("0-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event.get("event") == "model":
                return dict(event)
    return {}


def seen_lines(seen: Observed) -> list[tuple[str, str]]:
    """What was seen, under which convention, and what was not, each with its name."""
    identity, measured, script = seen.finished.identity, seen.finished.measurement, seen.finished.script
    assert script is not None
    steps = script.first_steps
    rates = list(dict.fromkeys(f"{max(step.rates):.3g}" for step in steps if step.rates))
    rows = list(dict.fromkeys(script.rows_per_step))
    micro = identity.gradient_accumulation_steps
    found = {
        "model": f"{seen.model.get('name', 'unknown')}, {identity.parameters:,} parameters",
        "optimizer": ", ".join(identity.optimizer or []),
        "device": f"{seen.model.get('device', 'unknown')}, {identity.world_size} "
        f"rank{'s'[: identity.world_size > 1]}, {identity.strategy}{', compiled' if identity.compiled else ''}",
        "dtypes": f"parameters {identity.parameter_dtype}, computed in {identity.compute_dtype or 'unknown'}",
        "tokens per step": f"{units.count(measured.tokens_per_step)} in {' to '.join(map(str, rows))} rows, "
        f"{micro} micro-batch{'es' if micro > 1 else ''}",
        "learning rate": " to ".join(dict.fromkeys([*rates[:1], *rates[-1:]])),
        "loss": " to ".join(units.significant(s.loss) for s in (steps[0], steps[-1]) if s.loss is not None),
        "time per step": units.seconds(measured.step_time_median_seconds),
    }  # fmt: skip
    lines = [(name, value) for name, value in found.items() if value]
    lines += [(_plain(field), f"verified: {told}") for field, told in script.conventions.items()]
    lines += [(_plain(field), f"not verified: {told}") for field, told in script.not_seen.items()]
    hidden = [_plain(field) for field in MAY_BE_HIDDEN if getattr(identity, field) is None]
    return lines + ([("not seen", ", ".join(hidden))] if hidden else [])


def _plain(field: str) -> str:
    return field.removesuffix("_sha256").replace("_", " ")


# The suite: the command with placeholders, and options to edit.


def suite_text(command: str, seen: Observed, folder: Path) -> str:
    """A commented suite of the command, with two options to edit, for a file in this folder."""
    needs: list[str] = []
    text = command.strip().replace("{", "{{").replace("}", "}}")
    text, seed = _with_placeholder(text, "seed", _SEEDS, needs)
    text, said_steps = _with_placeholder(text, "max_steps", _STEPS, needs)
    text, said_ranks = _replaced(text, _RANKS, "world_size")
    ranks = max(int(said_ranks or 1), seen.finished.identity.world_size)
    flag = re.search(rf"\s(--({'|'.join(_CHANGES)})(?:[=\s]\s*[Tt]rue)?)(?=\s+-|\s*$)", text)
    if flag:
        text = text[: flag.start()] + text[flag.end() :]
    if seed is None and "{seed}" not in text:
        needs += ["Each trial needs a seed of its own: write {seed} where the script takes it, such as",
                  "--seed {seed}; until then `plan` refuses more than one of the seeds below."]  # fmt: skip
    if words(text)[1:2] == ["-c"]:
        needs += ['A shell hands the words of {args} on only where its script says "$@", after a word of its own:',
                  "bash -c 'python train.py \"$@\"' sh {args}; until then `plan` refuses the command."]  # fmt: skip
    steps = int(said_steps or UNKNOWN_STEPS)
    second = seen.finished.measurement.step_time_median_seconds or 0.0
    some = max(3 * WARMUP_STEPS, 10 * ceil(SHOWN_SECONDS / second / 10)) if second else steps
    shown = steps if second * steps <= LONG_SECONDS else some
    schedule = "where the script's own schedule ends"
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        given=one_line(command, 200), needs="".join(f"  # {line}\n" for line in needs),
        seen="\n".join(f"#   {name}: {one_line(told, 160)}" for name, told in seen_lines(seen)),
        command=json.dumps(f"{text} {{args}}", ensure_ascii=False),
        directory=json.dumps(os.path.relpath(Path.cwd(), folder), ensure_ascii=False),
        max_steps=steps, schedule=schedule if said_steps else f"put here {schedule}",
        stop=shown if shown < steps else "at_max_steps",
        stops="steps of the same schedule; or at_max_steps, or natural_end: when the script ends by itself"
        if shown < steps else "or natural_end: when the script ends by itself; or a number of steps",
        warmup=min(WARMUP_STEPS, max(1, shown // 3)),
        choices=f"world_size: {ranks}" if ranks > 1 else "", baseline="without" if flag else "as_it_is",
        options=f'  without: {{args: ""}}\n  {flag[2]}: {{args: "{flag[1]}", may_change: [{_CHANGES[flag[2]]}]}}'
        if flag else '  as_it_is: {args: ""}\n  # changed: {args: "--bf16", may_change: [compute_dtype]}  # yours',
    )  # fmt: skip


def _with_placeholder(text: str, name: str, called: str, needs: list[str]) -> tuple[str, str | None]:
    """The command with the placeholder where the value stood, or after an option that its script names."""
    text, said = _replaced(text, called, name)
    if said is None and (found := _named_by_script(text, called, name)) is not None:
        needs.append(f"{found[0]} names {found[1]}, which was added.")
        text += f" {found[1]} {{{name}}}"
    return text, said


def _replaced(command: str, called: str, name: str) -> tuple[str, str | None]:
    """The command with `--name 3`, `--name=3` or `name=3` as `{name}`, and the last 3; None: it has none."""
    pattern = rf"(?<!\S)(-{{1,2}}(?:[\w-]+\.)*(?:{called})(?:=|\s+)|\+*(?:[\w-]+\.)*(?:{called})=)(\d+)(?!\S)"
    said = [match[2] for match in re.finditer(pattern, command)]
    return re.sub(pattern, rf"\1{{{name}}}", command), said[-1] if said else None


def _named_by_script(command: str, called: str, name: str) -> tuple[str, str] | None:
    """The first script among the command's words that has such an option in quotes, and the option."""
    for file in (Path(word) for word in words(command) if word.endswith(".py")):
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        if found := re.search(rf"""["'](--(?:{called}))["']""", text):
            return str(file), found[1]
        if "HfArgumentParser" in text:  # which has TrainingArguments' options
            return str(file), f"--{name}"
    return None

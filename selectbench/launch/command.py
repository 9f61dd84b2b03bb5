"""What a training command needs before it runs, tokens, digest, order; and what `init --from-command` does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from string import Template
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from pydantic import ValidationError

from selectbench import suite as suites
from selectbench import units
from selectbench.choices.choice import walk
from selectbench.data.prepared import cache_root, publish, remove
from selectbench.data.reading import find_files
from selectbench.errors import MissingPackageError, UserError
from selectbench.launch.gpus import Notify
from selectbench.launch.trial import StopRequest, TrialRunner, TrialServer, log_tail
from selectbench.machine import INSTALL, wrong_system_reason
from selectbench.planning.plan import PlannedTrial
from selectbench.record.record import Failed, Trial
from selectbench.record.run_folder import TRIALS
from selectbench.record.wire import LOG_NAME, CommandOrder, Evaluating, Finished, Phase, Place, Progress
from selectbench.suite.command import (
    CommandChoices,
    CommandJob,
    CommandNode,
    HeldOut,
    arguments,
    program_problem,
    variables,
    words,
)
from selectbench.suite.suite import Limits, Suite
from selectbench.text import one_line, visible

MOST_FILES = 20_000
"""In a command's folder; where there are more, its scripts have no digest."""
_SCRIPTS = (".py", ".sh", ".yaml", ".yml", ".toml", ".cfg")
_MOST_BYTES = 1 << 20
Facts = dict[str, str | int | None]
"""What environment.json says of a command: `scripts_sha256`, and where it is evaluated `heldout_sha256` and
`heldout_tokens`, the most that are scored."""


def command_facts(suite: Suite, notify: Callable[[str], None]) -> Facts:
    """The facts on the scripts and the held-out tokens, which are written into the cache. Raises UserError."""
    job = suite.command
    assert job is not None
    facts: Facts = {"scripts_sha256": scripts_sha256(job)}
    if not isinstance(job.eval, HeldOut):
        return facts
    ids = _read_ids(job.eval) if job.eval.heldout is not None else _encode(job.eval, notify)
    content = np.ascontiguousarray(ids[: job.eval.tokens + 1], dtype="<i8").tobytes()
    digest = hashlib.sha256(content).hexdigest()
    file = _heldout_file(digest)
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        remove(file.parent)
    if not file.is_file():

        def write(folder: Path) -> None:
            (folder / file.name).write_bytes(content)

        publish(file.parent, write)
    return {**facts, "heldout_sha256": digest, "heldout_tokens": min(job.eval.tokens, len(content) // 8 - 1)}


def _heldout_file(digest: str) -> Path:
    """The file of held-out tokens in the cache: little-endian int64, as the observer reads it."""
    return cache_root() / "heldout" / digest[:24] / "tokens.bin"


def _read_ids(held_out: HeldOut) -> np.ndarray:
    path = Path(held_out.heldout or "")
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        raise UserError(f"job.eval.heldout: {path}: is no .npy file of numbers, as numpy.save writes it") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.size < 3:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"job.eval.heldout: {path}: expected an array of token ids, found {kind}")
    ids: np.ndarray = array.reshape(-1)[: held_out.tokens + 1]
    if int(ids.min()) < 0:
        raise UserError(f"job.eval.heldout: {path}: a token id is below 0")
    return ids


def _encode(held_out: HeldOut, notify: Callable[[str], None]) -> np.ndarray:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        missing = f"job.eval.tokenizer: the package tokenizers is not installed: {INSTALL}"
        raise MissingPackageError(missing) from None
    path = Path(held_out.tokenizer or "") / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # a plain Exception is all that the library raises
        raise UserError(f"job.eval.tokenizer: {path}: cannot be read: {error}") from None
    ids: list[int] = []
    for file in find_files(held_out.text, notify, "job.eval.text"):
        try:
            ids += tokenizer.encode(file.read_text(encoding="utf-8"), add_special_tokens=False).ids
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"job.eval.text: {file}: {error}") from None
        if len(ids) > held_out.tokens:
            break
    if len(ids) < 3:
        raise UserError("job.eval.text: the files hold fewer than three tokens")
    return np.array(ids, dtype="<i8")


def localized_order(order: CommandOrder, suite: Suite) -> CommandOrder:
    """Another node's order with the folders of this machine."""
    assert suite.command is not None
    heldout = order.heldout_sha256 and str(_heldout_file(order.heldout_sha256))
    return replace(order, directory=suite.command.directory, heldout=heldout)


def scripts_sha256(job: CommandJob) -> str | None:
    """Digest of the scripts and configurations below the command's folder; None: nobody can look at all its files.

    Data, caches, logs, runs, virtual environments and hidden folders are left out.
    """
    digest, top = hashlib.sha256(), Path(job.directory)
    try:
        files = sorted(islice(walk(top), MOST_FILES + 1))
        if len(files) > MOST_FILES:
            return None
        for file in files:
            if file.suffix in _SCRIPTS and file.is_file() and file.stat().st_size <= _MOST_BYTES:
                content = file.read_bytes()
                digest.update(f"{file.relative_to(top)}\0{len(content)}\0".encode(errors="surrogateescape"))
                digest.update(content)
    except OSError:
        return None
    return digest.hexdigest()


@contextmanager
def meeting_place(address: str) -> Iterator[str]:
    """HOST:PORT of this address where a command may listen; nobody who asks for any free port is given it."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as holder:
        holder.bind((address, 0))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the command listens with the same option
        yield f"{f'[{address}]' if ':' in address else address}:{holder.getsockname()[1]}"


def command_order(
    suite: Suite, planned: PlannedTrial, ranks: int, run: Path, facts: Mapping[str, object], rdzv: str,
    lane: int | None = None, place: Place | None = None,
) -> CommandOrder:  # fmt: skip
    """The order of a trial in the run's folder; `lane`: its number, where several run side by side.

    `rdzv`: HOST:PORT for the command's own use; `place`: which ranks are this node's, where there are several.

    Raises UserError where the held-out tokens left the cache.
    """
    job, choices = suite.command, suite.option(planned.trial.option).choices
    assert job is not None
    assert isinstance(choices, CommandChoices)
    seed, heldout, digest = planned.trial.seed, None, facts.get("heldout_sha256")
    where = CommandNode(rdzv=rdzv) if place is None else CommandNode(place.node, ranks // place.ranks, rdzv)
    # Where ranks meet, by the variables of torch and of torchrun: each lane has a port of its own.
    ports = {} if lane is None else dict.fromkeys(("MASTER_PORT", "PET_MASTER_PORT"), str(29500 + lane))
    if isinstance(job.eval, HeldOut):
        heldout = _heldout_file(str(digest))
        if not heldout.is_file():
            raise UserError(
                f"{heldout}: the held-out tokens were removed while this run went on: run the same command again, "
                "which goes on here after it has prepared them anew"
            )
    return CommandOrder(
        trial=planned.trial, arguments=arguments(job, choices, seed, ranks, where), directory=job.directory,
        environment=ports | variables(job, choices, seed, ranks, where), world_size=ranks,
        max_steps=job.stops_after, stop="natural_end" if job.stop == "natural_end" else "at_max_steps",
        warmup_steps=job.timing.warmup_steps, heldout=None if heldout is None else str(heldout),
        heldout_sha256=None if heldout is None else str(digest),
        heldout_tokens=0 if heldout is None else int(str(facts["heldout_tokens"])),
        seq_len=job.eval.seq_len if isinstance(job.eval, HeldOut) else None,
        trial_folder=str((run / TRIALS / planned.trial.trial_id).resolve()), place=place,
    )  # fmt: skip


# `init --from-command` runs a training command for a few steps, says what was observed, and writes a suite.


TEMPLATE = Path(suites.__file__).with_name("command_template.yaml")
STEPS = 6
"""Optimizer steps that are observed."""
MOST_SECONDS = 900.0
"""Longest time for these steps and for what comes before: loading a model, compiling a graph."""
UNKNOWN_STEPS = 200
"""Steps of a trial where the command does not say how many it makes."""
LONG_SECONDS = 600.0
"""A trial that takes longer is cut off, in the suite that is written, after SHOWN_SECONDS."""
SHOWN_SECONDS = 120.0
WARMUP_STEPS = 20
MAY_BE_HIDDEN = ("initial_weights_sha256", "gradient_dtype", "optimizer_state_dtype", "attention", "dropout")
"""Fields of the certificate that are not observed of some scripts; no reason is given for them."""
_SEEDS = "(?:random[-_])?seed"
_STEPS = "(?:max|num|total|train)[-_](?:train[-_])?(?:steps|iters|iterations)|(?:trainer|training)[-_]steps|steps"
_RANKS = "nproc[-_]per[-_]node|num[-_]processes"
_CHANGES = {
    "bf16": "compute_dtype", "fp16": "compute_dtype", "amp": "compute_dtype", "tf32": "matmul_tf32",
    "compile": "compiled", "fused": "optimizer",
}  # fmt: skip
"""Flags of scripts that are a choice, each with the field of the certificate that it changes."""


@dataclass(frozen=True)
class Observed:
    """What a few steps of a command showed."""

    finished: Finished
    model: Mapping[str, Any]
    """The observer's event on the model: its class and device."""


def observe(command: str, notify: Notify) -> Observed:
    """Run the command, unchanged, in the working directory until it has made some steps. Raises UserError."""
    if (reason := wrong_system_reason()) is not None:
        raise UserError(reason)
    if not command.strip():
        raise UserError("--from-command: it is empty: write the training as it is typed in a terminal")
    job = _job(command)
    if (problem := program_problem(job, CommandChoices())) is not None:
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
        server = TrialServer([], folder / "server.log", environment=lambda _: dict(os.environ))

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
            raise UserError(_failure_text(end.outcome, log))
        return Observed(end.finished, _model_event(folder / "trial" / "observed"))


def _job(command: str) -> CommandJob:
    literal = command.replace("{", "{{").replace("}", "}}")
    try:
        return CommandJob(command=literal, directory=str(Path.cwd()), max_steps=STEPS)
    except ValidationError as error:
        problems = [str(detail.get("ctx", {}).get("error") or detail["msg"]) for detail in error.errors()]
        raise UserError(f"--from-command {visible(command)}: {'; '.join(problems)}") from None


def _failure_text(outcome: object, log: Path) -> str:
    """Why no suite was written, with the end of the command's output."""
    detail = outcome.detail if isinstance(outcome, Failed) else ""
    kind = f" ({outcome.kind})" if isinstance(outcome, Failed) and outcome.kind in ("oom", "timeout") else ""
    tail = log_tail(log)
    text = f"--from-command: no suite was written{kind}: {detail}"
    return text if not tail or tail in detail else f"{text}\nThe end of its output:\n{tail}"


def _model_event(observed: Path) -> Mapping[str, Any]:
    for file in sorted(observed.glob("0-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event.get("event") == "model":
                return dict(event)
    return {}


def observed_lines(observed: Observed) -> list[tuple[str, str]]:
    """Names and values of what was observed, the conventions that were verified, and what was not observed."""
    finished, model = observed.finished, observed.model
    identity, measured, script = finished.identity, finished.measurement, finished.script
    assert script is not None
    steps = script.first_steps
    rates = list(dict.fromkeys(f"{max(step.rates):.3g}" for step in steps if step.rates))
    rows = list(dict.fromkeys(script.rows_per_step))
    micro = identity.gradient_accumulation_steps
    values = {
        "model": f"{model.get('name', 'unknown')}, {identity.parameters:,} parameters",
        "optimizer": ", ".join(identity.optimizer or []),
        "device": f"{model.get('device', 'unknown')}, {identity.world_size} "
        f"rank{'s'[: identity.world_size > 1]}, {identity.strategy}{', compiled' if identity.compiled else ''}",
        "dtypes": f"parameters {identity.parameter_dtype}, computed in {identity.compute_dtype or 'unknown'}",
        "tokens per step": f"{units.count(measured.tokens_per_step)} in {' to '.join(map(str, rows))} rows, "
        f"{micro} micro-batch{'es' if micro > 1 else ''}",
        "learning rate": " to ".join(dict.fromkeys([*rates[:1], *rates[-1:]])),
        "loss": " to ".join(units.significant(s.loss) for s in (steps[0], steps[-1]) if s.loss is not None),
        "time per step": units.seconds(measured.step_time_median_seconds),
    }  # fmt: skip
    lines = [(name, value) for name, value in values.items() if value]
    lines += [(_plain(field), f"verified: {convention}") for field, convention in script.conventions.items()]
    lines += [(_plain(field), f"not verified: {reason}") for field, reason in script.not_seen.items()]
    hidden = [_plain(field) for field in MAY_BE_HIDDEN if getattr(identity, field) is None]
    return lines + ([("not seen", ", ".join(hidden))] if hidden else [])


def _plain(field: str) -> str:
    return field.removesuffix("_sha256").replace("_", " ")


# The suite: the command with placeholders, and options to edit.


def suite_text(command: str, observed: Observed, folder: Path) -> str:
    """A commented suite of the command, with two options to edit, for a file in this folder."""
    needs: list[str] = []
    text = command.strip().replace("{", "{{").replace("}", "}}")
    text, seed = _with_placeholder(text, "seed", _SEEDS, needs)
    text, stated_steps = _with_placeholder(text, "max_steps", _STEPS, needs)
    text, stated_ranks = _replace_option(text, _RANKS, "world_size")
    ranks = max(int(stated_ranks or 1), observed.finished.identity.world_size)
    flag = re.search(rf"\s(--({'|'.join(_CHANGES)})(?:[=\s]\s*[Tt]rue)?)(?=\s+-|\s*$)", text)
    if flag:
        text = text[: flag.start()] + text[flag.end() :]
    if seed is None and "{seed}" not in text:
        needs += ["Each trial needs a seed of its own: write {seed} where the script takes it, such as",
                  "--seed {seed}; until then `plan` refuses more than one of the seeds below."]  # fmt: skip
    if words(text)[1:2] == ["-c"]:
        needs += ['A shell hands the words of {args} on only where its script says "$@", after a word of its own:',
                  "bash -c 'python train.py \"$@\"' sh {args}; until then `plan` refuses the command."]  # fmt: skip
    steps = int(stated_steps or UNKNOWN_STEPS)
    step_seconds = observed.finished.measurement.step_time_median_seconds or 0.0
    few = max(3 * WARMUP_STEPS, 10 * ceil(SHOWN_SECONDS / step_seconds / 10)) if step_seconds else steps
    shown = steps if step_seconds * steps <= LONG_SECONDS else few
    schedule = "where the script's own schedule ends"
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        given=one_line(command, 200), needs="".join(f"  # {line}\n" for line in needs),
        seen="\n".join(f"#   {name}: {one_line(value, 160)}" for name, value in observed_lines(observed)),
        command=json.dumps(f"{text} {{args}}", ensure_ascii=False),
        directory=json.dumps(os.path.relpath(Path.cwd(), folder), ensure_ascii=False),
        max_steps=steps, schedule=schedule if stated_steps else f"put here {schedule}",
        stop=shown if shown < steps else "at_max_steps",
        stops="steps of the same schedule; or at_max_steps, or natural_end: when the script ends by itself"
        if shown < steps else "or natural_end: when the script ends by itself; or a number of steps",
        warmup=min(WARMUP_STEPS, max(1, shown // 3)),
        choices=f"world_size: {ranks}" if ranks > 1 else "", baseline="without" if flag else "as_it_is",
        options=f'  without: {{args: ""}}\n  {flag[2]}: {{args: "{flag[1]}", may_change: [{_CHANGES[flag[2]]}]}}'
        if flag else '  as_it_is: {args: ""}\n  # changed: {args: "--bf16", may_change: [compute_dtype]}  # yours',
    )  # fmt: skip


def _with_placeholder(text: str, name: str, option: str, needs: list[str]) -> tuple[str, str | None]:
    """The command with `{name}` for the value of an option, or after an option that its script has; the value.

    `option`: a pattern of its name; `needs` takes up what was added.
    """
    text, value = _replace_option(text, option, name)
    if value is None and (script_option := _option_of_script(text, option, name)) is not None:
        script, flag = script_option
        needs.append(f"{script} names {flag}, which was added.")
        text += f" {flag} {{{name}}}"
    return text, value


def _replace_option(command: str, option: str, name: str) -> tuple[str, str | None]:
    """The command with `--name 3`, `--name=3` or `name=3` as `{name}`, and the last 3; None: it has none."""
    pattern = rf"(?<!\S)(-{{1,2}}(?:[\w-]+\.)*(?:{option})(?:=|\s+)|\+*(?:[\w-]+\.)*(?:{option})=)(\d+)(?!\S)"
    values = [match[2] for match in re.finditer(pattern, command)]
    return re.sub(pattern, rf"\1{{{name}}}", command), values[-1] if values else None


def _option_of_script(command: str, option: str, name: str) -> tuple[str, str] | None:
    """The first script among the command's words that has such an option in quotes, and the option."""
    for file in (Path(word) for word in words(command) if word.endswith(".py")):
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        if match := re.search(rf"""["'](--(?:{option}))["']""", text):
            return str(file), match[1]
        if "HfArgumentParser" in text:  # which has TrainingArguments' options
            return str(file), f"--{name}"
    return None

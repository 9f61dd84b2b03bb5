"""Runs a training command that is observed from inside its own processes, and makes a trial's result of it.

The observer (`selectbench/observe`) writes a file of JSON lines for each process that trains. This module starts
the command with the observer on its path, follows those files for progress, and adds them up at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

import msgspec

from selectbench.cores import Cores
from selectbench.gpu.devices import TorchDevice
from selectbench.record import wire
from selectbench.record.record import (
    LOSSES,
    EvaluationPoint,
    Identity,
    Measurement,
    RankMemory,
    Script,
    ScriptStep,
    decimate,
    interquartile_range,
    largest_of_ranks,
)
from selectbench.record.wire import CommandOrder, Event, Finished, GaveUp, Phase, Progress, Started
from selectbench.suite.job import distinct_rates, shape_sha256

OBSERVER = Path(__file__).parents[1] / "observe"
"""The folder from which a script's Python imports the observer."""
SETTINGS = "SELECTBENCH_OBSERVE"
"""Environment variable that holds the path of the observer's settings."""
POLL_SECONDS = 0.2
MOST_LOG_BYTES = 64 << 20
"""Bytes of the command's output that the log keeps from its beginning; of the rest it keeps LAST_LOG_BYTES."""
LAST_LOG_BYTES = 1 << 20
_RAISED = re.compile(rb"^(?:\[rank\d+\]: *)?[A-Za-z_][\w.]*(?:Error|Exception)\b.*$", re.MULTILINE)
_LOST_CONNECTION = re.compile(
    rb"[Cc]onnection|[Bb]roken pipe|[Tt]imed? ?out|NCCL|gloo|Store|Rendezvous|DistNetwork|ChildFailed|"
    rb"SignalException"
)
"""Found in errors that ranks raise or launchers report because other ranks have ended."""
_KILLED = re.compile(rb"exitcode\s*: -(?!15\b)\d")
"""A launcher's report of a rank that a signal ended; SIGTERM is what it sends to the remaining ranks."""
FIRST_STEPS = 8
FIRST_NORMS = {
    "first_step_gradient_norm": "of the gradients after the last backward, before any clipping",
    "first_step_update_norm": "of the gradients as the first update got them, clipped or not",
}


@dataclass
class Rank:
    """What one rank, a process of the command that trains, reported."""

    start: dict[str, Any]
    model: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    first_step: dict[str, Any] = field(default_factory=dict)
    looks: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    end: dict[str, Any] | None = None

    @classmethod
    def of(cls, lines: Sequence[bytes]) -> Rank:
        """Read the lines of the process's file; a truncated line is left out."""
        report = cls({}, {})
        for line in lines:
            try:
                event = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                continue
            match event.get("event"):
                case "step":
                    report.steps.append(event)
                case "look":
                    report.looks.append(event)
                case "problem":
                    report.problems.append(f"{event.get('where')}: {event.get('what')}")
                case "start" | "model" | "first_step" | "evaluation" | "end" as name:
                    setattr(report, name, event)
        return report


def run_command(order: CommandOrder, emit: Callable[[Event], None]) -> None:
    """Run the command to its end. `emit` gets Started first and GaveUp last, or Finished on the first node."""
    folder = Path(order.trial_folder) / wire.OBSERVED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    emit(Started(software={}))
    emit(Phase(phase="setup"))
    began = time.perf_counter()
    try:
        process = subprocess.Popen(
            order.arguments, cwd=order.directory, env=_environment(order, folder), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        emit(GaveUp(kind="crashed", detail=f"{order.arguments[0]} cannot be started: {error.strerror}"))
        return

    if order.place is not None and order.place.node == 0:
        emit(wire.Listening(port=0))
    stop_requested = threading.Event()

    def on_sigterm(_number: int, _frame: object) -> None:
        stop_requested.set()
        process.kill()

    signal.signal(signal.SIGTERM, on_sigterm)
    assert process.stdout is not None
    copier = threading.Thread(target=_copy_output, args=(process.stdout, sys.stdout.buffer), daemon=True)
    copier.start()
    tail, cores = _Tail(folder, order), Cores(process.pid)
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        for event in tail.events():
            emit(event)
            if isinstance(event, Progress) and order.warmup_steps <= event.step < order.max_steps:
                cores.look()
    copier.join(2.0)  # a daemon that the command left behind may hold the pipe open; it is killed after this
    ranks = _read_reports(folder)
    fault = _fault(order, ranks, process.returncode)
    if fault is None and order.place is not None:
        if order.place.node:
            return
        for node in range(1, order.world_size // order.place.ranks):
            while not (folder / str(node) / wire.WHOLE).exists() and not stop_requested.is_set():
                time.sleep(POLL_SECONDS)  # the bench's limits end a wait that is too long
            ranks += _read_reports(folder / str(node))
        fault = _fault(order, ranks, 0)
    if stop_requested.is_set():
        done = len(ranks[0].steps) if ranks else 0
        emit(GaveUp(kind="timeout", detail=f"the command was at step {done} of {order.max_steps} or just beyond"))
        return
    emit(fault or _finished(order, ranks, began, cores.found()))


def _environment(order: CommandOrder, folder: Path) -> dict[str, str]:
    path = folder.with_name("observe.json")
    settings = {
        "folder": str(folder), "max_steps": order.max_steps, "stop": order.stop, "heldout": order.heldout,
        "heldout_tokens": order.heldout_tokens, "seq_len": order.seq_len, "looks": _looks(order),
    }  # fmt: skip
    path.write_text(json.dumps(settings))
    interface = order.place and order.place.interface  # as for ranks of our own
    interfaces = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), interface) if interface else {}
    environment = {**interfaces, **os.environ, **order.environment}
    python_path = os.pathsep.join(filter(None, [str(OBSERVER), environment.get("PYTHONPATH")]))
    return {**environment, "PYTHONPATH": python_path, SETTINGS: str(path)}


def _looks(order: CommandOrder) -> list[int]:
    """Steps after the first whose loss is compared with ours: the last of the warm-up, and a random timed one."""
    timed = range(order.warmup_steps + 2, order.max_steps)  # of few timed steps none is left out
    drawn = [random.Random(order.trial.seed).choice(timed)] if len(timed) >= 20 else []
    return [step for step in (order.warmup_steps, *drawn) if step > 1]


def _copy_output(source: IO[bytes], log: IO[bytes]) -> None:
    """Copy the command's output into the trial's log; of a very long output only beginning and end."""
    written, last = 0, b""
    read = getattr(source, "read1", source.read)
    while chunk := read(1 << 16):
        if written < MOST_LOG_BYTES:
            log.write(chunk)
            log.flush()
            written += len(chunk)
        else:
            last = (last + chunk)[-LAST_LOG_BYTES:]
    if last:
        log.write(b"\n(more output than is kept; its end:)\n" + last)
        log.flush()


class _Tail:
    """Follows the observer's file of the first process that trains."""

    def __init__(self, folder: Path, order: CommandOrder) -> None:
        self.folder, self.order = folder, order
        self._file: Path | None = None
        self._offset = 0
        self._last_step: tuple[int, float] | None = None
        """The last reported step and its time."""

    def events(self) -> Iterator[Event]:
        """The events since the last call."""
        if self._file is None:
            first = "0" if self.order.place is None else "*"  # rank 0 may be on any node
            self._file = next(iter(sorted(self.folder.glob(f"{first}-*.jsonl"))), None)
            if self._file is None:
                return
            yield Phase(phase="train")
        with self._file.open("rb") as stream:
            stream.seek(self._offset)
            text = stream.read()
        complete_lines = text.rpartition(b"\n")[0]
        self._offset += len(complete_lines) + 1 if complete_lines else 0
        report = Rank.of(complete_lines.splitlines())
        if report.steps:
            last = report.steps[-1]
            step, at = int(last["step"]), float(last["at"])
            tokens = sum(int(s["tokens"] or 0) for s in report.steps) * self.order.world_size
            seconds = None if self._last_step is None else at - self._last_step[1]
            speed = tokens / seconds if seconds else None
            yield Progress(step=step, of=self.order.max_steps, loss=last.get("loss"), tokens_per_second=speed)
            self._last_step = (step, at)
            if step >= self.order.max_steps:
                yield Phase(phase="evaluate" if self.order.heldout else "extra")


def _read_reports(folder: Path) -> list[Rank]:
    """The reports of all processes that trained, by rank."""
    reports = [Rank.of(file.read_bytes().splitlines()) for file in sorted(folder.glob("*.jsonl"))]
    return sorted((r for r in reports if r.start), key=lambda r: int(r.start.get("rank", 0)))


def _fault(order: CommandOrder, ranks: list[Rank], status: int) -> GaveUp | None:
    """The trial's failure; None: it did not fail."""
    done = min((len(rank.steps) for rank in ranks), default=0)
    at = f"after step {done} of {order.max_steps}" if done else "before its first optimizer step"
    if status != 0:
        ending = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        may_be_victim = status > 0 and _only_lost_touch(Path(order.trial_folder) / wire.LOG_NAME)
        details: dict[str, Any] = {"exit_status": status, "may_be_victim": may_be_victim, "at": time.perf_counter()}
        return GaveUp(kind="crashed", detail=f"the command {ending} {at}", **details)
    problems = _problems(ranks)
    if not done:
        hint = problems or (
            "is it a training with torch, in a Python that reads PYTHONPATH? Started with -I or -E, or with steps "
            "inside a compiled function, it says so itself: `from selectbench import probe; probe.watch(model, "
            "optimizer)`"
        )
        return GaveUp(kind="crashed", detail=f"the command ended, and no optimizer step of it was seen: {hint}")
    if any(rank.end is None or not rank.model or not rank.first_step for rank in ranks):
        reason = problems or "a process ended without its last word"
        return GaveUp(kind="unsupported", detail=f"what the script did was not observed to its end: {reason}")
    diverged = [step["step"] for step in ranks[0].steps if not step.get("is_finite", True) and not step["skipped"]]
    if diverged:
        return GaveUp(kind="diverged", detail=f"the training loss was no finite number in step {diverged[0]}")
    if done < order.max_steps and order.stop == "at_max_steps":
        return GaveUp(kind="crashed", detail=f"the script ended by itself after {done} of {order.max_steps} steps")
    return None


def _problems(ranks: Sequence[Rank]) -> str:
    return "; ".join(dict.fromkeys(problem for rank in ranks for problem in rank.problems))


def _only_lost_touch(log: Path) -> bool:
    """Whether the end of the command's output shows only errors that follow from the end of other ranks."""
    text = log.read_bytes()[-LAST_LOG_BYTES:]
    return not _KILLED.search(text) and all(_LOST_CONNECTION.search(line) for line in _RAISED.findall(text))


def _finished(order: CommandOrder, ranks: list[Rank], began: float, cores: dict[str, Any]) -> Finished:
    """Make the trial's result; `ranks`: those of the first node, whose clock counts, come first."""
    done, problems = min(len(rank.steps) for rank in ranks), _problems(ranks)
    steps = [_over_ranks([rank.steps[n] for rank in ranks]) for n in range(done)]
    first = ranks[0]
    curve, seconds = _curve(ranks, steps, float(first.start["at"]))
    identity, script = _identity(order, ranks, steps, is_evaluated=bool(curve), problems=problems)
    measurement, windows = _measurement(order, ranks, steps, curve, seconds, began, cores)
    return Finished(
        measurement=measurement, identity=identity, evaluation_curve=curve,
        loss_curve=LOSSES.as_json(decimate([(n, s["loss"]) for n, s in enumerate(steps) if s["loss"] is not None])),
        script=script, software={k: str(v) for k, v in (first.start.get("versions") or {}).items()},
        timed_windows=windows, training_window=(float(first.start["at"]), float(steps[-1]["at"])),
        devices=[TorchDevice(gpu["uuid"].removeprefix("GPU-") or None, None)
                 for rank in ranks if (gpu := rank.model.get("gpu"))],
    )  # fmt: skip


def _over_ranks(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One step of all ranks: counts are summed, losses averaged, the rest is taken from the first rank."""
    digests = [part["token_digest"] for part in parts]
    losses = [part["loss"] for part in parts]
    return {
        **parts[0],
        "tokens": sum(int(part["tokens"] or 0) for part in parts),  # None: the observer saw no token ids
        "rows": sum(int(part["rows"] or 0) for part in parts),
        "token_digest": None if None in digests else f"{sum(int(d, 16) for d in digests) % (1 << 64):016x}",
        "loss": None if None in losses else sum(losses) / len(losses),
        "skipped": any(part["skipped"] for part in parts),
    }  # fmt: skip


def _curve(
    ranks: Sequence[Rank], steps: Sequence[dict[str, Any]], start: float
) -> tuple[list[EvaluationPoint], float]:
    """The evaluation of all ranks, empty where one of them could not make it; and its seconds."""
    parts = [rank.evaluation for rank in ranks]
    if not all("loss_sum" in part for part in parts):
        return [], 0.0
    tokens, step = sum(int(part["tokens"]) for part in parts), int(parts[0]["step"])
    if not tokens:
        return [], 0.0
    steps_before = steps[:step]
    point = EvaluationPoint(
        step=step, tokens=sum(s["tokens"] for s in steps_before),
        training_seconds=max(0.0, steps_before[-1]["at"] - start - sum(s["pause_seconds"] for s in steps_before)),
        loss=max(0.0, sum(float(part["loss_sum"]) for part in parts) / tokens),
    )  # fmt: skip
    return [point], max(float(part["seconds"]) for part in parts)


def _measurement(
    order: CommandOrder, ranks: Sequence[Rank], steps: Sequence[dict[str, Any]], curve: list[EvaluationPoint],
    evaluation_seconds: float, began: float, cores: dict[str, Any],
) -> tuple[Measurement, list[tuple[float, float]]]:  # fmt: skip
    """The measurement, and timed windows from one update's end to the next, without pauses and steps looked at."""
    job = steps[: order.max_steps]  # a script that ends by itself may take more
    start = float(ranks[0].start["at"])
    warmup = min(order.warmup_steps, len(job) - 1)
    looked_at = {look["step"] for rank in ranks for look in rank.looks}
    pairs = zip(job[max(0, warmup - 1) :], job[max(1, warmup) :], strict=False)
    timed = [(before, step) for before, step in pairs if step["step"] not in looked_at]
    durations, windows = [], list[tuple[float, float]]()
    for before, step in timed:
        begin = before["at"] + step["pause_seconds"]
        durations.append(max(0.0, step["at"] - begin))
        if windows and windows[-1][1] == begin:
            windows[-1] = (windows[-1][0], step["at"])
        else:
            windows.append((begin, step["at"]))
    tokens = [int(step["tokens"]) for step in job]
    pauses = sum(float(step["pause_seconds"]) for step in job)
    skipped = sum(bool(step["skipped"]) for step in job)
    memory = [
        msgspec.convert({**(rank.end or {}), "rank": int(rank.start.get("rank", 0))}, RankMemory) for rank in ranks
    ]
    return Measurement(
        tokens_per_step=round(sum(tokens) / len(tokens)),
        steps_applied=len(job) - skipped, steps_skipped=skipped,
        timed_steps=len(durations), timed_seconds=sum(durations), step_seconds=decimate(durations),
        timed_tokens=None if len(set(tokens)) == 1 else sum(int(step["tokens"]) for _, step in timed),
        step_time_median_seconds=median(durations) if durations else None,
        step_time_iqr_seconds=interquartile_range(durations),
        warmup_seconds=max(0.0, job[warmup - 1]["at"] - start) if warmup else 0.0,
        startup_seconds=max(0.0, start - began), compile_seconds=None, recompilations=0,
        training_seconds=max(0.0, job[-1]["at"] - start - pauses), evaluation_seconds=evaluation_seconds,
        first_loss=job[0]["loss"], last_loss=job[-1]["loss"],
        final_loss=curve[-1].loss if curve else None,
        heldout_tokens=sum(int(rank.evaluation["tokens"]) for rank in ranks) if curve else None, heldout_bytes=None,
        memory_by_rank=memory, trial_seconds=time.perf_counter() - began, pause_seconds=pauses,
        **largest_of_ranks(memory), **cores,
    ), windows  # fmt: skip


def _identity(
    order: CommandOrder,
    ranks: Sequence[Rank],
    steps: Sequence[dict[str, Any]],
    *,
    is_evaluated: bool,
    problems: str,
) -> tuple[Identity, Script]:
    first, model = ranks[0], ranks[0].model
    job = steps[: order.max_steps]
    conventions, not_seen = _conventions(order, ranks, job, is_evaluated=is_evaluated, problems=problems)
    shape, peaks = _rates(job)
    applied = len(job) - sum(bool(step["skipped"]) for step in job)
    digests = [step["token_digest"] for step in job]
    tokens = {int(step["tokens"]) for step in job}
    is_whole = "initial_weights_sha256" not in not_seen
    disagreeing = [look["step"] for look in first.looks if look["agrees"] is False]
    other_loss = f", another in step {disagreeing[0]}" if disagreeing else ""
    left_out = [int(event.get("left_out_parameters", 0)) for event in (first.first_step, first.end or {})]
    first_settings = first.first_step["optimizer_settings"]
    last_settings = (first.end or {}).get("optimizer_settings", first_settings)
    changed = [f"{setting} in the last step" for setting in last_settings if setting not in first_settings]
    held_out = [int(rank.evaluation["rows_held_out"]) for rank in ranks if "rows_held_out" in rank.evaluation]
    identity = Identity(
        initial_weights_sha256=model["weights_sha256"] if is_whole else None,
        token_stream_sha256=None if None in digests or tokens == {0}
        else hashlib.sha256("".join(digests).encode()).hexdigest(),
        evaluation_set_sha256=order.heldout_sha256 if is_evaluated else None,
        parameters=int(model["parameters"]), trainable_parameters=int(model["trainable_parameters"]),
        tokens_per_step=max(tokens) or None,
        steps_requested=len(job), steps_applied=applied,
        gradient_accumulation_steps=max(int(step["micro_batches"]) for step in job),
        learning_rate_shape_sha256=shape, peak_learning_rate=peaks,
        parameter_dtype=str(model["parameter_dtype"]), gradient_dtype=first.first_step.get("gradient_dtype"),
        compute_dtype=str(first.first_step.get("compute_dtype") or ""),
        optimizer_state_dtype=first.first_step.get("optimizer_state_dtype"),
        matmul_tf32=bool(model["tf32"]), attention=model.get("attention"), sdpa_backends=None,
        optimizer=[*first.first_step["optimizers"], *first_settings, *changed] or None,
        compiled=bool(model["compiled"]),
        first_step_loss=job[0]["loss"],
        first_step_gradient_norm=job[0].get("gradient_norm") if is_whole and not job[0]["skipped"] else None,
        first_step_update_norm=first.first_step.get("update_norm") if is_whole else None,
        left_out_parameters=max(left_out), heldout_rows_trained=sum(held_out) if held_out else None,
        world_size=len(ranks), strategy=str(model["strategy"]), framework="script",
        loss=None if "first_step_loss" in not_seen else f"cross_entropy{other_loss}", dropout=model.get("dropout"),
    )  # fmt: skip
    rows = [int(step["rows"]) for step in job]
    script = Script(
        arguments=order.arguments, conventions=conventions, not_seen=not_seen,
        weights_bf16_sha256=model["weights_bf16_sha256"] if is_whole else None,
        rows_per_step=[min(rows), max(rows)] if any(rows) else [],
        first_steps=[
            ScriptStep(tokens=s["tokens"], token_digest=s["token_digest"] or "", rates=s["rates"], loss=s["loss"])
            for s in job[:FIRST_STEPS]
        ],
        observer_seconds=(first.end or {}).get("own_seconds"),
    )  # fmt: skip
    return identity, script


def _rates(job: Sequence[dict[str, Any]]) -> tuple[str | None, list[float] | None]:
    """Digest of the schedules' shapes, equal ones counted once, and the groups' peak rates."""
    groups = list(zip(*(step["rates"] for step in job), strict=False))
    peaks = [max(map(abs, group)) for group in groups]
    shapes = {
        tuple(round(rate / peak, 9) for rate in group) for group, peak in zip(groups, peaks, strict=True) if peak
    }
    if not shapes:
        return None, None
    return shape_sha256([share for shape in sorted(shapes) for share in shape]), distinct_rates(peaks)


def _conventions(
    order: CommandOrder, ranks: Sequence[Rank], job: Sequence[dict[str, Any]], *, is_evaluated: bool, problems: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Two texts by field: the convention under which it is verified, and why it is not verified."""
    first = ranks[0].first_step
    conventions: dict[str, str] = {}
    not_seen: dict[str, str] = {}
    digests = {rank.model.get("weights_sha256") for rank in ranks}
    apart = f"ranks hold other weights, or parts that are not put together ({ranks[0].model['strategy']})"
    if are_apart := None in digests or len(digests) > 1:
        not_seen["initial_weights_sha256"] = apart
    norms = job[0].get("gradient_norm"), first.get("update_norm")
    for (name, text), norm in zip(FIRST_NORMS.items(), norms, strict=True):
        if norm is None or are_apart:
            not_seen[name] = apart if are_apart else "no gradients were seen then"
        else:
            conventions[name] = text
    loss, own_loss, convention = job[0]["loss"], first.get("own_loss"), first.get("loss_convention")
    if loss is None:
        not_seen["first_step_loss"] = "no scalar was seen to be backwarded"
    elif own_loss is None:
        not_seen["first_step_loss"] = f"what the script backwarded, which nothing confirms ({first.get('logits')})"
    elif convention is None:
        text = f"the script backwarded {loss:.6g} where the cross entropy of its logits is {own_loss:.6g}"
        not_seen["first_step_loss"] = text
    else:
        text = f"the sum of what was backwarded, by our own cross entropy of the logits: the {convention}"
        conventions["first_step_loss"] = text
    if job[0]["token_digest"] is None or not job[0]["tokens"]:
        not_seen["token_stream_sha256"] = "no token ids were seen among the inputs of the model"
    else:
        conventions["token_stream_sha256"] = "the token ids that the model was called with, padding left out"
    if is_evaluated:
        conventions["final_loss"] = "the script's own call of its model, repeated with the held-out tokens"
    elif order.heldout is not None:
        causes = [str(problem) for rank in ranks if (problem := rank.evaluation.get("problem"))]
        not_seen["final_loss"] = next(iter(causes), "the script ended before the held-out tokens were scored")
    looks = ranks[0].looks if convention is not None else []
    if wrong := [look["step"] for look in looks if look["agrees"] is False]:
        not_seen["loss"] = f"that of step {wrong[0]} does not follow from the logits as that of the first step does"
    verified = 1 + sum(look["agrees"] is True for look in looks)
    steps = "the first step" if verified == 1 else f"{verified} steps"
    not_seen["later steps"] = f"losses are held against our own in {steps} alone, gradients in the first"
    rows = [rank.evaluation for rank in ranks if "rows" in rank.evaluation]
    total, held_out = (sum(int(r[key]) for r in rows) for key in ("rows", "rows_held_out"))
    if held_out:
        not_seen["held-out rows"] = f"{held_out:,} of the first {total:,} rows trained on are held-out tokens"
    elif rows:
        pieces, length = rows[0]["offsets"], rows[0]["row_length"]
        conventions["held-out rows"] = (
            f"none of the first {total:,} rows trained on is one of {pieces:,} pieces of {length:,} tokens; rows "
            "of another length, or that hold other tokens too, are not known"
        )
    elif order.heldout is not None:
        not_seen["held-out rows"] = "whether they are trained on, as the rows were not seen or are too short"
    return conventions, not_seen | ({"observer": problems} if problems else {})

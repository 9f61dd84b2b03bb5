"""What every training loop is given, and the recorder that its steps go to: windows, series, evaluations."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from selectbench.record.record import EvaluationPoint, Inspection
from selectbench.record.wire import Evaluating, Event, Order, Phase, Progress
from selectbench.suite.job import Eval
from selectbench.worker import evaluation
from selectbench.worker.attention import SdpaBackends
from selectbench.worker.batches import Batches, HeldOut, TokenStream
from selectbench.worker.model import SummedLoss
from selectbench.worker.observation import CoreWaits, Tried, Watch
from selectbench.worker.runtime import TrainingMemory, Whereabouts, World, compilations, is_out_of_memory, wait_for

AGREE_WITHIN = 1e-9
"""Difference of shares that is rounding."""


class LearningRates:
    """Reads every parameter group's learning rate as a share of the peak it was built with."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Call before any schedule has touched the optimizers."""
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.peaks = [float(group["lr"]) for group in self._groups]
        self._at_update: dict[int, float] = {}
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._see)
        self.shares: list[tuple[float, ...]] = []
        """Per step noted, those of all groups that differ, the first group's first: one where they agree."""
        self.updated: list[bool] = []
        """Per step noted, whether the optimizers were called to update every group."""
        self.highest = [0.0] * len(self._groups)
        """Of each group, in any step noted: below the peak where the schedule never comes to it."""

    def _see(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            self._at_update.setdefault(id(group), float(group["lr"]))

    def note(self) -> None:
        """Notes the rates of the step that was just made: at its update, where there was one."""
        rates = [self._at_update.get(id(group), float(group["lr"])) for group in self._groups]
        self.updated.append(len(self._at_update) == len(self._groups))
        self._at_update.clear()
        self.highest = list(map(max, self.highest, rates))
        now = [rate / peak for rate, peak in zip(rates, self.peaks, strict=True)]
        self.shares.append((now[0],) if max(now) - min(now) < AGREE_WITHIN else tuple(now))


# Timing of optimizer steps in windows whose edges wait for the device, and no step inside does.


ADJACENT_SECONDS = 0.1
"""Between two windows that meters of power and energy may take for one: no finer do they tell."""


class Window:
    """A stretch of steps between two edges that wait for the device; on a GPU moments are events in its queue."""

    def __init__(self, device_type: str) -> None:
        """Opens the window: waits for the device and marks its first edge."""
        self._device_type = device_type
        wait_for(device_type)
        self.opened = time.perf_counter()
        """By `time.perf_counter`."""
        self.seconds = math.nan
        """Between its edges, once it is closed."""
        self.step_seconds: list[float] = []
        """Duration of each step, once it is closed."""
        self.compiled: list[bool] = []
        """Whether each step compiled something."""
        self._marks = [self._mark()]

    def _mark(self) -> Any:
        if self._device_type == "cpu":  # whose work is done when the call returns
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def step_done(self, compiled: bool) -> None:
        """Marks the end of a step; `compiled`: something was compiled in it."""
        self._marks.append(self._mark())
        self.compiled.append(compiled)

    def close(self) -> None:
        """Waits for the device and reads the durations."""
        wait_for(self._device_type)
        self.seconds = time.perf_counter() - self.opened
        is_cpu = self._device_type == "cpu"
        self.step_seconds = [b - a if is_cpu else a.elapsed_time(b) / 1e3 for a, b in pairwise(self._marks)]


@dataclass
class Timing:
    """All windows of a trial, sorted into warm-up, timed and voided ones."""

    timed_seconds: float = 0.0
    recompilations: int = 0
    training_seconds: float = 0.0
    timed_steps: list[float] = field(default_factory=list)
    warmup_steps: list[float] = field(default_factory=list)
    compiling_steps: list[float] = field(default_factory=list)
    stretches: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of the timed windows by `time.perf_counter`, those less than ADJACENT_SECONDS apart as one."""

    def add(self, window: Window, *, timed: bool, of_the_job: bool) -> None:
        """`timed`: the warm-up is over; `of_the_job`: the steps are not those added for timing alone."""
        if of_the_job:
            self.training_seconds += window.seconds
        pairs = list(zip(window.step_seconds, window.compiled, strict=True))
        self.compiling_steps += [seconds for seconds, compiled in pairs if compiled]
        if not timed:
            self.warmup_steps += [seconds for seconds, compiled in pairs if not compiled]
        elif any(window.compiled):
            self.recompilations += sum(window.compiled)
        else:
            self.timed_seconds += window.seconds
            self.timed_steps += window.step_seconds
            begin, end = window.opened, window.opened + window.seconds
            if self.stretches and begin - self.stretches[-1][1] < ADJACENT_SECONDS:
                begin = self.stretches.pop()[0]
            self.stretches.append((begin, end))

    def median_seconds(self) -> float | None:
        """Median duration of the timed steps."""
        return median(self.timed_steps) if self.timed_steps else None

    def iqr_seconds(self) -> float | None:
        """Distance between the quartiles of the timed steps' durations."""
        if not self.timed_steps:
            return None
        low, high = np.quantile(self.timed_steps, (0.25, 0.75))
        return float(high - low)

    def compile_seconds(self) -> float | None:
        """Time that the steps which compiled took beyond a median step; None where none did."""
        usual = self.median_seconds()
        if not self.compiling_steps or usual is None:
            return None
        return max(0.0, sum(self.compiling_steps) - usual * len(self.compiling_steps))

    def warmup_seconds(self) -> float:
        """Time of the warm-up steps; those that compiled count as a median step."""
        inside = self.median_seconds() or 0.0
        return sum(self.warmup_steps) + inside * (len(self.compiling_steps) - self.recompilations)


# The full series of a trial: what every step left behind, read from the device at window edges.


class StepTensors(NamedTuple):
    """What a step leaves behind on this rank, as scalars on the device."""

    loss: torch.Tensor
    """This rank's part of the mean over the step's tokens, before the update; nats per token, float32."""
    gradient_norm: torch.Tensor | None
    """Global, before clipping; the same on every rank. None: an own loop that does not tell."""
    applied: torch.Tensor
    """Whether the weights were updated; the same on every rank."""
    stream: torch.Tensor
    """This rank's part of the step's sum of the token stream's digest, int64."""
    tokens: int
    """Tokens that the model consumed on this rank."""
    micro_batches: int
    """That it consumed them in, on this rank."""


DIVERGED_ABOVE = 2.0
"""Times the first loss. A fresh model starts near ln(vocabulary), the loss of a uniform guess: twice that
is far worse than knowing nothing, and no warm-up or restart of a healthy run gets there."""
DIVERGED_OVER_STEPS = 10
"""Steps whose mean loss is judged, so that one bad batch is not a divergence."""


NORM_TOLERANCE = 1e-3
"""Relative difference of a rank's gradient norm from all ranks' mean: sums in another order stay far below."""


class RanksDisagreeError(RuntimeError):
    """Gradients were not brought together over the ranks."""


class Diverged(Exception):  # noqa: N818 - an outcome, not an error
    """The training left the numbers in which it can come back."""


class Series:
    """Per optimizer step of the job, in order: loss, gradient norm, whether applied, stream sum, tokens, seconds.

    Losses, stream sums and tokens are those of all ranks.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradient_norms: list[float | None] = []
        self.applied: list[bool] = []
        self.stream_sums: list[int] = []
        self.tokens: list[int] = []
        self.micro_batches: list[int] = []
        self.step_seconds: list[float] = []
        self.extra_step_seconds: list[float] = []

    def read(self, steps: Sequence[StepTensors], world: World) -> None:
        """Fetches the steps' scalars from the device; waits for it and for the other ranks. Raises Diverged."""
        known = len(self.losses)
        unknown = torch.full((), math.nan, device=world.device)
        norms = torch.stack([unknown if s.gradient_norm is None else s.gradient_norm for s in steps]).double()
        losses = torch.stack([s.loss for s in steps]).double()
        tokens = torch.tensor([s.tokens for s in steps], dtype=torch.int64, device=world.device)
        # Two exchanges for all of the window's steps.
        summed_losses, summed_norms = world.total(torch.stack([losses, norms.nan_to_num(0.0, 0.0, 0.0)])).tolist()
        streams, summed_tokens = world.total(torch.stack([torch.stack([s.stream for s in steps]), tokens])).tolist()
        found = norms.tolist()
        _check_agreement(found, summed_norms, known, world)
        self.losses += summed_losses
        self.gradient_norms += [None if s.gradient_norm is None else n for s, n in zip(steps, found, strict=True)]
        self.applied += torch.stack([s.applied for s in steps]).tolist()
        self.stream_sums += streams
        self.tokens += summed_tokens
        self.micro_batches += [s.micro_batches for s in steps]
        for step, (loss, norm) in enumerate(
            zip(self.losses[known:], self.gradient_norms[known:], strict=True), known
        ):
            if not math.isfinite(loss):
                raise Diverged(f"the loss of step {step} is {loss}")
            if self.applied[step] and norm is not None and not math.isfinite(norm):
                raise Diverged(f"the gradient norm of step {step} is {norm}, its loss {loss:.4f}")
            recent = self.losses[max(0, step + 1 - DIVERGED_OVER_STEPS) : step + 1]
            mean = sum(recent) / len(recent)
            if len(recent) == DIVERGED_OVER_STEPS and mean > DIVERGED_ABOVE * self.losses[0]:
                raise Diverged(
                    f"the mean loss of the {DIVERGED_OVER_STEPS} steps to step {step} is {mean:.4f}, "
                    f"more than {DIVERGED_ABOVE:g} times the first loss, {self.losses[0]:.4f}"
                )


def _check_agreement(norms: list[float], sums: list[float], first_step: int, world: World) -> None:
    """Every rank must have found one gradient norm: a reduction left out would show here.

    `sums`: over the ranks, those that are not finite as 0. Raises RanksDisagreeError.
    """
    for step, (own, total) in enumerate(zip(norms, sums, strict=True), first_step):
        here, mean = own if math.isfinite(own) else 0.0, total / world.size
        if abs(here - mean) > NORM_TOLERANCE * abs(mean):
            raise RanksDisagreeError(
                f"the gradient norm of step {step} is {here:.6g} on rank {world.rank} and {mean:.6g} on average: "
                "the ranks do not train one model"
            )


# What any loop is given before its first step.


EVALUATION_TOLD_SECONDS = 0.25
"""Between two events of an evaluation."""
Emit = Callable[[Event], None]


@dataclass
class Setting:
    """One rank's part of a trial, before an engine or a framework has touched the model."""

    order: Order
    world: World
    module: Any
    """The model on the CPU: initial weights in fp32, mapped and not to be written to; training mode."""
    loss: SummedLoss
    batches: Batches
    stream: TokenStream
    shares: list[float]
    """Of the peak learning rate, per step of the job."""
    held_out: HeldOut | None
    reading: evaluation.Reading | None
    """None: the job does not evaluate."""
    emit: Emit
    memory: TrainingMemory
    whereabouts: Whereabouts
    watch: Watch = field(default_factory=Watch)
    """What is counted where own code takes part."""
    sdpa: SdpaBackends = field(default_factory=SdpaBackends)
    """Backends that the training's attention used."""
    trainable_parameters: int | None = None
    """Known once it is decided what of the model is trained."""
    parameters_by_use: dict[str, int] = field(default_factory=dict)
    """Those that are trained, by what they are used as."""
    left_parameters: int | None = None
    """Of matrices that the adaptation is for and does not reach; None: it has no such rule."""
    tried: Tried = field(default_factory=Tried)
    """What the model was found to do."""
    recorder: Recorder | None = None
    """Set when the loop makes one: what is known is written even where the training fails."""

    def share_at(self, step: int) -> float:
        """The share of the peak; a step added for timing trains on at the job's last one."""
        return self.shares[min(step, len(self.shares) - 1)]


# Watches a training, whoever drives it: windows of steps, evaluations, then steps for timing alone.
#
# The driver, our own loop or a foreign one, asks `wants_step` and tells `step_done`; everything that is measured,
# read or evaluated happens in between, the same for every driver.


SECONDS_BETWEEN_EDGES = {"cpu": 0.25, "cuda": 1.0}
"""How long a window should stay open: waiting for a CPU costs nothing, for a GPU it empties its queue."""
LEAST_TIMED_STEPS = 5
"""So that a median and its quartiles mean something."""


class Recorder:
    """Collects what a job's steps and evaluations yield; every rank has one, and they agree on its windows."""

    def __init__(
        self, setting: Setting, forward: Callable[[], AbstractContextManager[evaluation.Forward]],
        optimizers: list[torch.optim.Optimizer],
    ) -> None:  # fmt: skip
        """To be made when optimizers have their peak learning rates and no step was made; `setting` names it then.

        All that is evaluated goes through it, so here optimizers are put to the weights that are.
        """
        evaluation.begin_training(optimizers)
        if "optimizer" in setting.watch.own:
            setting.watch.watch_updates(optimizers, setting.module, setting.order)
        self.core_waits = CoreWaits()
        self.setting, self.job, self.world = setting, setting.order.job, setting.world
        self.learning_rates = LearningRates(optimizers)
        self.series, self.timing = Series(), Timing()
        self.evaluation_curve: list[EvaluationPoint] = []
        self.evaluation_seconds = 0.0
        self.scores = evaluation.Scores()
        self.inside: Inspection | None = None
        self.steps_done = 0
        self.first_step_at: float | None = None
        """When the first window was opened, by `time.perf_counter`."""
        self.training_window: tuple[float, float] | None = None
        """Training up to the first evaluation, by `time.perf_counter`."""
        self.evaluation = partial(evaluation.at_evaluated_weights, optimizers, forward)
        every = self.job.eval.every_steps if isinstance(self.job.eval, Eval) else None
        points = set(range(every, self.job.max_steps, every)) if every else set()
        self._evaluation_steps = sorted(points | {self.job.max_steps})
        self._compilations_before = self._compilations = compilations()
        self._pending: list[StepTensors] = []
        self._window: Window | None = None
        self._wanted = 0
        self._pace_seconds: float | None = None
        setting.recorder = self

    @property
    def compilations(self) -> int:
        """Graphs compiled since the training began."""
        return self._compilations - self._compilations_before

    def write_series(self, path: Path) -> None:
        """Everything known of every step, as JSON; numbers that are not finite become null."""
        series, rates = self.series, self.learning_rates
        content = {
            "loss_nats_per_token": _storable(series.losses),
            "gradient_norm": _storable(series.gradient_norms),
            "applied": series.applied,
            "learning_rate_share_of_peak": [first for first, *_ in rates.shares[: len(series.losses)]],
            "peak_learning_rates": rates.peaks,
            "step_seconds": series.step_seconds,
            "extra_step_seconds": series.extra_step_seconds,
        }
        path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")

    def wants_step(self) -> bool:
        """Whether another step is wanted; opens the next window where none is open."""
        if self._window is None:
            if self.steps_done == 0 and isinstance(self.job.eval, Eval) and self.job.eval.at_start:
                self._evaluate()
            if self.steps_done == 0 or self.steps_done in self._evaluation_steps:
                extra = self.steps_done >= self.job.max_steps
                if not extra:
                    self.setting.memory.start()
                if not extra or not self._timed_enough():
                    self.setting.emit(Phase(phase="extra" if extra else "train"))
            self._wanted = self.world.from_first(self._next_window())
            self.core_waits.begin()
            self._window = Window(self.world.device_type) if self._wanted else None
            if self.first_step_at is None and self._window is not None:
                self.first_step_at = self._window.opened
        return self._window is not None

    def step_done(self, step: StepTensors) -> None:
        """A step was made since `wants_step`. Raises Diverged."""
        assert self._window is not None, "ask wants_step before a step"
        of_the_job = self.steps_done < self.job.max_steps
        if of_the_job:
            self.learning_rates.note()
        self._pending.append(step)
        self.steps_done += 1
        before, self._compilations = self._compilations, compilations()
        self._window.step_done(compiled=self._compilations > before)
        if len(self._window.compiled) == self._wanted:
            self._close(self._window, of_the_job)

    def _next_window(self) -> int:
        """Steps of the next window, 0 for the end; the first rank's answer counts, as clocks differ."""
        by_pace = max(1, int(SECONDS_BETWEEN_EDGES[self.world.device_type] / (self._pace_seconds or math.inf)))
        edges = [*self._evaluation_steps, self.job.timing.warmup_steps]
        left = [edge - self.steps_done for edge in edges if edge > self.steps_done]
        if self.steps_done < self.job.max_steps:
            return min(by_pace, *left)
        if self._timed_enough():
            return 0
        missing_steps = self._least_timed() - len(self.timing.timed_steps)
        missing_seconds = self.setting.order.min_timed_seconds - self.timing.timed_seconds
        to_time = max(1, missing_steps, math.ceil(missing_seconds / (self._pace_seconds or math.inf)))
        return min(by_pace, to_time)

    def _least_timed(self) -> int:
        return max(LEAST_TIMED_STEPS, self.job.max_steps - self.job.timing.warmup_steps)

    def _timed_enough(self) -> bool:
        """Whether the timed windows suffice: long enough, and voided ones made up for."""
        enough = len(self.timing.timed_steps) >= self._least_timed()
        return enough and self.timing.timed_seconds >= self.setting.order.min_timed_seconds

    def _close(self, window: Window, of_the_job: bool) -> None:
        """Read and report what the window's steps left; evaluate where a stretch of training ends here."""
        self._window = None
        self.setting.whereabouts.enter("reading of results", self.steps_done)
        window.close()
        steps = len(window.step_seconds)
        self._pace_seconds = window.seconds / steps
        timed = self.steps_done - steps >= self.job.timing.warmup_steps
        self.core_waits.end(is_timed=timed and not any(window.compiled))
        self.timing.add(window, timed=timed, of_the_job=of_the_job)
        pending, self._pending = self._pending, []
        if of_the_job:
            self.series.step_seconds += window.step_seconds
            self.series.read(pending, self.world)
        else:
            self.series.extra_step_seconds += window.step_seconds
        self.setting.emit(
            Progress(
                step=min(self.steps_done, self.job.max_steps),
                of=self.job.max_steps,
                loss=self.series.losses[-1],
                tokens_per_second=self.job.tokens_per_step * steps / window.seconds if window.seconds > 0 else None,
            )
        )
        if self.steps_done in self._evaluation_steps:
            self.setting.memory.stop()
            if self.training_window is None and self.first_step_at is not None:
                self.training_window = (self.first_step_at, time.perf_counter())
            self._evaluate()
            if self.steps_done == self.job.max_steps:
                self._measure_own()
                self._save()

    def _teller(self, what: Literal["sequences", "texts"]) -> Callable[[int, int], None]:
        """Tells of so many done of all, but not more often than anybody looks."""
        told = time.perf_counter()

        def tell(done: int, of: int) -> None:
            nonlocal told
            if (now := time.perf_counter()) - told >= EVALUATION_TOLD_SECONDS:
                told = now
                self.setting.emit(Evaluating(done=done, of=of, what=what))

        return tell

    def _evaluate(self) -> None:
        """Score the held-out set where the job has one; after the last step generate and look inside as well."""
        setting, held_out = self.setting, self.setting.held_out
        if not held_out:
            return
        setting.emit(Phase(phase="evaluate"))
        setting.whereabouts.enter("evaluation", self.steps_done)
        before = time.perf_counter()
        # No more sequences at once than in training, so that an evaluation doesn't run out of memory first.
        at_once = setting.order.choices.micro_batch_size
        try:
            with self.evaluation() as logits:
                seen_before = setting.watch.untrained
                tell = self._teller("sequences")
                loss = evaluation.heldout_loss(
                    logits, held_out, sequences_per_batch=at_once, world=self.world, tell=tell
                )
                setting.watch.scored.append((len(held_out), setting.watch.untrained - seen_before))
                if self.steps_done >= self.job.max_steps:
                    assert setting.reading is not None, "a job that evaluates has one"
                    tell = self._teller("texts")
                    self.scores = evaluation.examined(setting.order, setting.reading, logits, self.world, tell)
                    self.inside = evaluation.look_inside(held_out, setting.reading, logits, self.world)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(f"in the evaluation, the training itself went well: {error}") from error
        self.evaluation_seconds += time.perf_counter() - before
        if not math.isfinite(loss):
            raise Diverged(f"the held-out loss after step {self.steps_done} is {loss}")
        self.evaluation_curve.append(
            EvaluationPoint(
                step=self.steps_done,
                tokens=self.steps_done * self.job.tokens_per_step,
                training_seconds=self.timing.training_seconds,
                loss=loss,
            )
        )

    def _measure_own(self) -> None:
        """Metrics of own code, of the model that was evaluated last; every rank takes part."""
        order = self.setting.order
        if not order.job.own_metrics:
            return
        try:
            with self.evaluation() as forward:
                found = evaluation.own_metrics(order, forward, self.world)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(f"in job.eval.metrics, the training itself went well: {error}") from error
        signatures = {name: order.job.own_metrics[name].call for name in found}
        self.scores = replace(
            self.scores, scores={**self.scores.scores, **found}, signatures={**self.scores.signatures, **signatures}
        )

    def _save(self) -> None:
        """Keep the model that was evaluated last, where the order says so; every rank takes part."""
        order = self.setting.order
        if order.model_folder is None:
            return
        self.setting.emit(Phase(phase="save"))
        self.setting.whereabouts.enter("saving", self.steps_done)
        with self.evaluation() as forward:
            evaluation.save_model(order, forward, Path(order.model_folder), writes=self.world.is_first)


def _storable(values: Sequence[float | None]) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in values]

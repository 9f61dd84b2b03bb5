"""What every training loop is given, and the recorder that its steps go to: windows, series, evaluations."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import torch

from selectbench.record.record import EvaluationPoint, Inspection
from selectbench.record.wire import Evaluating, Event, Order, Phase, Progress
from selectbench.suite.job import Eval
from selectbench.worker import evaluation
from selectbench.worker.attention import SdpaBackends
from selectbench.worker.batches import Batches, HeldOut, TokenStream
from selectbench.worker.model import SummedLoss
from selectbench.worker.observation import CoreWaits, ModelBehaviour, Watch
from selectbench.worker.runtime import TrainingMemory, Whereabouts, World, compilations, is_out_of_memory, wait_for

SHARE_TOLERANCE = 1e-9
"""Shares that differ by less are equal up to rounding."""


class LearningRates:
    """Records each parameter group's learning rate as a share of the peak that it was built with."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Call before any schedule has touched the optimizers."""
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.peaks = [float(group["lr"]) for group in self._groups]
        self._at_update: dict[int, float] = {}
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._note_rates)
        self.shares: list[tuple[float, ...]] = []
        """For each noted step the groups' shares of their peaks; a single share where all groups agree."""
        self.updated: list[bool] = []
        """For each noted step, whether the optimizers updated every group."""
        self.highest = [0.0] * len(self._groups)
        """Highest rate of each group in any noted step; lower than the peak where the schedule never reaches it."""

    def _note_rates(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            self._at_update.setdefault(id(group), float(group["lr"]))

    def note(self) -> None:
        """Note the rates of the step that was just made: those at its update, where there was one."""
        rates = [self._at_update.get(id(group), float(group["lr"])) for group in self._groups]
        self.updated.append(len(self._at_update) == len(self._groups))
        self._at_update.clear()
        self.highest = list(map(max, self.highest, rates))
        shares = [rate / peak for rate, peak in zip(rates, self.peaks, strict=True)]
        self.shares.append((shares[0],) if max(shares) - min(shares) < SHARE_TOLERANCE else tuple(shares))


# Timing of optimizer steps in windows whose edges wait for the device, and no step inside does.


ADJACENT_SECONDS = 0.1
"""Windows closer than this count as one for meters of power and energy, which resolve no finer."""


class Window:
    """Steps between two edges that wait for the device; on a GPU times are events in its queue."""

    def __init__(self, device_type: str) -> None:
        """Open the window: wait for the device and mark the first edge."""
        self._device_type = device_type
        wait_for(device_type)
        self.opened = time.perf_counter()
        """Time of the first edge, by `time.perf_counter`."""
        self.seconds = math.nan
        """Seconds between the edges, once the window is closed."""
        self.step_seconds: list[float] = []
        """Duration of each step, once the window is closed."""
        self.compiled: list[bool] = []
        """Whether each step compiled something."""
        self._marks = [self._mark()]

    def _mark(self) -> Any:
        if self._device_type == "cpu":  # a CPU's work is done when the call returns
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def step_done(self, compiled: bool) -> None:
        """Mark the end of a step; `compiled`: something was compiled in it."""
        self._marks.append(self._mark())
        self.compiled.append(compiled)

    def close(self) -> None:
        """Wait for the device and read the durations."""
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
    """Begin and end of timed windows by `time.perf_counter`; those less than ADJACENT_SECONDS apart are merged."""

    def add(self, window: Window, *, timed: bool, of_the_job: bool) -> None:
        """Add a window. `timed`: the warm-up is over; `of_the_job`: its steps were not added for timing alone."""
        if of_the_job:
            self.training_seconds += window.seconds
        steps = list(zip(window.step_seconds, window.compiled, strict=True))
        self.compiling_steps += [seconds for seconds, compiled in steps if compiled]
        if not timed:
            self.warmup_steps += [seconds for seconds, compiled in steps if not compiled]
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

    def compile_seconds(self) -> float | None:
        """Time of the steps that compiled beyond that of median steps; None where none compiled."""
        median_step = self.median_seconds()
        if not self.compiling_steps or median_step is None:
            return None
        return max(0.0, sum(self.compiling_steps) - median_step * len(self.compiling_steps))

    def warmup_seconds(self) -> float:
        """Time of the warm-up steps; a step that compiled counts as a median step."""
        median_step = self.median_seconds() or 0.0
        return sum(self.warmup_steps) + median_step * (len(self.compiling_steps) - self.recompilations)


# The full series of a trial: what every step left behind, read from the device at window edges.


class StepTensors(NamedTuple):
    """What a step leaves behind on this rank, as scalars on the device."""

    loss: torch.Tensor
    """This rank's part of the mean over the step's tokens, before the update; nats per token, float32."""
    gradient_norm: torch.Tensor | None
    """Global norm before clipping, the same on all ranks. None: an own loop does not report it."""
    applied: torch.Tensor
    """Whether the weights were updated; the same on every rank."""
    stream: torch.Tensor
    """This rank's part of the step's sum of the token stream's digest, int64."""
    tokens: int
    """Tokens that the model consumed on this rank."""
    micro_batches: int
    """Number of micro-batches of the step on this rank."""


DIVERGED_ABOVE = 2.0
"""Times the first loss. A fresh model starts near ln(vocabulary), the loss of a uniform guess: twice that
is far worse than knowing nothing, and no warm-up or restart of a healthy run gets there."""
DIVERGED_OVER_STEPS = 10
"""Steps whose mean loss is judged, so that one bad batch is not a divergence."""


NORM_TOLERANCE = 1e-3
"""Relative difference of a rank's gradient norm from all ranks' mean: sums in another order stay far below."""


class RanksDisagreeError(RuntimeError):
    """Ranks that must agree on gradients, weights or data do not."""


class Diverged(Exception):  # noqa: N818 - an outcome, not an error
    """The loss is not finite, or so high that the training will not recover."""


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
        """Fetch the steps' scalars from the device; wait for it and for the other ranks. Raises Diverged."""
        first_step = len(self.losses)
        missing = torch.full((), math.nan, device=world.device)
        norms = torch.stack([missing if s.gradient_norm is None else s.gradient_norm for s in steps]).double()
        losses = torch.stack([s.loss for s in steps]).double()
        tokens = torch.tensor([s.tokens for s in steps], dtype=torch.int64, device=world.device)
        # Two exchanges for all of the window's steps.
        summed_losses, summed_norms = world.total(torch.stack([losses, norms.nan_to_num(0.0, 0.0, 0.0)])).tolist()
        streams, summed_tokens = world.total(torch.stack([torch.stack([s.stream for s in steps]), tokens])).tolist()
        values = norms.tolist()
        _check_agreement(values, summed_norms, first_step, world)
        self.losses += summed_losses
        self.gradient_norms += [None if s.gradient_norm is None else n for s, n in zip(steps, values, strict=True)]
        self.applied += torch.stack([s.applied for s in steps]).tolist()
        self.stream_sums += streams
        self.tokens += summed_tokens
        self.micro_batches += [s.micro_batches for s in steps]
        for step, (loss, norm) in enumerate(
            zip(self.losses[first_step:], self.gradient_norms[first_step:], strict=True), first_step
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
    """Check that all ranks have the same gradient norms: a reduction that was left out shows here.

    `sums`: the norms' sums over the ranks, with 0 for norms that are not finite. Raises RanksDisagreeError.
    """
    for step, (norm, total) in enumerate(zip(norms, sums, strict=True), first_step):
        finite, mean = norm if math.isfinite(norm) else 0.0, total / world.size
        if abs(finite - mean) > NORM_TOLERANCE * abs(mean):
            raise RanksDisagreeError(
                f"the gradient norm of step {step} is {finite:.6g} on rank {world.rank} and {mean:.6g} on average: "
                "the ranks do not train one model"
            )


# What every training loop is given before its first step.


EVALUATION_EVENT_SECONDS = 0.25
"""Least seconds between two progress events of an evaluation."""
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
    """Share of the peak learning rate for each step of the job."""
    held_out: HeldOut | None
    reading: evaluation.Reading | None
    """What the final evaluation needs; None: the job does not evaluate."""
    emit: Emit
    memory: TrainingMemory
    whereabouts: Whereabouts
    watch: Watch = field(default_factory=Watch)
    """Counts of what own code does, where it takes part."""
    sdpa: SdpaBackends = field(default_factory=SdpaBackends)
    """SDPA backends that the training's attention used."""
    trainable_parameters: int | None = None
    """Number of trainable parameters, once the adaptation is applied."""
    parameters_by_use: dict[str, int] = field(default_factory=dict)
    """Number of trainable parameters by their use, such as `matrix`."""
    left_parameters: int | None = None
    """Number of parameters in matrices that LoRA was meant for but does not reach; None: no LoRA."""
    behaviour: ModelBehaviour = field(default_factory=ModelBehaviour)
    """How the model behaves in a forward pass, from a trial call."""
    recorder: Recorder | None = None
    """Set when the loop makes its recorder, so that its series is written even where the training fails."""

    def share_at(self, step: int) -> float:
        """The share of the peak rate at a step; steps added for timing have the job's last share."""
        return self.shares[min(step, len(self.shares) - 1)]


# The recorder measures a training, whichever loop drives it: windows of steps, evaluations, steps for timing alone.
#
# The loop, ours or another, calls `wants_step` and `step_done`; everything that is measured, read or evaluated
# happens in these calls, and is the same for every loop.


SECONDS_BETWEEN_EDGES = {"cpu": 0.25, "cuda": 1.0}
"""Aimed-at length of a window: waiting for a CPU costs nothing, waiting for a GPU empties its queue."""
LEAST_TIMED_STEPS = 5
"""Fewest timed steps for a meaningful median and quartiles."""


class Recorder:
    """Collects what a job's steps and evaluations yield; each rank has one, and all have the same windows."""

    def __init__(
        self, setting: Setting, forward: Callable[[], AbstractContextManager[evaluation.Forward]],
        optimizers: list[torch.optim.Optimizer],
    ) -> None:  # fmt: skip
        """Make it before the first step, when optimizers have their peak learning rates; sets `setting.recorder`.

        All evaluations go through it, so it switches optimizers with two sets of weights.
        """
        evaluation.begin_training(optimizers)
        if "optimizer" in setting.watch.own_parts:
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
        """Time at which the first window opened, by `time.perf_counter`."""
        self.training_window: tuple[float, float] | None = None
        """Begin and end of the training before the first evaluation, by `time.perf_counter`."""
        self.evaluation = partial(evaluation.at_evaluated_weights, optimizers, forward)
        interval = self.job.eval.every_steps if isinstance(self.job.eval, Eval) else None
        points = set(range(interval, self.job.max_steps, interval)) if interval else set()
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
        """Write everything known of every step as JSON; numbers that are not finite become null."""
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
        """Record the step made since `wants_step`. Raises Diverged."""
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
        """Steps of the next window, 0 at the end; the first rank decides, since clocks differ."""
        by_pace = max(1, int(SECONDS_BETWEEN_EDGES[self.world.device_type] / (self._pace_seconds or math.inf)))
        edges = [*self._evaluation_steps, self.job.timing.warmup_steps]
        steps_to_edges = [edge - self.steps_done for edge in edges if edge > self.steps_done]
        if self.steps_done < self.job.max_steps:
            return min(by_pace, *steps_to_edges)
        if self._timed_enough():
            return 0
        missing_steps = self._least_timed() - len(self.timing.timed_steps)
        missing_seconds = self.setting.order.min_timed_seconds - self.timing.timed_seconds
        to_time = max(1, missing_steps, math.ceil(missing_seconds / (self._pace_seconds or math.inf)))
        return min(by_pace, to_time)

    def _least_timed(self) -> int:
        return max(LEAST_TIMED_STEPS, self.job.max_steps - self.job.timing.warmup_steps)

    def _timed_enough(self) -> bool:
        """Whether the timed windows are long enough, with voided windows replaced."""
        enough = len(self.timing.timed_steps) >= self._least_timed()
        return enough and self.timing.timed_seconds >= self.setting.order.min_timed_seconds

    def _close(self, window: Window, of_the_job: bool) -> None:
        """Read and report the window's results; evaluate, score and save where the step calls for it."""
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
                self._run_own_metrics()
                self._save()

    def _progress_reporter(self, what: Literal["sequences", "texts"]) -> Callable[[int, int], None]:
        """A function that emits progress of the evaluation, at most every EVALUATION_EVENT_SECONDS."""
        last_report = time.perf_counter()

        def report(done: int, of: int) -> None:
            nonlocal last_report
            if (now := time.perf_counter()) - last_report >= EVALUATION_EVENT_SECONDS:
                last_report = now
                self.setting.emit(Evaluating(done=done, of=of, what=what))

        return report

    def _evaluate(self) -> None:
        """Compute the held-out loss where the job evaluates; after the last step also scores and samples."""
        setting, held_out = self.setting, self.setting.held_out
        if not held_out:
            return
        setting.emit(Phase(phase="evaluate"))
        setting.whereabouts.enter("evaluation", self.steps_done)
        before = time.perf_counter()
        # No more sequences at once than in training, so that an evaluation doesn't run out of memory first.
        batch_size = setting.order.choices.micro_batch_size
        with _outside_training("the evaluation"), self.evaluation() as logits:
            seen_before = setting.watch.untrained
            report = self._progress_reporter("sequences")
            loss = evaluation.heldout_loss(
                logits, held_out, sequences_per_batch=batch_size, world=self.world, report=report
            )
            setting.watch.scored.append((len(held_out), setting.watch.untrained - seen_before))
            if self.steps_done >= self.job.max_steps:
                assert setting.reading is not None, "a job that evaluates has one"
                report = self._progress_reporter("texts")
                self.scores = evaluation.score_model(setting.order, setting.reading, logits, self.world, report)
                self.inside = evaluation.inspect_model(held_out, setting.reading, logits, self.world)
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

    def _run_own_metrics(self) -> None:
        """Compute the metrics of own code for the model that was evaluated last; all ranks take part."""
        order = self.setting.order
        if not order.job.own_metrics:
            return
        with _outside_training("job.eval.metrics"), self.evaluation() as forward:
            added = evaluation.own_metrics(order, forward, self.world)
        signatures = {name: order.job.own_metrics[name].call for name in added}
        self.scores = replace(
            self.scores, scores={**self.scores.scores, **added}, signatures={**self.scores.signatures, **signatures}
        )

    def _save(self) -> None:
        """Save the model that was evaluated last, where the order requests it; all ranks take part."""
        order = self.setting.order
        if order.model_folder is None:
            return
        self.setting.emit(Phase(phase="save"))
        self.setting.whereabouts.enter("saving", self.steps_done)
        with self.evaluation() as forward:
            evaluation.save_model(order, forward, Path(order.model_folder), writes=self.world.is_first)


@contextmanager
def _outside_training(place: str) -> Iterator[None]:
    """Have an error say where memory ran out, if not in the training. Raises MemoryError in its place."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"in {place}, the training itself went well: {error}") from error


def _storable(values: Sequence[float | None]) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in values]

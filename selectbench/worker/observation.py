"""Checks and counts of a trial besides its own results: causality, own code, clocks, waits for a core."""

from __future__ import annotations

import hashlib
import inspect
import lzma
import math
import os
import re
import resource
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch.linalg import vector_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

import selectbench.observe.selectbench_seen as seen
from selectbench.choices import Choices
from selectbench.choices.choice import IGNORED_FOLDERS, import_roots, is_own
from selectbench.choices.model import OwnModel
from selectbench.cores import ThreadTimes, busy_seconds, seconds_between, thread_times
from selectbench.record.wire import Order
from selectbench.suite.job import Job
from selectbench.worker.batches import Batch, TokenStream
from selectbench.worker.evaluation import Forward
from selectbench.worker.runtime import World, attention_kernel, derived_seed, evaluation_kernel

_TRUSTED_CLOCK = time.monotonic
"""The clock as it is before own code is imported, which may replace `time.monotonic`."""


def parts_of_own_code(job: Job, choices: Choices) -> list[str]:
    """The parts of a trial that are own code: `model` or the name of a dimension."""
    dimensions = [name for name, choice in choices.by_dimension().items() if is_own(getattr(choice, "name", None))]
    return ["model", *dimensions] if isinstance(job.model, OwnModel) else dimensions


# Whether logits depend on tokens that come after them.


NOISE = 1e-5
"""Relative to the largest logit; where two equal calls in fp32 differ by more, causality can't be measured."""


def causality(forward: Forward, batch: Batch) -> dict[str, float] | None:
    """How much the logits before a changed input change, relative to the largest logit, by mode of the model.

    `batch`: a few sequences of a causal job on the device. Each is changed from some place to its end, and the
    model is called with the same shape, weights and random state. A mode in which two equal calls differ is left
    out. Restores mode, random state and buffers. All ranks make the same calls.
    """
    inputs = batch.arguments[0]
    rows, length = inputs.shape
    if length < 2:
        return None
    first_changed = torch.tensor([1 + (row + 1) * (length - 1) // (rows + 1) for row in range(rows)])
    is_earlier = (torch.arange(length)[None, :] < first_changed[:, None]).to(inputs.device)
    other = torch.where(is_earlier, inputs, (inputs + 1) % (inputs.max() + 1))
    changes = {}
    for mode in ("training", "evaluation"):
        with _repeatable(forward, training=mode == "training", device=inputs.device) as call:
            logits, repeated, changed = (call(replace(batch, arguments=(ids,))) for ids in (inputs, inputs, other))
        noise, change = (_relative_change(logits, second, is_earlier) for second in (repeated, changed))
        if noise <= NOISE and math.isfinite(change):
            changes[mode] = change
    return changes or None


def _relative_change(logits: torch.Tensor, other: torch.Tensor, where: torch.Tensor | slice = slice(None)) -> float:
    """The largest difference of two passes' logits, relative to the largest logit."""
    largest = logits.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((other - logits)[where].abs().max() / largest)


@contextmanager
def _repeatable(forward: Forward, *, training: bool, device: torch.device) -> Iterator[Callable[..., torch.Tensor]]:
    """A function that calls the model in a mode, always from the same random state and buffers; restores both."""
    module, mode = forward.module, forward.module.training
    buffers: list[torch.Tensor] = [forward.weights.get(name, buffer) for name, buffer in module.named_buffers()]
    saved = [(buffer, buffer.clone()) for buffer in buffers]

    def restore() -> None:
        for buffer, value in saved:
            buffer.copy_(value)

    def call(batch: Batch, draw: int = 0) -> torch.Tensor:
        torch.manual_seed(derived_seed(draw, "causality"))
        restore()
        return forward(batch).float()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        module.train(training)
        try:
            yield call
        finally:
            module.train(mode)
            restore()


# What a model of any family does in its forward pass, found by calls with a few tokens before anything wraps it.
#
# These calls show, whatever the family, which parameters are factors of matrix products, which get a gradient,
# whether the logits depend on random numbers, and whether the model adds a loss of its own.


TRIAL_TOKENS = 16
"""Tokens of the one sequence; a family that refuses this length gets the whole sequence."""
TRIAL_DRAWS = 6
"""Passes with other random numbers, where any are drawn: with layer dropout two passes may agree by chance."""
_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "_grouped_mm"})
_ADDS_ITSELF = frozenset({"addmm", "baddbmm", "addmv"})
"""Products whose first argument is only added."""
_LOOKED_UP = frozenset({"embedding", "convolution"})


@dataclass(frozen=True)
class ModelBehaviour:
    """What trial calls of a model showed; empty for a model that was not called."""

    used_as: dict[str, str] = field(default_factory=dict)
    """Use of each parameter by name: `matrix`, `embedding`, `convolution`, or `other` (added or scaled by)."""
    without_gradient: list[str] = field(default_factory=list)
    """Names of trainable parameters that got no gradient."""
    random_modules: list[str] = field(default_factory=list)
    """Names of modules that drew random numbers, if two passes differ; layer numbers as `*`."""
    adds_loss: bool = False
    """Whether its configuration makes it add a loss of its own; its token loss is then left out."""


def examine_model(module: Any, batch: Batch) -> ModelBehaviour:
    """Call a transformers model in training mode on the CPU with one sequence; restores both.

    Raises what the model raises for the whole sequence, as its training would.
    """
    with attention_kernel(module, evaluation_kernel(module)):
        with suppress(Exception):
            return _examine(module, batch.map(lambda tensor: tensor[:1, :TRIAL_TOKENS].cpu()))
        return _examine(module, batch.map(lambda tensor: tensor[:1].cpu()))


def _examine(module: Any, batch: Batch) -> ModelBehaviour:
    with _repeatable(Forward(module, {}), training=True, device=torch.device("cpu")) as call:
        with ModuleTracker() as tracker, _Operations(module, tracker) as operations:
            logits = call(batch)
        reached = {id(getattr(node, "variable", None)) for node in seen.graph_nodes(logits.sum(), math.inf)}
        with torch.no_grad():
            draws = range(1, TRIAL_DRAWS if operations.drawn else 2)
            is_random = any(_relative_change(logits, call(batch, draw)) > NOISE for draw in draws)
    drawn = sorted({re.sub(r"\.\d+", ".*", name) for name in operations.drawn}) or [type(module).__name__]
    missing = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in reached]
    return ModelBehaviour(operations.used_as, missing, drawn if is_random else [], _adds_loss(module, batch))


def _adds_loss(module: Any, batch: Batch) -> bool:
    """Whether the model's own loss has a part besides the token loss; if so its token loss stays switched off.

    We compute the token loss: the model's shifts the labels, and leaves out one target of each sequence.
    """
    if "labels" not in inspect.signature(module.forward).parameters or "_loss_function" in vars(module):
        return False
    calls = []

    def no_token_loss(*arguments: Any, **keywords: Any) -> torch.Tensor:
        calls.append(True)
        return without_token_loss(*arguments, **keywords)

    module.loss_function = no_token_loss
    with torch.random.fork_rng(devices=[]):
        rest = module(*batch.arguments, **batch.named, labels=batch.targets).loss
    if calls and isinstance(rest, torch.Tensor) and rest.requires_grad:
        module.loss_function = without_token_loss
        return True
    del module._loss_function
    return False


def without_token_loss(logits: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Replaces a model's token loss by 0, so that its loss is only what its configuration adds."""
    return torch.zeros((), device=logits.device)


class _Operations(TorchDispatchMode):
    """Records what a module's parameters are used for, and which modules draw random numbers."""

    def __init__(self, module: Any, tracker: ModuleTracker) -> None:
        super().__init__()
        self._tracker = tracker
        self.used_as: dict[str, str] = {}
        """As `ModelBehaviour.used_as`, for the parameters that took part."""
        parameters = sorted((p.data_ptr(), p.nbytes, name) for name, p in module.named_parameters() if p.numel())
        self._starts, self._parameters = [start for start, *_ in parameters], parameters
        self.drawn: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and arguments.get("dropout_p", 1) != 0:
            path = max(self._tracker.parents - {"Global"}, key=lambda name: name.count("."))
            self.drawn.add(path.partition(".")[2] or path)  # without the class of the whole model
        operation = func._opname
        use = "matrix" if operation in _PRODUCTS else operation if operation in _LOOKED_UP else "other"
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and value.numel():
                is_added = name == "bias" or (name == "self" and operation in _ADDS_ITSELF)
                self._note_use(value, "other" if is_added else use)
        return func(*args, **(kwargs or {}))

    def _note_use(self, tensor: torch.Tensor, use: str) -> None:
        index = bisect_right(self._starts, tensor.data_ptr()) - 1
        if index >= 0 and tensor.data_ptr() < sum(self._parameters[index][:2]):
            name = self._parameters[index][2]
            if self.used_as.get(name, "other") == "other":
                self.used_as[name] = use


# Counts of what the model and the optimizers of a trial with own code do.


SAMPLED_UPDATES = 5
"""Updates, spread over the job, before and after which all weights are compared."""


@dataclass
class Watch:
    """Counts calls and updates by hooks where own code takes part; in built-in trials it counts nothing."""

    own_parts: list[str] = field(default_factory=list)
    stream: TokenStream | None = None
    trained: int | None = None
    """Sequences that the model got in calls with gradients; None: the model is not watched."""
    untrained: int = 0
    """Sequences that the model got in calls without gradients."""
    scored: list[tuple[int, int]] = field(default_factory=list)
    """For each evaluation, the sequences that all ranks must score, and those that this rank's model got."""
    updates: list[UpdateWatch] = field(default_factory=list)
    _step: int = 0
    _differing: torch.Tensor | int | None = None
    """Digest of the sequences given to an own loop, minus that of those the model got, weighted by step."""

    def __post_init__(self) -> None:
        self._began = time.perf_counter(), _TRUSTED_CLOCK()

    def watch_model(self, module: Any, stream: TokenStream) -> None:
        """Count calls from here on; copies of the module add to the same counts."""
        self.trained, self.stream = 0, stream

        def count(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            inputs = next(v for v in (*arguments, *keywords.values()) if isinstance(v, torch.Tensor))
            if not torch.is_grad_enabled():
                self.untrained += len(inputs)
            elif self.trained is not None:
                self.trained += len(inputs)
                self._note(inputs, -1)

        module.register_forward_pre_hook(count, with_kwargs=True)

    def note_given(self, inputs: torch.Tensor, step: int) -> None:
        """Record that an own loop gets token ids, (sequences, seq_len), of a step."""
        self._step, self._differing = step, 0 if self._differing is None else self._differing
        self._note(inputs, 1)

    def _note(self, inputs: torch.Tensor, sign: int) -> None:
        if self._differing is not None and self.stream is not None:
            self._differing = self._differing + self.stream.unordered_sum(inputs) * (sign * (2 * self._step + 1))

    def watch_updates(self, optimizers: Sequence[torch.optim.Optimizer], module: Any, order: Order) -> None:
        """Count updates from here on; compare weights where each rank has all of them and no update is skipped."""
        is_comparable = not order.choices.strategy.sharded() and not order.choices.precision.gradient_scaling
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.updates = [UpdateWatch(o, names, order.job.max_steps, is_comparable) for o in optimizers]

    def clock_ratio(self) -> float | None:
        """Seconds by `time.perf_counter`, which times everything, over seconds by the trusted clock."""
        seconds, trusted_seconds = time.perf_counter() - self._began[0], _TRUSTED_CLOCK() - self._began[1]
        return max(0.0, seconds / trusted_seconds) if trusted_seconds > 0 else None

    def counts(self, world: World, sequences_per_step: int, steps: int) -> dict[str, Any]:
        """The counts of all ranks, by the record's keys; all ranks call it together, after the last step."""
        if not self.own_parts:
            return {}
        same = None if self._differing is None else int(self._differing) == 0
        rank_counts = (self.trained, sum(scored for _, scored in self.scored), same)
        trained, scored, sames = zip(*world.gathered(rank_counts), strict=True)
        compared = [u for u in self.updates if u.is_comparable]
        counts: dict[str, Any] = {"own": self.own_parts}
        if None not in trained:
            counts |= {"sequences_given": sequences_per_step * steps, "sequences_seen": sum(trained)}
            counts |= {"evaluations": sum(expected for expected, _ in self.scored), "evaluations_seen": sum(scored)}
            counts["same_sequences"] = None if None in sames else all(sames)
        if self.updates:
            counts["updates_per_step"] = max(u.most_updates for u in self.updates)
        if compared:
            counts["sampled_updates"] = sum(len(u.moved) for u in compared)
            counts["idle_updates"] = sum(u.idle() for u in compared)
            counts["frozen_parameters"] = sorted(name for u in compared for name in u.frozen())
        return counts


class UpdateWatch:
    """Counts one optimizer's updates, and compares digests of the weights around some of them."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, names: dict[int, str], updates: int, is_comparable: bool
    ) -> None:
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # Rounding to fewer bits may leave weights as they are.
        self.is_comparable = is_comparable and all(p.dtype == torch.float32 for p in self.parameters)
        self.most_updates = 0
        self._names = [names.get(id(p), f"parameter {number}") for number, p in enumerate(self.parameters)]
        self._sample = {round(n * (updates - 1) / (SAMPLED_UPDATES - 1)) for n in range(SAMPLED_UPDATES)}
        self._first: torch.Tensor | None = None
        self.moved: list[torch.Tensor] = []
        self._gradients: torch.Tensor | None = None
        self._steps = 0
        self._levels: Counter[type] = Counter()
        optimizer.__dict__[_WATCHED_BY] = self
        for kind in type(optimizer).__mro__:
            step = vars(kind).get("step")
            if step is not None and kind is not torch.optim.Optimizer and not hasattr(step, _WATCHED_BY):
                kind.step = _counted(step, kind)  # type: ignore[attr-defined]

    def run(self, kind: type, step: Callable[[], Any], rates: Sequence[float]) -> Any:
        """Run one call of a class's `step`, which may be nested in a subclass's `step`."""
        is_within = bool(self._levels)
        self._levels[kind] += 1
        if is_within:
            return step()
        is_sampled = self.is_comparable and self._steps in self._sample and max(map(float, rates)) > 0
        before = self._begin_sample() if is_sampled else None
        try:
            return step()
        finally:
            self.most_updates = max(self.most_updates, *self._levels.values())
            self._levels.clear()
            self._steps += 1
            if before is not None:
                self.moved.append((self._digests() != before).any())

    def _begin_sample(self) -> torch.Tensor:
        gradients = [p.new_zeros(1) if p.grad is None else p.grad for p in self.parameters]
        now, before = torch.stack([vector_norm(g, math.inf) for g in gradients]).detach(), self._digests()
        self._gradients = now if self._gradients is None else torch.maximum(self._gradients, now)
        self._first = before if self._first is None else self._first
        return before

    def _digests(self) -> torch.Tensor:
        """An integer for each parameter, which any changed bit changes; does not wait for the device."""
        return torch.stack([p.detach().view(torch.int32).sum(dtype=torch.int64) for p in self.parameters])

    def idle(self) -> int:
        """Number of compared updates that changed no weight although there was a gradient."""
        has_gradient = self._gradients is not None and bool((self._gradients > 0).any())
        return sum(not bool(moved) for moved in self.moved) if has_gradient else 0

    def frozen(self) -> list[str]:
        """Names of parameters that had gradients and have not changed."""
        if self._first is None or self._gradients is None:
            return []
        is_frozen = (self._first == self._digests()) & (self._gradients > 0)
        return [name for name, is_unchanged in zip(self._names, is_frozen.tolist(), strict=True) if is_unchanged]


_WATCHED_BY = "_selectbench_watch"


def _counted(step: Any, kind: type) -> Any:
    """Wrap a class's `step` so that an optimizer's watch, if it has one, counts the call."""

    @wraps(step)
    def counted(self: Any, *arguments: Any, **keywords: Any) -> Any:
        watch = self.__dict__.get(_WATCHED_BY)
        if watch is None:
            return step(self, *arguments, **keywords)
        rates = [group["lr"] for group in self.param_groups]
        return watch.run(kind, lambda: step(self, *arguments, **keywords), rates)

    setattr(counted, _WATCHED_BY, True)
    return counted


def rate_effect(optimizers: Sequence[torch.optim.Optimizer], peaks: Sequence[float]) -> float | None:
    """How many times farther an update moves the weights at the peak rate than at a thousandth of it.

    `peaks`: peak rates of all groups in order. Only for the end of a trial, as it moves the weights. None: weights
    are not in fp32, do not move, or become infinite.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [p for group in groups for p in group["params"]]
    if any(p.dtype != torch.float32 for p in parameters):
        return None
    moved = []
    for share in (1e-3, 1.0):
        before = [p.detach().clone() for p in parameters]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * share
        for p in parameters:
            p.grad = p.detach().clone() + 1e-3
        for optimizer in optimizers:
            optimizer.step()
        moved.append(
            sum(float((p.detach() - b).double().square().sum()) for p, b in zip(parameters, before, strict=True))
        )
    return math.sqrt(moved[1] / moved[0]) if moved[0] > 0 and math.isfinite(sum(moved)) else None


# Files of own code that were imported.


def own_files(folders: Sequence[str]) -> dict[str, str] | None:
    """Digests of modules imported so far from the suite's folders, by relative path; None: no folders."""
    if not folders:
        return None
    digests = {}
    for module in list(sys.modules.values()):
        file = Path(getattr(module, "__file__", None) or "")
        root = next((Path(r) for r in import_roots(folders) if file.is_relative_to(r)), None)
        name = file.relative_to(root) if root and file.is_file() else None
        if name and not any(part in IGNORED_FOLDERS or part.startswith(".") for part in name.parts):
            digests[name.as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return digests


# How long threads waited for a core, as the kernel counts it.


@dataclass
class CoreUse:
    """How one process used its cores in the timed windows."""

    waited_seconds: float = 0.0
    """Seconds that threads were ready to run without a core, summed; NaN: the kernel does not report it."""
    worked_seconds: float = 0.0
    """Seconds that threads ran on a core, summed."""
    switches: int = 0
    """Involuntary context switches."""
    cores_seconds: float = 0.0
    """Seconds of work, for any process, of the cores that it may use; NaN: the kernel does not report it."""


class CoreWaits:
    """Adds up the kernel's counts for this process's threads and cores, window by window."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.use = CoreUse()
        self._proc, self._cores = proc, os.sched_getaffinity(0)

    def begin(self) -> None:
        """Read the counts before a window opens."""
        self._before = self._read()

    def end(self, *, is_timed: bool) -> None:
        """Add the counts of a window that has closed, if it is timed."""
        if not is_timed:
            return
        after, worked, switches, busy = self._read()
        before, worked_before, switches_before, busy_before = self._before
        use = self.use
        use.waited_seconds += seconds_between(before, after)[1] if after else math.nan
        use.worked_seconds += worked - worked_before
        use.switches += switches - switches_before
        use.cores_seconds += busy - busy_before

    def _read(self) -> tuple[ThreadTimes, float, int, float]:
        """The threads' times, the process's seconds of work and switches, the seconds of work of its cores."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        worked, busy = usage.ru_utime + usage.ru_stime, busy_seconds(self._cores, self._proc)
        return thread_times("self", self._proc), worked, usage.ru_nivcsw, busy


# Size of the held-out text after compression by a general compressor.


XZ_BYTES = 1 << 18
LEAST_XZ_BYTES = 10_000
"""For shorter text xz's own frame is a large part of the output."""


def xz_bits_per_byte(stream: Sequence[int], text: Callable[[list[int]], str]) -> float | None:
    """Bits per byte of the beginning of the held-out text, compressed by xz; `text`: from token ids to text."""
    content = text(list(stream[:XZ_BYTES])).encode()[:XZ_BYTES]
    return 8 * len(lzma.compress(content)) / len(content) if len(content) >= LEAST_XZ_BYTES else None

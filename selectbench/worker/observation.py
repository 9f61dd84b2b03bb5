"""What is counted and tried of a trial besides what it tells: causality, own code, clocks, waits for a core."""

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
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from selectbench.choices import Choices
from selectbench.choices.choice import IGNORED_FOLDERS, import_roots, is_own
from selectbench.choices.model import OwnModel
from selectbench.record.wire import Order
from selectbench.suite.job import Job
from selectbench.worker.batches import Batch, TokenStream
from selectbench.worker.evaluation import Forward
from selectbench.worker.runtime import World, attention, derived_seed, evaluation_kernel

_KEPT_CLOCK = time.monotonic
"""Kept before any own code is imported, which may put another in its place."""


def own_parts(job: Job, choices: Choices) -> list[str]:
    """Which parts of a trial are own code: `model` or the name of a dimension."""
    found = [name for name, choice in choices.by_dimension().items() if is_own(getattr(choice, "name", None))]
    return ["model", *found] if isinstance(job.model, OwnModel) else found


# Whether logits depend on tokens that come after them.


NOISE = 1e-5
"""Over the largest logit: two equal calls in fp32 that differ by more are no measure."""


def causality(forward: Forward, batch: Batch) -> dict[str, float] | None:
    """How much logits before a changed input change, over the largest logit, by mode of the model.

    `batch`: a few sequences of a causal job on the device. Each is changed from another place on to its end, and
    the model is called with the same shape, weights and random state. A mode in which two equal calls differ is
    left out. Leaves mode, random state and buffers as they were. Every rank makes the same calls.
    """
    inputs = batch.arguments[0]
    rows, length = inputs.shape
    if length < 2:
        return None
    first_changed = torch.tensor([1 + (row + 1) * (length - 1) // (rows + 1) for row in range(rows)])
    is_earlier = (torch.arange(length)[None, :] < first_changed[:, None]).to(inputs.device)
    other = torch.where(is_earlier, inputs, (inputs + 1) % (inputs.max() + 1))
    found = {}
    for mode in ("training", "evaluation"):
        with _as_before(forward, training=mode == "training", device=inputs.device) as call:
            told, repeated, changed = (call(replace(batch, arguments=(each,))) for each in (inputs, inputs, other))
        noise, change = (_changed(told, each, is_earlier) for each in (repeated, changed))
        if noise <= NOISE and math.isfinite(change):
            found[mode] = change
    return found or None


def _changed(told: torch.Tensor, other: torch.Tensor, where: torch.Tensor | slice = slice(None)) -> float:
    """The largest difference of two passes' logits, over the largest logit."""
    largest = told.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((other - told)[where].abs().max() / largest)


@contextmanager
def _as_before(forward: Forward, *, training: bool, device: torch.device) -> Iterator[Callable[..., torch.Tensor]]:
    """Calls of the model in a mode, each from the same random state and buffers; both are left as they were."""
    module, mode = forward.module, forward.module.training
    used: list[torch.Tensor] = [forward.weights.get(name, buffer) for name, buffer in module.named_buffers()]
    kept = [(buffer, buffer.clone()) for buffer in used]

    def put_back() -> None:
        for buffer, value in kept:
            buffer.copy_(value)

    def call(batch: Batch, draw: int = 0) -> torch.Tensor:
        torch.manual_seed(derived_seed(draw, "causality"))
        put_back()
        return forward(batch).float()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        module.train(training)
        try:
            yield call
        finally:
            module.train(mode)
            put_back()


# What a model of any family does in its forward pass, tried on a few tokens before anything wraps it.
#
# Whatever its family, the model itself is asked: which of its parameters are multiplied with, which get a gradient,
# whether it draws random numbers on which its logits depend, and whether it adds a loss of its own.


TRIED_TOKENS = 16
"""Of one sequence; a family that takes no such length is given all of it."""
TRIED_DRAWS = 6
"""Passes with other random numbers where some are drawn: half of the layers dropped leaves them alike by chance."""
_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "_grouped_mm"})
_ADDS_ITSELF = frozenset({"addmm", "baddbmm", "addmv"})
"""Products to which the first argument is only added."""
_LOOKED_UP = frozenset({"embedding", "convolution"})


@dataclass(frozen=True)
class Tried:
    """What was found; of a model that nobody tried, nothing."""

    used_as: dict[str, str] = field(default_factory=dict)
    """By a parameter's name, `matrix`, `embedding`, `convolution`, or `other` where it is only added or scales."""
    without_gradient: list[str] = field(default_factory=list)
    """Parameters to train that no gradient reached, by name."""
    random_modules: list[str] = field(default_factory=list)
    """Where random numbers were drawn, if two passes differ; numbered layers as `*`."""
    adds_loss: bool = False
    """Whether its configuration has it add a loss of its own; its token loss is then left out."""


def tried(module: Any, batch: Batch) -> Tried:
    """Of a model of transformers in training mode on the CPU, and one sequence; leaves both as they were.

    Raises what the model raises when it is called with the whole sequence, as its training would.
    """
    kernel, on_cpu = attention(module), evaluation_kernel(module)
    if kernel != on_cpu:
        module.set_attn_implementation(on_cpu)
    try:
        with suppress(Exception):
            return _tried(module, batch.each(lambda tensor: tensor[:1, :TRIED_TOKENS].cpu()))
        return _tried(module, batch.each(lambda tensor: tensor[:1].cpu()))
    finally:
        if kernel != on_cpu:
            module.set_attn_implementation(kernel)


def _tried(module: Any, batch: Batch) -> Tried:
    with _as_before(Forward(module, {}), training=True, device=torch.device("cpu")) as call:
        with _Operations(module) as seen:
            told = call(batch)
        reached = _reached(told.sum())
        with torch.no_grad():
            draws = range(1, TRIED_DRAWS if seen.drawn else 2)
            is_random = any(_changed(told, call(batch, draw)) > NOISE for draw in draws)
    drawn = sorted({re.sub(r"\.\d+", ".*", name) for name in seen.drawn}) or [type(module).__name__]
    missing = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in reached]
    return Tried(seen.used_as, missing, drawn if is_random else [], _adds_loss(module, batch))


def _reached(total: torch.Tensor) -> set[int]:
    """The parameters to which a sum's gradient would go."""
    nodes, seen, found = [total.grad_fn], set(), set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(id(getattr(node, "variable", None)))
            nodes += [following for following, _ in node.next_functions]
    return found


def _adds_loss(module: Any, batch: Batch) -> bool:
    """Whether something is left of the model's own loss where its token loss is none; it then stays so.

    The token loss is ours: the model's own shifts the labels, and leaves out a target of each sequence.
    """
    if "labels" not in inspect.signature(module.forward).parameters or "_loss_function" in vars(module):
        return False
    asked = []

    def no_token_loss(*given: Any, **named: Any) -> torch.Tensor:
        asked.append(True)
        return without_token_loss(*given, **named)

    module.loss_function = no_token_loss
    with torch.random.fork_rng(devices=[]):
        rest = module(*batch.arguments, **batch.named, labels=batch.targets).loss
    if asked and isinstance(rest, torch.Tensor) and rest.requires_grad:
        module.loss_function = without_token_loss
        return True
    del module._loss_function
    return False


def without_token_loss(logits: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """In the place of a model's token loss: 0, to which it adds what else its configuration has it add."""
    return torch.zeros((), device=logits.device)


class _Operations(TorchDispatchMode):
    """Notes what a module's parameters are used for, and where random numbers are drawn."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._names = {id(part): name or type(part).__name__ for name, part in module.named_modules()}
        self._inside: list[str] = [type(module).__name__]
        self.used_as: dict[str, str] = {}
        """As `Tried.used_as`, of the parameters that took part."""
        parameters = sorted((p.data_ptr(), p.nbytes, name) for name, p in module.named_parameters() if p.numel())
        self._starts, self._parameters = [start for start, *_ in parameters], parameters
        self.drawn: set[str] = set()

    def __enter__(self) -> _Operations:
        self._hooks = [
            register_module_forward_pre_hook(lambda part, _: self._inside.append(self._names.get(id(part), "?"))),
            register_module_forward_hook(lambda *_: self._left(), always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _left(self) -> None:
        self._inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and named.get("dropout_p", 1) != 0:
            self.drawn.add(self._inside[-1])
        operation = func._opname
        use = "matrix" if operation in _PRODUCTS else operation if operation in _LOOKED_UP else "other"
        for name, value in named.items():
            if isinstance(value, torch.Tensor) and value.numel():
                is_added = name == "bias" or (name == "self" and operation in _ADDS_ITSELF)
                self._used(value, "other" if is_added else use)
        return func(*args, **(kwargs or {}))

    def _used(self, tensor: torch.Tensor, use: str) -> None:
        place = bisect_right(self._starts, tensor.data_ptr()) - 1
        if place >= 0 and tensor.data_ptr() < sum(self._parameters[place][:2]):
            name = self._parameters[place][2]
            if self.used_as.get(name, "other") == "other":
                self.used_as[name] = use


# What passes through the model and the optimizers of a trial with own code.


SAMPLED_UPDATES = 5
"""Spread over the job, around each of which all weights are held against each other."""


@dataclass
class Watch:
    """Counts by hooks where own code takes part; of built-in trials it counts nothing."""

    own: list[str] = field(default_factory=list)
    stream: TokenStream | None = None
    trained: int | None = None
    """Sequences that the model was called with while gradients were recorded; None: it is not watched."""
    untrained: int = 0
    """Those of its other calls."""
    scored: list[tuple[int, int]] = field(default_factory=list)
    """Of each evaluation, the sequences that all ranks are to score, and those that this rank's model saw."""
    updates: list[UpdateWatch] = field(default_factory=list)
    _step: int = 0
    _differing: torch.Tensor | int | None = None
    """Sum over what an own loop was handed less what the model saw, each sequence with the number of its step."""

    def __post_init__(self) -> None:
        self._began = time.perf_counter(), _KEPT_CLOCK()

    def watch_model(self, module: Any, stream: TokenStream) -> None:
        """Counts calls from here on; copies of the module count to the same."""
        self.trained, self.stream = 0, stream

        def count(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            inputs = next(v for v in (*arguments, *named.values()) if isinstance(v, torch.Tensor))
            if not torch.is_grad_enabled():
                self.untrained += len(inputs)
            elif self.trained is not None:
                self.trained += len(inputs)
                self._note(inputs, -1)

        module.register_forward_pre_hook(count, with_kwargs=True)

    def handed(self, inputs: torch.Tensor, step: int) -> None:
        """An own loop gets (sequences, seq_len) token ids of a step."""
        self._step, self._differing = step, 0 if self._differing is None else self._differing
        self._note(inputs, 1)

    def _note(self, inputs: torch.Tensor, sign: int) -> None:
        if self._differing is not None and self.stream is not None:
            self._differing = self._differing + self.stream.anywhere(inputs) * (sign * (2 * self._step + 1))

    def watch_updates(self, optimizers: Sequence[torch.optim.Optimizer], module: Any, order: Order) -> None:
        """Counts from here on; compares where the weights are whole on each rank and no update is left out."""
        is_comparable = not order.choices.strategy.sharded() and not order.choices.precision.gradient_scaling
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.updates = [UpdateWatch(o, names, order.job.max_steps, is_comparable) for o in optimizers]

    def clock_ratio(self) -> float | None:
        """What the clock that all is timed by counted since the making, over what the kept one did."""
        seconds, kept = time.perf_counter() - self._began[0], _KEPT_CLOCK() - self._began[1]
        return max(0.0, seconds / kept) if kept > 0 else None

    def found(self, world: World, sequences_per_step: int, steps: int) -> dict[str, Any]:
        """The counts of all ranks, by the record's keys; every rank calls it together, after the last step."""
        if not self.own:
            return {}
        same = None if self._differing is None else int(self._differing) == 0
        mine = (self.trained, sum(scored for _, scored in self.scored), same)
        trained, scored, sames = zip(*world.gathered(mine), strict=True)
        compared = [each for each in self.updates if each.is_comparable]
        found: dict[str, Any] = {"own": self.own}
        if None not in trained:
            found |= {"sequences_given": sequences_per_step * steps, "sequences_seen": sum(trained)}
            found |= {"evaluations": sum(of for of, _ in self.scored), "evaluations_seen": sum(scored)}
            found["same_sequences"] = None if None in sames else all(sames)
        if self.updates:
            found["updates_per_step"] = max(each.most_updates for each in self.updates)
        if compared:
            found["sampled_updates"] = sum(len(each.moved) for each in compared)
            found["idle_updates"] = sum(each.idle() for each in compared)
            found["frozen_parameters"] = sorted(name for each in compared for name in each.frozen())
        return found


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
        """One call of a class's `step`, which may be within that of a class built on it."""
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
        """A whole number for each parameter, which any changed bit changes; nothing here waits for the device."""
        return torch.stack([p.detach().view(torch.int32).sum(dtype=torch.int64) for p in self.parameters])

    def idle(self) -> int:
        """Compared updates that changed no weight though there was a gradient."""
        has_gradient = self._gradients is not None and bool((self._gradients > 0).any())
        return sum(not bool(moved) for moved in self.moved) if has_gradient else 0

    def frozen(self) -> list[str]:
        """Parameters that have had gradients and are what they were."""
        if self._first is None or self._gradients is None:
            return []
        still = (self._first == self._digests()) & (self._gradients > 0)
        return [name for name, is_still in zip(self._names, still.tolist(), strict=True) if is_still]


_WATCHED_BY = "_selectbench_watch"


def _counted(step: Any, kind: type) -> Any:
    """A class's `step` that tells the watch of an optimizer, where it has one, that it runs."""

    @wraps(step)
    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        watch = self.__dict__.get(_WATCHED_BY)
        if watch is None:
            return step(self, *arguments, **named)
        rates = [group["lr"] for group in self.param_groups]
        return watch.run(kind, lambda: step(self, *arguments, **named), rates)

    setattr(counted, _WATCHED_BY, True)
    return counted


def rate_effect(optimizers: Sequence[torch.optim.Optimizer], peaks: Sequence[float]) -> float | None:
    """How many times as far an update moves the weights at its peak rate as at a thousandth of it.

    `peaks`: of all groups in order. For the end of a trial: the weights are moved. None: they are not in fp32, do
    not move, or the optimizer takes no step of this kind.
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


# Own files that were imported.


def own_files(folders: Sequence[str]) -> dict[str, str] | None:
    """Digests of the modules imported so far from the suite's folders, by their path in them; None: no folders."""
    if not folders:
        return None
    found = {}
    for module in list(sys.modules.values()):
        file = Path(getattr(module, "__file__", None) or "")
        root = next((Path(r) for r in import_roots(folders) if file.is_relative_to(r)), None)
        name = file.relative_to(root) if root and file.is_file() else None
        if name and not any(part in IGNORED_FOLDERS or part.startswith(".") for part in name.parts):
            found[name.as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


# How long threads waited for a core, by the kernel's account.


@dataclass
class CoreUse:
    """Of one process over its timed windows."""

    waited_seconds: float = 0.0
    """Ready to run, without a core, summed over its threads; NaN: the kernel does not say."""
    worked_seconds: float = 0.0
    """On a core, summed over its threads."""
    switches: int = 0
    """How often the kernel took a core from one of them."""
    cores_seconds: float = 0.0
    """That the cores which it may use were at work, for any process; NaN: the kernel does not say."""


class CoreWaits:
    """Adds up what the kernel tells of this process's threads and its cores, window by window."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.use = CoreUse()
        self._proc = proc
        self._cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}

    def begin(self) -> None:
        """Before a window opens."""
        self._before = self._read()

    def end(self, *, is_timed: bool) -> None:
        """After it has closed."""
        if not is_timed:
            return
        waits, worked, switches, cores = self._read()
        before, worked_before, switches_before, cores_before = self._before
        use = self.use
        waited = sum(wait - before.get(task, 0) for task, wait in waits.items()) / 1e9
        use.waited_seconds += waited if waits else math.nan
        use.worked_seconds += worked - worked_before
        use.switches += switches - switches_before
        use.cores_seconds = use.cores_seconds + cores - cores_before

    def _read(self) -> tuple[dict[str, int], float, int, float]:
        """Nanoseconds on a run queue by thread, seconds of work, switches, seconds of work of the cores.

        The first are the second field of schedstat (the kernel's scheduler docs), the last all but idle and iowait
        of /proc/stat, time that a hypervisor took among it.
        """
        waits = {}
        for path in self._proc.glob("self/task/*/schedstat"):
            with suppress(OSError):  # the thread has ended meanwhile
                waits[path.parent.name] = int(path.read_text().split()[1])
        used = resource.getrusage(resource.RUSAGE_SELF)
        return waits, used.ru_utime + used.ru_stime, used.ru_nivcsw, self._cores_seconds()

    def _cores_seconds(self) -> float:
        try:
            lines = [line.split() for line in (self._proc / "stat").read_text().splitlines()]
        except OSError:
            return math.nan
        ticks = [int(v) for line in lines if line[0] in self._cores for v in (*line[1:4], *line[6:9])]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else math.nan


# What a general compressor makes of the held-out text.


XZ_BYTES = 1 << 18
LEAST_XZ_BYTES = 10_000
"""Below that xz's own frame is much of what it writes."""


def xz_bits_per_byte(stream: Sequence[int], text: Callable[[list[int]], str]) -> float | None:
    """Of the beginning of a held-out text, a tenth of a second's work; `text`: of its token ids."""
    content = text(list(stream[:XZ_BYTES])).encode()[:XZ_BYTES]
    return 8 * len(lzma.compress(content)) / len(content) if len(content) >= LEAST_XZ_BYTES else None

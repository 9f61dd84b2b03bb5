"""Watches a script train and writes down steps, tokens, losses, rates, precision, weights and a held-out loss.

It lives in the script's own process: whatever the script calls is called with the same arguments, and a failure of
the observer is written as an event `problem`, after which it only passes calls on. The bench reads the lines of
`<folder>/<rank>-<pid>.jsonl`; moments are of time.perf_counter().

The model is seen by a stand-in for nn.Module.__call__, there from the first optimizer's making to the first
training forward (torch.compile would trace hooks of modules), from then on by one for the model's own class;
updates by the hooks of all optimizers, around GradScaler.step and around what torch.compile makes of an
`optimizer.step`; losses by what torch.autograd.backward is called with.
"""

from __future__ import annotations

import atexit
import copy
import functools
import importlib
import json
import math
import os
import random
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import selectbench_seen as seen
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

ENDS = ", to 2 % since ours leaves out the rows' last targets"
Optimizer = torch.optim.Optimizer
Hook = Callable[..., Any]

_observer: Observer | None = None


def install() -> Observer | None:
    """The process's observer, made if the environment asks for one and there is none; torch has been imported."""
    global _observer
    path = os.environ.get("SELECTBENCH_OBSERVE")
    if _observer is None and path:
        with open(path) as settings:  # noqa: PTH123
            _observer = Observer(json.load(settings))
        _observer.put_in_place()
    return _observer


class Moments:
    """When something happened: the host's clock on the CPU, on CUDA events that are read once they are over."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._reference = self.mark()
        if self.cuda:
            self._reference.synchronize()
        self._reference_at = time.perf_counter()

    def mark(self) -> Any:
        """Now, as the device comes to it."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self, mark: Any) -> float:
        """In seconds of time.perf_counter(); waits for the device to be there."""
        if not self.cuda:
            return float(mark)
        mark.synchronize()
        return float(self._reference_at + self._reference.elapsed_time(mark) / 1000.0)

    def brought(self, value: Any) -> Any:
        """A copy on the host, whole once a mark made after this call is over; what is no tensor as it is."""
        if not isinstance(value, torch.Tensor) or not value.is_cuda:
            return value
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)


@dataclass
class Forward:
    """A training forward, which counts where a loss goes backward through its output; others only look."""

    known: tuple[Any, Any, Any, Any] | None = None
    """Digest of its tokens, how many they are, its rows and their hashes; None: none were seen."""
    part: int | None = None
    """Its place among the parts of our own loss."""
    is_reached: bool = False

    def reach(self, _: Any) -> None:
        """A gradient has come to its output."""
        self.is_reached = True


@dataclass
class Step:
    """What has been seen of an optimizer step so far; what is on the device stays there."""

    forwards: list[Forward] = field(default_factory=list)
    digest: Any = None
    loss: Any = None
    tokens: Any = 0
    rows: Any = 0
    rates: list[Any] = field(default_factory=list)
    skipped: Any = False
    gradient_norm: float | None = None
    pause: tuple[Any, Any] | None = None
    end: Any = None
    updated: set[int] = field(default_factory=set)
    own_loss: seen.OwnLoss | None = None


class Observer:
    """One process's. `put_in_place` makes the stand-ins; `guarded` lets none of its own failures out."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.passive = False
        self._imported_at, self._pid = time.perf_counter(), os.getpid()
        self._own_seconds = self._aside_seconds = 0.0
        self._pss_before = seen.held_bytes()
        self._file: Any = None
        # The model, and who updates it.
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self._nested: set[int] = set()
        self._own: set[int] = set()
        self._model: Callable[[], nn.Module | None] = lambda: None
        self._restore_call: Callable[[], None] | None = None
        # Where the script is.
        self._stack: list[Any] = []
        self._forwards = self._backwards = self._lone_updates = self._steps = 0
        self._paused = self._due = self._asked = self._ended = self._evaluating = False
        self._scale: torch.Tensor | None = None
        self._step = Step()
        self._last_end: Any = None
        self._gaps: list[float] = []
        self._pending: deque[tuple[int, Step, Any]] = deque()
        self._written_at = 0.0
        # The first step, and what is written at the end.
        self._call: seen.Call = ((), {})
        self._captured: seen.Call = ((), {})
        self._own_loss = seen.OwnLoss()
        self._looks = True  # at the step's logits
        self._conventions: list[str] = []
        self._row_hashes: list[torch.Tensor] = []
        self._got: tuple[int, float, set[int]] = (0, 0.0, set())
        self._roles: seen.Roles | None = None
        self._captured_roles: seen.Roles | None = None
        self._form: Any = None
        self._is_coarse = False
        self._logits: torch.Tensor | None = None
        self._vocabulary = 0
        self._compute: set[torch.dtype] = set()
        self._first: dict[str, Any] = {"gradient_dtype": None, "logits": "no training forward was seen"}
        self._end: dict[str, Any] = {}
        self._peaks = [0, 0]

    def put_in_place(self) -> None:
        """Every stand-in and hook."""
        stand_in = self._stand_in
        stand_in(Optimizer, "__init__", after=self._know_optimizer)
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)
        stand_in(torch.autograd, "backward", self._before_backward, self._after_backward)
        scaler = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler
        stand_in(scaler, "scale", after=self._know_scale)
        stand_in(scaler, "step", self._before_update, self._after_scaler_step)
        stand_in(nn.Module, "eval", self._pause)
        stand_in(torch, "save", self._pause)
        stand_in(torch.cuda, "reset_peak_memory_stats", self._read_peaks)
        torch.compile = self._compiling(torch.compile)
        atexit.register(self._at_exit)
        os.register_at_fork(after_in_child=self._forked)

    def guarded(self, hook: Hook, *args: Any, **kwargs: Any) -> Any:
        """What a hook returns; None where it fails, or where the observer has failed before."""
        if self.passive:
            return None
        before = time.perf_counter()
        try:
            return hook(*args, **kwargs)
        except Exception as error:
            self.passive = True
            self._give_up(getattr(hook, "__name__", str(hook)), error)
            return None
        finally:
            self._own_seconds += time.perf_counter() - before - self._aside_seconds
            self._aside_seconds = 0.0

    def _give_up(self, where: str, error: Exception) -> None:
        try:
            self._release()
            self._begin()
            self._write("problem", where=where, what=f"{type(error).__name__}: {error}"[:2000])
        except Exception as another:
            print(f"selectbench: the observer failed in {where}: {error!r}, {another!r}", file=sys.stderr)

    def _stand_in(
        self, owner: Any, name: str, before: Hook | None = None, after: Hook | None = None
    ) -> Callable[[], None]:
        """Has hooks called before a function and, with its result first, after it; returns what undoes that."""
        original, is_own = getattr(owner, name), name in vars(owner)

        @functools.wraps(original)
        def called(*args: Any, **kwargs: Any) -> Any:
            if _is_compiling() or self.passive:
                return original(*args, **kwargs)
            if before is not None:
                self.guarded(before, *args, **kwargs)
                self._stop_if_due()
            try:
                result = original(*args, **kwargs)
            except BaseException:
                self._forwards = self._backwards = 0
                raise
            if after is not None:
                self.guarded(after, result, *args, **kwargs)
                self._stop_if_due()
            return result

        def restore() -> None:
            if vars(owner).get(name) is called:
                setattr(owner, name, original) if is_own else delattr(owner, name)
            for name_of_dynamo in ("torch._dynamo.variables.nn_module", "torch._dynamo.utils"):
                if getattr(dynamo := sys.modules.get(name_of_dynamo), "unpatched_nn_module_call", None) is called:
                    dynamo.unpatched_nn_module_call = original  # type: ignore[union-attr]

        setattr(owner, name, called)
        return restore

    def _know_optimizer(self, result: None, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        self._optimizers.append(weakref.ref(optimizer))
        _keep_hooks(type(optimizer))
        if self._restore_call is None and self._model() is None:
            self._watch_calls(None)

    def _known(self) -> list[Optimizer]:
        return [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]

    def _find(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """A module with all that some optimizer updates, and no part of another's, is watched from this call on."""
        if self._model() is not None or not (module.training and torch.is_grad_enabled()):
            return
        own = {id(parameter) for parameter in module.parameters()}
        updated = [ids for optimizer in self._known() if (ids := _parameter_ids(optimizer)) & own]
        if updated and all(ids <= own for ids in updated) and not any(p.is_meta for p in module.parameters()):
            self._watch_calls(module)
            self._before_forward(module, *args, **kwargs)

    def _watch_calls(self, module: nn.Module | None, method: str = "__call__") -> None:
        """Of the module; None: of all modules, until the model is found."""
        self._release()
        self._model, self._method = weakref.ref(module) if module is not None else lambda: None, method
        owner, before = (nn.Module, self._find) if module is None else (type(module), self._before_forward)
        self._restore_call = self._stand_in(owner, method, before, self._after_forward)

    def _release(self) -> None:
        restore, self._restore_call = self._restore_call, None
        if restore is not None:
            restore()

    def watch(self, model: nn.Module, optimizer: Optimizer, forward: str) -> None:
        """The explicit form: `forward` names the method that gives logits where the script calls that directly."""
        if optimizer not in self._known():
            self._optimizers.append(weakref.ref(optimizer))
        self._watch_calls(model, forward if callable(getattr(type(model), forward, None)) else "__call__")

    def _compiling(self, original: Hook) -> Hook:
        """torch.compile, which binds a module's `__call__` for good, so it has to be the module's own meanwhile."""

        @functools.wraps(original)
        def compiled(model: Any = None, *args: Any, **kwargs: Any) -> Any:
            watched, looking = self._model(), self._restore_call is not None
            self._release()
            try:
                result = original(model, *args, **kwargs)
            finally:
                if looking:
                    self.guarded(self._watch_calls, watched)
                for known in self._known():
                    self.guarded(_keep_hooks, type(known))
            if model is not None and model is watched:
                self.guarded(self._watch_calls, result)
            # A scheduler puts a function in the place of its optimizer's method.
            optimizer = next((o for o in self._known() if model in (vars(o).get("step"), o.step)), None)
            if optimizer is None:
                return result

            @functools.wraps(result)
            def step(*step_args: Any, **step_kwargs: Any) -> Any:
                self.guarded(self._before_update, step, optimizer)
                outcome = result(*step_args, **step_kwargs)
                self.guarded(self._after_update, step, optimizer)
                self._stop_if_due()
                return outcome

            return step

        return compiled

    def _before_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        if module is not self._model() or self._evaluating or self._backwards:
            return
        self._forwards += 1
        if self._forwards > 1:
            return
        if not (module.training and torch.is_grad_enabled()):
            self._pause()
            return
        if self._step.updated and not self._stack:
            self._close_step()
        if self._ended:
            self._due = True
            return
        step, self._call = self._step, (args, kwargs)
        if self._steps == 0 and not step.forwards:
            self._begin()
            self._describe_model(module)
            self._captured = seen.unfused(self._call)
            self._sizes = {part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding)}
        if (form := (len(args), *kwargs)) != self._form:
            self._form, self._roles = form, seen.roles(module, self._call)
            self._captured_roles = self._captured_roles or self._roles
        if not step.forwards and self._paused:
            step.pause, self._paused = (self._last_end, self._moments.mark()), False
        elif not step.forwards and self._steps and not self._moments.cuda and len(self._gaps) < 100:
            self._gaps.append(time.perf_counter() - self._last_end)
        step.forwards.append(Forward())
        if self._roles is not None:
            with torch.no_grad():
                step.forwards[-1].known = seen.token_digest(*self._tokens_and_mask())
        if self._looks and self._roles is not None and seen.is_fused(self._call):
            self._look_aside(module)

    def _tokens_and_mask(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert self._roles is not None
        (args, kwargs), mask = self._call, self._roles.mask
        leaves = [*args, *kwargs.values()]
        if not all(isinstance(leaf, (torch.Tensor, type(None), bool)) for leaf in leaves):
            leaves = seen.leaves(self._call)
        return seen.as_rows(leaves[self._roles.tokens]), None if mask is None else seen.as_rows(leaves[mask])

    def _after_forward(self, output: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Logits of a step that is looked at, kept no longer than until their loss goes backward."""
        if module is not self._model() or self._evaluating or self._backwards:
            return
        self._forwards -= 1
        if self._forwards or not (self._step.forwards and torch.is_grad_enabled()):
            return
        for result in seen.first_differentiable(output):
            result.register_hook(self._step.forwards[-1].reach)
        if not self._looks:
            return
        self._compute |= seen.product_dtypes(output)
        if self._roles is None:
            self._first["logits"] = "no whole numbers in rows among what the model is called with"
            return
        if seen.is_fused(self._call):
            return
        tokens, _ = self._tokens_and_mask()
        logits, self._first["logits"] = seen.logits_in(output, tokens, self._sizes)
        if logits is None:
            return
        self._vocabulary = logits.shape[-1]
        if self._roles.labels is None:
            self._logits = logits.detach()
        elif (targets := self._targets()) is not None:
            self._add_own_loss(logits, targets[0], int((targets[1] >= 0).sum()))

    def _add_own_loss(self, logits: Any, targets: Any, labels: int, *, goes_on: bool = False) -> None:
        self._step.forwards[-1].part = self._own_loss.add(logits, targets, labels, goes_on=goes_on)

    def _targets(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Of the call's labels, and these before any shift; None: they are something else, or there are none."""
        assert self._roles is not None
        if self._roles.labels is None or self._roles.labels_are == "others":
            self._first["logits"] += ", but the labels are neither the tokens nor the next tokens"
            return None
        labels = seen.as_rows(seen.leaves(self._call)[self._roles.labels])
        if self._steps and seen.labels_are(labels, self._tokens_and_mask()[0]) != self._roles.labels_are:
            self._own_loss.has_other_targets = True
        return seen.moved_left(labels) if self._roles.labels_are == "tokens" else labels, labels

    def _look_aside(self, module: nn.Module) -> None:
        """Our loss of a call that leaves the logits out, before it is made: of the same call without that.

        Row by row, as logits of all rows at once may need more memory than the training does.
        """
        self._first["logits"] = "found by the same call without what leaves them out"
        if (targets := self._targets()) is None:
            return
        tokens = self._tokens_and_mask()[0].split(1)
        try:
            with self._undisturbed(module):
                for row, (args, kwargs) in enumerate(seen.row_by_row(seen.unfused(self._call), len(tokens))):
                    logits, found = seen.logits_in(module(*args, **kwargs), tokens[row], self._sizes)
                    if logits is None:
                        self._first["logits"] = found
                        return
                    self._vocabulary = logits.shape[-1]
                    of_row, labels = (one[row : row + 1] for one in targets)
                    self._add_own_loss(logits, of_row, int((labels >= 0).sum()), goes_on=row > 0)
        except Exception as error:
            self._first["logits"] = f"not found by the same call without what leaves them out: {error!r}"

    def _know_scale(self, result: Any, scaler: Any, *args: Any) -> None:
        scale = getattr(scaler, "_scale", None)
        self._scale = scale.clone() if scaler.is_enabled() and scale is not None else None

    def _before_backward(self, tensors: Any, *args: Any, **kwargs: Any) -> None:
        self._backwards += 1
        if self._backwards > 1 or self._evaluating or not self._step.forwards:
            return
        roots = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        for root in roots:
            if root.numel() == 1 and not root.is_meta:
                loss = root.detach().reshape(()).double()
                loss = loss if self._scale is None else loss / self._scale.to(loss.device)
                self._step.loss = loss if self._step.loss is None else self._step.loss + loss
                if self._looks and self._roles is not None:
                    self._own_loss.go_backward(root)
                    self._is_coarse = root.dtype is torch.bfloat16
        if self._logits is not None:
            logits, self._logits = self._logits, None
            following = seen.next_tokens(*self._tokens_and_mask())
            targets = seen.targets_behind(roots[0], following.shape)
            if targets is None:
                self._own_loss.leaves_out_ends = True
            elif bool(((targets != following) & (targets >= 0))[:, :-1].any()):
                self._first["logits"] += ", but the loss is not of the next tokens"
                self._own_loss.has_other_targets = True
                return
            targets = following if targets is None else targets
            self._add_own_loss(logits, targets, int((targets >= 0).sum()))

    def _after_backward(self, result: None, *args: Any, **kwargs: Any) -> None:
        self._backwards -= 1
        scale, self._scale = self._scale, None
        if self._backwards or self._evaluating or self._steps or not self._step.forwards:
            return
        if (model := self._model()) is not None:
            gradients = [p.grad.detach() for p in model.parameters() if p.grad is not None]
            if gradients and self._is_whole:
                self._step.gradient_norm = _finite(seen.gradient_norm(gradients, scale))
            self._end["gradient_bytes"] = seen.storage_bytes(gradients)
            self._first["gradient_dtype"] = seen.dtype_name(gradient.dtype for gradient in gradients) or None

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not _is_compiling():
            self.guarded(self._before_update, optimizer, optimizer)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not _is_compiling():
            self.guarded(self._after_update, optimizer, optimizer)
            self._stop_if_due()

    def _after_scaler_step(self, result: Any, scaler: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        if id(optimizer) not in self._step.updated:
            self._step.skipped = True
        self._after_update(scaler, optimizer)

    def _before_update(self, owner: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        if any(owner is other for other in self._stack):  # the last one ended in an exception
            self._stack.clear()
        self._stack.append(owner)
        if not self._steps and not hasattr(owner, "unscale_"):
            self._read_update(optimizer)

    def _read_update(self, optimizer: Optimizer) -> None:
        """The norm of what the first update gets; again after it where a closure went backward within."""
        forwards, squares, read = self._got
        if forwards != len(self._step.forwards):
            forwards, squares, read = len(self._step.forwards), 0.0, set()
        fresh = [p for g in optimizer.param_groups for p in g["params"] if id(p) in self._own and id(p) not in read]
        if forwards and self._is_whole and fresh:
            gradients = [p.grad.detach() for p in fresh if p.grad is not None]
            squares += seen.gradient_norm(gradients, getattr(optimizer, "grad_scale", None)) ** 2
        self._got = forwards, squares, read | {id(p) for p in fresh}

    def _after_update(self, owner: Any, optimizer: Optimizer) -> None:
        """The outermost ends a step of the training, once every optimizer has made its update."""
        while self._stack and self._stack.pop() is not owner:
            pass
        step = self._step
        if self._own and not self._updates(optimizer):
            return
        if not step.forwards:
            self._lone_updates += 1
            return
        step.updated.add(id(optimizer))
        if not self._steps and not hasattr(owner, "unscale_"):
            self._read_update(optimizer)
        if any(isinstance(outer, Optimizer) for outer in self._stack):
            self._nested.add(id(optimizer))
        if (found := getattr(optimizer, "found_inf", None)) is not None:
            step.skipped = found.clone()
        if self._stack:
            return
        trained = self._trained()
        step.end = self._moments.mark()
        step.rates = [copy.deepcopy(group["lr"]) for each in trained for group in each.param_groups]
        if len(trained) == 1:
            self._close_step()

    def _trained(self) -> list[Optimizer]:
        return [o for o in self._known() if id(o) not in self._nested and self._updates(o)]

    def _left_out(self, updated: set[int]) -> int:
        """Of the parameters that were trainable at first, those that none of the optimizers holds or trains now."""
        groups = [group for o in self._known() if id(o) in updated for group in o.param_groups]
        held = {id(p) for group in groups for p in group["params"] if p.requires_grad}
        return sum(size for one, size in self._trainable.items() if one not in held)

    def _updates(self, optimizer: Optimizer) -> bool:
        return any(id(first) in self._own for group in optimizer.param_groups for first in group["params"][:1])

    def _pause(self, *args: Any, **kwargs: Any) -> None:
        """The script validates or saves: the time until the next training forward is not the training's."""
        if self._steps and not self._evaluating:
            self._paused = True
            self._stop_memory()

    def _close_step(self) -> None:
        """The step is whole: it is written now, or once the device has come to its end."""
        step, self._step = self._step, Step()
        self._steps, self._last_end, self._paused = self._steps + 1, step.end, False
        # Where a model gives what no hook can be on, all count.
        step.forwards = [one for one in step.forwards if one.is_reached] or step.forwards
        for digest, tokens, rows, hashes in [one.known for one in step.forwards if one.known is not None]:
            if len(self._row_hashes) < 4096:  # more would be kept for long
                self._row_hashes.append(hashes)
            step.digest = digest if step.digest is None else step.digest + digest
            step.tokens, step.rows = step.tokens + tokens, step.rows + rows
        self._own_loss.keep({one.part for one in step.forwards})
        for name in ("digest", "tokens", "rows", "loss", "skipped"):
            setattr(step, name, self._moments.brought(getattr(step, name)))
        step.rates = [self._moments.brought(rate) for rate in step.rates]
        if self._looks:
            step.own_loss, self._own_loss = self._own_loss.brought(self._moments.brought), seen.OwnLoss()
        self._looks = self._steps + 1 in self.settings.get("looks", ())
        is_last = self._steps == self.settings["max_steps"]
        self._pending.append((self._steps, step, self._moments.mark()))
        self._write_steps(wait=self._steps == 1 or is_last)
        if self._steps == 1:
            self._write_first_step(step)
        if is_last:
            self._end["left_out_parameters"] = self._left_out(self._first_updated | step.updated)
            self._end["optimizer_settings"] = seen.optimizer_settings(self._trained())
            self._stop_memory()
            if self.settings.get("heldout"):
                self._evaluate()
        if is_last and self.settings["stop"] == "at_max_steps":
            self._finish("max_steps")
            self._due = True

    def _write_steps(self, wait: bool) -> None:
        """Those that are over, several at a time: a step of a few milliseconds would notice each line."""
        if not wait and time.perf_counter() - self._written_at < 0.25:
            return
        self._written_at = time.perf_counter()
        while self._pending and (wait or not self._moments.cuda or self._pending[0][2].query()):
            number, step, mark = self._pending.popleft()
            self._moments.read(mark)
            known = step.digest is not None
            step.loss = float(step.loss) if step.loss is not None else None
            began, ended = map(self._moments.read, step.pause or (step.end, step.end))
            usual = sorted(self._gaps)[len(self._gaps) // 2] if self._gaps else 0.0  # such as waiting for data
            self._write(
                "step", step=number, at=self._moments.read(step.end), micro_batches=len(step.forwards),
                rows=int(step.rows) if known else None, tokens=int(step.tokens) if known else None,
                token_digest=f"{int(step.digest) & ((1 << 64) - 1):016x}" if known else None,
                rates=[_finite(float(rate)) for rate in step.rates], loss=_finite(step.loss),
                is_finite=step.loss is None or math.isfinite(step.loss),
                gradient_norm=step.gradient_norm, skipped=bool(step.skipped),
                pause_seconds=max(0.0, ended - began - usual) if step.pause else 0.0,
            )  # fmt: skip
            if step.own_loss is not None and number > 1:
                own, known = step.own_loss.value(), step.own_loss.conventions(step.loss, self._tolerance)
                is_known = bool(own is not None and self._conventions and math.isfinite(step.loss or 0.0))
                agrees = not {*known}.isdisjoint(self._conventions) if is_known else None
                agrees = False if step.own_loss.has_other_targets and self._conventions else agrees
                self._write("look", step=number, own_loss=_finite(own), agrees=agrees)

    def _write_first_step(self, step: Step) -> None:
        model, trained, compute = self._model(), self._trained(), seen.dtype_name(self._compute)
        states, own = seen.states(trained), step.own_loss or seen.OwnLoss()
        self._tolerance, self._first_updated = 1e-4 if compute == "float32" else 5e-3, step.updated
        if self._is_coarse:  # a loss of bf16 itself has eight bits
            self._tolerance = 2e-2
        ends = ENDS if own.leaves_out_ends else ""
        self._conventions = own.conventions(step.loss, self._tolerance)
        self._first.update(
            optimizers=[seen.optimizer_name(optimizer) for optimizer in trained],
            parameter_groups=sum(len(optimizer.param_groups) for optimizer in trained), compute_dtype=compute,
            optimizer_settings=seen.optimizer_settings(trained),
            optimizer_state_dtype=sorted({seen.dtype_name([t.dtype]) for t in states if t.numel() > 1}),
            own_loss=_finite(own.value()),
            loss_convention=next((text + ends for text in self._conventions), None),
            update_norm=_finite(math.sqrt(self._got[1])) if self._got[1] and not bool(step.skipped) else None,
            left_out_parameters=self._left_out(step.updated),
        )  # fmt: skip
        self._write("first_step", **self._first)
        self._first["loss"] = step.loss
        self._end.update(
            parameter_bytes=seen.storage_bytes(model.parameters() if model is not None else ()),
            optimizer_state_bytes=seen.storage_bytes(states),
        )  # fmt: skip

    def _finish(self, reason: str) -> None:
        if reason == "exit" and self._step.updated:
            self._close_step()
        if self._ended or (self._file is None and not self._lone_updates):
            return
        self._begin()
        open_forwards = len(self._step.forwards) if self._step.loss is not None else 0
        if open_forwards or self._lone_updates:
            what = f"{open_forwards} training forwards without an update" if open_forwards else (
                f"{self._lone_updates} updates without a training forward of a module that holds what they update"
            )  # fmt: skip
            self._write("problem", where="updates", what=f"{what}, after {self._steps} steps")
        self._stop_memory()
        self._write_steps(wait=True)
        self._ended = True
        self._write("end", step=self._steps, reason=reason, **self._end, own_seconds=self._own_seconds)
        self._call = self._captured = ((), {})

    def _stop_if_due(self) -> None:
        """Ends the script by SystemExit, and at once where it goes on training after that."""
        if self._due:
            if self._asked:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
            self._due, self._asked = False, True
            raise SystemExit(0)

    def _at_exit(self) -> None:
        if os.getpid() == self._pid and not self._ended:
            self.guarded(self._finish, "exit")

    def _forked(self) -> None:
        """A child of a process that has begun writes nothing."""
        self.passive = self.passive or self._file is not None
        self._pid = os.getpid()

    def _begin(self) -> None:
        if self._file is not None:
            return
        rank, world = _rank_and_size()
        found = {name: getattr(sys.modules.get(name), "__version__", None) for name in seen.LIBRARIES}
        versions = {name: str(version) for name, version in found.items() if version is not None}
        versions["python"] = sys.version.split()[0]
        os.makedirs(self.settings["folder"], exist_ok=True)  # noqa: PTH103
        self._file = open(f"{self.settings['folder']}/{rank}-{os.getpid()}.jsonl", "a", encoding="utf-8")  # noqa: PTH123, SIM115
        self._write(
            "start", rank=rank, world_size=world, pid=os.getpid(), at=time.perf_counter(),
            imported_at=self._imported_at, versions=versions, argv=list(sys.argv),
        )  # fmt: skip

    def _write(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()

    def _describe_model(self, module: nn.Module) -> None:
        parameters, began = list(module.parameters()), time.perf_counter()
        self._device = device = parameters[0].device
        (exact, rounded), (name, strategy) = seen.weight_digests(module), seen.name_and_strategy(module)
        count, trainable = seen.parameter_counts(module)
        gpu: Any = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        if gpu is not None:
            gpu = {"uuid": f"GPU-{getattr(gpu, 'uuid', '')}", "pci_bus_id": str(getattr(gpu, "pci_bus_id", ""))}
        kernel = getattr(getattr(seen.unwrapped(module), "config", None), "_attn_implementation", None)
        self._write(
            "model", name=name, parameters=count, trainable_parameters=trainable, weights_sha256=exact,
            weights_bf16_sha256=rounded, parameter_dtype=seen.dtype_name(p.dtype for p in parameters),
            dropout=seen.largest_dropout(module), attention=kernel, strategy=strategy,
            compiled=any(seen.is_compiled(part) for part in module.modules()),
            device=device.type, gpu=gpu, tf32=torch.get_float32_matmul_precision() != "highest",
        )  # fmt: skip
        self._moments, self._own = Moments(device), {id(parameter) for parameter in parameters}
        self._trainable = {id(p): p.numel() for p in parameters if p.requires_grad}
        self._is_whole = exact is not None
        with suppress(Exception):  # a library that is broken or not there
            self._stand_in(importlib.import_module("safetensors.torch"), "serialize_file", self._pause)
        if self._moments.cuda:
            self._peaks_before = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            self._retries_before = torch.cuda.memory_stats().get("num_alloc_retries", 0)
        self._aside_seconds += time.perf_counter() - began

    def _read_peaks(self, *args: Any, **kwargs: Any) -> None:
        if self._file is not None:
            self._peaks[0] = max(self._peaks[0], torch.cuda.max_memory_allocated())
            self._peaks[1] = max(self._peaks[1], torch.cuda.max_memory_reserved())

    def _stop_memory(self) -> None:
        """The peaks are those of the training up to the first call."""
        if not self._steps or "num_alloc_retries" in self._end:
            return
        peaks: list[int | None] = [None] * 3
        if self._moments.cuda:
            self._read_peaks()
            # A peak that was there before the first forward says nothing about the training.
            peaks = [now if now > was else None for now, was in zip(self._peaks, self._peaks_before)]
            peaks.append(torch.cuda.memory_stats().get("num_alloc_retries", 0) - self._retries_before)
        names = "peak_memory_allocated_bytes", "peak_memory_reserved_bytes", "num_alloc_retries"
        growth = None if self._moments.cuda else seen.grown_bytes(self._pss_before)
        self._end.update(zip(names, peaks), peak_pss_growth_bytes=growth)

    def _evaluate(self) -> None:
        began, model = time.perf_counter(), self._model()
        own, loss, found = self._first["own_loss"], self._first["loss"], self._first["logits"]
        try:
            if own is None or model is None:
                raise ValueError(f"there are no logits to take the loss of: {found}")
            if self._first["loss_convention"] is None:
                raise ValueError(f"the script's first loss, {loss}, follows in no way that we know from {own:.6g} "
                                 f"nats per token, as its logits give them ({found})")  # fmt: skip
            with self._undisturbed(model):
                total, tokens = self._held_out_loss(model)
            result: dict[str, Any] = {"loss_sum": total, "tokens": tokens, "seconds": time.perf_counter() - began}
        except Exception as error:
            result = {"problem": str(error)[:2000] if isinstance(error, ValueError) else repr(error)[:2000]}
        self._aside_seconds += time.perf_counter() - began
        self._write("evaluation", step=self._steps, **self._rows_held_out(), **result)

    def _rows_held_out(self) -> dict[str, int]:
        """How many of the first rows trained on are a piece of the held-out tokens, and at how many offsets."""
        count = int(self.settings["heldout_tokens"])
        roles = self._captured_roles
        length = seen.as_rows(seen.leaves(self._captured)[roles.tokens]).shape[1] if roles is not None else 0
        if not 8 <= length <= count:  # shorter rows are the same by chance
            return {}
        held_out = torch.from_file(self.settings["heldout"], size=count, dtype=torch.int64).to(self._device)
        pieces = held_out.unfold(0, length, 1)[: (1 << (30 if self._moments.cuda else 26)) // length]
        hashes = torch.cat([seen.token_digest(some, None)[3] for some in pieces.split(1 + (1 << 22) // length)])
        trained = torch.cat([rows.to(self._device) for rows in self._row_hashes])
        of = torch.isin(trained, hashes).sum()
        return {"row_length": length, "rows": len(trained), "rows_held_out": int(of), "offsets": len(pieces)}

    def _held_out_loss(self, model: nn.Module) -> tuple[float, int]:
        """Nats and tokens of this rank's share; every rank makes as many calls, of as many rows as in training."""
        assert self._captured_roles is not None
        rows, length = seen.as_rows(seen.leaves(self._captured)[self._captured_roles.tokens]).shape
        if self.settings.get("seq_len") not in (None, length):
            raise ValueError(f"the training's first row has {length} tokens, not {self.settings['seq_len']}")
        count, total, tokens = int(self.settings["heldout_tokens"]), 0.0, 0
        held_out = torch.from_file(self.settings["heldout"], size=count, dtype=torch.int64)
        if int(held_out.max()) >= self._vocabulary:
            raise ValueError(f"the held-out token {int(held_out.max())} is beyond the model's {self._vocabulary}")
        if not (whole := (count - 1) // length):
            raise ValueError(f"{count} held-out tokens are fewer than a row of {length} and its last target")
        rank, world = _rank_and_size()
        for first in range(rank * rows, -(-whole // (rows * world)) * rows * world, rows * world):
            numbers = range(first, first + rows)
            starts = [number % whole * length for number in numbers]
            inputs = torch.stack([held_out[start : start + length] for start in starts])
            targets = torch.stack([held_out[start + 1 : start + 1 + length] for start in starts])
            args, kwargs = seen.with_tokens(self._captured, self._captured_roles, inputs, targets)
            logits, found = seen.logits_in(
                getattr(model, self._method)(*args, **kwargs), inputs, {self._vocabulary}
            )
            if logits is None:
                raise ValueError(found)
            targets[[number >= whole for number in numbers]] = -1
            summed, counted = seen.summed_loss(logits, targets)
            total, tokens = total + float(summed), tokens + int(counted)
        if not math.isfinite(total):
            raise ValueError(f"the held-out loss is {total}")
        return total, tokens

    @contextmanager
    def _undisturbed(self, model: nn.Module) -> Iterator[None]:
        """Inside: eval mode, fp32, no compiled code. Afterwards flags, buffers and random states are as before."""
        # The second is torch's note on sending buffers to other ranks, which a forward without gradients changes.
        names, parts = ("training", "require_forward_param_sync"), list(model.modules())
        flags = [(part, name, getattr(part, name)) for part in parts for name in names if hasattr(part, name)]
        stance = getattr(torch.compiler, "set_stance", None)
        if stance is None and any(map(seen.is_compiled, parts)):
            raise ValueError(f"torch {torch.__version__} can't run compiled code eagerly")
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([torch.cuda.current_device()] if self._moments.cuda else []))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(self._device.type, enabled=False))
            # One that a model enters by itself is off too, as accelerate and Fabric wrap it in one.
            for name, instead in (("__enter__", lambda context: context), ("__exit__", lambda *_: None)):
                stack.callback(setattr, torch.autocast, name, getattr(torch.autocast, name))
                setattr(torch.autocast, name, instead)
            if stance is not None:
                stack.enter_context(stance("force_eager"))
            stack.callback(random.setstate, random.getstate())
            if (numpy_random := getattr(sys.modules.get("numpy"), "random", None)) is not None:
                stack.callback(numpy_random.set_state, numpy_random.get_state())
            for buffer in model.buffers():
                stack.callback(buffer.copy_, buffer.detach().clone())
            for part, name, was in flags:
                stack.callback(setattr, part, name, was)
                setattr(part, name, False)
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
            self._evaluating = True
            stack.callback(setattr, self, "_evaluating", False)
            yield


_is_compiling: Callable[[], bool] = getattr(torch.compiler, "is_compiling", None) or torch._dynamo.is_compiling


def _keep_hooks(kind: Any) -> None:
    """Torch 2.1 and 2.2 take the calls of hooks out of an optimizer's `step` once something is compiled."""
    called = Optimizer.profile_hook_step(lambda _: None).__code__
    if (
        torch.__version__[:4] in ("2.1.", "2.2.")
        and getattr(kind.step, "hooked", False)
        and kind.step.__code__ is not called
    ):
        kind.step = Optimizer.profile_hook_step(kind.step)
        kind.step.hooked = True


def _parameter_ids(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _rank_and_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

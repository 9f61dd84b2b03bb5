"""Watches a script train and writes down steps, tokens, losses, rates, precision, weights and a held-out loss.

It lives in the script's process: whatever the script calls is called with the same arguments, and a failure of the
observer is written as an event `problem`, after which it only passes calls on. The bench reads the lines of
`<folder>/<rank>-<pid>.jsonl`; times are of time.perf_counter().

The model is seen by a wrapper of nn.Module.__call__ from the first optimizer's creation to the first training
forward (torch.compile would trace hooks of modules), then by one of its class's `__call__`; updates by hooks of all
optimizers, and wrappers of GradScaler.step and of a compiled `optimizer.step`; losses by torch.autograd.backward.
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

WITHOUT_ENDS = ", to 2 % since ours leaves out the rows' last targets"
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
        _observer.install_hooks()
    return _observer


class Moments:
    """Times of marks: by the host's clock on the CPU, on CUDA by events that are read once they are over."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._reference = self.mark()
        if self.cuda:
            self._reference.synchronize()
        self._reference_at = time.perf_counter()

    def mark(self) -> Any:
        """A mark of the time at which the device gets here."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self, mark: Any) -> float:
        """A mark's time in seconds of time.perf_counter(); waits for the device to get there."""
        if not self.cuda:
            return float(mark)
        mark.synchronize()
        return float(self._reference_at + self._reference.elapsed_time(mark) / 1000.0)

    def to_host(self, value: Any) -> Any:
        """A tensor's copy on the host, whole once a mark made after this call is over; other values as they are."""
        if not isinstance(value, torch.Tensor) or not value.is_cuda:
            return value
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)


@dataclass
class Forward:
    """A training forward; it counts where a loss goes backward through its output."""

    known: tuple[Any, Any, Any, Any] | None = None
    """Digest of its tokens, numbers of tokens and rows, hashes of its rows; None: no tokens were seen."""
    part: int | None = None
    """Its index among the parts of the recomputed loss."""
    is_reached: bool = False

    def reach(self, _: Any) -> None:
        """Hook of its output, called when a gradient arrives there."""
        self.is_reached = True


@dataclass
class Step:
    """What was seen of an optimizer step so far; values on the device stay there."""

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
    recomputed: seen.RecomputedLoss | None = None


class Observer:
    """The observer of one process. `install_hooks` wraps torch's functions; `guarded` catches its own failures."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.passive = False
        self._pid = os.getpid()
        self._hook_seconds = self._excluded_seconds = 0.0
        self._pss_before = seen.private_bytes()
        self._file: Any = None
        # The model and its optimizers.
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self._nested: set[int] = set()
        self._model_ids: set[int] = set()
        self._model: Callable[[], nn.Module | None] = lambda: None
        self._undo_watch: Callable[[], None] | None = None
        # The state of the script.
        self._update_stack: list[Any] = []
        self._forward_depth = self._backward_depth = self._lone_updates = self._steps = 0
        self._paused = self._stop_is_due = self._stop_was_raised = self._ended = self._evaluating = False
        self._scale: torch.Tensor | None = None
        self._step = Step()
        self._last_end: Any = None
        self._gaps: list[float] = []
        self._pending: deque[tuple[int, Step, Any]] = deque()
        self._written_at = 0.0
        # The first step, and what is written at the end.
        self._call: seen.Call = ((), {})
        self._evaluation_call: seen.Call = ((), {})
        self._recomputed = seen.RecomputedLoss()
        self._checks_logits = True  # whether the step's loss is recomputed from its logits
        self._conventions: list[str] = []
        self._row_hashes: list[torch.Tensor] = []
        self._first_norm: tuple[int, float, set[int]] = (0, 0.0, set())
        self._roles: seen.Roles | None = None
        self._evaluation_roles: seen.Roles | None = None
        self._call_form: Any = None
        self._loss_is_bf16 = False
        self._logits: torch.Tensor | None = None
        self._vocabulary = 0
        self._compute_dtypes: set[torch.dtype] = set()
        self._first_step: dict[str, Any] = {"gradient_dtype": None, "logits": "no training forward was seen"}
        self._end_fields: dict[str, Any] = {}
        self._peaks = [0, 0]

    def install_hooks(self) -> None:
        """Wrap functions of torch, and register hooks."""
        wrap = self._wrap
        wrap(Optimizer, "__init__", after=self._add_optimizer)
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)
        wrap(torch.autograd, "backward", self._before_backward, self._after_backward)
        scaler = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler
        wrap(scaler, "scale", after=self._note_scale)
        wrap(scaler, "step", self._before_update, self._after_scaler_step)
        wrap(nn.Module, "eval", self._pause)
        wrap(torch, "save", self._pause)
        wrap(torch.cuda, "reset_peak_memory_stats", self._note_peaks)
        torch.compile = self._wrap_compile(torch.compile)
        atexit.register(self._at_exit)
        os.register_at_fork(after_in_child=self._after_fork)

    def guarded(self, hook: Hook, *args: Any, **kwargs: Any) -> Any:
        """A hook's result; None where it fails, or where the observer has failed before."""
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
            self._hook_seconds += time.perf_counter() - before - self._excluded_seconds
            self._excluded_seconds = 0.0

    def _give_up(self, where: str, error: Exception) -> None:
        try:
            self._stop_watching()
            self._open_file()
            self._write("problem", where=where, what=f"{type(error).__name__}: {error}"[:2000])
        except Exception as another:
            print(f"selectbench: the observer failed in {where}: {error!r}, {another!r}", file=sys.stderr)

    def _wrap(
        self, owner: Any, name: str, before: Hook | None = None, after: Hook | None = None
    ) -> Callable[[], None]:
        """Have hooks called before a function and, with its result first, after it; returns what undoes that."""
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
                self._forward_depth = self._backward_depth = 0
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

    def _add_optimizer(self, result: None, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        self._optimizers.append(weakref.ref(optimizer))
        _keep_hooks(type(optimizer))
        if self._undo_watch is None and self._model() is None:
            self._watch_calls(None)

    def _live_optimizers(self) -> list[Optimizer]:
        return [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]

    def _find_model(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Watch a module from this call on if it has all parameters of an optimizer, and only some of none."""
        if self._model() is not None or not (module.training and torch.is_grad_enabled()):
            return
        in_module = {id(parameter) for parameter in module.parameters()}
        updated = [ids for o in self._live_optimizers() if (ids := _parameter_ids(o)) & in_module]
        if updated and all(ids <= in_module for ids in updated) and not any(p.is_meta for p in module.parameters()):
            self._watch_calls(module)
            self._before_forward(module, *args, **kwargs)

    def _watch_calls(self, module: nn.Module | None, method: str = "__call__") -> None:
        """Wrap the method of the module's class; None: of all modules, until the model is found."""
        self._stop_watching()
        self._model, self._method = weakref.ref(module) if module is not None else lambda: None, method
        owner, before = (nn.Module, self._find_model) if module is None else (type(module), self._before_forward)
        self._undo_watch = self._wrap(owner, method, before, self._after_forward)

    def _stop_watching(self) -> None:
        restore, self._undo_watch = self._undo_watch, None
        if restore is not None:
            restore()

    def watch(self, model: nn.Module, optimizer: Optimizer, forward: str) -> None:
        """The explicit form: `forward` names the method that gives logits where the script calls that directly."""
        if optimizer not in self._live_optimizers():
            self._optimizers.append(weakref.ref(optimizer))
        self._watch_calls(model, forward if callable(getattr(type(model), forward, None)) else "__call__")

    def _wrap_compile(self, original: Hook) -> Hook:
        """torch.compile binds a module's `__call__` for good: the wrapper is removed while it runs."""

        @functools.wraps(original)
        def compiled(model: Any = None, *args: Any, **kwargs: Any) -> Any:
            watched, is_watching = self._model(), self._undo_watch is not None
            self._stop_watching()
            try:
                result = original(model, *args, **kwargs)
            finally:
                if is_watching:
                    self.guarded(self._watch_calls, watched)
                for o in self._live_optimizers():
                    self.guarded(_keep_hooks, type(o))
            if model is not None and model is watched:
                self.guarded(self._watch_calls, result)
            # A scheduler puts a function in the place of its optimizer's method.
            optimizer = next((o for o in self._live_optimizers() if model in (vars(o).get("step"), o.step)), None)
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
        if module is not self._model() or self._evaluating or self._backward_depth:
            return
        self._forward_depth += 1
        if self._forward_depth > 1:
            return
        if not (module.training and torch.is_grad_enabled()):
            self._pause()
            return
        if self._step.updated and not self._update_stack:
            self._close_step()
        if self._ended:
            self._stop_is_due = True
            return
        step, self._call = self._step, (args, kwargs)
        if self._steps == 0 and not step.forwards:
            self._open_file()
            self._describe_model(module)
            self._evaluation_call = seen.unfused(self._call)
            self._table_rows = {part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding)}
        if (form := (len(args), *kwargs)) != self._call_form:
            self._call_form, self._roles = form, seen.roles(module, self._call)
            self._evaluation_roles = self._evaluation_roles or self._roles
        if not step.forwards and self._paused:
            step.pause, self._paused = (self._last_end, self._moments.mark()), False
        elif not step.forwards and self._steps and not self._moments.cuda and len(self._gaps) < 100:
            self._gaps.append(time.perf_counter() - self._last_end)
        step.forwards.append(Forward())
        if self._roles is not None:
            with torch.no_grad():
                step.forwards[-1].known = seen.token_digest(*self._tokens_and_mask())
        if self._checks_logits and self._roles is not None and seen.is_fused(self._call):
            self._recompute_fused_loss(module)

    def _tokens_and_mask(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert self._roles is not None
        (args, kwargs), mask = self._call, self._roles.mask
        leaves = [*args, *kwargs.values()]
        if not all(isinstance(leaf, (torch.Tensor, type(None), bool)) for leaf in leaves):
            leaves = seen.leaves(self._call)
        return seen.as_rows(leaves[self._roles.tokens]), None if mask is None else seen.as_rows(leaves[mask])

    def _after_forward(self, output: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Read the logits of a step that is checked; they are kept until their loss goes backward."""
        if module is not self._model() or self._evaluating or self._backward_depth:
            return
        self._forward_depth -= 1
        if self._forward_depth or not (self._step.forwards and torch.is_grad_enabled()):
            return
        for result in seen.first_differentiable(output):
            result.register_hook(self._step.forwards[-1].reach)
        if not self._checks_logits:
            return
        self._compute_dtypes |= seen.product_dtypes(output)
        if self._roles is None:
            self._first_step["logits"] = "no whole numbers in rows among what the model is called with"
            return
        if seen.is_fused(self._call):
            return
        tokens, _ = self._tokens_and_mask()
        logits, self._first_step["logits"] = seen.logits_in(output, tokens, self._table_rows)
        if logits is None:
            return
        self._vocabulary = logits.shape[-1]
        if self._roles.labels is None:
            self._logits = logits.detach()
        elif (targets := self._label_targets()) is not None:
            self._add_loss(logits, targets[0], int((targets[1] >= 0).sum()))

    def _add_loss(self, logits: Any, targets: Any, labels: int, *, goes_on: bool = False) -> None:
        self._step.forwards[-1].part = self._recomputed.add(logits, targets, labels, goes_on=goes_on)

    def _label_targets(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Targets by the call's labels, and the labels; None: these are no next tokens, or there are none."""
        assert self._roles is not None
        if self._roles.labels is None or self._roles.labels_are == "others":
            self._first_step["logits"] += ", but the labels are neither the tokens nor the next tokens"
            return None
        labels = seen.as_rows(seen.leaves(self._call)[self._roles.labels])
        if self._steps and seen.labels_are(labels, self._tokens_and_mask()[0]) != self._roles.labels_are:
            self._recomputed.has_other_targets = True
        return seen.moved_left(labels) if self._roles.labels_are == "tokens" else labels, labels

    def _recompute_fused_loss(self, module: nn.Module) -> None:
        """Recompute the loss of a call that leaves the logits out, before it is made, by the same call with logits.

        Row by row, as logits of all rows at once may need more memory than the training does.
        """
        self._first_step["logits"] = "found by the same call without what leaves them out"
        if (targets := self._label_targets()) is None:
            return
        tokens = self._tokens_and_mask()[0].split(1)
        try:
            with self._undisturbed(module):
                for row, (args, kwargs) in enumerate(seen.row_by_row(seen.unfused(self._call), len(tokens))):
                    logits, place = seen.logits_in(module(*args, **kwargs), tokens[row], self._table_rows)
                    if logits is None:
                        self._first_step["logits"] = place
                        return
                    self._vocabulary = logits.shape[-1]
                    row_targets, labels = (t[row : row + 1] for t in targets)
                    self._add_loss(logits, row_targets, int((labels >= 0).sum()), goes_on=row > 0)
        except Exception as error:
            self._first_step["logits"] = f"not found by the same call without what leaves them out: {error!r}"

    def _note_scale(self, result: Any, scaler: Any, *args: Any) -> None:
        scale = getattr(scaler, "_scale", None)
        self._scale = scale.clone() if scaler.is_enabled() and scale is not None else None

    def _before_backward(self, tensors: Any, *args: Any, **kwargs: Any) -> None:
        self._backward_depth += 1
        if self._backward_depth > 1 or self._evaluating or not self._step.forwards:
            return
        roots = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        for root in roots:
            if root.numel() == 1 and not root.is_meta:
                loss = root.detach().reshape(()).double()
                loss = loss if self._scale is None else loss / self._scale.to(loss.device)
                self._step.loss = loss if self._step.loss is None else self._step.loss + loss
                if self._checks_logits and self._roles is not None:
                    self._recomputed.note_backward(root)
                    self._loss_is_bf16 = root.dtype is torch.bfloat16
        if self._logits is not None:
            logits, self._logits = self._logits, None
            following = seen.next_tokens(*self._tokens_and_mask())
            targets = seen.targets_behind(roots[0], following.shape)
            if targets is None:
                self._recomputed.leaves_out_ends = True
            elif bool(((targets != following) & (targets >= 0))[:, :-1].any()):
                self._first_step["logits"] += ", but the loss is not of the next tokens"
                self._recomputed.has_other_targets = True
                return
            targets = following if targets is None else targets
            self._add_loss(logits, targets, int((targets >= 0).sum()))

    def _after_backward(self, result: None, *args: Any, **kwargs: Any) -> None:
        self._backward_depth -= 1
        scale, self._scale = self._scale, None
        if self._backward_depth or self._evaluating or self._steps or not self._step.forwards:
            return
        if (model := self._model()) is not None:
            gradients = [p.grad.detach() for p in model.parameters() if p.grad is not None]
            if gradients and self._is_unsharded:
                self._step.gradient_norm = _finite(seen.gradient_norm(gradients, scale))
            self._end_fields["gradient_bytes"] = seen.storage_bytes(gradients)
            self._first_step["gradient_dtype"] = seen.dtype_name(gradient.dtype for gradient in gradients) or None

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
        if any(owner is other for other in self._update_stack):  # the last one ended in an exception
            self._update_stack.clear()
        self._update_stack.append(owner)
        if not self._steps and not hasattr(owner, "unscale_"):
            self._read_update_norm(optimizer)

    def _read_update_norm(self, optimizer: Optimizer) -> None:
        """Read the norm of the first update's gradients; again after it where a closure went backward within."""
        forwards, squares, read = self._first_norm
        if forwards != len(self._step.forwards):
            forwards, squares, read = len(self._step.forwards), 0.0, set()
        missing = self._model_ids - read
        new = [p for group in optimizer.param_groups for p in group["params"] if id(p) in missing]
        if forwards and self._is_unsharded and new:
            gradients = [p.grad.detach() for p in new if p.grad is not None]
            squares += seen.gradient_norm(gradients, getattr(optimizer, "grad_scale", None)) ** 2
        self._first_norm = forwards, squares, read | {id(p) for p in new}

    def _after_update(self, owner: Any, optimizer: Optimizer) -> None:
        """Close the step after the outermost update, once every optimizer has made its update."""
        while self._update_stack and self._update_stack.pop() is not owner:
            pass
        step = self._step
        if self._model_ids and not self._updates_model(optimizer):
            return
        if not step.forwards:
            self._lone_updates += 1
            return
        step.updated.add(id(optimizer))
        if not self._steps and not hasattr(owner, "unscale_"):
            self._read_update_norm(optimizer)
        if any(isinstance(outer, Optimizer) for outer in self._update_stack):
            self._nested.add(id(optimizer))
        if (found_inf := getattr(optimizer, "found_inf", None)) is not None:
            step.skipped = found_inf.clone()
        if self._update_stack:
            return
        optimizers = self._model_optimizers()
        step.end = self._moments.mark()
        step.rates = [copy.deepcopy(group["lr"]) for o in optimizers for group in o.param_groups]
        if len(optimizers) == 1:
            self._close_step()

    def _model_optimizers(self) -> list[Optimizer]:
        return [o for o in self._live_optimizers() if id(o) not in self._nested and self._updates_model(o)]

    def _count_left_out(self, updated: set[int]) -> int:
        """Elements of parameters that were trainable at first and that none of the optimizers trains now."""
        groups = [group for o in self._live_optimizers() if id(o) in updated for group in o.param_groups]
        held = {id(p) for group in groups for p in group["params"] if p.requires_grad}
        return sum(size for key, size in self._trainable.items() if key not in held)

    def _updates_model(self, optimizer: Optimizer) -> bool:
        return any(id(p) in self._model_ids for group in optimizer.param_groups for p in group["params"][:1])

    def _pause(self, *args: Any, **kwargs: Any) -> None:
        """The script validates or saves: the time until the next training forward does not count as training."""
        if self._steps and not self._evaluating:
            self._paused = True
            self._close_peaks()

    def _close_step(self) -> None:
        """End the step: it is written now, or once the device has completed it."""
        step, self._step = self._step, Step()
        self._steps, self._last_end, self._paused = self._steps + 1, step.end, False
        # Where no hook can be on a model's output, every forward counts.
        step.forwards = [f for f in step.forwards if f.is_reached] or step.forwards
        for digest, tokens, rows, hashes in [f.known for f in step.forwards if f.known is not None]:
            if len(self._row_hashes) < 4096:  # they are kept until the end
                self._row_hashes.append(hashes)
            step.digest = digest if step.digest is None else step.digest + digest
            step.tokens, step.rows = step.tokens + tokens, step.rows + rows
        self._recomputed.keep_parts({f.part for f in step.forwards})
        for name in ("digest", "tokens", "rows", "loss", "skipped"):
            setattr(step, name, self._moments.to_host(getattr(step, name)))
        step.rates = [self._moments.to_host(rate) for rate in step.rates]
        if self._checks_logits:
            step.recomputed = self._recomputed.to_host(self._moments.to_host)
            self._recomputed = seen.RecomputedLoss()
        self._checks_logits = self._steps + 1 in self.settings.get("looks", ())
        is_last = self._steps == self.settings["max_steps"]
        self._pending.append((self._steps, step, self._moments.mark()))
        self._write_steps(wait=self._steps == 1 or is_last)
        if self._steps == 1:
            self._write_first_step(step)
        if is_last:
            self._end_fields["left_out_parameters"] = self._count_left_out(self._first_updated | step.updated)
            self._end_fields["optimizer_settings"] = seen.optimizer_settings(self._model_optimizers())
            self._close_peaks()
            if self.settings.get("heldout"):
                self._evaluate()
        if is_last and self.settings["stop"] == "at_max_steps":
            self._finish("max_steps")
            self._stop_is_due = True

    def _write_steps(self, wait: bool) -> None:
        """Write steps that are over, several at a time: a line for each would slow steps of a few milliseconds."""
        if not wait and time.perf_counter() - self._written_at < 0.25:
            return
        self._written_at = time.perf_counter()
        while self._pending and (wait or not self._moments.cuda or self._pending[0][2].query()):
            number, step, mark = self._pending.popleft()
            self._moments.read(mark)
            has_tokens = step.digest is not None
            step.loss = float(step.loss) if step.loss is not None else None
            began, ended = map(self._moments.read, step.pause or (step.end, step.end))
            usual = sorted(self._gaps)[len(self._gaps) // 2] if self._gaps else 0.0  # such as waiting for data
            self._write(
                "step", step=number, at=self._moments.read(step.end), micro_batches=len(step.forwards),
                rows=int(step.rows) if has_tokens else None, tokens=int(step.tokens) if has_tokens else None,
                token_digest=f"{int(step.digest) & ((1 << 64) - 1):016x}" if has_tokens else None,
                rates=[_finite(float(rate)) for rate in step.rates], loss=_finite(step.loss),
                is_finite=step.loss is None or math.isfinite(step.loss),
                gradient_norm=step.gradient_norm, skipped=bool(step.skipped),
                pause_seconds=max(0.0, ended - began - usual) if step.pause else 0.0,
            )  # fmt: skip
            if step.recomputed is not None and number > 1:
                nats, conventions = step.recomputed.value(), step.recomputed.conventions(step.loss, self._tolerance)
                is_known = bool(nats is not None and self._conventions and math.isfinite(step.loss or 0.0))
                agrees = not {*conventions}.isdisjoint(self._conventions) if is_known else None
                agrees = False if step.recomputed.has_other_targets and self._conventions else agrees
                self._write("look", step=number, own_loss=_finite(nats), agrees=agrees)

    def _write_first_step(self, step: Step) -> None:
        model, optimizers, compute = self._model(), self._model_optimizers(), seen.dtype_name(self._compute_dtypes)
        states, recomputed, (_, squares, _) = seen.states(optimizers), step.recomputed, self._first_norm
        recomputed = recomputed or seen.RecomputedLoss()
        self._tolerance, self._first_updated = 1e-4 if compute == "float32" else 5e-3, step.updated
        if self._loss_is_bf16:  # a loss of bf16 itself has eight bits
            self._tolerance = 2e-2
        ends = WITHOUT_ENDS if recomputed.leaves_out_ends else ""
        self._conventions = recomputed.conventions(step.loss, self._tolerance)
        self._first_step.update(
            optimizers=[seen.optimizer_name(optimizer) for optimizer in optimizers],
            compute_dtype=compute, optimizer_settings=seen.optimizer_settings(optimizers),
            optimizer_state_dtype=sorted({seen.dtype_name([t.dtype]) for t in states if t.numel() > 1}),
            own_loss=_finite(recomputed.value()),
            loss_convention=next((text + ends for text in self._conventions), None),
            update_norm=_finite(math.sqrt(squares)) if squares and not bool(step.skipped) else None,
            left_out_parameters=self._count_left_out(step.updated),
        )  # fmt: skip
        self._write("first_step", **self._first_step)
        self._first_step["loss"] = step.loss
        self._end_fields.update(
            parameter_bytes=seen.storage_bytes(model.parameters() if model is not None else ()),
            optimizer_state_bytes=seen.storage_bytes(states),
        )  # fmt: skip

    def _finish(self, reason: str) -> None:
        if reason == "exit" and self._step.updated:
            self._close_step()
        if self._ended or (self._file is None and not self._lone_updates):
            return
        self._open_file()
        open_forwards = len(self._step.forwards) if self._step.loss is not None else 0
        if open_forwards or self._lone_updates:
            what = f"{open_forwards} training forwards without an update" if open_forwards else (
                f"{self._lone_updates} updates without a training forward of a module that holds what they update"
            )  # fmt: skip
            self._write("problem", where="updates", what=f"{what}, after {self._steps} steps")
        self._close_peaks()
        self._write_steps(wait=True)
        self._ended = True
        self._write("end", step=self._steps, reason=reason, **self._end_fields, own_seconds=self._hook_seconds)
        self._call = self._evaluation_call = ((), {})

    def _stop_if_due(self) -> None:
        """End the script by SystemExit, or at once where it goes on training after that."""
        if self._stop_is_due:
            if self._stop_was_raised:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
            self._stop_is_due, self._stop_was_raised = False, True
            raise SystemExit(0)

    def _at_exit(self) -> None:
        if os.getpid() == self._pid and not self._ended:
            self.guarded(self._finish, "exit")

    def _after_fork(self) -> None:
        """A forked child writes nothing where its parent has begun to."""
        self.passive = self.passive or self._file is not None
        self._pid = os.getpid()

    def _open_file(self) -> None:
        if self._file is not None:
            return
        rank, world = _rank_and_size()
        versions_found = {name: getattr(sys.modules.get(name), "__version__", None) for name in seen.LIBRARIES}
        versions = {name: str(version) for name, version in versions_found.items() if version is not None}
        versions["python"] = sys.version.split()[0]
        os.makedirs(self.settings["folder"], exist_ok=True)  # noqa: PTH103
        self._file = open(f"{self.settings['folder']}/{rank}-{os.getpid()}.jsonl", "a", encoding="utf-8")  # noqa: PTH123, SIM115
        self._write(
            "start", rank=rank, world_size=world, at=time.perf_counter(), versions=versions, argv=list(sys.argv)
        )

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
            gpu = {"uuid": f"GPU-{getattr(gpu, 'uuid', '')}"}
        kernel = getattr(getattr(seen.unwrapped(module), "config", None), "_attn_implementation", None)
        self._write(
            "model", name=name, parameters=count, trainable_parameters=trainable, weights_sha256=exact,
            weights_bf16_sha256=rounded, parameter_dtype=seen.dtype_name(p.dtype for p in parameters),
            dropout=seen.largest_dropout(module), attention=kernel, strategy=strategy,
            compiled=any(seen.is_compiled(part) for part in module.modules()),
            device=device.type, gpu=gpu, tf32=torch.get_float32_matmul_precision() != "highest",
        )  # fmt: skip
        self._moments, self._model_ids = Moments(device), {id(parameter) for parameter in parameters}
        self._trainable = {id(p): p.numel() for p in parameters if p.requires_grad}
        self._is_unsharded = exact is not None
        with suppress(Exception):  # a library that is broken or not there
            self._wrap(importlib.import_module("safetensors.torch"), "serialize_file", self._pause)
        if self._moments.cuda:
            self._peaks_before = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            self._retries_before = torch.cuda.memory_stats().get("num_alloc_retries", 0)
        self._excluded_seconds += time.perf_counter() - began

    def _note_peaks(self, *args: Any, **kwargs: Any) -> None:
        if self._file is not None:
            self._peaks[0] = max(self._peaks[0], torch.cuda.max_memory_allocated())
            self._peaks[1] = max(self._peaks[1], torch.cuda.max_memory_reserved())

    def _close_peaks(self) -> None:
        """Keep the memory's peaks of the training up to now, at the first call."""
        if not self._steps or "num_alloc_retries" in self._end_fields:
            return
        peaks: list[int | None] = [None] * 3
        if self._moments.cuda:
            self._note_peaks()
            # A peak that was there before the first forward says nothing about the training.
            peaks = [now if now > was else None for now, was in zip(self._peaks, self._peaks_before)]
            peaks.append(torch.cuda.memory_stats().get("num_alloc_retries", 0) - self._retries_before)
        names = "peak_memory_allocated_bytes", "peak_memory_reserved_bytes", "num_alloc_retries"
        growth = None if self._moments.cuda else seen.peak_growth_bytes(self._pss_before)
        self._end_fields.update(zip(names, peaks), peak_pss_growth_bytes=growth)

    def _evaluate(self) -> None:
        began, model = time.perf_counter(), self._model()
        nats, loss, place = self._first_step["own_loss"], self._first_step["loss"], self._first_step["logits"]
        try:
            if nats is None or model is None:
                raise ValueError(f"there are no logits to take the loss of: {place}")
            if self._first_step["loss_convention"] is None:
                raise ValueError(f"the script's first loss, {loss}, follows in no way that we know from {nats:.6g} "
                                 f"nats per token, as its logits give them ({place})")  # fmt: skip
            with self._undisturbed(model):
                total, tokens = self._held_out_loss(model)
            result: dict[str, Any] = {"loss_sum": total, "tokens": tokens, "seconds": time.perf_counter() - began}
        except Exception as error:
            result = {"problem": str(error)[:2000] if isinstance(error, ValueError) else repr(error)[:2000]}
        self._excluded_seconds += time.perf_counter() - began
        self._write("evaluation", step=self._steps, **self._count_held_out_rows(), **result)

    def _count_held_out_rows(self) -> dict[str, int]:
        """How many of the first training rows are pieces of the held-out tokens, of how many pieces."""
        count = int(self.settings["heldout_tokens"])
        roles = self._evaluation_roles
        length = seen.as_rows(seen.leaves(self._evaluation_call)[roles.tokens]).shape[1] if roles is not None else 0
        if not 8 <= length <= count:  # shorter rows are the same by chance
            return {}
        held_out = torch.from_file(self.settings["heldout"], size=count, dtype=torch.int64).to(self._device)
        pieces = held_out.unfold(0, length, 1)[: (1 << (30 if self._moments.cuda else 26)) // length]
        hashes = torch.cat([seen.token_digest(part, None)[3] for part in pieces.split(1 + (1 << 22) // length)])
        trained = torch.cat([rows.to(self._device) for rows in self._row_hashes])
        shared = torch.isin(trained, hashes).sum()
        return {"row_length": length, "rows": len(trained), "rows_held_out": int(shared), "offsets": len(pieces)}

    def _held_out_loss(self, model: nn.Module) -> tuple[float, int]:
        """Nats and tokens of this rank's share; ranks make equally many calls, of as many rows as in training."""
        assert self._evaluation_roles is not None
        rows, length = seen.as_rows(seen.leaves(self._evaluation_call)[self._evaluation_roles.tokens]).shape
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
            args, kwargs = seen.with_tokens(self._evaluation_call, self._evaluation_roles, inputs, targets)
            logits, place = seen.logits_in(
                getattr(model, self._method)(*args, **kwargs), inputs, {self._vocabulary}
            )
            if logits is None:
                raise ValueError(place)
            targets[[number >= whole for number in numbers]] = -1
            summed, counted = seen.summed_loss(logits, targets)
            total, tokens = total + float(summed), tokens + int(counted)
        if not math.isfinite(total):
            raise ValueError(f"the held-out loss is {total}")
        return total, tokens

    @contextmanager
    def _undisturbed(self, model: nn.Module) -> Iterator[None]:
        """Inside: eval mode, fp32, no compiled code. Afterwards flags, buffers and random states are as before."""
        # The second is DDP's flag for sending buffers to other ranks, which a forward without gradients changes.
        names, parts = ("training", "require_forward_param_sync"), list(model.modules())
        flags = [(part, name, getattr(part, name)) for part in parts for name in names if hasattr(part, name)]
        stance = getattr(torch.compiler, "set_stance", None)
        if stance is None and any(map(seen.is_compiled, parts)):
            raise ValueError(f"torch {torch.__version__} can't run compiled code eagerly")
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([torch.cuda.current_device()] if self._moments.cuda else []))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(self._device.type, enabled=False))
            # Autocast that a model enters by itself is off too, as accelerate and Fabric wrap models in it.
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
    """Restore hooks of an optimizer's `step`, which torch 2.1 and 2.2 remove once something is compiled."""
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

"""What an optimizer step is made of besides the forward pass; one class per way of sharing the work.

The loop calls, per step: `begin_step`, then per micro-batch `micro_batch` around forward pass and
`backward`, then `clip_and_step`. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


class SingleEngine:
    """One process, one device: plain PyTorch, with gradient scaling where the precision asks for it."""

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        optimizers: list[torch.optim.Optimizer],
        *,
        device: str,
        gradient_scaling: bool,
        keep_gradients: bool = False,
    ) -> None:
        """`keep_gradients`: gradients are zeroed in place, not freed.

        CUDA graphs write their outputs to the graph's own memory, which the next replay overwrites; a
        gradient that exists beforehand is added to instead of aliasing that memory.
        """
        self.parameters = parameters
        self.optimizers = optimizers
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self._scaler = torch.amp.GradScaler(device) if gradient_scaling else None
        self._keep_gradients = keep_gradients
        self._yes = torch.ones((), dtype=torch.bool, device=device)
        if keep_gradients:
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)

    def peak_lrs(self) -> list[float]:
        """Peak learning rate of every parameter group, in order."""
        return [peak for peaks in self._peaks for peak in peaks]

    def begin_step(self, share_of_peak: float) -> None:
        """Clears the gradients and sets every group's learning rate to its own peak times the share."""
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            optimizer.zero_grad(set_to_none=not self._keep_gradients)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share_of_peak

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Entered before the forward pass; `is_last`: gradients are complete after this backward pass."""
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the loss's gradient; losses of a step sum up to its token losses over its tokens."""
        (self._scaler.scale(loss) if self._scaler else loss).backward()

    def clip_and_step(self, max_norm: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Updates the weights; returns two scalars on the device.

        The global gradient norm before clipping, and whether the update was applied: gradient scaling
        skips a step whose gradients are not finite, every other precision applies all of them.
        """
        if self._scaler:
            self._unscale(self._scaler)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients)
        if max_norm is not None:
            clip_grads_with_norm_(self.parameters, max_norm, norm)
        if not self._scaler:
            for optimizer in self.optimizers:
                optimizer.step()
            return norm, self._yes
        for optimizer in self.optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        return norm, norm.isfinite()

    def _unscale(self, scaler: torch.amp.GradScaler) -> None:
        for optimizer in self.optimizers:
            scaler.unscale_(optimizer)
        if len(self.optimizers) > 1:
            # The scaler judges each optimizer alone; a step is applied by all of them or by none.
            found = [f for o in self.optimizers for f in scaler._found_inf_per_device(o).values()]
            worst = torch.stack(found).amax(dim=0)
            for flag in found:
                flag.copy_(worst)

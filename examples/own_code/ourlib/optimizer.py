"""An optimizer: a class that takes parameter groups and lr, as torch's do."""

import torch


class SignMomentum(torch.optim.Optimizer):
    """Steps by the sign of a momentum, with decoupled weight decay."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(momentum.sign(), alpha=-group["lr"])

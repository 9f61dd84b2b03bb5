"""Own code: `package.module:Name` wherever a name selects something built in.

The bench keeps the string and never imports it; only a worker does, in `build()`.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from selectbench.choices.choice import OwnName
from selectbench.choices.optimizer import OptimizerChoice, decay_groups, trainable

if TYPE_CHECKING:
    import torch

LOADER = "selectbench.worker.own_code"
"""A string, as everything of the worker is to the bench."""


def load(name: str, setting: str) -> Any:
    """What `package.module:Name` names; `setting` is the key that named it. Worker only.

    Raises OwnCodeError where there is no such module or attribute; what the module itself raises passes.
    """
    return import_module(LOADER).load(name, setting)


def _finite(value: Any) -> Any:
    """Raises ValueError for NaN and infinity, however deep: records and hashes are JSON."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for below in inside:
        _finite(below)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"settings must be finite, found {value}")
    return value


OwnSettings = Annotated[dict[str, Any], AfterValidator(_finite)]


def free_of(settings: dict[str, Any], given: tuple[str, ...]) -> dict[str, Any]:
    """The settings. Raises ValueError where they name an argument that is given already."""
    if taken := [key for key in given if key in settings]:
        raise ValueError(f"settings may not set {', '.join(taken)}: given besides ({', '.join(given)} are)")
    return settings


def _free(settings: dict[str, Any]) -> dict[str, Any]:
    return free_of(settings, ("params", "lr", "weight_decay"))


class OwnOptimizer(OptimizerChoice):
    """An optimizer of your own: `Class(parameter_groups, lr=lr, **settings)`.

    The groups carry weight_decay, as torch's optimizers take it. A function that returns an optimizer, or a
    list of them that together step every parameter once, serves too.
    """

    source: ClassVar[str] = "your own code"
    name: OwnName
    """`package.module:Class`, importable from a folder of the suite's `code`, or installed."""
    settings: Annotated[OwnSettings, AfterValidator(_free)] = Field(default_factory=dict)
    """More keyword arguments."""

    def peak_rates(self) -> None:
        """It may scale `lr` as it likes."""

    def build(self, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """The class's instance, or what the function returns. Raises OwnCodeError, TypeError."""
        import torch

        groups = decay_groups(trainable(model), self.weight_decay)
        made = load(self.name, "optimizer")(groups, lr=self.lr, **self.settings)
        optimizers = list(made) if isinstance(made, list | tuple) else [made]
        for optimizer in optimizers:
            if not isinstance(optimizer, torch.optim.Optimizer):
                kind = type(optimizer).__name__
                raise TypeError(f"optimizer {self.name}: expected a torch.optim.Optimizer, it made a {kind}")
        self._check_covers(optimizers, [id(p) for p in trainable(model)])
        return optimizers

    def _check_covers(self, optimizers: list[torch.optim.Optimizer], expected: list[int]) -> None:
        given = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
        if sorted(given) != sorted(expected):
            raise TypeError(
                f"optimizer {self.name}: every parameter must be stepped once; of {len(expected)} it has "
                f"{len(set(given) & set(expected))}, {len(given)} entries in all"
            )

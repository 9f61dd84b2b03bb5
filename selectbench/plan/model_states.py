"""How many bytes of model states a rank keeps, by the formulas of the literature.

Source: Rajbhandari et al. 2020, arXiv:1910.02054, figure 1 and section 5. With psi parameters over N ranks,
mixed-precision Adam keeps 2 psi of parameters, 2 psi of gradients and 12 psi of optimizer state (fp32 master
weights and two moments); what a strategy shards is divided by N. Activations, buffers and fragments are left
out, and so are gradients that an implementation keeps in fp32 beside half-precision weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from selectbench.choices import Choices

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelStates:
    """Bytes of one rank, where shards are equal."""

    parameters: float
    gradients: float
    optimizer_state: float
    """Master weights among it."""

    @property
    def total(self) -> float:
        """All three."""
        return self.parameters + self.gradients + self.optimizer_state


def expected(choices: Choices, parameters: int, world_size: int) -> ModelStates | None:
    """Of a rank that trains so many parameters; None: the optimizer's state can't be told from their number."""
    precision, sharded = choices.precision, choices.strategy.sharded()
    updated = BYTES[precision.parameter_dtype]
    kept = BYTES[precision.working_dtype or precision.parameter_dtype]
    state = choices.optimizer.state_bytes(updated)
    if state is None:
        return None
    master = updated if precision.working_dtype else 0
    ranks = {name: world_size if name in sharded else 1 for name in ("parameters", "gradients", "optimizer_state")}
    return ModelStates(
        parameters=kept * parameters / ranks["parameters"],
        gradients=kept * parameters / ranks["gradients"],
        optimizer_state=(master + state) * parameters / ranks["optimizer_state"],
    )

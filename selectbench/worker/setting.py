"""What a training loop is given: everything of a trial that is ready before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from selectbench.record.wire import Order
from selectbench.worker.batches import Batches
from selectbench.worker.evaluation import HeldOut
from selectbench.worker.examination import Examination
from selectbench.worker.forward_loss import SummedLoss
from selectbench.worker.inside import Look
from selectbench.worker.memory import TrainingMemory
from selectbench.worker.recorder import Emit, Recorder
from selectbench.worker.sdpa_backends import SdpaBackends
from selectbench.worker.token_stream import TokenStream
from selectbench.worker.whereabouts import Whereabouts
from selectbench.worker.world import World


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
    examination: Examination | None
    look: Look | None
    emit: Emit
    memory: TrainingMemory
    whereabouts: Whereabouts
    count_compilations: Callable[[], int]
    sdpa: SdpaBackends = field(default_factory=SdpaBackends)
    """What the training's attention is seen to use."""
    trainable_parameters: int | None = None
    """Once it is settled what is trained."""
    recorder: Recorder | None = None
    """Once the loop has made one: what is known is kept even where the training fails."""

    def share_at(self, step: int) -> float:
        """The share of the peak; a step added for timing trains on at the job's last one."""
        return self.shares[min(step, len(self.shares) - 1)]

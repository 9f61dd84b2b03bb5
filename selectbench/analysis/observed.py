"""Everything that a metric may be derived from, of one completed trial."""

from __future__ import annotations

from typing import Literal, NamedTuple

from selectbench.choices import Choices
from selectbench.record.meters import GpuMeters, Meters
from selectbench.record.record import Completed, Measurement, Record
from selectbench.suite.suite import Cost, Suite


class Observed(NamedTuple):
    """One completed trial: raw values, and what of the suite a formula needs."""

    measurement: Measurement
    meters: Meters | None
    choices: Choices
    """The option's."""
    device: Literal["cpu", "cuda"]
    world_size: int | None
    """Ranks that took part, one GPU each; None: the trial does not say."""
    cost: Cost | None
    """The suite's prices."""

    @property
    def gpus(self) -> list[GpuMeters]:
        """The trial's GPUs as they were metered; empty where they were not."""
        return self.meters.gpus if self.meters else []


def observe(record: Record, suite: Suite) -> Observed:
    """What is known of a completed trial of the suite, one before the contest among them.

    Raises ValueError for a failed one.
    """
    if not isinstance(record.outcome, Completed):
        raise ValueError(f"trial {record.trial.trial_id} failed: it has no metrics")
    choices = suite.option(record.trial.tunes or record.trial.option).choices
    return observed(record, record.outcome.measurement, choices, suite)


def observed(record: Record, measurement: Measurement, choices: Choices, suite: Suite) -> Observed:
    """The same where the measurement and the option's choices are at hand."""
    ranks = record.identity.world_size if record.identity else None
    return Observed(measurement, record.meters, choices, suite.device, ranks, suite.cost)

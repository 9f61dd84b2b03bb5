"""Before a trial the GPUs are waited for, and what holds them is named."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from stand_in import StandIn, Value

from selectbench.gpu.devices import gpus, use_of
from selectbench.gpu.meters import TOLERANCE_BYTES, Ready, settle

MIB, GIB = 1 << 20, 1 << 30


@dataclass
class Waiting:
    """A clock that goes on by waiting; the GPU changes by its time."""

    driver: StandIn
    changes: dict[float, tuple[Value, ...]] = field(default_factory=dict)
    now: float = 0.0
    pauses: int = 0

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses += 1
        for at in [at for at in self.changes if at <= self.now]:
            self.driver.set(*self.changes.pop(at))

    def settle(self, *, most_seconds: float = 30.0, gave_up: bool = False) -> Ready:
        found = gpus()[:1]
        self.driver.set("gpu0.memory_used", 5 * MIB, "gpu0.utilization", 0)
        baseline = [use_of(gpu) for gpu in found]
        self.driver.set(*self.changes.pop(0.0, ()))
        return settle(found, baseline, most_seconds, self.pause, lambda: gave_up, lambda: self.now)


def test_nothing_is_waited_for_where_memory_is_back(stand_in: StandIn) -> None:
    waiting = Waiting(stand_in, {0.0: ("gpu0.memory_used", 5 * MIB + TOLERANCE_BYTES)})
    ready = waiting.settle()
    assert (waiting.pauses, ready.settled, ready.held) == (0, True, [])
    assert ready.uses[0].memory_used_bytes == 5 * MIB + TOLERANCE_BYTES


def test_it_is_waited_until_memory_is_back(stand_in: StandIn) -> None:
    waiting = Waiting(
        stand_in, {0.0: ("gpu0.memory_used", 9 * GIB), 3.0: ("gpu0.memory_used", 6 * MIB)}
    )  # fmt: skip
    ready = waiting.settle()
    assert 3.0 <= waiting.now < 3.5
    assert ready.settled
    assert ready.uses[0].memory_used_bytes == 6 * MIB


def test_it_is_waited_until_the_last_trials_work_no_longer_shows(stand_in: StandIn) -> None:
    waiting = Waiting(stand_in, {0.0: ("gpu0.utilization", 97), 1.0: ("gpu0.utilization", 0)})
    ready = waiting.settle()
    assert 1.0 <= waiting.now < 1.5
    assert ready.uses[0].utilization == 0.0


def test_memory_that_does_not_come_back_is_told_with_its_holder(stand_in: StandIn) -> None:
    held = ("gpu0.memory_used", 9 * GIB, "gpu0.processes", f"{os.getppid()}:{9 * GIB}")
    waiting = Waiting(stand_in, {0.0: held})
    ready = waiting.settle(most_seconds=30)
    assert 30 <= waiting.now < 31
    assert ready.settled is False
    (sentence,) = ready.held
    for words in ("GPU 0 (NVIDIA H100)", "9.00 GiB", "5.00 MiB before the first trial", f"pid {os.getppid()} ("):
        assert words in sentence, sentence


def test_a_holder_that_cannot_be_seen_is_said_to_be_so(stand_in: StandIn) -> None:
    ready = Waiting(stand_in, {0.0: ("gpu0.memory_used", 9 * GIB)}).settle(most_seconds=1)
    assert "not visible from here" in ready.held[0]


def test_ctrl_c_ends_the_waiting(stand_in: StandIn) -> None:
    waiting = Waiting(stand_in, {0.0: ("gpu0.memory_used", 9 * GIB)})
    assert waiting.settle(gave_up=True).settled is False
    assert waiting.pauses == 0


def test_memory_that_is_not_told_is_not_waited_for(stand_in: StandIn) -> None:
    waiting = Waiting(stand_in, {0.0: ("gpu0.memory_total", None)})
    assert waiting.settle().settled is None
    assert waiting.pauses == 0


def test_a_gpu_that_was_busy_from_the_beginning_is_not_waited_for(stand_in: StandIn) -> None:
    stand_in.set("gpu0.utilization", 80)
    found = gpus()[:1]
    waiting = Waiting(stand_in)
    ready = settle(found, [use_of(gpu) for gpu in found], 30, waiting.pause, lambda: False, lambda: waiting.now)
    assert waiting.pauses == 0
    assert ready.uses[0].utilization == 0.8

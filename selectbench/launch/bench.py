"""One planned trial from waiting for its GPUs to its record on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from selectbench.analysis.gpu_state import state_of
from selectbench.launch.attempts import is_rerun_due
from selectbench.launch.display import Display
from selectbench.launch.narrator import Narrator
from selectbench.launch.order import make_order
from selectbench.launch.preparation import Preparation
from selectbench.launch.server import TrialServers
from selectbench.launch.signals import StopRequest
from selectbench.launch.trial import TrialEnd, TrialRunner
from selectbench.meters.settle import Ready
from selectbench.meters.watch import GpuWatch
from selectbench.plan.plan import PlannedTrial
from selectbench.record.as_json import SOFTWARE
from selectbench.record.meters import Meters
from selectbench.record.record import Failed, Record
from selectbench.record.store import FILE_NAME, append_record, read_records
from selectbench.record.wire import Finished


@dataclass
class Bench:
    """What every trial of a run is launched with."""

    preparation: Preparation
    folder: Path
    """The run's."""
    servers: TrialServers
    watch: GpuWatch
    display: Display
    stop: StopRequest
    server_start_seconds: float = 0.0
    """What the latest attempt waited for a trial server to start."""

    def run(self, planned: PlannedTrial, attempt: int, number: int, of: int) -> None:
        """Run trial `number`, from 1, of so many; once more where its GPUs spoiled it and the suite allows."""
        record = self._attempt(planned, attempt, number, of)
        if not self.stop and self._is_rerun_due(planned):
            state = state_of(record)
            assert state is not None, "only a state makes a trial unclean"
            trial = record.trial
            self.display.note(
                f"{trial.option}, seed {trial.seed}: the GPU was {state.verdict} ({state.detail}): run again"
            )
            record = self._attempt(planned, attempt + 1, number, of)
        with _terminal_may_be_gone(self.stop):
            self.display.trial_ended(
                record.trial.option, record.trial.seed, record.outcome, record.wall_seconds,
                self.server_start_seconds,
            )  # fmt: skip

    def _is_rerun_due(self, planned: PlannedTrial) -> bool:
        if not self.preparation.suite.meters.rerun_unclean:
            return False
        records, _ = read_records(self.folder / FILE_NAME)
        attempts = [record for record in records if record.trial.trial_id == planned.trial.trial_id]
        return is_rerun_due(attempts, self.preparation.suite)

    def _attempt(self, planned: PlannedTrial, attempt: int, number: int, of: int) -> Record:
        self.server_start_seconds = 0.0
        reason = self.preparation.plan.planned(planned.trial.option).unsupported
        if reason is None:
            record = self._launched(planned, attempt, number, of)
        else:
            refused = Failed(kind="unsupported", detail=reason)
            record = Record(
                trial=planned.trial, phase=_phase(planned), round=planned.round, attempt=attempt,
                wall_seconds=0.0, started_at=_now(), outcome=refused,
            )  # fmt: skip
        append_record(self.folder / FILE_NAME, record)
        return record

    def _launched(self, planned: PlannedTrial, attempt: int, number: int, of: int) -> Record:
        self.display.trial_started(planned.trial.option, planned.trial.seed, number, of)
        ready, started_at = self._ready(planned), _now()
        end, meters = self._metered(planned, ready)
        return Record(
            trial=planned.trial, phase=_phase(planned), round=planned.round, attempt=attempt, outcome=end.outcome,
            wall_seconds=end.wall_seconds, started_at=started_at, software=SOFTWARE.keep(end.software),
            meters=meters, **(_certificate(end.completed) if end.completed else {}),
        )  # fmt: skip

    def _ready(self, planned: PlannedTrial) -> Ready | None:
        """The trial's GPUs as they are when they have come to rest, or when waiting has taken long enough."""
        world_size = self.preparation.plan.planned(planned.trial.option).world_size
        ready = self.watch.settle(world_size)
        for sentence in ready.held if ready and not self.stop else []:
            self.display.note(f"memory has not come back: {sentence}")
        return ready

    def _metered(self, planned: PlannedTrial, ready: Ready | None) -> tuple[TrialEnd, Meters]:
        suite = self.preparation.suite
        server = self.servers.of(suite.option(planned.trial.option).choices.python)
        runner = TrialRunner(server, suite.limits, self.stop, Narrator(self.display))
        order = make_order(self.preparation, planned, self.folder)
        with self.watch.during(ready, Path(order.trial_folder)) as watching:
            end = runner.run(order)
        self.server_start_seconds = end.server_start_seconds
        return end, watching.meters(end.completed)


def _phase(planned: PlannedTrial) -> Literal["tune", "contest"]:
    return "contest" if planned.trial.tunes is None else "tune"


def _certificate(done: Finished) -> dict[str, Any]:
    return {
        "identity": done.identity,
        "evaluation_curve": done.evaluation_curve,
        "loss_curve": done.loss_curve,
        "inside": done.inside,
        "resolved_config": done.resolved_config,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@contextlib.contextmanager
def _terminal_may_be_gone(stop: StopRequest) -> Iterator[None]:
    try:
        yield
    except OSError:
        if not stop:
            raise

"""Which of a run's records count."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench.record.record import Record
from selectbench.record.store import last_attempts


def contest_trials(records: Sequence[Record]) -> list[Record]:
    """The last attempt of every trial of the contest, in the order in which they began."""
    last = last_attempts([record for record in records if record.phase == "contest"]).values()
    return sorted(last, key=lambda record: (record.started_at, record.trial.trial_id))


def counted(records: Sequence[Record]) -> list[Record]:
    """One of each option and seed: of two trials, as two runs of a copied folder have them, the later one."""
    return list({(r.trial.option, r.trial.seed): r for r in contest_trials(records)}.values())

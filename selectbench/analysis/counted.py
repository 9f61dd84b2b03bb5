"""Which of a run's records count."""

from __future__ import annotations

from collections.abc import Sequence

from selectbench.record.record import Record
from selectbench.record.store import last_attempts


def contest_trials(records: Sequence[Record]) -> list[Record]:
    """The last attempt of every trial of the contest, in the order in which they began."""
    last = last_attempts([record for record in records if record.phase == "contest"]).values()
    return sorted(last, key=lambda record: (record.started_at, record.trial.trial_id))


def contradicted(counting: Sequence[Record], records: Sequence[Record]) -> list[Record]:
    """Those that count although another record of the same trial and attempt says otherwise."""
    last = {(record.trial.trial_id, record.attempt): record for record in counting}
    pairs = [(last.get((r.trial.trial_id, r.attempt)), r) for r in records if r.phase == "contest"]
    found = [ours for ours, other in pairs if ours is not None and ours is not other and ours != other]
    return list({record.trial.trial_id: record for record in found}.values())


def counted(records: Sequence[Record]) -> list[Record]:
    """One of each option and seed: of two trials, as two runs of a copied folder have them, the later one."""
    return list({(r.trial.option, r.trial.seed): r for r in contest_trials(records)}.values())

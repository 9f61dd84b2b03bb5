"""Who computed on a GPU while a trial ran: the trial's own processes and others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from selectbench.nvml.idle import Tenant, command_name
from selectbench.nvml.reading import ProcessReading
from selectbench.record.meters import OtherProcess

MOST_NAMED = 8
"""Other processes that a record names."""


@dataclass
class Seen:
    """One process over a trial."""

    name: str | None
    memory_bytes: int | None
    """The most that it was said to hold."""
    was_there_before: bool
    """Before the trial was launched."""


class Tenancy:
    """Who was seen on one GPU, told reading by reading."""

    def __init__(self) -> None:
        self._seen: dict[int, Seen] = {}
        self._own: set[int] = set()
        self._before: frozenset[int] = frozenset()

    def began_with(self, tenants: Iterable[Tenant]) -> None:
        """Who was on it right before the trial."""
        self._before = frozenset(tenant.pid for tenant in tenants)

    def note(self, listed: Iterable[ProcessReading] | None, own: Iterable[int]) -> None:
        """`listed`: by the driver, None where it does not say; `own`: those of them that are ours."""
        self._own.update(own)
        for process in listed or ():
            seen = self._seen.setdefault(
                process.pid, Seen(command_name(process.pid), None, process.pid in self._before)
            )
            seen.memory_bytes = _larger(seen.memory_bytes, process.memory_bytes)

    def others(self) -> list[OtherProcess] | None:
        """Processes that are none of the trial's; None: nothing was listed, so that others would not be either.

        Where the driver numbers processes as the host does and this is a container, none of ours can be told by
        its number. Then one of those that came during the trial, that with the most memory, is taken for the
        trial's rank: a rank has a GPU to itself.
        """
        if not self._seen:
            return None
        foreign = {pid: seen for pid, seen in self._seen.items() if pid not in self._own}
        newcomers = [pid for pid, seen in foreign.items() if not seen.was_there_before]
        if len(foreign) == len(self._seen) and newcomers:
            del foreign[max(newcomers, key=lambda pid: foreign[pid].memory_bytes or 0)]
        named = list(foreign.items())[:MOST_NAMED]
        return [OtherProcess(pid=pid, name=seen.name, memory_bytes=seen.memory_bytes) for pid, seen in named]


def _larger(a: int | None, b: int | None) -> int | None:
    known = [value for value in (a, b) if value is not None]
    return max(known, default=None)


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether the process is the ancestor or anywhere below it; False where it is gone or not to be seen."""
    current: int | None = pid
    while current and current != ancestor:
        current = _parent(current)
    return current == ancestor


def _parent(pid: int) -> int | None:
    """None: there is no such process here; 0 above the first one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # pid (command) state ppid; a command may hold anything (proc(5)).
    return int(text.rpartition(")")[2].split()[1])

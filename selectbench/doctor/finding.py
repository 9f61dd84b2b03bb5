"""One thing that doctor looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "limited", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    subject: str
    """What was looked at."""
    status: Status
    """`broken`: no job runs; `limited`: some choice does not, or figures suffer."""
    found: str
    """What is there."""
    fix: str | None = None
    """What to do about it."""

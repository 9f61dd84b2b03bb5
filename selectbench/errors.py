"""What a user got wrong, said once and without a traceback.

A command ends with one of the exit codes below; `UserError` carries the messages of exit code 2.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process's exit status means."""

    OK = 0
    """Every trial has an outcome, the baseline completed, none crashed or timed out."""
    REGRESSION = 1
    """`gate` alone: a limit does not hold."""
    USER_ERROR = 2
    """A wrong suite, command, device or folder."""
    TRIALS_FAILED = 3
    """Some trial crashed or timed out, or the baseline has no completed trial."""
    INCONCLUSIVE = 4
    """`gate` alone: no limit is shown not to hold, but not every one is shown to hold."""
    OWN_BUG = 70
    """An exception that selectbench should not have let through."""
    INTERRUPTED = 130
    """Ctrl-C, SIGTERM or SIGHUP; the records are whole."""


class UserError(ValueError):
    """One or more mistakes that the user can mend, each a line that says where, what and how."""

    def __init__(self, *problems: str) -> None:
        """`problems`: complete lines, ready to print."""
        super().__init__("\n".join(problems))
        self.problems = problems


class MissingPackageError(UserError):
    """A package that this command cannot do without is not installed; the message says how to get it."""


class UnreachableError(UserError):
    """Something of the Hugging Face hub can't be had: no network, no such name, or none that is open to all."""


class NotDownloadedError(UserError):
    """Data that a plan does not download; a run would."""


def did_you_mean(wrong: object, candidates: Sequence[str]) -> str:
    """' (did you mean X?)' for the nearest candidate, or '' where none is near."""
    near = get_close_matches(str(wrong), candidates, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""

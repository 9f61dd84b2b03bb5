"""Mistakes of a user, said once and without a traceback, and the words of libraries whose memory ran out."""

from __future__ import annotations

import re
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


_SAYS_SO = re.compile(
    r"""
    can't\ allocate\ memory | not\ enough\ memory           # torch's CPU allocator
    | Cannot\ allocate\ memory                              # the kernel (ENOMEM), for maps and shared memory
    | CUDA\ out\ of\ memory                                 # torch's CUDA allocator
    | CUDA\ (?:driver\ )?error(?:\ \([^()]*\))?:\ out\ of\ memory  # torch outside of it; flash-attn with its file
    | CUDA_ERROR_OUT_OF_MEMORY
    | CU(?:BLAS|SOLVER|SPARSE|DNN)_STATUS_ALLOC_FAILED | CUFFT_ALLOC_FAILED | CURAND_STATUS_ALLOCATION_FAILED
    | Cuda\ failure\ (?:2\ )?'out\ of\ memory'              # NCCL, newer ones with the number
    | Triton\ Error\ \[CUDA\]:\ out\ of\ memory
    | Error\ out\ of\ memory\ at\ line\ \d+\ in\ file       # bitsandbytes
    """,
    re.VERBOSE,
)
"""Words of torch (c10's allocators, CUDAException, ProcessGroupNCCL), the CUDA libraries' names of their statuses,
NCCL (src/include/checks.h), Triton's driver, bitsandbytes and flash-attn (their C++ code's CUDA checks)."""
_FOR_WANT_OF = re.compile(
    r"""
    CU(?:BLAS|SOLVER|SPARSE|DNN)_STATUS_NOT_INITIALIZED     # a handle that a full device has no room for
    | CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED  # so too while a CUDA graph is captured
    | Failed\ to\ CUDA\ [mc]alloc(?:\ async)?\ (?P<bytes>\d+)\ bytes  # NCCL's last word, whatever went wrong
    """,
    re.VERBOSE,
)
HANDLE_BYTES = 512 << 20
"""With less free on a GPU a library's handle that can't be made is for want of memory: it takes tens of megabytes,
and its kernels some hundred when they are first loaded."""


def says_out_of_memory(text: str) -> bool:
    """Whether an error's words are that memory could not be had."""
    return _SAYS_SO.search(text) is not None


def may_want_bytes(text: str) -> int | None:
    """With how many free bytes of the GPU at most an error's words mean that memory could not be had.

    None: they mean something else whatever is free.
    """
    found = _FOR_WANT_OF.search(text)
    if found is None:
        return None
    return HANDLE_BYTES + int(found["bytes"] or 0)

"""Whether an exception means that memory could not be had."""

from __future__ import annotations

import errno

import torch

from selectbench.out_of_memory import may_want_bytes, says_out_of_memory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it, or what it was raised from, says so; call it before memory is given back to the device.

    Where its words may mean something else as well, what the device has free decides.
    """
    cause = error.__cause__
    return _is(error) or (cause is not None and is_out_of_memory(cause))


def _is(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    return says_out_of_memory(str(error)) or _is_for_want_of_memory(str(error))


def _is_for_want_of_memory(text: str) -> bool:
    wanted = may_want_bytes(text)
    if wanted is None or not torch.cuda.is_initialized():
        return False
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError:  # an earlier error has ended the context: every call fails, whatever is free
        return False
    return free <= wanted

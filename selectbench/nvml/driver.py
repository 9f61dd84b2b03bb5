"""Talking to the driver's management library (NVML), which creates no CUDA context: a process stays fit to fork."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

_NO_ANSWER: tuple[type[Exception], ...] = (
    pynvml.NVMLError,
    # Newer bindings' way to say that the driver is too old for a call's current version.
    getattr(pynvml, "NVMLLibraryMismatchError", pynvml.NVMLError),
)


@contextmanager
def started() -> Iterator[None]:
    """The library is loaded inside. Raises pynvml.NVMLError where there is no driver."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def problem() -> str | None:
    """Why NVML cannot be asked, in the driver's words, or None where it can."""
    try:
        with started():
            return None
    except pynvml.NVMLError as error:
        return str(error)


def board_of(handle: Any) -> Any:
    """The whole GPU behind a MIG slice; the handle itself where it is no slice."""
    parent = ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle)
    return handle if parent is None else parent


def ask(call: Callable[..., Any], *arguments: Any) -> Any | None:
    """The answer, or None where this GPU or this driver has none."""
    try:
        answer = call(*arguments)
    except _NO_ANSWER:
        return None
    return tuple(answer) if isinstance(answer, list) else answer

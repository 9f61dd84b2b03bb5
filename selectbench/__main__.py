"""The process: runs the command line and turns what escapes it into an exit status."""

from __future__ import annotations

import errno
import gc
import io
import os
import select
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from selectbench.errors import ExitCode, UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

COLLECT_EVERY = 500_000
"""Objects that hold others, more made than let go of, between two searches for those that hold each other.

Of 10,000 trials 290,000 are kept, and none of them in a circle: to search them again and again, as Python does
after every 700, takes more than a quarter of the time of `report` and `compare`
(tests/benchmarks/test_report_benchmark.py).
"""
MOST_OF_A_PROBLEM = 1000
"""Characters of a line that says what is wrong."""


def main() -> NoReturn:
    """Entry point of the console script."""
    gc.set_threshold(COLLECT_EVERY)
    output, errors = _Output(sys.stdout or _nowhere()), _Output(sys.stderr or _nowhere())
    sys.stdout, sys.stderr = output.stream, errors.stream
    status = _run()
    output.stream.flush()
    if (lost := output.problem) is not None and not isinstance(lost, BrokenPipeError):
        print(f"cannot write the output: {lost.strerror}; what was run is kept", file=sys.stderr)
        status = ExitCode.USER_ERROR if status is None else status
    errors.stream.flush()
    # As it is: to let go of what was read and imported takes time, and serves nobody.
    os._exit(ExitCode.OK if status is None else status)


def _nowhere() -> TextIO:
    """In place of a stream that was closed (`>&-`), on its descriptor: no file of ours gets that."""
    return Path(os.devnull).open("w", encoding="utf-8")


class _Output(io.RawIOBase):
    """Standard output or error, of which a command never hears that it cannot be written.

    Its exit status is its verdict, whoever reads along: `selectbench gate ... | head -1` passes as it does without.
    What the encoding lacks is written as escapes.
    """

    def __init__(self, stream: Any) -> None:
        self._under = stream  # which would close its file if it were gone
        self._raw: io.RawIOBase = getattr(stream.buffer, "raw", stream.buffer)  # under `python -u` without a buffer
        self.problem: OSError | None = None
        """The first; nothing is written any more."""
        self.stream = io.TextIOWrapper(
            io.BufferedWriter(self), encoding=stream.encoding, errors="backslashreplace",
            line_buffering=stream.line_buffering or stream.write_through,
        )  # fmt: skip

    def write(self, data: ReadableBuffer, /) -> int:
        """All of it, and where that fails none of it and of what follows."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left and self.problem is None:
            try:
                written = self._raw.write(left)
                if written is None:  # whoever shares the pipe's end made it one that does not wait
                    select.select([], [self._raw], [])
                left = left[written or 0 :]
            except OSError as error:
                self.problem = error
        return size

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._raw.isatty()

    def fileno(self) -> int:
        """Its descriptor."""
        return self._raw.fileno()


def _run() -> ExitCode | None:
    """The command's exit status; None: it went to its end, and its output is all that it had to give."""
    try:
        from selectbench.cli import app

        app()
    except SystemExit as end:  # as typer ends every command
        if isinstance(end.code, ExitCode):
            return end.code
        # Typer's own: 2 is wrong use, and any other an answer or a key that ended the command.
        return _TYPERS.get(end.code, ExitCode.INTERRUPTED)
    except UserError as error:
        from selectbench.text import visible

        for line in str(error).split("\n"):
            print(visible(line, MOST_OF_A_PROBLEM), file=sys.stderr)
        return ExitCode.USER_ERROR
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            name = f"{error.filename}: " if error.filename else ""
            print(f"{name}cannot write: {error.strerror}; what was run is kept", file=sys.stderr)
            return ExitCode.USER_ERROR
        traceback.print_exc()
        print("selectbench: this is a bug of selectbench's own; the records so far are kept.", file=sys.stderr)
        return ExitCode.OWN_BUG
    return None


_TYPERS: dict[object, ExitCode | None] = {None: None, 0: None, 2: ExitCode.USER_ERROR}


if __name__ == "__main__":
    main()

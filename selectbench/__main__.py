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
"""Growth in container objects between two runs of Python's garbage collector.

10,000 trials make 290,000 such objects without a cycle: collecting after every 700, as Python does, takes more than
a quarter of the time of `report` and `compare` (tests/benchmarks/test_report_benchmark.py).
"""
LONGEST_PROBLEM_LINE = 1000
"""Characters of a line of an error message."""


def main() -> NoReturn:
    """Entry point of the console script."""
    gc.set_threshold(COLLECT_EVERY)
    output, errors = _Output(sys.stdout or _nowhere()), _Output(sys.stderr or _nowhere())
    sys.stdout, sys.stderr = output.stream, errors.stream
    status = _run()
    output.stream.flush()
    if (problem := output.problem) is not None and not isinstance(problem, BrokenPipeError):
        print(f"cannot write the output: {problem.strerror}; what was run is kept", file=sys.stderr)
        status = ExitCode.USER_ERROR if status is None else status
    errors.stream.flush()
    # Without tearing the interpreter down, which takes time and serves nobody.
    os._exit(ExitCode.OK if status is None else status)


def _nowhere() -> TextIO:
    """Stands for a stream that was closed (`>&-`), on its descriptor, so that no other file gets that."""
    return Path(os.devnull).open("w", encoding="utf-8")


class _Output(io.RawIOBase):
    """Standard output or error for commands, which get no exception where it cannot be written.

    So the exit status stays the verdict, whoever reads the output: `selectbench gate ... | head -1` passes as it
    does without the pipe. Characters that the encoding lacks are written as escapes.
    """

    def __init__(self, stream: Any) -> None:
        self._original = stream  # kept, as its file would be closed with it
        self._raw: io.RawIOBase = getattr(stream.buffer, "raw", stream.buffer)  # under `python -u` without a buffer
        self.problem: OSError | None = None
        """The first failure, after which nothing is written."""
        self.stream = io.TextIOWrapper(
            io.BufferedWriter(self), encoding=stream.encoding, errors="backslashreplace",
            line_buffering=stream.line_buffering or stream.write_through,
        )  # fmt: skip

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of the data; after a failure nothing more is written. Always returns the data's size."""
        remaining = memoryview(data).cast("B")
        size = len(remaining)
        while remaining and self.problem is None:
            try:
                written = self._raw.write(remaining)
                if written is None:  # another process with this end of the pipe made it non-blocking
                    select.select([], [self._raw], [])
                remaining = remaining[written or 0 :]
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
    """Run the command; its exit status, None: it ran to its end, and its output is its result."""
    try:
        from selectbench.cli import app

        app()
    except SystemExit as end:  # as typer ends every command
        if isinstance(end.code, ExitCode):
            return end.code
        # Typer's status: 2 is wrong use, any other an answer or a key that ended the command.
        return _STATUS_OF_TYPER.get(end.code, ExitCode.INTERRUPTED)
    except UserError as error:
        for line in str(error).split("\n"):
            print(problem_shown(line), file=sys.stderr)
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


def problem_shown(problem: str) -> str:
    """A line of an error message; on a terminal it is broken between words, elsewhere it stays one line."""
    import shutil
    import textwrap

    from selectbench.text import visible

    line = visible(problem, LONGEST_PROBLEM_LINE)
    if not sys.stderr.isatty():
        return line
    width = max(20, shutil.get_terminal_size().columns)
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


_STATUS_OF_TYPER: dict[object, ExitCode | None] = {None: None, 0: None, 2: ExitCode.USER_ERROR}


if __name__ == "__main__":
    main()

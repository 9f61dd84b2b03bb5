"""The process: runs the command line and turns what escapes it into an exit status."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn, TextIO

from selectbench.errors import ExitCode, UserError

COLLECT_EVERY = 500_000
"""Objects that hold others, more made than let go of, between two searches for those that hold each other.

Of 10,000 trials 290,000 are kept, and none of them in a circle: to search them again and again, as Python does
after every 700, takes more than a quarter of the time of `report` and `compare`
(tests/benchmarks/test_report_benchmark.py).
"""


def main() -> NoReturn:
    """Entry point of the console script."""
    gc.set_threshold(COLLECT_EVERY)
    sys.stdout, sys.stderr = _takes_all(sys.stdout), _takes_all(sys.stderr)
    _leave(_run())


def _takes_all(stream: TextIO | None) -> TextIO:
    """The stream, with what its encoding lacks written as escapes; one to nowhere if it was closed (`>&-`)."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")  # on the closed descriptor: no file of ours gets it
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _run() -> int:
    """The command's exit status."""
    try:
        from selectbench.cli import app

        app()
    except SystemExit as end:  # as typer ends every command
        return end.code if isinstance(end.code, int) else ExitCode.OK
    except UserError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return ExitCode.USER_ERROR
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _no_room(error)
        traceback.print_exc()
        print("selectbench: this is a bug of selectbench's own; the records so far are kept.", file=sys.stderr)
        return ExitCode.OWN_BUG
    return ExitCode.OK


def _no_room(error: OSError) -> int:
    """Files of ours are told of where they are written: this is the output."""
    print(f"cannot write the output: {error.strerror}; what was run is kept", file=sys.stderr)
    return ExitCode.USER_ERROR


def _reader_left() -> int:
    """`selectbench report RUN | head`: the reader has what it wanted."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.OK


def _leave(status: int) -> NoReturn:
    """Ends the process as it is: to let go of what was read and imported takes time, and serves nobody."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _reader_left()
    except OSError as error:
        status = _no_room(error)
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()

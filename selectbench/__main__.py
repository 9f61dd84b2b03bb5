"""The process: runs the command line and turns what escapes it into an exit status."""

from __future__ import annotations

import gc
import os
import sys
import traceback

from selectbench.errors import ExitCode, UserError

_COLLECT_AFTER = 200_000
"""Objects between two looks for cycles: thousands of records are read at once, and hold none."""


def main() -> None:
    """Entry point of the console script."""
    gc.set_threshold(_COLLECT_AFTER)
    try:
        from selectbench.cli import app

        app()
    except UserError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(ExitCode.USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # `selectbench report RUN | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)
    except Exception:
        traceback.print_exc()
        print("selectbench: this is a bug of selectbench's own; the records so far are kept.", file=sys.stderr)
        sys.exit(ExitCode.OWN_BUG)


if __name__ == "__main__":
    main()

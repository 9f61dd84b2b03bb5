"""selectbench: the same training job under each choice, measured on your own machine.

In Python and notebooks, `run` and `plan` take a suite file, a shipped suite's name, YAML text or a mapping, and
`load` and `compare` take runs, by their folders or as `SUITE@latest`. Mistakes are selectbench.errors.UserError.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selectbench.interface import compare, load, plan, run

__all__ = ["compare", "load", "plan", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports each function when it is used, as their imports would slow every command down."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("selectbench.interface"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "errors"]

"""Importing `package.module:Name` from the suite's folders of own code, or from what is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selectbench.errors import did_you_mean

_folders: list[str] = []
"""What `add_to_path` put on the path, for messages; a trial's process has one suite."""


class OwnCodeError(RuntimeError):
    """A name of the suite that leads to no module, or to nothing in it; one line, ready to print."""


def add_to_path(folders: Sequence[str]) -> None:
    """Puts the suite's folders of own code first on the path, in their order.

    A file stands for its folder. A folder that is itself a package (it has an `__init__.py`) stands for the
    folder around it, from which the package is imported.
    """
    roots = [str(_import_root(Path(folder))) for folder in folders]
    _folders[:] = list(dict.fromkeys(roots))
    sys.path[:] = [*_folders, *(entry for entry in sys.path if entry not in _folders)]
    invalidate_caches()


def _import_root(path: Path) -> Path:
    folder = path.parent if path.is_file() else path
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def load(name: str, setting: str = "own code") -> Any:
    """What `package.module:Name` or `package.module:Class.method` names; `setting` is the key that named it.

    Raises OwnCodeError where there is no such module or attribute, or where the module lacks another that it
    imports: an ImportError would say that the machine lacks what selectbench needs. Whatever else the module
    raises while it is imported passes with its own traceback.
    """
    module_name, _, attributes = name.partition(":")
    try:
        found = import_module(module_name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and _is_part_of(error.name, module_name):
            raise OwnCodeError(_no_module(f"{setting} {name}", module_name, error.name or module_name)) from None
        raise OwnCodeError(f"{setting} {name}: importing {module_name}: {error}") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise OwnCodeError(_no_attribute(f"{setting} {name}", found, attribute))
        found = getattr(found, attribute)
    return found


def _is_part_of(missing: str | None, module_name: str) -> bool:
    """Whether what was not found is the module asked for or a package around it, not something it imports."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def _no_module(subject: str, module_name: str, missing: str) -> str:
    inside, _, last = missing.rpartition(".")
    return f"{subject}: there is no module {missing}{_near_module(inside, last)} {_where(module_name)}"


def _near_module(package: str, name: str) -> str:
    spec = find_spec(package) if package else None
    folders = (spec.submodule_search_locations if spec else None) if package else _folders
    # A folder without an `__init__.py` is a package too.
    names = [p.stem for f in folders or () for p in Path(f).iterdir() if p.is_dir() or p.suffix == ".py"]
    return did_you_mean(name, names)


def _where(module_name: str) -> str:
    top = module_name.partition(".")[0]
    if around := next((Path(f).parent for f in _folders if Path(f).name == top), None):
        return (
            f"in {', '.join(_folders)}: to import {top} as a package, name the folder around it, code: [{around}]"
        )
    if _folders:
        return f"in {', '.join(_folders)} (the suite's `code`), nor is it installed"
    return "installed, and the suite has no `code: [folder]`"


def _no_attribute(subject: str, owner: Any, attribute: str) -> str:
    names = [word for word in vars(owner) if not word.startswith("_")] if hasattr(owner, "__dict__") else []
    place = getattr(owner, "__file__", None) or getattr(owner, "__qualname__", None) or type(owner).__name__
    hint = did_you_mean(attribute, names) or (f" (it has {', '.join(names[:8])})" if names else "")
    return f"{subject}: {place} has no {attribute}{hint}"

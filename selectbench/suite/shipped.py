"""The suites that come with selectbench, and where a suite is found by path or name."""

from __future__ import annotations

from pathlib import Path

import selectbench
from selectbench.errors import UserError, did_you_mean

TEMPLATE = Path(__file__).parent / "template.yaml"


def folder() -> Path:
    """The folder of the shipped suites: inside an installed package, at the top of a checkout."""
    package = Path(selectbench.__file__).parent
    installed = package / "suites"
    return installed if installed.is_dir() else package.parent / "suites"


def names() -> list[str]:
    """The shipped suites' names, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def find(reference: str) -> Path:
    """The file that a path or a shipped suite's name means. Raises UserError where there is none."""
    path = Path(reference)
    if path.is_file():
        return path
    if reference in names():
        return folder() / f"{reference}.yaml"
    if path.is_dir():
        inside = path / "suite.yaml"
        raise UserError(f"{reference}: is a folder" + (f" (did you mean '{inside}'?)" if inside.is_file() else ""))
    if path.exists():
        raise UserError(f"{reference}: is not a regular file")
    hint = did_you_mean(path.stem, names()) or f" (shipped suites: {', '.join(names())})"
    raise UserError(f"{reference}: there is no such file or shipped suite{hint}")


def template(name: str | None = None) -> str:
    """The text of a commented suite to start from: a shipped one, or a general one. Raises UserError."""
    if name is None:
        return TEMPLATE.read_text(encoding="utf-8")
    if name not in names():
        hint = did_you_mean(name, names()) or f" (shipped: {', '.join(names())})"
        raise UserError(f"--from {name}: there is no shipped suite of that name{hint}")
    return (folder() / f"{name}.yaml").read_text(encoding="utf-8")

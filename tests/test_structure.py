"""The package stays a thing that one person can hold in their head."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from structure import Structure, broken_links, figures, structure

ROOT = Path(__file__).parents[1]
LIMITS = {"files": 110, "lines": 41_310, "deepest chain of imports": 20}
"""What is reached; they may only be lowered."""


@pytest.fixture(scope="module")
def found() -> Structure:
    return structure(ROOT)


def test_imports_run_in_no_circle(found: Structure) -> None:
    assert found.circle() == []


def test_it_grows_no_further(found: Structure) -> None:
    now = figures(found)
    assert {name: now[name] for name in LIMITS if now[name] > LIMITS[name]} == {}


def test_the_way_from_the_command_to_the_first_step_is_the_one_that_is_listed(found: Structure) -> None:
    assert broken_links(found) == []


def defined(tree: ast.Module) -> set[str]:
    """Functions and classes of a module, methods as `Class.method`."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def test_what_the_architecture_names_is_there(found: Structure) -> None:
    """The way from the command to the first step, and every other function that is named with its module."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`", text):
        parts = name.split(".")
        modules = [n for n in range(1, len(parts) + 1) if f"selectbench.{'.'.join(parts[:n])}" in found.modules]
        if not modules:
            continue
        rest = ".".join(parts[modules[-1] :])
        module = found.modules[f"selectbench.{'.'.join(parts[: modules[-1]])}"]
        assert not rest or rest in defined(module.tree), name

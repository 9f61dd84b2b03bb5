"""The shape of the package as figures: `python tests/structure.py [FOLDER]` prints them, to hold a change against.

FOLDER is a checkout; this one where it is not given. Imports inside functions count as any other, those for type
checking alone do not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

PACKAGE = "selectbench"
WAY = (
    "cli.run",
    "launch.run.run", "launch.run._run_stages", "launch.run._run_stage", "launch.run.Bench.run",
    "launch.run.Bench._attempt",
    "launch.trial.TrialRunner.run", "launch.trial.TrialServer.submit",
    "~worker.server.Server._take_request", "worker.server.Server._fork", "worker.server.run_order",
    "worker.trial.run_trial", "worker.trial.run_rank",
    "~worker.loop.train", "worker.loop.train_with_engine", "worker.loop.OptimizerStep.run",
)  # fmt: skip
"""From the command to the first optimizer step, each called by the one before it; `~`: reached through a message to
another process, or by a name that a choice has as a string."""


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax."""
        return ast.parse(self.source)

    @cached_property
    def lines(self) -> int:
        """All of them."""
        return self.source.count("\n")

    @cached_property
    def blank_lines(self) -> int:
        """Lines of nothing, in docstrings too."""
        return sum(not line.strip() for line in self.source.splitlines())

    @cached_property
    def docstring_lines(self) -> int:
        """Lines of texts that stand alone, such as those under a field."""
        texts = [node for node in ast.walk(self.tree) if isinstance(node, ast.Expr) and _is_text(node.value)]
        return sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in texts)


@dataclass(frozen=True)
class Structure:
    """The package's modules and who imports whom."""

    modules: dict[str, Module]

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """By module, the modules of the package that it imports."""
        return {name: set(self._imported(module)) - {name} for name, module in self.modules.items()}

    def _imported(self, module: Module) -> Iterator[str]:
        for node in _running(module.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in self.modules)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                named = {f"{node.module}.{alias.name}" for alias in node.names}
                yield from named & self.modules.keys()
                if named - self.modules.keys() and node.module in self.modules:
                    yield node.module

    @cached_property
    def importers(self) -> dict[str, set[str]]:
        """By module, who imports it."""
        return {name: {other for other, known in self.imports.items() if name in known} for name in self.modules}

    def circle(self) -> list[str]:
        """The modules of some circle of imports, in order; empty where there is none."""
        done: set[str] = set()
        for start in self.modules:
            found = self._circle_from(start, [], done)
            if found:
                return found
        return []

    def _circle_from(self, name: str, way: list[str], done: set[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(self.imports[name]):
            found = self._circle_from(other, [*way, name], done)
            if found:
                return found
        done.add(name)
        return []

    @cached_property
    def deepest(self) -> list[str]:
        """The longest chain of imports, the importer first. Raises ValueError where they run in a circle."""
        if circle := self.circle():
            raise ValueError(f"imports run in a circle: {' > '.join(circle)}")
        chains: dict[str, list[str]] = {}
        return max((self._chain(name, chains) for name in self.modules), key=len)

    def _chain(self, name: str, known: dict[str, list[str]]) -> list[str]:
        if name not in known:
            below = (self._chain(other, known) for other in sorted(self.imports[name]))
            known[name] = [name, *max(below, key=len, default=[])]
        return known[name]


def function(found: Structure, name: str) -> ast.FunctionDef | None:
    """The function or method of a name such as `launch.run.Bench.run`; None: there is none."""
    file = _file_of(found, name)
    node: ast.AST | None = found.modules[file].tree
    for part in f"{PACKAGE}.{name}".removeprefix(f"{file}.").split("."):
        inside = [n for n in getattr(node, "body", []) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        node = next((n for n in inside if n.name == part), None)
    return node if isinstance(node, ast.FunctionDef) else None


def _file_of(found: Structure, name: str) -> str:
    """The innermost module or package that a name is in."""
    return max((module for module in found.modules if f"{PACKAGE}.{name}".startswith(f"{module}.")), key=len)


def broken_links(found: Structure) -> list[str]:
    """What is wrong with the way to the first step: functions that are not there, calls that are not made."""
    steps = {name: function(found, name.lstrip("~")) for name in WAY}
    problems = [f"{name} is not there" for name, step in steps.items() if step is None]
    for caller, called in pairwise(WAY):
        step = steps[caller]
        if step is not None and not called.startswith("~") and called.rpartition(".")[2] not in _uses(step):
            problems.append(f"{caller} does not call {called}")
    return problems


def _uses(step: ast.FunctionDef) -> set[str]:
    """Names that a function uses, by those under which they are defined where it imports them itself."""
    imports = [node for node in ast.walk(step) if isinstance(node, ast.ImportFrom)]
    own_names = {alias.asname: alias.name for node in imports for alias in node.names if alias.asname}
    names = {node.id for node in ast.walk(step) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(step) if isinstance(node, ast.Attribute)}
    return {own_names.get(name, name) for name in names}


def structure(checkout: Path) -> Structure:
    """Of the package in a checkout."""
    root = checkout / PACKAGE
    paths = {path: path.relative_to(checkout).with_suffix("").parts for path in sorted(root.rglob("*.py"))}
    names = {path: ".".join(parts).removesuffix(".__init__") for path, parts in paths.items()}
    return Structure({name: Module(name, path.read_text(encoding="utf-8")) for path, name in names.items()})


def figures(found: Structure) -> dict[str, int]:
    """What the table shows."""
    modules = found.modules.values()
    lines, blank, texts = (
        sum(getattr(module, what) for module in modules) for what in ("lines", "blank_lines", "docstring_lines")
    )
    return {
        "files": len(found.modules),
        "lines": lines,
        "lines of docstrings": texts,
        "blank lines": blank,
        "imports between files": sum(map(len, found.imports.values())),
        "files with one importer": sum(len(importers) == 1 for importers in found.importers.values()),
        "deepest chain of imports": len(found.deepest) if not found.circle() else 0,
        "files to the first step": len({_file_of(found, name.lstrip("~")) for name in WAY}),
        "calls to the first step": len(WAY) - 1,
    }


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, but what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def main() -> None:
    """Prints the table, a line for each package, and what is in the way of a depth."""
    checkout = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    found = structure(checkout)
    for what, figure in figures(found).items():
        print(f"{what:28}{figure:>8,}")
    packages: dict[str, list[Module]] = {}
    for module in found.modules.values():
        parts = module.name.split(".")
        is_package = any(name.startswith(f"{module.name}.") for name in found.modules)
        packages.setdefault(parts[1] if len(parts) > 2 or (is_package and len(parts) > 1) else "", []).append(
            module
        )
    for package, modules in packages.items():
        print(f"  {package or '(top)':26}{sum(m.lines for m in modules):>8,} lines in {len(modules)} files")
    for problem in broken_links(found):
        print(f"the way to the first step: {problem}")
    circle = found.circle()
    print("circle: " + " > ".join(circle) if circle else "deepest: " + " > ".join(found.deepest))


if __name__ == "__main__":
    main()

"""Lets a training command be observed: Python imports this file by itself where PYTHONPATH leads to its folder.

Without the environment's SELECTBENCH_OBSERVE it only passes on to another `sitecustomize`, if there is one. With it
the observer is installed once torch has been imported; a process without torch pays nothing.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  pathlib costs every process 10 ms


class AfterTorch:
    """Stands first among the finders of modules until torch is asked for."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """None for every module but torch, whose specification it returns with the observer behind its import."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        from importlib.util import find_spec

        spec = find_spec("torch")
        if spec is None or spec.loader is None:
            return spec
        loader, load = spec.loader, spec.loader.exec_module

        def load_then_observe(module: object) -> None:
            del loader.exec_module  # the loader's own method again, as whoever looks at it expects
            load(module)  # type: ignore[arg-type]
            try:
                import selectbench_observer

                selectbench_observer.install()
            except Exception as error:
                print(f"selectbench: the observer could not be installed: {error!r}", file=sys.stderr)

        loader.exec_module = load_then_observe  # type: ignore[method-assign]
        return spec


def pass_on() -> None:
    """Runs the `sitecustomize` that Python would have found without this one; what it raises is its own."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    others = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]  # noqa: PTH100
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if os.environ.get("SELECTBENCH_OBSERVE"):
    sys.meta_path.insert(0, AfterTorch())  # type: ignore[arg-type]
pass_on()

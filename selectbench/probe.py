"""Tells selectbench which model a script trains, for scripts whose training it can't find by itself.

This file needs nothing but Python and may be copied into a repository. Outside an observed run it does nothing.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def watch(model: Any, optimizer: Any, forward: str = "logits") -> None:
    """Watch the training of `model` by `optimizer`; call it once both are made, before the first step.

    `forward`: the name of the model's method that takes tokens and returns logits, for a script that calls it
    directly; a model without that method is watched as it is called itself.
    """
    if not os.environ.get("SELECTBENCH_OBSERVE"):
        return
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    matches = [folder for folder in folders if os.path.exists(os.path.join(folder, "selectbench_observer.py"))]  # noqa: PTH110, PTH118
    sys.path.extend(folder for folder in matches[:1] if folder not in sys.path)
    try:
        import selectbench_observer
    except ImportError as error:
        print(f"selectbench: the observer is not to be found: {error}", file=sys.stderr)
        return
    if (observer := selectbench_observer.install()) is not None:
        observer.guarded(observer.watch, model, optimizer, forward)

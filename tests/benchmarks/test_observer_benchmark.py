"""What being observed costs a training loop: the same loop, step by step, with the observer and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import selectbench

OBSERVE = Path(selectbench.__file__).parent / "observe"
SCRIPT = """
import sys, time
import torch
import torch.nn.functional as F
width, layers, rows, steps = map(int, sys.argv[1:])
torch.manual_seed(0)
torch.set_num_threads(1)
parts = [torch.nn.Embedding(2048, width)]
for _ in range(layers):
    parts += [torch.nn.Linear(width, width), torch.nn.ReLU()]
model = torch.nn.Sequential(*parts, torch.nn.Linear(width, 2048))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
batch = torch.randint(0, 2048, (rows, 129))
observer = sys.modules.get("selectbench_observer")
for pair in range(-2, steps):
    seconds = {}
    for observed in ((True, False) if pair % 2 else (False, True)):
        if observer is not None:
            observer._observer.passive = not observed and pair >= 0
        start = time.perf_counter()
        logits = model(batch[:, :-1])
        F.cross_entropy(logits.reshape(-1, 2048), batch[:, 1:].reshape(-1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds[observed] = time.perf_counter() - start
    if pair >= 0:
        print(seconds[True], seconds[False])
"""


@pytest.mark.parametrize(("shape", "pairs"), [((128, 2, 4), 300), ((256, 6, 20), 60)])
def test_what_being_observed_costs(benchmark: Any, tmp_path: Path, shape: tuple[int, ...], pairs: int) -> None:
    """Steps in pairs, one observed, one passed on, in one process: what disturbs one disturbs the other as well."""
    wanted = {"folder": str(tmp_path / "out"), "max_steps": 10**6, "stop": "natural_end", "heldout": None}
    (tmp_path / "observe.json").write_text(json.dumps(wanted))
    own = {**os.environ, "PYTHONPATH": str(OBSERVE), "SELECTBENCH_OBSERVE": str(tmp_path / "observe.json")}
    command = [sys.executable, "-c", SCRIPT, *map(str, shape), str(pairs)]
    done = benchmark.pedantic(
        lambda: subprocess.run(command, env=own, capture_output=True, text=True, check=True), rounds=1, iterations=1
    )
    more = [a - b for a, b in (map(float, line.split()) for line in done.stdout.splitlines())]
    step = median(float(line.split()[1]) for line in done.stdout.splitlines())
    # Two pairs together hold both orders, so that what comes first is no longer in it.
    cost = median((one + two) / 2 for one, two in zip(more[::2], more[1::2], strict=True))
    benchmark.extra_info.update(step_seconds=step, more_seconds_median=cost)
    print(f"\na step of {1e3 * step:.1f} ms takes {1e3 * cost:.3f} ms more ({100 * cost / step:.2f} %)")

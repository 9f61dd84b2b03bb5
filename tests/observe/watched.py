"""Training scripts run in processes of their own, with the observer and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forking

import selectbench

OBSERVE = Path(selectbench.__file__).parent / "observe"
SCRIPTS = Path(__file__).parent / "scripts"
HELD_OUT = [(7 * number * number + number // 3) % 64 for number in range(330)]


@dataclass
class Run:
    """What a script printed, and what was observed of it, by rank."""

    status: int
    output: str
    ranks: dict[int, list[dict[str, Any]]]

    def all(self, event: str, rank: int = 0) -> list[dict[str, Any]]:
        """Every event of a name."""
        return [line for line in self.ranks.get(rank, []) if line["event"] == event]

    def one(self, event: str, rank: int = 0) -> dict[str, Any]:
        """The only event of a name."""
        (line,) = self.all(event, rank)
        return line

    def printed(self, what: str) -> list[str]:
        """Lines of the script's own that begin so."""
        return [line for line in self.output.splitlines() if line.startswith(what)]


def run(
    folder: Path, *arguments: str, script: str | Path = "plain.py", observed: bool = True, ranks: int = 1,
    python: tuple[str, ...] = (), environment: dict[str, str] | None = None, seconds: float = 240,
    forked: bool = False, **settings: Any,
) -> Run:  # fmt: skip
    """Run a script of `scripts/`; `settings` are those of the observer.

    `forked`: in a process forked where torch has been imported, which saves seconds; else in a Python of its own,
    as a user starts it, which imports it, and the observer with it.
    """
    out, own = folder / "observed", dict(os.environ)
    own.pop("SELECTBENCH_OBSERVE", None)
    paths = [str(SCRIPTS), str(OBSERVE.parent)]
    if observed:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "heldout.bin").open("wb") as file:
            array("q", HELD_OUT).tofile(file)
        wanted = {
            "folder": str(out), "max_steps": 6, "stop": "at_max_steps", "heldout": str(folder / "heldout.bin"),
            "heldout_tokens": len(HELD_OUT), "seq_len": None, **settings,
        }  # fmt: skip
        (folder / "observe.json").write_text(json.dumps(wanted))
        own["SELECTBENCH_OBSERVE"] = str(folder / "observe.json")
        paths.insert(0, str(OBSERVE))
    own |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    own |= environment or {}
    path = SCRIPTS / script
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", "0"]
    standalone = [*launcher, "--standalone"] if ranks > 1 else []
    folder.mkdir(parents=True, exist_ok=True)
    if forked:
        assert not standalone
        assert not python
        done = forking.run(forking.SCRIPTS, [str(path), *arguments], folder, own, seconds)
    else:
        done = subprocess.run(
            [sys.executable, *python, *standalone, str(path), *arguments], env=own, cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False,
        )  # fmt: skip
    files = sorted(out.glob("*.jsonl"))
    lines = {int(f.name.split("-")[0]): [json.loads(line) for line in f.read_text().splitlines()] for f in files}
    assert len(lines) == len(files), [file.name for file in files]
    return Run(done.returncode, done.stdout + (done.stderr or ""), lines)

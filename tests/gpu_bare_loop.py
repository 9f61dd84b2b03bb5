"""Our loop beside a bare one, in pairs of whole runs: `python tests/gpu_bare_loop.py --results DIR`.

GPT-2 of 124M parameters, 16 x 1024 tokens a step, bf16 autocast, fused AdamW, clipping, compiled: as a loop of
nanoGPT's kind (`bare_loop`), and as a suite that `selectbench run` trains. Each run has processes and compiler
caches of its own; every other pair begins with the bare one. Told is the median of the pairs' ratios of tokens per
second, which is to be 0.98 or more, and their spread. Each pair is kept in DIR/bare_loop.json as soon as it is
done, so that what is broken off goes on where it was: `--at-most 1` makes one pair and ends, and the exit status
says whether pairs are left. `--tiny` is the same on any machine, at a size that shows that it works and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bare_loop import FULL, TINY, Size  # noqa: E402  # noqa: E402

AIM, PAIRS = 0.98, 5
PROBE = """
import json, torch
there = torch.cuda.is_available()
name = torch.cuda.get_device_name(0) if there else "cpu"
bf16 = there and torch.cuda.get_device_capability(0) >= (8, 0)
print(json.dumps({"torch": torch.__version__, "device": name, "bf16": bf16}))
"""
ALL_AS_EXPECTED, TO_BE_EXPLAINED, NO_GPU, PAIRS_ARE_LEFT = range(4)


def suite_of(size: Size, tokens: Path) -> dict[str, Any]:
    """A suite of one option: what a user would write for this job."""
    return {
        "name": "bare_loop", "question": "How fast is our loop beside a bare one?",
        "job": {
            "model": {"family": "gpt2", "n_layer": size.n_layer, "n_embd": size.n_embd, "n_head": size.n_head,
                      "vocab_size": size.vocab_size},
            "data": {"tokens": str(tokens), "vocab_size": size.vocab_size}, "seq_len": size.seq_len,
            "global_batch_size": size.sequences, "max_steps": size.warmup_steps + size.timed_steps,
            "eval": "none", "timing": {"warmup_steps": size.warmup_steps},
            "lr_schedule": {"name": "cosine", "warmup_steps": size.warmup_steps},
        },
        "choices": {
            "optimizer": {"name": "adamw", "lr": size.lr, "weight_decay": size.weight_decay},
            "precision": "bf16_mixed", "compile": "default", "micro_batch_size": size.sequences,
        },
        "options": {"ours": {}}, "baseline": "ours", "seeds": [0],
    }  # fmt: skip


def ours(size: Size, tokens: Path, results: Path) -> float:
    """Tokens per second as the report has them. Raises RuntimeError where the run brings none."""
    from selectbench.launch.publish import read_run

    path = tokens.with_name("suite.yaml")
    path.write_text(json.dumps(suite_of(size, tokens)))  # JSON is YAML
    command = [sys.executable, "-m", "selectbench", "run", str(path), "--results", str(results), "--fresh"]
    command += [] if "CUDA_VISIBLE_DEVICES" in os.environ or not _sees_a_gpu() else ["--gpus", "0"]
    before, environment = _runs(results), {**_environment(), "SELECTBENCH_CACHE": str(tokens.with_name("cache"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    if not (new := _runs(results) - before):
        raise RuntimeError(f"selectbench run left no run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    (row,) = read_run(new.pop()).ranking().rows
    speed = row.metrics["tokens_per_second"].value
    if speed is None:
        raise RuntimeError(f"selectbench run failed: {[failure.detail for failure in row.failures]}")
    return speed


def _runs(results: Path) -> set[Path]:
    return set((results / "bare_loop").glob("*Z-*"))


def bare(size: Size, tokens: Path) -> float:
    """Tokens per second of a process of its own. Raises RuntimeError where it fails."""
    with tempfile.TemporaryDirectory() as cache:
        own = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
        first = {} if "CUDA_VISIBLE_DEVICES" in os.environ else {"CUDA_VISIBLE_DEVICES": "0"}
        command = [sys.executable, str(ROOT / "tests" / "bare_loop.py"), size.name, str(tokens)]
        done = subprocess.run(
            command, env={**_environment(), **own, **first}, check=False, capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(f"the bare loop failed: {done.stderr[-4000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["tokens_per_second"])


@dataclass
class Kept:
    """The pairs that were made of one size on one machine, in a file."""

    path: Path
    facts: dict[str, Any]
    """What must be the same for pairs to belong together."""
    pairs: list[dict[str, Any]]

    @classmethod
    def open(cls, path: Path, facts: dict[str, Any]) -> Kept:
        """Goes on with the file's pairs where they are of the same facts."""
        content = json.loads(path.read_text()) if path.exists() else {}
        return cls(path, facts, content["pairs"] if content.get("facts") == facts else [])

    def add(self, pair: dict[str, Any]) -> None:
        """Kept at once."""
        self.pairs.append(pair)
        content = {"facts": self.facts, "pairs": self.pairs, "median_ratio": median(self.ratios), "aim": AIM}
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(self.path)

    @property
    def ratios(self) -> list[float]:
        """Ours over the bare loop's, a pair each."""
        return [pair["ours"] / pair["bare"] for pair in self.pairs]


def make_pair(kept: Kept, size: Size, results: Path) -> None:
    """Two whole runs, one after the other, the order turned with each pair."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.bin"
        length = 8 * (size.warmup_steps + size.timed_steps) * size.tokens_per_step // 4
        np.random.default_rng(0).integers(0, size.vocab_size, length).astype(np.uint16).tofile(tokens)
        runs = {"ours": lambda: ours(size, tokens, results), "bare": lambda: bare(size, tokens)}
        order = ["ours", "bare"] if len(kept.pairs) % 2 == 0 else ["bare", "ours"]
        kept.add({name: runs[name]() for name in order} | {"first": order[0]})


def facts_of(size: Size) -> dict[str, Any]:
    """Of the machine, asked in a process of its own, so that this one holds no memory of the GPU."""
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return {"size": asdict(size), **told}


def _sees_a_gpu() -> bool:
    return facts_of(TINY)["device"] != "cpu"


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def main(arguments: list[str] | None = None) -> int:
    """0: as fast as it is to be; 1: slower, to be explained; 2: there is no GPU with bf16; 3: pairs are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where runs are kept")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="in all (default: %(default)s)")
    parser.add_argument("--at-most", type=int, metavar="N", help="new pairs in this call")
    parser.add_argument("--tiny", action="store_true", help="a size for any machine, which shows nothing of speed")
    chosen = parser.parse_args(arguments)
    size = TINY if chosen.tiny else FULL
    facts = facts_of(size)
    if not facts["bf16"] and not chosen.tiny:
        print(f"the device is a {facts['device']} without bf16: nothing was run (--tiny runs anywhere)")
        return NO_GPU
    results = chosen.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    kept = Kept.open(results / ("bare_loop_tiny.json" if chosen.tiny else "bare_loop.json"), facts)
    missing = max(0, chosen.pairs - len(kept.pairs))
    for _ in range(missing if chosen.at_most is None else min(missing, chosen.at_most)):
        make_pair(kept, size, results)
        print(told(kept.pairs[-1], len(kept.pairs)), flush=True)
    return verdict(kept, chosen.pairs, size)


def told(pair: dict[str, Any], number: int) -> str:
    """A line for each pair."""
    speeds = f"{pair['ours']:,.0f} over {pair['bare']:,.0f} tokens/s"
    return f"pair {number}, {pair['first']} first: {speeds}, {pair['ours'] / pair['bare']:.4f}"


def verdict(kept: Kept, wanted: int, size: Size) -> int:
    """Says what came out; the exit status."""
    if not kept.ratios:
        return PAIRS_ARE_LEFT
    low, high = min(kept.ratios), max(kept.ratios)
    print(
        f"our loop over a bare one, {size.name}, on {kept.facts['device']}, torch {kept.facts['torch']}: median of "
        f"{len(kept.ratios)} pairs {median(kept.ratios):.4f} ({low:.4f} to {high:.4f}), to be {AIM} or more"
    )
    if len(kept.ratios) < wanted:
        return PAIRS_ARE_LEFT
    if size is TINY:
        print("at this size it shows that the comparison works, and nothing of speed")
        return ALL_AS_EXPECTED
    return ALL_AS_EXPECTED if median(kept.ratios) >= AIM else TO_BE_EXPLAINED


if __name__ == "__main__":
    sys.exit(main())

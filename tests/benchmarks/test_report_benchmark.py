"""`report` and `compare` over 10,000 trials: at most 2 s and 500 MB as whole processes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from evidence.readme_table import kept_run
from pytest_benchmark.fixture import BenchmarkFixture
from ruamel.yaml import YAML

OPTIONS, SEEDS = 40, 250
MOST_SECONDS, MOST_BYTES = 2.0, 500e6


def big_run(folder: Path, options: int, seeds: int, slower: float = 1.0) -> Path:
    """The records of a real trial of 40 steps, repeated with varied times: options that all did the same job."""
    kept = kept_run("precision")
    folder.mkdir(parents=True)
    lines = [json.loads(line) for line in (kept / "records.jsonl").read_text().splitlines()]
    record = next(r for r in lines if r["trial"]["option"] == "fp32" and r["outcome"]["status"] == "completed")
    suite = YAML(typ="safe").load(kept / "suite.yaml")
    fp32 = suite["options"]["fp32"]
    optimizer = suite["choices"].pop("optimizer")
    suite["options"] = {
        f"lr{i}": {**fp32, "optimizer": {**optimizer, "lr": 1e-3 * (1 + i)}} for i in range(options)
    }
    suite |= {"baseline": "lr0", "seeds": list(range(seeds))}
    (folder / "suite.yaml").write_text(json.dumps(suite))
    (folder / "environment.json").write_text((kept / "environment.json").read_text())
    seconds = record["outcome"]["measurement"]["timed_seconds"]
    with (folder / "records.jsonl").open("wb") as stream:
        for option in range(options):
            record["trial"]["settings"]["optimizer"]["lr"] = 1e-3 * (1 + option)
            for seed in range(seeds):
                record["trial"] |= {"option": f"lr{option}", "seed": seed, "trial_id": f"{option}-{seed}"}
                varied = 1 + 0.01 * ((option * 7 + seed * 13) % 11) / 11 + 0.0001 * option
                record["outcome"]["measurement"]["timed_seconds"] = seconds * slower * varied
                line = json.dumps(record, separators=(",", ":")).encode()
                stream.write(line[:-1] + b',"crc32":"%08x"}\n' % zlib.crc32(line))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """One run of 10,000 trials, and two of 5,000."""
    place = tmp_path_factory.mktemp("big")
    halves = [big_run(place / name, OPTIONS, SEEDS // 2, slower) for name, slower in (("a", 1.0), ("b", 1.01))]
    return {"report": [big_run(place / "whole", OPTIONS, SEEDS)], "compare": halves}


@pytest.mark.parametrize("command", ["report", "compare"])
def test_ten_thousand_trials(benchmark: BenchmarkFixture, folders: dict[str, list[Path]], command: str) -> None:
    words = list(map(str, folders[command]))
    # Bytecode as an installation has it, also where the environment forbids to write any.
    compiled = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    compiled |= {"PYTHONPYCACHEPREFIX": str(folders["report"][0].parent / "bytecode")}

    def whole() -> None:
        call = [sys.executable, "-m", "selectbench", command, *words]
        subprocess.run(call, check=True, capture_output=True, env=compiled)

    benchmark.pedantic(whole, rounds=5, warmup_rounds=1)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"\n{command}: median {benchmark.stats.stats.median:.2f} s, largest process so far {peak / 1e6:.0f} MB")
    assert benchmark.stats.stats.median <= MOST_SECONDS
    assert peak <= MOST_BYTES

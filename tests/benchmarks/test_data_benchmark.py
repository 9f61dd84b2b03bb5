"""What preparing costs: encoding against the bare tokenizer, and memory against the size of the text.

SELECTBENCH_BENCH_MB is the size of the text whose preparation's memory is measured; 200 where it is not set, the
claim of 500 MB beyond the imports is about 2000.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from selectbench.choices.model import Bpe
from selectbench.data.prepare import encode
from selectbench.data.sources import open_corpus
from selectbench.data.tokenizer import TextTokenizer, make_tokenizer
from selectbench.suite.sources import EmbeddedCorpus

TEXT_BYTES = 20_000_000
PAIRS = 7
LEAST_SPEED = 0.9
MEGABYTES = int(os.environ.get("SELECTBENCH_BENCH_MB", "200"))
MOST_MEGABYTES = 500

CHILD = """\
import resource, sys, time
import tokenizers
from selectbench.choices.model import Bpe
from selectbench.data.prepare import prepare
from selectbench.suite.sources import JsonLines
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
imports, began = peak(), time.perf_counter()
made = prepare(JsonLines(jsonl=sys.argv[1:]), Bpe(bpe=8192), notify=lambda line: print(line, file=sys.stderr))
print(imports, peak(), time.perf_counter() - began, made.train_tokens + made.heldout_tokens, made.documents_in)
"""


def paired(ours: list[float], bare: list[float]) -> list[float]:
    """Speed of ours over that of the bare one, each against the run beside it."""
    return [theirs / own for own, theirs in zip(ours, bare, strict=True)]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """About 20 MB: the chapters of the bible again and again, a number in front of each verse."""
    chapters = list(open_corpus(EmbeddedCorpus(), lambda _: None).documents(pytest.fail))
    found, size = [], 0
    while size < TEXT_BYTES:
        for chapter in chapters:
            found.append("\n".join(f"{len(found)} {verse}" for verse in chapter.split("\n")))
            size += len(found[-1])
    return found


@pytest.fixture(scope="module")
def tokenizer(documents: list[str]) -> TextTokenizer:
    return make_tokenizer(Bpe(bpe=4096), lambda: documents[:1189])


def test_encoding_beside_the_bare_tokenizer(
    benchmark: BenchmarkFixture, documents: list[str], tokenizer: TextTokenizer
) -> None:
    def ours() -> int:
        return sum(len(batch.ids) for batch in encode(tokenizer, documents))

    def bare() -> int:
        found = tokenizer.backend.encode_batch_fast(documents, add_special_tokens=False)
        return sum(len(each.ids) for each in found) + len(documents)

    assert ours() == bare()  # warms both up
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(PAIRS):
        order = [("ours", ours), ("bare", bare)]
        for name, work in order if number % 2 else order[::-1]:
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    benchmark.pedantic(ours, rounds=1)
    ratios = paired(seconds["ours"], seconds["bare"])
    low, _, high = quantiles(ratios, n=4)
    benchmark.extra_info["speed_ratio_median"] = median(ratios)
    print(
        f"\nencoding over the bare tokenizer: median {median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}, "
        f"{PAIRS} pairs; {TEXT_BYTES / 1e6 / median(seconds['ours']):.1f} MB/s"
    )
    assert median(ratios) >= LEAST_SPEED


def write_records(path: Path, megabytes: int) -> None:
    """Records of 200 to 4,000 characters of 300,000 made-up words, as unevenly used as those of a language."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    words = np.array(["".join(draw.choice(letters, draw.integers(2, 11))) for _ in range(300_000)])
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            numbers = np.minimum(draw.zipf(1.2, 200_000) - 1, len(words) - 1)
            begin = 0
            for size in draw.integers(30, 600, 600).tolist():
                text = " ".join(words[numbers[begin : begin + size]])
                begin += size
                written += file.write(json.dumps({"text": text}) + "\n")
                if begin >= len(numbers):
                    break


def test_memory_of_preparing(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    source = tmp_path / "records.jsonl"
    write_records(source, MEGABYTES)
    environment = {**os.environ, "SELECTBENCH_CACHE": str(tmp_path / "cache")}

    def child() -> str:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(source)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return done.stdout

    said = benchmark.pedantic(child, rounds=1)
    imports, peak, seconds, tokens, read = map(float, said.split())
    benchmark.extra_info["peak_mb_beyond_imports"] = peak - imports
    print(
        f"\n{source.stat().st_size / 1e6:.0f} MB of jsonl, {read:,.0f} documents, {tokens:,.0f} tokens: peak "
        f"{peak:.0f} MiB, {peak - imports:.0f} MiB beyond the imports; {seconds:.0f} s"
    )
    assert (peak - imports) * 1024**2 <= MOST_MEGABYTES * 1e6

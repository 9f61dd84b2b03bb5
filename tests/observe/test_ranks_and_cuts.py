"""The same rows, cut otherwise or spread over ranks, give the same digests, weights and held-out loss."""

from __future__ import annotations

from pathlib import Path

import pytest
from observe.watched import Run, run


def digests(seen: Run) -> list[int]:
    """Of each step, over all ranks."""
    of_ranks = [[int(step["token_digest"], 16) for step in seen.all("step", rank)] for rank in seen.ranks]
    return [sum(parts) % 2**64 for parts in zip(*of_ranks, strict=True)]


def held_out(seen: Run) -> float:
    parts = [seen.one("evaluation", rank) for rank in seen.ranks]
    assert sum(part["tokens"] for part in parts) == 320
    return sum(part["loss_sum"] for part in parts) / 320


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("whole"), forked=True)


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_another_cut(whole: Run, tmp_path: Path, micro: int) -> None:
    seen = run(tmp_path, "--micro", str(micro), forked=True)
    assert digests(seen) == digests(whole)
    assert [step["micro_batches"] for step in seen.all("step")] == [-(-4 // micro)] * 6
    if micro < 3:
        assert held_out(seen) == pytest.approx(held_out(whole), abs=1e-5)


@pytest.mark.parametrize("way", ["--strategy ddp", "--strategy ddp --micro 1", "--strategy fsdp2"])
def test_two_ranks(whole: Run, tmp_path: Path, way: str) -> None:
    seen = run(tmp_path, *way.split(), ranks=2)
    assert seen.status == 0, seen.output
    assert sorted(seen.ranks) == [0, 1]
    assert digests(seen) == digests(whole)
    for rank in (0, 1):
        for key in ("weights_sha256", "weights_bf16_sha256", "parameters", "name"):
            assert seen.one("model", rank)[key] == whole.one("model")[key]
    assert held_out(seen) == pytest.approx(held_out(whole), abs=1e-5)
    norm = whole.all("step")[0]["gradient_norm"]
    assert seen.all("step")[0]["gradient_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("way", [(), ("--original",)])
def test_weights_in_shards_that_nobody_gathers_have_no_digest(whole: Run, tmp_path: Path, way: tuple[str]) -> None:
    """FSDP1's, whose ranks each hold a part of one flat parameter."""
    seen = run(tmp_path, "--strategy", "fsdp1", *way, ranks=2)
    assert seen.status == 0, seen.output
    assert digests(seen) == digests(whole)
    for rank in (0, 1):
        model, first = seen.one("model", rank), seen.one("first_step", rank)
        assert (model["weights_sha256"], model["weights_bf16_sha256"]) == (None, None)
        assert (first["update_norm"], seen.all("step", rank)[0]["gradient_norm"]) == (None, None)
        assert model["parameters"] == whole.one("model")["parameters"]
    assert held_out(seen) == pytest.approx(held_out(whole), abs=1e-5)


def test_padding_counts_on_neither_side(tmp_path: Path) -> None:
    right = run(tmp_path / "right", "--style", "hf", "--padding", "right", "--steps", "3", max_steps=3, forked=True)
    left = run(tmp_path / "left", "--style", "hf", "--padding", "left", "--steps", "3", max_steps=3, forked=True)
    assert digests(left) == digests(right)
    assert [step["tokens"] for step in left.all("step")] == [64 - 3] * 3
    none = run(tmp_path / "none", "--style", "hf", "--steps", "3", max_steps=3, forked=True)
    assert set(digests(none)).isdisjoint(digests(right))

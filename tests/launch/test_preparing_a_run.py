"""What a run hands its trials: threads by rank, and a folder of weights that does not stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from selectbench.launch import order
from selectbench.record.run_folder import WEIGHTS, weights_folder


@pytest.mark.parametrize(
    ("cores", "world_size", "threads"), [(8.0, 1, 8), (8.0, 3, 2), (2.0, 4, 1), (0.5, 1, 1), (3.9, 2, 1)]
)
def test_ranks_share_the_cores(
    cores: float, world_size: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(order, "usable_cores", lambda: cores)
    assert order.rank_threads(world_size) == threads


@pytest.mark.parametrize(("stated", "threads"), [("3", 3), ("0", 4), ("many", 4)])
def test_the_users_own_number_of_threads_wins(stated: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", stated)
    monkeypatch.setattr(order, "usable_cores", lambda: 8.0)
    assert order.rank_threads(2) == threads


def test_weights_are_gone_before_and_after_a_run_however_it_ends(tmp_path: Path) -> None:
    weights = tmp_path / WEIGHTS

    def write() -> None:
        weights.mkdir()
        (weights / "0.safetensors").write_bytes(b"weights")

    def interrupted_run() -> None:
        with weights_folder(tmp_path):
            assert not weights.exists()
            write()
            raise KeyboardInterrupt

    write()
    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert not weights.exists()

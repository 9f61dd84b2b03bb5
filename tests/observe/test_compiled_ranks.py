"""Compiled ranks end as they end alone, many times over: what is kept at the end of a process may abort it."""

from __future__ import annotations

from pathlib import Path

import pytest
from observe.watched import run

WAY = ("--strategy", "ddp", "--compile", "model", "--steps", "8")


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["natural_end", "at_max_steps"])
def test_compiled_ranks_end_well(tmp_path: Path, stop: str) -> None:
    seen = run(tmp_path / "observed", *WAY, ranks=2, stop=stop)
    assert seen.status == 0, seen.output
    assert [len(seen.all("end", rank)) for rank in (0, 1)] == [1, 1]
    if stop == "natural_end":
        alone = run(tmp_path / "alone", *WAY, ranks=2, observed=False)
        for what in ("weights", "graphs"):
            assert seen.printed(what) == alone.printed(what)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("observed", [True, False])
def test_sixty_compiled_runs_end_well(tmp_path: Path, observed: bool) -> None:
    """A prototype aborted in one of eight runs, after the script's last line."""
    settings = {"stop": "natural_end"} if observed else {}
    runs = [run(tmp_path / str(n), *WAY, ranks=2, observed=observed, **settings) for n in range(60)]
    assert [(n, each.output) for n, each in enumerate(runs) if each.status] == []

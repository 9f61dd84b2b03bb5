"""The tables that the project shows come from the records it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence.readme_table import ROOT, kept_run, rewritten
from msgspec.structs import replace

from selectbench.launch.publish import files, read_run
from selectbench.record.record import Completed
from selectbench.record.run_folder import ENVIRONMENT, RECORDS_FILE, SUITE

SUITES = (
    "precision", "optimizer", "accumulation", "distributed", "scaling", "framework", "architecture", "batch_size",
    "tokenizer",
)  # fmt: skip


def test_the_readme_shows_the_kept_run() -> None:
    readme = (ROOT / "README.md").read_text()
    assert rewritten(readme) == readme


@pytest.mark.parametrize("suite", SUITES)
def test_every_report_follows_from_the_records_byte_for_byte(suite: str) -> None:
    folder = kept_run(suite)
    stored = read_run(folder)
    assert stored.notes == []
    made = files(stored, stored.ranking())
    assert {"ranking.json", "report.md", "report.html", "ranking.csv", "benchmark.json"} <= set(made)
    for name, text in made.items():
        assert (folder / name).read_text() == text, name
    kept = {path.name for path in folder.iterdir()} - set(made)
    assert kept == {SUITE, ENVIRONMENT, RECORDS_FILE}


@pytest.mark.parametrize("suite", SUITES)
def test_a_changed_record_changes_the_ranking(suite: str, tmp_path: Path) -> None:
    stored = read_run(kept_run(suite))
    halved = [
        replace(record, outcome=replace(record.outcome, measurement=measured))
        if isinstance(record.outcome, Completed)
        and (measured := replace(
            record.outcome.measurement, timed_seconds=record.outcome.measurement.timed_seconds * 2))
        else record
        for record in stored.records
    ]  # fmt: skip
    before = stored.ranking()
    stored.records[:] = halved
    after = {row.option: row.metrics["tokens_per_second"].value for row in stored.ranking().rows}
    for row in before.rows:
        value = row.metrics["tokens_per_second"].value
        if value is not None:
            assert after[row.option] == pytest.approx(value / 2)


@pytest.mark.parametrize("suite", SUITES)
def test_nothing_kept_names_a_person_or_a_place(suite: str) -> None:
    for path in kept_run(suite).iterdir():
        text = path.read_text()
        assert "/root" not in text
        assert "/home/" not in text

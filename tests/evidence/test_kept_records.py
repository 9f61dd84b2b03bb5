"""The tables that the project shows come from the records it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evidence.readme_table import ROOT, kept_run, rewritten
from msgspec.structs import replace

from selectbench.launch.publish import files, read_run
from selectbench.record.record import SOFTWARE, Completed, Record
from selectbench.record.run_folder import ENVIRONMENT, RECORDS_FILE, SUITE

SUITES = (
    "precision", "optimizer", "accumulation", "distributed", "scaling", "framework", "architecture", "batch_size",
    "tokenizer", "frameworks",
)  # fmt: skip
Breaks = Callable[[Record], Record]


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


def accused(suite: str, breaks: Breaks = lambda record: record) -> dict[str, list[tuple[str, list[int]]]]:
    """The violations of the kept run with records as `breaks` makes them: by option, fields with their seeds."""
    stored = read_run(kept_run(suite))
    stored.records[:] = [breaks(record) if record.identity else record for record in stored.records]
    rows = stored.ranking().rows
    return {r.option: [(v.field, v.seeds) for v in r.identity.violations] for r in rows if r.identity.violations}


@pytest.mark.parametrize("suite", SUITES)
def test_honest_rows_are_unaccused(suite: str) -> None:
    assert accused(suite) == {}


def measured(**changes: Any) -> Breaks:
    def broken(record: Record) -> Record:
        assert isinstance(record.outcome, Completed)
        return replace(record, outcome=Completed(measurement=replace(record.outcome.measurement, **changes)))

    return broken


def certified(**changes: Any) -> Breaks:
    return lambda record: replace(record, identity=replace(record.identity, **changes))


def other_torch(record: Record) -> Record:
    return replace(record, software=SOFTWARE.as_json({**record.versions(), "torch": "1.0"}))


def evaluated(**changes: Any) -> Breaks:
    def broken(record: Record) -> Record:
        *before, end = record.evaluation_curve
        return replace(record, evaluation_curve=[*before, replace(end, **changes)])

    return broken


BROKEN = {
    "first loss": (measured(first_loss=9.0), "record"),
    "tokens per step": (measured(tokens_per_step=7), "record"),
    "steps applied": (measured(steps_applied=7), "record"),
    "final loss": (measured(final_loss=0.01), "record"),
    "loss at the curve's end": (evaluated(loss=0.01), "record"),
    "step of the curve's end": (evaluated(step=7), "record"),
    "held-out tokens": (measured(heldout_tokens=4096), "heldout_tokens"),
    "held-out bytes": (measured(heldout_bytes=7), "heldout_bytes"),
    "evaluation set": (certified(evaluation_set_sha256="5" * 64), "evaluation_set_sha256"),
    "software": (other_torch, "software: torch"),
    "weights": (certified(initial_weights_sha256="5" * 64), "initial_weights_sha256"),
    "tokens": (certified(token_stream_sha256="5" * 64), "token_stream_sha256"),
    "steps": (certified(steps_requested=7), "steps_requested"),
}


@pytest.mark.parametrize("option", ["adam", "adamw"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_record_is_named_and_no_other(broken: str, option: str) -> None:
    """`adamw` is the baseline: one that differs from all others is the odd one."""
    breaks, field = BROKEN[broken]

    def only_one(record: Record) -> Record:
        return breaks(record) if (record.trial.option, record.trial.seed) == (option, 1) else record

    found = accused("optimizer", only_one)
    assert found.keys() == {option}
    assert (field, [1]) in found[option]


def test_an_evaluation_set_that_differs_between_seeds_is_named() -> None:
    def other_set(record: Record) -> Record:
        return certified(evaluation_set_sha256="5" * 64)(record) if record.trial.seed == 2 else record

    found = accused("optimizer", other_set)
    assert len(found) == len(read_run(kept_run("optimizer")).suite.options)
    assert all(of_option == [("evaluation_set_sha256", [2])] for of_option in found.values())


@pytest.mark.parametrize("suite", SUITES)
def test_nothing_kept_names_a_person_or_a_place(suite: str) -> None:
    for path in kept_run(suite).iterdir():
        text = path.read_text()
        assert "/root" not in text
        assert "/home/" not in text


def test_held_out_tokens_that_are_trained_on_and_long_pauses_are_warnings() -> None:
    stored = read_run(kept_run("frameworks"))
    assert not [line for line in stored.ranking().warnings if "trained on" in line or "validation" in line]
    for place, record in enumerate(stored.records):
        if record.trial.option == "fabric" and isinstance(record.outcome, Completed) and record.identity:
            measured = record.outcome.measurement
            paused = replace(measured, pause_seconds=measured.timed_seconds / 2)
            stored.records[place] = replace(
                record, outcome=replace(record.outcome, measurement=paused),
                identity=replace(record.identity, heldout_rows_trained=7),
            )  # fmt: skip
    told = "\n".join(stored.ranking().warnings)
    assert "held-out tokens are trained on (fabric on 7 rows): the final loss says nothing of new text" in told
    assert "took more than 20% of the timed steps' time (fabric 50%)" in told

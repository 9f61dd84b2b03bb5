"""`report` over 10,000 records takes at most 2 s: reading, ranking and rendering."""

from pathlib import Path

import pytest
from made_records import make_record, make_suite, speed
from pytest_benchmark.fixture import BenchmarkFixture

from selectbench.analysis.ranking import rank
from selectbench.record.store import read_records
from selectbench.report.markdown import render

OPTIONS, SEEDS = 40, 250


@pytest.fixture(scope="module")
def records_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,000 records of the size that a real trial of 60 steps leaves."""
    path = tmp_path_factory.mktemp("report") / "records.jsonl"
    steps = [0.2 + 1e-4 * (i % 7) for i in range(57)]
    curve = [(i, 7.7 - 0.03 * i) for i in range(60)]
    with path.open("w") as file:
        for option in range(OPTIONS):
            record = make_record(f"lr{option}", 0, step_seconds=steps, **speed(1000 + option))
            record = record.model_copy(update={"loss_curve": curve})
            for seed in range(SEEDS):
                trial = record.trial.model_copy(update={"trial_id": f"{option}-{seed}", "seed": seed})
                file.write(record.model_copy(update={"trial": trial}).model_dump_json() + "\n")
    return path


def test_report_of_ten_thousand_records(benchmark: BenchmarkFixture, records_file: Path) -> None:
    names = [(f"lr{i}", {"optimizer": {"name": "adamw", "lr": 1e-3 * (1 + i)}}) for i in range(OPTIONS)]
    suite = make_suite(*names, seeds=list(range(SEEDS)))

    def report() -> str:
        records, notes = read_records(records_file)
        return render(suite, rank(suite, records, notes), records, {}, "selectbench run suite.yaml")

    text = benchmark.pedantic(report, rounds=3, warmup_rounds=1)
    assert "250 of 250" in text
    assert benchmark.stats.stats.median <= 2.0

"""On GPUs the report says which choices hold the host up by themselves."""

from __future__ import annotations

from made_records import make_failure, make_record, make_suite

from selectbench.analysis.ranking import rank
from selectbench.report.evidence import method_lines

OPTIONS = (
    ("plain", {}), ("lion", {"optimizer": {"name": "lion", "lr": 1e-4}}),
    ("eight", {"optimizer": {"name": "adamw_8bit", "lr": 1e-3}}),
    ("factored", {"optimizer": {"name": "adafactor", "lr": 1e-2}}),
    ("sharded", {"strategy": {"name": "zero", "stage": 2}}),
)  # fmt: skip


def told(device: str, *failed: str) -> str:
    suite = make_suite(*OPTIONS, device=device)
    records = [
        make_failure(name, seed, "oom") if name in failed else make_record(name, seed)
        for name, _ in OPTIONS for seed in suite.seeds
    ]  # fmt: skip
    return "\n".join(line for line in method_lines(suite, rank(suite, records), records, {}) if "wait" in line)


def test_each_choice_by_how_often_it_waits():
    line = told("cuda")
    assert "optimizer lion, optimizer adamw_8bit after every parameter in every step" in line
    assert "optimizer adafactor twice for every parameter in every step" in line
    assert "strategy zero one to three times in every step" in line
    assert "adamw " not in line


def test_only_of_what_was_trained():
    line = told("cuda", "lion", "sharded")
    assert "optimizer adamw_8bit after every parameter" in line
    assert "lion" not in line
    assert "zero" not in line


def test_nothing_of_a_cpu_which_nobody_waits_for():
    assert told("cpu") == ""

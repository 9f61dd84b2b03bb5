"""A run whose suite leaves precision and size to the machine: what it records, and who reads it elsewhere."""

from __future__ import annotations

import json

import pytest
from launch.harness import TINY_SUITE, Workplace
from stand_in import StandIn

from selectbench import load
from selectbench.suite.load import load_suite

OPEN = TINY_SUITE.replace(
    "  micro_batch_size: 4\n", "  precision: auto\n  micro_batch_size: {at_most: 4}\n"
).replace("  whole: {}\n  halves: {micro_batch_size: 2}\n", "  whole: {}\n  eager: {attention: eager}\n")
WITHOUT_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
SAID = (
    "- Left to the machine, and the same for every option: precision: fp32, as the processor has no instructions "
    "for bf16 (asked: auto). micro_batch_size: 4, as on a CPU memory sets no bound (asked: at_most 4)."
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("open"))
    place.write(OPEN)
    first = place.call("run", "tiny.yaml", **WITHOUT_BF16)
    assert first.returncode == 0, first.stderr
    return place


def test_records_and_suite_hold_what_was_taken_and_the_environment_why(done: Workplace) -> None:
    settings = [record["trial"]["settings"] for record in done.records()]
    assert len(settings) == 4
    assert {(found["precision"]["name"], found["micro_batch_size"]) for found in settings} == {("fp32", 4)}
    (folder,) = done.run_folders()
    stored = load_suite(str(folder / "suite.yaml"), device="cuda", require_files=False)
    assert stored.left_open.settings == {}
    assert {option.choices.precision.name for option in stored.options} == {"fp32"}
    choices = json.loads((folder / "environment.json").read_text())["machine_choices"]
    assert [(one["setting"], one["asked"], one["taken"]) for one in choices] == [
        ("precision", "auto", "fp32"), ("micro_batch_size", "at_most 4", "4"),
    ]  # fmt: skip
    best = load_suite(str(folder / "best.yaml"), device="cpu")
    assert (best.left_open.settings, best.options[0].choices.precision.name) == ({}, "fp32")


def test_the_report_says_it_and_is_the_same_where_the_machine_would_choose_otherwise(
    done: Workplace, stand_in: StandIn
) -> None:
    (folder,) = done.run_folders()
    reports = {name: (folder / name).read_bytes() for name in ("report.md", "report.html", "ranking.json")}
    assert SAID in reports["report.md"].decode()
    assert b"Left to the machine" in reports["report.html"]
    # A reader with a GPU that has bf16.
    again = done.call("report", str(folder), **stand_in.environment())
    assert again.returncode == 0, again.stderr
    assert reports == {name: (folder / name).read_bytes() for name in reports}
    shown = load(folder)
    assert {option.choices.precision.name for option in shown.suite.options} == {"fp32"}
    assert SAID.count("asked") == len(shown.environment["machine_choices"])


@pytest.mark.parametrize("suite", ["tiny.yaml", "stored"])
def test_a_run_that_was_cut_off_goes_on_with_what_it_took(done: Workplace, suite: str) -> None:
    """By the same line, and by its own suite.yaml, which names it."""
    (folder,) = done.run_folders()
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:-1]))
    resumed = done.call("run", str(folder / "suite.yaml") if suite == "stored" else suite, **WITHOUT_BF16)
    assert resumed.returncode == 0, resumed.stderr
    assert "3 of 4 trials have an outcome" in resumed.stderr
    assert done.run_folders() == [folder]
    assert json.loads(lines[-1])["trial"] == done.records()[-1]["trial"]


def test_the_stored_suite_names_what_was_taken_and_its_trials_are_those_of_the_run(done: Workplace) -> None:
    (folder,) = done.run_folders()
    planned = done.call("plan", str(folder / "suite.yaml"), "--json", **WITHOUT_BF16)
    plan = json.loads(planned.stdout)
    assert plan["machine_choices"] == []
    assert {trial["trial_id"] for trial in plan["trials"]} == {r["trial"]["trial_id"] for r in done.records()}


def test_plan_on_a_t4_tells_both_choices_with_their_reasons(done: Workplace, stand_in: StandIn) -> None:
    stand_in.set(
        "gpu0.name", "Tesla T4", "gpu0.capability", "7.5", "gpu0.memory_total", 15360 << 20, "count", 1,
    )  # fmt: skip
    asked = ("plan", "tiny.yaml", "--profile", "cuda")
    plan = json.loads(done.call(*asked, "--json", **stand_in.environment()).stdout)
    assert [(one["setting"], one["taken"]) for one in plan["machine_choices"]] == [
        ("precision", "fp16_mixed"), ("micro_batch_size", "4"),
    ]  # fmt: skip
    text = done.call(*asked, **stand_in.environment()).stdout
    assert "precision: fp16_mixed, as compute capability 7.5 has no bf16, which needs 8.0 (asked: auto)" in text
    assert "at most 85% of the 15.0 GiB of Tesla T4 (asked: at_most 4)" in text


def test_a_mistake_is_told_with_its_place(done: Workplace) -> None:
    path = done.folder / "wrong.yaml"
    path.write_text(OPEN.replace("{attention: eager}", "{precision: auto, attention: eager}"))
    refused = done.call("plan", "wrong.yaml")
    assert refused.returncode == 2
    assert refused.stderr == (
        "wrong.yaml:19:22: options.eager.precision: auto is said once for all options, under choices: name a "
        "precision here\n"
    )

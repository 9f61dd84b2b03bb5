"""What a run's folder yields for other tools, through the commands that a user types."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forking
import numpy as np
import pandas as pd
import pytest
from evidence.readme_table import kept_run, oldest_run
from made_records import make_failure, make_record, make_suite, speed
from msgspec.structs import replace
from pytest_benchmark.stats import Stats

import selectbench
from selectbench.analysis.ranking import rank
from selectbench.errors import UserError
from selectbench.launch.publish import MOST_BYTES, add_to_job_summary, compare_runs, gate_run, past_runs, read_run
from selectbench.record.record import Record
from selectbench.record.run_folder import find_run
from selectbench.report.files import benchmark_json, render_csv
from selectbench.suite.load import load_suite
from selectbench.suite.metrics import METRICS

BF16 = ("bf16", {"precision": {"name": "bf16_mixed"}})


def command(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    called = ["-m", "selectbench", *map(str, words)]
    return forking.run(
        forking.BENCH, called, cwd or Path.cwd(), {**os.environ, "COLUMNS": "120", **environment}, 300
    )


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy of a kept run with its records and nothing that follows from them."""
    folder = tmp_path / "results" / "precision" / oldest_run("precision").name
    folder.mkdir(parents=True)
    for name in ("suite.yaml", "environment.json", "records.jsonl"):
        shutil.copy(oldest_run("precision") / name, folder / name)
    return folder


def slowed(folder: Path, option: str, factor: float, to: Path) -> Path:
    """The same run with one option slower."""
    shutil.copytree(folder, to)
    lines = []
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["trial"]["option"] == option:
            record["outcome"]["measurement"]["timed_seconds"] *= factor
        lines.append(json.dumps(record))
    (to / "records.jsonl").write_text("\n".join(lines) + "\n")
    return to


def test_report_writes_every_file_and_the_best_can_be_planned(kept: Path) -> None:
    stale = [kept / "best_cheapest.yaml", kept / "best_cheapest_deepspeed.json"]
    for path in stale:
        path.write_text("of an earlier ranking")
    done = command("report", kept)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in kept.iterdir()}
    assert {"ranking.json", "report.md", "report.html", "ranking.csv", "benchmark.json", "best.yaml"} <= names
    assert not names & {path.name for path in stale}
    ranking = json.loads((kept / "ranking.json").read_text())
    suite = load_suite(str(kept / "best.yaml"), device="cpu")
    assert [o.name for o in suite.options] == [suite.baseline] == [ranking["rows"][0]["option"]]
    (named,) = (v for v in ranking["verdicts"] if v["name"] == "fastest")
    assert suite.options[0].choices.model_dump(mode="json") == named["choices"]
    planned = command("plan", "best.yaml", "--json", cwd=kept)
    assert planned.returncode == 0, planned.stderr
    assert len(json.loads(planned.stdout)["trials"]) == 5


def test_report_leaves_what_it_did_not_write(kept: Path) -> None:
    own = (
        "best_model.pt",
        "best.txt",
        "best_of_three.yaml",
        "bestiary/page",
        "best_cheapest.yaml/weights",
        "report.md/x",
    )
    for name in own:
        (kept / name).parent.mkdir(exist_ok=True)
        (kept / name).write_text("the user's")
    done = command("report", kept)
    assert done.returncode == 0, done.stderr
    assert all((kept / name).read_text() == "the user's" for name in own)
    told = [line for line in done.stderr.splitlines() if "left as it is" in line]
    assert [line.split(":")[0] for line in told] == [str(kept / "report.md"), str(kept / "best_cheapest.yaml")]
    assert (kept / "report.html").is_file()
    assert not list(kept.glob(".*"))


def test_deepspeeds_configuration_lies_beside_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(kept_run("distributed"), folder)
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for record in lines:  # makes the option that DeepSpeed trains the fastest
        if record["trial"]["option"] == "zero2":
            record["outcome"]["measurement"]["timed_seconds"] /= 10
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    assert command("report", folder).returncode == 0
    config = json.loads((folder / "best_deepspeed.json").read_text())
    assert config["zero_optimization"]["stage"] == 2


def test_compare_and_gate_of_real_folders(kept: Path, tmp_path: Path) -> None:
    slow = slowed(kept, "bf16_mixed", 1.3, tmp_path / "slow")
    limit = "tokens_per_second >= 0.9x reference"
    same = shutil.copytree(kept, tmp_path / "same")
    assert command("gate", same, "--against", kept, "--limit", limit).returncode == 0
    failed = command("gate", slow, "--against", kept, "--limit", limit)
    assert failed.returncode == 1
    assert "regression: " in failed.stdout
    told = next(line for line in failed.stdout.splitlines() if "bf16_mixed" in line)
    assert "tokens_per_second" in told or "regression" in told
    loose = command("gate", kept, "--against", slow, "--limit", "tokens_per_second >= 1.25x reference", "--json")
    assert loose.returncode in (1, 4)
    assert json.loads(loose.stdout)["verdict"] in ("regression", "inconclusive")
    shown = command("compare", kept, slow)
    assert shown.returncode == 0
    assert "suite: nothing differs" in shown.stdout
    assert "worse" in shown.stdout.splitlines()[-1]
    assert "bf16_mixed" in shown.stdout.splitlines()[-1]
    (found,) = json.loads(command("compare", kept, slow, "--json").stdout)
    worse = [(c["option"], c["metric"]) for c in found["changes"] if c["decision"] == "worse"]
    assert worse == [("bf16_mixed", "tokens_per_second")]
    assert command("compare", kept, slow, "--markdown").stdout.startswith("# ")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["gate", "RUN", "--against", "RUN"], "a run against itself"),
     (["gate", "RUN", "--against", "none"], "not a run"),
     (["gate", "RUN", "--against", "@latest", "--results", "RESULTS"], "@latest are both"),
     (["report", "precison@latest", "--results", "RESULTS"], "did you mean 'precision'?"),
     (["report", "@latest", "--results", "RESULTS"], "Write SUITE@latest"),
     (["report", "precision@lates", "--results", "RESULTS"], "expected precision@latest or precision@previous"),
     (["report", "precision@previous", "--results", "RESULTS"], "no complete run of precision"),
     (["report", "precision", "--results", "RESULTS"], "write precision@latest, or a folder: "),
     (["report", "RESULTS/precision"], "write precision@latest, or a folder: "),
     (["gate", "RUN", "--against", "SAME"], "the gate has no limit"),
     (["gate", "RUN", "--against", "SAME", "--limit", "tokens_per_second > 1x baseline"], "1x reference"),
     (["run", "precision", "--detach"], "--site FILE with `launcher: slurm`"),
     (["run", "RUN", "--round", "0"], "it was started on one machine"), (["attach", "none"], "no run's folder"),
     (["cancel", "RUN"], "not a run under Slurm"), (["compare", "RUN", "none"], "not a run folder"),
     (["gate", "RUN"], "--against"),
     (["compare", "RUN", "OTHER"], "no option in common"), (["list", "--results", "none"], "no such folder")],
)  # fmt: skip
def test_wrong_use_ends_with_two(kept: Path, tmp_path: Path, words: list[str], message: str) -> None:
    shutil.copytree(kept, tmp_path / "SAME")
    places = {"RUN": str(kept), "SAME": str(tmp_path / "SAME"), "OTHER": str(kept_run("optimizer"))}
    done = command(
        *(places.get(word, word.replace("RESULTS", str(kept.parents[1]))) for word in words), cwd=tmp_path
    )
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


class TestRunsByName:
    """Of runs a to e, from the oldest to the newest, each changed in its own way."""

    @pytest.fixture
    def results(self, tmp_path: Path) -> Path:
        for name in "abcde":
            shutil.copytree(
                oldest_run("precision"), tmp_path / "precision" / f"20200101T00000{ord(name) - 97}Z-{name}"
            )
        return tmp_path

    def run(self, results: Path, name: str) -> Path:
        (found,) = (results / "precision").glob(f"*-{name}")
        return found

    def change(self, run: Path, file: str, old: str, new: str) -> None:
        text = (run / file).read_text()
        assert old in text
        (run / file).write_text(text.replace(old, new))

    def test_the_newest_complete_one_and_the_one_before_it(self, results: Path) -> None:
        lines = (self.run(results, "e") / "records.jsonl").read_text().splitlines(keepends=True)
        (self.run(results, "e") / "records.jsonl").write_text("".join(lines[:-1]))  # one trial is still to come
        self.change(self.run(results, "d"), "suite.yaml", "seeds:", "seeds: [")  # can't be read
        assert find_run("precision@latest", results) == self.run(results, "c")
        assert find_run("precision@previous", results) == self.run(results, "b")
        assert find_run("suites/precision.yaml@latest", results) == self.run(results, "c")
        assert find_run(f"{results}/precision@latest", Path("elsewhere")) == self.run(results, "c")
        assert find_run("@previous", results, "precision") == self.run(results, "b")

    def test_an_interrupted_trial_is_no_outcome(self, results: Path) -> None:
        newest = self.run(results, "e") / "records.jsonl"
        first, *others = newest.read_text().splitlines()
        outcome = {"status": "failed", "kind": "interrupted", "detail": "Ctrl-C"}
        interrupted = json.dumps({**json.loads(first), "attempt": 2, "outcome": outcome})
        newest.write_text("\n".join([interrupted, *others, ""]))
        assert find_run("precision@latest", results) == self.run(results, "d")
        newest.write_text("\n".join([first, *others, interrupted, ""]))
        assert find_run("precision@latest", results) == newest.parent, "it had completed before"

    def test_an_option_that_was_screened_out_is_not_waited_for(self, results: Path) -> None:
        newest = self.run(results, "e")
        lines = (newest / "records.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["trial"]["option"] != "tf32"]
        (newest / "records.jsonl").write_text("".join(kept))
        assert find_run("precision@latest", results) == self.run(results, "d")
        self.change(newest, "ranking.json", '"status": "failed"', '"status": "screened_out"')
        assert find_run("precision@latest", results) == newest

    def test_the_one_before_ran_the_same_profile_on_the_same_machine(self, results: Path) -> None:
        self.change(self.run(results, "d"), "environment.json", '"cpu_model": "', '"cpu_model": "another ')
        self.change(self.run(results, "c"), "suite.yaml", "device: cpu", "device: cuda")
        self.change(self.run(results, "b"), "suite.yaml", "quick: false", "quick: true")
        assert find_run("precision@latest", results) == self.run(results, "e")
        assert find_run("precision@previous", results) == self.run(results, "a")

    def test_what_makes_the_one_before_another_kind_of_run_is_told(self, results: Path) -> None:
        self.change(self.run(results, "e"), "suite.yaml", "quick: false", "quick: true")
        newest, full = self.run(results, "e"), self.run(results, "d")
        with pytest.raises(UserError, match="name the runs that you mean by their folders") as wrong:
            find_run("precision@previous", results)
        assert f": {newest} is a --quick run, {full} is not;" in str(wrong.value)
        for name in "abcd":
            self.change(self.run(results, name), "suite.yaml", "quick: false", "quick: true")
            self.change(self.run(results, name), "environment.json", '"cpu_model": "', '"cpu_model": "another ')
        with pytest.raises(UserError, match=f"same machine: {full} differs in cpu model;"):
            find_run("precision@previous", results)

    def test_every_command_takes_them(self, results: Path) -> None:
        where = ("--results", str(results))
        shown = command("report", "precision@latest", *where)
        assert shown.returncode == 0, shown.stderr
        assert str(self.run(results, "e") / "report.md") in shown.stdout
        (found,) = json.loads(command("compare", "precision@previous", "@latest", "--json", *where).stdout)
        assert (found["reference"], found["run"]) == (str(self.run(results, "d")), str(self.run(results, "e")))
        limit = ("--limit", "tokens_per_second >= 0.9x reference")
        gated = command("gate", "precision@latest", "--against", "@previous", *limit, "--json", *where)
        assert gated.returncode == 0, gated.stderr
        assert json.loads(gated.stdout)["reference"] == str(self.run(results, "d"))
        assert len(selectbench.load("precision@latest", results).to_pandas()) == 30


def test_reports_are_not_replaced_by_those_of_no_records(kept: Path, tmp_path: Path) -> None:
    same = shutil.copytree(kept, tmp_path / "same")
    (kept / "records.jsonl").unlink()
    (kept / "ranking.json").write_text("of the records that were there")
    done = command("report", kept)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{kept}: it has no records.jsonl")
    assert (kept / "ranking.json").read_text() == "of the records that were there"
    with pytest.raises(UserError, match=r"has no records\.jsonl"):
        compare_runs(same, [kept], tmp_path)
    with pytest.raises(UserError, match=r"has no records\.jsonl"):
        gate_run(kept, same, ["tokens_per_second > 1x reference"], tmp_path, any_machine=False)


def test_a_report_that_cannot_be_written_is_shown_and_ends_with_two(kept: Path) -> None:
    own = [sys.executable, "-m", "selectbench", "report", str(kept)]
    done = subprocess.run(["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *own], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{kept}: cannot write the report: " in done.stderr
    assert "bf16_mixed" in done.stdout
    assert "report:" not in done.stdout


def test_the_suites_own_gate_counts(kept: Path, tmp_path: Path) -> None:
    with (kept / "suite.yaml").open("a") as suite:
        suite.write("gate: ['tokens_per_second >= 0.5x reference']\n")
    same = shutil.copytree(kept, tmp_path / "same")
    done = command("gate", same, "--against", kept)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0.5x reference" in " ".join(done.stdout.split())


def test_a_jobs_summary_is_written_where_one_is_asked_for(kept: Path, tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    assert command("report", kept, GITHUB_STEP_SUMMARY=str(path)).returncode == 0
    text = path.read_text()
    assert text.startswith("before\n# precision")
    assert text == "before\n" + (kept / "report.md").read_text()
    done = command("report", kept, GITHUB_STEP_SUMMARY=str(tmp_path / "none" / "x"))
    assert done.returncode == 0
    assert "GITHUB_STEP_SUMMARY: cannot write" in done.stderr


def test_a_summary_does_not_outgrow_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    problems = [add_to_job_summary(lambda: "line\n" * (MOST_BYTES // 8)) for _ in range(3)]
    assert problems == [None, f"GITHUB_STEP_SUMMARY: {path} is full: nothing was added", problems[1]]
    assert path.stat().st_size <= MOST_BYTES
    assert path.read_text() == "line\n" * (MOST_BYTES // 8)


def trials() -> list[Record]:
    records = [make_record(o, s, **speed(100 + 7 * s * s + 3 * i)) for i, o in enumerate(("fp32", "bf16"))
               for s in range(5)]  # fmt: skip
    return [*records[:-1], make_failure("bf16", 4, "oom")]


def test_pytest_benchmark_reads_it(tmp_path: Path) -> None:
    suite = make_suite("fp32", BF16, seeds=list(range(5)))
    text = benchmark_json(suite, rank(suite, trials()), trials(), {"cpu_model": "X", "cpu_count": 2})
    for found in json.loads(text)["benchmarks"]:
        expected = Stats()
        for value in found["stats"]["data"]:
            expected.update(value)
        for name, value in expected.as_dict().items():
            assert found["stats"][name] == (value if isinstance(value, str) else pytest.approx(value)), name
    for name in ("0001_a.json", "0002_b.json"):
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [Path(sys.executable).parent / "pytest-benchmark", "compare", tmp_path / "0001_a.json",
         tmp_path / "0002_b.json", "--columns=min,mean,median,rounds,ops", "--group-by=name"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fp32" in done.stdout
    assert "bf16" in done.stdout
    nothing = json.loads(benchmark_json(suite, rank(suite, []), [], {}))
    assert nothing["benchmarks"] == []


def test_the_csv_reads_back_and_runs_no_formula() -> None:
    evil = '=cmd|"/c calc"!A1'
    suite = make_suite("fp32", (evil, BF16[1]), seeds=list(range(5)))
    records = [replace(r, trial=replace(r.trial, option=evil))
               if r.trial.option == "bf16" else r for r in trials()]  # fmt: skip
    ranking = rank(suite, records)
    rows = list(csv.DictReader(render_csv(ranking).splitlines()))
    assert [row["option"] for row in rows] == [
        f"'{r.option}" if r.option == evil else r.option for r in ranking.rows
    ]
    for row, expected in zip(rows, ranking.rows, strict=True):
        value = expected.metrics["tokens_per_second"].value
        assert float(row["tokens_per_second"]) == value
        assert row["joules_per_token"] == ""
    assert not [cell for row in rows for cell in row.values() if cell[:1] in "=+@" and cell]
    run = selectbench.load(str(oldest_run("precision")))
    run.__dict__["ranking"] = ranking
    assert run.to_pandas("options").option.tolist() == [row.option for row in ranking.rows], "as in trials"


class TestLoad:
    def test_trials_options_and_curves(self) -> None:
        run = selectbench.load(str(oldest_run("precision")))
        frame = run.to_pandas()
        assert len(frame) == 30
        assert set(frame.status) == {"completed", "failed"}
        assert set(METRICS) <= set(frame.columns)
        assert all(frame[name].dtype == np.float64 for name in METRICS)
        means = np.exp(np.log(frame.tokens_per_second).groupby(frame.option).mean())
        for row in run.ranking.rows:
            value = row.metrics["tokens_per_second"].value
            assert np.isnan(means[row.option]) if value is None else means[row.option] == pytest.approx(value)
        options = run.to_pandas("options").set_index("option")
        assert options.loc["bf16_master", "tokens_per_second_ratio_low"] > 1
        curves = run.to_pandas("curves")
        assert set(curves.kind) == {"training", "heldout"}
        assert isinstance(curves, pd.DataFrame)
        assert "25 completed trials of 6 options" in repr(run)
        with pytest.raises(ValueError, match="expected one of 'trials'"):
            run.to_pandas("nonsense")  # type: ignore[arg-type]

    def test_a_folder_without_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="not a run folder"):
            selectbench.load(tmp_path)

    def test_missing_trials_are_rows(self, kept: Path) -> None:
        lines = (kept / "records.jsonl").read_text().splitlines()[:3]
        (kept / "records.jsonl").write_text("\n".join(lines) + "\n")
        frame = selectbench.load(kept).to_pandas()
        assert (frame.status == "missing").sum() == 27


class TestList:
    def test_the_newest_first_with_its_answer(self, kept: Path) -> None:
        older = kept.parents[1] / "optimizer" / "20200101T000000.000Z-abc"
        shutil.copytree(kept_run("optimizer"), older)
        shutil.copy(oldest_run("precision") / "ranking.json", kept)
        first, second = past_runs(kept.parents[1])
        assert (first.suite, first.trials_done, first.trials_planned) == ("precision", 30, 30)
        assert first.answer == read_run(kept).ranking().answer
        assert (second.started_at, second.suite) == ("2020-01-01 00:00", "optimizer")
        shown = command("list", "--results", kept.parents[1])
        assert shown.returncode == 0
        assert "".join(str(kept).split()) in "".join(shown.stdout.split())
        assert len(json.loads(command("list", "--results", kept.parents[1], "--json").stdout)) == 2

    def test_only_planned_trials_with_a_whole_record_are_done(self, kept: Path) -> None:
        path = kept / "records.jsonl"
        whole = path.read_bytes().splitlines(keepends=True)
        stray = whole[0].replace(b'"seed":0', b'"seed":99')
        path.write_bytes(b"".join([stray, whole[0], *whole[:-1], whole[-1][:-400]]))
        assert stray != whole[0]
        (run,) = past_runs(kept)
        assert (run.trials_done, run.trials_planned) == (29, 30)

    def test_trials_are_counted_as_the_report_counts_them(self, kept: Path) -> None:
        """One that was interrupted will run again, but for one that had completed."""
        path = kept / "records.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        record = json.loads(lines[-1])
        record["attempt"], record["outcome"] = 2, {"status": "failed", "kind": "interrupted", "detail": "stopped"}
        interrupted = json.dumps(record).encode() + b"\n"
        for before, done in ((lines, 30), (lines[:-1], 29)):
            path.write_bytes(b"".join([*before, interrupted]))
            (run,) = past_runs(kept)
            assert (run.trials_done, run.trials_planned) == (done, 30)
            incomplete = read_run(kept).ranking().answer.startswith("Incomplete, 29 of 30 trials have an outcome")
            assert incomplete == (done == 29)

    def test_a_broken_folder_is_a_line_and_no_end(self, kept: Path) -> None:
        for name, text in (("a", ":\n- ["), ("b", "seeds: 3"), ("c", "[]")):
            broken = kept.parent / f"20200101T000000.000Z-{name}"
            broken.mkdir()
            (broken / "suite.yaml").write_text(text)
        runs = past_runs(kept.parents[1])
        assert [bool(run.note) for run in runs] == [False, True, True, True]

    def test_none_yet(self, tmp_path: Path) -> None:
        assert "no runs yet" in command("list", "--results", tmp_path).stdout


def test_a_record_of_an_older_schema_is_read_and_said(kept: Path) -> None:
    lines = (kept / "records.jsonl").read_text().splitlines()
    old: dict[str, Any] = json.loads(lines[0])
    old["schema_version"] = 0
    (kept / "records.jsonl").write_text("\n".join([json.dumps(old), *lines[1:]]) + "\n")
    done = command("report", kept)
    assert done.returncode == 0
    assert "schema version 0, read as version 1" in (kept / "report.html").read_text()

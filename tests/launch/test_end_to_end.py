"""Run, kill, resume: the command line with real processes and real training."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from launch.harness import LONG, TINY_SUITE, Workplace, running_trials, trial_is_running, until


def outcomes(workplace: Workplace) -> list[tuple[str, int, str]]:
    return [
        (r["trial"]["option"], r["trial"]["seed"], r["outcome"].get("kind", r["outcome"]["status"]))
        for r in workplace.records()
    ]


class TestAWholeRun:
    def test_every_trial_completes_round_by_round(self, finished: Workplace) -> None:
        records = finished.records()
        assert sorted((r["trial"]["option"], r["trial"]["seed"]) for r in records) == [
            ("halves", 0), ("halves", 1), ("whole", 0), ("whole", 1),
        ]  # fmt: skip
        assert [r["round"] for r in records] == [0, 0, 1, 1]
        assert {r["outcome"]["status"] for r in records} == {"completed"}

    def test_options_of_a_seed_do_the_same_job(self, finished: Workplace) -> None:
        for seed in (0, 1):
            one, other = (r for r in finished.records() if r["trial"]["seed"] == seed)
            for key in ("initial_weights_sha256", "token_stream_sha256", "evaluation_set_sha256"):
                assert one["identity"][key] == other["identity"][key]
            losses = [r["outcome"]["measurement"]["final_loss"] for r in (one, other)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    def test_seeds_differ_in_weights_and_order_but_not_in_the_evaluation_set(self, finished: Workplace) -> None:
        zero, one = (next(r for r in finished.records() if r["trial"]["seed"] == s)["identity"] for s in (0, 1))
        assert zero["initial_weights_sha256"] != one["initial_weights_sha256"]
        assert zero["token_stream_sha256"] != one["token_stream_sha256"]
        assert zero["evaluation_set_sha256"] == one["evaluation_set_sha256"]

    def test_the_ranking_follows_the_contract(self, finished: Workplace) -> None:
        ranking = json.loads((finished.run_folders()[-1] / "ranking.json").read_text())
        assert {"schema_version", "suite", "baseline", "question", "answer", "rows", "warnings"} <= ranking.keys()
        for row in ranking["rows"]:
            assert {"option", "rank", "status", "n", "differs_in", "metrics", "failures"} <= row.keys()
            for name in ("tokens_per_second", "step_time_median_seconds", "peak_memory_bytes", "final_loss",
                         "final_perplexity", "bits_per_byte"):  # fmt: skip
                assert row["metrics"][name]["value"] > 0
                assert row["metrics"][name]["ratio_to_baseline"] > 0
        assert {row["option"]: row["differs_in"] for row in ranking["rows"]}["halves"] == ["micro_batch_size"]

    def test_the_folder_holds_what_the_contract_names(self, finished: Workplace) -> None:
        folder = finished.run_folders()[-1]
        for name in ("suite.yaml", "environment.json", "records.jsonl", "ranking.json", "report.md"):
            assert (folder / name).stat().st_size > 0
        for record in finished.records():
            trial = folder / "trials" / record["trial"]["trial_id"]
            assert (trial / "series.json").exists()
            assert (trial / "log.txt").exists()

    def test_json_goes_to_standard_output_alone(self, finished: Workplace) -> None:
        folder = finished.run_folders()[-1]
        shown = finished.call("report", str(folder), "--json")
        assert json.loads(shown.stdout) == json.loads((folder / "ranking.json").read_text())

    def test_report_renders_the_same_again_from_the_records(self, finished: Workplace) -> None:
        folder = finished.run_folders()[-1]
        before = (folder / "report.md").read_bytes()
        (folder / "report.md").unlink()
        assert finished.call("report", str(folder)).returncode == 0
        assert (folder / "report.md").read_bytes() == before

    def test_report_of_one_option_names_its_trials(self, finished: Workplace) -> None:
        shown = finished.call("report", str(finished.run_folders()[-1]), "halves")
        ids = [r["trial"]["trial_id"] for r in finished.records() if r["trial"]["option"] == "halves"]
        assert all(trial_id in shown.stdout for trial_id in ids)
        wrong = finished.call("report", str(finished.run_folders()[-1]), "halvs")
        assert wrong.returncode == 2
        assert "halves" in wrong.stderr

    def test_the_resolved_suite_of_a_run_can_be_run(self, finished: Workplace) -> None:
        shown = finished.call("plan", str(finished.run_folders()[0] / "suite.yaml"), "--json")
        assert shown.returncode == 0, shown.stderr
        planned = {trial["trial_id"] for trial in json.loads(shown.stdout)["trials"]}
        assert planned == {r["trial"]["trial_id"] for r in finished.records()}


def test_where_nothing_can_be_said_a_run_ends_as_it_would(workplace: Workplace) -> None:
    command = [sys.executable, "-m", "selectbench", "run", "tiny.yaml", "--seeds", "0", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=workplace.folder, stdout=full, stderr=full, env=workplace.environment(), check=False
        )
    assert done.returncode == 0
    assert [kind for _, _, kind in outcomes(workplace)] == ["completed", "completed"]
    assert (workplace.run_folders()[-1] / "report.md").exists()


def test_models_of_the_first_seed_are_kept_and_the_line_that_loads_each_is_said(workplace: Workplace) -> None:
    workplace.write(TINY_SUITE + "save: first_seed\n")
    planned = json.loads(workplace.call("plan", "tiny.yaml", "--json").stdout)
    assert planned["saved_bytes"] == 2 * 4 * planned["parameters"]
    done = workplace.call("run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    (run,) = workplace.run_folders()
    first = {r["trial"]["option"]: r["trial"]["trial_id"] for r in workplace.records() if r["trial"]["seed"] == 0}
    kept = {path.parents[1].name for path in run.glob("trials/*/model/model.safetensors")}
    assert kept == set(first.values())
    said = done.stdout.splitlines()[-2:]
    best = json.loads((run / "ranking.json").read_text())["rows"][0]["option"]
    path = f"results/tiny/{run.name}/trials/{first[best]}/model"
    assert said == [
        f"trained model of {best}, seed 0:",
        f'transformers.AutoModelForCausalLM.from_pretrained("{path}")',
    ]
    assert workplace.call("report", str(run)).returncode == 0
    for option, trial in first.items():
        line = f'transformers.AutoModelForCausalLM.from_pretrained("trials/{trial}/model")'
        assert f"    # {option}, seed 0\n    {line}\n" in (run / "report.md").read_text()


class TestInterruption:
    def test_a_signal_ends_the_trial_and_keeps_the_records(self, workplace: Workplace) -> None:
        """SIGHUP; the next two tests send SIGTERM and SIGINT."""
        process = workplace.start("run", "tiny.yaml", *LONG)
        until(trial_is_running(workplace))
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert [kind for _, _, kind in outcomes(workplace)] == ["interrupted"]
        assert (workplace.run_folders()[-1] / "report.md").exists()

    def test_what_it_was_started_to_ignore_does_not_end_it(self, workplace: Workplace) -> None:
        """As in the background of a script (SIGINT), and under nohup (SIGHUP)."""
        ignored = [signal.SIGINT, signal.SIGHUP]
        process = workplace.start("run", "tiny.yaml", *LONG, ignores=ignored)
        until(trial_is_running(workplace))
        for number in (*ignored, signal.SIGTERM):
            process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 130
        (record,) = workplace.records()
        assert (record["outcome"]["kind"], record["outcome"]["detail"]) == ("interrupted", "SIGTERM to selectbench")
        assert (workplace.run_folders()[-1] / "report.md").exists()

    def test_one_ctrl_c_is_enough_where_the_trial_server_is_stopped(self, workplace: Workplace) -> None:
        process = workplace.start("run", "tiny.yaml", *LONG)
        until(trial_is_running(workplace))
        (server,) = set(workplace.trial_pids()) - set(running_trials(workplace))
        os.kill(server, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert [kind for _, _, kind in outcomes(workplace)] == ["interrupted"]
        assert (workplace.run_folders()[-1] / "report.md").exists()
        assert workplace.trial_pids() == []

    def test_the_second_ctrl_c_ends_it_at_once(self, workplace: Workplace) -> None:
        process = workplace.start("run", "tiny.yaml", *LONG)
        until(trial_is_running(workplace))
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        until(lambda: workplace.trial_pids() == [])

    def test_kill_then_resume_repeats_no_trial(self, workplace: Workplace) -> None:
        process = workplace.first_trial_done("run", "tiny.yaml")
        process.kill()
        process.communicate(timeout=60)
        until(lambda: workplace.trial_pids() == [])
        kept = workplace.records()
        assert len(kept) == 1
        workplace.let_go()
        assert workplace.call("run", "tiny.yaml").returncode == 0
        records = workplace.records()
        assert len(workplace.run_folders()) == 1
        assert records[: len(kept)] == kept
        assert len({r["trial"]["trial_id"] for r in records}) == len(records) == 4

    @pytest.mark.slow
    def test_trials_of_a_busy_machine_are_run_again_in_the_same_run_when_asked(self, workplace: Workplace) -> None:
        longer = ("--set", "job.timing.min_timed_seconds=1", "--set", "control=true")
        # One on each core is enough, and leaves a machine that is busy anyway time for the trials.
        others = processes.on_each_core()
        assert workplace.call("run", "tiny.yaml", *longer).returncode == 0
        for other in others:
            other.kill()
        ranking = json.loads((workplace.run_folders()[-1] / "ranking.json").read_text())
        assert {row["option"]: row["busy_seeds"] for row in ranking["rows"]} == {
            "whole": [0, 1], "halves": [0, 1], "control": [0, 1]
        }  # fmt: skip
        assert "was busy with something else in 6 of 6 trials: run these again on a quiet one" in ranking["answer"]
        assert "more seed" not in ranking["answer"]
        # What completed still counts where running it again is interrupted, which is no complete run again either.
        workplace.hold()
        process = workplace.start("run", "tiny.yaml", *longer, "--rerun-unclean")
        until(trial_is_running(workplace))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        workplace.let_go()
        assert process.returncode == 130
        rows = json.loads((workplace.run_folders()[-1] / "ranking.json").read_text())["rows"]
        assert {row["option"]: row["n"] for row in rows} == {"whole": 2, "halves": 2, "control": 2}
        assert workplace.call("run", "tiny.yaml", *longer, "--rerun-unclean").returncode == 0
        records = workplace.records()
        assert sorted(record["attempt"] for record in records) == [1] * 6 + [2] * 6 + [3]
        assert len(workplace.run_folders()) == 1
        report = (workplace.run_folders()[-1] / "report.md").read_text()
        assert "halves, seeds 0, 1: run again, as the machine was busy" in report
        assert workplace.call("report", str(workplace.run_folders()[-1])).returncode == 0

    def test_an_interrupted_trial_runs_again_as_the_next_attempt(self, workplace: Workplace) -> None:
        workplace.hold()
        process = workplace.start("run", "tiny.yaml")
        until(trial_is_running(workplace))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert [kind for _, _, kind in outcomes(workplace)] == ["interrupted"]
        workplace.let_go()
        assert workplace.call("run", "tiny.yaml").returncode == 0
        assert max(r["attempt"] for r in workplace.records()) == 2

    def test_fresh_leaves_an_incomplete_run_alone(self, workplace: Workplace) -> None:
        workplace.hold()
        process = workplace.start("run", "tiny.yaml", "--seeds", "0")
        until(lambda: workplace.run_folders())
        process.kill()
        process.communicate(timeout=60)
        until(lambda: workplace.trial_pids() == [])
        workplace.let_go()
        assert workplace.call("run", "tiny.yaml", "--seeds", "0", "--fresh").returncode == 0
        assert len(workplace.run_folders()) == 2


class TestWhatATrialMayDo:
    def test_a_trial_over_its_time_is_ended(self, workplace: Workplace) -> None:
        workplace.write(TINY_SUITE + "limits: {trial_seconds: 1}\n")
        workplace.hold()
        done = workplace.call("run", "tiny.yaml", "--axis", "micro_batch_size=4", "--seeds", "0")
        assert done.returncode == 3, done.stderr
        assert [kind for _, _, kind in outcomes(workplace)] == ["timeout"]
        assert "limits.trial_seconds" in workplace.records()[0]["outcome"]["detail"]

    def test_what_does_not_fit_diverges_or_is_not_possible_here_is_a_row(self, workplace: Workplace) -> None:
        # One weight matrix of the wide model alone is 256 GiB: the allocator itself refuses.
        options = """options:
  whole: {}
  wide: {model: {family: gpt2, n_layer: 1, n_embd: 131072, n_head: 2}}
  wild: {optimizer: {name: sgd, lr: 1000, momentum: 0.9}}
  tf32: {precision: tf32}
"""
        text = TINY_SUITE[: TINY_SUITE.index("options:")] + options + "seeds: [0]\n"
        workplace.write(text.replace("max_steps: 6", "max_steps: 60"))
        done = workplace.call("run", "tiny.yaml", "--set", "job.clip_norm=null", "--no-screen")
        assert done.returncode == 0, done.stderr
        assert {option: kind for option, _, kind in outcomes(workplace)} == {
            "whole": "completed", "wide": "oom", "wild": "diverged", "tf32": "unsupported"
        }  # fmt: skip
        assert "cuda" in done.stdout

    def test_retry_failed_runs_only_what_failed(self, workplace: Workplace) -> None:
        workplace.hold()
        process = workplace.start("run", "tiny.yaml", "--seeds", "0")
        until(trial_is_running(workplace))
        os.kill(running_trials(workplace)[0], signal.SIGKILL)
        workplace.let_go()
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 3  # the baseline did not complete
        assert [kind for _, _, kind in outcomes(workplace)] == ["crashed", "completed"]
        assert "SIGKILL" in workplace.records()[0]["outcome"]["detail"]
        assert "crashed" in out
        again = workplace.call("run", "tiny.yaml", "--seeds", "0", "--retry-failed")
        assert again.returncode == 0, again.stderr
        assert [kind for _, _, kind in outcomes(workplace)] == ["crashed", "completed", "completed"]
        assert [r["attempt"] for r in workplace.records()] == [1, 1, 2]


class TestFoldersAndFiles:
    def test_a_second_run_of_the_same_is_refused_while_the_first_goes_on(self, workplace: Workplace) -> None:
        process = workplace.start("run", "tiny.yaml", *LONG)
        until(trial_is_running(workplace))
        second = workplace.call("run", "tiny.yaml", *LONG)
        assert second.returncode == 2
        assert f"(pid {process.pid}), and each would slow the other down\nfix: wait with --wait" in second.stderr
        process.kill()
        process.communicate(timeout=60)
        until(lambda: workplace.trial_pids() == [])

    def test_a_torn_line_is_named_and_costs_one_record(self, workplace: Workplace) -> None:
        assert workplace.call("run", "tiny.yaml", "--seeds", "0").returncode == 0
        path = workplace.run_folders()[-1] / "records.jsonl"
        path.write_bytes(path.read_bytes()[:-400])
        shown = workplace.call("report", str(path.parent), "--json")
        assert any("records.jsonl:2" in line for line in json.loads(shown.stdout)["warnings"])
        assert workplace.call("run", "tiny.yaml", "--seeds", "0").returncode == 0
        assert len(path.read_text().splitlines()) == 3

    def test_a_folder_that_is_no_run_is_named(self, workplace: Workplace) -> None:
        shown = workplace.call("report", ".")
        assert shown.returncode == 2
        assert "not a run folder" in shown.stderr
        assert "Traceback" not in shown.stderr

    def test_results_that_cannot_be_written(self, workplace: Workplace) -> None:
        (workplace.folder / "taken").write_text("a file")
        shown = workplace.call("run", "tiny.yaml", "--results", "taken")
        assert shown.returncode == 2
        assert "taken" in shown.stderr
        assert "--results" in shown.stderr
        assert "Traceback" not in shown.stderr

    def test_a_full_disk_keeps_every_record_before_it(self, workplace: Workplace) -> None:
        # A limit on file size stands for the full disk: the write fails half-way in the same place. It is the
        # bench's alone, laid on it while it runs: its trials may write what they need.
        process = workplace.first_trial_done("run", "tiny.yaml")
        size = (workplace.run_folders()[-1] / "records.jsonl").stat().st_size
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
        workplace.let_go()
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 2, stderr
        assert "records.jsonl: cannot write" in stderr
        assert "Traceback" not in stderr
        kept = workplace.records()
        assert kept
        assert not (workplace.run_folders()[-1] / "weights").exists()
        assert workplace.call("run", "tiny.yaml").returncode == 0
        assert workplace.records()[: len(kept)] == kept


class TestCommandLine:
    def test_torch_is_not_imported_by_the_bench(self, workplace: Workplace, finished: Workplace) -> None:
        code = (
            "import sys\n"
            "from selectbench.cli import app\n"
            "try: app(sys.argv[1:])\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "heavy = {'torch', 'transformers', 'deepspeed', 'bitsandbytes'} & sys.modules.keys()\n"
            "assert not heavy, heavy\n"
        )
        for arguments in (["--help"], ["plan", "tiny.yaml"], ["report", str(finished.run_folders()[-1])]):
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments], cwd=workplace.folder, capture_output=True, text=True,
                check=False, env=workplace.environment(),
            )  # fmt: skip
            assert done.returncode == 0, (arguments, done.stderr)

    def test_plan_shows_the_derived_accumulation(self, workplace: Workplace) -> None:
        plan = json.loads(workplace.call("plan", "tiny.yaml", "--json").stdout)
        steps = {option["option"]: option["gradient_accumulation_steps"] for option in plan["options"]}
        assert steps == {"whole": 1, "halves": 2}
        assert plan["tokens_per_trial"] == 6 * 4 * 16
        assert plan["parameters"] > 0
        assert plan["expected_seconds"] > 0

    def test_quick_claims_nothing_of_quality(self, workplace: Workplace) -> None:
        done = workplace.call("run", "tiny.yaml", "--quick", "--json")
        assert done.returncode == 0, done.stderr
        ranking = json.loads(done.stdout)
        assert all(row["metrics"]["final_perplexity"]["value"] is None for row in ranking["rows"])
        assert "quality was not measured" in ranking["answer"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["run"],
            ["run", "missing.yaml"],
            ["run", "tiny.yaml", "--profile", "gpu"],
            ["frobnicate"],
            ["run", "tiny.yaml", "--set", "job.max_stepz=3"],
        ],
    )
    def test_wrong_use_ends_with_2_and_no_traceback(self, workplace: Workplace, arguments: list[str]) -> None:
        done = workplace.call(*arguments)
        assert done.returncode == 2
        assert done.stderr.strip()
        assert "Traceback" not in done.stderr
        assert not Path(workplace.folder / "results").exists()

    def test_init_writes_a_suite_that_plans_and_spares_an_existing_file(self, workplace: Workplace) -> None:
        assert workplace.call("init", "mine.yaml").returncode == 0
        assert workplace.call("plan", "mine.yaml", "--json").returncode == 0
        again = workplace.call("init", "mine.yaml")
        assert again.returncode == 2
        assert "exists already" in again.stderr

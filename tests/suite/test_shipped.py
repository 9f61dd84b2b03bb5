"""The suites that come along: what they promise, and where they are found."""

from __future__ import annotations

import pytest
from suite_texts import VALID, write
from typer.testing import CliRunner

from selectbench.choices import REGISTRY
from selectbench.choices.choice import tag_of
from selectbench.choices.model import Gpt2
from selectbench.cli import app
from selectbench.errors import UserError
from selectbench.planning.memory import size_of
from selectbench.suite.load import find, load_suite, names, scripts_of, template

CORPUS_TOKENS = 1_800_000
"""A low estimate of the corpus under a vocabulary of 512."""

CORPUS_BYTES = 3_930_000
"""The same of its text for training."""


GPT2 = ["accumulation", "distributed", "framework", "multinode", "optimizer", "precision", "scaling"]
TASKS = ["architecture", "finetuning", "known_floor", "pretrained", "tokenizer", "translation"]


def test_the_suites_that_are_shipped():
    assert names() == sorted(GPT2 + TASKS + ["batch_size", "frameworks"])


@pytest.mark.parametrize("name", GPT2)
def test_the_cuda_profile_trains_gpt2_124m_within_one_epoch(name):
    suite = load_suite(name, device="cuda")
    assert (suite.profile, suite.job.seq_len, suite.job.tokenizer.bpe) == ("cuda", 1024, 512)
    assert isinstance(suite.job.model, Gpt2)
    assert size_of(suite.job.model, 50304, 1024).all_parameters == pytest.approx(124e6, rel=0.01)
    # Some of the corpus is held out for evaluation.
    assert suite.job.max_steps * suite.job.tokens_per_step < 0.95 * CORPUS_TOKENS
    assert len(suite.seeds) >= 3


@pytest.mark.parametrize("name", names())
def test_every_option_does_the_same_job_on_a_cpu(name):
    suite = load_suite(name, device="cpu")
    assert suite.profile == "cpu"
    assert len(suite.seeds) >= (2 if name == "translation" else 3)
    assert suite.options[0].name == suite.baseline
    assert all(option.choices.world_size in (1, 2) for option in suite.options)  # two cores are enough
    assert suite.question.endswith("?")


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_suites_of_tasks_load_for_both_devices(name, device):
    suite = load_suite(name, device=device)
    assert suite.profile == device
    assert len({suite.job.of(o.choices).seq_len for o in suite.options}) == 1
    if len({suite.job.of(o.choices).tokenizer for o in suite.options}) > 1:
        assert suite.decide.objective == "bits_per_byte"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_batch_size_trains_on_the_same_tokens_and_is_tuned(device):
    suite = load_suite("batch_size", device=device)
    jobs = [suite.job.of(o.choices) for o in suite.options]
    assert len({job.max_steps * job.tokens_per_step for job in jobs}) == 1
    sizes = {"cpu": [4, 8, 16, 32], "cuda": [16, 32, 64, 128, 256]}
    assert sorted(job.global_batch_size for job in jobs) == sizes[device]
    assert (suite.decide.objective, list(suite.tune.parameters)) == ("seconds_to_baseline_loss", ["optimizer.lr"])
    evaluations = {job.max_steps / job.eval.every_steps for job in jobs}
    assert evaluations == {12.0 if device == "cpu" else 7.0}


def test_the_cuda_profile_of_batch_sizes_trains_gpt2_124m_within_four_epochs():
    suite = load_suite("batch_size", device="cuda")
    assert size_of(suite.job.model, 50304, 1024).all_parameters == pytest.approx(124e6, rel=0.01)
    assert suite.job.max_steps * suite.job.tokens_per_step < 4 * CORPUS_BYTES


def test_architectures_are_about_equally_large():
    for device, vocab_size in (("cpu", 2048), ("cuda", 2048)):
        suite = load_suite("architecture", device=device)
        models = [suite.job.of(o.choices).model for o in suite.options]
        sizes = [size_of(model, vocab_size, suite.job.seq_len).all_parameters for model in models]
        assert max(sizes) / min(sizes) < 1.25, sizes


def test_the_suites_ask_about_what_they_are_named_after():
    precision, optimizer, accumulation = (
        load_suite(n, device="cpu") for n in ("precision", "optimizer", "accumulation")
    )
    assert [o.choices.precision.name for o in precision.options] == [
        "fp32", "tf32", "bf16_mixed", "fp16_mixed", "bf16_master", "bf16_pure",
    ]  # fmt: skip
    assert {o.choices.optimizer.name for o in optimizer.options} == {
        "adamw", "sgd", "adam", "adafactor", "lion", "muon", "adamw_8bit", "lion_8bit",
        "ademamix_8bit", "schedule_free_adamw",
    }  # fmt: skip
    cuts = [accumulation.job.global_batch_size // o.choices.micro_batch_size for o in accumulation.options]
    assert cuts == [1, 2, 4, 8, 1]
    assert accumulation.options[-1].differs_in == ["activation_checkpointing"]


def test_a_file_comes_before_a_shipped_name_and_a_folder_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precision").mkdir()
    assert find("precision").name == "precision.yaml"
    (tmp_path / "precision").rmdir()
    write(tmp_path, VALID, "precision")
    assert load_suite("precision", device="cpu").job.max_steps == 30


@pytest.mark.parametrize("name", [None, *names()])
def test_a_template_is_commented_and_loads(name, tmp_path):
    text = template(name)
    assert text.count("#") >= 3
    if (scripts := scripts_of(name)) is not None:  # they are copied with it
        (tmp_path / scripts.name).symlink_to(scripts)
    suite = load_suite(str(write(tmp_path, text)), device="cpu")
    assert len(suite.options) > 1


def test_a_new_suite_has_enough_seeds_its_own_name_and_every_precision(tmp_path):
    path = tmp_path / "mine.yaml"
    result = CliRunner().invoke(app, ["init", str(path)])
    assert result.exit_code == 0, result.output
    text = path.read_text()
    assert "`selectbench plan mine.yaml`" in text
    assert "suite.yaml" not in text
    assert len(load_suite(str(path), device="cpu").seeds) == 3
    (line,) = (line for line in text.splitlines() if "# precision: " in line)
    assert all(tag_of(precision) in line for precision in REGISTRY["precision"])
    assert "on a GPU tf32" in line


@pytest.mark.parametrize("command", ["run", "gate", "doctor"])
def test_help_names_no_type_beside_a_switch(command):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "100"}).output
    assert shown.count("<bool>") == 1  # of --help itself, which is not ours
    assert "--" in shown


def test_the_template_s_commented_lines_are_valid_too(tmp_path):
    lines = [line.replace("# ", "", 1) if line.startswith("  # ") else line for line in template().splitlines()]
    uncommented = [
        line for line in lines if not line.strip().startswith(("Random", "own class", "Your", "Trained"))
    ]
    text = "\n".join(line.split("   #")[0] for line in uncommented)
    load_suite(str(write(tmp_path, text)), device="cpu")


def test_a_template_of_an_unknown_name():
    with pytest.raises(UserError, match=r"--from precison: there is no .* \(did you mean 'precision'\?\)"):
        template("precison")

"""What a run hands its trials, threads by rank and a folder of weights that does not stay; plans without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from selectbench.cli import _echo_json
from selectbench.errors import MissingPackageError, UserError
from selectbench.launch import preparation
from selectbench.launch import run as order
from selectbench.launch.preparation import Request, prepare_data, preview
from selectbench.record.run_folder import WEIGHTS, weights_folder
from selectbench.report.terminal import data_as_json
from selectbench.suite.document import read_document
from selectbench.suite.load import find, load_suite, names


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
        (weights / "0.safetensors").write_bytes(b"weights")

    def interrupted_run() -> None:
        with weights_folder(tmp_path):
            assert list(weights.iterdir()) == []
            write()
            raise KeyboardInterrupt

    weights.mkdir()
    write()
    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert not weights.exists()


def test_the_text_must_be_enough_for_every_options_own_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text(
        "\n\n".join(f"Document {n} has a line of its own, {n * n}." for n in range(400))
    )
    (tmp_path / "mine.yaml").write_text(
        "job:\n  model: {family: gpt2, n_layer: 1, n_embd: 32, n_head: 2}\n  data: {text: [a.txt]}\n"
        "  tokenizer: {bytes: true}\n  seq_len: 16\n  global_batch_size: 8\n  max_steps: 512\n"
        "choices: {optimizer: {name: adamw, lr: 1e-3}, micro_batch_size: 8}\n"
        "options: {small: {}, large: {global_batch_size: 4096}}\nbaseline: small\n"
    )
    suite = load_suite(str(tmp_path / "mine.yaml"), device="cpu")
    with pytest.raises(UserError, match="less than one batch of global_batch_size 4096"):
        prepare_data(suite, lambda _: None)
    smaller = suite.model_copy(update={"options": suite.options[:1]})
    assert list(prepare_data(smaller, lambda _: None)) == ["small"]


def profiles() -> list[tuple[str, str]]:
    """Every shipped suite with each of its profiles."""
    found = [(name, read_document(find(name)).below("profiles")) for name in names()]
    return [(name, profile) for name, has in found for profile in has]


@pytest.mark.parametrize(("suite", "profile"), profiles())
def test_every_shipped_suite_is_planned_without_a_gpu_whatever_its_profile(
    suite: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unprepared(*_: object, **__: object) -> None:
        raise MissingPackageError("the data are not prepared")

    monkeypatch.setattr(preparation, "prepare_data", unprepared)
    monkeypatch.setattr("selectbench.machine._visible_gpus", list)
    outlook = preview(Request(suite, profile=profile), lambda line: None)
    assert [planned.option for planned in outlook.plan.options] == outlook.plan.suite.options
    assert all(planned.gradient_accumulation_steps >= 1 for planned in outlook.plan.options)
    told = any("planned as if this machine had" in note for note in outlook.notes)
    assert told == (outlook.plan.suite.device == "cuda")
    if profile == "cuda":
        assert not any("world_size" in (planned.unsupported or "") for planned in outlook.plan.options)


@pytest.mark.parametrize(
    ("suite", "count"), [("distributed", "1 GPU"), ("framework", "1 GPU"), ("scaling", "8 GPUs")]
)
def test_the_command_without_a_gpu_says_what_it_planned_for(suite: str, count: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "selectbench", "plan", suite, "--profile", "cuda", "--json"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    shown = json.loads(done.stdout)
    no_gpu, planned_for = shown["notes"][:2]
    assert no_gpu.startswith("this run cannot start here: device cuda: no GPU is visible")
    assert planned_for == f"planned as if this machine had {count}, of which nothing is known"
    assert shown["parameters"] == 124_475_904
    assert all(option["expected_peak_memory_bytes"] > 1e9 for option in shown["options"])


DATA = """job:
  model: {family: gpt2, n_layer: 1, n_embd: 32, n_head: 2}
  data: {text: [corpus.txt]}
  tokenizer: {bytes: true}
  seq_len: 16
  global_batch_size: 4
  max_steps: 6
choices: {optimizer: {name: adamw, lr: 1e-3}, micro_batch_size: 4}
options: {fp32: {precision: fp32}, bf16: {precision: bf16_mixed}}
baseline: fp32
profiles:
  cpu: {job: {data: {text: ["texts/*.txt", gone.txt]}}}
"""


@pytest.mark.parametrize(
    ("settings", "place", "name"),
    [
        ([], "mine.yaml:12:28: ", "text"),  # the profile's, not the file's own
        (["job.data={jsonl: '*.jsonl'}"], "", "jsonl"),  # which stands nowhere in the file
    ],
)
def test_data_that_are_not_there_are_told_with_their_place(
    settings: list[str], place: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(DATA)
    with pytest.raises(UserError) as caught:
        preview(Request("mine.yaml", profile="cpu", settings=settings), lambda line: None)
    assert all(problem.startswith(f"{place}job.data.{name}: ") for problem in caught.value.problems)
    assert len(caught.value.problems) == (2 if place else 1)
    with pytest.raises(UserError, match=f"^{place}job.data.{name}: "):
        preparation.prepared_data(Request("mine.yaml", profile="cpu", settings=settings), lambda line: None)


def test_a_plan_says_first_that_its_run_cannot_start(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "selectbench", "plan", "scaling", "--profile", "cuda"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    second = done.stdout.splitlines()[1]
    assert second.startswith("this run cannot start here: device cuda: no GPU is visible")
    assert done.stdout.count("cannot start here") == 1


def test_what_a_text_hides_is_escaped_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = "\u202e\x9b\u2066"
    lines = (f"caf\u00e9 {hidden} a line of text, the number {n}\n\n" for n in range(400))
    (tmp_path / "corpus.txt").write_text("".join(lines))
    (tmp_path / "mine.yaml").write_text(DATA.replace("profiles:", "#").replace("  cpu:", "#"))
    found = preparation.prepared_data(Request(str(tmp_path / "mine.yaml")), lambda line: None)
    text = data_as_json(found)
    assert "caf\u00e9" in text
    assert all(character.isprintable() or character == "\n" for character in text)
    assert hidden in json.loads(text)[0]["training_samples"][0]
    _echo_json(Requested(name=hidden))  # as gates and options are printed
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert json.loads(shown) == {"name": hidden}


class Requested(BaseModel):
    name: str

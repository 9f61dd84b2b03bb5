"""A pretrained model is known by what it is: its commit on the hub, or its folder's files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_cache import FIRST, NAME, SECOND, commit, moved
from launch.harness import TINY_SUITE, corpus
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from selectbench.data.prepared import cached_sha256
from selectbench.launch.preparation import Preparation, Request, prepare_all
from selectbench.launch.run import make_order
from selectbench.record.run_folder import fingerprint
from selectbench.record.wire import Finished
from selectbench.worker.model import weights_sha256
from selectbench.worker.trial import run_trial

LLAMA = LlamaConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=300,
    max_position_embeddings=32, bos_token_id=None, eos_token_id=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of two models of one shape."""
    found = {}
    for seed, number in enumerate((FIRST, SECOND)):
        torch.manual_seed(seed)
        found[number] = tmp_path_factory.mktemp(f"llama{seed}")
        LlamaForCausalLM(LLAMA).save_pretrained(found[number])
    return found


@pytest.fixture
def hub(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache in which NAME is the first one, after it was the second; no network."""
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for number in (SECOND, FIRST):
        commit(tmp_path / "hub", number, folders[number])
    return tmp_path / "hub"


def prepared(folder: Path, model: object) -> Preparation:
    (folder / "corpus.txt").write_text(corpus())
    text = TINY_SUITE.replace("{family: gpt2, n_layer: 1, n_embd: 32, n_head: 2}", f"{{pretrained: {model}}}")
    (folder / "tiny.yaml").write_text(text)
    preparation = prepare_all(Request(str(folder / "tiny.yaml"), profile="cpu"), lambda line: None)
    preparation.claim.release()  # nothing is run
    return preparation


def marks(preparation: Preparation) -> set[str]:
    """What names its trials, and what decides whether an incomplete run is gone on with."""
    ids = {planned.trial.trial_id for planned in preparation.plan.trials}
    return {*ids, fingerprint(preparation.suite, preparation.environment, "data")}


def test_a_model_that_changed_under_its_name_is_another(hub: Path, tmp_path: Path) -> None:
    first = prepared(tmp_path, NAME)
    assert first.environment["pretrained"] == {"whole": FIRST, "halves": FIRST}
    assert marks(first) == marks(prepared(tmp_path, NAME))
    moved(hub, SECOND)
    second = prepared(tmp_path, NAME)
    assert second.environment["pretrained"] == {"whole": SECOND, "halves": SECOND}
    assert not marks(first) & marks(second)


def test_a_folder_whose_weights_changed_is_another(hub: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in folders[FIRST].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    before = prepared(tmp_path, folder)
    (folder / "README.md").write_text("no part of the model")
    assert marks(before) == marks(prepared(tmp_path, folder))
    assert str(tmp_path) not in str(before.environment["pretrained"])
    weights = load_file(folder / "model.safetensors")
    save_file({name: one * 2 for name, one in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    assert not marks(before) & marks(prepared(tmp_path, folder))


def test_weights_are_read_once_until_they_change(
    hub: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda file, kind: (read.append(file.name), digest(file, kind))[1])
    path = tmp_path / "model.safetensors"
    path.write_bytes((folders[FIRST] / "model.safetensors").read_bytes())
    first = cached_sha256(path)
    assert first == cached_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(read) == 2, "it was written a moment ago: its clock may not tell the next change"
    monkeypatch.setattr("selectbench.data.prepared.UNCHANGED_NS", 0)
    assert first == cached_sha256(path) == cached_sha256(path)
    assert len(read) == 3
    times = path.stat()
    path.write_bytes((folders[SECOND] / "model.safetensors").read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert cached_sha256(path) != first, "though size and time of change are the same"
    assert cached_sha256(folders[FIRST] / "model.safetensors") == first


def test_trials_train_the_commit_that_was_planned_though_the_name_moves(
    hub: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    preparation = prepared(tmp_path, NAME)
    moved(hub, SECOND)
    order = make_order(preparation, preparation.plan.trials[0], tmp_path / "run")
    (tmp_path / "run" / "trials" / order.trial.trial_id).mkdir(parents=True)
    events: list[Any] = []
    run_trial(order, events.append)
    assert isinstance(events[-1], Finished), events[-1]
    planned = LlamaForCausalLM.from_pretrained(folders[FIRST], dtype=torch.float32)
    assert events[-1].identity is not None
    assert events[-1].identity.initial_weights_sha256 == weights_sha256(planned)


def test_a_drawn_model_has_no_content(hub: Path, tmp_path: Path) -> None:
    preparation = prepared(tmp_path, NAME)
    suite = (tmp_path / "tiny.yaml").read_text().replace(f"{{pretrained: {NAME}}}", "{family: gpt2, n_embd: 24}")
    (tmp_path / "tiny.yaml").write_text(suite)
    drawn = prepare_all(Request(str(tmp_path / "tiny.yaml"), profile="cpu"), lambda line: None)
    drawn.claim.release()
    assert "pretrained" not in drawn.environment
    assert not marks(preparation) & marks(drawn)

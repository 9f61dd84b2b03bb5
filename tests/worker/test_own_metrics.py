"""Metrics of own code: what they are given, and what becomes of what they return."""

from __future__ import annotations

import sys

import pytest
import torch
from tokenizers import Tokenizer

from selectbench.choices.choice import OwnCodeError
from selectbench.data.prepared import TOKENIZER, Prepared

SOURCE = """
import torch

def loss(model, tokenizer, texts, seq_len=32):
    '''The held-out loss in nats per token, as the evaluation cuts the text.'''
    assert not model.training and not torch.is_grad_enabled()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    end = tokenizer.eos_token_id
    ids = [token for text in texts for token in [*tokenizer(text)['input_ids'], end]]
    rows = torch.tensor(ids[: 1 + (len(ids) - 1) // seq_len * seq_len]).unfold(0, seq_len + 1, seq_len)
    logits = model(rows[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()))

def spoils(model, tokenizer, texts):
    for parameter in model.parameters():
        parameter.zero_()
    torch.manual_seed(7)
    return len(texts)

def words(model, tokenizer, texts):
    return 'many'

def below_zero(model, tokenizer, texts):
    return -0.5

def no_number(model, tokenizer, texts):
    return float('nan')
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "own_metrics_here.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield [str(tmp_path)]
    sys.modules.pop("own_metrics_here", None)


def job(metrics, **more):
    asked = {
        name: {"call": f"own_metrics_here:{function}", "better": better, "settings": settings}
        for name, (function, better, settings) in metrics.items()
    }
    return {"max_steps": 6, "eval": {"tokens": 1000, "metrics": asked}, **more}


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16_master"}, {"min_timed_seconds": 0.3}])
def test_one_that_computes_the_loss_finds_it(trials, code, settings):
    measured = trials.finished(job=job({"own_loss": ("loss", "less", {})}), code=code, **settings).measurement
    # The evaluation's last sequence ends beyond the tokens asked for.
    assert measured.scores["own_loss"] == pytest.approx(measured.final_loss, rel=0.03)
    assert measured.score_signatures == {"own_loss": "own_metrics_here:loss"}
    shorter = trials.finished(job=job({"own_loss": ("loss", "less", {"seq_len": 8})}), code=code, **settings)
    assert shorter.measurement.scores["own_loss"] != measured.scores["own_loss"]


@pytest.mark.parametrize("strategy", [{"name": "fsdp"}, {"name": "zero", "stage": 3}])
def test_of_sharded_weights_too(launched, code, strategy):
    settings = {"job": job({"own_loss": ("loss", "less", {})}), "code": code, "precision": "fp32"}
    alone = launched.finished(**settings).measurement.scores["own_loss"]
    shared = launched.finished(**settings, strategy=strategy, world_size=2, micro_batch_size=4).measurement
    assert shared.scores["own_loss"] == pytest.approx(alone, rel=1e-4)


def test_the_texts_are_the_held_out_documents(trials, code):
    data = Prepared.open(trials.data_folder)
    tokenizer = Tokenizer.from_file(str(data.folder / TOKENIZER))
    found = trials.finished(job=job({"texts": ("spoils", "more", {})}), code=code).measurement.scores["texts"]
    assert found == (data.heldout()[:1000] == data.end_id).sum() + (data.heldout()[999] != data.end_id)
    assert "line 0 of text" in tokenizer.decode(data.heldout()[:50].tolist())


def test_it_changes_nothing_of_the_training(trials, code):
    plain = trials.finished(job=job({}), min_timed_seconds=0.2)
    spoilt = trials.finished(job=job({"texts": ("spoils", "more", {})}), code=code, min_timed_seconds=0.2)
    assert spoilt.measurement.final_loss == plain.measurement.final_loss
    assert spoilt.identity == plain.identity
    assert torch.initial_seed() != 7


@pytest.mark.parametrize(
    ("function", "said"),
    [("words", "it returned a str"), ("below_zero", "it returned -0.5"), ("no_number", "it returned nan"),
     ("lost", "eval.metrics.own own_metrics_here:lost")],
)  # fmt: skip
def test_what_is_no_metric_is_told(trials, code, function, said):
    with pytest.raises(OwnCodeError, match=said):
        trials.events(job=job({"own": (function, "less", {})}), code=code)

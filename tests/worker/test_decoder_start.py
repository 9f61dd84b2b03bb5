"""What a decoder is given first: what the model's configuration says, as transformers has it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import task_jobs as jobs
import torch
from task_jobs import LENGTH, SEQUENCES
from tokenizers import Tokenizer
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from selectbench.data.prepared import TOKENIZER, Prepared
from selectbench.worker.batches import Batch, PairTokens, decoder_start_id, pairs_held_out
from selectbench.worker.evaluation import HYPOTHESES

SEED, GENERATED, TOKENS = 3, 5, 300


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELECTBENCH_CACHE", str(root / "cache"))
        return jobs.prepared_pairs(root)


def bart(data: Prepared):
    """Starts with its end of text, as the published ones do; weights so large that what comes first matters."""
    config = BartConfig(
        encoder_layers=1, decoder_layers=1, d_model=32, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=data.vocab_size, max_position_embeddings=LENGTH,
        dropout=0.0, init_std=0.5, pad_token_id=data.special_ids["pad"], bos_token_id=None,
        eos_token_id=data.end_id, decoder_start_token_id=data.end_id, forced_eos_token_id=None,
    )  # fmt: skip
    return jobs.made(BartForConditionalGeneration, config, SEED)


def t5(data: Prepared):
    """Starts with its padding, as the published ones do."""
    pad = data.special_ids["pad"]
    config = T5Config(
        num_layers=1, d_model=32, num_heads=2, d_kv=16, d_ff=64, vocab_size=data.vocab_size, dropout_rate=0.0,
        pad_token_id=pad, eos_token_id=data.end_id, decoder_start_token_id=pad, initializer_factor=5.0,
    )  # fmt: skip
    return jobs.made(T5ForConditionalGeneration, config, SEED)


def loss_of(model, batch: Batch) -> float:
    """By transformers' own way from labels to what the decoder is given."""
    asked = {name: batch.named[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return float(model(**asked, labels=batch.targets).loss)


def generated(model, batch: Batch, data: Prepared) -> list[list[int]]:
    said = model.generate(
        input_ids=batch.named["input_ids"], attention_mask=batch.named["attention_mask"], num_beams=1,
        do_sample=False, max_new_tokens=LENGTH,
    )  # fmt: skip
    rows = (row[1:] for row in said.tolist())
    return [row[: row.index(data.end_id)] if data.end_id in row else row for row in rows]


@pytest.mark.parametrize(
    ("family", "start"), [(bart, "pretrained"), (bart, "config"), (t5, "pretrained")], ids=["bart", "drawn", "t5"]
)
def test_training_evaluation_and_generation_begin_as_transformers_does(trials, pairs, tmp_path, family, start):
    model = family(pairs).eval()
    model.save_pretrained(tmp_path / "model")
    trials.data_folder = pairs.folder
    job = jobs.job(
        "seq2seq", {start: str(tmp_path / "model")}, {"pairs": ["unused.tsv"]}, max_steps=1,
        eval={"tokens": TOKENS, "at_start": True, "scores": ["chrf"], "generate": GENERATED},
    )  # fmt: skip
    found = trials.finished(seed=SEED, job=job, optimizer={"name": "adamw", "lr": 1e-12}).measurement

    held_out = pairs_held_out(pairs, tokens=TOKENS, seq_len=LENGTH)
    assert found.initial_loss == pytest.approx(loss_of(model, held_out.batch(0, len(held_out))), rel=1e-5)
    train = PairTokens.of(pairs, "train", LENGTH)
    first = train.batch(jobs.order_of(len(train), SEED)[:SEQUENCES])
    assert found.first_loss == pytest.approx(loss_of(model, first), rel=1e-5)
    lines = (trials.trial_folder / HYPOTHESES).read_text().splitlines()
    tokenizer = Tokenizer.from_file(str(pairs.folder / TOKENIZER))
    said = [tokenizer.decode(ids) for ids in generated(model, held_out.batch(0, GENERATED), pairs)]
    assert [json.loads(line)["hypothesis"] for line in lines] == said
    assert any(said)


def test_what_comes_first_matters_to_that_bart(pairs):
    model = bart(pairs).eval()
    tokens = [PairTokens.of(pairs, "train", LENGTH, start).batch(np.arange(8)) for start in (None, pairs.end_id)]
    losses = []
    for batch in tokens:
        with torch.no_grad():
            logits = model(**batch.named).logits
        losses.append(float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())))
    assert losses[1] == pytest.approx(loss_of(model, tokens[0]), rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"decoder_start_token_id": 2, "bos_token_id": 0}, 2),
        ({"decoder_start_token_id": 0, "bos_token_id": 5}, 0),
        ({"decoder_start_token_id": None, "bos_token_id": 0}, 0),
        ({"bos_token_id": None}, None),
        ({"decoder_start_token_id": 300}, None),
    ],
    ids=str,
)
def test_what_a_configuration_says(stated, expected):
    assert decoder_start_id(SimpleNamespace(config=SimpleNamespace(vocab_size=300, **stated))) == expected

"""Figures and layers against their definitions, written out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from made_records import make_record, make_suite
from transformers import GPT2Config, GPT2LMHeadModel

from selectbench.analysis.metrics import derive, observe
from selectbench.choices.execution import CrossEntropy
from selectbench.data.prepare import prepare
from selectbench.data.sources import make_source
from selectbench.suite.sources import MarkovSource
from selectbench.worker.batches import NOT_COUNTED, Batch, HeldOut, causal_held_out
from selectbench.worker.evaluation import heldout_loss
from selectbench.worker.runtime import SINGLE_RANK

WIDTH, HEADS, LENGTH = 32, 4, 11


def attention_by_hand(block, hidden):
    """softmax(Q K^T / sqrt(d_k)) V (Vaswani et al. 2017, arXiv:1706.03762, equation 1), causal, head by head."""
    weight, bias = block.c_attn.weight, block.c_attn.bias
    queries, keys, values = (hidden @ weight + bias).split(WIDTH, dim=2)
    size = WIDTH // HEADS
    heads = []
    for head in range(HEADS):
        q, k, v = (part[:, :, head * size : (head + 1) * size] for part in (queries, keys, values))
        scores = torch.einsum("bqd,bkd->bqk", q, k) / math.sqrt(size)
        for place in range(LENGTH):
            scores[:, place, place + 1 :] = -math.inf
        shares = scores.exp() / scores.exp().sum(dim=2, keepdim=True)
        heads.append(torch.einsum("bqk,bkd->bqd", shares, v))
    return torch.cat(heads, dim=2) @ block.c_proj.weight + block.c_proj.bias


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_attention_is_the_scaled_dot_product(kernel):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=WIDTH, n_head=HEADS, vocab_size=50, n_positions=16, resid_pdrop=0.0,
                        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)  # fmt: skip
    model = GPT2LMHeadModel._from_config(config, attn_implementation=kernel, dtype=torch.float32).eval()
    block = model.transformer.h[0].attn
    with torch.no_grad():
        block.c_attn.weight.mul_(30)  # scores that differ from one another
    seen = {}
    block.register_forward_hook(lambda _, given, named, made: seen.update(given=given or named, made=made),
    with_kwargs=True)  # fmt: skip
    with torch.no_grad():
        model(input_ids=torch.randint(50, (3, LENGTH)))
        given = seen["given"]
        hidden = given[0] if isinstance(given, tuple) else given["hidden_states"]
        expected = attention_by_hand(block, hidden)
    assert expected.std() > 0.01
    torch.testing.assert_close(seen["made"][0], expected, rtol=1e-4, atol=1e-5)


def test_cross_entropy_of_a_fifth_is_its_logarithm():
    logits = torch.tensor([[[math.log(0.2), math.log(0.8)]]])
    assert CrossEntropy().build()(logits, torch.tensor([[0]])).item() == pytest.approx(1.609, abs=5e-4)
    assert CrossEntropy().build()(logits, torch.tensor([[0]])).item() == pytest.approx(-math.log(0.2), rel=1e-6)
    held_out = HeldOut(Batch(torch.tensor([[1, 0]]), (torch.tensor([[1]]),), {}, torch.tensor([[0]])), 1)
    assert heldout_loss(lambda _: logits, held_out, sequences_per_batch=1, world=SINGLE_RANK) == pytest.approx(
        1.609, abs=5e-4
    )


def test_a_held_out_loss_is_the_mean_over_the_counted_targets():
    probabilities = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]], [[0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]])
    tokens = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]])
    counted = torch.tensor([[True, True, False], [False, True, True]])
    chosen = [0.5, 0.25, 0.6, 0.7]  # of the targets 1, 0 and 0, 0
    held_out = HeldOut(Batch(tokens, (tokens[:, :-1],), {}, tokens[:, 1:].where(counted, NOT_COUNTED)), None)

    def logits(batch: Batch) -> torch.Tensor:
        rows = [0 if row.tolist() == [0, 1, 0] else 1 for row in batch.arguments[0]]
        return probabilities[rows].log()

    for at_once in (1, 2):
        loss = heldout_loss(logits, held_out, sequences_per_batch=at_once, world=SINGLE_RANK)
        assert loss == pytest.approx(-sum(map(math.log, chosen)) / 4, rel=1e-6)


# What is made of a loss


def metrics_of(**found):
    return derive(observe(make_record("fp32", 0, **found), make_suite("fp32")))


def test_perplexity_is_the_inverse_of_the_geometric_mean_probability():
    probabilities = [0.2, 0.5, 0.9, 0.04]
    loss = sum(-math.log(p) for p in probabilities) / 4
    assert metrics_of(final_loss=loss)["final_perplexity"] == pytest.approx(math.prod(probabilities) ** (-1 / 4))


def test_bits_per_byte_are_a_code_length_over_the_bytes_of_the_text():
    """Three tokens of probability 1/2, 1/4 and 1/8 take 1, 2 and 3 bits; they stand for 12 bytes."""
    loss = (math.log(2) + math.log(4) + math.log(8)) / 3
    found = metrics_of(final_loss=loss, heldout_tokens=3, heldout_bytes=12)
    assert found["bits_per_byte"] == pytest.approx(6 / 12, rel=1e-12)
    assert found["bytes_per_token"] == 4


def test_excess_loss_is_what_is_above_the_sources_own():
    assert metrics_of(final_loss=2.25, source_loss=2.0)["excess_loss"] == 0.25
    assert metrics_of(final_loss=2.25)["excess_loss"] is None


# A source of known entropy


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path))
    spec = MarkovSource(markov=7, vocab_size=20, branches=3, train_tokens=4000, seed=5)
    return SimpleNamespace(spec=spec, data=prepare(spec, None), truth=make_source(spec))


def table_of(truth, vocab_size):
    """The log of the probability of every token after every token, from the source's graph."""
    table = torch.full((vocab_size, vocab_size), -1e9)
    for token, state in enumerate(truth.next_state):
        for following, probability in zip(truth.tokens[state], truth.probabilities[state], strict=True):
            table[token, following] = math.log(probability)
    return table


def test_the_source_itself_has_no_excess_loss(source):
    held_out = causal_held_out(source.data, tokens=1 << 20, seq_len=16)
    table = table_of(source.truth, 20)
    loss = heldout_loss(lambda b: table[b.arguments[0]], held_out, sequences_per_batch=4, world=SINGLE_RANK)
    floor, error = held_out.source_loss()
    assert loss - floor == pytest.approx(0, abs=1e-6)
    assert floor > 0.5
    assert error == pytest.approx(0, abs=0.1)
    # The walk is finite: its own mean is off the entropy rate by a few of its standard errors at most.
    assert floor == pytest.approx(source.data.entropy_rate, abs=5 * error)
    flatter = heldout_loss(lambda b: table[b.arguments[0]] / 2, held_out, sequences_per_batch=4, world=SINGLE_RANK)
    assert flatter - floor > 1e-3, "any other model has an excess"


OWN = """
import math
import torch
from selectbench.data.sources import make_source
from selectbench.suite.sources import MarkovSource


class Source(torch.nn.Module):
    def __init__(self, vocab_size, seq_len, **spec):
        super().__init__()
        truth = make_source(MarkovSource(vocab_size=vocab_size, **spec))
        table = torch.full((vocab_size, vocab_size), -1e4)
        for token, state in enumerate(truth.next_state):
            for following, probability in zip(truth.tokens[state], truth.probabilities[state]):
                table[token, following] = math.log(probability)
        self.table = torch.nn.Parameter(table)

    def forward(self, ids):
        return self.table[ids]
"""


def test_a_trial_of_a_model_that_is_the_source_begins_without_excess_loss(trials, source, tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "own_source.py").write_text(OWN)
    trials.data_folder = source.data.folder
    spec = source.spec.model_dump(mode="json")
    settings = {key: spec[key] for key in ("markov", "branches", "train_tokens", "seed")}
    model = {"family": "own_source:Source", "settings": settings}
    job = {"model": model, "data": spec, "tokenizer": None, "seq_len": 16, "global_batch_size": 8, "max_steps": 2,
           "eval": {"tokens": 150, "at_start": True}}  # fmt: skip
    finished = trials.finished(job=job, code=[str(code)], optimizer={"name": "sgd", "lr": 1e-9})
    measured = finished.measurement
    assert measured.initial_loss - measured.source_loss == pytest.approx(0, abs=1e-6)
    assert measured.final_loss - measured.source_loss == pytest.approx(0, abs=1e-6)
    assert measured.heldout_tokens == 160
    assert measured.heldout_bytes is None
    assert measured.source_loss_error > 0

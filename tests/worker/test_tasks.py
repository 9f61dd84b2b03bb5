"""Tasks other than the next token of running text, against hand-written PyTorch and against themselves."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import task_jobs as jobs
import torch
import torch.nn.functional as F  # noqa: N812  # noqa: N812
from task_jobs import BART_PAIRS, CHATS, LENGTH, MASKED, SEQUENCES, STEPS, T5_PAIRS, PlainTraining

from selectbench.data.prepared import Prepared
from selectbench.worker.batches import (
    NOT_COUNTED,
    CausalBatches,
    MaskedBatches,
    PairTokens,
    batches_of,
    causal_held_out,
    hide_tokens,
    masked_held_out,
    pairs_held_out,
)
from selectbench.worker.runtime import SINGLE_RANK

JOBS = {"masked_lm": MASKED, "t5": T5_PAIRS, "bart": BART_PAIRS, "chat": CHATS}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return jobs.prepared_tasks(tmp_path_factory.mktemp("tasks"))


def series(trials):
    return json.loads((trials.trial_folder / "series.json").read_text())


def on(trials, data):
    """The same trials on other data."""
    trials.data_folder = data.folder
    return trials


def test_every_step_of_masked_lm(trials, prepared):
    data = prepared["masked_lm"]
    finished = on(trials, data).finished(seed=3, job=MASKED)
    batches = batches_of(trials.order(seed=3, job=MASKED), data, SINGLE_RANK, None)
    tokens = np.array(data.train(), dtype=np.int64)
    order = jobs.order_of((len(tokens) - 1) // LENGTH, 3)
    plain = PlainTraining(jobs.plain_bert(data.vocab_size, 3))
    for step in range(STEPS):
        batch = batches.batch_at(batches.sample_indices(step), step)
        rows = [tokens[i * LENGTH : (i + 1) * LENGTH] for i in order[step * SEQUENCES : (step + 1) * SEQUENCES]]
        assert batch.tokens.tolist() == np.stack(rows).tolist()
        chosen = batch.targets != NOT_COUNTED
        logits = plain.model(input_ids=batch.named["input_ids"]).logits
        plain.step(F.cross_entropy(logits[chosen], batch.tokens[chosen]))
    assert series(trials)["loss_nats_per_token"] == pytest.approx(plain.losses, rel=1e-5)
    assert series(trials)["gradient_norm"] == pytest.approx(plain.norms, rel=1e-4)
    assert finished.identity.parameters == sum(p.numel() for p in plain.model.parameters())
    assert finished.measurement.final_loss < finished.measurement.first_loss


PLAIN = {"t5": jobs.plain_t5, "bart": jobs.plain_bart}


@pytest.mark.parametrize("family", PLAIN)
def test_every_step_of_seq2seq(trials, prepared, family):
    """The plain loop has no padding: every pair goes through the model by itself."""
    data = prepared[family]
    finished = on(trials, data).finished(seed=3, job=JOBS[family])
    pairs, pad = jobs.pairs_that_fit(data), data.special_ids["pad"]
    order = jobs.order_of(len(pairs), 3)
    plain = PlainTraining(PLAIN[family](data.vocab_size, 3))
    for step in range(STEPS):
        mine = [pairs[i] for i in order[step * SEQUENCES : (step + 1) * SEQUENCES]]
        assert len({len(target) for _, target in mine}) > 1, "pairs of one length would show nothing"
        total = sum(jobs.pair_loss(plain.model, pair, pad) for pair in mine)
        plain.step(total / sum(len(target) for _, target in mine))
    assert series(trials)["loss_nats_per_token"] == pytest.approx(plain.losses, rel=1e-5)
    assert series(trials)["gradient_norm"] == pytest.approx(plain.norms, rel=1e-4)
    assert finished.identity.parameters == sum(p.numel() for p in plain.model.parameters())
    assert finished.measurement.tokens_per_step == finished.identity.tokens_per_step == SEQUENCES * 2 * LENGTH
    scored, tokens = 0.0, 0
    for pair in jobs.pairs_that_fit(data, heldout=True):
        with torch.no_grad():
            scored += jobs.pair_loss(plain.model.eval(), pair, pad).item()
        tokens += len(pair[1])
        if tokens >= 600:
            break
    assert finished.measurement.heldout_tokens == tokens
    assert finished.measurement.final_loss == pytest.approx(scored / tokens, rel=1e-4)


def test_every_step_of_a_chat_counts_the_answers_alone(trials, prepared):
    data = prepared["chat"]
    finished = on(trials, data).finished(seed=3, job=CHATS)
    tokens, mask = (torch.from_numpy(np.array(found, np.int64)) for found in (data.train(), data.mask("train")))
    assert 0.2 < mask.float().mean() < 0.8
    cut = data.answers("train", LENGTH)
    order = jobs.order_of(len(cut.starts), 3)
    plain = PlainTraining(plain_gpt2(data.vocab_size))
    for step in range(STEPS):
        rows = order[step * SEQUENCES : (step + 1) * SEQUENCES]
        places = torch.from_numpy(cut.starts[rows])[:, None] + torch.arange(LENGTH)
        first, last = torch.from_numpy(cut.spans[rows]).T[:, :, None]
        counts = (mask[places + 1] == 1) & (places + 1 >= first) & (places + 1 < last)
        assert counts.any(dim=1).all()
        targets = tokens[places + 1].masked_fill(~counts, -100)
        logits = plain.model(input_ids=tokens[places]).logits
        plain.step(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    assert series(trials)["loss_nats_per_token"] == pytest.approx(plain.losses, rel=1e-5)
    assert series(trials)["gradient_norm"] == pytest.approx(plain.norms, rel=1e-4)
    sizes = {"seq_len": LENGTH, "global_batch_size": SEQUENCES}
    one = CausalBatches(data.train(), **sizes, seed=3, device="cpu", answers=cut).batch_at(order[:1], 0)
    assert one.tokens.min() >= 0, "what a single row does not count is hidden in its targets alone"
    assert finished.measurement.heldout_tokens == data.mask("heldout").sum()  # fewer than the job asks for
    some = causal_held_out(data, tokens=100, seq_len=LENGTH)
    counted = data.answers("heldout", LENGTH).counted(np.arange(len(some)), LENGTH)
    assert some.tokens == counted.sum() >= 100 > counted[:-1].sum()


def plain_gpt2(vocab_size):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=vocab_size, n_positions=LENGTH, resid_pdrop=0.0,
                        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)  # fmt: skip
    return jobs.made(GPT2LMHeadModel, config, 3)


@pytest.mark.parametrize("task", JOBS)
def test_accumulation_changes_neither_gradients_nor_final_loss(trials, prepared, task):
    on(trials, prepared[task])
    runs = {size: (trials.finished(job=JOBS[task], micro_batch_size=size), series(trials)) for size in (8, 4, 2)}
    whole, whole_series = runs[8]
    for size in (4, 2):
        cut, cut_series = runs[size]
        assert cut.identity.gradient_accumulation_steps == 8 // size
        assert cut_series["gradient_norm"] == pytest.approx(whole_series["gradient_norm"], rel=1e-4)
        assert cut_series["loss_nats_per_token"] == pytest.approx(whole_series["loss_nats_per_token"], rel=1e-5)
        assert cut.measurement.final_loss == pytest.approx(whole.measurement.final_loss, rel=1e-5)
        assert cut.identity.token_stream_sha256 == whole.identity.token_stream_sha256
        assert cut.identity.evaluation_set_sha256 == whole.identity.evaluation_set_sha256


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("task", JOBS)
def test_two_ranks_train_what_one_process_trains(launched, prepared, task, accumulation):
    job = {**JOBS[task], "global_batch_size": 12, "clip_norm": 0.5}
    alone = on(launched, prepared[task]).finished(job=job, micro_batch_size=12 // accumulation)
    found = launched.series()
    shared = launched.finished(job=job, micro_batch_size=6 // accumulation, world_size=2, strategy={"name": "ddp"})
    both = launched.series()
    assert both["loss_nats_per_token"] == pytest.approx(found["loss_nats_per_token"], rel=2e-6)
    assert both["gradient_norm"] == pytest.approx(found["gradient_norm"], rel=2e-5)
    final = [math.exp(one.measurement.final_loss) for one in (alone, shared)]
    assert final[1] == pytest.approx(final[0], rel=1e-4)
    for field in ("initial_weights_sha256", "token_stream_sha256", "evaluation_set_sha256", "tokens_per_step",
                  "parameters", "trainable_parameters", "learning_rate_shape_sha256"):  # fmt: skip
        assert getattr(shared.identity, field) == getattr(alone.identity, field), field


STRATEGIES = [{"name": "fsdp"}, {"name": "zero", "stage": 2}, {"name": "zero", "stage": 3}]


@pytest.fixture(scope="module")
def alone(launched_for_all, prepared):
    """What one process trains of four steps of a task, once for all strategies, with its series."""

    @functools.cache
    def train(task):
        job = {**JOBS[task], "max_steps": 4}
        return on(launched_for_all, prepared[task]).finished(job=job), launched_for_all.series()

    return train


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("task", ["masked_lm", "t5", "bart"])
def test_sharded_ranks_train_what_one_process_trains(launched, alone, prepared, task, strategy):
    single, found = alone(task)
    job = {**JOBS[task], "max_steps": 4}
    shared = on(launched, prepared[task]).finished(job=job, micro_batch_size=4, world_size=2, strategy=strategy)
    both = launched.series()
    assert both["loss_nats_per_token"] == pytest.approx(found["loss_nats_per_token"], rel=2e-6)
    assert both["gradient_norm"] == pytest.approx(found["gradient_norm"], rel=2e-5)
    assert shared.measurement.final_loss == pytest.approx(single.measurement.final_loss, rel=1e-5)


# Padding


def losses_of(model, batch):
    """Summed loss of each target."""
    with torch.no_grad():
        logits = model.eval()(**batch.named).logits
    return F.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none").sum(dim=1)


@pytest.mark.parametrize("family", PLAIN)
def test_a_pair_has_the_same_loss_whatever_else_is_in_its_batch_and_however_wide(prepared, family):
    data = prepared[family]
    pad = data.special_ids["pad"]
    model = PLAIN[family](data.vocab_size, 0)
    narrow = PairTokens.of(data, "train", LENGTH)
    rows = np.arange(20)
    together = losses_of(model, narrow.batch(rows))
    alone = torch.cat([losses_of(model, narrow.batch(rows[n : n + 1])) for n in range(20)])
    assert together == pytest.approx(alone, rel=1e-5)
    tight = max(narrow.lengths[rows].ravel())
    assert tight < LENGTH
    tighter = PairTokens(narrow.tokens, narrow.starts, narrow.lengths, int(tight), pad, pad)
    assert losses_of(model, tighter.batch(rows)) == pytest.approx(together, rel=1e-5)


def test_what_stands_in_the_padding_changes_nothing(prepared):
    data = prepared["t5"]
    model = jobs.plain_t5(data.vocab_size, 0)
    pairs = PairTokens.of(data, "train", LENGTH)
    ended = replace(pairs, pad_id=data.end_id, start_id=data.end_id)
    found = [losses_of(model, each.batch(np.arange(8))) for each in (pairs, ended)]
    start, other = data.special_ids["pad"], ended.batch(np.arange(8))
    other.named["decoder_input_ids"][:, 0] = start
    assert losses_of(model, other) == pytest.approx(found[0], rel=1e-5)
    assert losses_of(model, other) != pytest.approx(found[1], rel=1e-3), "the first given token is no padding"


def test_pairs_too_long_for_the_job_take_no_part(prepared):
    data = prepared["t5"]
    for seq_len in (6, 8):
        pairs = PairTokens.of(data, "train", seq_len)
        assert 0 < len(pairs) < data.train_documents
        assert pairs.lengths.max() <= seq_len
        batch = pairs.batch(np.arange(len(pairs)))
        assert batch.targets.shape == (len(pairs), seq_len)
        said = (batch.targets != NOT_COUNTED).sum(dim=1)
        assert said.tolist() == pairs.lengths[:, 1].tolist()
        last = batch.targets.gather(1, (said - 1)[:, None])[:, 0]
        assert set(last.tolist()) == {data.end_id}
        assert batch.named["attention_mask"].sum(dim=1).tolist() == pairs.lengths[:, 0].tolist()


def test_held_out_pairs_are_the_first_with_so_many_target_tokens_and_their_bytes(prepared):
    data = prepared["t5"]
    held_out = pairs_held_out(data, tokens=50, seq_len=LENGTH)
    pairs = jobs.pairs_that_fit(data, heldout=True)
    lengths = [len(target) for _, target in pairs[: len(held_out)]]
    assert sum(lengths) == held_out.tokens >= 50 > sum(lengths[:-1])
    assert len(pairs) == len(data.heldout_pairs()), "all of them fit"
    targets = [target for _, target in data.heldout_pairs()][: len(held_out)]
    assert held_out.bytes == sum(len(target.encode()) for target in targets)


# Hidden tokens


def masked(data, seed=0):
    return MaskedBatches(data, seq_len=LENGTH, global_batch_size=SEQUENCES, seed=seed, device="cpu")


def same(one, other):
    return torch.equal(one.named["input_ids"], other.named["input_ids"]) and torch.equal(one.targets, other.targets)


def test_hidden_tokens_follow_from_seed_step_and_sequence_and_not_from_the_cut(prepared):
    batches = masked(prepared["masked_lm"])
    indices = batches.sample_indices(0)
    whole = batches.batch_at(indices, 0)
    assert same(whole, batches.batch_at(indices, 0))
    for size in (1, 2, 4):
        parts = [batches.batch_at(indices[n : n + size], 0) for n in range(0, SEQUENCES, size)]
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
        assert torch.equal(torch.cat([part.named["input_ids"] for part in parts]), whole.named["input_ids"])
        counted = [batches.counted(indices[n : n + size], 0) for n in range(0, SEQUENCES, size)]
        assert sum(counted) == batches.counted(indices, 0) == int((whole.targets != NOT_COUNTED).sum())
    backwards = batches.batch_at(indices[::-1].copy(), 0)
    assert torch.equal(backwards.targets.flip(0), whole.targets)
    assert not same(whole, batches.batch_at(indices, 1)), "another step hides others"
    assert not same(whole, masked(prepared["masked_lm"], seed=1).batch_at(indices, 0)), "another seed hides others"


def test_shares_of_hidden_tokens():
    tokens = np.random.default_rng(0).integers(300, size=(2000, 100))
    inputs, chosen = hide_tokens(tokens, list(range(2000)), 300, mask_id=300)
    assert chosen.mean() == pytest.approx(0.15, abs=0.003)
    assert (inputs[~chosen] == tokens[~chosen]).all()
    is_mask, is_same = inputs[chosen] == 300, inputs[chosen] == tokens[chosen]
    assert is_mask.mean() == pytest.approx(0.8, abs=0.01)
    assert is_same.mean() == pytest.approx(0.1 + 0.1 / 300, abs=0.01)
    assert (~is_mask & ~is_same).mean() == pytest.approx(0.1, abs=0.01)
    assert len(set(inputs[chosen & (inputs != tokens) & (inputs != 300)].tolist())) > 290, "of the whole vocabulary"


def test_something_is_hidden_in_the_shortest_sequence():
    _, chosen = hide_tokens(np.zeros((500, 2), np.int64), list(range(500)), 300, mask_id=1)
    assert chosen.any(axis=1).all()


def test_every_evaluation_asks_the_same(trials, prepared):
    data = prepared["masked_lm"]
    one, again = (masked_held_out(data, tokens=600, seq_len=LENGTH) for _ in range(2))
    assert same(one.batch(0, len(one)), again.batch(0, len(again)))
    assert one.sha256() == again.sha256()
    runs = [on(trials, data).finished(seed=seed, job={**MASKED, "max_steps": 2}) for seed in (0, 1)]
    assert {run.identity.evaluation_set_sha256 for run in runs} == {one.sha256()}
    assert {run.measurement.heldout_tokens for run in runs} == {one.tokens}
    share = one.tokens / (len(one) * LENGTH)
    assert 0.1 < share < 0.2


def test_bytes_of_hidden_tokens_are_those_of_the_text_that_they_stand_for(prepared):
    data = prepared["masked_lm"]
    held_out = masked_held_out(data, tokens=600, seq_len=LENGTH)
    targets = held_out.batch(0, len(held_out)).targets
    sizes = np.array(data.bytes_of_heldout())[: targets.numel()]
    assert held_out.bytes == int(sizes[(targets != NOT_COUNTED).flatten().numpy()].sum())
    assert 0 < held_out.bytes < sizes.sum()


def test_prepared_data_can_be_opened_again(prepared):
    for data in prepared.values():
        assert Prepared.open(data.folder).facts() == data.facts()

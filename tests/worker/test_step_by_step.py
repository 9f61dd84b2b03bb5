"""The loop against hand-written PyTorch, step by step."""

import json
import math

import numpy as np
import pytest
import torch
from worker.plain_training import LENGTH, STEPS, decaying, plain_evaluation, plain_gpt2, plain_training

from selectbench.data.prepared import Prepared
from selectbench.worker.batches import CausalBatches

JOB = {"max_steps": STEPS, "lr_schedule": {"name": "linear", "warmup_steps": 2, "final_fraction": 0.1}}


def trained_with_adamw(data_folder, seed):
    """AdamW with decay on matrices, linear schedule: the model, its losses and gradient norms."""
    model = plain_gpt2(seed)
    optimizer = torch.optim.AdamW(decaying(model), lr=3e-3, betas=(0.9, 0.95), fused=True)

    def scheduled(step):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * ((step + 1) / 2 if step < 2 else 1 - 0.9 * (step - 1) / 6)

    return model, *plain_training(data_folder, seed, model, optimizer, scheduled)


def series(trials):
    return json.loads((trials.trial_folder / "series.json").read_text())


def test_loss_and_gradient_norm_of_every_step(trials, data_folder):
    finished = trials.finished(seed=3, job=JOB)
    model, losses, norms = trained_with_adamw(data_folder, 3)
    assert series(trials)["loss_nats_per_token"] == pytest.approx(losses, rel=1e-6)
    assert series(trials)["gradient_norm"] == pytest.approx(norms, rel=1e-5)
    assert finished.identity.parameters == sum(p.numel() for p in model.parameters())
    assert finished.identity.first_step_gradient_norm == pytest.approx(norms[0], rel=1e-6)


def test_evaluation_is_the_mean_over_the_first_held_out_tokens(trials, data_folder):
    finished = trials.finished(seed=3, job=JOB)
    model, _, _ = trained_with_adamw(data_folder, 3)
    assert finished.measurement.final_loss == pytest.approx(plain_evaluation(data_folder, model), rel=1e-6)
    count = math.ceil(1000 / LENGTH)
    assert finished.measurement.heldout_tokens == count * LENGTH == 1024
    sizes = Prepared.open(data_folder).bytes_of_heldout()
    assert finished.measurement.heldout_bytes == int(sizes[1 : count * LENGTH + 1].sum())


def test_accumulation_changes_neither_gradients_nor_final_loss(trials):
    runs = {}
    for size in (8, 4, 2):
        finished = trials.finished(job={"max_steps": 12}, micro_batch_size=size)
        runs[size] = (finished, series(trials))
        assert finished.identity.gradient_accumulation_steps == 8 // size
    whole, whole_series = runs[8]
    for size in (4, 2):
        cut, cut_series = runs[size]
        assert cut_series["gradient_norm"] == pytest.approx(whole_series["gradient_norm"], rel=1e-4)
        assert cut_series["loss_nats_per_token"] == pytest.approx(whole_series["loss_nats_per_token"], rel=1e-5)
        assert cut.measurement.final_loss == pytest.approx(whole.measurement.final_loss, rel=1e-5)
        assert cut.identity.token_stream_sha256 == whole.identity.token_stream_sha256


def test_eager_attention_and_checkpointing_agree_with_sdpa(trials):
    sdpa = trials.finished()
    eager = trials.finished(attention="eager")
    recomputed = trials.finished(activation_checkpointing=True)
    for other in (eager, recomputed):
        assert other.measurement.last_loss == pytest.approx(sdpa.measurement.last_loss, rel=1e-4)
        assert other.measurement.final_loss == pytest.approx(sdpa.measurement.final_loss, rel=1e-4)
        assert other.identity.initial_weights_sha256 == sdpa.identity.initial_weights_sha256
    assert (sdpa.identity.attention, eager.identity.attention) == ("sdpa", "eager")


def test_the_seed_changes_weights_and_order_and_not_the_evaluation_set(trials):
    one, same, other = (trials.finished(seed=seed, job={"max_steps": 2}).identity for seed in (1, 1, 2))
    assert one == same
    assert one.initial_weights_sha256 != other.initial_weights_sha256
    assert one.token_stream_sha256 != other.token_stream_sha256
    assert one.evaluation_set_sha256 == other.evaluation_set_sha256


def test_every_sequence_comes_once_an_epoch_in_a_new_order():
    batches = CausalBatches(
        np.arange(33 * 2, dtype=np.uint16), seq_len=3, global_batch_size=4, seed=5, device="cpu"
    )
    count = batches.sequences
    drawn = np.concatenate([batches.sample_indices(step) for step in range(count)])
    epochs = drawn.reshape(4, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert batches.sequences_at(np.array([2]))[0].tolist() == [6, 7, 8, 9]

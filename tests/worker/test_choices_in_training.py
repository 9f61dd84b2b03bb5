"""Every choice that a CPU can run trains, and the certificate reports what was really used."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from selectbench.choices.execution import CompileOff, Fp16Mixed, Fp32
from selectbench.choices.optimizer import AdamW
from selectbench.record.wire import Finished
from selectbench.worker import trial as trial_module
from selectbench.worker.batches import Batch, HeldOut
from selectbench.worker.engine import SingleEngine
from selectbench.worker.evaluation import evaluation_forward, heldout_loss
from selectbench.worker.model import cast_parameters, new_model
from selectbench.worker.runtime import SINGLE_RANK

OPTIMIZERS = [
    ({"name": "sgd", "lr": 0.3}, ["SGD(fused)"], ["float32"]),
    ({"name": "sgd", "lr": 0.3, "nesterov": True, "implementation": "for_loop"}, ["SGD(for_loop)"], ["float32"]),
    ({"name": "adam", "lr": 3e-3, "implementation": "for_loop"}, ["Adam(for_loop)"], ["float32"]),
    ({"name": "adamw", "lr": 3e-3}, ["AdamW(fused)"], ["float32"]),
    ({"name": "adamw", "lr": 3e-3, "implementation": "foreach"}, ["AdamW(foreach)"], ["float32"]),
    ({"name": "adafactor", "lr": 3e-2}, ["Adafactor"], ["float32"]),
    ({"name": "muon", "lr": 3e-3}, ["Muon", "AdamW(fused)"], ["float32"]),
    ({"name": "lion", "lr": 1e-3}, ["Lion32bit"], ["float32"]),
    ({"name": "adamw_8bit", "lr": 3e-3}, ["AdamW8bit"], ["float32", "uint8"]),
    ({"name": "paged_adamw_8bit", "lr": 3e-3}, ["PagedAdamW8bit"], ["float32", "uint8"]),
    ({"name": "lion_8bit", "lr": 1e-3}, ["Lion8bit"], ["float32", "uint8"]),
    ({"name": "ademamix_8bit", "lr": 1e-3}, ["AdEMAMix8bit"], ["float32", "uint8"]),
    ({"name": "schedule_free_adamw", "lr": 3e-3}, ["AdamWScheduleFree"], ["float32"]),
]  # fmt: skip
LLAMA = {"family": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip
WIDE = {"family": "gpt2", "n_layer": 1, "n_embd": 64, "n_head": 2}


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
@pytest.mark.parametrize(("optimizer", "names", "dtypes"), OPTIMIZERS, ids=lambda value: str(value)[:60])
def test_optimizer_trains_and_is_reported(trials, optimizer, names, dtypes):
    finished = trials.finished(job={"max_steps": 30, "model": WIDE}, optimizer=optimizer)
    assert finished.measurement.last_loss < finished.measurement.first_loss - 0.3
    assert finished.identity.optimizer == names
    assert finished.identity.optimizer_state_dtype == dtypes


PRECISIONS = [
    ("fp32", "float32", "float32", 1e-6),
    ("bf16_mixed", "float32", "bfloat16", 2e-2),
    ("fp16_mixed", "float32", "float16", 2e-2),
    ("bf16_pure", "bfloat16", "bfloat16", 2e-2),
]


@pytest.mark.parametrize(("precision", "kept", "computed", "tolerance"), PRECISIONS)
def test_precision_trains_and_is_reported(trials, precision, kept, computed, tolerance):
    reference = trials.finished(job={"max_steps": 20})
    finished = trials.finished(job={"max_steps": 20}, precision=precision)
    identity, measurement = finished.identity, finished.measurement
    assert (identity.parameter_dtype, identity.gradient_dtype, identity.compute_dtype) == (kept, kept, computed)
    assert identity.optimizer_state_dtype == [kept]
    assert identity.matmul_tf32 is False
    assert identity.initial_weights_sha256 == reference.identity.initial_weights_sha256
    assert measurement.first_loss == pytest.approx(reference.measurement.first_loss, rel=tolerance)
    assert measurement.last_loss < measurement.first_loss - 0.3
    assert measurement.steps_applied + measurement.steps_skipped == 20


@pytest.mark.parametrize("precision", ["fp32", "bf16_pure"])
def test_llama_trains(trials, precision):
    finished = trials.finished(job={"model": LLAMA, "max_steps": 20}, precision=precision)
    assert finished.measurement.final_loss < finished.measurement.first_loss - 0.3


def test_fp16_skips_a_step_whose_scaled_gradients_overflow(trials):
    # Embeddings so large that the hidden states' gradients, scaled by the first 65536, exceed fp16's 65504.
    order = trials.order(precision="fp16_mixed", job={"max_steps": 12, "eval": "none"})
    mapped = trial_module.mapped_model

    def with_large_embeddings(*args):
        module = mapped(*args)
        embedding = module.transformer.wte.weight
        embedding.data = embedding.data * 10_000
        return module

    events = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_module, "mapped_model", with_large_embeddings)
        trial_module.run_trial(order, events.append)
    finished = events[-1]
    assert isinstance(finished, Finished), finished
    assert finished.measurement.steps_skipped > 0
    assert finished.measurement.steps_applied == finished.identity.steps_applied < 12
    assert finished.measurement.steps_applied + finished.measurement.steps_skipped == 12
    assert finished.identity.first_step_gradient_norm is None


def engine_of(model, optimizers, precision):
    """What an option of these optimizers trains with."""
    choices = SimpleNamespace(
        optimizer=SimpleNamespace(build=lambda module: optimizers), precision=precision, compile=CompileOff()
    )
    return SingleEngine(model, None, choices, SINGLE_RANK)


def test_with_two_optimizers_a_step_is_applied_by_both_or_by_none():
    model = torch.nn.ParameterList(torch.ones(4) for _ in range(2))
    first, second = model
    engine = engine_of(model, [torch.optim.SGD([p], lr=0.1) for p in (first, second)], Fp16Mixed())
    engine.begin_step(1.0)
    engine.backward(first.sum() * 3e38 + second.sum())
    norm, applied = engine.clip_and_step(None)
    assert not bool(applied)
    assert not bool(norm.isfinite())
    assert first.tolist() == second.tolist() == [1.0] * 4
    engine.begin_step(0.5)
    engine.backward(first.sum() + second.sum())
    norm, applied = engine.clip_and_step(None)
    assert bool(applied)
    assert float(norm) == pytest.approx(8**0.5)
    assert first.tolist() == second.tolist() == pytest.approx([0.95] * 4)


def test_evaluation_of_half_precision_weights_is_in_fp32_and_leaves_them_alone(trials):
    job = trials.order(job={"model": {**LLAMA, "tie_word_embeddings": True}, "seq_len": 16}).job
    module = new_model(job, 64, attention="eager")
    cast_parameters(module, torch.bfloat16)
    module.train()
    stream = torch.randint(64, (200,), generator=torch.Generator().manual_seed(0)).numpy()
    sequences = torch.from_numpy(stream[: 7 * 16 + 1][np.arange(7)[:, None] * 16 + np.arange(17)])
    held_out = HeldOut(Batch(sequences, (sequences[:, :-1],), {}, sequences[:, 1:]), 112)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}

    def loss_of(size):
        with evaluation_forward(module) as logits:
            return heldout_loss(logits, held_out, sequences_per_batch=size, world=SINGLE_RANK)

    loss = loss_of(3)
    assert all(p.dtype == torch.bfloat16 and torch.equal(p, before[n]) for n, p in module.named_parameters())
    assert module.config._attn_implementation == "eager"
    assert all(part.training for part in module.modules())
    cast_parameters(module, torch.float32)
    assert loss == pytest.approx(loss_of(100), rel=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_training_agrees_and_reports_its_cost(trials, tmp_path):
    plain = trials.finished(job={"max_steps": 8, "model": WIDE})
    compiled = trials.finished(job={"max_steps": 8, "model": WIDE}, compile="default", micro_batch_size=4)
    assert compiled.identity.compiled
    assert not plain.identity.compiled
    assert compiled.measurement.compile_seconds > 0.1
    assert compiled.measurement.recompilations == 0
    assert compiled.measurement.last_loss == pytest.approx(plain.measurement.last_loss, rel=1e-4)
    assert compiled.measurement.final_loss == pytest.approx(plain.measurement.final_loss, rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series.json", "weights"]


def test_peak_learning_rates_are_each_groups_own(trials):
    model = torch.nn.Linear(2, 2)
    optimizers = [AdamW(lr=0.5).build(model)[0], torch.optim.SGD(model.parameters(), lr=0.25)]
    engine = engine_of(model, optimizers, Fp32())
    engine.begin_step(0.1)
    assert [g["lr"] for o in optimizers for g in o.param_groups] == pytest.approx([0.05, 0.05, 0.025])

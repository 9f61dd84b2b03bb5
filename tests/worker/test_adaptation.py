"""LoRA and QLoRA: what they train, what they leave alone, and that they train the same job."""

from __future__ import annotations

import itertools
import json
import math

import bitsandbytes as bnb
import pytest
import task_jobs as jobs
import torch
from plain_training import plain_evaluation

import selectbench.choices.model as adaptation_module
from selectbench.choices import Choices
from selectbench.choices.model import Lora, Qlora
from selectbench.data.prepared import Prepared
from selectbench.machine import inspect_machine
from selectbench.observe.selectbench_seen import storage_bytes
from selectbench.record.wire import GaveUp
from selectbench.worker import trial as trial_module
from selectbench.worker.model import ensure_weights, mapped_model, new_model

GPT2 = {"family": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2}
LLAMA = {"family": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip
LORA = {"name": "lora", "r": 4, "alpha": 8.0}
QLORA = {"name": "qlora", "r": 4, "alpha": 8.0}
JOB = {"model": LLAMA, "max_steps": 6, "lr_schedule": {"name": "constant"}}


def series(trials):
    return json.loads((trials.trial_folder / "series.json").read_text())


def linear_shapes(model):
    """Rows and columns of every linear layer but the head's, of a real model; gpt2's are Conv1D."""
    head = model.get_output_embeddings()
    return [
        tuple(part.weight.shape) for part in model.modules()
        if part is not head and type(part).__name__ in ("Linear", "Conv1D")
    ]  # fmt: skip


def additions(model, rank):
    """A layer of n x m gets an n x r and an r x m matrix (Hu et al. 2021, section 4.1)."""
    return sum(rank * (rows + columns) for rows, columns in linear_shapes(model))


def watched(monkeypatch):
    """What the trial trains, once it is over."""
    seen = {}
    adapt = trial_module._adapt

    def adapted(setting):
        before = {name: p.detach().clone() for name, p in setting.module.named_parameters()}
        adapt(setting)
        seen.update(before=before, module=setting.module)

    monkeypatch.setattr(trial_module, "_adapt", adapted)
    return seen


MODELS = {"gpt2": GPT2, "llama": LLAMA}


@pytest.mark.parametrize("family", MODELS)
def test_lora_trains_the_additions_alone(trials, monkeypatch, family):
    seen = watched(monkeypatch)
    finished = trials.finished(job={**JOB, "model": MODELS[family]}, adaptation=LORA)
    after = {name.replace(".base_layer", ""): p for name, p in seen["module"].named_parameters()}
    added = {name: p for name, p in after.items() if "lora_" in name}
    assert set(after) - set(added) == set(seen["before"])
    for name, weight in seen["before"].items():
        assert torch.equal(after[name], weight), f"{name} was changed"
    assert all(p.abs().max() > 0 for p in added.values()), "every addition was trained"
    assert sum(p.numel() for p in added.values()) == finished.identity.trainable_parameters
    plain = new_model(trials.order(job={**JOB, "model": MODELS[family]}).job, 300, attention="sdpa")
    assert finished.identity.trainable_parameters == additions(plain, 4)
    assert finished.identity.parameters == sum(p.numel() for p in plain.parameters())
    assert finished.measurement.last_loss < finished.measurement.first_loss


@pytest.mark.parametrize("family", MODELS)
def test_lora_begins_as_full_training_does_and_then_differs(trials, family):
    job = {**JOB, "model": MODELS[family]}
    full = trials.finished(job=job)
    whole = series(trials)["loss_nats_per_token"]
    lora = trials.finished(job=job, adaptation=LORA)
    adapted = series(trials)["loss_nats_per_token"]
    assert lora.identity.first_step_loss == pytest.approx(full.identity.first_step_loss, rel=1e-6)
    assert lora.identity.initial_weights_sha256 == full.identity.initial_weights_sha256
    assert lora.identity.token_stream_sha256 == full.identity.token_stream_sha256
    assert lora.identity.trainable_parameters < full.identity.trainable_parameters == full.identity.parameters
    assert adapted[1:] != pytest.approx(whole[1:], rel=1e-4)
    (memory,) = lora.measurement.memory_by_rank
    assert memory.gradient_bytes == 4 * lora.identity.trainable_parameters
    assert memory.optimizer_state_bytes == pytest.approx(8 * lora.identity.trainable_parameters, rel=0.02)


def test_the_scale_is_alpha_over_r_and_the_seed_draws_the_additions(trials):
    norms = {}
    for alpha, seed in itertools.product((8.0, 16.0), (0, 1)):
        found = trials.finished(seed=seed, job={**JOB, "max_steps": 1, "clip_norm": None}, adaptation={**LORA,
        "alpha": alpha})  # fmt: skip
        norms[alpha, seed] = found.identity.first_step_gradient_norm
    assert norms[16.0, 0] == pytest.approx(2 * norms[8.0, 0], rel=1e-4)
    assert norms[8.0, 0] != pytest.approx(norms[8.0, 1], rel=1e-3)
    again = trials.finished(job={**JOB, "max_steps": 1, "clip_norm": None}, adaptation=LORA)
    assert again.identity.first_step_gradient_norm == norms[8.0, 0]


def test_a_step_of_lora_written_out(trials, monkeypatch):
    """One linear layer of the first block: W x + (alpha / r) B A x, B zero at first."""
    seen = watched(monkeypatch)
    trials.finished(job={**JOB, "max_steps": 2}, adaptation=LORA)
    layer = seen["module"].model.layers[0].self_attn.q_proj
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    given = torch.randn(3, 32)
    with torch.no_grad():
        expected = given @ layer.base_layer.weight.T + 8 / 4 * (given @ first.T) @ second.T
        torch.testing.assert_close(layer(given), expected)


@pytest.mark.parametrize("adaptation", [LORA, QLORA], ids=["lora", "qlora"])
def test_accumulation_and_two_ranks_agree(launched, adaptation):
    whole = launched.finished(job=JOB, adaptation=adaptation)
    found = launched.series()
    cuts = [{"micro_batch_size": 2}, {"micro_batch_size": 2, "world_size": 2, "strategy": {"name": "ddp"}}]
    for cut in cuts:
        other = launched.finished(job=JOB, adaptation=adaptation, **cut)
        assert launched.series()["loss_nats_per_token"] == pytest.approx(found["loss_nats_per_token"], rel=1e-5)
        assert launched.series()["gradient_norm"] == pytest.approx(found["gradient_norm"], rel=1e-4)
        assert math.exp(other.measurement.final_loss) == pytest.approx(
            math.exp(whole.measurement.final_loss), rel=1e-4
        )
        assert other.identity.trainable_parameters == whole.identity.trainable_parameters
        assert other.identity.token_stream_sha256 == whole.identity.token_stream_sha256


def test_lora_goes_with_checkpointing_and_with_lower_precision(trials):
    plain = trials.finished(job=JOB, adaptation=LORA)
    recomputed = trials.finished(job=JOB, adaptation=LORA, activation_checkpointing=True)
    mixed = trials.finished(job=JOB, adaptation=LORA, precision="bf16_mixed")
    assert recomputed.measurement.last_loss == pytest.approx(plain.measurement.last_loss, rel=1e-5)
    assert mixed.measurement.last_loss == pytest.approx(plain.measurement.last_loss, rel=1e-2)
    for precision in ("bf16_master", "bf16_pure"):
        other = trials.finished(job=JOB, adaptation=LORA, precision=precision)
        assert other.identity.trainable_parameters == plain.identity.trainable_parameters
        assert other.measurement.last_loss == pytest.approx(plain.measurement.last_loss, rel=2e-2)


def test_lora_of_an_encoder_and_a_decoder(trials, tmp_path, monkeypatch):
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    trials.data_folder = jobs.prepared_pairs(tmp_path).folder
    full = trials.finished(job=jobs.T5_PAIRS)
    lora = trials.finished(job=jobs.T5_PAIRS, adaptation=LORA, optimizer={"name": "adamw", "lr": 1e-2})
    assert lora.identity.first_step_loss == pytest.approx(full.identity.first_step_loss, rel=1e-6)
    vocab_size = Prepared.open(trials.data_folder).vocab_size
    assert lora.identity.trainable_parameters == additions(jobs.plain_t5(vocab_size, 0), 4)
    assert lora.measurement.last_loss < lora.measurement.first_loss


# What does not go together


STRATEGIES = [{"name": "fsdp"}, *({"name": "zero", "stage": stage} for stage in (1, 2, 3))]


@pytest.mark.parametrize("adaptation", ["lora", "qlora"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_what_shards_weights_is_refused_with_a_reason(adaptation, strategy):
    reason = refused(adaptation=adaptation, strategy=strategy, world_size=2)
    named = " ".join(map(str, strategy.values()))
    assert reason == f"adaptation {adaptation} with strategy {named}: take single or ddp"


def test_other_frameworks_and_copies_of_weights_are_refused():
    assert "framework hf_trainer" in refused(adaptation="lora", framework="hf_trainer")
    assert "precision bf16_pure" in refused(adaptation="qlora", precision="bf16_pure")
    assert refused(adaptation="lora", precision="bf16_pure") is None
    assert refused(adaptation="full", strategy={"name": "fsdp"}, world_size=2) is None


def refused(**choices):
    settings = {"optimizer": {"name": "adamw", "lr": 1e-3}, "micro_batch_size": 2, **choices}
    return Choices.model_validate(settings).unsupported_reason(inspect_machine("cpu"))


# QLoRA


def test_qlora_trains_the_additions_alone(trials, monkeypatch):
    seen = watched(monkeypatch)
    finished = trials.finished(job=JOB, adaptation=QLORA)
    trained = [name for name, p in seen["module"].named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    plain = new_model(trials.order(job=JOB).job, 300, attention="sdpa")
    assert finished.identity.trainable_parameters == additions(plain, 4)
    assert finished.identity.parameters == sum(p.numel() for p in plain.parameters())
    assert finished.identity.working_dtype == "float32+uint8"
    assert finished.measurement.last_loss < finished.measurement.first_loss
    full = trials.finished(job=JOB)
    assert finished.identity.first_step_loss == pytest.approx(full.identity.first_step_loss, rel=2e-2)
    assert finished.identity.first_step_loss != full.identity.first_step_loss, (
        "4 bits are not the weights themselves"
    )


def test_qlora_keeps_linear_layers_in_less_than_a_third(trials, monkeypatch):
    """4 bits a weight and 8.5 a block of 64 (Dettmers et al. 2023, section 3), a seventh of fp32's 32 bits."""
    seen = watched(monkeypatch)
    wide = {**LLAMA, "hidden_size": 128, "intermediate_size": 256}
    trials.finished(job={**JOB, "model": wide, "max_steps": 1, "eval": "none"}, adaptation=QLORA)
    linear = {name for name in seen["before"] if name.endswith("_proj.weight")}
    after = {name.replace(".base_layer", ""): p for name, p in seen["module"].named_parameters()}
    kept, before = (storage_bytes([found[name] for name in linear]) for found in (after, seen["before"]))
    assert before == 4 * sum(seen["before"][name].numel() for name in linear)
    assert kept == before / 8
    extra = sum(
        after[name].quant_state.absmax.nbytes + after[name].quant_state.state2.absmax.nbytes for name in linear
    )
    assert kept + extra < before / 3
    assert all(after[name].dtype == torch.uint8 for name in linear)
    assert {p.dtype for name, p in after.items() if name not in linear} == {torch.float32}


@pytest.fixture(params=[False, True], ids=["plain", "avx512_bf16"])
def has_bf16_units(request, monkeypatch):
    """What bitsandbytes is told of the CPU: where it has the units, it repacks weights in evaluation mode."""
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: request.param)


def without_four_bits(order, module):
    """A plain model of fp32 with the weights that the 4 bits stand for, and the additions added to them."""
    plain = new_model(order.job, 300, attention="sdpa")
    others = {name: weight for name, weight in module.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(others, strict=False)
    for name, part in module.named_modules():
        if hasattr(part, "base_layer"):
            stored = part.base_layer.weight
            known = bnb.functional.dequantize_4bit(stored.data, stored.quant_state)
            added = part.lora_B["default"].weight @ part.lora_A["default"].weight
            plain.get_submodule(name).weight.data = known + 8 / 4 * added.detach()
    return plain


@pytest.mark.parametrize("width", [32, 128], ids=["narrower than a block", "wider"])
@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed"])
@pytest.mark.usefixtures("has_bf16_units")
def test_qlora_is_evaluated_in_fp32_and_keeps_its_weights_on_every_cpu(trials, monkeypatch, width, precision):
    seen = watched(monkeypatch)
    model, enough_to_time = {**LLAMA, "hidden_size": width}, {"max_steps": 12, "timing": {"warmup_steps": 2}}
    job = {**JOB, **enough_to_time, "model": model, "eval": {"tokens": 1000, "every_steps": 3}}
    finished = trials.finished(job=job, adaptation=QLORA, precision=precision)
    plain = plain_evaluation(trials.data_folder, without_four_bits(trials.order(job=job), seen["module"]))
    # Thirteen products follow each other: attention's four and two of the MLP in each layer, and the head.
    assert finished.measurement.final_loss == pytest.approx(plain, rel=13 * torch.finfo(torch.float32).eps)
    kept = {n.replace(".base_layer", ""): p for n, p in seen["module"].named_parameters() if ".base_layer." in n}
    for name, weight in kept.items():
        initial = seen["before"][name]
        fresh, state = bnb.functional.quantize_4bit(initial, quant_type="nf4", compress_statistics=True)
        assert torch.equal(weight.data, fresh)
        assert weight.quant_state.nested
        assert torch.equal(weight.quant_state.absmax, state.absmax)


def test_qlora_of_a_model_without_linear_layers_is_unsupported_with_its_reason(trials):
    last = trials.events(job={"model": GPT2, "max_steps": 2}, adaptation=QLORA)[-1]
    assert isinstance(last, GaveUp)
    assert last.kind == "unsupported"
    assert last.detail.startswith(
        "adaptation qlora: the model has no torch.nn.Linear to keep in 4 bits (gpt2 has none"
    )


@pytest.mark.parametrize(
    ("precision", "trained_in"),
    [("fp32", torch.float32), ("bf16_mixed", torch.bfloat16), ("fp16_mixed", torch.float16)],
)
def test_qlora_multiplies_in_the_precisions_dtype_and_is_evaluated_in_fp32(
    trials, monkeypatch, precision, trained_in
):
    multiply, dtypes = bnb.matmul_4bit, {}

    def noting(given, *arguments, **settings):
        dtypes.setdefault(torch.is_grad_enabled(), set()).add(given.dtype)
        product = multiply(given, *arguments, **settings)
        assert product.dtype == given.dtype
        return product

    monkeypatch.setattr(bnb, "matmul_4bit", noting)
    plain = trials.finished(job=JOB, adaptation=QLORA)
    dtypes.clear()
    found = trials.finished(job=JOB, adaptation=QLORA, precision=precision)
    assert dtypes == {True: {trained_in}, False: {torch.float32}}
    assert found.measurement.final_loss == pytest.approx(plain.measurement.final_loss, rel=5e-3)


def test_a_layer_in_four_bits_leaves_its_bias_as_it_is():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    bias, given = linear.bias.detach().clone(), torch.randn(5, 64)
    layer = adaptation_module._in_four_bits(linear, "cpu")
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(given)
        expected = torch.nn.functional.linear(given, weight, bias)
    assert rounded.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, expected, rtol=2e-2, atol=2e-2)
    assert layer.bias.equal(bias)
    torch.testing.assert_close(layer(given), torch.nn.functional.linear(given, weight, bias))


def test_a_tied_head_stays_as_it_is(trials):
    order = trials.order(job={**JOB, "model": {**LLAMA, "tie_word_embeddings": True}})
    module = mapped_model(order, 300, ensure_weights(order, 300))
    for adapted in (Lora(r=2).apply(module, "cpu"), Qlora(r=2).apply(mapped_model(order, 300,
    ensure_weights(order, 300)), "cpu")):  # fmt: skip
        assert adapted.get_output_embeddings().weight is adapted.get_input_embeddings().weight
        assert not any("lm_head" in name for name, _ in adapted.named_parameters())

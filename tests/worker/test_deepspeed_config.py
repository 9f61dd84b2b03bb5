"""DeepSpeed's configuration, without DeepSpeed."""

import pytest
import torch

from selectbench.choices.execution import Bf16Master, Bf16Mixed, Bf16Pure, Fp16Mixed, Fp32, Tf32, Zero
from selectbench.worker.engine import BUCKET_ELEMENTS, deepspeed_config, merged, update_scale


def config_of(strategy=None, precision=None, clip_norm=0.5, parameters=1000):
    return deepspeed_config(
        strategy or Zero(stage=2), precision or Fp32(), micro_batch_size=2, gradient_accumulation_steps=3,
        clip_norm=clip_norm, parameters=parameters,
    )  # fmt: skip


def test_the_job_decides_batches_and_clipping():
    config = config_of()
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (2, 3)
    assert config["gradient_clipping"] == 0.5
    assert config_of(clip_norm=None)["gradient_clipping"] == 0.0


def test_our_optimizer_is_never_replaced():
    config = config_of()
    assert config["zero_allow_untested_optimizer"] is True
    assert config["zero_force_ds_cpu_optimizer"] is False
    assert "optimizer" not in config


@pytest.mark.parametrize("precision", [Fp32(), Tf32(), Bf16Mixed(), Fp16Mixed(), Bf16Master()])
def test_gradients_are_accumulated_and_reduced_in_fp32(precision):
    config = config_of(precision=precision)
    assert config["communication_data_type"] == "fp32"
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "fp16" not in config


@pytest.mark.parametrize(("precision", "dtype"), [(Bf16Mixed(), "bfloat16"), (Fp16Mixed(), "float16")])
def test_a_mixed_precision_is_autocast_that_reduces_nothing_in_less(precision, dtype):
    config = config_of(precision=precision)
    assert config["torch_autocast"] == {"enabled": True, "dtype": dtype, "lower_precision_safe_modules": []}
    assert "bf16" not in config


def test_bf16_with_and_without_master_weights():
    assert config_of(precision=Bf16Master())["bf16"] == {"enabled": True, "check_grad_overflow": False}
    pure = config_of(precision=Bf16Pure())
    assert pure["bf16"]["bf16_master_weights_and_grads"] is True
    assert pure["bf16"]["bf16_optimizer_states"] is True
    assert pure["communication_data_type"] == "bf16"


@pytest.mark.parametrize(("parameters", "bucket"), [(1000, 1000), (1001, 1002), (10**12, BUCKET_ELEMENTS)])
def test_a_bucket_holds_no_more_than_the_model(parameters, bucket):
    zero = config_of(parameters=parameters)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == bucket


def test_offloading_and_the_stage():
    zero = config_of(Zero(stage=1, offload_optimizer=True))["zero_optimization"]
    assert zero["stage"] == 1
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert "offload_optimizer" not in config_of()["zero_optimization"]


def test_the_suites_config_lies_over_ours_key_by_key():
    strategy = Zero(stage=2, config={"zero_optimization": {"reduce_bucket_size": 64}, "wall_clock_breakdown": True})
    config = config_of(strategy)
    assert config["zero_optimization"]["reduce_bucket_size"] == 64
    assert config["zero_optimization"]["stage"] == 2
    assert config["wall_clock_breakdown"] is True


def test_laying_over_changes_neither():
    below, above = {"a": {"b": 1}, "c": 2}, {"a": {"d": 3}, "c": {"e": 4}}
    assert merged(below, above) == {"a": {"b": 1, "d": 3}, "c": {"e": 4}}
    assert (below, above) == ({"a": {"b": 1}, "c": 2}, {"a": {"d": 3}, "c": {"e": 4}})


def test_the_loss_scale_halves_at_a_skipped_step_and_doubles_after_many_applied():
    scale, applied_in_a_row = torch.tensor(8.0), torch.zeros((), dtype=torch.int32)
    values = []
    for applied in (True, True, False, True, True, True, True):
        update_scale(scale, applied_in_a_row, applied, growth_interval=3)
        values.append(float(scale))
    assert values == [8.0, 8.0, 4.0, 4.0, 4.0, 8.0, 8.0]

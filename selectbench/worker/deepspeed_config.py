"""DeepSpeed's configuration for a job: its precisions spelt so that they mean what the others' mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from selectbench.choices.execution import BUCKET_ELEMENTS, PrecisionChoice, Zero


def deepspeed_config(
    strategy: Zero,
    precision: PrecisionChoice,
    *,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    clip_norm: float | None,
    parameters: int,
) -> dict[str, Any]:
    """The mapping that `deepspeed.initialize` takes: the job's part, with the suite's `config` laid over it.

    `parameters`: how many the model has; a bucket that holds more would be memory that nothing uses.
    """
    bucket = min(parameters + parameters % 2, BUCKET_ELEMENTS)
    zero: dict[str, Any] = {"stage": strategy.stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if strategy.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    job: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        # Its throughput timer waits for the device in every step.
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        **_precision(precision),
    }
    return laid_over(job, strategy.config)


def _precision(precision: PrecisionChoice) -> dict[str, Any]:
    """Reductions and accumulated gradients in the dtype of the parameters that are updated."""
    dtype = {"float32": "fp32", "bfloat16": "bf16"}[precision.parameter_dtype]
    common: dict[str, Any] = {"communication_data_type": dtype, "data_types": {"grad_accum_dtype": dtype}}
    if precision.autocast_dtype:
        # With no module listed as safe for it, no gradient is reduced in the lower precision.
        common["torch_autocast"] = {
            "enabled": True, "dtype": precision.autocast_dtype, "lower_precision_safe_modules": [],
        }  # fmt: skip
    if precision.working_dtype:
        common["bf16"] = {"enabled": True}
    elif precision.parameter_dtype == "bfloat16":
        common["bf16"] = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    if "bf16" in common:
        common["bf16"]["check_grad_overflow"] = False
    return common


class WrongConfigError(RuntimeError):
    """A setting of DeepSpeed's that it does not know or cannot take."""


@contextmanager
def complaints_in_words() -> Iterator[None]:
    """DeepSpeed's complaint about a setting in one line, as the suite writes the setting."""
    try:
        yield
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, ("zero_optimization", *wrong["loc"])))
        said = f"strategy zero: config.{place}: {wrong['msg']}, found {wrong['input']!r}"
        raise WrongConfigError(said) from error


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with the keys of `above` replaced, mappings inside key by key."""
    merged = dict(below)
    for key, value in above.items():
        inside = merged.get(key)
        if isinstance(inside, dict) and isinstance(value, dict):
            merged[key] = laid_over(inside, value)
        else:
            merged[key] = value
    return merged


def resolved(config: Any) -> dict[str, Any]:
    """Of a `deepspeed.runtime.config.DeepSpeedConfig`: what was given, with every setting of ZeRO filled in."""
    given: dict[str, Any] = dict(config._param_dict)
    zero = config.zero_config.model_dump(mode="json", exclude_none=True)
    return {**given, "train_batch_size": config.train_batch_size, "zero_optimization": zero}

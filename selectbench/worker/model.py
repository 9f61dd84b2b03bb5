"""The model of a trial: random weights from the seed, their digest, then dtype, device and compilation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from selectbench.choices import Choices
from selectbench.suite.job import Job
from selectbench.suite.model import resolved_vocab_size
from selectbench.worker.seeds import derived_seed


@dataclass(frozen=True)
class BuiltModel:
    """A model ready to train."""

    module: Any
    """The transformers model on its device: parameters, evaluation."""
    forward: Any
    """What the training calls: the module, or its compiled form over the same parameters."""
    initial_weights_sha256: str
    """Digest of the weights as drawn, in fp32."""
    parameters: int
    """Number of parameters, tied ones once."""


def build_model(job: Job, choices: Choices, *, vocab_size: int, seed: int, device: str) -> BuiltModel:
    """The job's model under the option's choices; `vocab_size` is the tokenizer's.

    Raises ImportError or NotImplementedError where the attention kernel asked for can't be had.
    """
    rows = resolved_vocab_size(job.model, vocab_size)
    module = random_model(job.model.transformers_config(rows, job.seq_len), choices.attention.name, seed)
    digest = weights_sha256(module)
    cast_parameters(module, getattr(torch, choices.precision.parameter_dtype))
    module.to(device)
    module.config.use_cache = False
    if choices.activation_checkpointing.enabled:
        _enable_checkpointing(module)
    module.train()
    mode = choices.compile.mode
    forward = module if mode is None else torch.compile(module, mode=mode)
    return BuiltModel(module, forward, digest, sum(p.numel() for p in module.parameters()))


def random_model(config: dict[str, Any], attention: str, seed: int) -> Any:
    """A transformers causal language model, weights drawn on the CPU in fp32 from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), attn_implementation=attention, dtype=torch.float32
        )


def _enable_checkpointing(module: Any) -> None:
    # transformers renames the method in the course of its fifth version; the first parameter stays.
    enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def weights_sha256(module: torch.nn.Module) -> str:
    """Digest over names, shapes and fp32 bytes of all parameters, sorted by name, tied ones once."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().float().contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


def cast_parameters(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Parameters only: buffers such as rotary frequencies lose their meaning below fp32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)

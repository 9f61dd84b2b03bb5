"""A trained model and its tokenizer as transformers has them: on disk, and in the hands of own metrics."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from selectbench.choices.model import Lora, OwnModel, PretrainedTokenizer
from selectbench.data.prepared import TOKENIZER, Prepared
from selectbench.data.tokenizer import pretrained_tokenizer
from selectbench.record.wire import Order
from selectbench.suite.job import Eval
from selectbench.worker.batches import decoder_start_id
from selectbench.worker.evaluation import Forward
from selectbench.worker.model import new_model
from selectbench.worker.runtime import OwnCodeError, World, derived_seed, load

WEIGHTS_FILE = "model.safetensors"
"""Of a model of own code; transformers cuts larger ones into several."""


def save_model(order: Order, forward: Forward, folder: Path, *, writes: bool) -> None:
    """The weights that are evaluated, in fp32, and the tokenizer; whole in `folder` or not there.

    Every rank calls it, and the one that `writes` does. A model of own code is written as its state alone.
    Raises OSError where there is no room.
    """
    state = _state(order, forward, keeps=writes)
    if not writes:
        return
    data = Prepared.open(Path(order.data_folder))
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for left in (unfinished, folder):
        shutil.rmtree(left, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if isinstance(order.job.model, OwnModel):
        save_file(state, unfinished / WEIGHTS_FILE)
    else:
        _save_transformers(order, data, state, unfinished)
    if data.has_text:
        _tokenizer(order, data).save_pretrained(unfinished)
    unfinished.rename(folder)


def own_metrics(order: Order, forward: Forward, world: World) -> dict[str, float]:
    """By name, of the weights that are evaluated; {} but on the first rank. Every rank calls it.

    The model is a copy. Raises OwnCodeError for what is no metric, MemoryError where there is no room for the copy.
    """
    asked = order.job.own_metrics
    state = _state(order, forward, keeps=world.is_first) if asked else {}
    if not state:
        return {}
    data = Prepared.open(Path(order.data_folder))
    found: dict[str, float] = {}
    devices = [torch.cuda.current_device()] if world.device_type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for name, metric in asked.items():
            model = new_model(order.job, data.vocab_size, attention="sdpa")
            model.load_state_dict(state, strict=False)
            model.to(world.device).eval()
            torch.manual_seed(derived_seed(order.trial.seed, "metrics"))
            function = load(metric.call, f"eval.metrics.{name}")
            value = function(model, _tokenizer(order, data), _texts(order, data), **metric.settings)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                told = value if isinstance(value, int | float) else f"a {type(value).__name__}"
                raise OwnCodeError(f"metric {name}: expected a finite number of 0 or more, it returned {told}")
            found[name] = float(value)
    return found


def _texts(order: Order, data: Prepared) -> list[str]:
    """Of the held-out tokens as many as the evaluation asks for, document by document."""
    assert isinstance(order.job.eval, Eval)
    tokens = data.heldout()[: order.job.eval.tokens].tolist()
    tokenizer = Tokenizer.from_file(str(data.folder / TOKENIZER))
    documents: list[list[int]] = [[]]
    for token in tokens:
        if token == data.end_id:
            documents.append([])
        else:
            documents[-1].append(token)
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in documents if ids]


def _save_transformers(order: Order, data: Prepared, state: dict[str, torch.Tensor], folder: Path) -> None:
    model = new_model(order.job, data.vocab_size, attention="sdpa", empty=True)
    model.load_state_dict(state, strict=False, assign=True)  # of tied weights the state has one name
    model.tie_weights()
    model.config.use_cache = True  # off while it trains
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        known = {"eos": data.end_id, "pad": data.special_ids.get("pad"), "decoder_start": decoder_start_id(model)}
        for name, number in known.items():
            if getattr(generation, f"{name}_token_id") is None:
                setattr(generation, f"{name}_token_id", number)
    logging.disable_progress_bar()
    model.save_pretrained(folder)


def _tokenizer(order: Order, data: Prepared) -> Any:
    if isinstance(order.job.tokenizer, PretrainedTokenizer):
        return pretrained_tokenizer(order.job.tokenizer)
    tokenizer = Tokenizer.from_file(str(data.folder / TOKENIZER))
    named = {"eos": data.end_id, **data.special_ids}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, split_special_tokens=True, clean_up_tokenization_spaces=False,
        **{f"{name}_token": tokenizer.id_to_token(number) for name, number in named.items()},
    )  # fmt: skip


def _state(order: Order, forward: Forward, *, keeps: bool) -> dict[str, torch.Tensor]:
    """Weights and lasting buffers by name, whole, in fp32 on the CPU; low-rank additions added to what they are of.

    Every rank goes through all of it; {} on one that `keeps` nothing.
    """
    state = {name: _own(value) for name, value in _whole_weights(forward) if keeps}
    if not keeps:
        return {}
    lasting = forward.module.state_dict().keys()
    state |= {name: _own(value) for name, value in forward.module.named_buffers() if name in lasting}
    adapted = {name: part for name, part in forward.module.named_modules() if hasattr(part, "lora_A")}
    adaptation = order.choices.adaptation
    scale = adaptation.alpha / adaptation.r if isinstance(adaptation, Lora) else 0.0
    for layer, part in adapted.items():
        product = state.pop(f"{layer}.lora_B.default.weight") @ state.pop(f"{layer}.lora_A.default.weight")
        turned = product.T if part.fan_in_fan_out else product
        state[f"{layer}.base_layer.weight"] += turned * scale
    return {name.replace(".base_layer.", "."): value for name, value in state.items()}


def _own(value: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", dtype, copy=True).contiguous()


def _whole_weights(forward: Forward) -> Iterator[tuple[str, torch.Tensor]]:
    """By name, one after the other; every rank takes part where they are sharded."""
    for name, parameter in forward.module.named_parameters():
        value = forward.weights.get(name, parameter).detach()
        if isinstance(value, DTensor):
            yield name, value.full_tensor()
        elif hasattr(parameter, "ds_tensor") and name not in forward.weights:
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach()
        elif getattr(parameter, "quant_state", None) is not None:
            from bitsandbytes.functional import dequantize_4bit

            yield name, dequantize_4bit(parameter.data, parameter.quant_state)
        else:
            yield name, value

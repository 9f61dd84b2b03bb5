"""Initial weights: drawn once per model and seed, kept in a file, mapped by every process that needs them.

Ranks that map one file share its pages, so that host memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from selectbench.choices.model import PretrainedModel
from selectbench.record.wire import Order
from selectbench.worker.model import new_model
from selectbench.worker.processes import is_fork_safe
from selectbench.worker.seeds import derived_seed

BUFFER = "buffer "
"""Before the name of what is no parameter: buffers are kept too, those that a state dict leaves out among them."""


def ensure_weights(order: Order, vocab_size: int) -> Path:
    """The file of the trial's initial weights in fp32, drawn where there is none yet.

    Drawn in a process of its own where one can be forked, so that a trial that draws uses no more memory
    than one that finds them drawn.
    """
    path = Path(order.weights_folder) / f"{_key(order, vocab_size)}.safetensors"
    if not path.exists() and is_fork_safe():
        child = multiprocessing.get_context("fork").Process(target=_draw, args=(order, vocab_size, path))
        child.start()
        child.join()
    if not path.exists():  # what failed in the child is raised here
        _draw(order, vocab_size, path)
    return path


def _key(order: Order, vocab_size: int) -> str:
    content = [
        order.job.task,
        order.job.model.model_dump(mode="json"),
        vocab_size,
        order.job.seq_len,
        None if isinstance(order.job.model, PretrainedModel) else order.trial.seed,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _draw(order: Order, vocab_size: int, path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(order.trial.seed, "weights"))
        module = new_model(order.job, vocab_size, attention="sdpa")
    content = {name: parameter.detach().float() for name, parameter in module.named_parameters()}
    content |= {f"{BUFFER}{name}": buffer for name, buffer in module.named_buffers()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_file({name: _on_its_own(tensor) for name, tensor in content.items()}, unfinished)
    unfinished.replace(path)


def _on_its_own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where it is a view of something larger or laid out otherwise."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def mapped_model(order: Order, vocab_size: int, weights: Path) -> Any:
    """The job's model on the CPU, its parameters mapped from the file: not to be written to."""
    attention = order.choices.attention.name
    with torch.random.fork_rng(devices=[]):
        module = new_model(order.job, vocab_size, attention=attention, empty=True)
        if _hides_meta_tensors(module):
            module = new_model(order.job, vocab_size, attention=attention)
    with safe_open(weights, framework="pt") as stored:
        _replace_parameters(module, stored)
        _replace_buffers(module, stored)
    return module


def _hides_meta_tensors(module: torch.nn.Module) -> bool:
    """Whether a part holds a tensor without memory that is neither parameter nor buffer."""
    held = (value for part in module.modules() for value in vars(part).values())
    return any(isinstance(value, torch.Tensor) and value.is_meta for value in held)


def _replace_parameters(module: torch.nn.Module, stored: Any) -> None:
    # By identity: tied parameters are one object under several names, of which the file has the first.
    found = {
        id(parameter): torch.nn.Parameter(stored.get_tensor(name), requires_grad=parameter.requires_grad)
        for name, parameter in module.named_parameters()
    }
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = found[id(parameter)]


def _replace_buffers(module: torch.nn.Module, stored: Any) -> None:
    found = {id(buffer): stored.get_tensor(f"{BUFFER}{name}").clone() for name, buffer in module.named_buffers()}
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = found[id(buffer)]

"""The model of a trial, its initial weights, and its forward pass with the loss."""

from __future__ import annotations

import copy
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.nn.modules.dropout import _DropoutNd

from selectbench.choices import Choices
from selectbench.choices import model as models
from selectbench.choices.choice import OwnCodeError, load
from selectbench.cores import is_fork_safe
from selectbench.record.wire import Order
from selectbench.suite.job import Job
from selectbench.text import first_line, one_line
from selectbench.worker.batches import Batch
from selectbench.worker.runtime import autocast, derived_seed

AUTO: dict[str, Any] = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
"""transformers' auto class for each task."""


class PretrainedModelError(Exception):
    """A folder or hub id without a complete model; its message is one line with the problem and the fix."""


def set_randomness_off(config: Any) -> None:
    """Set every rate of dropout or noise in a configuration to 0, including defaults of the family.

    Nested configurations are set too.
    """
    for name, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            set_randomness_off(value)
        elif isinstance(value, float) and models.RANDOM_RATES.search(name):
            setattr(config, name, 0.0)


def random_parts(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, float]]:
    """Every rate of dropout or noise of a model: the module, the attribute's name, and its value."""
    for part in module.modules():
        if isinstance(part, _DropoutNd):
            yield part, "p", part.p
        for name, value in vars(part).items():
            if isinstance(value, float) and models.RANDOM_RATES.search(name):
                yield part, name, value


def _for_training(module: Any, *, keeps_randomness: bool) -> Any:
    """Prepare the model for training: no cache, and nothing random unless `keeps_randomness`."""
    if not keeps_randomness:
        for part, name, _ in list(random_parts(module)):
            setattr(part, name, 0.0)
    module.config.use_cache = False
    return module


def pretrained_model(model: models.PretrainedModel, auto: Any, *, attention: str | None, empty: bool) -> Any:
    """Load a pretrained model in fp32, with dropout off unless the suite keeps it.

    Raises PretrainedModelError where it can't be loaded, NotImplementedError where it lacks the attention kernel.
    """
    subject = f"model.pretrained: {model.pretrained}"
    try:
        config = transformers.AutoConfig.from_pretrained(model.pretrained, revision=model.revision or "main")
        if not model.keeps_randomness:
            set_randomness_off(config)
        if empty:
            with torch.device("meta"):
                module = auto.from_config(config, attn_implementation=attention, dtype=torch.float32)
        else:
            module, loading_info = auto.from_pretrained(
                model.pretrained, revision=model.revision or "main", config=config, dtype=torch.float32,
                attn_implementation=attention, output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
            for name, *shapes in sorted(loading_info["mismatched_keys"]):
                stored, expected = (" x ".join(map(str, shape)) for shape in shapes)
                raise PretrainedModelError(
                    f"{subject} holds {name} of {stored}, its config.json makes it {expected}: {models.FOLDER_FIX}"
                )
            if missing := sorted(loading_info["missing_keys"]):
                names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
                raise PretrainedModelError(f"{subject} holds no weights for {names}: {models.FOLDER_FIX}")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        message = first_line(str(error)).rstrip(".:")
        if isinstance(error, ValueError) and "does not support" in message:  # the model's class lacks the kernel
            raise NotImplementedError(f"{subject}: {message}") from error
        message = one_line(message, models.LIBRARY_MESSAGE_LENGTH)
        fix = models.FOLDER_FIX if Path(model.pretrained).is_dir() else models.HUB_FIX
        raise PretrainedModelError(f"{subject} cannot be loaded: {message} ({fix})") from error
    return _for_training(module, keeps_randomness=model.keeps_randomness)


def new_model(job: Job, vocab_size: int, *, attention: str | None, empty: bool = False) -> Any:
    """Make the job's model in fp32 on the CPU, with weights from torch's global generator.

    `vocab_size` is the tokenizer's. `attention` None: the best kernel that its class has. `empty`: parameters and
    buffers without memory, on the meta device.
    A model of own code gets its memory even where `empty`, as it may hold tensors in other ways. Raises
    ImportError or NotImplementedError where the requested attention kernel is not available or transformers has no
    such model for the task, OwnCodeError.
    """
    if isinstance(job.model, models.OwnModel):
        family, size = job.model.family, models.resolved_vocab_size(job.model, vocab_size)
        module = load(family, "model")(vocab_size=size, seq_len=job.seq_len, **job.model.settings)
        if not isinstance(module, torch.nn.Module):
            raise OwnCodeError(f"model {family}: expected a torch.nn.Module, it made a {type(module).__name__}")
        return module.float()
    if isinstance(job.model, models.PretrainedModel):
        return pretrained_model(job.model, AUTO[job.task], attention=attention, empty=empty)
    settings = job.model.transformers_config(models.resolved_vocab_size(job.model, vocab_size), job.seq_len)
    auto = AUTO[job.task]
    with torch.device("meta") if empty else nullcontext():
        try:
            config: Any = transformers.AutoConfig.for_model(**settings)
        except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
            subject = getattr(job.model, "config", job.model)
            message = one_line(str(error), 400)
            raise PretrainedModelError(
                f"model.config: {subject}: transformers refuses it: {message} (correct these settings)"
            ) from error
        if type(config) not in getattr(auto, "_model_mapping", {}):
            raise NotImplementedError(f"transformers has no {config.model_type} for task {job.task}")
        if (text := config.get_text_config(decoder=True)) is not config and job.task == "causal_lm":
            text.vocab_size = settings.get("vocab_size", text.vocab_size)  # its file may not set it
        if not job.model.keeps_randomness:
            set_randomness_off(config)
        try:
            module = auto.from_config(config, attn_implementation=attention, dtype=torch.float32)
        except ValueError as error:
            if "does not support" not in str(error):  # the model's class lacks the kernel
                raise
            raise NotImplementedError(first_line(str(error))) from error
    return _for_training(module, keeps_randomness=job.model.keeps_randomness)


def enable_checkpointing(module: Any) -> None:
    """Recompute every block's activations in the backward pass."""
    # transformers 5 renames the method in one of its releases; the first parameter stays.
    enable = getattr(module, "activation_checkpointing_enable", None) or getattr(
        module, "gradient_checkpointing_enable", None
    )
    if enable is None:
        raise NotImplementedError("the model has no gradient_checkpointing_enable")
    enable({"use_reentrant": False})


def weights_sha256(module: torch.nn.Module) -> str:
    """Digest over names, shapes and fp32 bytes of all parameters, sorted by name, tied ones once."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().float().contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


def cast_parameters(
    module: torch.nn.Module, dtype: torch.dtype, device: str | None = None, *, through: str | None = None,
    copy: bool = True,
) -> None:  # fmt: skip
    """Give the module its own copies of parameters in this dtype, on this device; buffers keep their dtype.

    Buffers such as rotary frequencies need fp32. Tied parameters stay tied. `through`: a dtype to round to first.
    Not `copy`: parameters that have the dtype and device already are not copied, even if they are mapped.
    """
    for parameter in module.parameters():
        if isinstance(parameter, DTensor) or hasattr(parameter, "ds_tensor"):
            continue  # it was sharded with a part of the model
        if not parameter.is_floating_point():
            continue  # it is quantised, and on its device already
        value = parameter.data if through is None else parameter.data.to(getattr(torch, through))
        parameter.data = value.to(device=device or parameter.device, dtype=dtype, copy=copy)
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and device is not None:
                part._buffers[name] = buffer.to(device)


def empty_copy(module: torch.nn.Module) -> Any:
    """A copy of the module without memory for parameters and buffers, for calls that pass all of them by name."""
    replacements: dict[int, Any] = {
        id(p): torch.nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
        for p in module.parameters()
    }
    replacements |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo=replacements)


def blocks_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated blocks of a model, in the order of its modules.

    transformers names its blocks' classes in `_no_split_modules`, in some families with embeddings, which may be
    tied to the head and are left out; other models' blocks are the members of the outermost `torch.nn.ModuleList`s.
    """
    lists = [part for part in module.modules() if isinstance(part, torch.nn.ModuleList)]
    members = {id(part) for group in lists for part in group}
    class_names = set(getattr(module, "_no_split_modules", None) or ())
    if blocks := [part for part in module.modules() if id(part) in members and type(part).__name__ in class_names]:
        return blocks
    nested_lists = {id(part) for group in lists for part in group.modules() if part is not group}
    return [block for group in lists if id(group) not in nested_lists for block in group]


def logits_of(output: Any) -> torch.Tensor:
    """The logits, (sequences, seq_len, vocabulary), of a transformers output or a tensor. Raises OwnCodeError."""
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        kind = type(output).__name__
        raise OwnCodeError(f"the model's forward must return logits or an object with logits, it returned a {kind}")
    return logits


# Initial weights are drawn once per model and seed, stored in a file, and mapped by every process that needs them.
#
# Ranks that map one file share its pages, so that host memory does not grow with their number.


BUFFER = "buffer "
"""Prefix of buffers' names; all buffers are stored, including those that a state dict leaves out."""


def ensure_weights(order: Order, vocab_size: int) -> Path:
    """The file of the trial's initial weights in fp32; draws them where the file does not exist yet.

    They are drawn in a child process where one can be forked, so that a trial that draws uses no more memory
    than one that finds the file.
    """
    model, seed = order.job.model, None if isinstance(order.job.model, models.PretrainedModel) else order.trial.seed
    content = [order.job.task, model.model_dump(mode="json"), vocab_size, order.job.seq_len, seed]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    path = Path(order.weights_folder) / f"{key}.safetensors"
    if not path.exists() and is_fork_safe():
        child = multiprocessing.get_context("fork").Process(target=_draw, args=(order, vocab_size, path))
        child.start()
        child.join()
    if not path.exists():  # what failed in the child is raised here
        _draw(order, vocab_size, path)
    return path


def _draw(order: Order, vocab_size: int, path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(order.trial.seed, "weights"))
        module = new_model(order.job, vocab_size, attention=None)
    content = {name: parameter.detach().float() for name, parameter in module.named_parameters()}
    content |= {f"{BUFFER}{name}": buffer for name, buffer in module.named_buffers()}
    path.parent.mkdir(exist_ok=True)  # but not the run's folder, which may have been deleted
    unfinished = path.with_suffix(f".{os.getpid()}")
    for name, tensor in content.items():
        # Views of larger tensors and tensors of another layout are copied.
        if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes:
            content[name] = tensor.clone(memory_format=torch.contiguous_format)
    save_file(content, unfinished)
    unfinished.replace(path)


def mapped_model(order: Order, vocab_size: int, weights: Path) -> Any:
    """The job's model on the CPU, with read-only parameters mapped from the file."""
    attention = order.choices.attention.name
    with torch.random.fork_rng(devices=[]):
        module = new_model(order.job, vocab_size, attention=attention, empty=True)
        attributes = (value for part in module.modules() for value in vars(part).values())
        # Some tensor that is neither parameter nor buffer has no memory: make the whole model.
        if any(isinstance(value, torch.Tensor) and value.is_meta for value in attributes):
            module = new_model(order.job, vocab_size, attention=attention)
    with safe_open(weights, framework="pt") as stored:
        # By identity: tied parameters are one object with several names; the file has the first name.
        parameters = {
            id(p): torch.nn.Parameter(stored.get_tensor(name), requires_grad=p.requires_grad)
            for name, p in module.named_parameters()
        }
        buffers = {id(b): stored.get_tensor(f"{BUFFER}{name}").clone() for name, b in module.named_buffers()}
    for part in module.modules():
        for tensors, mapped in ((part._parameters, parameters), (part._buffers, buffers)):
            tensors.update({name: mapped[id(value)] for name, value in tensors.items() if value is not None})
    return module


# Forward pass and loss of a micro-batch as one function, so that torch.compile sees both and logits are freed.


SummedLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits (sequences, seq_len, vocabulary) and targets (sequences, seq_len) to the sum of token losses."""
ForwardLoss = Callable[[Batch], tuple[torch.Tensor, torch.Tensor | None, torch.dtype]]
"""From a batch to the sum of its token losses, the loss that the model adds, if any, and the logits' dtype."""


def loss_alone(loss: SummedLoss, choices: Choices) -> SummedLoss:
    """The loss of logits of any dtype, for a loop that calls the model by itself or through a wrapper.

    A wrapper ends the model's graph: the loss is then a separate graph, which fuses the operations on the logits,
    the largest tensors of a step, into one pass. In torch.compile's default mode: with
    CUDA graphs, as in max-autotune, the logits would be copied into the graph's own memory first.
    """
    in_fp32 = _in_fp32(loss)
    return torch.compile(in_fp32) if choices.compile.mode is not None and choices.loss.is_compiled else in_fp32


def _in_fp32(loss: SummedLoss) -> SummedLoss:
    return lambda logits, targets: loss(logits.float(), targets)


def forward_and_loss(
    forward: Any, loss: SummedLoss, choices: Choices, device_type: str, *, uncompiled: Any = None
) -> ForwardLoss:
    """Forward pass and loss in one function; compiled as one graph where `uncompiled`, the bare model, is given.

    The loss is computed outside of autocast; logits are freed when the function returns.
    """
    is_joint = uncompiled is not None and choices.compile.mode is not None and choices.loss.is_compiled
    summed = _in_fp32(loss) if is_joint else loss_alone(loss, choices)
    model = uncompiled if is_joint else forward
    precision = choices.precision

    def forward_with_loss(
        arguments: tuple[torch.Tensor, ...], keywords: dict[str, torch.Tensor], targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.dtype]:
        with autocast(precision, device_type):
            output = model(*arguments, **keywords)
            logits = logits_of(output)
            added = output.loss.float() if "labels" in keywords else None
        if logits.ndim != 3 or logits.shape[:2] != targets.shape:  # a row for every target
            expected = f"({', '.join(map(str, targets.shape))}, vocabulary)"
            raise OwnCodeError(f"the model's logits must have the shape {expected}, found {tuple(logits.shape)}")
        return summed(logits, targets), added, logits.dtype

    function = torch.compile(forward_with_loss, mode=choices.compile.mode) if is_joint else forward_with_loss
    return lambda batch: function(batch.arguments, batch.named, batch.targets)

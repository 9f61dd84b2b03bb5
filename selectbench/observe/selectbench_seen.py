"""Reads a script's tensors, modules and optimizers for the observer, with torch 2.1 or newer alone."""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

Tensor = torch.Tensor

LIBRARIES = (
    "torch", "transformers", "accelerate", "lightning", "pytorch_lightning", "trl", "deepspeed", "litgpt",
    "datasets", "numpy", "peft", "bitsandbytes",
)  # fmt: skip

# Digests of tokens: they do not depend on how a step is cut into micro-batches and ranks, nor on padding.

_PLACE, _TOKEN, _MIX, _LENGTH = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, 0x9E3779B1
_places: dict[str, Tensor] = {}


def _mix(numbers: Tensor) -> Tensor:
    """Spread every bit of each number over all others, in place; 0 stays 0."""
    numbers.bitwise_xor_(numbers >> 32).mul_(_MIX)
    return numbers.bitwise_xor_(numbers >> 29).mul_(_PLACE)


def token_digest(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | int, Tensor | int, Tensor]:
    """Sum of the rows' hashes mod 2**64, how many tokens count, how many rows have such tokens, and the hashes.

    ids: [rows, length], whole numbers. mask: of that shape, not zero where a token counts; None: all count. A row's
    hash is of its counted ids and their positions among them. Nothing waits for the device.
    """
    hashes = ids.to(torch.int64, copy=True).add_(1).mul_(_TOKEN)
    terms = _places.get(str(ids.device))
    if terms is None or len(terms) < ids.shape[1]:
        terms = _places[str(ids.device)] = _mix(torch.arange(1, ids.shape[1] + 1, device=ids.device) * _PLACE)
    terms = terms[: ids.shape[1]]
    if mask is None:
        row_hashes = _mix(hashes.bitwise_xor_(terms)).sum(1).add_(ids.shape[1] * _LENGTH)
        return _mix(row_hashes).sum(), ids.numel(), ids.shape[0], row_hashes
    counted = mask != 0
    places = counted.cumsum(1).sub_(1).clamp_(min=0)
    lengths = counted.sum(1)
    row_hashes = _mix(hashes.bitwise_xor_(terms[places])).mul_(counted).sum(1).add_(lengths * _LENGTH)
    return _mix(row_hashes).sum(), lengths.sum(), (lengths > 0).sum(), row_hashes


# Weights, dtypes, classes and sizes.


def weight_digests(module: nn.Module) -> tuple[str, str] | tuple[None, None]:
    """Digests of shapes and contents in fp32, and rounded to bf16; neither names nor order count.

    Tied parameters count once. Sharded ones are gathered, so every rank must call it. None: they aren't whole here.
    """
    digests_by_dtype: tuple[list[bytes], list[bytes]] = ([], [])
    flat = _flat_parameters(module)
    for parameter in module.parameters():
        if parameter.is_meta or not parameter.numel() or flat:
            return None, None
        whole: Any = parameter.detach()
        whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
        for dtype, digests in zip((torch.float32, torch.bfloat16), digests_by_dtype):
            digest = hashlib.sha256(repr(tuple(whole.shape)).encode())
            for part in whole.reshape(-1).split(1 << 22):
                contents = part.to("cpu", dtype).contiguous()
                size = contents.numel() * contents.element_size()  # not by numpy, which torch can do without
                digest.update((ctypes.c_char * size).from_address(contents.data_ptr()))
            digests.append(digest.digest())
    exact, rounded = (hashlib.sha256(b"".join(sorted(digests))).hexdigest() for digests in digests_by_dtype)
    return exact, rounded


def _flat_parameters(module: nn.Module) -> list[Any]:
    """FSDP1's flat parameters, of each of which a rank holds a part."""
    wrappers = [part for part in module.modules() if type(part).__name__ == "FullyShardedDataParallel"]
    return [handle.flat_param for part in wrappers if (handle := getattr(part, "_handle", None)) is not None]


def parameter_counts(module: nn.Module) -> tuple[int, int]:
    """Numbers of parameters over all ranks, and of trainable ones."""
    counts = [(shape.numel(), flat.requires_grad) for flat in _flat_parameters(module) for shape in flat._shapes]
    counts = counts or [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(count for count, _ in counts), sum(count for count, is_trained in counts if is_trained)


def dtype_name(dtypes: Iterable[torch.dtype]) -> str:
    """`float32`, or all names sorted and joined where there are several."""
    return "+".join(sorted({str(dtype).replace("torch.", "") for dtype in dtypes}))


def storage_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of this rank's elements; tensors that share memory count once."""
    parts = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    unique = {(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in parts if t.numel()}
    return sum(unique.values())


def states(optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
    """All tensors that the optimizers keep."""
    parameter_states = [state for o in optimizers for state in o.state.values() if isinstance(state, Mapping)]
    return [value for state in parameter_states for value in state.values() if isinstance(value, Tensor)]


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """The class with the implementation that its parameter groups ask for, `AdamW(fused)`."""
    groups = optimizer.param_groups
    kinds = {"fused" if g.get("fused") else "foreach" if g.get("foreach") else "for_loop" for g in groups}
    names_it = any("fused" in group for group in groups)
    return type(optimizer).__name__ + (f"({'+'.join(sorted(kinds))})" if names_it else "")


def optimizer_settings(optimizers: Iterable[torch.optim.Optimizer]) -> list[str]:
    """Numbers in the parameter groups beside the rate, each once: `betas 0.9, 0.95`, `weight_decay 0, 0.1`."""
    named: dict[str, set[float]] = {}
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        for name, value in group.items() if group["params"] else ():
            values = value if isinstance(value, tuple | list) else [value]
            if name not in ("params", "lr", "initial_lr") and all(type(v) in (int, float) for v in values):
                named.setdefault(name, set()).update(map(float, values))
    return [
        f"{name} {', '.join(f'{v:g}' for v in sorted(values))}" for name, values in sorted(named.items()) if values
    ]


def largest_dropout(module: nn.Module) -> float:
    """The largest rate of dropout layers, and of numbers in modules' attributes with `dropout` in their names."""
    rates = [
        value
        for part in module.modules()
        for name, value in vars(part).items()
        if isinstance(value, float) and ("dropout" in name or ("Dropout" in type(part).__name__ and name == "p"))
    ]
    return max([0.0, *rates])


_WRAPPERS = {
    "OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module", "DeepSpeedEngine": "module",
    "_FabricModule": "_forward_module",
}  # fmt: skip


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch and of frameworks."""
    while (inner := _WRAPPERS.get(type(module).__name__)) is not None:
        module = getattr(module, inner)
    return module


def name_and_strategy(module: nn.Module) -> tuple[str, str]:
    """The model's class before `fully_shard` changed it, and the wrapper that shards or copies it, or `single`."""
    kinds, model = {type(part) for part in module.modules()}, type(unwrapped(module))
    wrappers = {kind.__name__ for kind in kinds} & _WRAPPERS.keys() - {"OptimizedModule", "_FabricModule"}
    wrappers |= {base.__name__ for kind in kinds for base in kind.__bases__ if base.__name__ == "FSDPModule"}
    is_sharded = model.__bases__[0].__name__ == "FSDPModule"
    return model.__bases__[-1].__name__ if is_sharded else model.__name__, "+".join(sorted(wrappers)) or "single"


def is_compiled(part: nn.Module) -> bool:
    """Whether calling it runs what torch.compile made of it."""
    return type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None


# The tensors of a call: tokens, labels and masks.

Call = tuple[tuple[Any, ...], dict[str, Any]]

_TOKENS = ("input_ids", "tokens", "token_ids", "idx", "ids", "inputs", "input", "x", "src")
_LABELS = ("labels", "targets", "target", "label", "y")
_MASKS = ("attention_mask", "mask", "padding_mask")
_PRODUCTS = {f"{name}Backward0" for name in ("Addmm", "Mm", "Bmm", "Baddbmm", "Linear", "MkldnnLinear")}


class Roles(NamedTuple):
    """Indices of tokens, labels and mask among a call's leaves."""

    tokens: int
    labels: int | None
    mask: int | None
    labels_are: str
    """`tokens`, `next tokens`, `others`, or nothing where the call has none."""


def leaves(nested: Any) -> list[Any]:
    """The values in nested tuples, lists and dicts, in order."""
    return tree_flatten(nested)[0]


def roles(module: nn.Module, call: Call) -> Roles | None:
    """A call's roles, by names where they tell, else by order and contents; None: no whole numbers in rows."""
    args, kwargs = call
    names = [*inspect.signature(unwrapped(module).forward).parameters, *[""] * len(args)]
    arguments = [*zip(names, args), *kwargs.items()]
    parts = [value.items() if isinstance(value, dict) else [(name, value)] for name, value in arguments]
    named_leaves = [(name, leaf) for part in parts for name, value in part for leaf in leaves(value)]
    tensors = [(n, name, t) for n, (name, t) in enumerate(named_leaves) if isinstance(t, Tensor)]
    integers = [t for t in tensors if t[2].dtype in (torch.int64, torch.int32) and "position" not in t[1]]
    rows = [t for t in integers if t[2].dim() == 2 and "mask" not in t[1]]
    rows = rows or [t for t in integers if t[2].dim() == 1 and "mask" not in t[1]]
    chosen = [t for word in _TOKENS for t in rows if t[1] == word]
    if not (chosen := chosen or [t for t in rows if t[1] not in _LABELS]):
        return None
    place, _, tokens = chosen[0]
    masks = [n for n, name, t in tensors if name in _MASKS and t.shape == tokens.shape]
    others = [t for t in rows if t[0] != place and t[2].shape == tokens.shape]
    labels = [t for t in others if t[1] in _LABELS] or [t for t in others if t[1] not in _TOKENS]
    relation = labels_are(as_rows(labels[0][2]), as_rows(tokens)) if labels else ""
    return Roles(place, labels[0][0] if labels else None, masks[0] if masks else None, relation)


def with_tokens(call: Call, places: Roles, inputs: Tensor, targets: Tensor) -> Call:
    """The call with other tokens, all unmasked, and labels for them."""
    values, spec = tree_flatten(call)
    values[places.tokens] = inputs.reshape(values[places.tokens].shape).to(values[places.tokens])
    if places.mask is not None:
        values[places.mask] = torch.ones_like(values[places.mask])
    if places.labels is not None:
        labels = inputs if places.labels_are == "tokens" else targets
        values[places.labels] = labels.reshape(values[places.labels].shape).to(values[places.labels])
    return tree_unflatten(values, spec)


_FUSED = ("fused_lm_head",)
"""Keyword arguments with which a model returns losses without logits: TRL's."""


def unfused(call: Call) -> Call:
    """The call without such arguments, so that it returns logits."""
    return call[0], {name: False if name in _FUSED else value for name, value in call[1].items()}


def is_fused(call: Call) -> bool:
    """Whether the call's arguments make the model return no logits."""
    return any(call[1].get(name) for name in _FUSED)


def row_by_row(call: Call, rows: int) -> Iterator[Call]:
    """The call for each of its rows alone."""
    values, spec = tree_flatten(call)
    for row in range(rows):
        row_values = [v[row : row + 1] if isinstance(v, Tensor) and v.shape[:1] == (rows,) else v for v in values]
        yield tree_unflatten(row_values, spec)


def as_rows(ids: Tensor) -> Tensor:
    """[rows, length]; one flat row of tokens is one row."""
    return ids.unsqueeze(0) if ids.dim() == 1 else ids


def labels_are(labels: Tensor, tokens: Tensor) -> str:
    """`tokens`, `next tokens` or `others`; negative labels are left out of the loss and of the comparison."""
    same = (labels == tokens) | (labels < 0)
    shifted = (labels[:, :-1] == tokens[:, 1:]) | (labels[:, :-1] < 0)
    return "tokens" if bool(same.all()) else "next tokens" if bool(shifted.all()) else "others"


# Logits, and the loss recomputed from them.


def first_differentiable(output: Any) -> list[Tensor]:
    """The first two tensors of an output with a gradient function, such as its loss and its logits."""
    parts = output.values() if isinstance(output, Mapping) else output
    parts = [parts] if isinstance(output, Tensor) else parts if isinstance(output, (Mapping, tuple, list)) else []
    tensors = [part for part in parts if isinstance(part, Tensor) and part.grad_fn is not None]
    return tensors[:2]


def logits_in(output: Any, tokens: Tensor, sizes: set[int]) -> tuple[Tensor | None, str]:
    """Logits [rows, length, vocabulary], and where they were found or why not; `sizes`: rows of the embeddings."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    candidates = {"output.logits": logits} if logits is not None else {
        "output" if isinstance(output, Tensor) else f"output[{n}]": leaf for n, leaf in enumerate(leaves(output))
    }  # fmt: skip
    candidates = {name: t for name, t in candidates.items() if isinstance(t, Tensor) and t.is_floating_point()}
    for name, tensor in candidates.items():
        fits = tensor.dim() >= 2 and tensor.shape[:-1].numel() == tokens.numel()
        if fits and (logits is not None or tensor.shape[-1] in sizes) and tensor.shape[-1] > int(tokens.max()):
            return tensor.reshape(*tokens.shape, -1), f"found as {name}"
    shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in candidates.items()) or "nothing of numbers"
    return None, f"not found: of {tuple(tokens.shape)} tokens the model gives {shapes}; embeddings: {sorted(sizes)}"


def summed_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum in nats, and the number of targets; in fp32, a few rows at a time to need little memory.

    logits: [rows, length, vocabulary]. targets: [rows, length], negative where there is none.
    """
    flat = logits.detach().reshape(-1, logits.shape[-1])
    goals = targets.reshape(-1).to(flat.device, torch.int64)
    at_once = max(1, (1 << 20) // flat.shape[-1])
    total = torch.zeros((), dtype=torch.float64, device=flat.device)
    with torch.no_grad(), torch.autocast(flat.device.type, enabled=False):
        for logits_part, targets_part in zip(flat.split(at_once), goals.split(at_once)):
            losses = nn.functional.cross_entropy(logits_part.float(), targets_part.clamp(min=0), reduction="none")
            total += losses.masked_fill(targets_part < 0, 0.0).sum(dtype=torch.float64)
    return total, (goals >= 0).sum()


def moved_left(labels: Tensor) -> Tensor:
    """Labels shifted by one place to the left; the last is -1."""
    moved = torch.full_like(labels, -1, dtype=torch.int64)
    moved[:, :-1] = labels[:, 1:]
    return moved


def next_tokens(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Each token's successor, -1 where a row ends or where it is masked."""
    return moved_left(tokens if mask is None else tokens.masked_fill(mask == 0, -1))


def graph_nodes(tensor: Tensor, most: float = 256) -> Iterator[Any]:
    """The first `most` nodes of the graph that computed a tensor, each once, nearest first."""
    nodes: list[Any] = [tensor.grad_fn]
    known: set[Any] = {None}
    for node in nodes:
        if node not in known and len(known) <= most:
            known.add(node)
            yield node
            nodes += [inner for inner, _ in node.next_functions]


def targets_behind(loss: Tensor, shape: torch.Size) -> Tensor | None:
    """Targets of the cross entropy behind a loss, -1 where there is none; None: not one for each token."""
    for target in cross_entropies(loss):
        if target.numel() == shape.numel():
            return target.reshape(shape)
        if target.numel() == shape[0] * (shape[1] - 1):
            return nn.functional.pad(target.reshape(shape[0], -1), (0, 1), value=-1)
    return None


def _dtypes_of(product: Any) -> set[torch.dtype]:
    """Dtype of a product's output; with torch 2.1, which does not report it, of the factors that it keeps."""
    if hasattr(product, "_input_metadata"):
        return {product._input_metadata[0].dtype}
    factors = [getattr(product, f"_saved_{name}", None) for name in ("mat1", "mat2", "self")]
    return {factor.dtype for factor in factors if factor is not None}


def cross_entropies(loss: Tensor) -> list[Tensor]:
    """The targets of each cross entropy behind a loss, -1 where it ignores one."""
    kinds = ("NllLossBackward0", "NllLoss2DBackward0")
    nodes = [node for node in graph_nodes(loss, 4096) if type(node).__name__ in kinds]
    # Torch 2.1 gives a negative index as a number without a sign.
    targets: list[tuple[Tensor, int]] = [
        (node._saved_target, (node._saved_ignore_index + (1 << 63)) % (1 << 64) - (1 << 63)) for node in nodes
    ]
    return [target.masked_fill(target == ignored, -1) for target, ignored in targets]


def product_dtypes(output: Any) -> set[torch.dtype]:
    """Dtypes of the matrix products behind an output, or of what compiled code saves; only 16 bits if any are."""
    nodes = [node for leaf in leaves(output) if isinstance(leaf, Tensor) for node in graph_nodes(leaf)]
    dtypes = {dtype for node in nodes if type(node).__name__ in _PRODUCTS for dtype in _dtypes_of(node)}
    compiled = [node for node in nodes if type(node).__name__ == "CompiledFunctionBackward"]
    dtypes |= {t.dtype for node in compiled for t in node.saved_tensors if t.is_floating_point() and t.dim() > 1}
    return {dtype for dtype in dtypes if dtype.itemsize < 4} or dtypes


def gradient_norm(gradients: list[Tensor], scale: Any = None) -> float:
    """Norm of all gradients over a scaler's scale; of sharded ones over all ranks, so every rank must call it."""
    norms: list[Any] = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    return math.sqrt(sum(float(norm) ** 2 for norm in whole)) / (1.0 if scale is None else float(scale))


class RecomputedLoss:
    """The loss of a step as the observer computes it from logits, to compare the script's with."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, int]] = []
        self.leaves_out_ends = False
        """The targets of the rows' last tokens are not known."""
        self.has_other_targets = False
        """The targets are of another kind than those of the first step, for instance no next tokens."""
        self._target_counts: list[Tensor] = []

    def note_backward(self, loss: Tensor) -> None:
        """Note a scalar of the script that goes backward: its cross entropies tell its number of targets."""
        self._target_counts += [(targets >= 0).sum() for targets in cross_entropies(loss)]

    def to_host(self, copy: Callable[[Any], Any]) -> RecomputedLoss:
        """Returns itself, after copying its values from the device to the host."""
        self._parts = [(copy(total), copy(count), labels) for total, count, labels in self._parts]
        self._target_counts = [copy(count) for count in self._target_counts]
        return self

    def keep_parts(self, places: set[int | None]) -> None:
        """Keep only the micro-batches with these indices."""
        self._parts = [part for place, part in enumerate(self._parts) if place in places]

    def add(self, logits: Tensor, targets: Tensor, labels: int, *, goes_on: bool = False) -> int:
        """Add a micro-batch, or more of the last one; returns its index. `labels`: how many before a shift."""
        total, count = summed_loss(logits, targets)
        last = self._parts.pop() if goes_on else (0, 0, 0)
        self._parts.append((total + last[0], count + last[1], labels + last[2]))
        return len(self._parts) - 1

    def value(self) -> float | None:
        """Nats per token; None: no logits were seen."""
        count = sum(int(part[1]) for part in self._parts)
        return sum(float(part[0]) for part in self._parts) / count if count else None

    def conventions(self, loss: float | None, tolerance: float) -> list[str]:
        """How the script's loss may follow from this one; []: in no known way, or it is of fewer targets."""
        nats, targets = self.value(), sum(int(part[1]) for part in self._parts)
        if nats is None or loss is None or (self._target_counts and sum(map(int, self._target_counts)) < targets):
            return []
        means = [float(total) / int(count) for total, count, _ in self._parts if int(count)]
        total, labels = sum(float(part[0]) for part in self._parts), sum(part[2] for part in self._parts)
        figures = {
            "mean over the step's tokens": nats,
            "mean of the micro-batches' means": sum(means) / len(means),
            "sum of the micro-batches' means": sum(means),
            "sum over the step's tokens": total,
            "sum over the step's tokens divided by its labels before the shift": total / max(labels, 1),
        }
        tolerance = max(tolerance, 0.02) if self.leaves_out_ends else tolerance
        # Sums over tokens of a loss near zero are rounded too.
        return [text for text, value in figures.items() if abs(loss - value) <= tolerance * max(abs(value), 0.1)]


def process_bytes(file: str, key: str) -> int | None:
    """Bytes by a line of /proc/self/status or smaps_rollup; None where the system has none."""
    try:
        with open(f"/proc/self/{file}") as lines:  # noqa: PTH123
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
    except (OSError, StopIteration, ValueError):
        return None


def private_bytes() -> int | None:
    """The proportional set size, except that anonymous pages shared with children count whole."""
    pss, anonymous_pss, anonymous = (process_bytes("smaps_rollup", key) for key in ("Pss", "Pss_Anon", "Anonymous"))
    return pss if pss is None or anonymous_pss is None or anonymous is None else pss - anonymous_pss + anonymous


def peak_growth_bytes(before: int | None) -> int | None:
    """The peak of `private_bytes` over `before`: what the resident peak exceeds the present was private."""
    now, resident, highest = private_bytes(), process_bytes("status", "VmRSS"), process_bytes("status", "VmHWM")
    return max(0, now + max(0, highest - (resident or 0)) - before) if before and now and highest else None

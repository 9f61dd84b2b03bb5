"""transformers' attention masks, decided by shapes, and which backend computed the attention."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, masking_utils

# transformers' attention masks, decided by shapes and by what the model was given, never by tensors' values.
#
# Left alone a model looks whether several sequences were packed into a row, whether a padding mask hides anything
# and whether padding was not told. Each look waits for the device. And where torch.compile traces, nothing can be
# looked at: in case sequences are packed a whole mask is built, `is_causal` is lost, and with it flash attention.
# Our jobs pack nothing, and pad the encoder's side alone, where the model is given the mask.


Mask = Callable[..., torch.Tensor | None]
_MASKS: Any = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS


@contextmanager
def masks_by_shape() -> Iterator[None]:
    """Inside, models of transformers look at no values to make their masks; the masks are the same."""
    with ExitStack() as undo:
        for owner, name in (
            (masking_utils, "find_packed_sequence_indices"),
            (PreTrainedModel, "warn_if_padding_and_no_attention_mask"),
        ):
            if (before := getattr(owner, name, None)) is not None:  # not every version has it
                undo.callback(setattr, owner, name, before)
                setattr(owner, name, lambda *_: None)  # no sequence is packed; no warning
        for kernel, made in (("sdpa", _skipped_by_shape), ("eager", _unread)):
            undo.callback(_MASKS.__setitem__, kernel, _MASKS[kernel])
            _MASKS[kernel] = made(_MASKS[kernel])
        yield


def _skipped_by_shape(original: Mask) -> Mask:
    """The kernel needs no mask where `is_causal` says everything, or where everything is attended to."""
    made = _unread(original)

    def mask(
        *, kv_length: int, q_length: int | None = None, local_size: int | None = None,
        attention_mask: torch.Tensor | None = None, allow_is_causal_skip: bool = True,
        allow_is_bidirectional_skip: bool = False, **more: Any,
    ) -> torch.Tensor | None:  # fmt: skip
        causal = allow_is_causal_skip and q_length == kv_length
        everything = allow_is_bidirectional_skip and attention_mask is None
        if (causal or everything) and (local_size is None or kv_length < local_size):
            return None
        length = {} if q_length is None else {"q_length": q_length}
        return made(
            kv_length=kv_length, local_size=local_size, attention_mask=attention_mask,
            allow_is_causal_skip=allow_is_causal_skip, allow_is_bidirectional_skip=allow_is_bidirectional_skip,
            **length, **more,
        )  # fmt: skip

    return mask


def _unread(original: Mask) -> Mask:
    """A padding mask that was given is used whatever it hides; a causal one is the model's own and all ones."""

    def mask(
        *, attention_mask: torch.Tensor | None = None, allow_is_causal_skip: bool = True,
        allow_is_bidirectional_skip: bool = False, **more: Any,
    ) -> torch.Tensor | None:  # fmt: skip
        if allow_is_causal_skip:
            attention_mask = None
        return original(
            attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip and attention_mask is None, **more,
        )  # fmt: skip

    return mask


# Which backends of torch's scaled_dot_product_attention a training used: as found, not as asked.
#
# The function's own choice depends on dtypes, masks, shapes and the device, and shows in the operation that it
# calls: in an eager forward pass as it runs, under torch.compile in the graph that was compiled. The backend `math`
# is no operation of its own: it is what a call came to that called none of the others.


MATH = "math"
_FUSED = re.compile(r"_scaled_dot_product_(\w+?)_attention(?:_for_[a-z]+|_overrideable)?")
"""Forward operations: `_scaled_dot_product_flash_attention`, `_scaled_dot_product_flash_attention_for_cpu`,
`_scaled_dot_product_efficient_attention`, `_scaled_dot_product_cudnn_attention`."""


class SdpaBackends:
    """Collects the backends of a training; every rank has its own."""

    def __init__(self) -> None:
        self._found: set[str] | None = None

    @property
    def found(self) -> list[str] | None:
        """Sorted; empty: the function was not called; None: nothing was seen of the training's attention."""
        return None if self._found is None else sorted(self._found)

    def add(self, backends: Iterable[str]) -> None:
        """What a forward pass or a graph used: nothing is an answer too."""
        self._found = (self._found or set()) | set(backends)

    def watch_first_forward(self, module: torch.nn.Module) -> None:
        """Looks on at the module's next forward pass that has a backward pass; nothing of it is compiled then."""
        calls, inside = _Calls(), ExitStack()
        begun: list[bool] = []

        def begin(*_: object) -> None:
            if torch.is_grad_enabled() and not begun:
                begun.append(True)
                inside.enter_context(calls.operations)
                inside.enter_context(calls)

        def end(*_: object) -> None:
            if begun:
                inside.close()
                for hook in hooks:
                    hook.remove()
                self.add(calls.operations.fused | ({MATH} if calls.unfused else set()))

        hooks = module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)

    @contextmanager
    def in_compiled_graphs(self) -> Iterator[None]:
        """Looks into every graph of forward and backward pass that Inductor compiles inside."""
        from torch._inductor import config
        from torch._inductor.custom_graph_pass import CustomGraphPass

        into = self

        class Noting(CustomGraphPass):
            def __call__(self, graph: torch.fx.Graph) -> None:
                into.add(backends_of(graph))

            def uuid(self) -> object:
                return __name__  # it leaves every graph as it is: what is cached with it serves all

        with config.patch(joint_custom_post_pass=Noting()):
            yield


class _Operations(TorchDispatchMode):
    """Notes the fused operations, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.fused: set[str] = set()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if backend := _backend(func):
            self.fused.add(backend)
            self.count += 1
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Notes whether a call of the function came to no fused operation."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = _Operations()
        self.unfused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.operations.count
        result = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and self.operations.count == before:
            self.unfused = True
        return result


def backends_of(graph: torch.fx.Graph) -> set[str]:
    """Of a graph of aten operations: `math` where nodes come from a call and none of them is fused."""
    calls: dict[tuple[str, ...], set[str]] = {}
    found = set()
    for node in graph.nodes:
        backend = _backend(node.target)
        found |= {backend} if backend else set()
        # The names of the traced calls around the node, where the innermost is the function's.
        around = node.meta.get("source_fn_stack") or []
        if around and around[-1][1] is F.scaled_dot_product_attention:
            calls.setdefault(tuple(name for name, _ in around), set()).update([backend] if backend else [])
    return found | ({MATH} if not all(calls.values()) else set())


def _backend(operation: object) -> str | None:
    """Of a fused forward operation."""
    found = _FUSED.fullmatch(str(getattr(operation, "_opname", "")))
    return found[1] if found else None

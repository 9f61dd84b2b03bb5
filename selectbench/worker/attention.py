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

# transformers' attention masks, decided by shapes and by the model's arguments, never by tensors' values.
#
# By default a model checks whether several sequences are packed into a row, whether a padding mask hides anything,
# and whether there is padding without a mask. Each check waits for the device. torch.compile can make none of them:
# a full mask is built in case sequences are packed, and `is_causal` is lost, and with it flash attention.
# Our jobs pack nothing, and pad only the encoder's side, where the model gets the mask.


Mask = Callable[..., torch.Tensor | None]
_MASKS: Any = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS


@contextmanager
def masks_by_shape() -> Iterator[None]:
    """Within the context transformers' models make the same masks without reading tensors' values."""
    with ExitStack() as undo:
        for owner, name in (
            (masking_utils, "find_packed_sequence_indices"),
            (PreTrainedModel, "warn_if_padding_and_no_attention_mask"),
        ):
            if (original := getattr(owner, name, None)) is not None:  # not every version has it
                undo.callback(setattr, owner, name, original)
                setattr(owner, name, lambda *_: None)  # no sequence is packed; no warning
        for kernel, wrap in (("sdpa", _by_shape), ("eager", _without_reading)):
            undo.callback(_MASKS.__setitem__, kernel, _MASKS[kernel])
            _MASKS[kernel] = wrap(_MASKS[kernel])
        yield


def _by_shape(original: Mask) -> Mask:
    """Wrap a mask function: no mask where `is_causal` suffices, or where all tokens are attended to."""
    make_mask = _without_reading(original)

    def mask(
        *, kv_length: int, q_length: int | None = None, local_size: int | None = None,
        attention_mask: torch.Tensor | None = None, allow_is_causal_skip: bool = True,
        allow_is_bidirectional_skip: bool = False, **others: Any,
    ) -> torch.Tensor | None:  # fmt: skip
        is_causal = allow_is_causal_skip and q_length == kv_length
        attends_to_all = allow_is_bidirectional_skip and attention_mask is None
        if (is_causal or attends_to_all) and (local_size is None or kv_length < local_size):
            return None
        length = {} if q_length is None else {"q_length": q_length}
        return make_mask(
            kv_length=kv_length, local_size=local_size, attention_mask=attention_mask,
            allow_is_causal_skip=allow_is_causal_skip, allow_is_bidirectional_skip=allow_is_bidirectional_skip,
            **length, **others,
        )  # fmt: skip

    return mask


def _without_reading(original: Mask) -> Mask:
    """Wrap a mask function: a padding mask is always used; a causal model's is all ones and is dropped."""

    def mask(
        *, attention_mask: torch.Tensor | None = None, allow_is_causal_skip: bool = True,
        allow_is_bidirectional_skip: bool = False, **others: Any,
    ) -> torch.Tensor | None:  # fmt: skip
        if allow_is_causal_skip:
            attention_mask = None
        return original(
            attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip and attention_mask is None, **others,
        )  # fmt: skip

    return mask


# Which backends of torch's scaled_dot_product_attention a training used, as observed and not as requested.
#
# The function's choice depends on dtypes, masks, shapes and the device, and shows in the operation that it calls:
# in an eager forward pass as it runs, under torch.compile in the compiled graph. The backend `math` has no
# operation: it is the backend of a call that calls none of the others.


MATH = "math"
_FUSED = re.compile(r"_scaled_dot_product_(\w+?)_attention(?:_for_[a-z]+|_overrideable)?")
"""Forward operations: `_scaled_dot_product_flash_attention`, `_scaled_dot_product_flash_attention_for_cpu`,
`_scaled_dot_product_efficient_attention`, `_scaled_dot_product_cudnn_attention`."""


class SdpaBackends:
    """Collects the backends of a training; every rank has its own."""

    names: list[str] | None = None
    """The backends, sorted; empty: the function was not called; None: the attention was not observed."""

    def add(self, backends: Iterable[str]) -> None:
        """Add the backends of a forward pass or a graph, which may be none."""
        self.names = sorted({*(self.names or ()), *backends})

    def watch_first_forward(self, module: torch.nn.Module) -> None:
        """Observe the module's next forward pass with gradients; it must not be compiled."""
        calls, modes = _Calls(), ExitStack()
        begun: list[bool] = []

        def begin(*_: object) -> None:
            if torch.is_grad_enabled() and not begun:
                begun.append(True)
                modes.enter_context(calls.operations)
                modes.enter_context(calls)

        def end(*_: object) -> None:
            if begun:
                modes.close()
                for hook in hooks:
                    hook.remove()
                self.add(calls.operations.fused | ({MATH} if calls.unfused else set()))

        hooks = module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)

    @contextmanager
    def in_compiled_graphs(self) -> Iterator[None]:
        """Within the context, observe every joint graph of forward and backward pass that Inductor compiles."""
        from torch._inductor import config
        from torch._inductor.custom_graph_pass import CustomGraphPass

        backends = self

        class RecordBackends(CustomGraphPass):
            def __call__(self, graph: torch.fx.Graph) -> None:
                backends.add(backends_of(graph))

            def uuid(self) -> object:
                return __name__  # it changes no graph, so all cached graphs can be shared

        with config.patch(joint_custom_post_pass=RecordBackends()):
            yield


class _Operations(TorchDispatchMode):
    """Records the fused operations that are called."""

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
    """Records whether a call of the function used no fused operation."""

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
    """The backends of a graph of aten operations; `math` for a call of which no node is fused."""
    calls: dict[tuple[str, ...], set[str]] = {}
    backends = set()
    for node in graph.nodes:
        backend = _backend(node.target)
        backends |= {backend} if backend else set()
        # The traced calls that enclose the node, of which the innermost must be the function's.
        enclosing_calls = node.meta.get("source_fn_stack") or []
        if enclosing_calls and enclosing_calls[-1][1] is F.scaled_dot_product_attention:
            calls.setdefault(tuple(name for name, _ in enclosing_calls), set()).update([backend] if backend else [])
    return backends | ({MATH} if not all(calls.values()) else set())


def _backend(operation: object) -> str | None:
    """The backend's name for a fused forward operation; None: another operation."""
    match = _FUSED.fullmatch(str(getattr(operation, "_opname", "")))
    return match[1] if match else None

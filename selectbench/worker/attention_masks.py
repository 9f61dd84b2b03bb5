"""transformers' attention masks, decided by shapes and by what the model was given, never by tensors' values.

Left alone a model looks whether several sequences were packed into a row, whether a padding mask hides anything and
whether padding was not told. Each look waits for the device. And where torch.compile traces, nothing can be looked
at: in case sequences are packed a whole mask is built, `is_causal` is lost, and with it flash attention. Our jobs
pack nothing, and pad the encoder's side alone, where the model is given the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, masking_utils

Mask = Callable[..., torch.Tensor | None]
_MASKS: Any = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS


@contextmanager
def masks_by_shape() -> Iterator[None]:
    """Inside, models of transformers look at no values to make their masks; the masks are the same."""
    with ExitStack() as undo:
        _stand_in(undo, masking_utils, "find_packed_sequence_indices", _nothing)
        _stand_in(undo, PreTrainedModel, "warn_if_padding_and_no_attention_mask", _nothing)
        for kernel, made in (("sdpa", _skipped_by_shape), ("eager", _unread)):
            undo.callback(_MASKS.__setitem__, kernel, _MASKS[kernel])
            _MASKS[kernel] = made(_MASKS[kernel])
        yield


def _stand_in(undo: ExitStack, owner: Any, name: str, function: Callable[..., None]) -> None:
    if (before := getattr(owner, name, None)) is not None:  # not every version has it
        undo.callback(setattr, owner, name, before)
        setattr(owner, name, function)


def _nothing(*_: object) -> None:
    """No sequence is packed; no warning about padding."""


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

"""A look at what a trial learnt, for people: kept small, and no figure comes from it."""

from __future__ import annotations

import msgspec

from selectbench.record.recorded import Recorded


class Sample(Recorded, frozen=True, kw_only=True):
    """Something that the trained model said."""

    prompt: str
    """What it was given: a beginning of held-out text, or a source."""
    said: str
    """Its most likely continuation, or target, token by token."""
    reference: str | None
    """How the text really goes on, or the target; None: there is none."""


class Inside(Recorded, frozen=True, kw_only=True):
    """Of one trained model, on the same held-out text for every option."""

    samples: list[Sample] = msgspec.field(default_factory=list)
    """A few, from the same prompts for every option with the same tokenizer."""
    tokens: list[str] = msgspec.field(default_factory=list)
    """Text of the first scored tokens, one by one."""
    token_losses: list[float] = msgspec.field(default_factory=list)
    """Nats of each of these tokens."""
    attention: list[list[float]] = msgspec.field(default_factory=list)
    """Of the last layer, averaged over its heads: how much each of the first tokens (row) attends to each
    (column); of
    an encoder and decoder, how the target attends to the source. Drawn with the eager kernel; empty: not to be
    had."""
    attention_rows: list[str] = msgspec.field(default_factory=list)
    """Text of the tokens that attend."""
    attention_columns: list[str] = msgspec.field(default_factory=list)
    """Text of those attended to."""

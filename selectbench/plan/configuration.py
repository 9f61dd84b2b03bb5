"""What is known of an option's model before it is built: rows of its embedding, and transformers' configuration."""

from __future__ import annotations

from typing import Any

from selectbench.choices.model import AnyModel, OwnModel, PretrainedModel, resolved_vocab_size
from selectbench.data.prepared import Prepared
from selectbench.data.weights_content import configuration_of
from selectbench.errors import UserError
from selectbench.suite.job import vocabulary_of
from selectbench.suite.suite import Option, Suite


def vocab_size_of(suite: Suite, option: Option, prepared: Prepared | None) -> int | None:
    """Rows of the option's embedding; None: a tokenizer that is not at hand decides.

    Raises UserError where the model has fewer than the tokenizer.
    """
    job = suite.job.of(option.choices)
    entries = prepared.vocab_size if prepared else vocabulary_of(job.data)
    if entries is None and job.tokenizer is not None:
        entries = job.tokenizer.most_entries
    if entries is None:
        return None
    try:
        return resolved_vocab_size(job.model, entries)
    except ValueError as error:
        # A configuration file or a tokenizer states its own; others were checked on loading.
        raise UserError(f"suite {suite.name}: option {option.name}: model: {error}") from None


def config_of(model: AnyModel, vocab_size: int | None, seq_len: int) -> dict[str, Any] | None:
    """The keys by which transformers builds the model; None: own code, or nobody can tell yet."""
    if isinstance(model, OwnModel):
        return None
    if isinstance(model, PretrainedModel):
        return configuration_of(model)
    return None if vocab_size is None else model.transformers_config(vocab_size, seq_len)

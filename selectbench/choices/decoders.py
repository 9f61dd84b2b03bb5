"""Decoders of transformers for `task: causal_lm`: GPT-2 and Llama.

The parameter counts are the families' own formulas, so that `plan` needs no torch; a test holds them
against the real models.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from selectbench.strict import Strict

Width = Annotated[int, Field(ge=1, le=1 << 17)]
Layers = Annotated[int, Field(ge=1, le=4096)]
VocabularySize = Annotated[int, Field(ge=2, le=1 << 24)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Gpt2(Strict):
    """GPT-2 (Radford et al. 2019): learned positions, GELU by tanh, tied embeddings; dropout is off unless set."""

    TASKS: ClassVar[tuple[str, ...]] = ("causal_lm",)
    family: Literal["gpt2"] = "gpt2"
    n_layer: Layers = 12
    """Transformer blocks."""
    n_embd: Width = 768
    """Width of the residual stream."""
    n_head: Width = 12
    """Attention heads; must divide n_embd."""
    n_inner: Width | None = None
    """Width of the feed-forward layer; 4 x n_embd where not given."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""
    n_positions: Width | None = None
    """Longest sequence; the job's seq_len where not given."""
    dropout: Dropout = 0.0
    """Of embeddings, attention and residuals."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Gpt2:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head must divide n_embd, found n_embd {self.n_embd} and n_head {self.n_head}")
        return self

    def longest_sequence(self) -> int | None:
        """Positions that the model has; None: as many as the job needs."""
        return self.n_positions

    def parameters(self, vocab_size: int, seq_len: int) -> int:
        """Number of parameters, tied ones once."""
        wide, inner = self.n_embd, self.n_inner or 4 * self.n_embd
        block = 4 * wide * wide + 4 * wide + 2 * wide * inner + wide + inner + 4 * wide
        return (vocab_size + (self.n_positions or seq_len)) * wide + self.n_layer * block + 2 * wide

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """Keyword arguments of transformers' `AutoConfig.for_model`, `model_type` among them."""
        return {
            "model_type": "gpt2", "n_layer": self.n_layer, "n_embd": self.n_embd, "n_head": self.n_head,
            "n_inner": self.n_inner, "vocab_size": vocab_size, "n_positions": self.n_positions or seq_len,
            "resid_pdrop": self.dropout, "embd_pdrop": self.dropout, "attn_pdrop": self.dropout,
            "bos_token_id": None, "eos_token_id": None,
            # The same function as transformers' `gelu_new`, in one kernel that keeps its input alone.
            "activation_function": "gelu_pytorch_tanh",
        }  # fmt: skip


class Llama(Strict):
    """Llama (Touvron et al. 2023, arXiv:2302.13971): rotary positions, RMSNorm, SwiGLU, no biases."""

    TASKS: ClassVar[tuple[str, ...]] = ("causal_lm",)
    family: Literal["llama"] = "llama"
    num_hidden_layers: Layers = 12
    """Transformer blocks."""
    hidden_size: Width = 768
    """Width of the residual stream."""
    num_attention_heads: Width = 12
    """Attention heads; must divide hidden_size into even parts."""
    num_key_value_heads: Width | None = None
    """Key and value heads; must divide num_attention_heads; as many as those where not given."""
    intermediate_size: Width | None = None
    """Width of the feed-forward layer; 8/3 x hidden_size rounded up to a multiple of 64 where not given."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""
    tie_word_embeddings: bool = False
    """Whether the output head is the embedding."""
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    """Base of the rotary frequencies."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Llama:
        heads, keys = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.hidden_size % heads or (self.hidden_size // heads) % 2:
            raise ValueError(
                "num_attention_heads must divide hidden_size into even parts, "
                f"found hidden_size {self.hidden_size} and num_attention_heads {heads}"
            )
        if heads % keys:
            raise ValueError(
                "num_key_value_heads must divide num_attention_heads, "
                f"found num_attention_heads {heads} and num_key_value_heads {keys}"
            )
        return self

    def inner(self) -> int:
        """Width of the feed-forward layer."""
        return self.intermediate_size or -(-8 * self.hidden_size // 3 // 64) * 64

    def longest_sequence(self) -> int | None:
        """Rotary positions have no bound here."""
        return None

    def parameters(self, vocab_size: int, seq_len: int) -> int:
        """Number of parameters, tied ones once."""
        wide = self.hidden_size
        keys = wide // self.num_attention_heads * (self.num_key_value_heads or self.num_attention_heads)
        block = 2 * wide * wide + 2 * wide * keys + 3 * wide * self.inner() + 2 * wide
        embeddings = vocab_size * wide * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * block + wide

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """Keyword arguments of transformers' `AutoConfig.for_model`, `model_type` among them."""
        return {
            "model_type": "llama", "num_hidden_layers": self.num_hidden_layers, "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
            "intermediate_size": self.inner(), "vocab_size": vocab_size, "max_position_embeddings": seq_len,
            "tie_word_embeddings": self.tie_word_embeddings,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        }  # fmt: skip

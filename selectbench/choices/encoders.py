"""Models of transformers with an encoder: BERT for `task: masked_lm`, T5 and BART for `task: seq2seq`.

The parameter counts are the families' own formulas, so that `plan` needs no torch; a test holds them
against the real models.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from selectbench.choices.decoders import Dropout, Layers, VocabularySize, Width
from selectbench.strict import Strict


class Bert(Strict):
    """BERT (Devlin et al. 2019, arXiv:1810.04805), an encoder for `task: masked_lm`; dropout is off unless set."""

    TASKS: ClassVar[tuple[str, ...]] = ("masked_lm",)
    family: Literal["bert"] = "bert"
    num_hidden_layers: Layers = 12
    """Transformer blocks."""
    hidden_size: Width = 768
    """Width of the residual stream."""
    num_attention_heads: Width = 12
    """Attention heads; must divide hidden_size."""
    intermediate_size: Width | None = None
    """Width of the feed-forward layer; 4 x hidden_size where not given."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""
    dropout: Dropout = 0.0
    """Of embeddings, attention and residuals."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Bert:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, found hidden_size {self.hidden_size} and "
                f"num_attention_heads {self.num_attention_heads}"
            )
        return self

    def longest_sequence(self) -> int | None:
        """As many positions as the job needs."""
        return None

    def parameters(self, vocab_size: int, seq_len: int) -> int:
        """Number of parameters, tied ones once."""
        wide, inner = self.hidden_size, self.intermediate_size or 4 * self.hidden_size
        block = 4 * wide * wide + 4 * wide + 2 * wide * inner + inner + wide + 4 * wide
        head = wide * wide + wide + 2 * wide + vocab_size
        return (vocab_size + seq_len + 2) * wide + 2 * wide + self.num_hidden_layers * block + head

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """Keyword arguments of transformers' `AutoConfig.for_model`, `model_type` among them."""
        return {
            "model_type": "bert", "num_hidden_layers": self.num_hidden_layers, "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_attention_heads, "vocab_size": vocab_size,
            "intermediate_size": self.intermediate_size or 4 * self.hidden_size,
            "max_position_embeddings": seq_len, "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout, "pad_token_id": None,
        }  # fmt: skip


class T5(Strict):
    """T5 (Raffel et al. 2020, arXiv:1910.10683), encoder and decoder for `task: seq2seq`; no dropout unless set."""

    TASKS: ClassVar[tuple[str, ...]] = ("seq2seq",)
    family: Literal["t5"] = "t5"
    num_layers: Layers = 6
    """Blocks of the encoder, and of the decoder."""
    d_model: Width = 512
    """Width of the residual streams."""
    num_heads: Width = 8
    """Attention heads."""
    d_kv: Width | None = None
    """Width of a head; d_model / num_heads where not given."""
    d_ff: Width | None = None
    """Width of the feed-forward layers; 4 x d_model where not given."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""
    dropout: Dropout = 0.0
    """Of embeddings, attention and residuals."""

    @model_validator(mode="after")
    def _heads_divide(self) -> T5:
        if self.d_kv is None and self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads must divide d_model where d_kv is not given, found d_model {self.d_model} "
                f"and num_heads {self.num_heads}"
            )
        return self

    def longest_sequence(self) -> int | None:
        """Relative positions have no bound."""
        return None

    def parameters(self, vocab_size: int, seq_len: int) -> int:
        """Number of parameters, tied ones once."""
        wide, inner = self.d_model, self.d_ff or 4 * self.d_model
        attention = 4 * wide * (self.d_kv or wide // self.num_heads) * self.num_heads
        encoder = attention + 2 * wide * inner + 2 * wide
        decoder = 2 * attention + 2 * wide * inner + 3 * wide
        positions = 2 * _T5_BUCKETS * self.num_heads
        return vocab_size * wide + self.num_layers * (encoder + decoder) + positions + 2 * wide

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """Keyword arguments of transformers' `AutoConfig.for_model`, `model_type` among them."""
        return {
            "model_type": "t5", "num_layers": self.num_layers, "num_decoder_layers": self.num_layers,
            "d_model": self.d_model, "num_heads": self.num_heads,
            "d_kv": self.d_kv or self.d_model // self.num_heads,
            "d_ff": self.d_ff or 4 * self.d_model, "vocab_size": vocab_size, "dropout_rate": self.dropout,
            "relative_attention_num_buckets": _T5_BUCKETS, "pad_token_id": None, "eos_token_id": None,
            "decoder_start_token_id": None,
        }  # fmt: skip


_T5_BUCKETS = 32


class Bart(Strict):
    """BART (Lewis et al. 2020, arXiv:1910.13461), encoder and decoder (`task: seq2seq`); no dropout unless set."""

    TASKS: ClassVar[tuple[str, ...]] = ("seq2seq",)
    family: Literal["bart"] = "bart"
    num_layers: Layers = 6
    """Blocks of the encoder, and of the decoder."""
    d_model: Width = 512
    """Width of the residual streams."""
    num_heads: Width = 8
    """Attention heads; must divide d_model."""
    ffn_dim: Width | None = None
    """Width of the feed-forward layers; 4 x d_model where not given."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""
    dropout: Dropout = 0.0
    """Of embeddings and residuals."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Bart:
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads must divide d_model, found d_model {self.d_model} and num_heads {self.num_heads}"
            )
        return self

    def longest_sequence(self) -> int | None:
        """As many positions as the job needs."""
        return None

    def parameters(self, vocab_size: int, seq_len: int) -> int:
        """Number of parameters, tied ones once; BART's positions have two rows more than sequences are long."""
        wide, inner = self.d_model, self.ffn_dim or 4 * self.d_model
        attention = 4 * wide * wide + 4 * wide
        forward = 2 * wide * inner + inner + wide
        encoder, decoder = attention + forward + 4 * wide, 2 * attention + forward + 6 * wide
        return vocab_size * wide + 2 * (seq_len + 2) * wide + 4 * wide + self.num_layers * (encoder + decoder)

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """Keyword arguments of transformers' `AutoConfig.for_model`, `model_type` among them."""
        inner = self.ffn_dim or 4 * self.d_model
        return {
            "model_type": "bart", "encoder_layers": self.num_layers, "decoder_layers": self.num_layers,
            "d_model": self.d_model, "encoder_attention_heads": self.num_heads,
            "decoder_attention_heads": self.num_heads, "encoder_ffn_dim": inner, "decoder_ffn_dim": inner,
            "vocab_size": vocab_size, "max_position_embeddings": seq_len, "dropout": self.dropout,
            "attention_dropout": 0.0, "activation_dropout": 0.0, "pad_token_id": None, "bos_token_id": None,
            "eos_token_id": None, "decoder_start_token_id": None, "forced_eos_token_id": None,
        }  # fmt: skip

"""What of a model its memory follows from: its matrices, and what each token leaves behind for the backward pass.

By families of transformers, from the keys of their configurations; counted on the tensors that autograd saves, and
held against them by a test. Kernels that keep no attention scores (flash, memory-efficient) are the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selectbench.choices.model import ENCODERS

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """Elements that one token leaves behind, by what they are kept in."""

    full: float = 0.0
    """In fp32 in every precision: what norms and softmaxes compute in."""
    residual: float = 0.0
    """In the dtype of the weights, as the stream between the blocks has it."""
    compute: float = 0.0
    """In the dtype of the matrix products."""
    masks: float = 0.0
    """In a byte: which elements dropout kept."""

    def __add__(self, other: Saved) -> Saved:
        return Saved(
            self.full + other.full, self.residual + other.residual, self.compute + other.compute,
            self.masks + other.masks,
        )  # fmt: skip

    def bytes_in(self, weights: int, products: int) -> float:
        """With so many bytes for an element of the weights and of the products."""
        return 4 * self.full + weights * self.residual + products * self.compute + self.masks


@dataclass(frozen=True)
class Stack:
    """Equal blocks, one after the other."""

    blocks: int
    saved: Saved
    """Of a token in one block."""
    width: int
    """Of the stream between the blocks: what a token leaves behind where a block is computed again."""
    matrices: Sequence[tuple[int, int]]
    """Sides of the matrices of one block, input first."""

    @property
    def parameters(self) -> int:
        """Of the matrices of all blocks."""
        return self.blocks * sum(a * b for a, b in self.matrices)


@dataclass(frozen=True)
class Layout:
    """A model; every sequence is as long on either side, where it has two."""

    stacks: Sequence[Stack]
    outside: Saved
    """Of a token, outside the blocks and without the logits."""
    embedding: int
    """Parameters of what tokens and positions are looked up in."""
    head: int
    """Of the matrix that makes logits, tied or not."""
    is_tied: bool
    """Whether that is one of the former."""
    vocab_size: int

    @property
    def matrix_parameters(self) -> int:
        """Of all matrix products, the head's among them."""
        return self.head + sum(stack.parameters for stack in self.stacks)

    @property
    def parameters(self) -> int:
        """Of the whole, but for biases and norms."""
        return self.embedding + self.matrix_parameters - (self.head if self.is_tied else 0)


@dataclass(frozen=True)
class Regime:
    """How the model is run, as far as it changes what is kept."""

    seq_len: int
    autocast: bool
    """Whether products run in less than the weights: each has a copy of its input."""
    half: bool
    """Whether they run in 16 bits."""
    eager: bool
    """Whether attention keeps its scores."""

    def scores(self, heads: int) -> Saved:
        """Of a token in one attention: the softmax in fp32, and the weights in the products' dtype."""
        kept = float(heads * self.seq_len) if self.eager else 0.0
        return Saved(full=kept, compute=kept if self.half else 0.0)


FORMULA_ACTIVATIONS = frozenset({"gelu_new", "gelu_fast", "gelu_python", "gelu_python_tanh", "quick_gelu"})
"""Written out in Python by transformers: autograd keeps their parts."""
_PARTS = 3
"""So many more times the layer's width, in fp32, as autocast raises to a power in fp32."""


_NORMS_OF_HEADS = frozenset({"qwen3", "gemma3_text"})
"""Families that norm queries and keys too."""


def layout_of(config: Config, regime: Regime) -> Layout | None:
    """Of the model of a configuration, as transformers has it; None: its kind is not known here."""
    kind = str(config.get("model_type"))
    if any("expert" in key for key in config):
        return None
    try:
        if "n_embd" in config:
            return _gpt2(config, regime)
        if kind in ENCODERS:
            return _bert(config, regime)
        if "d_ff" in config:
            return _t5(config, regime)
        if "encoder_ffn_dim" in config:
            return _bart(config, regime)
        return _llama(config, regime)
    except (KeyError, TypeError, ZeroDivisionError):  # a key is missing, or holds no number that makes sense
        return None


def _activation(config: Config, inner: int) -> Saved:
    names = (config.get(key) for key in ("activation_function", "hidden_act", "dense_act_fn"))
    name = next((name for name in names if name is not None), "gelu_new" if "n_embd" in config else None)
    return Saved(full=_PARTS * inner if name in FORMULA_ACTIVATIONS else 0.0)


def _dropout(config: Config, elements: float) -> Saved:
    """The masks of so many elements, where there is any dropout."""
    keys = ("resid_pdrop", "hidden_dropout_prob", "dropout", "dropout_rate")
    return Saved(masks=elements if any((config.get(key) or 0) > 0 for key in keys) else 0.0)


def _gpt2(c: Config, regime: Regime) -> Layout:
    """Two layer norms, one product for query, key and value, and two around the activation."""
    wide, heads, inner = c["n_embd"], c["n_head"], c.get("n_inner") or 4 * c["n_embd"]
    saved = Saved(full=4 + heads, residual=2 * wide, compute=6 * wide + 2 * inner)
    saved += regime.scores(heads) + _activation(c, inner) + _dropout(c, 2 * wide)
    stack = Stack(c["n_layer"], saved, wide, [(wide, 3 * wide), (wide, wide), (wide, inner), (inner, wide)])
    outside = Saved(full=2, residual=wide, compute=wide) + _dropout(c, wide)
    rows, positions = c["vocab_size"], c.get("n_positions", regime.seq_len)
    return Layout([stack], outside, (rows + positions) * wide, rows * wide, _is_tied(c), rows)


def _llama(c: Config, regime: Regime) -> Layout:
    """RMS norms, which compute in fp32, rotated queries and keys, and a gate beside the feed-forward layer."""
    wide, heads, inner = c["hidden_size"], c["num_attention_heads"], _inner_of(c)
    head = c.get("head_dim") or wide // heads
    queries, keys = heads * head, (c.get("num_key_value_heads") or heads) * head
    inputs = 5 if regime.autocast else 2
    shared = queries - keys if regime.eager else 0  # keys and values are repeated for the heads that share them
    saved = Saved(
        full=2 * wide + 2 + heads, residual=2 * wide,
        compute=inputs * wide + 2 * queries + 2 * (keys + shared) + 4 * inner,
    ) + regime.scores(heads)  # fmt: skip
    if str(c.get("model_type")) in _NORMS_OF_HEADS:
        saved += Saved(full=queries + keys, residual=queries + keys)
    matrices = [(wide, queries), (wide, keys), (wide, keys), (queries, wide), *[(wide, inner)] * 2, (inner, wide)]
    rows = c["vocab_size"]
    outside = Saved(full=wide + 1, residual=wide, compute=wide)
    stack = Stack(c["num_hidden_layers"], saved, wide, matrices)
    return Layout([stack], outside, rows * wide, rows * wide, c.get("tie_word_embeddings", False), rows)


def _bert(c: Config, regime: Regime) -> Layout:
    """Layer norms after the sums; an encoder whose head is a layer of its own before the embedding."""
    wide, heads, inner = c["hidden_size"], c["num_attention_heads"], _inner_of(c)
    inputs = 5 if regime.autocast else 3
    saved = Saved(full=4 + heads, residual=2 * wide, compute=(inputs + 3) * wide + 2 * inner)
    saved += regime.scores(heads) + _activation(c, inner) + _dropout(c, 2 * wide)
    stack = Stack(c["num_hidden_layers"], saved, wide, [*[(wide, wide)] * 4, (wide, inner), (inner, wide)])
    outside = Saved(full=4, residual=2 * wide, compute=4 * wide) + _dropout(c, wide)
    rows, positions = c["vocab_size"], c.get("max_position_embeddings", regime.seq_len)
    return Layout([stack], outside, (rows + positions) * wide, (rows + wide) * wide, _is_tied(c), rows)


def _t5(c: Config, regime: Regime) -> Layout:
    """Llama's norms; the bias of the positions is learnt, so that attention over it keeps its weights."""
    wide, heads, rows = c["d_model"], c["num_heads"], c["vocab_size"]
    wide_heads, weights = heads * (c.get("d_kv") or wide // heads), float(heads * regime.seq_len)
    forward, matrices = _t5_forward(c, regime)
    inputs = 4 if regime.autocast else 2
    encoder = forward + Saved(
        full=2 * wide + 2 + weights, residual=2 * wide, compute=inputs * wide + 4 * wide_heads
    ) + _dropout(c, 2 * wide)  # fmt: skip
    inputs = 7 if regime.autocast else 3
    decoder = forward + regime.scores(heads) + _dropout(c, 3 * wide) + Saved(
        full=3 * wide + 3 + weights, residual=3 * wide, compute=inputs * wide + 8 * wide_heads + weights
    )  # fmt: skip
    attention = [(wide, wide_heads)] * 3 + [(wide_heads, wide)]
    layers = c["num_layers"]
    stacks = [
        Stack(layers, encoder, wide, [*attention, *matrices]),
        Stack(c.get("num_decoder_layers") or layers, decoder, wide, [*attention * 2, *matrices]),
    ]
    outside = Saved(full=2 * wide + 2, residual=2 * wide, compute=2 * wide) + _dropout(c, 4 * wide)
    return Layout(stacks, outside, rows * wide, rows * wide, _is_tied(c), rows)


def _t5_forward(c: Config, regime: Regime) -> tuple[Saved, list[tuple[int, int]]]:
    """The feed-forward layer; what it activates is cast to the weights' dtype and back."""
    wide, inner = c["d_model"], c["d_ff"]
    is_gated = str(c.get("feed_forward_proj")).startswith("gated")
    copies = (2 if regime.autocast else 1) + (3 if is_gated else 0)
    masks = _dropout(c, inner)
    saved = Saved(compute=copies * inner + masks.masks) + masks + (_activation(c, inner) if is_gated else Saved())
    return saved, [*[(wide, inner)] * (2 if is_gated else 1), (inner, wide)]


def _bart(c: Config, regime: Regime) -> Layout:
    """Layer norms after the sums; padding is hidden by a mask of its own in every attention."""
    wide, rows = c["d_model"], c["vocab_size"]
    attention = [(wide, wide)] * 4

    def stack(side: str, attentions: int, inputs: int) -> Stack:
        inner, heads = c[f"{side}_ffn_dim"], c[f"{side}_attention_heads"]
        saved = _activation(c, inner) + _dropout(c, (attentions + 1) * wide) + Saved(
            full=2 * (attentions + 1) + attentions * heads, residual=(attentions + 1) * wide,
            compute=(inputs + 3 * attentions) * wide + 2 * inner + regime.seq_len,
        )  # fmt: skip
        for _ in range(attentions):
            saved += regime.scores(heads)
        matrices = [*attention * attentions, (wide, inner), (inner, wide)]
        return Stack(c[f"{side}_layers"], saved, wide, matrices)

    stacks = [
        stack("encoder", 1, 5 if regime.autocast else 3),
        stack("decoder", 2, 9 if regime.autocast else 5),
    ]
    outside = Saved(full=4, residual=2 * wide, compute=2 * wide) + _dropout(c, 2 * wide)
    positions = 2 * c.get("max_position_embeddings", regime.seq_len)
    return Layout(stacks, outside, (rows + positions) * wide, rows * wide, _is_tied(c), rows)


def _inner_of(c: Config) -> int:
    """Width of the feed-forward layer. Raises KeyError."""
    return int(c["ffn_dim"] if "ffn_dim" in c else c["intermediate_size"])


def _is_tied(c: Config) -> bool:
    return bool(c.get("tie_word_embeddings", True))

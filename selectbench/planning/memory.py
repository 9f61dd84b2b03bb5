"""How much of a GPU's memory an option is expected to take: model states, saved activations, and the loss.

Together they are the peak where the backward pass begins. Compiled models and fused losses take less. It is an
expectation from formulas: whether an option fits, its trial shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

from selectbench.choices import Choices
from selectbench.choices import model as models
from selectbench.choices.execution import Weights
from selectbench.choices.optimizer import AdamW
from selectbench.data.prepared import Prepared, configuration_of
from selectbench.errors import UserError
from selectbench.suite.job import Job
from selectbench.suite.suite import Option, Suite

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def entries_of(job: Job, prepared: Prepared | None) -> int | None:
    """Of the vocabulary that the data come in; those asked for where they are not prepared. None: not known yet."""
    if prepared is not None:
        return prepared.vocab_size
    return job.data.vocabulary or (job.tokenizer.most_entries if job.tokenizer is not None else None)


def vocab_size_of(suite: Suite, option: Option, prepared: Prepared | None) -> int | None:
    """Rows of the option's embedding; None: not known yet. Raises UserError where the tokenizer has more."""
    job = suite.job_of(option)
    if (entries := entries_of(job, prepared)) is None:
        return None
    try:
        return models.resolved_vocab_size(job.model, entries)
    except ValueError as error:
        # A configuration file or a tokenizer states its own; others were checked on loading.
        raise UserError(f"suite {suite.name}: option {option.name}: model: {error}") from None


def config_of(model: models.AnyModel, vocab_size: int | None, seq_len: int) -> dict[str, Any] | None:
    """The keys by which transformers builds the model; None: own code, or nobody can tell yet."""
    if isinstance(model, models.OwnModel):
        return None
    if isinstance(model, models.PretrainedModel):
        found = configuration_of(model)
    else:
        found = None if vocab_size is None else model.transformers_config(vocab_size, seq_len)
    return found if found is None or model.is_random else models.without_randomness(found)


# What of a model its memory follows from: its matrices, and what each token leaves behind for the backward pass.
#
# By families of transformers, from the keys of their configurations; counted on the tensors that autograd saves,
# and held against them by a test. Kernels that keep no attention scores (flash, memory-efficient) are the rule.


Config = Mapping[str, Any]
FORMULA_ACTIVATIONS = frozenset({"gelu_new", "gelu_fast", "gelu_python", "gelu_python_tanh", "quick_gelu"})
"""Written out in Python by transformers: autograd keeps their parts."""
_PARTS = 3
"""So many more times the layer's width, in fp32, as autocast raises to a power in fp32."""
_NORMS_OF_HEADS = frozenset({"qwen3", "gemma3_text"})
"""Families that norm queries and keys too."""


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
        return Saved(*map(sum, zip(astuple(self), astuple(other), strict=True)))

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
        """Of the whole, but for biases and norms; tied ones once."""
        return self.embedding + self.matrix_parameters - self.head * self.is_tied

    @property
    def embeddings(self) -> int:
        """Of those, in what tokens and positions are looked up in, and in the head."""
        return self.embedding + self.head * (not self.is_tied)


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


def size_of(
    model: models.AnyModel, vocab_size: int | None, seq_len: int, entries: int | None = None
) -> Layout | None:
    """As `layout_of`; `entries`: with so many rows in place of its own; None: the model is not known here."""
    config = config_of(model, vocab_size, seq_len)
    own = config if config is None or entries is None else {**config, "vocab_size": entries}
    return None if own is None else layout_of(own, Regime(seq_len, autocast=False, half=False, eager=False))


def layout_of(config: Config, regime: Regime) -> Layout | None:
    """Of the model of a configuration, as transformers has it; None: its kind is not known here."""
    families = {
        _gpt2: "n_embd" in config, _bert: str(config.get("model_type")) in models.ENCODERS, _t5: "d_ff" in config,
        _bart: "encoder_ffn_dim" in config, _llama: True,
    }  # fmt: skip
    if any("expert" in key for key in config):
        return None
    try:
        return next(build for build, fits in families.items() if fits)(config, regime)
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
    inputs = 8 if regime.autocast else 6
    saved = Saved(full=4 + heads, residual=2 * wide, compute=inputs * wide + 2 * inner)
    saved += regime.scores(heads) + _activation(c, inner) + _dropout(c, 2 * wide)
    stack = Stack(c["num_hidden_layers"], saved, wide, [*[(wide, wide)] * 4, (wide, inner), (inner, wide)])
    outside = Saved(full=4, residual=2 * wide, compute=4 * wide) + _dropout(c, wide)
    rows, positions = c["vocab_size"], c.get("max_position_embeddings", regime.seq_len)
    return Layout([stack], outside, (rows + positions) * wide, (rows + wide) * wide, _is_tied(c), rows)


def _t5(c: Config, regime: Regime) -> Layout:
    """Llama's norms; the bias of the positions is learnt, so that attention over it keeps its weights."""
    wide, heads, rows = c["d_model"], c["num_heads"], c["vocab_size"]
    wide_heads, weights = heads * (c.get("d_kv") or wide // heads), float(heads * regime.seq_len)
    # What the feed-forward layer activates is cast to the weights' dtype and back.
    inner, is_gated = c["d_ff"], str(c.get("feed_forward_proj")).startswith("gated")
    copies, masks = (2 if regime.autocast else 1) + (3 if is_gated else 0), _dropout(c, c["d_ff"])
    forward = Saved(compute=copies * inner + masks.masks) + masks
    if is_gated:
        forward += _activation(c, inner)
    matrices = [*[(wide, inner)] * (2 if is_gated else 1), (inner, wide)]
    inputs, theirs = (4, 7) if regime.autocast else (2, 3)
    encoder = Saved(full=2 * wide + 2 + weights, residual=2 * wide, compute=inputs * wide + 4 * wide_heads)
    encoder += forward + _dropout(c, 2 * wide)
    decoder = Saved(3 * wide + 3 + weights, 3 * wide, compute=theirs * wide + 8 * wide_heads + weights)
    decoder += forward + regime.scores(heads) + _dropout(c, 3 * wide)
    attention = [(wide, wide_heads)] * 3 + [(wide_heads, wide)]
    layers = c["num_layers"]
    stacks = [
        Stack(layers, encoder, wide, [*attention, *matrices]),
        Stack(c.get("num_decoder_layers") or layers, decoder, wide, [*attention * 2, *matrices]),
    ]
    outside = Saved(full=2 * wide + 2, residual=2 * wide, compute=2 * wide) + _dropout(c, 4 * wide)
    return Layout(stacks, outside, rows * wide, rows * wide, _is_tied(c), rows)


def _bart(c: Config, regime: Regime) -> Layout:
    """Layer norms after the sums; padding is hidden by a mask of its own in every attention."""
    wide, rows = c["d_model"], c["vocab_size"]
    attention = [(wide, wide)] * 4

    def stack(side: str, attentions: int, inputs: int) -> Stack:
        inner, heads = c[f"{side}_ffn_dim"], c[f"{side}_attention_heads"]
        saved = _activation(c, inner) + _dropout(c, (attentions + 1) * wide) + regime.scores(attentions * heads)
        saved += Saved(
            full=2 * (attentions + 1) + attentions * heads, residual=(attentions + 1) * wide,
            compute=(inputs + 3 * attentions) * wide + 2 * inner + regime.seq_len,
        )  # fmt: skip
        matrices = [*attention * attentions, (wide, inner), (inner, wide)]
        return Stack(c[f"{side}_layers"], saved, wide, matrices)

    stacks = [stack("encoder", 1, 5 if regime.autocast else 3), stack("decoder", 2, 9 if regime.autocast else 5)]
    outside = Saved(full=4, residual=2 * wide, compute=2 * wide) + _dropout(c, 2 * wide)
    positions = 2 * c.get("max_position_embeddings", regime.seq_len)
    return Layout(stacks, outside, (rows + positions) * wide, rows * wide, _is_tied(c), rows)


def _inner_of(c: Config) -> int:
    """Width of the feed-forward layer. Raises KeyError."""
    return int(c["ffn_dim"] if "ffn_dim" in c else c["intermediate_size"])


def _is_tied(c: Config) -> bool:
    return bool(c.get("tie_word_embeddings", True))


class ModelStates(NamedTuple):
    """Bytes of one rank, where shards are equal, by the formulas of the literature.

    Source: Rajbhandari et al. 2020, arXiv:1910.02054, figure 1 and section 5. With psi parameters over N ranks,
    mixed-precision Adam keeps 2 psi of parameters, 2 psi of gradients and 12 psi of optimizer state (fp32 master
    weights and two moments); what a strategy shards is divided by N. Activations, buffers and fragments are left
    out, and so are gradients that an implementation keeps in fp32 beside half-precision weights.
    """

    parameters: float
    gradients: float
    optimizer_state: float
    """Master weights among it."""


def expected(choices: Choices, parameters: int, world_size: int) -> ModelStates | None:
    """Of a rank that trains so many parameters; None: the size of the optimizer's state does not follow from it."""
    updated, used = _weight_bytes(choices)
    state, sharded = choices.optimizer.state_bytes(updated), choices.strategy.sharded()
    if state is None:
        return None
    master = updated if choices.precision.working_dtype else 0
    bytes_each = ModelStates(parameters=used, gradients=used, optimizer_state=master + state)
    ranks = (world_size if name in sharded else 1 for name in ModelStates._fields)
    return ModelStates(*(each * parameters / n for each, n in zip(bytes_each, ranks, strict=True)))


def _weight_bytes(choices: Choices) -> tuple[int, int]:
    """Of an element that the optimizer updates, and of one that the passes use."""
    precision = choices.precision
    return BYTES[precision.parameter_dtype], BYTES[precision.working_dtype or precision.parameter_dtype]


LOSS_COPIES = 3
"""In fp32, of the size of the logits, at the beginning of the backward pass: the log-softmax that the loss has
kept, its gradient, and the logits' (torch's cross_entropy, which is log_softmax and nll_loss)."""
CONTEXT_BYTES = 600 << 20
"""A CUDA context with its kernels, and the workspaces of cuBLAS; some hundred MiB by the driver and the GPU."""
COMMUNICATION_BYTES = 1 << 30
"""NCCL's buffers and its own context, where there are several ranks."""
FOUR_BITS = 0.53
"""Bytes of an element in NF4 with its quantised scales (Dettmers et al. 2023, arXiv:2305.14314: 4.127 bits)."""


class MemoryNeed(NamedTuple):
    """Bytes of one rank at the peak, which is the sum of these."""

    states: float
    """Weights, gradients, optimizer state, and what a strategy keeps besides."""
    activations: float
    """What the backward pass needs, copies of the weights under autocast among it."""
    loss: float
    """Beside them at the peak: the loss, or what a block computes on the way back."""
    beside: float
    """The CUDA context and the libraries'."""


def memory_need(job: Job, choices: Choices, config: Mapping[str, Any], ranks: int) -> MemoryNeed | None:
    """Of an option's job, whose model transformers builds from this configuration; None: it is not known here."""
    autocast = choices.precision.autocast_dtype
    _, weights = _weight_bytes(choices)
    products = BYTES[autocast] if autocast else weights
    is_eager = choices.attention.name == "eager"
    regime = Regime(job.seq_len, autocast=autocast is not None, half=products == 2, eager=is_eager)
    layout = layout_of(config, regime)
    if layout is None:
        return None
    tokens = choices.micro_batch_size * job.seq_len
    recomputed = choices.activation_checkpointing.enabled
    copies = products * layout.matrix_parameters if autocast else 0
    # Of a token: what is kept for the backward pass without the logits, and what a block takes while it is passed
    # back: gradients of its widest layer, of what goes in and what comes out, and of the stream; where the block
    # is computed again, all that it saves too.
    kept, passed_back = layout.outside.bytes_in(weights, products), 0.0
    for stack in layout.stacks:
        saved = stack.saved.bytes_in(weights, products)
        gradients = 2 * products * max(max(sides) for sides in stack.matrices) + 4 * weights * stack.width
        kept += stack.blocks * (stack.width * weights if recomputed else saved)
        passed_back = max(passed_back, gradients + (saved if recomputed else 0))
    accumulates = job.gradient_accumulation_steps(choices.micro_batch_size, ranks) > 1
    return MemoryNeed(
        states=_states(choices, layout, ranks, accumulates=accumulates),
        activations=copies + tokens * kept,
        loss=max(LOSS_COPIES * 4.0 * tokens * layout.vocab_size, tokens * passed_back),
        beside=CONTEXT_BYTES + (COMMUNICATION_BYTES if ranks > 1 else 0),
    )


def _states(choices: Choices, layout: Layout, ranks: int, *, accumulates: bool) -> float:
    """What stays from micro-batch to micro-batch, and what the strategy gathers."""
    rank = getattr(choices.adaptation, "r", None)
    if rank is None:
        two_blocks = max(2 * stack.parameters / stack.blocks for stack in layout.stacks)
        outside = layout.parameters - sum(stack.parameters for stack in layout.stacks)
        rest = *_weight_bytes(choices), choices.precision.working_dtype is not None, ranks, accumulates
        gathered = float(choices.strategy.gathered_bytes(Weights(layout.parameters, outside + two_blocks, *rest)))
        return _of_trained(choices, layout.parameters, ranks) + gathered
    additions = rank * sum(stack.blocks * (a + b) for stack in layout.stacks for a, b in stack.matrices)
    linear = sum(stack.parameters for stack in layout.stacks)
    element = FOUR_BITS if choices.adaptation.name == "qlora" else BYTES["float32"]
    frozen = element * linear + BYTES["float32"] * (layout.parameters - linear)
    return frozen + _of_trained(choices, additions, ranks)


def _of_trained(choices: Choices, parameters: int, ranks: int) -> float:
    """An optimizer whose state is not known is taken for AdamW, which keeps most of those that are."""
    like_adamw = choices.model_copy(update={"optimizer": AdamW(lr=1.0)})
    found = expected(choices, parameters, ranks) or expected(like_adamw, parameters, ranks)
    assert found is not None
    offloaded = getattr(choices.strategy, "offload_optimizer", False)
    # Gradients are accumulated in the dtype of what is updated, though half as large in the backward pass.
    updated, used = _weight_bytes(choices)
    return found.parameters + found.gradients * updated / used + (0.0 if offloaded else found.optimizer_state)

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


def vocabulary_size(job: Job, prepared: Prepared | None) -> int | None:
    """Tokens of the data's vocabulary; the requested number where they are not prepared. None: not known yet."""
    if prepared is not None:
        return prepared.vocab_size
    return job.data.vocabulary or (job.tokenizer.most_entries if job.tokenizer is not None else None)


def embedding_rows(suite: Suite, option: Option, prepared: Prepared | None) -> int | None:
    """Rows of the option's embedding; None: not known yet. Raises UserError where the tokenizer has more."""
    job = suite.job_of(option)
    if (entries := vocabulary_size(job, prepared)) is None:
        return None
    try:
        return models.resolved_vocab_size(job.model, entries)
    except ValueError as error:
        # A configuration file or a tokenizer states its own; others were checked on loading.
        raise UserError(f"suite {suite.name}: option {option.name}: model: {error}") from None


def config_of(model: models.AnyModel, vocab_size: int | None, seq_len: int) -> dict[str, Any] | None:
    """The configuration by which transformers builds the model; None: own code, or not known yet."""
    if isinstance(model, models.OwnModel):
        return None
    if isinstance(model, models.PretrainedModel):
        config = configuration_of(model)
    else:
        config = None if vocab_size is None else model.transformers_config(vocab_size, seq_len)
    return config if config is None or model.keeps_randomness else models.without_randomness(config)


# The sizes from which a model's memory follows: its matrices, and what each token saves for the backward pass.
#
# By families of transformers, from the keys of their configurations; counted on the tensors that autograd saves,
# and compared with them by a test. Kernels that keep no attention scores (flash, memory-efficient) are the rule.


Config = Mapping[str, Any]
FORMULA_ACTIVATIONS = frozenset({"gelu_new", "gelu_fast", "gelu_python", "gelu_python_tanh", "quick_gelu"})
"""Activations that transformers writes out in Python: autograd keeps their intermediate results."""
_FORMULA_PARTS = 3
"""How many such results they keep, each of the layer's width; in fp32, as autocast raises to a power in fp32."""
_NORM_PER_HEAD = frozenset({"qwen3", "gemma3_text"})
"""Families that also normalise queries and keys."""


@dataclass(frozen=True)
class Saved:
    """Elements that one token saves for the backward pass, by their dtype."""

    full: float = 0.0
    """Elements in fp32 in every precision, as norms and softmaxes compute in it."""
    residual: float = 0.0
    """Elements in the dtype of the weights, which the residual stream has."""
    compute: float = 0.0
    """Elements in the dtype of the matrix products."""
    masks: float = 0.0
    """Bytes of dropout masks."""

    def __add__(self, other: Saved) -> Saved:
        return Saved(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def bytes_in(self, weights: int, products: int) -> float:
        """Bytes, where an element of the weights and one of the products have so many."""
        return 4 * self.full + weights * self.residual + products * self.compute + self.masks


@dataclass(frozen=True)
class Stack:
    """Equal blocks, one after the other."""

    blocks: int
    saved: Saved
    """What one block saves for a token."""
    width: int
    """Width of the residual stream, which a token saves where a block is computed again."""
    matrices: Sequence[tuple[int, int]]
    """Sides of the matrices of one block, input first."""
    vectors: int
    """Parameters of one block's biases and norms, as the built-in models have them."""

    @property
    def parameters(self) -> int:
        """Parameters of the matrices of all blocks."""
        return self.blocks * sum(a * b for a, b in self.matrices)


@dataclass(frozen=True)
class Layout:
    """A model's matrices and saved elements; source and target are equally long, where it has both."""

    stacks: Sequence[Stack]
    outside: Saved
    """What a token saves outside the blocks, without the logits."""
    embedding: int
    """Parameters of the embeddings of tokens and positions."""
    head: int
    """Parameters of the matrix that computes logits, tied or not."""
    is_tied: bool
    """Whether that matrix is the embedding of tokens."""
    vocab_size: int
    vectors: int
    """Parameters outside the blocks that the others do not count, as the built-in models have them."""

    @property
    def matrix_parameters(self) -> int:
        """Parameters of all matrix products, with the head's."""
        return self.head + sum(stack.parameters for stack in self.stacks)

    @property
    def parameters(self) -> int:
        """Parameters of the model without biases and norms, tied ones once."""
        return self.embedding + self.matrix_parameters - self.head * self.is_tied

    @property
    def all_parameters(self) -> int:
        """Parameters of a built-in model, tied ones once; a test holds them against the real models."""
        return self.parameters + self.vectors + sum(stack.blocks * stack.vectors for stack in self.stacks)

    @property
    def embeddings(self) -> int:
        """Parameters of the embeddings and the head, tied ones once."""
        return self.embedding + self.head * (not self.is_tied)


@dataclass(frozen=True)
class Regime:
    """How the model is run, as far as it changes what is saved."""

    seq_len: int
    autocast: bool
    """Whether products run in less precision than the weights: each has a copy of its input."""
    half: bool
    """Whether products run in 16 bits."""
    eager: bool
    """Whether attention keeps its scores."""

    def scores(self, heads: int) -> Saved:
        """What one attention saves for a token: the softmax in fp32, and the weights in the products' dtype."""
        elements = float(heads * self.seq_len) if self.eager else 0.0
        return Saved(full=elements, compute=elements if self.half else 0.0)


def size_of(
    model: models.AnyModel, vocab_size: int | None, seq_len: int, entries: int | None = None
) -> Layout | None:
    """The model's layout, with `entries` rows of the embedding if given; None: the model is not known here."""
    config = config_of(model, vocab_size, seq_len)
    reduced = config if config is None or entries is None else {**config, "vocab_size": entries}
    return None if reduced is None else layout_of(reduced, Regime(seq_len, autocast=False, half=False, eager=False))


def layout_of(config: Config, regime: Regime) -> Layout | None:
    """The layout of the model that transformers builds from a configuration; None: its family is not known here."""
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
    return Saved(full=_FORMULA_PARTS * inner if name in FORMULA_ACTIVATIONS else 0.0)


def _dropout(config: Config, elements: float) -> Saved:
    """Dropout masks of so many elements; none where the model has no dropout."""
    keys = ("resid_pdrop", "hidden_dropout_prob", "dropout", "dropout_rate")
    return Saved(masks=elements if any((config.get(key) or 0) > 0 for key in keys) else 0.0)


def _gpt2(c: Config, regime: Regime) -> Layout:
    """A decoder with two layer norms, one product for query, key and value, and two around the activation."""
    width, heads, inner = c["n_embd"], c["n_head"], c.get("n_inner") or 4 * c["n_embd"]
    saved = Saved(full=4 + heads, residual=2 * width, compute=6 * width + 2 * inner)
    saved += regime.scores(heads) + _activation(c, inner) + _dropout(c, 2 * width)
    matrices = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
    stack = Stack(c["n_layer"], saved, width, matrices, 9 * width + inner)
    outside = Saved(full=2, residual=width, compute=width) + _dropout(c, width)
    rows, positions = c["vocab_size"], c.get("n_positions", regime.seq_len)
    return Layout([stack], outside, (rows + positions) * width, rows * width, _is_tied(c), rows, 2 * width)


def _llama(c: Config, regime: Regime) -> Layout:
    """A decoder with RMS norms, which compute in fp32, rotated queries and keys, and a gated feed-forward layer."""
    width, heads, inner = c["hidden_size"], c["num_attention_heads"], _inner_of(c)
    head = c.get("head_dim") or width // heads
    queries, keys = heads * head, (c.get("num_key_value_heads") or heads) * head
    inputs = 5 if regime.autocast else 2
    shared = queries - keys if regime.eager else 0  # keys and values are repeated for the heads that share them
    saved = Saved(
        full=2 * width + 2 + heads, residual=2 * width,
        compute=inputs * width + 2 * queries + 2 * (keys + shared) + 4 * inner,
    ) + regime.scores(heads)  # fmt: skip
    if str(c.get("model_type")) in _NORM_PER_HEAD:
        saved += Saved(full=queries + keys, residual=queries + keys)
    matrices = [(width, queries), *[(width, keys)] * 2, (queries, width), *[(width, inner)] * 2, (inner, width)]
    rows = c["vocab_size"]
    outside = Saved(full=width + 1, residual=width, compute=width)
    stack = Stack(c["num_hidden_layers"], saved, width, matrices, 2 * width)
    return Layout([stack], outside, rows * width, rows * width, c.get("tie_word_embeddings", False), rows, width)


def _bert(c: Config, regime: Regime) -> Layout:
    """An encoder with layer norms after the sums, whose head is another layer before the embedding."""
    width, heads, inner = c["hidden_size"], c["num_attention_heads"], _inner_of(c)
    inputs = 8 if regime.autocast else 6
    saved = Saved(full=4 + heads, residual=2 * width, compute=inputs * width + 2 * inner)
    saved += regime.scores(heads) + _activation(c, inner) + _dropout(c, 2 * width)
    matrices = [*[(width, width)] * 4, (width, inner), (inner, width)]
    stack = Stack(c["num_hidden_layers"], saved, width, matrices, 9 * width + inner)
    outside = Saved(full=4, residual=2 * width, compute=4 * width) + _dropout(c, width)
    rows, positions = c["vocab_size"], c.get("max_position_embeddings", regime.seq_len)
    # Token types, norms, biases, and the head's other matrix, which is not tied.
    vectors = width * width + 7 * width + rows
    return Layout([stack], outside, (rows + positions) * width, (rows + width) * width, _is_tied(c), rows, vectors)


def _t5(c: Config, regime: Regime) -> Layout:
    """Encoder and decoder with Llama's norms; attention keeps its weights, as positions have a learnt bias."""
    width, heads, rows = c["d_model"], c["num_heads"], c["vocab_size"]
    heads_width, weights = heads * (c.get("d_kv") or width // heads), float(heads * regime.seq_len)
    # What the feed-forward layer activates is cast to the weights' dtype and back.
    inner, is_gated = c["d_ff"], str(c.get("feed_forward_proj")).startswith("gated")
    copies, masks = (2 if regime.autocast else 1) + (3 if is_gated else 0), _dropout(c, c["d_ff"])
    feed_forward = Saved(compute=copies * inner + masks.masks) + masks
    if is_gated:
        feed_forward += _activation(c, inner)
    matrices = [*[(width, inner)] * (2 if is_gated else 1), (inner, width)]
    encoder_inputs, decoder_inputs = (4, 7) if regime.autocast else (2, 3)
    encoder = Saved(2 * width + 2 + weights, 2 * width, compute=encoder_inputs * width + 4 * heads_width)
    encoder += feed_forward + _dropout(c, 2 * width)
    decoder = Saved(3 * width + 3 + weights, 3 * width, compute=decoder_inputs * width + 8 * heads_width + weights)
    decoder += feed_forward + regime.scores(heads) + _dropout(c, 3 * width)
    attention = [(width, heads_width)] * 3 + [(heads_width, width)]
    layers = c["num_layers"]
    stacks = [
        Stack(layers, encoder, width, [*attention, *matrices], 2 * width),
        Stack(c.get("num_decoder_layers") or layers, decoder, width, [*attention * 2, *matrices], 3 * width),
    ]
    outside = Saved(full=2 * width + 2, residual=2 * width, compute=2 * width) + _dropout(c, 4 * width)
    vectors = 2 * width + 2 * c.get("relative_attention_num_buckets", 32) * heads  # norms, and biases of positions
    return Layout(stacks, outside, rows * width, rows * width, _is_tied(c), rows, vectors)


def _bart(c: Config, regime: Regime) -> Layout:
    """Encoder and decoder with layer norms after the sums, and a mask of the padding in every attention."""
    width, rows = c["d_model"], c["vocab_size"]
    attention = [(width, width)] * 4

    def stack(side: str, attentions: int, inputs: int) -> Stack:
        inner, heads = c[f"{side}_ffn_dim"], c[f"{side}_attention_heads"]
        saved = _activation(c, inner) + _dropout(c, (attentions + 1) * width) + regime.scores(attentions * heads)
        saved += Saved(
            full=2 * (attentions + 1) + attentions * heads, residual=(attentions + 1) * width,
            compute=(inputs + 3 * attentions) * width + 2 * inner + regime.seq_len,
        )  # fmt: skip
        matrices = [*attention * attentions, (width, inner), (inner, width)]
        return Stack(c[f"{side}_layers"], saved, width, matrices, (6 * attentions + 3) * width + inner)

    stacks = [stack("encoder", 1, 5 if regime.autocast else 3), stack("decoder", 2, 9 if regime.autocast else 5)]
    outside = Saved(full=4, residual=2 * width, compute=2 * width) + _dropout(c, 2 * width)
    positions = 2 * c.get("max_position_embeddings", regime.seq_len)
    # Norms, and two rows more of each table of positions.
    return Layout(stacks, outside, (rows + positions) * width, rows * width, _is_tied(c), rows, 8 * width)


def _inner_of(c: Config) -> int:
    """Width of the feed-forward layer. Raises KeyError."""
    return int(c["ffn_dim"] if "ffn_dim" in c else c["intermediate_size"])


def _is_tied(c: Config) -> bool:
    return bool(c.get("tie_word_embeddings", True))


class ModelStates(NamedTuple):
    """Bytes of one rank's model states, where shards are equal, by the formulas of the literature.

    Source: Rajbhandari et al. 2020, arXiv:1910.02054, figure 1 and section 5. With psi parameters over N ranks,
    mixed-precision Adam keeps 2 psi of parameters, 2 psi of gradients and 12 psi of optimizer state (fp32 master
    weights and two moments); what a strategy shards is divided by N. Activations, buffers and fragments are left
    out, and so are gradients that an implementation keeps in fp32 beside half-precision weights.
    """

    parameters: float
    gradients: float
    optimizer_state: float
    """Optimizer state with master weights."""


def expected_states(choices: Choices, parameters: int, world_size: int) -> ModelStates | None:
    """Model states of a rank, for so many trained parameters; None: the optimizer's state has no such formula."""
    updated_bytes, working_bytes = _weight_bytes(choices)
    state, sharded = choices.optimizer.state_bytes(updated_bytes), choices.strategy.sharded()
    if state is None:
        return None
    master = updated_bytes if choices.precision.working_dtype else 0
    bytes_each = ModelStates(parameters=working_bytes, gradients=working_bytes, optimizer_state=master + state)
    ranks = (world_size if name in sharded else 1 for name in ModelStates._fields)
    return ModelStates(*(size * parameters / n for size, n in zip(bytes_each, ranks, strict=True)))


def _weight_bytes(choices: Choices) -> tuple[int, int]:
    """Bytes of an element that the optimizer updates, and of one that the passes use."""
    precision = choices.precision
    return BYTES[precision.parameter_dtype], BYTES[precision.working_dtype or precision.parameter_dtype]


LOSS_COPIES = 3
"""Tensors of the logits' shape in fp32 when the backward pass begins: the log-softmax that the loss saved, its
gradient, and the logits' (torch's cross_entropy, which is log_softmax and nll_loss)."""
CONTEXT_BYTES = 600 << 20
"""A CUDA context with its kernels and cuBLAS's workspaces; some hundred MiB, depending on driver and GPU."""
COMMUNICATION_BYTES = 1 << 30
"""NCCL's buffers and context, where there are several ranks."""
FOUR_BITS = 0.53
"""Bytes of an element in NF4 with its quantised scales (Dettmers et al. 2023, arXiv:2305.14314: 4.127 bits)."""


class MemoryNeed(NamedTuple):
    """Bytes of one rank at the peak, which is the sum of these."""

    states: float
    """Weights, gradients, optimizer state, and what a strategy gathers."""
    activations: float
    """What is saved for the backward pass, with copies of the weights under autocast."""
    loss: float
    """What the peak adds to them: the loss, or what a block computes in the backward pass."""
    overhead: float
    """The CUDA context and the libraries'."""


def memory_need(job: Job, choices: Choices, config: Mapping[str, Any], ranks: int) -> MemoryNeed | None:
    """An option's memory need; `config`: of its model in transformers. None: the model is not known here."""
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
    # For a token: what is saved for the backward pass without the logits, and what a block takes in its backward
    # pass: gradients of its widest layer's input and output and of the residual stream; where the block is
    # computed again, also all that it saves.
    saved_bytes, passed_back = layout.outside.bytes_in(weights, products), 0.0
    for stack in layout.stacks:
        saved = stack.saved.bytes_in(weights, products)
        gradients = 2 * products * max(max(sides) for sides in stack.matrices) + 4 * weights * stack.width
        saved_bytes += stack.blocks * (stack.width * weights if recomputed else saved)
        passed_back = max(passed_back, gradients + (saved if recomputed else 0))
    accumulates = job.gradient_accumulation_steps(choices.micro_batch_size, ranks) > 1
    return MemoryNeed(
        states=_states(choices, layout, ranks, accumulates=accumulates),
        activations=copies + tokens * saved_bytes,
        loss=max(LOSS_COPIES * 4.0 * tokens * layout.vocab_size, tokens * passed_back),
        overhead=CONTEXT_BYTES + (COMMUNICATION_BYTES if ranks > 1 else 0),
    )


def _states(choices: Choices, layout: Layout, ranks: int, *, accumulates: bool) -> float:
    """Bytes that stay from micro-batch to micro-batch, and those that the strategy gathers."""
    rank = getattr(choices.adaptation, "r", None)
    if rank is None:
        two_blocks = max(2 * stack.parameters / stack.blocks for stack in layout.stacks)
        outside = layout.parameters - sum(stack.parameters for stack in layout.stacks)
        rest = *_weight_bytes(choices), choices.precision.working_dtype is not None, ranks, accumulates
        gathered = float(choices.strategy.gathered_bytes(Weights(layout.parameters, outside + two_blocks, *rest)))
        return _trained_bytes(choices, layout.parameters, ranks) + gathered
    additions = rank * sum(stack.blocks * (a + b) for stack in layout.stacks for a, b in stack.matrices)
    linear = sum(stack.parameters for stack in layout.stacks)
    element = FOUR_BITS if choices.adaptation.name == "qlora" else BYTES["float32"]
    frozen = element * linear + BYTES["float32"] * (layout.parameters - linear)
    return frozen + _trained_bytes(choices, additions, ranks)


def _trained_bytes(choices: Choices, parameters: int, ranks: int) -> float:
    """Bytes of so many trained parameters; an optimizer of unknown state counts as AdamW, which keeps most."""
    like_adamw = choices.model_copy(update={"optimizer": AdamW(lr=1.0)})
    states = expected_states(choices, parameters, ranks) or expected_states(like_adamw, parameters, ranks)
    assert states is not None
    offloaded = getattr(choices.strategy, "offload_optimizer", False)
    # Gradients are accumulated in the dtype of what is updated, though half as large in the backward pass.
    updated, used = _weight_bytes(choices)
    return states.parameters + states.gradients * updated / used + (0.0 if offloaded else states.optimizer_state)

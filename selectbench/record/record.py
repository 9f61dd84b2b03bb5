"""One line of records.jsonl with all its parts, and how it is written and read. Every key is documented here.

Raw values only, in SI units that the names state: ratios (tokens per second, perplexity, bits per byte) are derived
and state and energy of GPUs judged in `analysis`, so that a corrected formula needs no new run. Unknown is None.
Times of series and windows of GPUs are seconds since the trial was launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from pydantic import BaseModel

from selectbench.errors import UserError

_LARGEST_INT = (1 << 63) - 1
Whole = Annotated[int, msgspec.Meta(ge=-_LARGEST_INT, le=_LARGEST_INT)]
"""A whole number of 64 bits, which other programs can hold too."""
Count = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_INT)]
"""A number of things: tokens, steps, bytes."""
_LARGEST_FLOAT = 1e60
"""Far beyond what fp32 holds, and small enough that squares of such numbers, and sums of many, are finite."""
Amount = Annotated[float, msgspec.Meta(ge=0, le=_LARGEST_FLOAT)]
"""A quantity that is not below 0: seconds, joules, hertz, nats of discrete tokens."""
Number = Annotated[float, msgspec.Meta(ge=-_LARGEST_FLOAT, le=_LARGEST_FLOAT)]
"""A quantity that may be below 0."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a record; keys of later versions are ignored. `Lines` checks types and ranges, a call does not."""


Content = TypeVar("Content")
AsJson = msgspec.Raw
"""A part of a record that stays JSON until it is asked for: a report on thousands of records never does."""


class Lines(Generic[Content]):
    """Reads and writes JSON lines of one class or union; refuses to write what would be read back differently."""

    def __init__(self, kind: Any) -> None:
        self._encoder = msgspec.json.Encoder(enc_hook=_encode_foreign)
        self._decoder: msgspec.json.Decoder[Content] = msgspec.json.Decoder(kind, dec_hook=_decode_model)

    def write(self, content: Content) -> bytes:
        """One line without its end. Raises ValueError with the place of what is not finite, or of a wrong type."""
        line = self._encoder.encode(content)
        difference = _first_difference(content, msgspec.json.decode(line), "$")
        if difference:
            raise ValueError(f"{type(content).__name__} can't be written: {difference}")
        self.read(line)
        return line

    def as_json(self, content: Content) -> AsJson:
        """The same line, as a part of a record that stays JSON. Raises ValueError as `write` does."""
        return AsJson(self.write(content))

    def read(self, line: bytes | memoryview | str | AsJson) -> Content:
        """The line's content. Raises ValueError: no JSON in UTF-8, or a value that does not fit, with its place."""
        try:
            return self._decoder.decode(memoryview(line) if isinstance(line, AsJson) else line)
        except (msgspec.DecodeError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            raise ValueError("JSON is nested too deeply" if deep else str(error)) from None


def _encode_foreign(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    if hasattr(value, "item"):  # a number of numpy's or torch's
        return value.item()
    raise TypeError(f"a {type(value).__name__} can't be written as JSON")


def _decode_model(kind: type, value: object) -> object:
    assert issubclass(kind, BaseModel)
    return kind.model_validate_json(msgspec.json.encode(value))  # strict models take a tuple from JSON alone


def _first_difference(content: object, parsed: object, place: str) -> str | None:
    """The first place where the parsed value differs from the content; None: no place. Lists equal tuples."""
    given = content
    if isinstance(content, msgspec.Struct):
        given = msgspec.structs.asdict(content)
    elif isinstance(content, msgspec.Raw | BaseModel):
        given = _encode_foreign(content)
    if isinstance(given, dict) and isinstance(parsed, dict) and given.keys() <= parsed.keys():  # a tag is only read
        parts = [(given[key], parsed[key], f"{place}.{key}") for key in given]
    elif isinstance(given, list | tuple) and isinstance(parsed, list) and len(given) == len(parsed):
        parts = [(*pair, f"{place}[{n}]") for n, pair in enumerate(zip(given, parsed, strict=True))]
    else:
        return None if given == parsed else f"{given!r} would be read back as {parsed!r} - at `{place}`"
    return next(filter(None, (_first_difference(*part) for part in parts)), None)


SETTINGS: Lines[dict[str, Any]] = Lines(dict[str, Any])
"""An option's choices, as a suite writes them."""
SOFTWARE: Lines[dict[str, str | None]] = Lines(dict[str, str | None])
"""Versions by name; None: not installed."""
LOSSES: Lines[list[tuple[Whole, Number]]] = Lines(list[tuple[Whole, Number]])
"""Training loss as (step, nats per token)."""
NOTHING, NO_LOSSES = AsJson(b"{}"), AsJson(b"[]")


# What a trial learnt, for people to look at: it is small, and no figure comes from it.


class Sample(Recorded, frozen=True, kw_only=True):
    """A text that the trained model generated."""

    prompt: str
    """What the model was given: a beginning of held-out text, or a source."""
    said: str
    """Its most likely continuation, or target, token by token."""
    reference: str | None
    """How the text really goes on, or the target; None: there is none."""


class Inspection(Recorded, frozen=True, kw_only=True):
    """What one trained model does on held-out text, which is the same for every option."""

    samples: list[Sample] = msgspec.field(default_factory=list)
    """A few texts, from the same prompts for every option with the same tokenizer."""
    tokens: list[str] = msgspec.field(default_factory=list)
    """Text of the first scored tokens, one by one."""
    token_losses: list[Number] = msgspec.field(default_factory=list)
    """Nats of each of these tokens."""
    attention: list[list[Number]] = msgspec.field(default_factory=list)
    """Attention of the last layer, averaged over its heads: how much each of the first tokens (row) attends to each
    (column), or the target to the source. Computed by the eager kernel; empty: not available."""
    attention_rows: list[str] = msgspec.field(default_factory=list)
    """Text of the tokens that attend."""
    attention_columns: list[str] = msgspec.field(default_factory=list)
    """Text of those attended to."""

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.attention}
        if len(self.tokens) != len(self.token_losses) or len(widths) > 1 or 0 in widths:
            raise ValueError("its tokens and their losses, or rows of attention, are not of one length")
        if len(self.attention_rows) < len(self.attention) or len(self.attention_columns) < max(widths, default=0):
            raise ValueError("there is attention without the text of its tokens")


# What the bench read of the GPUs through NVML during a trial, and what the work of the model is counted from.


Series = list[tuple[Number, Number]]
"""(seconds since the launch, value), decimated; every reading is in the trial's meters.json."""


class Architecture(Recorded, frozen=True, kw_only=True):
    """Sizes that decide how much work the model has with a token, counted on the live module."""

    matmul_parameters: Count
    """Parameters of matrices multiplied with activations, a tied output head too; no embeddings, norms, biases."""
    block_matmul_parameters: Count
    """Those that activation checkpointing computes twice: of the repeated blocks, but for a block's last one where
    the backward pass does not need its output."""
    attention_width: Count
    """Sum over the layers of query heads x their width."""
    seq_len: Count
    """Tokens of a sequence."""


class OtherProcess(Recorded, frozen=True, kw_only=True):
    """A process that used the GPU and does not belong to the trial."""

    pid: Whole
    """As the driver numbers it."""
    name: str | None
    """The command's name; None: it can't be seen from here."""
    memory_bytes: Count | None
    """The most memory that the driver reported for it; None: the driver does not report it."""


class GpuMeters(Recorded, frozen=True, kw_only=True):
    """One GPU over one trial. Unknown is None: the driver or the board has no such answer."""

    name: str
    """As the driver calls it."""
    pci_bus_id: str | None
    """The board's PCI address, `00000000:3B:00.0`."""
    is_mig: bool
    """Whether it is a slice of a board; power, energy, clocks and throttling are then the whole board's."""
    memory_total_bytes: Count | None
    """Memory of the board, or of the slice."""
    idle_memory_bytes: Count | None
    """Memory in use right before the trial."""
    idle_utilization: Amount | None
    """Highest share of time, 0 to 1, that something ran on it right before the trial."""
    peak_device_memory_bytes: Count | None
    """Most memory in use, by any process: up to the first evaluation, or over the whole of a failed trial."""
    driver_reserved_bytes: Count | None
    """Memory that the driver keeps for itself, in no other figure."""
    memory_readings: Count
    """How many readings that peak was taken from."""
    readings: Count
    """Readings of everything else inside the timed windows, or over the whole of a failed trial."""
    metered_seconds: Amount
    """Length of the timed windows that the energies below are for; 0 where the trial failed."""
    counter_joules: Amount | None
    """Energy by the board's counter."""
    instant_power_joules: Amount | None
    """Energy as the integral of instant power."""
    average_power_joules: Amount | None
    """Mean of the power that the driver averages over about a second, first second left out, times the length."""
    mean_utilization: Amount | None
    """Share of time that something ran on it, inside the timed windows."""
    mean_sm_clock_hertz: Amount | None
    """Clock of the streaming multiprocessors inside the timed windows."""
    mean_memory_clock_hertz: Amount | None
    """Clock of the memory inside the timed windows."""
    highest_temperature_celsius: Number | None
    """Highest temperature of the whole trial."""
    clock_limit_shares: dict[str, Amount] | None
    """By reason that held the clocks down, the share of those readings in which it did; names as in nvidia-smi."""
    other_processes: list[OtherProcess] | None
    """The first eight processes beside the trial's that computed on it; None: the driver lists no processes."""
    problem: str | None = None
    """What went wrong with the readings."""
    matmul_flops_per_second: dict[str, Number] = msgspec.field(default_factory=dict)
    """By dtype (`float32`, `tf32`, `bfloat16`, `float16`), as `doctor --calibrate` measured products on it."""
    memory_series: Series = msgspec.field(default_factory=list)
    """Memory in use, in bytes; the most within each piece."""
    power_series: Series = msgspec.field(default_factory=list)
    """Power in watts."""
    utilization_series: Series = msgspec.field(default_factory=list)
    """Share of time that something ran, 0 to 1."""
    temperature_series: Series = msgspec.field(default_factory=list)
    """Temperature in degrees Celsius."""
    sm_clock_series: Series = msgspec.field(default_factory=list)
    """Clock of the streaming multiprocessors in hertz."""


class Meters(Recorded, frozen=True, kw_only=True):
    """What the bench saw of a trial's GPUs, in the order of ranks."""

    gpus: list[GpuMeters] = msgspec.field(default_factory=list)
    """Meters of each rank's GPU; empty where there is a problem."""
    problem: str | None = None
    """Why there are no meters."""
    settled: bool | None = None
    """Whether memory had come back to what it was before the run's first trial; None: not known."""
    timed_windows: list[tuple[Number, Number]] = msgspec.field(default_factory=list)
    """Begin and end of the timed stretches."""


Share = Annotated[int, msgspec.Meta(ge=0, le=1)] | Annotated[float, msgspec.Meta(ge=0, le=1)]
COUNTS = {"bleu": 10, "chrf": 18}
"""How many counts each sentence has, by score."""


class Sentences(Recorded, frozen=True, kw_only=True):
    """What scores are made of, by sentence in order: any subset can be scored anew, but by a score of own code."""

    references_sha256: str
    """Digest of the references: with it, two trials are known to have been scored on the same sentences."""
    counts: dict[str, list[list[Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]]]] = msgspec.field(
        default_factory=dict
    )
    """Counts of each sentence, which are summed over the text before the score is computed, in sacrebleu's order.

    bleu: words of the hypothesis, words of the reference, n-grams of 1 to 4 words that match, and those of the
    hypothesis. chrf: for n-grams of 1 to 6 characters each those of the hypothesis (0 where the reference is too
    short to have any), those of the reference, and those that match."""
    shares: dict[str, list[Share]] = msgspec.field(default_factory=dict)
    """Scores of each sentence, from 0 to 1: rouge_l, exact_match, token_f1; the text's score is their mean."""

    def __post_init__(self) -> None:
        sizes = {*map(len, self.counts.values()), *map(len, self.shares.values())}
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError("its scores are not all of the same sentences")
        if any(len(counts) != COUNTS.get(name, 0) for name, rows in self.counts.items() for counts in rows):
            raise ValueError("a sentence has not as many counts as its score")


class ApiAnswers(Recorded, frozen=True, kw_only=True):
    """What a model behind an API answered to a run's held-out text: a value of references.json, by its name."""

    asks: str
    """Digest of the reference's part of the suite and of the text: where it changes, the model is asked anew."""
    model: str
    """The model's name at the API."""
    base_url: str
    """The API's address."""
    sentences: Count
    """Pieces of text that the model is asked about."""
    answered: Count
    """Pieces that have an answer."""
    refused: str | None = None
    """Why the server refuses some, but not all, which are scored as empty answers."""
    empty: Count
    """Answers without any text, which are scored as they are."""
    cut: Count
    """Answers that ended at max_tokens."""
    input_tokens: Count | None
    """Input tokens of all answers; None: the server does not tell."""
    output_tokens: Count | None
    """Output tokens of all answers; None: the server does not tell."""
    usd: Amount | None
    """Price of all answers, whenever they were paid; None: no prices, or no token counts."""
    lost_usd: Amount
    """The most that requests without an answer may have cost: cut off, silent, or in flight when a run was
    killed."""
    latency_median_seconds: Amount | None = None
    """Median duration of a request; None: none was answered."""
    incomplete: str | None
    """Why some pieces have no answer; None: all have one."""
    settled: bool
    """Whether asking again with the same suite would change nothing."""
    scores: dict[str, Number] = msgspec.field(default_factory=dict)
    """Scores by name, from 0 to 100; only where every piece has an answer."""
    kept: Sentences | None = None
    """Counts and shares of the sentences, from which the scores follow."""
    bits_per_byte: Amount | None = None
    """Bits per byte of held-out text without its first token, which has no log-probability."""
    no_bits: str | None = None
    """Why bits per byte are not known."""
    samples: list[Sample] = msgspec.field(default_factory=list)
    """Some of its answers, on the sentences of the options' samples."""


ANSWERS: Lines[dict[str, ApiAnswers]] = Lines(dict[str, ApiAnswers])
"""The content of references.json, by the reference's name."""


# One line of records.jsonl.


SCHEMA_VERSION = 1
"""Grows when a key's meaning changes; keys are added without it."""

FailureKind = Literal["oom", "diverged", "unsupported", "timeout", "crashed", "interrupted"]


class Trial(Recorded, frozen=True, kw_only=True):
    """Option x seed: what one isolated worker runs."""

    trial_id: str
    """Hash of the option's name, its settings, the job, the data, the seed and selectbench's code."""
    option: str
    """The option's name in the suite."""
    seed: Whole
    """Draws initial weights and data order; never the split, the tokenizer or the evaluation set."""
    settings: AsJson
    """The option's choices, every dimension resolved, as a suite writes them."""
    tunes: str | None = None
    """The option whose settings a trial before the contest tries; None in the contest."""
    tried: dict[str, Whole | Number] = msgspec.field(default_factory=dict)
    """The settings that it tries, by path."""

    def read_settings(self) -> dict[str, Any]:
        """What `settings` holds. Raises UserError where that is something else."""
        return _decode_part(SETTINGS, self.settings, "settings", self)


class RankMemory(Recorded, frozen=True, kw_only=True):
    """Memory of one rank; the keys of the peaks mean what they mean in a measurement."""

    rank: Count
    """From 0."""
    peak_memory_allocated_bytes: Count | None = None
    """CUDA: peak of allocated memory."""
    peak_memory_reserved_bytes: Count | None = None
    """CUDA: peak of reserved memory."""
    num_alloc_retries: Count | None = None
    """CUDA: times the allocator had to free its cache."""
    peak_pss_growth_bytes: Count | None = None
    """CPU: peak growth of the proportional set size."""
    parameter_bytes: Count | None = None
    """The model's parameters as this rank keeps them between steps: its shard where they are sharded."""
    gradient_bytes: Count | None = None
    """Gradients as they are kept after the last backward pass of a step, before the update."""
    optimizer_state_bytes: Count | None = None
    """Optimizer state after an update, master weights among it; on whatever device it lies."""
    managed_state_bytes: Count | None = None
    """CUDA: what of it is in managed memory."""


def largest_of_ranks(memory: list[RankMemory]) -> dict[str, Any]:
    """The largest figure of any rank, by the keys that a measurement has too."""
    keys = (
        "peak_memory_allocated_bytes", "peak_memory_reserved_bytes", "num_alloc_retries", "peak_pss_growth_bytes",
        "managed_state_bytes",
    )  # fmt: skip
    known = {key: [value for rank in memory if (value := getattr(rank, key)) is not None] for key in keys}
    return {key: max(values, default=None) for key, values in known.items()}


class Measurement(Recorded, frozen=True, kw_only=True):
    """What a completed trial observed."""

    tokens_per_step: Count
    """Tokens of one optimizer step, over all ranks; 0: a script whose tokens are not seen."""
    steps_applied: Count
    """Optimizer steps of the job that changed the weights."""
    steps_skipped: Count
    """Optimizer steps that did not: fp16's gradient scaling skipped them, or own code's loop updated nothing."""
    timed_steps: Count
    """Steps inside the timed windows: after warm-up, those added for timing among them."""
    timed_seconds: Amount
    """Sum of the timed windows, synchronised at both edges; evaluation and logging lie outside."""
    step_seconds: list[Amount]
    """Durations of the timed steps, decimated to at most 256 evenly spaced ones; all in series.json."""
    step_time_median_seconds: Amount | None
    """Median duration of all timed steps."""
    step_time_iqr_seconds: Amount | None
    """Distance between the quartiles of all timed steps' durations."""
    warmup_seconds: Amount
    """Time of the warm-up steps without compilation."""
    startup_seconds: Amount
    """Time to the first step: ranks, weights, data, optimizer; drawing weights, done once for all, is left out."""
    compile_seconds: Amount | None
    """Time of compiling, within the steps that compiled; None where nothing is compiled."""
    recompilations: Count
    """Compilations that voided a timed window."""
    training_seconds: Amount
    """Time of all the job's steps, warm-up and compilation among them, without evaluation."""
    evaluation_seconds: Amount
    """Time of all evaluations."""
    first_loss: Number | None
    """Training loss of the first step, before any update; nats per token; None: a script that hides it."""
    last_loss: Number | None
    """Training loss of the job's last step; nats per token; None as above."""
    final_loss: Amount | None
    """Held-out loss after the last step, in fp32; nats per token; None: not evaluated."""
    heldout_tokens: Count | None
    """Tokens that final_loss is a mean over."""
    heldout_bytes: Count | None
    """UTF-8 bytes of those tokens; None: they stand for no text."""
    initial_loss: Amount | None = None
    """Held-out loss before the first step; None: not asked for."""
    scores: dict[str, Number] = msgspec.field(default_factory=dict)
    """Scores of the text generated after the last step, by name, from 0 to 100; and metrics of own code."""
    copy_scores: dict[str, Number] = msgspec.field(default_factory=dict)
    """Scores of the sources, taken for generated text: what a model scores that only copies."""
    score_signatures: dict[str, str] = msgspec.field(default_factory=dict)
    """How each score was computed."""
    sentences: Sentences | None = None
    """Counts and shares from which the scores follow; None: only own code's scores, or older than the key."""
    source_loss: Amount | None = None
    """Loss of the true source on the same tokens, nats per token; None: it is not known."""
    source_loss_error: Amount | None = None
    """Standard error of that mean, for tokens drawn from the source."""
    peak_memory_allocated_bytes: Count | None = None
    """CUDA: the allocator's peak while training, evaluation excluded; of any rank, as the four below."""
    peak_memory_reserved_bytes: Count | None = None
    """CUDA: the allocator's peak of reserved memory while training, up to the first evaluation."""
    num_alloc_retries: Count | None = None
    """CUDA: times the allocator had to free its cache to serve a request; above 0 is a silent slowdown."""
    peak_pss_growth_bytes: Count | None = None
    """CPU: peak proportional set size while training, up to the first evaluation, over its value at the start."""
    managed_state_bytes: Count | None = None
    """CUDA: optimizer state in managed memory, which torch's allocator does not count; None: there is none."""
    memory_by_rank: list[RankMemory] = msgspec.field(default_factory=list)
    """Every rank's, in order."""
    architecture: Architecture | None = None
    """Sizes from which FLOPs are counted; None: a model whose work is not known by its shape."""
    run_queue_wait_seconds: Amount | None = None
    """Time that all ranks' threads waited for a core in the timed windows, summed; None: not known, or older."""
    involuntary_switches: Count | None = None
    """How often the kernel took a core from a thread of any rank in the timed windows; None as above."""
    cpu_seconds: Amount | None = None
    """CPU time of all ranks' threads in the timed windows, summed; None as above."""
    cores_seconds: Amount | None = None
    """Time that the first rank's cores worked for any process in its timed windows; None as above."""
    trial_seconds: Amount | None = None
    """Time from the trial's first event to its last, by its own clock; None in records older than the key."""
    parameters_by_use: dict[str, Count] = msgspec.field(default_factory=dict)
    """Trained parameters by what the model uses them as: `matrix` (what muon takes), `embedding` (the head too),
    `convolution`, `other` (which alone does not decay). Empty: an older record, or a script."""
    left_parameters: Count | None = None
    """Parameters of matrices that the adaptation is for and does not reach; None: all are trained, or older."""
    evaluation_attention: str | None = None
    """The kernel that evaluations used; None: not evaluated, the model is own code, or older than the key."""
    heldout_xz_bits_per_byte: Amount | None = None
    """Size to which xz compresses the held-out text's first 256 KiB; None: too short a text, or none."""
    timed_tokens: Count | None = None
    """Tokens of the timed steps, where steps differ in them; None: each has tokens_per_step."""
    pause_seconds: Amount | None = None
    """Time of a script's own validation and saving between its steps, outside all windows; None: no script."""

    def __post_init__(self) -> None:
        sentences = self.sentences
        if sentences is not None and not sentences.counts.keys() | sentences.shares.keys() <= self.scores.keys():
            raise ValueError("it has sentences of scores that it has not")


class Completed(Recorded, frozen=True, kw_only=True, tag_field="status", tag="completed"):
    """The trial ran to its end."""

    measurement: Measurement
    """What was observed."""


class Failed(Recorded, frozen=True, kw_only=True, tag_field="status", tag="failed"):
    """The trial did not yield a measurement; it is a row, never a zero."""

    kind: FailureKind
    """oom, diverged, unsupported, timeout, crashed or interrupted."""
    detail: str
    """What happened, with the last lines of the log where it crashed."""


Outcome = Completed | Failed


def has_ended(outcome: Outcome) -> bool:
    """Whether a trial is over: one that was interrupted runs again."""
    return not (isinstance(outcome, Failed) and outcome.kind == "interrupted")


class EvaluationPoint(Recorded, frozen=True, kw_only=True):
    """One evaluation on held-out text."""

    step: Count
    """Optimizer steps done."""
    tokens: Count
    """Training tokens consumed."""
    training_seconds: Amount
    """Training time so far, evaluation excluded."""
    loss: Amount
    """Held-out loss, fp32, nats per token."""


class Identity(Recorded, frozen=True, kw_only=True):
    """What proves that two trials did the same job: digests of what was used, and what was resolved.

    None: not verified, because the loop or the model is foreign and hides it. Everything is read from
    live objects and from tensors that the model consumed, not from the order.
    """

    initial_weights_sha256: str | None
    """Digest of the initial weights in fp32, with names and shapes, before casting, sharding and wrapping."""
    token_stream_sha256: str | None
    """Digest of every optimizer step's tokens, from the tensors the model consumed, however the step was cut."""
    evaluation_set_sha256: str | None
    """Digest of the held-out tokens scored; None: not evaluated."""
    parameters: Count
    """Number of parameters, tied ones once."""
    trainable_parameters: Count | None = None
    """Parameters that are trained; None in records that are older than the key."""
    left_out_parameters: Count | None = None
    """Parameters of a script that no optimizer updates, in the first step or the last; None: no script."""
    tokens_per_step: Count | None
    """Tokens that the model consumed per optimizer step, over all ranks; of the step furthest from the job's."""
    steps_requested: Count
    """Optimizer steps of the job that were made."""
    steps_applied: Count
    """Optimizer steps that changed the weights."""
    gradient_accumulation_steps: Count
    """Micro-batches per optimizer step and rank, the most of any step."""
    learning_rate_shape_sha256: str | None
    """Digest of the learning rates that the optimizer had in each step, as shares of their peak."""
    peak_learning_rate: list[Number] | None = None
    """The largest rate of each parameter group in any step, distinct and sorted; None: older than the key."""
    parameter_dtype: str
    """Dtype of the parameters that are trained, master weights where there are such."""
    working_dtype: str | None = None
    """Dtype of the weights that both passes use: the parameters themselves, or a copy in less precision."""
    gradient_dtype: str | None
    """Dtype of the gradients as the update sees them."""
    compute_dtype: str
    """Dtype of the output of a matrix product, read from the logits."""
    optimizer_state_dtype: list[str] | None
    """Dtypes of the optimizer's state tensors of more than one element, sorted."""
    matmul_tf32: bool
    """Whether fp32 products may use TF32."""
    attention: str | None
    """The attention kernel, as the model reports it."""
    sdpa_backends: list[str] | None = msgspec.field(default_factory=list)
    """Backends that torch's scaled_dot_product_attention used while training, in a forward pass or the compiled
    graph, sorted: `flash`, `efficient`, `cudnn`, `math`. Empty: it was not called, or older than the key."""
    optimizer: list[str] | None
    """Classes of the optimizers with their implementation, `AdamW(fused)`."""
    compiled: bool
    """Whether a compiled graph ran."""
    first_step_loss: Number | None
    """Loss of step 0; nats per token; None: a script that hides it."""
    first_step_gradient_norm: Number | None
    """Global gradient norm of step 0, before clipping; None where fp16's scaling overflowed in it."""
    first_step_update_norm: Number | None = None
    """Norm of the gradients that a script's first update got, after any clipping; None: not seen, or no script."""
    heldout_rows_trained: Count | None = None
    """Rows that a script trained on that are pieces of the held-out tokens; None: not known."""
    world_size: Count = 1
    """Ranks that took part, as the process group counts them."""
    strategy: str = "single"
    """What wrapped the model: `single`, `DistributedDataParallel`, `FSDPModule`, `DeepSpeedEngine zero 2`."""
    framework: str = "native"
    """Which training loop ran, `native` or `transformers.Trainer`."""
    reduction_dtype: str | None = None
    """Dtype of gradients while they are summed over ranks; None: one rank sums nothing."""
    loss: str | None = "cross_entropy"
    """The training loss; None: own code's loop did not ask for it, or a script's loss became another one."""
    dropout: Number | None = 0.0
    """The largest dropout, or share of dropped layers or of noise, of any of the model's parts; above 0 what is
    dropped depends on how a step is cut. None: not known."""
    random_modules: list[str] = msgspec.field(default_factory=list)
    """Modules that draw random numbers which change the logits though no dropout is set; numbers as `*`."""
    first_step_added_loss: Number | None = None
    """What the model itself added to the loss of step 0, as its configuration has it; None: it adds none."""
    code_sha256: str | None = None
    """Digest of all files in the folders of own code; None: no such code, or `watched` has each file's digest."""


class Watched(Recorded, frozen=True, kw_only=True):
    """What was counted and tried once per trial, beside its identity. None: not seen, never assumed."""

    causality: dict[str, Amount] | None = None
    """Largest change of the logits at places before a changed token, over the largest logit, in `training` and in
    `evaluation` mode; None: no causal job, or it could not be tried."""
    clock_ratio: Amount | None = None
    """Time by the trial's clock over the time by a clock that was saved before any own code ran."""
    code_files: dict[str, str] | None = None
    """Digest of each imported file of the folders of own code; None: the suite has no such folders."""
    own: list[str] = msgspec.field(default_factory=list)
    """Which parts are own code: `model` or a dimension. The fields below are counted only where some are."""
    sequences_given: Count | None = None
    """Sequences that the job hands the model in all steps made, over all ranks."""
    sequences_seen: Count | None = None
    """Sequences that the model was called with while gradients were recorded."""
    same_sequences: bool | None = None
    """Whether own code's loop called the model, step by step, with the sequences that it was handed."""
    evaluations: Count | None = None
    """Held-out sequences that the evaluations made should have scored."""
    evaluations_seen: Count | None = None
    """Held-out sequences that the model was called with while they were scored."""
    updates_per_step: Count | None = None
    """The most calls of one class's `step` within one step of own code's optimizer."""
    sampled_updates: Count | None = None
    """Updates at a rate above 0 whose fp32 weights before and after were compared."""
    idle_updates: Count | None = None
    """Sampled updates that changed no weight."""
    frozen_parameters: list[str] | None = None
    """Parameters with gradients that are bit for bit the same after the last update as before the first."""
    rate_effect: Amount | None = None
    """How many times as far one update moved the weights at a thousand times the learning rate."""


class ScriptStep(Recorded, frozen=True, kw_only=True):
    """One of the first optimizer steps of a script, to say at which step two runs of one job begin to differ."""

    tokens: Count
    """Tokens over all ranks, padding left out."""
    token_digest: str
    """Digest of the tokens, however the step was cut."""
    rates: list[Number]
    """Learning rate of each parameter group."""
    loss: Number | None
    """The loss that went backward; nats per token; None: not seen."""


class Script(Recorded, frozen=True, kw_only=True):
    """What was observed of a training command besides its measurement and its identity."""

    arguments: list[str]
    """The command's words, as it was started."""
    conventions: dict[str, str] = msgspec.field(default_factory=dict)
    """By field of the identity: the convention under which it is verified."""
    not_seen: dict[str, str] = msgspec.field(default_factory=dict)
    """By field of the identity, or other name: why it is not verified."""
    weights_bf16_sha256: str | None = None
    """Digest of the initial weights without names, rounded to bf16: equal where a framework casts or renames."""
    rows_per_step: list[Count] = msgspec.field(default_factory=list)
    """The fewest and the most rows that a step trained on, over all ranks; empty: not seen."""
    first_steps: list[ScriptStep] = msgspec.field(default_factory=list)
    """The first eight steps."""
    observer_seconds: Amount | None = None
    """Time that the observer took in the first rank."""


RunPhase = Literal["tune", "screen", "interference", "repeat", "contest"]


class OtherNode(Recorded, frozen=True, kw_only=True):
    """A node other than the first of a trial over several nodes."""

    node: Count
    """The node's number, from 1; node 0 is the bench's."""
    ranks: Count
    """Ranks that ran on it."""
    clock_offset_seconds: Number
    """Its clock minus the bench's right before the trial, by the quickest of some round trips."""
    round_trip_seconds: Amount
    """Duration of that round trip: the offset is known to half of it."""
    clock_drift_seconds: Number | None = None
    """Growth of the offset over the trial; None: it was not measured, as the run was ending."""


class Record(Recorded, frozen=True, kw_only=True):
    """One trial's end."""

    schema_version: Whole = SCHEMA_VERSION
    """The version of these keys."""
    trial: Trial
    """The trial that was run."""
    phase: RunPhase = "contest"
    """Whether it tuned, screened, tried how lanes disturb each other, repeated a script, or counts in ranking."""
    round: Count
    """The round, from 0: every option once."""
    attempt: Count = 1
    """Counts the trial's launches; the last attempt is the one that counts."""
    outcome: Outcome
    """completed with its measurement, or failed with its kind."""
    identity: Identity | None = None
    """Evidence that the trial did the declared job; None where the trial failed."""
    watched: Watched | None = None
    """What was counted and tried beside that; None where the trial failed, or older than the key."""
    script: Script | None = None
    """What was observed of a training command; None where the trial failed, or the job is no command."""
    software: AsJson = NOTHING
    """Versions that the worker ran with, `python` and libraries; `openmp`: files of the OpenMP libraries loaded."""
    resolved_config: dict[str, Any] | None = None
    """DeepSpeed's configuration as it was used; None: no DeepSpeed."""
    meters: Meters | None = None
    """What the bench read of the GPUs, of a failed trial too; None: it was not launched, or older than the key."""
    evaluation_curve: list[EvaluationPoint] = msgspec.field(default_factory=list)
    """Held-out loss over the training."""
    inside: Inspection | None = None
    """Samples of what the model learnt; None: not evaluated, or older than the key."""
    loss_curve: AsJson = NO_LOSSES
    """Training loss as [step, nats per token], decimated to at most 256 points; all points are in series.json."""
    lane: Count | None = None
    """The lane that it ran on, from 0; None: it had the whole machine, or is older than the key."""
    neighbours: Count = 0
    """How many other lanes trained at the same time, the most at any moment."""
    nodes: list[OtherNode] = msgspec.field(default_factory=list)
    """The other nodes of a trial over several; empty: one node ran all of it."""
    node: str | None = None
    """Names of the nodes that ran it, as Slurm writes them; None: no run under Slurm."""
    wall_seconds: Amount
    """From the launch to the end of the trial, everything included."""
    started_at: str
    """UTC, ISO 8601."""

    def versions(self) -> dict[str, str | None]:
        """What `software` holds. Raises UserError where that is something else."""
        return _decode_part(SOFTWARE, self.software, "software", self.trial)

    def training_losses(self) -> list[tuple[Whole, Number]]:
        """What `loss_curve` holds, as (step, nats per token). Raises UserError where that is something else."""
        return _decode_part(LOSSES, self.loss_curve, "loss_curve", self.trial)


def _decode_part(lines: Lines[Content], part: AsJson, name: str, trial: Trial) -> Content:
    try:
        return lines.read(part)
    except ValueError as error:
        raise UserError(
            f"the record of option {trial.option}, seed {trial.seed} is damaged: `{name}` does not fit: {error}; "
            "take its line out of records.jsonl"
        ) from None


def was_cut_off_again(record: Record, earlier: Record) -> bool:
    """Whether a trial that had completed was interrupted when it was run again, so that the earlier one counts."""
    is_cut_off = isinstance(record.outcome, Failed) and record.outcome.kind == "interrupted"
    return is_cut_off and isinstance(earlier.outcome, Completed)


def interquartile_range(seconds: Sequence[float]) -> float | None:
    """Distance between the quartiles, each linear between its neighbours (numpy's default); None of no values."""
    if not seconds:
        return None
    low, _, high = quantiles([*seconds, *seconds] if len(seconds) == 1 else seconds, n=4, method="inclusive")
    return high - low


def decimate(values: list[Any], most: int = 256) -> list[Any]:
    """At most `most` evenly spaced elements, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]

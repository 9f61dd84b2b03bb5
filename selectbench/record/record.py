"""One line of records.jsonl with all its parts, and how it is written and read. Every key is documented here.

Raw values only, in SI units that the names state: ratios (tokens per second, perplexity, bits per byte) are derived
and state and energy of GPUs judged in `analysis`, so that a corrected formula needs no new run. Unknown is None.
Times of series and windows of GPUs are seconds since the trial was launched.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from pydantic import BaseModel

from selectbench.errors import UserError

_MOST = (1 << 63) - 1
Whole = Annotated[int, msgspec.Meta(ge=-_MOST, le=_MOST)]
"""What other programs can hold too."""
Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
"""Of things: tokens, steps, bytes."""
_LARGEST = 1e60
"""Far beyond what fp32 holds; the squares of such numbers, and sums of many, are numbers still."""
Amount = Annotated[float, msgspec.Meta(ge=0, le=_LARGEST)]
"""Of what is not counted: seconds, joules, hertz, nats of discrete tokens."""
Number = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
"""That may be below 0."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """Written as JSON, later versions' keys ignored; `Lines` checks types and ranges, which making one does not."""


Content = TypeVar("Content")
AsJson = msgspec.Raw
"""A part of a record that stays JSON until it is asked for: a report on thousands of records never does."""


class Lines(Generic[Content]):
    """Lines of JSON of one class, or of one union of classes; what would not come back as it was is refused."""

    def __init__(self, kind: Any) -> None:
        self._encoder = msgspec.json.Encoder(enc_hook=_plain)
        self._decoder: msgspec.json.Decoder[Content] = msgspec.json.Decoder(kind, dec_hook=_made)

    def write(self, content: Content) -> bytes:
        """One line without its end. Raises ValueError with the place of what is not finite, or of a wrong type."""
        line = self._encoder.encode(content)
        lost = _lost(content, msgspec.json.decode(line), "$")
        if lost:
            raise ValueError(f"{type(content).__name__} can't be written: {lost}")
        self.read(line)
        return line

    def keep(self, content: Content) -> AsJson:
        """The same as a part of a record that stays JSON."""
        return AsJson(self.write(content))

    def read(self, line: bytes | memoryview | str | AsJson) -> Content:
        """The line's content. Raises ValueError: no JSON in UTF-8, or a value that does not fit, with its place."""
        try:
            return self._decoder.decode(memoryview(line) if isinstance(line, AsJson) else line)
        except (msgspec.DecodeError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            raise ValueError("JSON is nested too deeply" if deep else str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):  # a number of numpy's or torch's
        return value.item()
    raise TypeError(f"a {type(value).__name__} can't be written as JSON")


def _made(kind: type, value: object) -> object:
    assert issubclass(kind, BaseModel)
    return kind.model_validate_json(msgspec.json.encode(value))  # strict models take a tuple from JSON alone


def _lost(content: object, read: object, place: str) -> str | None:
    """The first place where what was read differs from what was given; lists and tuples are alike."""
    given = content
    if isinstance(content, msgspec.Struct):
        given = {name: getattr(content, name) for name in content.__struct_fields__}
    elif isinstance(content, msgspec.Raw):
        given = msgspec.json.decode(content)
    elif isinstance(content, BaseModel):
        given = content.model_dump(mode="json")
    if isinstance(given, dict) and isinstance(read, dict) and given.keys() <= read.keys():  # a tag is only read
        parts = [(given[key], read[key], f"{place}.{key}") for key in given]
    elif isinstance(given, list | tuple) and isinstance(read, list) and len(given) == len(read):
        parts = [(*pair, f"{place}[{n}]") for n, pair in enumerate(zip(given, read, strict=True))]
    else:
        return None if given == read else f"{given!r} would be read back as {read!r} - at `{place}`"
    return next(filter(None, (_lost(*part) for part in parts)), None)


SETTINGS: Lines[dict[str, Any]] = Lines(dict[str, Any])
"""An option's choices, as a suite writes them."""
SOFTWARE: Lines[dict[str, str | None]] = Lines(dict[str, str | None])
"""Versions by name; None: not installed."""
LOSSES: Lines[list[tuple[Whole, Number]]] = Lines(list[tuple[Whole, Number]])
"""Training loss as (step, nats per token)."""
NOTHING, NO_LOSSES = AsJson(b"{}"), AsJson(b"[]")


# What a trial learnt, for people to look at: it is small, and no figure comes from it.


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
    token_losses: list[Number] = msgspec.field(default_factory=list)
    """Nats of each of these tokens."""
    attention: list[list[Number]] = msgspec.field(default_factory=list)
    """Of the last layer, averaged over its heads: how much each of the first tokens (row) attends to each (column);
    of an encoder and decoder, how the target attends to the source. By the eager kernel; empty: not available."""
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
"""(seconds since the launch, value), decimated; all of it in the trial's meters.json."""


class Architecture(Recorded, frozen=True, kw_only=True):
    """What of the model decides how much work a token is, counted on the live module."""

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
    """A process that was on the GPU and is none of the trial's."""

    pid: Whole
    """As the driver numbers it."""
    name: str | None
    """Of its command; None: it can't be seen from here."""
    memory_bytes: Count | None
    """The most that the driver said it holds; None: it does not say."""


class GpuMeters(Recorded, frozen=True, kw_only=True):
    """One GPU over one trial. Unknown is None: the driver or the board has no such answer."""

    name: str
    """As the driver calls it."""
    pci_bus_id: str | None
    """Of the board."""
    is_mig: bool
    """Whether it is a slice of a board; power, energy, clocks and throttling are then the whole board's."""
    memory_total_bytes: Count | None
    """Of the slice, where it is one."""
    idle_memory_bytes: Count | None
    """In use right before the trial."""
    idle_utilization: Amount | None
    """Highest share of time, 0 to 1, that something ran on it right before the trial."""
    peak_device_memory_bytes: Count | None
    """Most in use, by whomever: while training up to the first evaluation; over the whole trial where it failed."""
    driver_reserved_bytes: Count | None
    """Kept by the driver itself, in no other figure."""
    memory_readings: Count
    """How many readings that peak was taken from."""
    readings: Count
    """Readings of all else inside the timed windows; over the whole trial where it failed."""
    metered_seconds: Amount
    """Length of the timed windows that the energies below are for; 0 where the trial failed."""
    counter_joules: Amount | None
    """By the board's energy counter."""
    instant_power_joules: Amount | None
    """Integral of instant power."""
    average_power_joules: Amount | None
    """Mean of the power that the driver averages over about a second, first second left out, times the length."""
    mean_utilization: Amount | None
    """Share of time that something ran on it, inside the timed windows."""
    mean_sm_clock_hertz: Amount | None
    """Inside the timed windows."""
    mean_memory_clock_hertz: Amount | None
    """Inside the timed windows."""
    highest_temperature_celsius: Number | None
    """Over the whole trial."""
    clock_limit_shares: dict[str, Amount] | None
    """By reason that held the clocks down, the share of those readings in which it did; names as in nvidia-smi."""
    other_processes: list[OtherProcess] | None
    """The first eight that computed on it besides the trial; None: the driver does not even show the trial's."""
    problem: str | None = None
    """What went wrong with the readings."""
    matmul_flops_per_second: dict[str, Number] = msgspec.field(default_factory=dict)
    """By dtype (`float32`, `tf32`, `bfloat16`, `float16`), as `doctor --calibrate` measured products on it."""
    memory_series: Series = msgspec.field(default_factory=list)
    """Bytes in use; the most within each piece."""
    power_series: Series = msgspec.field(default_factory=list)
    """Watts."""
    utilization_series: Series = msgspec.field(default_factory=list)
    """0 to 1."""
    temperature_series: Series = msgspec.field(default_factory=list)
    """Degrees Celsius."""
    sm_clock_series: Series = msgspec.field(default_factory=list)
    """Hertz."""


class Meters(Recorded, frozen=True, kw_only=True):
    """What the bench saw of a trial's GPUs, in the order of ranks."""

    gpus: list[GpuMeters] = msgspec.field(default_factory=list)
    """One for each rank; empty where there is a problem."""
    problem: str | None = None
    """Why there are none."""
    settled: bool | None = None
    """Whether memory had come back to what it was before the run's first trial; None: not known."""
    timed_windows: list[tuple[Number, Number]] = msgspec.field(default_factory=list)
    """Begin and end of the timed stretches."""


Share = Annotated[int, msgspec.Meta(ge=0, le=1)] | Annotated[float, msgspec.Meta(ge=0, le=1)]
COUNTS = {"bleu": 10, "chrf": 18}
"""Of each sentence, by score."""


class Sentences(Recorded, frozen=True, kw_only=True):
    """What scores are made of, by sentence in order: any subset can be scored anew, but by a score of own code."""

    references_sha256: str
    """Digest of the references: with it, two trials are known to have been scored on the same sentences."""
    counts: dict[str, list[list[Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]]]] = msgspec.field(
        default_factory=dict
    )
    """Of each sentence what is summed over the text before the score is computed, in sacrebleu's order.

    bleu: words of the hypothesis, words of the reference, n-grams of 1 to 4 words that match, and those of the
    hypothesis. chrf: for n-grams of 1 to 6 characters each those of the hypothesis (0 where the reference is too
    short to have any), those of the reference, and those that match."""
    shares: dict[str, list[Share]] = msgspec.field(default_factory=dict)
    """Of each sentence its own score, from 0 to 1: rouge_l, exact_match, token_f1; the whole's is their mean."""

    def __post_init__(self) -> None:
        sizes = {*map(len, self.counts.values()), *map(len, self.shares.values())}
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError("its scores are not all of the same sentences")
        if any(len(of_one) != COUNTS.get(name, 0) for name, own in self.counts.items() for of_one in own):
            raise ValueError("a sentence has not as many counts as its score")


class Asked(Recorded, frozen=True, kw_only=True):
    """What a model behind an API answered to a run's held-out text: a value of references.json, by its name."""

    asks: str
    """Digest of what the suite says of it and of the text: with another one it is to be asked anew."""
    model: str
    """As the suite names it to the API."""
    base_url: str
    """Of the API."""
    sentences: Count
    """Pieces of text that it is to be asked for."""
    answered: Count
    """Those that have an answer."""
    refused: str | None = None
    """Why the server refuses some, but not all, which are scored as empty answers."""
    empty: Count
    """Answers without any text, which are scored as they are."""
    cut: Count
    """Answers that ended at max_tokens."""
    input_tokens: Count | None
    """Of all answers; None: the server does not tell."""
    output_tokens: Count | None
    """Of all answers; None: the server does not tell."""
    usd: Amount | None
    """Of all answers, whenever they were paid; None: no prices, or no tokens."""
    lost_usd: Amount
    """What requests may have cost, at most, that brought no answer: cut off, silent, or in flight when a run was
    killed."""
    latency_median_seconds: Amount | None = None
    """Of a request; None: none was answered."""
    incomplete: str | None
    """Why it has not answered all; None: it has."""
    settled: bool
    """Whether asking again with the same suite would change nothing."""
    scores: dict[str, Number] = msgspec.field(default_factory=dict)
    """From 0 to 100, of a complete one alone."""
    kept: Sentences | None = None
    """What its scores are made of."""
    bits_per_byte: Amount | None = None
    """Of held-out text without its first token, which has no log-probability."""
    no_bits: str | None = None
    """Why these are not known."""
    samples: list[Sample] = msgspec.field(default_factory=list)
    """Some of its answers, of the sentences that the options' samples are of."""


ANSWERS: Lines[dict[str, Asked]] = Lines(dict[str, Asked])
"""references.json."""


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
    """The option that a trial before the contest tries settings of; None in the contest."""
    tried: dict[str, Whole | Number] = msgspec.field(default_factory=dict)
    """Those settings, by path."""

    def every_setting(self) -> dict[str, Any]:
        """What `settings` holds. Raises UserError where that is something else."""
        return _opened(SETTINGS, self.settings, "settings", self)


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


def largest(memory: list[RankMemory]) -> dict[str, Any]:
    """Over the ranks, by the keys that a measurement has too."""
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
    """Those that did not: fp16's gradient scaling skipped them, or an own loop updated nothing."""
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
    """To the first step: ranks, weights, data, optimizer; not drawing the weights, which one trial does for all."""
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
    """Of what the model generated after the last step, by name, from 0 to 100; and metrics of own code."""
    copy_scores: dict[str, Number] = msgspec.field(default_factory=dict)
    """Of the sources, taken for what was generated: what no understanding at all scores."""
    score_signatures: dict[str, str] = msgspec.field(default_factory=dict)
    """How each score was computed."""
    sentences: Sentences | None = None
    """What the scores are made of; None: there are none but own ones, or long ago."""
    source_loss: Amount | None = None
    """Of the true source on the same tokens, nats per token; None: it is not known."""
    source_loss_error: Amount | None = None
    """Standard error of that mean, for tokens drawn from the source."""
    peak_memory_allocated_bytes: Count | None = None
    """CUDA: the allocator's peak while training, evaluation excluded; this and the four below: of any rank."""
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
    """What FLOPs are counted from; None: a model whose work is not known by its shape."""
    run_queue_wait_seconds: Amount | None = None
    """What all ranks' threads waited for a core in the timed windows, summed up; None: not told, or older."""
    involuntary_switches: Count | None = None
    """How often the kernel took a core from a thread of any rank in the timed windows; None as above."""
    cpu_seconds: Amount | None = None
    """What threads of all ranks worked in the timed windows, summed over them; None as above."""
    cores_seconds: Amount | None = None
    """What the cores that the first rank may use worked for whomever in its timed windows; None as above."""
    trial_seconds: Amount | None = None
    """From the trial's first word to its last, by its own clock; None in records that are older than the key."""
    parameters_by_use: dict[str, Count] = msgspec.field(default_factory=dict)
    """Trained parameters by what the model uses them as: `matrix` (what muon takes), `embedding` (the head too),
    `convolution`, `other` (which alone does not decay). Empty: an older record, or a script."""
    left_parameters: Count | None = None
    """Of matrices that the adaptation is for and does not reach; None: all is trained, or older than the key."""
    evaluation_attention: str | None = None
    """The kernel that evaluations used; None: not evaluated, the model is own code, or older than the key."""
    heldout_xz_bits_per_byte: Amount | None = None
    """What xz makes of the beginning of the held-out text, 256 KiB at most; None: too short a text, or none."""
    timed_tokens: Count | None = None
    """Tokens of the timed steps, where steps differ in them; None: each has tokens_per_step."""
    pause_seconds: Amount | None = None
    """What a script's own validation and saving took between its steps, outside all windows; None: no script."""

    def __post_init__(self) -> None:
        kept = self.sentences
        if kept is not None and not kept.counts.keys() | kept.shares.keys() <= self.scores.keys():
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
    cpu_seconds: Amount | None = None
    """Of a trial on a CPU that ran out of time: what its threads worked from its start, summed over them."""
    run_queue_wait_seconds: Amount | None = None
    """The same of their waits for a core."""
    cores_seconds: Amount | None = None
    """The same of what the cores that it might use worked for whomever."""


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
    """Of the initial weights in fp32, names and shapes among them, before casting, sharding and wrapping."""
    token_stream_sha256: str | None
    """Of every optimizer step's tokens, from the tensors the model consumed, however the step was cut."""
    evaluation_set_sha256: str | None
    """Of the held-out tokens scored; None: not evaluated."""
    parameters: Count
    """Number of parameters, tied ones once."""
    trainable_parameters: Count | None = None
    """Those that are trained; None in records that are older than the key."""
    left_out_parameters: Count | None = None
    """Those of a script that no optimizer updates, in the first step or the last; None: a job that is no script."""
    tokens_per_step: Count | None
    """Tokens that the model consumed per optimizer step, over all ranks; of the step furthest from the job's."""
    steps_requested: Count
    """Optimizer steps of the job that were made."""
    steps_applied: Count
    """Those that changed the weights."""
    gradient_accumulation_steps: Count
    """Micro-batches per optimizer step and rank, the most of any step."""
    learning_rate_shape_sha256: str | None
    """Of the learning rates that the optimizer had in each step, as shares of their peak."""
    peak_learning_rate: list[Number] | None = None
    """The largest rate of each parameter group in any step, distinct and sorted; None: older than the key."""
    parameter_dtype: str
    """Of the parameters that are trained, master weights where there are such."""
    working_dtype: str | None = None
    """Of the weights that forward and backward pass use: the parameters themselves, or a copy in less precision."""
    gradient_dtype: str | None
    """As the update sees them."""
    compute_dtype: str
    """Of the output of a matrix product, as found on the logits."""
    optimizer_state_dtype: list[str] | None
    """Of the optimizer's state tensors of more than one element, as found, sorted."""
    matmul_tf32: bool
    """Whether fp32 products may use TF32."""
    attention: str | None
    """As the model reports it."""
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
    """As a script's first update got them, clipped where it clips; None: not seen, or a job that is no script."""
    heldout_rows_trained: Count | None = None
    """Rows that a script trained on that are pieces of the held-out tokens; None: not known."""
    world_size: Count = 1
    """Ranks that took part, as the process group counts them."""
    strategy: str = "single"
    """What wrapped the model: `single`, `DistributedDataParallel`, `FSDPModule`, `DeepSpeedEngine zero 2`."""
    framework: str = "native"
    """Which training loop ran, `native` or `transformers.Trainer`."""
    reduction_dtype: str | None = None
    """Of gradients while they are summed over ranks; None: one rank sums nothing."""
    loss: str | None = "cross_entropy"
    """The training loss; None: an own loop that did not ask for it. Of a script also where it became another."""
    dropout: Number | None = 0.0
    """The largest dropout, or share of dropped layers or of noise, found on the model; above 0 what is dropped
    depends on how a step is cut. None: not known."""
    random_modules: list[str] = msgspec.field(default_factory=list)
    """Modules that draw random numbers on which the logits depend though none of these is set; numbers as `*`."""
    first_step_added_loss: Number | None = None
    """What the model itself added to the loss of step 0, as its configuration has it; None: it adds none."""
    code_sha256: str | None = None
    """Of all files in the folders of own code; None: there is none, or `watched` has the digest of each file."""


class Watched(Recorded, frozen=True, kw_only=True):
    """What was counted and tried besides what identities hold, once per trial. None: not seen, never assumed."""

    causality: dict[str, Amount] | None = None
    """How much logits changed before where the input was changed, over the largest logit, in `training` and in
    `evaluation` mode; None: no causal job, or not to be tried."""
    clock_ratio: Amount | None = None
    """Time that the trial's clock counted over what the clock counted that was kept before any own code ran."""
    code_files: dict[str, str] | None = None
    """Digest of each imported file of the folders of own code; None: the suite has no such folders."""
    own: list[str] = msgspec.field(default_factory=list)
    """Which parts are own code: `model` or a dimension. What follows is counted only where there are some."""
    sequences_given: Count | None = None
    """Sequences that the job hands the model in all steps made, over all ranks."""
    sequences_seen: Count | None = None
    """Those that the model was called with while gradients were recorded."""
    same_sequences: bool | None = None
    """Whether what an own loop called the model with was, step by step, what it was handed."""
    evaluations: Count | None = None
    """Held-out sequences that the evaluations made should have scored."""
    evaluations_seen: Count | None = None
    """Those that the model was called with while they were scored."""
    updates_per_step: Count | None = None
    """The most often that one class's `step` ran within one step of an own optimizer."""
    sampled_updates: Count | None = None
    """Updates at a rate above 0 around which the fp32 weights were held against each other."""
    idle_updates: Count | None = None
    """Those of them that changed no weight."""
    frozen_parameters: list[str] | None = None
    """Parameters with gradients that are bit for bit the same after the last update as before the first."""
    rate_effect: Amount | None = None
    """How many times as far one update moved the weights at a thousand times the learning rate."""


class ScriptStep(Recorded, frozen=True, kw_only=True):
    """One of the first optimizer steps of a script, to say where two starts of one job part."""

    tokens: Count
    """Over all ranks, padding left out."""
    token_digest: str
    """Of the tokens, however the step was cut."""
    rates: list[Number]
    """Of each parameter group."""
    loss: Number | None
    """As it was backwarded; nats per token; None: not seen."""


class Script(Recorded, frozen=True, kw_only=True):
    """What was observed of a training command besides its measurement and its identity."""

    arguments: list[str]
    """The command's words, as it was started."""
    conventions: dict[str, str] = msgspec.field(default_factory=dict)
    """By field of the identity: the convention under which it is verified."""
    not_seen: dict[str, str] = msgspec.field(default_factory=dict)
    """By field of the identity, or other name: why it is not verified."""
    weights_bf16_sha256: str | None = None
    """Of the initial weights by shapes alone, rounded to bf16: equal where a framework casts or renames them."""
    rows_per_step: list[Count] = msgspec.field(default_factory=list)
    """The fewest and the most rows that a step trained on, over all ranks; empty: not seen."""
    first_steps: list[ScriptStep] = msgspec.field(default_factory=list)
    """The first eight."""
    observer_seconds: Amount | None = None
    """What observing took of the first rank's time."""


RunPhase = Literal["tune", "screen", "interference", "repeat", "contest"]


class OtherNode(Recorded, frozen=True, kw_only=True):
    """A node beside the first of a trial over several."""

    node: Count
    """From 1; the first is the bench's own."""
    ranks: Count
    """That ran on it."""
    clock_offset_seconds: Number
    """What its clock showed more than the bench's right before the trial, by the quickest of some round trips."""
    round_trip_seconds: Amount
    """Of that one: the offset is known to half of it."""
    clock_drift_seconds: Number | None = None
    """What the offset grew by over the trial; None: it was not asked, as the run was ending."""


class Record(Recorded, frozen=True, kw_only=True):
    """One trial's end."""

    schema_version: Whole = SCHEMA_VERSION
    """The version of these keys."""
    trial: Trial
    """What was run."""
    phase: RunPhase = "contest"
    """Whether it tuned, screened, tried how lanes disturb each other, repeated a script, or counts in ranking."""
    round: Count
    """The round, from 0: every option once."""
    attempt: Count = 1
    """Counts the trial's launches; the last attempt is the one that counts."""
    outcome: Outcome
    """completed with its measurement, or failed with its kind."""
    identity: Identity | None = None
    """The certificate; None where the trial failed."""
    watched: Watched | None = None
    """What was counted and tried besides; None where the trial failed, or long ago."""
    script: Script | None = None
    """What was observed of a training command; None where the trial failed, or the job is no command."""
    software: AsJson = NOTHING
    """Versions that the worker ran with, `python` and libraries; `openmp`: files of the OpenMP libraries loaded."""
    resolved_config: dict[str, Any] | None = None
    """DeepSpeed's configuration as it was used; None: no DeepSpeed."""
    meters: Meters | None = None
    """What the bench saw of the GPUs, of a failed trial too; None: the trial was not launched, or long ago."""
    evaluation_curve: list[EvaluationPoint] = msgspec.field(default_factory=list)
    """Held-out loss over the training."""
    inside: Inside | None = None
    """A look at what was learnt; None: not evaluated, or long ago."""
    loss_curve: AsJson = NO_LOSSES
    """Training loss as [step, nats per token], decimated to at most 256 points; all in series.json."""
    lane: Count | None = None
    """The part of the machine that it ran on, from 0; None: it had the whole, or is older than the key."""
    neighbours: Count = 0
    """How many other lanes trained at the same time, the most at any moment."""
    nodes: list[OtherNode] = msgspec.field(default_factory=list)
    """The other nodes of a trial over several; empty: one node ran all of it."""
    node: str | None = None
    """Names of the nodes of the allocation that ran it, as Slurm writes them; None: not in a fleet."""
    wall_seconds: Amount
    """From the launch to the end of the trial, everything included."""
    started_at: str
    """UTC, ISO 8601."""

    def versions(self) -> dict[str, str | None]:
        """What `software` holds. Raises UserError where that is something else."""
        return _opened(SOFTWARE, self.software, "software", self.trial)

    def training_losses(self) -> list[tuple[Whole, Number]]:
        """What `loss_curve` holds, as (step, nats per token). Raises UserError where that is something else."""
        return _opened(LOSSES, self.loss_curve, "loss_curve", self.trial)


def _opened(kind: Lines[Content], part: AsJson, name: str, trial: Trial) -> Content:
    try:
        return kind.read(part)
    except ValueError as error:
        raise UserError(
            f"the record of option {trial.option}, seed {trial.seed} is damaged: `{name}` does not fit: {error}; "
            "take its line out of records.jsonl"
        ) from None


def decimate(values: list[Any], most: int = 256) -> list[Any]:
    """At most `most` evenly spaced elements, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]

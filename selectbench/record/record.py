"""One line of records.jsonl, and the words it uses. Every key is documented here and nowhere else.

Raw values only, in SI units that the names state. Ratios (tokens per second, perplexity, bits per byte)
are derived in `analysis`, so that a corrected formula needs no new run. Unknown is None.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from selectbench.errors import UserError
from selectbench.record.as_json import LOSSES, NO_LOSSES, NOTHING, SETTINGS, SOFTWARE, AsJson, Content, Kept
from selectbench.record.inside import Inside
from selectbench.record.meters import Architecture, Meters
from selectbench.record.recorded import Amount, Count, Recorded
from selectbench.record.sentences import Sentences

SCHEMA_VERSION = 1
"""Grows when a key's meaning changes; keys are added without it."""

FailureKind = Literal["oom", "diverged", "unsupported", "timeout", "crashed", "interrupted"]


class Trial(Recorded, frozen=True, kw_only=True):
    """Option x seed: what one isolated worker runs."""

    trial_id: str
    """Hash of the option's name, its settings, the job, the data, the seed and the code."""
    option: str
    """The option's name in the suite."""
    seed: int
    """Draws initial weights and data order; never the split, the tokenizer or the evaluation set."""
    settings: AsJson
    """The option's choices, every dimension resolved, as a suite writes them."""
    tunes: str | None = None
    """The option that a trial before the contest tries settings of; None in the contest."""
    tried: dict[str, int | float] = msgspec.field(default_factory=dict)
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


class Measurement(Recorded, frozen=True, kw_only=True):
    """What a completed trial observed."""

    tokens_per_step: Count
    """Tokens of one optimizer step, over all ranks."""
    steps_applied: Count
    """Optimizer steps of the job that changed the weights."""
    steps_skipped: Count
    """Optimizer steps of the job that fp16's gradient scaling skipped."""
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
    first_loss: float
    """Training loss of the first step, before any update; nats per token."""
    last_loss: float
    """Training loss of the job's last step; nats per token."""
    final_loss: Amount | None
    """Held-out loss after the last step, in fp32; nats per token; None: not evaluated."""
    heldout_tokens: Count | None
    """Tokens that final_loss is a mean over."""
    heldout_bytes: Count | None
    """UTF-8 bytes of those tokens; None: they stand for no text."""
    initial_loss: Amount | None = None
    """Held-out loss before the first step; None: not asked for."""
    scores: dict[str, float] = msgspec.field(default_factory=dict)
    """Of what the model generated after the last step, by name; from 0 to 100."""
    copy_scores: dict[str, float] = msgspec.field(default_factory=dict)
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
    """CUDA: the allocator's peak of allocated memory while training, evaluation excluded.

    This and the four keys below are the largest of any rank."""
    peak_memory_reserved_bytes: Count | None = None
    """CUDA: the allocator's peak of reserved memory while training, up to the first evaluation."""
    num_alloc_retries: Count | None = None
    """CUDA: times the allocator had to free its cache to serve a request; above 0 is a silent slowdown."""
    peak_pss_growth_bytes: Count | None = None
    """CPU: peak proportional set size while training, up to the first evaluation, over its value at the start."""
    managed_state_bytes: Count | None = None
    """CUDA: optimizer state in managed memory, which the driver moves between GPU and host and no allocator of
    torch's counts; None: there is none."""
    memory_by_rank: list[RankMemory] = msgspec.field(default_factory=list)
    """Every rank's, in order."""
    architecture: Architecture | None = None
    """What FLOPs are counted from; None: a model whose work is not known by its shape."""


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
    peak_learning_rate: list[float] | None = None
    """The largest rate that each parameter group had in any step, by distinct value, sorted; None in records that
    are older than the key."""
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
    """Backends that torch's scaled_dot_product_attention used while training, as seen in a forward pass or in the
    compiled graph, sorted: `flash`, `efficient`, `cudnn`, `math`. Empty: it was not called, or the record is older
    than the key."""
    optimizer: list[str] | None
    """Classes of the optimizers with their implementation, `AdamW(fused)`."""
    compiled: bool
    """Whether a compiled graph ran."""
    first_step_loss: float
    """Loss of step 0; nats per token."""
    first_step_gradient_norm: float | None
    """Global gradient norm of step 0, before clipping; None where fp16's scaling overflowed in it."""
    world_size: Count = 1
    """Ranks that took part, as the process group counts them."""
    strategy: str = "single"
    """What wrapped the model: `single`, `DistributedDataParallel`, `FSDPModule`, `DeepSpeedEngine zero 2`."""
    framework: str = "native"
    """Which training loop ran, `native` or `transformers.Trainer`."""
    reduction_dtype: str | None = None
    """Of gradients while they are summed over ranks; None: one rank sums nothing."""
    loss: str | None = "cross_entropy"
    """The training loss; None: an own loop that did not ask for it."""
    dropout: float | None = 0.0
    """The largest dropout found on the model; above 0 masks depend on how a step is cut. None: not known."""
    code_sha256: str | None = None
    """Of the own code on the trial's path; None: there is none."""


class Record(Recorded, frozen=True, kw_only=True):
    """One trial's end."""

    schema_version: int = SCHEMA_VERSION
    """The version of these keys."""
    trial: Trial
    """What was run."""
    phase: Literal["tune", "contest"] = "contest"
    """Whether the trial tuned a setting or counts in the ranking."""
    round: Count
    """The round, from 0: every option once."""
    attempt: Count = 1
    """Counts the trial's launches; the last attempt is the one that counts."""
    outcome: Outcome
    """completed with its measurement, or failed with its kind."""
    identity: Identity | None = None
    """The certificate; None where the trial failed."""
    software: AsJson = NOTHING
    """Versions that the worker ran with: `python` and libraries, None: not installed there. `openmp`: file names of
    the OpenMP libraries that it had loaded, None: none."""
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
    wall_seconds: Amount
    """From the launch to the end of the trial, everything included."""
    started_at: str
    """UTC, ISO 8601."""

    def openmp(self) -> str | None:
        """The worker's OpenMP libraries, None: not known. Raises UserError where `software` is something else."""
        return _opened(SOFTWARE, self.software, "software", self.trial).get("openmp")

    def training_losses(self) -> list[tuple[int, float]]:
        """What `loss_curve` holds, as (step, nats per token). Raises UserError where that is something else."""
        return _opened(LOSSES, self.loss_curve, "loss_curve", self.trial)


def _opened(kind: Kept[Content], part: AsJson, name: str, trial: Trial) -> Content:
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

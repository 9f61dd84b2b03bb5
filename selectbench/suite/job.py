"""The job, which is identical for every option: model, data, steps, schedule, batch sizes and evaluation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from struct import pack
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from selectbench.choices import Choices
from selectbench.choices.choice import OwnName, OwnSettings, Strict, WrongValueError, free_of
from selectbench.choices.model import (
    AnyModel,
    AnyTokenizer,
    ConfigFile,
    Model,
    PretrainedModel,
    PretrainedTokenizer,
    Tokenizer,
    resolved_vocab_size,
)
from selectbench.suite.sources import Cleaning, Data, EmbeddedCorpus

MOST_STEPS = 10_000_000
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
BuiltInScore = Literal["bleu", "chrf", "rouge_l", "exact_match", "token_f1"]
SCORES: tuple[str, ...] = get_args(BuiltInScore)
"""Scores of generated text against references, by name; all from 0 to 100, more is better."""
OWN_SCORE = "own_score"
"""The name of a score of own code in reports and in `decide`."""
OWN_SCORE_GETS = ("hypotheses", "references", "sources")
"""The arguments of a score of own code, in order."""


OWN_METRIC_PATTERN = r"^[a-z][a-z0-9_]{0,39}$"
OWN_METRIC_GETS = ("model", "tokenizer", "texts")


class OwnMetric(Strict):
    """A metric of your own: `function(model, tokenizer, texts, **settings)` returns a number of 0 or more.

    After the last evaluation, on one rank, with the model as transformers has it: in fp32, whole, in evaluation
    mode, a copy that may be changed; its tokenizer, as transformers has it; and the held-out text, a list of
    documents of `tokens` tokens in all. `torch.no_grad` is on.
    """

    call: OwnName
    """`package.module:function`, importable from a folder of the suite's `code`, or installed."""
    better: Literal["less", "more"]
    """Which is better."""
    settings: Annotated[OwnSettings, free_of(*OWN_METRIC_GETS)] = Field(default_factory=dict)
    """More keyword arguments."""


class Eval(Strict):
    """Evaluation on held-out text, always in fp32."""

    tokens: Annotated[int, Field(ge=1, le=1 << 40)] = 65536
    """Held-out tokens to score, rounded up to whole sequences; all of them where there are fewer."""
    every_steps: Steps | None = None
    """Evaluate after every so many steps too; only at the end where not given."""
    at_start: bool = False
    """Evaluate before the first step too: what a pretrained model brings with it."""
    scores: list[BuiltInScore | OwnName] = Field(default_factory=list)
    """Of what the model generates after the last step, against the references: bleu and chrf (sacrebleu), rouge_l,
    exact_match, token_f1, or `package.module:function` of your own, called with hypotheses, references and sources
    (lists of text), which returns a number; one of your own at most. For `task: seq2seq`."""
    generate: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    """Held-out pairs to generate for, greedily, each target up to seq_len tokens."""
    # Left out where there are none: trials keep the ids that they had before it existed.
    metrics: dict[Annotated[str, Field(pattern=OWN_METRIC_PATTERN)], OwnMetric] = Field(
        default_factory=dict, exclude_if=lambda metrics: not metrics
    )
    """Metrics of your own, by the names that they have in `decide` and reports. For `task: causal_lm` with text."""

    @field_validator("scores")
    @classmethod
    def _once_each(cls, scores: list[str]) -> list[str]:
        own_scores = [name for name in scores if name not in SCORES]
        if repeated := next((name for name in scores if scores.count(name) > 1), None):
            raise ValueError(f"{repeated} is repeated")
        if len(own_scores) > 1:
            raise ValueError(f"one score of your own at most, found {', '.join(own_scores)}")
        return scores


class LrSchedule(Strict):
    """The learning rate over the steps, as a share of its peak."""

    name: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = "cosine"
    """The shape after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Steps of linear rise to the peak."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the peak at the end (constant ignores it)."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of all steps that decay (warmup_stable_decay only)."""


CUDA_TIMED_SECONDS = 10.0
"""Least timed duration on CUDA where the suite states none: short windows on fast GPUs mislead."""


class Timing(Strict):
    """What of a trial is timed."""

    warmup_steps: Annotated[int, Field(ge=1, le=100_000)] = 3
    """First steps that train but enter no figure of speed."""
    min_timed_seconds: Annotated[float, Field(ge=0, le=86400)] | None = None
    """Steps are added after the final evaluation until so many seconds are timed; 10 on CUDA, else 0."""

    def least_seconds(self, device: str) -> float:
        """The least number of seconds that must be timed on this device."""
        if self.min_timed_seconds is not None:
            return self.min_timed_seconds
        return CUDA_TIMED_SECONDS if device == "cuda" else 0.0


class Job(Strict):
    """The work that is identical for every option."""

    task: Literal["causal_lm", "masked_lm", "seq2seq"] = "causal_lm"
    """What is learnt: the next token (`causal_lm`: gpt2, llama), hidden tokens (`masked_lm`: bert), or the
    target of a
    source (`seq2seq`: t5, bart; the data are pairs)."""
    model: Model
    """The architecture; weights are drawn from the seed."""
    data: Data = EmbeddedCorpus()
    """The text."""
    cleaning: Cleaning = Cleaning()
    """What is done to the text first; nothing if not given."""
    tokenizer: Tokenizer | None = None
    """How the text becomes tokens; not for data that are tokens already."""
    seq_len: Annotated[int, Field(ge=2, le=1 << 20)]
    """Tokens per sequence."""
    global_batch_size: Annotated[int, Field(ge=1, le=1 << 22)]
    """Sequences per optimizer step, over all ranks."""
    max_steps: Steps
    """Optimizer steps."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Bound on the global gradient norm; null: no clipping."""
    lr_schedule: LrSchedule = LrSchedule()
    """The learning rate over the steps."""
    eval: Eval | Literal["none"] = Eval()
    """Evaluation, or `none` for a job of speed and memory only."""
    timing: Timing = Timing()
    """What of a trial is timed."""

    @model_validator(mode="after")
    def _consistent(self) -> Job:
        is_pairs, kind = self.task == "seq2seq", self.data.kind
        key, wrong = "data", ""
        if is_pairs != (kind == "pairs"):
            reason = f"found {kind}" if is_pairs else "pairs are for task seq2seq"
            wrong = f"task {self.task} needs {'pairs' if is_pairs else 'running text'}, {reason}"
        elif self.task == "masked_lm" and kind != "text":
            wrong = f"task masked_lm needs running text, found {kind}"
        elif isinstance(self.eval, Eval) and self.eval.scores and not is_pairs:
            key, wrong = "eval.scores", f"only task seq2seq generates what can be scored, found {self.task}"
        elif self.own_metrics and (self.task != "causal_lm" or kind not in ("text", "chat")):
            wrong = f"metrics of your own are for task causal_lm with text, found {self.task} with {kind}"
            key = "eval.metrics"
        elif self.tokenizer is not None and not self.data.needs_tokenizer:
            key, wrong = "tokenizer", "the data are tokens already, with a vocabulary of their own: leave it out"
        if wrong:
            raise WrongValueError(key, wrong, says_key=False)
        self.check_fits(self.model, self.tokenizer)
        if (steps := self.lr_schedule.warmup_steps) > self.max_steps:
            key = "lr_schedule.warmup_steps"
            raise WrongValueError(key, f"{key} {steps} is more than max_steps {self.max_steps}")
        return self

    def check_fits(self, model: AnyModel, tokenizer: AnyTokenizer | None) -> None:
        """Raises ValueError if the job can't be done with these, as far as the files on this disk tell."""
        if isinstance(model, ConfigFile):
            if not model.path.exists():
                return  # A run's report must not need the file; `load` asks for it before a run.
            model.read()
        if self.task not in model.tasks:
            name = getattr(model, "family", None) or getattr(model, "model_type", None) or "this model"
            wrong = f"{name} is for task {' or '.join(model.tasks)}, the job's task is {self.task}"
            raise WrongValueError("model", wrong, says_key=False)
        entries = tokenizer.most_entries if tokenizer else self.data.vocabulary
        if entries is not None:
            resolved_vocab_size(model, entries)
        longest = model.longest_sequence()
        if longest is not None and self.seq_len > longest:
            raise WrongValueError("seq_len", f"seq_len {self.seq_len} is more than the model's {longest} positions")

    def of(self, choices: Choices) -> Job:
        """The job as an option does it: with the model, tokenizer, schedule and global batch that it sets."""
        model = choices.model or self.model
        chosen = choices.tokenizer or _tokenizer_of(choices.model) or self.tokenizer or _tokenizer_of(self.model)
        tokenizer = chosen if self.data.needs_tokenizer else None
        shape = choices.optimizer.schedule_shape or self.lr_schedule.name
        job = self.but(model=model, tokenizer=tokenizer, lr_schedule=self.lr_schedule.but(name=shape))
        job = job.in_batches_of(choices.global_batch_size or self.global_batch_size)
        if (fraction := choices.optimizer.warmup_fraction) is None:
            return job
        return job.but(lr_schedule=job.lr_schedule.but(warmup_steps=round(fraction * job.max_steps)))

    def in_batches_of(self, size: int) -> Job:
        """The job that trains on the same tokens in optimizer steps of `size` sequences.

        Steps, warm-up of the learning rate and the steps between evaluations change in proportion, each to the
        nearest whole number, and to 1 at least if it was not 0. `batch_size_problem` refuses sizes for which steps
        and evaluations are not whole. The untimed steps, which warm up the machine, stay as many.
        """
        if size == self.global_batch_size:
            return self

        def scaled(steps: int) -> int:
            return max(min(1, steps), round(steps * self.global_batch_size / size))

        evaluation = self.eval
        if isinstance(evaluation, Eval) and evaluation.every_steps is not None:
            evaluation = evaluation.but(every_steps=scaled(evaluation.every_steps))
        schedule = self.lr_schedule.but(warmup_steps=scaled(self.lr_schedule.warmup_steps))
        steps = scaled(self.max_steps)
        return self.but(global_batch_size=size, max_steps=steps, lr_schedule=schedule, eval=evaluation)

    def steps_for_all(self, steps: int, sizes: Iterable[int]) -> int:
        """The least number of steps, `steps` or more and at most the job's, whose tokens all sizes divide."""
        unit = math.lcm(*(size // math.gcd(size, self.global_batch_size) for size in sizes))
        return min(self.max_steps, -(-steps // unit) * unit)

    @property
    def scored(self) -> frozenset[str]:
        """Scores of generated text and own metrics that the job yields, by their names in `decide`."""
        scores = self.eval.scores if isinstance(self.eval, Eval) else []
        return frozenset(name if name in SCORES else OWN_SCORE for name in scores) | self.own_metrics.keys()

    @property
    def own_metrics(self) -> dict[str, OwnMetric]:
        """The metrics of own code, by name."""
        return self.eval.metrics if isinstance(self.eval, Eval) else {}

    @property
    def specials(self) -> tuple[str, ...]:
        """Tokens that the task needs besides the end of text."""
        return {"masked_lm": ("mask",), "seq2seq": ("pad",)}.get(self.task, ())

    @property
    def tokens_per_sequence(self) -> int:
        """Token positions of one sequence, padding among them; a pair has those of both sides."""
        return 2 * self.seq_len if self.task == "seq2seq" else self.seq_len

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all ranks."""
        return self.global_batch_size * self.tokens_per_sequence

    def gradient_accumulation_steps(self, micro_batch_size: int, world_size: int) -> int:
        """Micro-batches per optimizer step and rank; the suite's check has made sure that it is a whole number."""
        return self.global_batch_size // (micro_batch_size * world_size)

    @property
    def evaluates_on_the_way(self) -> bool:
        """Whether the held-out loss is known before the last step too."""
        interval = self.eval.every_steps if isinstance(self.eval, Eval) else None
        return interval is not None and interval < self.max_steps

    @property
    def evaluates(self) -> bool:
        """Whether the job yields figures of quality."""
        return self.eval != "none"


def _tokenizer_of(model: AnyModel | None) -> AnyTokenizer | None:
    """The tokenizer that belongs to a pretrained model, which knows no other's token ids; None: not pretrained."""
    if not isinstance(model, PretrainedModel):
        return None
    return PretrainedTokenizer(pretrained=model.pretrained, revision=model.revision)


def share_of_peak(schedule: LrSchedule, step: int, max_steps: int) -> float:
    """Share of the peak learning rate, in [0, 1], for optimizer step `step` of 0 .. max_steps - 1.

    The warm-up rises as (step + 1) / warmup_steps, so that step 0 already trains and the peak is met at
    its last step. Sources: cosine, Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts;
    warmup_stable_decay, Hu et al. 2024, arXiv:2404.06395, with a linear decay (Haegele et al. 2024,
    arXiv:2405.18392). Decays end at final_fraction in the last step.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return 1.0
    start, final = schedule.warmup_steps, schedule.final_fraction
    if schedule.name == "warmup_stable_decay":
        start = max(start, max_steps - round(schedule.decay_fraction * max_steps))
    # From 0 at the step before `start` to 1 at the last step.
    progress = min(1.0, max(0.0, (step - start + 1) / max(1, max_steps - start)))
    if schedule.name == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
    return 1 - (1 - final) * progress


def shares(schedule: LrSchedule, max_steps: int) -> list[float]:
    """The share of the peak for every step of the job."""
    return [share_of_peak(schedule, step, max_steps) for step in range(max_steps)]


def distinct_rates(rates: Iterable[float]) -> list[float]:
    """Learning rates by distinct value, sorted; to nine digits, below any effect and above libm's noise."""
    return sorted({float(f"{rate:.9g}") for rate in rates})


def shape_sha256(values: Sequence[float]) -> str:
    """Digest of the schedule's shape; shares are rounded to 1e-9, below any effect and above libm's noise."""
    return hashlib.sha256(b"".join(pack("<d", round(value, 9)) for value in values)).hexdigest()


MOST_SEQUENCES = 1 << 22
"""Most sequences of one optimizer step."""


def batch_size_problem(job: Job, size: int) -> str | None:
    """Why steps of `size` sequences can't do the job, with the nearest sizes that can; None: they can."""
    total, batch = job.max_steps * job.global_batch_size, f"the job's global_batch_size {job.global_batch_size}"
    interval = job.eval.every_steps if isinstance(job.eval, Eval) else None
    between = total if interval is None else interval * job.global_batch_size
    if total % size:
        what = f"the job's {total} sequences (max_steps {job.max_steps} x {batch})"
    elif between % size:
        what = f"the {between} sequences from one evaluation to the next (eval.every_steps {interval} x {batch})"
    elif total // size > MOST_STEPS:
        return f"the job's tokens are {total // size} steps of {size} sequences, at most {MOST_STEPS} are allowed"
    else:
        return None
    nearest = " or ".join(map(str, _nearest_divisors(math.gcd(total, between), size)))
    return f"steps of {size} sequences do not divide {what} evenly: the nearest sizes that do: {nearest}"


def _nearest_divisors(sequences: int, size: int) -> list[int]:
    """The next divisors of `sequences` below and above `size`."""
    below = (n for n in range(min(size - 1, sequences), 0, -1) if sequences % n == 0)
    above = (n for n in range(size + 1, min(sequences, MOST_SEQUENCES) + 1) if sequences % n == 0)
    return [n for n in (next(below, None), next(above, None)) if n is not None]

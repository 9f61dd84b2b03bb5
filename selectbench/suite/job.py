"""The job: the work that is identical for every option of a suite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from selectbench.choices import Choices
from selectbench.choices.model import AnyModel, ConfigFile, Model, PretrainedModel, resolved_vocab_size
from selectbench.choices.tokenizer import AnyTokenizer, PretrainedTokenizer, Tokenizer
from selectbench.strict import Strict
from selectbench.suite.data import (
    Apart,
    Cleaning,
    Data,
    EmbeddedCorpus,
    MarkovSource,
    TokenFile,
    kind_of,
    needs_tokenizer,
)
from selectbench.suite.evaluate import OWN_SCORE, SCORES, Eval, Steps


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
        """That must be timed on this device."""
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
        is_pairs, kind = self.task == "seq2seq", kind_of(self.data)
        if is_pairs != (kind == "pairs"):
            found = f"found {kind}" if is_pairs else "pairs are for task seq2seq"
            raise ValueError(f"data: task {self.task} needs {'pairs' if is_pairs else 'running text'}, {found}")
        if self.task == "masked_lm" and kind != "text":
            raise ValueError(f"data: task masked_lm needs running text, found {kind}")
        if isinstance(self.eval, Eval) and self.eval.scores and not is_pairs:
            raise ValueError(f"eval.scores: only task seq2seq generates what can be scored, found {self.task}")
        if self.tokenizer is not None and not needs_tokenizer(self.data):
            raise ValueError("tokenizer: the data are tokens already, with a vocabulary of their own: leave it out")
        if problem := self.problem_with(self.model, self.tokenizer):
            raise ValueError(problem)
        if self.lr_schedule.warmup_steps > self.max_steps:
            raise ValueError(
                f"lr_schedule.warmup_steps {self.lr_schedule.warmup_steps} is more than max_steps {self.max_steps}"
            )
        return self

    def problem_with(self, model: AnyModel, tokenizer: AnyTokenizer | None) -> str | None:
        """Why the job can't be done with these, or None; what a file that is gone would tell is not told."""
        if isinstance(model, ConfigFile) and not model.path.exists():
            return None  # A run's report must not need the file; `load` asks for it before a run.
        if self.task not in model.TASKS:
            name = getattr(model, "family", "this model")
            return f"model: {name} is for task {' or '.join(model.TASKS)}, the job's task is {self.task}"
        entries = tokenizer.most_entries if tokenizer else vocabulary_of(self.data)
        try:
            if entries is not None:
                resolved_vocab_size(model, entries)
            longest = model.longest_sequence()
        except ValueError as error:
            return str(error)
        if longest is not None and self.seq_len > longest:
            return f"seq_len {self.seq_len} is more than the model's {longest} positions"
        return None

    def of(self, choices: Choices) -> Job:
        """The job as an option does it: model, tokenizer, schedule, warm-up and global batch where it sets them."""
        model = choices.model or self.model
        chosen = choices.tokenizer or _tokenizer_of(choices.model) or self.tokenizer or _tokenizer_of(self.model)
        tokenizer = chosen if needs_tokenizer(self.data) else None
        shape = choices.optimizer.schedule_shape or self.lr_schedule.name
        schedule = self.lr_schedule.model_copy(update={"name": shape})
        own = self.model_copy(update={"model": model, "tokenizer": tokenizer, "lr_schedule": schedule})
        in_batches = own.in_batches_of(choices.global_batch_size or self.global_batch_size)
        return in_batches._warmed_up_over(choices.optimizer.warmup_fraction)

    def _warmed_up_over(self, fraction: float | None) -> Job:
        """With this share of the steps as warm-up, to the nearest whole number; None: with the job's own."""
        if fraction is None:
            return self
        schedule = self.lr_schedule.model_copy(update={"warmup_steps": round(fraction * self.max_steps)})
        return self.model_copy(update={"lr_schedule": schedule})

    def in_batches_of(self, size: int) -> Job:
        """The same tokens in optimizer steps of `size` sequences.

        Steps, warm-up of the learning rate and the steps between evaluations change in proportion, each to the
        nearest whole number and at least 1 where it was; `suite.batch_size` refuses sizes for which steps and
        evaluations are not whole. What timing leaves out is the machine's warm-up and stays in steps.
        """
        if size == self.global_batch_size:
            return self

        def scaled(steps: int) -> int:
            return max(min(1, steps), round(steps * self.global_batch_size / size))

        changed: dict[str, object] = {"global_batch_size": size, "max_steps": scaled(self.max_steps)}
        warmup = scaled(self.lr_schedule.warmup_steps)
        changed["lr_schedule"] = self.lr_schedule.model_copy(update={"warmup_steps": warmup})
        if isinstance(self.eval, Eval) and self.eval.every_steps is not None:
            changed["eval"] = self.eval.model_copy(update={"every_steps": scaled(self.eval.every_steps)})
        return self.model_copy(update=changed)

    def steps_for_all(self, steps: int, sizes: Iterable[int]) -> int:
        """The least number of steps, `steps` or more and at most the job's, whose tokens all sizes divide."""
        unit = math.lcm(*(size // math.gcd(size, self.global_batch_size) for size in sizes))
        return min(self.max_steps, -(-steps // unit) * unit)

    @property
    def scored(self) -> frozenset[str]:
        """Scores of generated text that the job yields, by their names in `decide`."""
        asked = self.eval.scores if isinstance(self.eval, Eval) else []
        return frozenset(name if name in SCORES else OWN_SCORE for name in asked)

    @property
    def specials(self) -> tuple[str, ...]:
        """Tokens that the task needs besides the end of text."""
        return {"masked_lm": ("mask",), "seq2seq": ("pad",)}.get(self.task, ())

    @property
    def tokens_per_sequence(self) -> int:
        """Token positions of one sequence: of a pair those of both sides, padding among them."""
        return 2 * self.seq_len if self.task == "seq2seq" else self.seq_len

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all ranks."""
        return self.global_batch_size * self.tokens_per_sequence

    def gradient_accumulation_steps(self, micro_batch_size: int, world_size: int) -> int:
        """Micro-batches per optimizer step and rank; the suite's check has made sure that they are whole."""
        return self.global_batch_size // (micro_batch_size * world_size)

    @property
    def evaluates_on_the_way(self) -> bool:
        """Whether the held-out loss is known before the last step too."""
        every = self.eval.every_steps if isinstance(self.eval, Eval) else None
        return every is not None and every < self.max_steps

    @property
    def evaluates(self) -> bool:
        """Whether the job yields figures of quality."""
        return self.eval != "none"


def _tokenizer_of(model: AnyModel | None) -> AnyTokenizer | None:
    """A pretrained model's own; the ids of any other mean nothing to it."""
    if not isinstance(model, PretrainedModel):
        return None
    return PretrainedTokenizer(pretrained=model.pretrained, revision=model.revision)


def vocabulary_of(data: Data) -> int | None:
    """Entries of the vocabulary that comes with the data; None: a tokenizer makes it."""
    one = data.train if isinstance(data, Apart) else data
    return one.vocab_size if isinstance(one, TokenFile | MarkovSource) else None

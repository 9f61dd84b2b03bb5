"""The job: the work that is identical for every option of a suite."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from selectbench.choices.model import ConfigFile, Model, resolved_vocab_size
from selectbench.strict import Strict

Steps = Annotated[int, Field(ge=1, le=10_000_000)]


class EmbeddedCorpus(Strict):
    """A text that a package carries, so that nothing is downloaded."""

    corpus: Literal["bible"] = "bible"
    """`bible`: the American Standard Version of 1901, public domain, 4.1 million characters."""


class TextFiles(Strict):
    """Plain UTF-8 text files."""

    text: Annotated[list[str], Field(min_length=1, strict=False)]
    """Paths or globs, relative to the suite; `**` reaches into folders."""


def _data_tag(value: object) -> str | None:
    has = value.__contains__ if isinstance(value, dict) else lambda key: hasattr(value, key)
    return next((key for key in ("corpus", "text") if has(key)), None)


Data = Annotated[
    Annotated[EmbeddedCorpus, Tag("corpus")] | Annotated[TextFiles, Tag("text")], Discriminator(_data_tag)
]


class Tokenizer(Strict):
    """A byte-level BPE tokenizer trained on the job's own training split."""

    bpe: Annotated[int, Field(ge=257, le=1 << 20)]
    """Vocabulary size: 256 bytes, one end-of-text token, and merges."""


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


class Eval(Strict):
    """Evaluation on held-out text, always in fp32."""

    tokens: Annotated[int, Field(ge=1, le=1 << 40)] = 65536
    """Held-out tokens to score, rounded up to whole sequences; all of them where there are fewer."""
    every_steps: Steps | None = None
    """Evaluate after every so many steps too; only at the end where not given."""


class Timing(Strict):
    """What of a trial is timed."""

    warmup_steps: Annotated[int, Field(ge=1, le=100_000)] = 3
    """First steps that train but enter no figure of speed."""
    min_timed_seconds: Annotated[float, Field(ge=0, le=86400)] | None = None
    """Steps are added after the final evaluation until so many seconds are timed; 10 on CUDA, else 0."""


class Job(Strict):
    """The work that is identical for every option."""

    task: Literal["causal_lm"] = "causal_lm"
    """Next-token prediction."""
    model: Model
    """The architecture; weights are drawn from the seed."""
    data: Data = EmbeddedCorpus()
    """The text."""
    tokenizer: Tokenizer
    """How the text becomes tokens."""
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
        if isinstance(self.model, ConfigFile) and not self.model.path.exists():
            return self  # A run's report must not need the file; `load` asks for it before a run.
        resolved_vocab_size(self.model, self.tokenizer.bpe)
        longest = self.model.longest_sequence()
        if longest is not None and self.seq_len > longest:
            raise ValueError(f"seq_len {self.seq_len} is more than the model's {longest} positions")
        if self.lr_schedule.warmup_steps > self.max_steps:
            raise ValueError(
                f"lr_schedule.warmup_steps {self.lr_schedule.warmup_steps} is more than max_steps {self.max_steps}"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all ranks."""
        return self.global_batch_size * self.seq_len

    def gradient_accumulation_steps(self, micro_batch_size: int, world_size: int) -> int:
        """Micro-batches per optimizer step and rank; the suite's check has made sure that they are whole."""
        return self.global_batch_size // (micro_batch_size * world_size)

    @property
    def evaluates(self) -> bool:
        """Whether the job yields figures of quality."""
        return self.eval != "none"

"""How a trained model is judged: held-out loss always, and scores of what it generates where a suite asks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from selectbench.choices import OwnName
from selectbench.strict import Strict

MOST_STEPS = 10_000_000
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
BuiltInScore = Literal["bleu", "chrf", "rouge_l", "exact_match", "token_f1"]
SCORES: tuple[str, ...] = ("bleu", "chrf", "rouge_l", "exact_match", "token_f1")
"""Scores of generated text against references, by name; all from 0 to 100, more is better."""
OWN_SCORE = "own_score"
"""The name of a score of own code in reports and in `decide`."""


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

    @field_validator("scores")
    @classmethod
    def _once_each(cls, scores: list[str]) -> list[str]:
        own = [name for name in scores if name not in SCORES]
        if again := next((name for name in scores if scores.count(name) > 1), None):
            raise ValueError(f"{again} is repeated")
        if len(own) > 1:
            raise ValueError(f"one score of your own at most, found {', '.join(own)}")
        return scores

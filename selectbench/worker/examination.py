"""After the last step: what the model generates for held-out sources, scored and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from selectbench.data.prepared import TOKENIZER, Prepared, fitting
from selectbench.record.sentences import Sentences
from selectbench.suite.evaluate import Eval
from selectbench.worker.evaluation import Logits
from selectbench.worker.generate import generate_targets
from selectbench.worker.pairs import PairHeldOut
from selectbench.worker.scores import Scored, score
from selectbench.worker.world import World

HYPOTHESES = "hypotheses.jsonl"
"""In a trial's folder: source, reference and hypothesis, an object a line."""


@dataclass(frozen=True)
class Scores:
    """What was found; empty where a suite asks for none."""

    scores: dict[str, float] = field(default_factory=dict)
    copy_scores: dict[str, float] = field(default_factory=dict)
    """Of the sources themselves, taken for hypotheses."""
    signatures: dict[str, str] = field(default_factory=dict)
    sentences: Sentences | None = None


@dataclass(frozen=True)
class Examination:
    """Generates and scores, with the logits of the final evaluation."""

    names: Sequence[str]
    held_out: PairHeldOut
    texts: Sequence[tuple[str, str]]
    """Source and reference of each pair to generate for."""
    tokenizer: Tokenizer
    end_id: int
    sequences_per_batch: int
    folder: Path

    @classmethod
    def of(
        cls, settings: Eval, data: Prepared, seq_len: int, at_once: int, folder: Path, start_id: int | None
    ) -> Examination | None:
        """None where no score is asked for."""
        lengths = data.heldout_lengths()
        if not settings.scores or lengths is None:
            return None
        held_out = PairHeldOut.first(data, tokens=1 << 40, seq_len=seq_len, start_id=start_id)
        chosen = fitting(lengths, seq_len)[: settings.generate]
        pairs = data.heldout_pairs()
        return cls(
            settings.scores, held_out, [pairs[number] for number in chosen.tolist()],
            Tokenizer.from_file(str(data.folder / TOKENIZER)), data.end_id, at_once, folder,
        )  # fmt: skip

    def run(self, logits: Logits, world: World) -> Scores:
        """Every rank calls it together; the first one writes the hypotheses."""
        hypotheses = self._generated(logits, world)
        sources, references = ([pair[side] for pair in self.texts] for side in (0, 1))
        if world.is_first:
            self._write(hypotheses)
        found = [score(name, hypotheses, references, sources) for name in self.names]
        copied = [score(name, sources, references, sources) for name in self.names]
        return Scores(
            {one.name: one.value for one in found}, {one.name: one.value for one in copied},
            {one.name: one.signature for one in found}, _sentences(found, references),
        )  # fmt: skip

    def _generated(self, logits: Logits, world: World) -> list[str]:
        found: list[str] = []
        for start in range(0, len(self.texts), self.sequences_per_batch):
            rows = np.arange(start, min(start + self.sequences_per_batch, len(self.texts)))
            batch = self.held_out.pairs.batch(rows).to(world.device)
            ids = generate_targets(
                logits, batch, end_id=self.end_id, start_id=self.held_out.pairs.start_id, world=world
            )
            found += [self.tokenizer.decode(row) for row in ids]
        return found

    def _write(self, hypotheses: Sequence[str]) -> None:
        with (self.folder / HYPOTHESES).open("w", encoding="utf-8") as file:
            for (source, reference), hypothesis in zip(self.texts, hypotheses, strict=True):
                line = {"source": source, "reference": reference, "hypothesis": hypothesis}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _sentences(found: Sequence[Scored], references: Sequence[str]) -> Sentences | None:
    """None where every score is known as a whole only."""
    counts = {one.name: one.counts for one in found if one.counts is not None}
    shares = {one.name: one.shares for one in found if one.shares is not None}
    if not counts and not shares:
        return None
    digest = hashlib.sha256(json.dumps(references).encode()).hexdigest()
    return Sentences(references_sha256=digest, counts=counts, shares=shares)

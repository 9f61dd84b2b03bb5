"""After the final evaluation: what the model says, where its loss lies, what it attends to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer

from selectbench.data.prepared import TOKENIZER, Prepared
from selectbench.record.inside import Inside, Sample
from selectbench.worker.batches import NOT_COUNTED, Batch
from selectbench.worker.evaluation import CausalHeldOut, Forward, HeldOut
from selectbench.worker.generate import continue_tokens, generate_targets
from selectbench.worker.pairs import PairHeldOut
from selectbench.worker.world import World

SAMPLES, PROMPT_TOKENS, SAID_TOKENS = 2, 24, 24
COLOURED_TOKENS, ATTENDING_TOKENS = 96, 24


@dataclass(frozen=True)
class Look:
    """What is needed to look inside."""

    held_out: HeldOut
    word: Callable[[int], str]
    """Text of one token."""
    text: Callable[[list[int]], str]
    """Text of several."""
    end_id: int

    @classmethod
    def of(cls, held_out: HeldOut, data: Prepared) -> Look:
        """With the data's tokenizer; tokens of no text show as their numbers."""
        if not data.has_text:
            return cls(held_out, str, lambda ids: " ".join(map(str, ids)), data.end_id)
        tokenizer = Tokenizer.from_file(str(data.folder / TOKENIZER))
        return cls(
            held_out, lambda token: tokenizer.decode([token], skip_special_tokens=False),
            lambda ids: tokenizer.decode(ids, skip_special_tokens=False), data.end_id,
        )  # fmt: skip

    def inside(self, forward: Forward, world: World) -> Inside:
        """Every rank calls it together, and makes the same calls."""
        batch = self.held_out.batch(0, 1).to(world.device)
        tokens, losses = self._coloured(forward, batch)
        rows, columns, weights = self._attention(forward, batch)
        return Inside(
            samples=self._samples(forward, world), tokens=tokens, token_losses=losses,
            attention=weights, attention_rows=rows, attention_columns=columns,
        )  # fmt: skip

    def _samples(self, forward: Forward, world: World) -> list[Sample]:
        if not forward.is_transformers:  # a model of own code may want all of its positions
            return []
        if isinstance(self.held_out, PairHeldOut):
            return self._translations(self.held_out, forward, world)
        if isinstance(self.held_out, CausalHeldOut):
            return self._continuations(self.held_out, forward, world)
        return []

    def _continuations(self, held_out: CausalHeldOut, forward: Forward, world: World) -> list[Sample]:
        found = []
        for row in held_out.sequences[:SAMPLES].tolist():
            given = row[: min(PROMPT_TOKENS, len(row) // 2)]
            count = min(SAID_TOKENS, len(row) - len(given))
            said = continue_tokens(forward, given, count=count, longest=len(row) - 1, world=world)
            real = row[len(given) : len(given) + count]
            found.append(Sample(prompt=self.text(given), said=self.text(said), reference=self.text(real)))
        return found

    def _translations(self, held_out: PairHeldOut, forward: Forward, world: World) -> list[Sample]:
        batch = held_out.batch(0, min(SAMPLES, len(held_out))).to(world.device)
        start = held_out.pairs.start_id
        said = generate_targets(forward, batch, end_id=self.end_id, start_id=start, world=world)
        width = batch.named["input_ids"].shape[1]
        ends = (self.end_id, held_out.pairs.pad_id)
        return [
            Sample(
                prompt=self.text([t for t in row[:width] if t not in ends]), said=self.text(ids),
                reference=self.text([t for t in row[width:] if t not in ends]),
            )
            for row, ids in zip(batch.tokens.tolist(), said, strict=True)
        ]  # fmt: skip

    def _coloured(self, forward: Forward, batch: Batch) -> tuple[list[str], list[float]]:
        logits = forward(batch)[0].float()
        nats = F.cross_entropy(logits, batch.targets[0], reduction="none", ignore_index=NOT_COUNTED)
        pairs = [
            (self.word(target), round(loss, 3))
            for target, loss in zip(batch.targets[0].tolist(), nats.tolist(), strict=True)
            if target != NOT_COUNTED
        ][:COLOURED_TOKENS]
        return [word for word, _ in pairs], [loss for _, loss in pairs]

    def _attention(self, forward: Forward, batch: Batch) -> tuple[list[str], list[str], list[list[float]]]:
        found = forward.attention(batch)
        if found is None:
            return [], [], []
        weights = found[0].float().mean(dim=0)[:ATTENDING_TOKENS, :ATTENDING_TOKENS]
        rows, columns = self._sides(batch)
        rows, columns = rows[: weights.shape[0]], columns[: weights.shape[1]]
        told = [[round(v, 3) for v in row[: len(columns)]] for row in weights[: len(rows)].tolist()]
        return [self.word(t) for t in rows], [self.word(t) for t in columns], told

    def _sides(self, batch: Batch) -> tuple[list[int], list[int]]:
        """Tokens that attend, and those attended to."""
        if isinstance(self.held_out, PairHeldOut):
            end = self.held_out.pairs.pad_id
            sides = batch.named["decoder_input_ids"][0].tolist(), batch.named["input_ids"][0].tolist()
            known = [[t for n, t in enumerate(side) if n == 0 or t != end] for side in sides]
            return known[0], known[1]
        inputs: list[int] = (batch.arguments or tuple(batch.named.values()))[0][0].tolist()
        return inputs, inputs


def attention_of(output: object) -> torch.Tensor | None:
    """The last layer's, (sequences, heads, rows, columns); cross-attention where there is; None: not told."""
    for name in ("cross_attentions", "attentions"):
        layers = getattr(output, name, None)
        if layers and isinstance(layers[-1], torch.Tensor):
            return layers[-1]
    return None

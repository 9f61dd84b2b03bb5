"""Evaluating a model, the same for every option: held-out loss, greedy decoding, and a look inside."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer

from selectbench.data import prepared
from selectbench.data.prepared import TOKENIZER, Prepared
from selectbench.record.record import Inside, Sample
from selectbench.worker.batches import NOT_COUNTED, Batch, PairHeldOut
from selectbench.worker.model import logits_of
from selectbench.worker.runtime import World, attention, without_tf32

# Held-out loss, the same for every option: fp32 weights and products, sdpa attention, no dropout.


@dataclass(frozen=True)
class Forward:
    """A model as evaluations call it: batches to logits, (sequences, targets, vocabulary)."""

    module: Any
    weights: dict[str, torch.Tensor]
    """Those that stand in for the module's own."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits."""
        return logits_of(self._output(batch, batch.named))

    @property
    def is_transformers(self) -> bool:
        """Whether the model is one of transformers, that takes sequences of any length."""
        return attention(self.module) is not None

    def attention(self, batch: Batch) -> torch.Tensor | None:
        """What a transformers model attends to, by the eager kernel, as `inside.attention_of` finds it."""
        if not self.is_transformers:
            return None
        self.module.set_attn_implementation("eager")
        try:
            return attention_of(self._output(batch, {**batch.named, "output_attentions": True}))
        finally:
            self.module.set_attn_implementation("sdpa")

    def _output(self, batch: Batch, named: dict[str, Any]) -> Any:
        if self.weights:
            return torch.func.functional_call(self.module, self.weights, batch.arguments, named)
        return self.module(*batch.arguments, **named)


Logits = Forward
"""How engines name it."""


class HeldOut(Protocol):
    """The sequences that every evaluation of a job scores."""

    @property
    def tokens(self) -> int:
        """Targets scored."""

    @property
    def bytes(self) -> int | None:
        """UTF-8 bytes of the tokens scored; None: they stand for no text."""

    def __len__(self) -> int:
        """Sequences."""

    def batch(self, start: int, end: int) -> Batch:
        """These sequences, on the CPU."""

    def sha256(self) -> str:
        """Digest of what is scored."""

    def source_loss(self) -> tuple[float | None, float | None]:
        """Mean of the true source's own nats over the targets scored, and its standard error; None: not known."""


@dataclass(frozen=True)
class CausalHeldOut:
    """Sequences to predict the next token in."""

    sequences: npt.NDArray[np.int64]
    """Token ids, shape (sequences, seq_len + 1): inputs and their next tokens."""
    counted: npt.NDArray[np.bool_] | None
    """Which targets are scored, shape (sequences, seq_len); None: all are."""
    tokens: int
    """Tokens scored."""
    bytes: int | None
    """UTF-8 bytes of the tokens scored; None: they stand for no text."""
    source_nats: npt.NDArray[np.float64] | None = None
    """Of each token scored under the source that emitted it; None: not known."""

    @classmethod
    def first(cls, data: Prepared, *, tokens: int, seq_len: int) -> CausalHeldOut:
        """The first `tokens` held-out tokens, rounded up to whole sequences; all there are where there are fewer.

        Of chats only what is to be predicted is scored. Raises ValueError where the split fills no sequence.
        """
        stream = data.heldout()
        count = min(-(-tokens // seq_len), prepared.sequences(len(stream), seq_len))
        if count < 1:
            raise ValueError(f"the held-out split has {len(stream)} tokens, one sequence needs {seq_len + 1}")

        def cut(values: Any) -> Any:
            starts = np.arange(count) * seq_len
            return None if values is None else np.asarray(values)[starts[:, None] + np.arange(seq_len + 1)]

        mask, sizes, truth = cut(data.heldout_mask()), cut(data.bytes_of_heldout()), cut(data.truth_of_heldout())
        counted = None if mask is None else mask[:, 1:].astype(bool)
        scored = np.ones((count, seq_len), bool) if counted is None else counted
        if not scored.any():
            raise ValueError(f"the first {count * seq_len} held-out tokens hold no answer: raise eval.tokens")
        return cls(
            cut(stream).astype(np.int64),
            counted,
            int(scored.sum()),
            None if sizes is None else int(sizes[:, 1:][scored].sum(dtype=np.int64)),
            None if truth is None else truth[:, 1:][scored],
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def sha256(self) -> str:
        """Digest of the token ids, their shape, and which of them are scored."""
        shape = str(self.sequences.shape).encode()
        digest = hashlib.sha256(shape + self.sequences.astype("<i8").tobytes())
        if self.counted is not None:
            digest.update(np.packbits(self.counted).tobytes())
        return digest.hexdigest()

    def source_loss(self) -> tuple[float | None, float | None]:
        """Mean of the source's own nats over the tokens scored, and its standard error."""
        if self.source_nats is None:
            return None, None
        error = self.source_nats.std(ddof=1) / np.sqrt(len(self.source_nats)) if len(self.source_nats) > 1 else None
        return float(self.source_nats.mean()), None if error is None else float(error)

    def batch(self, start: int, end: int) -> Batch:
        """These sequences, on the CPU."""
        rows = torch.from_numpy(self.sequences[start:end])
        targets = rows[:, 1:].clone()
        if self.counted is not None:
            targets[~torch.from_numpy(self.counted[start:end])] = NOT_COUNTED
        return Batch(rows, (rows[:, :-1],), {}, targets)


def heldout_loss(logits: Logits, held_out: HeldOut, *, sequences_per_batch: int, world: World) -> float:
    """Mean loss in nats per token, the same on every rank; NaN or infinity where the model has diverged.

    Ranks score slices; `logits` is called equally often on each, as the calls of a sharded model wait for
    one another: where sequences run out a rank scores one again, and doesn't count it.
    """
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    at_once = sequences_per_batch * world.size
    for start in range(0, len(held_out), at_once):
        first = start + world.rank * sequences_per_batch
        last = min(first + sequences_per_batch, len(held_out))
        batch = held_out.batch(first, last) if first < last else held_out.batch(0, 1)
        nats = _nats(logits, batch.to(world.device))
        if first < last:
            total += nats
    return float(world.total(total)) / held_out.tokens


def _nats(logits: Logits, batch: Batch) -> torch.Tensor:
    """Summed loss of a batch of sequences, float64."""
    losses = F.cross_entropy(
        logits(batch).float().flatten(0, 1), batch.targets.flatten(), reduction="none", ignore_index=NOT_COUNTED
    )
    return losses.double().sum()


@contextmanager
def evaluation_forward(module: Any, weights: dict[str, torch.Tensor] | None = None) -> Iterator[Logits]:
    """Batches to logits with fp32 weights, sdpa attention and no dropout; the module is left as it was.

    `weights`: all of them in fp32 by name, and the buffers, where the module's own can't serve. Otherwise its
    parameters in less than fp32 are copied for the time of the evaluation.
    """
    with evaluating(module), torch.no_grad(), without_tf32():
        yield Forward(module, fp32_copies(module) if weights is None else weights)


def fp32_copies(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those parameters that are not kept in fp32, converted; empty where all are."""
    return {
        n: p.detach().float()
        for n, p in module.named_parameters()
        if p.is_floating_point() and p.dtype != torch.float32
    }


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Evaluation mode with the sdpa kernel inside, the module's own mode and kernel after it."""
    training, kernel = module.training, attention(module)
    other = kernel not in (None, "sdpa")
    module.eval()
    if other:
        module.set_attn_implementation("sdpa")
    try:
        with _uncompiled():
            yield
    finally:
        if other:
            module.set_attn_implementation(kernel)
        module.train(training)


def _uncompiled() -> AbstractContextManager[object]:
    """Blocks that are compiled in place run as they are: an evaluation must compile nothing of its own."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


# Optimizers that train at other weights than they are to be evaluated at, as schedule-free ones do.
#
# They say so by having `train()` and `eval()`, which put the parameters to the one or the other in place: the
# convention of the schedulefree package (Defazio et al. 2024, arXiv:2405.15682), which transformers keeps too.


def switching(optimizers: Sequence[torch.optim.Optimizer]) -> list[Any]:
    """Those that have two sets of weights."""
    return [o for o in optimizers if all(callable(getattr(o, name, None)) for name in ("train", "eval"))]


def begin_training(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """To the weights that are trained; such optimizers refuse a step before that."""
    for optimizer in switching(optimizers):
        optimizer.train()


@contextmanager
def at_evaluated_weights(
    optimizers: Sequence[torch.optim.Optimizer], evaluation: Callable[[], AbstractContextManager[Logits]]
) -> Iterator[Logits]:
    """An engine's `evaluation` of the weights that the optimizers say are to be evaluated.

    After it the weights are those of before to the last bit: going there and back would round them, and a
    training that is evaluated more often would be another one. A copy of them is kept for the time.
    """
    found = switching(optimizers)
    trained = [(p, p.detach().clone()) for o in found for group in o.param_groups for p in group["params"]]
    for optimizer in found:
        optimizer.eval()
    try:
        with evaluation() as logits:
            yield logits
    finally:
        begin_training(found)
        with torch.no_grad():
            for parameter, value in trained:
                parameter.copy_(value)


# After the final evaluation: what the model says, where its loss lies, what it attends to.


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


# Greedy decoding with nothing but the logits of an evaluation: the same under every strategy and precision.
#
# Every step is a whole forward pass, without a cache of keys and values: slower, and exactly what the evaluation
# computes, whatever wraps or shards the model.


def generate_targets(logits: Logits, batch: Batch, *, end_id: int, start_id: int, world: World) -> list[list[int]]:
    """Token ids of the most likely target, token by token, of each source of a batch of pairs; without the end.

    Every rank makes the same calls with the same sources.
    """
    rows, most = batch.targets.shape
    given = torch.full((rows, 1), start_id, dtype=torch.int64, device=world.device)
    done = torch.zeros(rows, dtype=torch.bool, device=world.device)
    for _ in range(most):
        step = Batch(batch.tokens, (), {**batch.named, "decoder_input_ids": given}, batch.targets)
        said = logits(step)[:, -1].argmax(dim=-1)
        given = torch.cat([given, torch.where(done, end_id, said)[:, None]], dim=1)
        done |= said == end_id
        if world.from_first(int(done.all())):
            break
    return [_until(row[1:], end_id) for row in given.tolist()]


def continue_tokens(logits: Logits, prompt: Sequence[int], *, count: int, longest: int, world: World) -> list[int]:
    """The `count` most likely tokens after a prompt; the model is shown `longest` tokens at most."""
    known = list(prompt)
    for _ in range(count):
        ids = torch.tensor([known[-longest:]], dtype=torch.int64, device=world.device)
        said = logits(Batch(ids, (ids,), {}, ids))[0, -1].argmax()
        known.append(int(said))
    return known[len(prompt) :]


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids

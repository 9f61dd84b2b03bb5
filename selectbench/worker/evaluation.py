"""Evaluating a model, the same for every option: held-out loss, attention, generated text and its scores."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from selectbench.choices.choice import OwnCodeError, add_to_path, is_own, load
from selectbench.choices.model import Lora, OwnModel, PretrainedTokenizer
from selectbench.data.prepared import HELDOUT, TOKENIZER, Prepared
from selectbench.data.tokenizer import pretrained_tokenizer
from selectbench.record.record import Inspection, Sample, Sentences
from selectbench.record.wire import Order
from selectbench.suite.job import OWN_SCORE, Eval
from selectbench.worker import runtime
from selectbench.worker.batches import NOT_COUNTED, Batch, HeldOut, PairTokens, decoder_start_id
from selectbench.worker.model import logits_of, new_model
from selectbench.worker.runtime import World

# Held-out loss, the same for every option: fp32 weights and products, one attention kernel, no dropout.


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
        return runtime.attention(self.module) is not None

    def attention(self, batch: Batch) -> torch.Tensor | None:
        """What a transformers model attends to in its last layer, by the eager kernel; None: it does not say.

        (sequences, heads, rows, columns); cross-attention where there is.
        """
        if not self.is_transformers:
            return None
        self.module.set_attn_implementation("eager")
        try:
            output = self._output(batch, {**batch.named, "output_attentions": True})
        finally:
            self.module.set_attn_implementation(runtime.evaluation_kernel(self.module))
        for name in ("cross_attentions", "attentions"):
            layers = getattr(output, name, None)
            if layers and isinstance(layers[-1], torch.Tensor) and layers[-1].ndim == 4:
                return layers[-1]
        return None

    def _output(self, batch: Batch, named: dict[str, Any]) -> Any:
        if self.weights:
            return torch.func.functional_call(self.module, self.weights, batch.arguments, named)
        return self.module(*batch.arguments, **named)


Tell = Callable[[int, int], None]
"""Hears how many of how many are done."""


def heldout_loss(
    logits: Forward, held_out: HeldOut, *, sequences_per_batch: int, world: World, tell: Tell = lambda *_: None
) -> float:
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
        batch = batch.to(world.device)
        losses = F.cross_entropy(
            logits(batch).float().flatten(0, 1), batch.targets.flatten(), reduction="none", ignore_index=NOT_COUNTED
        )
        if first < last:
            total += losses.double().sum()
        tell(min(start + at_once, len(held_out)), len(held_out))
    return float(world.total(total)) / held_out.tokens


@contextmanager
def evaluation_forward(module: Any, weights: dict[str, torch.Tensor] | None = None) -> Iterator[Forward]:
    """Batches to logits with fp32 weights, `evaluation_kernel` and no dropout; the module is left as it was.

    `weights`: all of them in fp32 by name, and the buffers, where the module's own can't serve. Otherwise its
    parameters in less than fp32 are copied for the time of the evaluation.
    """
    training, kernel = module.training, runtime.attention(module)
    other = kernel != runtime.evaluation_kernel(module)
    # Blocks that are compiled in place run as they are: an evaluation must compile nothing of its own.
    stance = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    module.eval()
    if other:
        module.set_attn_implementation(runtime.evaluation_kernel(module))
    try:
        with stance, torch.no_grad(), runtime.without_tf32():
            if weights is None:
                weights = {
                    name: parameter.detach().float()
                    for name, parameter in module.named_parameters()
                    if parameter.is_floating_point() and parameter.dtype != torch.float32
                }
            yield Forward(module, weights)
    finally:
        if other:
            module.set_attn_implementation(kernel)
        module.train(training)


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
    optimizers: Sequence[torch.optim.Optimizer], evaluation: Callable[[], AbstractContextManager[Forward]]
) -> Iterator[Forward]:
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


Texts = Sequence[str]
Text = Callable[[list[int]], str]


@dataclass(frozen=True)
class Reading:
    """What the final evaluation needs besides the held-out set, read before the first step."""

    end_id: int
    tokenizer: Tokenizer | None
    """The data's; None: they are no text."""
    pairs: PairTokens | None
    """Held-out pairs, of which the first ones are scored; None: no score is asked for."""
    texts: list[tuple[str, str]]
    """Source and reference of each pair to generate for."""

    @classmethod
    def of(cls, order: Order, data: Prepared, held_out: HeldOut) -> Reading:
        """For a job that evaluates."""
        job, tokenizer = order.job, tokenizer_of(data)
        if not isinstance(job.eval, Eval) or held_out.pairs is None or not job.eval.scores:
            return cls(data.end_id, tokenizer, None, [])
        pairs = PairTokens.of(data, HELDOUT, job.seq_len, held_out.pairs.start_id)
        return cls(data.end_id, tokenizer, pairs, data.pairs_to_score(job))

    def text(self, ids: list[int]) -> str:
        """Of token ids."""
        return text_of(self.tokenizer, ids)


def text_of(tokenizer: Tokenizer | None, ids: list[int]) -> str:
    """Those of no text show as their numbers."""
    return tokenizer.decode(ids, skip_special_tokens=False) if tokenizer else " ".join(map(str, ids))


def tokenizer_of(data: Prepared) -> Tokenizer | None:
    """None: the data are no text."""
    return Tokenizer.from_file(str(data.folder / TOKENIZER)) if data.has_text else None


def look_inside(held_out: HeldOut, reading: Reading, forward: Forward, world: World) -> Inspection:
    """Every rank calls it together, and makes the same calls."""
    batch, text = held_out.batch(0, 1).to(world.device), reading.text
    tokens, losses = _token_losses(forward, batch, text)
    rows, columns, weights = _attention(forward, batch, held_out.pairs, text)
    samples: list[Sample] = []
    if forward.is_transformers:  # a model of own code may want all of its positions
        if held_out.pairs is not None:
            samples = _translations(held_out, held_out.pairs, reading.end_id, text, forward, world)
        elif batch.arguments:
            samples = _continuations(held_out, text, forward, world)
    return Inspection(
        samples=samples, tokens=tokens, token_losses=losses,
        attention=weights, attention_rows=rows, attention_columns=columns,
    )  # fmt: skip


def _continuations(held_out: HeldOut, text: Text, forward: Forward, world: World) -> list[Sample]:
    found = []
    for row in held_out.batch(0, SAMPLES).tokens.tolist():
        given = row[: min(PROMPT_TOKENS, len(row) // 2)]
        count = min(SAID_TOKENS, len(row) - len(given))
        said = continue_tokens(forward, given, count=count, longest=len(row) - 1, world=world)
        real = row[len(given) : len(given) + count]
        found.append(Sample(prompt=text(given), said=text(said), reference=text(real)))
    return found


def _translations(
    held_out: HeldOut, pairs: PairTokens, end_id: int, text: Text, forward: Forward, world: World
) -> list[Sample]:
    batch, ends = held_out.batch(0, SAMPLES).to(world.device), (end_id, pairs.pad_id)
    said = generate_targets(forward, batch, end_id=end_id, start_id=pairs.start_id, world=world)
    sides = [
        [text([t for t in side if t not in ends]) for side in (row[: pairs.seq_len], row[pairs.seq_len :])]
        for row in batch.tokens.tolist()
    ]
    return [Sample(prompt=s, said=text(ids), reference=t) for (s, t), ids in zip(sides, said, strict=True)]


def _token_losses(forward: Forward, batch: Batch, text: Text) -> tuple[list[str], list[float]]:
    logits = forward(batch)[0].float()
    nats = F.cross_entropy(logits, batch.targets[0], reduction="none", ignore_index=NOT_COUNTED)
    counted = batch.targets[0] != NOT_COUNTED
    words = [text([target]) for target in batch.targets[0][counted][:COLOURED_TOKENS].tolist()]
    return words, [round(loss, 3) for loss in nats[counted][:COLOURED_TOKENS].tolist()]


def _attention(
    forward: Forward, batch: Batch, pairs: PairTokens | None, text: Text
) -> tuple[list[str], list[str], list[list[float]]]:
    found = forward.attention(batch)
    if found is None:
        return [], [], []
    weights = found[0].float().mean(dim=0)[:ATTENDING_TOKENS, :ATTENDING_TOKENS]
    # Tokens that attend, and those attended to.
    rows = columns = (batch.arguments or tuple(batch.named.values()))[0][0].tolist()
    if pairs is not None:
        sides = (batch.named[name][0].tolist() for name in ("decoder_input_ids", "input_ids"))
        rows, columns = ([t for n, t in enumerate(side) if n == 0 or t != pairs.pad_id] for side in sides)
    rows, columns = rows[: weights.shape[0]], columns[: weights.shape[1]]
    rounded = [[round(v, 3) for v in row[: len(columns)]] for row in weights[: len(rows)].tolist()]
    return [text([t]) for t in rows], [text([t]) for t in columns], rounded


# Greedy decoding with nothing but the logits of an evaluation: the same under every strategy and precision.
#
# Every step is a whole forward pass, without a cache of keys and values: slower, and exactly what the evaluation
# computes, whatever wraps or shards the model.


def generate_targets(logits: Forward, batch: Batch, *, end_id: int, start_id: int, world: World) -> list[list[int]]:
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
    return [ids[: ids.index(end_id)] if end_id in ids else ids for _, *ids in given.tolist()]


def continue_tokens(logits: Forward, prompt: Sequence[int], *, count: int, longest: int, world: World) -> list[int]:
    """The `count` most likely tokens after a prompt; the model is shown `longest` tokens at most."""
    known = list(prompt)
    for _ in range(count):
        ids = torch.tensor([known[-longest:]], dtype=torch.int64, device=world.device)
        said = logits(Batch(ids, (ids,), {}, ids))[0, -1].argmax()
        known.append(int(said))
    return known[len(prompt) :]


# Scores of generated text against references, each by its library, and what each sentence adds to them.


_MOST_CHARACTERS = 6


class Scored(NamedTuple):
    """One score of a text."""

    name: str
    """In the record."""
    value: float
    signature: str
    """How it was computed."""
    counts: list[list[int]] | None = None
    """By sentence, as `record.record.Sentences` has them."""
    shares: list[int | float] | None = None


def score(name: str, hypotheses: Texts, references: Texts, sources: Texts) -> Scored:
    """Raises OwnCodeError for own code that fails."""
    if is_own(name):
        value = load(name, "eval.scores")(list(hypotheses), list(references), list(sources))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise OwnCodeError(f"score {name}: expected a number, it returned a {type(value).__name__}")
        return Scored(OWN_SCORE, float(value), name)
    return _SCORES[name](hypotheses, references)


def _bleu(hypotheses: Texts, references: Texts) -> Scored:
    """Corpus BLEU as sacrebleu computes it (Post 2018, arXiv:1804.08771)."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    found = metric.corpus_score(list(hypotheses), [list(references)])
    # Counts do not depend on it, and of sentences without it the library warns.
    of_one = BLEU(effective_order=True).sentence_score
    each = [of_one(h, [r]) for h, r in zip(hypotheses, references, strict=True)]
    counts = [[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in each]
    return Scored("bleu", float(found.score), str(metric.get_signature()), counts)


def _chrf(hypotheses: Texts, references: Texts) -> Scored:
    """chrF2 as sacrebleu computes it (Popovic 2015)."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    found = metric.corpus_score(list(hypotheses), [list(references)])
    counts = [_character_counts(h, r) for h, r in zip(hypotheses, references, strict=True)]
    return Scored("chrf", float(found.score), str(metric.get_signature()), counts)


def _character_counts(hypothesis: str, reference: str) -> list[int]:
    """N-grams of 1 to 6 characters without white space; sacrebleu has no public name for them."""
    ours, theirs = ("".join(text.split()) for text in (hypothesis, reference))
    found = []
    for n in range(1, _MOST_CHARACTERS + 1):
        own, other = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (ours, theirs))
        found += [own.total() if other else 0, other.total(), (own & other).total()]
    return found


def _rouge_l(hypotheses: Texts, references: Texts) -> Scored:
    """Mean F-measure of ROUGE-L with stemming, as the package rouge-score computes it (Lin 2004)."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    found = [scorer.score(r, h)["rougeL"].fmeasure for h, r in zip(hypotheses, references, strict=True)]
    return _mean("rouge_l", found, "rouge-score rougeL, stemmer, mean f-measure")


def _exact_match(hypotheses: Texts, references: Texts) -> Scored:
    """Share of answers equal to the reference but for case, punctuation, articles and white space.

    As SQuAD's evaluation has it (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    same = [int(_plain(h) == _plain(r)) for h, r in zip(hypotheses, references, strict=True)]
    return _mean("exact_match", same, "SQuAD 1.1")


def _token_f1(hypotheses: Texts, references: Texts) -> Scored:
    """Mean F1 of words, normalised as for the exact match (Rajpurkar et al. 2016)."""
    found = [_overlap(_plain(h).split(), _plain(r).split()) for h, r in zip(hypotheses, references, strict=True)]
    return _mean("token_f1", found, "SQuAD 1.1")


def _mean(name: str, shares: Sequence[float], signature: str) -> Scored:
    return Scored(name, 100 * sum(shares) / len(shares), signature, shares=list(shares))


def _overlap(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def _plain(text: str) -> str:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


_SCORES: dict[str, Callable[[Texts, Texts], Scored]] = {
    "bleu": _bleu, "chrf": _chrf, "rouge_l": _rouge_l, "exact_match": _exact_match, "token_f1": _token_f1,
}  # fmt: skip


# After the last step: what the model generates for held-out sources, scored and kept.


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
    """None where every score is known as a whole only."""


def examined(order: Order, reading: Reading, logits: Forward, world: World, tell: Tell) -> Scores:
    """Scores of what the model generates, by the final evaluation's logits.

    Every rank calls it together; the first one writes the hypotheses.
    """
    pairs, texts, tokenizer = reading.pairs, reading.texts, reading.tokenizer
    if not isinstance(order.job.eval, Eval) or pairs is None or tokenizer is None:
        return Scores()
    names, at_once, hypotheses = order.job.eval.scores, order.choices.micro_batch_size, list[str]()
    for start in range(0, len(texts), at_once):
        batch = pairs.batch(np.arange(start, min(start + at_once, len(texts)))).to(world.device)
        ids = generate_targets(logits, batch, end_id=reading.end_id, start_id=pairs.start_id, world=world)
        hypotheses += [tokenizer.decode(row) for row in ids]
        tell(len(hypotheses), len(texts))
    sources, references = ([pair[side] for pair in texts] for side in (0, 1))
    if world.is_first:
        with (Path(order.trial_folder) / HYPOTHESES).open("w", encoding="utf-8") as file:
            for (source, reference), hypothesis in zip(texts, hypotheses, strict=True):
                line = {"source": source, "reference": reference, "hypothesis": hypothesis}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    found = scores_of(names, hypotheses, references, sources)
    return replace(found, copy_scores=scores_of(names, sources, references, sources).scores)


def scores_of(names: Sequence[str], hypotheses: Texts, references: Texts, sources: Texts) -> Scores:
    """Raises OwnCodeError for own code that fails."""
    found = [score(name, hypotheses, references, sources) for name in names]
    counts = {one.name: one.counts for one in found if one.counts is not None}
    shares = {one.name: one.shares for one in found if one.shares is not None}
    digest = hashlib.sha256(json.dumps(references).encode()).hexdigest()
    sentences = Sentences(references_sha256=digest, counts=counts, shares=shares) if counts or shares else None
    return Scores(
        {one.name: one.value for one in found}, signatures={one.name: one.signature for one in found},
        sentences=sentences,
    )  # fmt: skip


def answer_of_scores(question: str, answer: str) -> None:
    """Write to the file `answer` the scores of what the file `question` holds, and end the process.

    The answer is `Scores`, or a text: what is wrong with own code.
    """
    asked = json.loads(Path(question).read_text(encoding="utf-8"))
    add_to_path(asked["code"])
    try:
        told: Any = scores_of(asked["names"], *(asked[name] for name in ("hypotheses", "references", "sources")))
    except OwnCodeError as error:
        told = str(error)
    Path(answer).write_bytes(msgspec.json.encode(told))
    os._exit(0)


# The trained model and its tokenizer as transformers has them: on disk, and in the hands of own metrics.


WEIGHTS_FILE = "model.safetensors"
"""Of a model of own code; transformers cuts larger ones into several."""


def save_model(order: Order, forward: Forward, folder: Path, *, writes: bool) -> None:
    """The weights that are evaluated, in fp32, and the tokenizer; whole in `folder` or not there.

    Every rank calls it, and the one that `writes` does. A model of own code is written as its state alone.
    Raises OSError where there is no room.
    """
    state = _state(order, forward, keeps=writes)
    if not writes:
        return
    data = Prepared.open(Path(order.data_folder))
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for left in (unfinished, folder):
        shutil.rmtree(left, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if isinstance(order.job.model, OwnModel):
        save_file(state, unfinished / WEIGHTS_FILE)
    else:
        _save_transformers(order, data, state, unfinished)
    if data.has_text:
        _tokenizer(order, data).save_pretrained(unfinished)
    unfinished.rename(folder)


def own_metrics(order: Order, forward: Forward, world: World) -> dict[str, float]:
    """By name, of the weights that are evaluated; {} but on the first rank. Every rank calls it.

    The model is a copy. Raises OwnCodeError for what is no metric, MemoryError where there is no room for the copy.
    """
    asked = order.job.own_metrics
    state = _state(order, forward, keeps=world.is_first) if asked else {}
    if not state:
        return {}
    data = Prepared.open(Path(order.data_folder))
    found: dict[str, float] = {}
    devices = [torch.cuda.current_device()] if world.device_type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for name, metric in asked.items():
            model = new_model(order.job, data.vocab_size, attention=None)
            model.load_state_dict(state, strict=False)
            model.to(world.device).eval()
            torch.manual_seed(runtime.derived_seed(order.trial.seed, "metrics"))
            function = load(metric.call, f"eval.metrics.{name}")
            value = function(model, _tokenizer(order, data), _texts(order, data), **metric.settings)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                told = value if isinstance(value, int | float) else f"a {type(value).__name__}"
                raise OwnCodeError(f"metric {name}: expected a finite number of 0 or more, it returned {told}")
            found[name] = float(value)
    return found


def _texts(order: Order, data: Prepared) -> list[str]:
    """Of the held-out tokens as many as the evaluation asks for, document by document."""
    assert isinstance(order.job.eval, Eval)
    tokens, text = data.heldout()[: order.job.eval.tokens].tolist(), partial(text_of, tokenizer_of(data))
    documents: list[list[int]] = [[]]
    for token in tokens:
        if token == data.end_id:
            documents.append([])
        else:
            documents[-1].append(token)
    return [text(ids) for ids in documents if ids]


def _save_transformers(order: Order, data: Prepared, state: dict[str, torch.Tensor], folder: Path) -> None:
    model = new_model(order.job, data.vocab_size, attention=None, empty=True)
    model.load_state_dict(state, strict=False, assign=True)  # of tied weights the state has one name
    model.tie_weights()
    model.config.use_cache = True  # off while it trains
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        known = {"eos": data.end_id, "pad": data.special_ids.get("pad"), "decoder_start": decoder_start_id(model)}
        for name, number in known.items():
            if getattr(generation, f"{name}_token_id") is None:
                setattr(generation, f"{name}_token_id", number)
    logging.disable_progress_bar()
    model.save_pretrained(folder)


def _tokenizer(order: Order, data: Prepared) -> Any:
    if isinstance(order.job.tokenizer, PretrainedTokenizer):
        return pretrained_tokenizer(order.job.tokenizer)
    tokenizer = Tokenizer.from_file(str(data.folder / TOKENIZER))
    named = {"eos": data.end_id, **data.special_ids}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, split_special_tokens=True, clean_up_tokenization_spaces=False,
        **{f"{name}_token": tokenizer.id_to_token(number) for name, number in named.items()},
    )  # fmt: skip


def _state(order: Order, forward: Forward, *, keeps: bool) -> dict[str, torch.Tensor]:
    """Weights and lasting buffers by name, whole, in fp32 on the CPU; low-rank additions added to what they are of.

    Every rank goes through all of it; {} on one that `keeps` nothing.
    """
    state = {name: _own(value) for name, value in _whole_weights(forward) if keeps}
    if not keeps:
        return {}
    lasting = forward.module.state_dict().keys()
    state |= {name: _own(value) for name, value in forward.module.named_buffers() if name in lasting}
    adapted = {name: part for name, part in forward.module.named_modules() if hasattr(part, "lora_A")}
    adaptation = order.choices.adaptation
    scale = adaptation.alpha / adaptation.r if isinstance(adaptation, Lora) else 0.0
    plain = {name.replace(".base_layer", ""): name for name in state}
    for layer, part in adapted.items():
        additions = [state.pop(f"{layer}.lora_{side}.default.weight") for side in "BA"]
        if (stack := getattr(part, "parameter_name", None)) is not None:  # of matrices, one for each expert
            state[plain[f"{layer.replace('.base_layer', '')}.{stack}"]] += _own(part.get_delta_weight("default"))
            continue
        product = additions[0] @ additions[1]
        state[f"{layer}.base_layer.weight"] += (product.T if part.fan_in_fan_out else product) * scale
    return {name.replace(".base_layer", ""): value for name, value in state.items()}


def _own(value: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", dtype, copy=True).contiguous()


def _whole_weights(forward: Forward) -> Iterator[tuple[str, torch.Tensor]]:
    """By name, one after the other; every rank takes part where they are sharded."""
    for name, parameter in forward.module.named_parameters():
        value = forward.weights.get(name, parameter).detach()
        if isinstance(value, DTensor):
            yield name, value.full_tensor()
        elif hasattr(parameter, "ds_tensor") and name not in forward.weights:
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach()
        elif getattr(parameter, "quant_state", None) is not None:
            from bitsandbytes.functional import dequantize_4bit

            yield name, dequantize_4bit(parameter.data, parameter.quant_state)
        else:
            yield name, value

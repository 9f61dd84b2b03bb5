"""Evaluating a model, the same for every option: held-out loss, attention, generated text and its scores."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from selectbench.choices.choice import OwnCodeError, is_own, load
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
    """A model as evaluations call it: from a batch to logits of shape (sequences, targets, vocabulary)."""

    module: Any
    weights: dict[str, torch.Tensor]
    """Weights by name that replace the module's own; those not listed stay."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the logits of a batch."""
        return logits_of(self._output(batch, batch.named))

    @property
    def is_transformers(self) -> bool:
        """Whether the model comes from transformers, and so takes sequences of any length."""
        return runtime.attention(self.module) is not None

    def attention(self, batch: Batch) -> torch.Tensor | None:
        """The attention weights of a transformers model's last layer, by the eager kernel; None: it returns none.

        Shape (sequences, heads, rows, columns); cross-attention where the model has it.
        """
        if not self.is_transformers:
            return None
        with runtime.attention_kernel(self.module, "eager"):
            output = self._output(batch, {**batch.named, "output_attentions": True})
        for name in ("cross_attentions", "attentions"):
            layers = getattr(output, name, None)
            if layers and isinstance(layers[-1], torch.Tensor) and layers[-1].ndim == 4:
                return layers[-1]
        return None

    def _output(self, batch: Batch, keywords: dict[str, Any]) -> Any:
        if self.weights:
            return torch.func.functional_call(self.module, self.weights, batch.arguments, keywords)
        return self.module(*batch.arguments, **keywords)


Report = Callable[[int, int], None]
"""Called with how many items are done, and of how many."""


def heldout_loss(
    logits: Forward, held_out: HeldOut, *, sequences_per_batch: int, world: World, report: Report = lambda *_: None
) -> float:
    """Mean loss in nats per token, the same on every rank; NaN or infinity where the model has diverged.

    Ranks score slices; `logits` is called equally often on each, as the calls of a sharded model wait for
    one another: a rank that has no sequences left scores the first one again, and doesn't count it.
    """
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    sequences_at_once = sequences_per_batch * world.size
    for start in range(0, len(held_out), sequences_at_once):
        first = start + world.rank * sequences_per_batch
        last = min(first + sequences_per_batch, len(held_out))
        batch = held_out.batch(first, last) if first < last else held_out.batch(0, 1)
        batch = batch.to(world.device)
        losses = F.cross_entropy(
            logits(batch).float().flatten(0, 1), batch.targets.flatten(), reduction="none", ignore_index=NOT_COUNTED
        )
        if first < last:
            total += losses.double().sum()
        report(min(start + sequences_at_once, len(held_out)), len(held_out))
    return float(world.total(total)) / held_out.tokens


@contextmanager
def evaluation_forward(module: Any, weights: dict[str, torch.Tensor] | None = None) -> Iterator[Forward]:
    """A forward pass with fp32 weights, `evaluation_kernel` and no dropout; restores the module afterwards.

    `weights`: all weights in fp32 and all buffers by name, where the module's own can't be used. Otherwise its
    parameters of less than fp32 are copied to fp32 for the time of the evaluation.
    """
    training, kernel = module.training, runtime.evaluation_kernel(module)
    # Blocks that are compiled in place run eagerly: an evaluation must compile nothing itself.
    stance = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    module.eval()
    try:
        with runtime.attention_kernel(module, kernel), stance, torch.no_grad(), runtime.without_tf32():
            if weights is None:
                weights = {
                    name: parameter.detach().float()
                    for name, parameter in module.named_parameters()
                    if parameter.is_floating_point() and parameter.dtype != torch.float32
                }
            yield Forward(module, weights)
    finally:
        module.train(training)


# Optimizers that train at other weights than they are to be evaluated at, as schedule-free ones do.
#
# They say so by having `train()` and `eval()`, which put the parameters to the one or the other in place: the
# convention of the schedulefree package (Defazio et al. 2024, arXiv:2405.15682), which transformers keeps too.


def with_two_weights(optimizers: Sequence[torch.optim.Optimizer]) -> list[Any]:
    """The optimizers that train at other weights than they are evaluated at."""
    return [o for o in optimizers if all(callable(getattr(o, name, None)) for name in ("train", "eval"))]


def begin_training(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Switch these optimizers to the weights that they train; they refuse a step before that."""
    for optimizer in with_two_weights(optimizers):
        optimizer.train()


@contextmanager
def at_evaluated_weights(
    optimizers: Sequence[torch.optim.Optimizer], evaluation: Callable[[], AbstractContextManager[Forward]]
) -> Iterator[Forward]:
    """An engine's `evaluation`, of the weights at which the optimizers are to be evaluated.

    Afterwards the trained weights are restored bit by bit from a copy: switching there and back would round
    them, and evaluating more often would change the training.
    """
    affected = with_two_weights(optimizers)
    trained = [(p, p.detach().clone()) for o in affected for group in o.param_groups for p in group["params"]]
    for optimizer in affected:
        optimizer.eval()
    try:
        with evaluation() as logits:
            yield logits
    finally:
        begin_training(affected)
        with torch.no_grad():
            for parameter, value in trained:
                parameter.copy_(value)


# After the final evaluation: samples of generated text, the loss of single tokens, and attention weights.


SAMPLES, PROMPT_TOKENS, GENERATED_TOKENS = 2, 24, 24
LOSS_TOKENS, ATTENTION_TOKENS = 96, 24


Texts = Sequence[str]
Text = Callable[[list[int]], str]


@dataclass(frozen=True)
class Reading:
    """What the final evaluation needs besides the held-out set; read before the first step."""

    end_id: int
    tokenizer: Tokenizer | None
    """The data's tokenizer; None: the data are no text."""
    pairs: PairTokens | None
    """Held-out pairs, of which the first are scored; None: the job requests no score."""
    texts: list[tuple[str, str]]
    """Source and reference of each pair to generate for."""

    @classmethod
    def of(cls, order: Order, data: Prepared, held_out: HeldOut) -> Reading:
        """The reading of a job that evaluates."""
        job, tokenizer = order.job, tokenizer_of(data)
        if not isinstance(job.eval, Eval) or held_out.pairs is None or not job.eval.scores:
            return cls(data.end_id, tokenizer, None, [])
        pairs = PairTokens.of(data, HELDOUT, job.seq_len, held_out.pairs.start_id)
        return cls(data.end_id, tokenizer, pairs, data.pairs_to_score(job))

    def text(self, ids: list[int]) -> str:
        """The text of token ids."""
        return text_of(self.tokenizer, ids)


def text_of(tokenizer: Tokenizer | None, ids: list[int]) -> str:
    """The text of token ids; without a tokenizer, their numbers."""
    return tokenizer.decode(ids, skip_special_tokens=False) if tokenizer else " ".join(map(str, ids))


def tokenizer_of(data: Prepared) -> Tokenizer | None:
    """The data's tokenizer; None: the data are no text."""
    return Tokenizer.from_file(str(data.folder / TOKENIZER)) if data.has_text else None


def inspect_model(held_out: HeldOut, reading: Reading, forward: Forward, world: World) -> Inspection:
    """Samples, token losses and attention of the model. All ranks call it together, with the same data."""
    batch, text = held_out.batch(0, 1).to(world.device), reading.text
    tokens, losses = _token_losses(forward, batch, text)
    rows, columns, weights = _attention(forward, batch, held_out.pairs, text)
    samples: list[Sample] = []
    if forward.is_transformers:  # a model of own code may need sequences of full length
        if held_out.pairs is not None:
            samples = _translations(held_out, held_out.pairs, reading.end_id, text, forward, world)
        elif batch.arguments:
            samples = _continuations(held_out, text, forward, world)
    return Inspection(
        samples=samples, tokens=tokens, token_losses=losses,
        attention=weights, attention_rows=rows, attention_columns=columns,
    )  # fmt: skip


def _continuations(held_out: HeldOut, text: Text, forward: Forward, world: World) -> list[Sample]:
    samples = []
    for row in held_out.batch(0, SAMPLES).tokens.tolist():
        prompt = row[: min(PROMPT_TOKENS, len(row) // 2)]
        count = min(GENERATED_TOKENS, len(row) - len(prompt))
        generated = continue_tokens(forward, prompt, count=count, longest=len(row) - 1, world=world)
        reference = row[len(prompt) : len(prompt) + count]
        samples.append(Sample(prompt=text(prompt), said=text(generated), reference=text(reference)))
    return samples


def _translations(
    held_out: HeldOut, pairs: PairTokens, end_id: int, text: Text, forward: Forward, world: World
) -> list[Sample]:
    batch, ends = held_out.batch(0, SAMPLES).to(world.device), (end_id, pairs.pad_id)
    generated = generate_targets(forward, batch, end_id=end_id, start_id=pairs.start_id, world=world)
    sides = [
        [text([t for t in side if t not in ends]) for side in (row[: pairs.seq_len], row[pairs.seq_len :])]
        for row in batch.tokens.tolist()
    ]
    return [Sample(prompt=s, said=text(ids), reference=t) for (s, t), ids in zip(sides, generated, strict=True)]


def _token_losses(forward: Forward, batch: Batch, text: Text) -> tuple[list[str], list[float]]:
    logits = forward(batch)[0].float()
    nats = F.cross_entropy(logits, batch.targets[0], reduction="none", ignore_index=NOT_COUNTED)
    counted = batch.targets[0] != NOT_COUNTED
    words = [text([target]) for target in batch.targets[0][counted][:LOSS_TOKENS].tolist()]
    return words, [round(loss, 3) for loss in nats[counted][:LOSS_TOKENS].tolist()]


def _attention(
    forward: Forward, batch: Batch, pairs: PairTokens | None, text: Text
) -> tuple[list[str], list[str], list[list[float]]]:
    attention = forward.attention(batch)
    if attention is None:
        return [], [], []
    weights = attention[0].float().mean(dim=0)[:ATTENTION_TOKENS, :ATTENTION_TOKENS]
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
    """Decode a target greedily for each source of a batch of pairs: token ids, without the end token.

    All ranks call it with the same sources.
    """
    rows, longest = batch.targets.shape
    prefix = torch.full((rows, 1), start_id, dtype=torch.int64, device=world.device)
    is_done = torch.zeros(rows, dtype=torch.bool, device=world.device)
    for _ in range(longest):
        step = Batch(batch.tokens, (), {**batch.named, "decoder_input_ids": prefix}, batch.targets)
        next_ids = logits(step)[:, -1].argmax(dim=-1)
        prefix = torch.cat([prefix, torch.where(is_done, end_id, next_ids)[:, None]], dim=1)
        is_done |= next_ids == end_id
        if world.from_first(int(is_done.all())):
            break
    return [ids[: ids.index(end_id)] if end_id in ids else ids for _, *ids in prefix.tolist()]


def continue_tokens(logits: Forward, prompt: Sequence[int], *, count: int, longest: int, world: World) -> list[int]:
    """Continue a prompt greedily by `count` tokens; the model gets the last `longest` tokens at most."""
    tokens = list(prompt)
    for _ in range(count):
        ids = torch.tensor([tokens[-longest:]], dtype=torch.int64, device=world.device)
        next_id = logits(Batch(ids, (ids,), {}, ids))[0, -1].argmax()
        tokens.append(int(next_id))
    return tokens[len(prompt) :]


# Scores of generated text against references, each by its library, and what each sentence adds to them.


_LONGEST_NGRAM = 6


class Scored(NamedTuple):
    """One score of a text."""

    name: str
    """Its key in the record."""
    value: float
    signature: str
    """How it was computed."""
    counts: list[list[int]] | None = None
    """Counts of each sentence, as in `record.record.Sentences`."""
    shares: list[int | float] | None = None


def score(name: str, hypotheses: Texts, references: Texts, sources: Texts) -> Scored:
    """The score of this name. Raises OwnCodeError for own code that fails."""
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
    corpus = metric.corpus_score(list(hypotheses), [list(references)])
    # The counts do not depend on effective_order, but without it the library warns for single sentences.
    sentence_bleu = BLEU(effective_order=True).sentence_score
    by_sentence = [sentence_bleu(h, [r]) for h, r in zip(hypotheses, references, strict=True)]
    counts = [[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in by_sentence]
    return Scored("bleu", float(corpus.score), str(metric.get_signature()), counts)


def _chrf(hypotheses: Texts, references: Texts) -> Scored:
    """chrF2 as sacrebleu computes it (Popovic 2015)."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    corpus = metric.corpus_score(list(hypotheses), [list(references)])
    counts = [_character_counts(h, r) for h, r in zip(hypotheses, references, strict=True)]
    return Scored("chrf", float(corpus.score), str(metric.get_signature()), counts)


def _character_counts(hypothesis: str, reference: str) -> list[int]:
    """N-grams of 1 to 6 characters without white space; sacrebleu has no public name for them."""
    texts = ["".join(text.split()) for text in (hypothesis, reference)]
    counts = []
    for n in range(1, _LONGEST_NGRAM + 1):
        h, r = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts)
        counts += [h.total() if r else 0, r.total(), (h & r).total()]
    return counts


def _rouge_l(hypotheses: Texts, references: Texts) -> Scored:
    """Mean F-measure of ROUGE-L with stemming, as the package rouge-score computes it (Lin 2004)."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    f_measures = [scorer.score(r, h)["rougeL"].fmeasure for h, r in zip(hypotheses, references, strict=True)]
    return _mean_share("rouge_l", f_measures, "rouge-score rougeL, stemmer, mean f-measure")


def _exact_match(hypotheses: Texts, references: Texts) -> Scored:
    """Share of answers equal to the reference apart from case, punctuation, articles and white space.

    As in SQuAD's evaluation (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    same = [int(_normalise(h) == _normalise(r)) for h, r in zip(hypotheses, references, strict=True)]
    return _mean_share("exact_match", same, "SQuAD 1.1")


def _token_f1(hypotheses: Texts, references: Texts) -> Scored:
    """Mean F1 of words, normalised as for the exact match (Rajpurkar et al. 2016)."""
    f1 = [_f1(_normalise(h).split(), _normalise(r).split()) for h, r in zip(hypotheses, references, strict=True)]
    return _mean_share("token_f1", f1, "SQuAD 1.1")


def _mean_share(name: str, shares: Sequence[float], signature: str) -> Scored:
    return Scored(name, 100 * sum(shares) / len(shares), signature, shares=list(shares))


def _f1(words: list[str], reference_words: list[str]) -> float:
    if not words or not reference_words:
        return float(words == reference_words)
    common = sum((Counter(words) & Counter(reference_words)).values())
    return 2 * common / (len(words) + len(reference_words))


def _normalise(text: str) -> str:
    without_punctuation = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split())


_SCORES: dict[str, Callable[[Texts, Texts], Scored]] = {
    "bleu": _bleu, "chrf": _chrf, "rouge_l": _rouge_l, "exact_match": _exact_match, "token_f1": _token_f1,
}  # fmt: skip


# After the last step: what the model generates for held-out sources, scored and kept.


HYPOTHESES = "hypotheses.jsonl"
"""File in a trial's folder with source, reference and hypothesis, one JSON object a line."""


@dataclass(frozen=True)
class Scores:
    """The scores of a trial by name; empty where a suite requests none."""

    scores: dict[str, float] = field(default_factory=dict)
    copy_scores: dict[str, float] = field(default_factory=dict)
    """The scores of the sources themselves, taken as hypotheses."""
    signatures: dict[str, str] = field(default_factory=dict)
    sentences: Sentences | None = None
    """Parts of the scores by sentence; None where every score is known for the whole text only."""


def score_model(order: Order, reading: Reading, logits: Forward, world: World, report: Report) -> Scores:
    """Generate text with the final evaluation's logits and score it.

    All ranks call it together; the first one writes the hypotheses to a file.
    """
    pairs, texts, tokenizer = reading.pairs, reading.texts, reading.tokenizer
    if not isinstance(order.job.eval, Eval) or pairs is None or tokenizer is None:
        return Scores()
    names, batch_size, hypotheses = order.job.eval.scores, order.choices.micro_batch_size, list[str]()
    for start in range(0, len(texts), batch_size):
        batch = pairs.batch(np.arange(start, min(start + batch_size, len(texts)))).to(world.device)
        ids = generate_targets(logits, batch, end_id=reading.end_id, start_id=pairs.start_id, world=world)
        hypotheses += [tokenizer.decode(row) for row in ids]
        report(len(hypotheses), len(texts))
    sources, references = ([pair[side] for pair in texts] for side in (0, 1))
    if world.is_first:
        with (Path(order.trial_folder) / HYPOTHESES).open("w", encoding="utf-8") as file:
            for (source, reference), hypothesis in zip(texts, hypotheses, strict=True):
                line = {"source": source, "reference": reference, "hypothesis": hypothesis}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    scores = scores_of(names, hypotheses, references, sources)
    return replace(scores, copy_scores=scores_of(names, sources, references, sources).scores)


def scores_of(names: Sequence[str], hypotheses: Texts, references: Texts, sources: Texts) -> Scores:
    """All scores of these names. Raises OwnCodeError for own code that fails."""
    scored = [score(name, hypotheses, references, sources) for name in names]
    counts = {s.name: s.counts for s in scored if s.counts is not None}
    shares = {s.name: s.shares for s in scored if s.shares is not None}
    digest = hashlib.sha256(json.dumps(references).encode()).hexdigest()
    sentences = Sentences(references_sha256=digest, counts=counts, shares=shares) if counts or shares else None
    return Scores(
        {s.name: s.value for s in scored}, signatures={s.name: s.signature for s in scored},
        sentences=sentences,
    )  # fmt: skip


def requested_scores(request: dict[str, Any]) -> Scores | str:
    """The scores of the texts in the request, or a text that says what is wrong with own code."""
    try:
        return scores_of(*(request[name] for name in ("names", "hypotheses", "references", "sources")))
    except OwnCodeError as error:
        return str(error)


# The trained model and its tokenizer in transformers' format: saved to disk, and given to own metrics.


WEIGHTS_FILE = "model.safetensors"
"""Name of the weights' file for a model of own code; transformers splits large ones into several."""


def save_model(order: Order, forward: Forward, folder: Path, *, writes: bool) -> None:
    """Save the weights that are evaluated, in fp32, and the tokenizer; `folder` is complete or does not exist.

    All ranks call it; the rank with `writes` writes. Of a model of own code only the state is written.
    Raises OSError where the disk is full.
    """
    state = _full_state(order, forward, collects=writes)
    if not writes:
        return
    data = Prepared.open(Path(order.data_folder))
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for leftover in (unfinished, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if isinstance(order.job.model, OwnModel):
        save_file(state, unfinished / WEIGHTS_FILE)
    else:
        _save_transformers(order, data, state, unfinished)
    if data.has_text:
        _tokenizer(order, data).save_pretrained(unfinished)
    unfinished.rename(folder)


def own_metrics(order: Order, forward: Forward, world: World) -> dict[str, float]:
    """Values of own metrics by name, at the weights that are evaluated; {} except on the first rank.

    All ranks call it. The model is a copy. Raises OwnCodeError for a value that is no metric, MemoryError where the
    copy does not fit.
    """
    metrics = order.job.own_metrics
    state = _full_state(order, forward, collects=world.is_first) if metrics else {}
    if not state:
        return {}
    data = Prepared.open(Path(order.data_folder))
    values: dict[str, float] = {}
    devices = [torch.cuda.current_device()] if world.device_type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for name, metric in metrics.items():
            model = new_model(order.job, data.vocab_size, attention=None)
            model.load_state_dict(state, strict=False)
            model.to(world.device).eval()
            torch.manual_seed(runtime.derived_seed(order.trial.seed, "metrics"))
            function = load(metric.call, f"eval.metrics.{name}")
            value = function(model, _tokenizer(order, data), _heldout_texts(order, data), **metric.settings)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                returned = value if isinstance(value, int | float) else f"a {type(value).__name__}"
                raise OwnCodeError(f"metric {name}: expected a finite number of 0 or more, it returned {returned}")
            values[name] = float(value)
    return values


def _heldout_texts(order: Order, data: Prepared) -> list[str]:
    """The documents of the held-out tokens that the evaluation uses."""
    assert isinstance(order.job.eval, Eval)
    tokens, tokenizer = data.heldout()[: order.job.eval.tokens], tokenizer_of(data)
    documents = np.split(tokens, np.flatnonzero(tokens == data.end_id))  # all but the first begin with its id
    token_ids = (ids[ids != data.end_id].tolist() for ids in documents)
    return [text_of(tokenizer, ids) for ids in token_ids if ids]


def _save_transformers(order: Order, data: Prepared, state: dict[str, torch.Tensor], folder: Path) -> None:
    model = new_model(order.job, data.vocab_size, attention=None, empty=True)
    model.load_state_dict(state, strict=False, assign=True)  # the state has only one name of tied weights
    model.tie_weights()
    model.config.use_cache = True  # it was off for training
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        ids = {"eos": data.end_id, "pad": data.special_ids.get("pad"), "decoder_start": decoder_start_id(model)}
        for name, number in ids.items():
            if getattr(generation, f"{name}_token_id") is None:
                setattr(generation, f"{name}_token_id", number)
    logging.disable_progress_bar()
    model.save_pretrained(folder)


def _tokenizer(order: Order, data: Prepared) -> Any:
    if isinstance(order.job.tokenizer, PretrainedTokenizer):
        return pretrained_tokenizer(order.job.tokenizer)
    tokenizer = Tokenizer.from_file(str(data.folder / TOKENIZER))
    special_ids = {"eos": data.end_id, **data.special_ids}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, split_special_tokens=True, clean_up_tokenization_spaces=False,
        **{f"{name}_token": tokenizer.id_to_token(number) for name, number in special_ids.items()},
    )  # fmt: skip


def _full_state(order: Order, forward: Forward, *, collects: bool) -> dict[str, torch.Tensor]:
    """Full weights and persistent buffers by name, in fp32 on the CPU, with LoRA's updates merged into them.

    All ranks take part in gathering; {} on a rank that does not collect.
    """
    state = {name: _on_cpu(value) for name, value in whole_weights(forward) if collects}
    if not collects:
        return {}
    persistent = forward.module.state_dict().keys()
    state |= {name: _on_cpu(value) for name, value in forward.module.named_buffers() if name in persistent}
    lora_layers = {name: lora for name, lora in forward.module.named_modules() if hasattr(lora, "lora_A")}
    adaptation = order.choices.adaptation
    scale = adaptation.alpha / adaptation.r if isinstance(adaptation, Lora) else 0.0
    names = {name.replace(".base_layer", ""): name for name in state}
    for layer, lora in lora_layers.items():
        additions = [state.pop(f"{layer}.lora_{side}.default.weight") for side in "BA"]
        if (stack := getattr(lora, "parameter_name", None)) is not None:  # one matrix for each expert
            state[names[f"{layer.replace('.base_layer', '')}.{stack}"]] += _on_cpu(lora.get_delta_weight("default"))
            continue
        product = additions[0] @ additions[1]
        state[f"{layer}.base_layer.weight"] += (product.T if lora.fan_in_fan_out else product) * scale
    return {name.replace(".base_layer", ""): value for name, value in state.items()}


def _on_cpu(value: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", dtype, copy=True).contiguous()


def whole_weights(forward: Forward) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and full weights, one after the other; all ranks take part where weights are sharded."""
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

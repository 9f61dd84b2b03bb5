"""Small jobs of every task: their data, and what the jobs are in hand-written PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # noqa: N812
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from selectbench.choices.model import Bpe
from selectbench.data.prepare import prepare
from selectbench.data.prepared import Prepared
from selectbench.suite.sources import Chat, Pairs, TextFiles
from selectbench.worker.runtime import derived_seed

BERT = {"family": "bert", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
T5 = {"family": "t5", "num_layers": 2, "d_model": 32, "num_heads": 2}
BART = {"family": "bart", "num_layers": 2, "d_model": 32, "num_heads": 2}
LENGTH, SEQUENCES, STEPS, PEAK = 32, 8, 6, 3e-3
NUMBERS = ("nul", "een", "twee", "drie", "vier", "vijf", "zes", "zeven", "acht", "negen")


def write_pairs(path: Path, count: int = 300) -> Path:
    """Numbers in digits, some longer than others, and their digits' names: a line each."""
    digits = (str(number * 7919 % 10 ** (1 + number % 5)) for number in range(count))
    lines = (f"{one}#{number}\t{' '.join(NUMBERS[int(d)] for d in f'{one}{number}')}"
             for number, one in enumerate(digits))  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def prepared_pairs(folder: Path) -> Prepared:
    path = write_pairs(folder / "pairs.tsv")
    return prepare(Pairs(pairs=[str(path)]), Bpe(bpe=300), specials=("pad",))


def prepared_masked(folder: Path) -> Prepared:
    for number in range(40):
        lines = (f"line {i} of text {number}: {i} times {number} is {i * number}, and so on." for i in range(40))
        (folder / f"{number}.txt").write_text("\n".join(lines))
    return prepare(TextFiles(text=[str(folder / "*.txt")]), Bpe(bpe=300), specials=("mask",))


def prepared_chats(folder: Path) -> Prepared:
    turns = [
        [{"role": "user", "content": f"What is {n} and {n % 13}?"},
         {"role": "assistant", "content": f"{n} and {n % 13} make {n + n % 13}, I would say."}]
        for n in range(300)
    ]  # fmt: skip
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    return prepare(Chat(chat=[str(path)]), Bpe(bpe=300))


def prepared_tasks(root: Path) -> dict[str, Prepared]:
    """The data of `masked_lm`, `t5`, `bart` and `chat`."""
    makers = {"masked_lm": prepared_masked, "t5": prepared_pairs, "chat": prepared_chats}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELECTBENCH_CACHE", str(root / "cache"))
        made = {}
        for name, maker in makers.items():
            (root / name).mkdir()
            made[name] = maker(root / name)
    return {**made, "bart": made["t5"]}


def job(task: str, model: dict[str, Any], data: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What `Trials.order` is given beside its defaults."""
    return {
        "task": task, "model": model, "data": data, "seq_len": LENGTH, "global_batch_size": SEQUENCES,
        "max_steps": STEPS, "lr_schedule": {"name": "constant"}, "eval": {"tokens": 600}, **more,
    }  # fmt: skip


MASKED = job("masked_lm", BERT, {"text": ["unused"]})
T5_PAIRS = job("seq2seq", T5, {"pairs": ["unused.tsv"]})
BART_PAIRS = job("seq2seq", BART, {"pairs": ["unused.tsv"]})
CHATS = job("causal_lm", {"family": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2}, {"chat": ["unused.jsonl"]})


def made(kind: Any, config: Any, seed: int) -> Any:
    """A model of transformers with the weights that a trial of this seed begins with."""
    torch.manual_seed(derived_seed(seed, "weights"))
    return kind._from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def plain_bert(vocab_size: int, seed: int) -> Any:
    config = BertConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=128, vocab_size=vocab_size,
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=None,
    )  # fmt: skip
    return made(BertForMaskedLM, config, seed)


def plain_t5(vocab_size: int, seed: int, **more: Any) -> Any:
    config = T5Config(
        num_layers=2, d_model=32, num_heads=2, d_kv=16, d_ff=128, vocab_size=vocab_size, dropout_rate=0.0,
        pad_token_id=None, eos_token_id=None, decoder_start_token_id=None, **more,
    )  # fmt: skip
    return made(T5ForConditionalGeneration, config, seed)


def plain_bart(vocab_size: int, seed: int) -> Any:
    config = BartConfig(
        encoder_layers=2, decoder_layers=2, d_model=32, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=vocab_size, max_position_embeddings=LENGTH,
        dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        decoder_start_token_id=None, forced_eos_token_id=None,
    )  # fmt: skip
    return made(BartForConditionalGeneration, config, seed)


def order_of(sequences: int, seed: int) -> Any:
    """The first epoch's."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, "order", 0))).permutation(sequences)


def pairs_that_fit(data: Prepared, *, heldout: bool = False) -> list[tuple[list[int], list[int]]]:
    """Source and target ids of every pair that has no side longer than LENGTH, read pair by pair."""
    tokens = list((data.heldout() if heldout else data.train()).tolist())
    lengths = data.lengths("heldout") if heldout else data.lengths("train")
    assert lengths is not None
    found, place = [], 0
    for source, target in lengths.tolist():
        both = tokens[place : place + source], tokens[place + source : place + source + target]
        place += source + target
        if max(source, target) <= LENGTH:
            found.append(both)
    return found


def pair_loss(model: Any, pair: tuple[list[int], list[int]], start: int) -> torch.Tensor:
    """Summed loss of one target, without a pad in sight."""
    source, target = (torch.tensor([side]) for side in pair)
    given = torch.cat([torch.tensor([[start]]), target[:, :-1]], dim=1)
    logits = model(input_ids=source, decoder_input_ids=given).logits
    return F.cross_entropy(logits[0], target[0], reduction="sum")


class PlainTraining:
    """AdamW with decay on matrices, a constant rate, clipping at 1."""

    def __init__(self, model: Any) -> None:
        self.model = model
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), fused=True)
        self.losses: list[float] = []
        self.norms: list[float] = []

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.norms.append(float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)))
        self.optimizer.step()
        self.losses.append(loss.item())

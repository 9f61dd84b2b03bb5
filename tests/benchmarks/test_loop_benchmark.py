"""What the training loop costs beyond a bare PyTorch loop on the same model, batch, optimizer and clipping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  # noqa: N812
from torch.nn.parallel import DistributedDataParallel

from selectbench.choices import Choices
from selectbench.record.record import NOTHING, Trial
from selectbench.record.wire import Order
from selectbench.suite.job import Job, shares
from selectbench.worker.batches import CausalBatches, TokenStream
from selectbench.worker.engine import DdpEngine, SingleEngine
from selectbench.worker.loop import train_with_engine
from selectbench.worker.model import new_model
from selectbench.worker.recorder import Setting
from selectbench.worker.runtime import SINGLE_RANK, CpuMemory, Whereabouts

PAIRS, STEPS, SEQUENCES, LENGTH, VOCABULARY = 9, 60, 16, 128, 2048
JOB = Job.model_validate(
    {
        "model": {"family": "gpt2", "n_layer": 4, "n_embd": 128, "n_head": 4}, "tokenizer": {"bpe": VOCABULARY},
        "seq_len": LENGTH, "global_batch_size": SEQUENCES, "max_steps": STEPS, "eval": "none",
        "lr_schedule": {"name": "constant"}, "timing": {"warmup_steps": 1},
    }
)  # fmt: skip
# So small a learning rate that the weights, which both loops share, stay where they were drawn.
SETTINGS = {"optimizer": {"name": "adamw", "lr": 1e-9}, "micro_batch_size": SEQUENCES}
TOKENS = np.random.Generator(np.random.PCG64(0)).integers(0, VOCABULARY, 200_000).astype(np.uint16)


def our_loop(engine: Any, choices: Choices) -> Callable[[], float]:
    order = Order(
        trial=Trial(trial_id="t", option="o", seed=0, settings=NOTHING), job=JOB, choices=choices, device="cpu",
        threads=2, world_size=1, data_folder="", trial_folder="", weights_folder="", min_timed_seconds=0.0,
    )  # fmt: skip

    def seconds() -> float:
        setting = Setting(
            order=order, world=SINGLE_RANK, module=None, loss=choices.loss.build(), batches=batches(),
            stream=TokenStream(SEQUENCES, LENGTH + 1, "cpu"), shares=shares(JOB.lr_schedule, STEPS),
            held_out=None,
            emit=lambda event: None, memory=CpuMemory(), whereabouts=Whereabouts(),
        )  # fmt: skip
        start = time.perf_counter()
        trained = train_with_engine(setting, engine)
        assert trained.recorder.steps_done == STEPS
        return time.perf_counter() - start

    return seconds


def batches() -> CausalBatches:
    return CausalBatches(TOKENS, seq_len=LENGTH, global_batch_size=SEQUENCES, seed=0, device="cpu")


def bare_loop(model: Any, optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    made = batches()
    batch = made.sequences_at(made.sample_indices(0))

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            # Kept to the next forward pass, they would cost the bare loop memory and some speed.
            del logits, loss
        return time.perf_counter() - start

    return seconds


def compare(benchmark: Any, ours: Callable[[], float], bare: Callable[[], float], what: str) -> None:
    bare(), ours()
    pairs: list[tuple[float, float]] = []

    def one_pair() -> None:
        ours_first = len(pairs) % 2 == 0
        first = ours() if ours_first else None
        theirs = bare()
        pairs.append((first or ours(), theirs))

    benchmark.pedantic(one_pair, rounds=PAIRS, iterations=1)
    ratios = sorted(theirs / own for own, theirs in pairs)
    benchmark.extra_info["tokens_per_second_ratio_median"] = median(ratios)
    benchmark.extra_info["tokens_per_second_ratios"] = ratios
    shown = f"median of {len(ratios)} pairs {median(ratios):.4f} ({ratios[0]:.4f} to {ratios[-1]:.4f})"
    print(f"\n{what}: {shown}")


def test_loop_against_bare_pytorch(benchmark: Any) -> None:
    torch.set_num_threads(2)
    choices = Choices.model_validate(SETTINGS)
    engine = SingleEngine(new_model(JOB, VOCABULARY, attention="sdpa"), JOB, choices, SINGLE_RANK)
    compare(
        benchmark,
        our_loop(engine, choices),
        bare_loop(engine.module, engine.optimizers[0]),
        "our tokens/s over a bare loop's",
    )


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_loop_at_one_rank_against_bare_ddp(benchmark: Any, one_rank: None) -> None:
    torch.set_num_threads(2)
    choices = Choices.model_validate({**SETTINGS, "strategy": "ddp"})
    engine = DdpEngine(new_model(JOB, VOCABULARY, attention="sdpa"), JOB, choices, SINGLE_RANK)
    model = new_model(JOB, VOCABULARY, attention="sdpa")
    bare = DistributedDataParallel(model, gradient_as_bucket_view=True)
    compare(
        benchmark,
        our_loop(engine, choices),
        bare_loop(bare, choices.optimizer.build(model)[0]),
        "our tokens/s over a bare DDP loop's",
    )

"""What the training loop costs beyond a bare PyTorch loop on the same model, batch, optimizer and clipping."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from selectbench.choices import Choices
from selectbench.suite.job import Job
from selectbench.worker.batches import Batches
from selectbench.worker.engine import SingleEngine
from selectbench.worker.loop import TrainingLoop
from selectbench.worker.memory import training_memory
from selectbench.worker.model import build_model
from selectbench.worker.schedule import shares
from selectbench.worker.step import OptimizerStep
from selectbench.worker.token_stream import TokenStream

PAIRS, STEPS, SEQUENCES, LENGTH, VOCABULARY = 9, 60, 16, 128, 2048
JOB = Job.model_validate(
    {
        "model": {"family": "gpt2", "n_layer": 4, "n_embd": 128, "n_head": 4}, "tokenizer": {"bpe": VOCABULARY},
        "seq_len": LENGTH, "global_batch_size": SEQUENCES, "max_steps": STEPS, "eval": "none",
        "lr_schedule": {"name": "constant"}, "timing": {"warmup_steps": 1},
    }
)  # fmt: skip
# So small a learning rate that the weights, which both loops share, stay where they were drawn.
CHOICES = Choices.model_validate({"optimizer": {"name": "adamw", "lr": 1e-9}, "micro_batch_size": SEQUENCES})
TOKENS = np.random.Generator(np.random.PCG64(0)).integers(0, VOCABULARY, 200_000).astype(np.uint16)


def our_seconds(model, engine, batches):
    step = OptimizerStep(
        forward=model, engine=engine, batches=batches, stream=TokenStream(SEQUENCES, LENGTH, "cpu"),
        precision=CHOICES.precision, device="cpu", micro_batch_size=SEQUENCES,
        tokens_per_step=JOB.tokens_per_step, clip_norm=1.0,
    )  # fmt: skip
    loop = TrainingLoop(
        job=JOB, module=model, optimizer_step=step, shares=shares(JOB.lr_schedule, STEPS), held_out=None,
        device="cpu", min_timed_seconds=0.0, emit=lambda event: None, memory=training_memory("cpu"),
        count_compilations=lambda: 0,
    )  # fmt: skip
    start = time.perf_counter()
    loop.run()
    assert loop.steps_done == STEPS
    return time.perf_counter() - start


def bare_seconds(model, optimizer, batch):
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


def test_loop_against_bare_pytorch(benchmark):
    torch.set_num_threads(2)
    model = build_model(JOB, CHOICES, vocab_size=VOCABULARY, seed=0, device="cpu").module
    engine = SingleEngine(
        list(model.parameters()), CHOICES.optimizer.build(model), device="cpu", gradient_scaling=False
    )
    batches = Batches(TOKENS, seq_len=LENGTH, global_batch_size=SEQUENCES, seed=0, device="cpu")
    batch = batches.sequences_at(batches.sample_indices(0))
    bare_seconds(model, engine.optimizers[0], batch)
    pairs = []

    def one_pair():
        ours_first = len(pairs) % 2 == 0
        first = our_seconds(model, engine, batches) if ours_first else None
        bare = bare_seconds(model, engine.optimizers[0], batch)
        pairs.append((first or our_seconds(model, engine, batches), bare))

    benchmark.pedantic(one_pair, rounds=PAIRS, iterations=1)
    ratios = [bare / ours for ours, bare in pairs]
    benchmark.extra_info["tokens_per_second_ratio_median"] = median(ratios)
    benchmark.extra_info["tokens_per_second_ratios"] = ratios
    print(f"\nour tokens/s over a bare loop's, median of {len(ratios)} pairs: {median(ratios):.4f}; {ratios}")

"""Trains cells of the matrix optimizer x strategy x precision, each on forked ranks, and writes what they saw.

Run as a program with the path of the file to write: a process without threads of its own, so that it can fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from selectbench.choices import Choices
from selectbench.suite.job import Job
from selectbench.worker.evaluation import begin_training
from selectbench.worker.runtime import World, autocast

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.3},
    "sgd foreach": {"name": "sgd", "lr": 0.3, "implementation": "foreach"},
    "adam": {"name": "adam", "lr": 3e-3},
    "adamw": {"name": "adamw", "lr": 3e-3},
    "adafactor": {"name": "adafactor", "lr": 1e-2},
    "lion": {"name": "lion", "lr": 1e-3},
    "muon": {"name": "muon", "lr": 1e-2},
    "adamw_8bit": {"name": "adamw_8bit", "lr": 3e-3},
    "paged_adamw_8bit": {"name": "paged_adamw_8bit", "lr": 3e-3},
    "lion_8bit": {"name": "lion_8bit", "lr": 1e-3},
    "ademamix_8bit": {"name": "ademamix_8bit", "lr": 3e-3},
    "schedule_free_adamw": {"name": "schedule_free_adamw", "lr": 3e-3},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "single": {"name": "single"},
    "ddp": {"name": "ddp"},
    "fsdp": {"name": "fsdp"},
    **{f"zero {stage}": {"name": "zero", "stage": stage} for stage in (1, 2, 3)},
}
PRECISIONS = ("fp32", "bf16_mixed", "fp16_mixed", "bf16_master", "bf16_pure")  # tf32 needs a GPU
STEPS, BATCH, SEQ_LEN, VOCABULARY = 4, 4, 16, 300
HANGS_AFTER_SECONDS = 20
NO_REPLY = "hangs or died"


def choices_of(optimizer: str, strategy: str, precision: str) -> Choices:
    """Of one cell."""
    ranks = 1 if strategy == "single" else 2
    return Choices.model_validate({
        "optimizer": OPTIMIZERS[optimizer], "strategy": STRATEGIES[strategy], "precision": precision,
        "micro_batch_size": BATCH // ranks, "world_size": ranks,
    })  # fmt: skip


def job() -> Job:
    model = {"family": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2}
    return Job.model_validate({
        "model": model, "data": {"text": ["unused"]}, "tokenizer": {"bpe": VOCABULARY}, "seq_len": SEQ_LEN,
        "global_batch_size": BATCH, "max_steps": STEPS, "clip_norm": 0.5,
    })  # fmt: skip


def train(choices: Choices, world: World) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step, the same on every rank."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=32, n_head=2, vocab_size=VOCABULARY, n_positions=SEQ_LEN, bos_token_id=0,
        eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False,
    )  # fmt: skip
    module, class_name = choices.strategy.engine.split(":")
    engine = getattr(importlib.import_module(module), class_name)(
        GPT2LMHeadModel(config).train(), job(), choices, world
    )
    begin_training(engine.optimizers)
    tokens = torch.randint(0, VOCABULARY, (STEPS, BATCH, SEQ_LEN + 1))
    seen = []
    for step in range(STEPS):
        engine.begin_step((step + 1) / STEPS)
        mine = tokens[step].chunk(world.size)[world.rank]
        with engine.micro_batch(is_last=True):
            with autocast(choices.precision, world.device_type):
                logits = engine.forward(mine[:, :-1].contiguous()).logits
            loss = choices.loss.build()(logits.float(), mine[:, 1:]) / (BATCH * SEQ_LEN)
            engine.backward(loss)
        norm, _ = engine.clip_and_step(0.5)
        seen.append((float(world.total(loss.detach().clone())), float(norm)))
    return seen


def outcome_of(cell: list[str], world: World) -> dict[str, Any]:
    try:
        return {"steps": train(choices_of(*cell), world)}
    except Exception as error:  # any of them is the cell's outcome
        return {"raised": f"{type(error).__name__}: {error}"[:300]}


def rank_main(rank: int, size: int, port: int, cells: Connection) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    if size > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    with contextlib.suppress(EOFError):
        while True:
            cells.send(outcome_of(cells.recv(), World(rank, size, "cpu")))
    os._exit(0)


class Ranks:
    """Forked ranks with one process group, which train cell after cell."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("fork")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pipes = [context.Pipe() for _ in range(size)]
        self.near = [near for near, _ in pipes]
        self.processes = [
            context.Process(target=rank_main, args=(rank, size, port, far)) for rank, (_, far) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def run(self, cell: list[str]) -> dict[str, Any]:
        """What the ranks saw; an error on one of them only, and a rank that hangs or dies, are said."""
        for connection in self.near:
            connection.send(cell)
        replies = self._replies()
        if any("raised" in reply for reply in replies):
            return {"raised": [reply.get("raised") for reply in replies]}
        return replies[0]

    def _replies(self) -> list[dict[str, Any]]:
        replies: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + HANGS_AFTER_SECONDS
        while len(replies) < len(self.near) and (left := deadline - time.monotonic()) > 0:
            waiting = [c for i, c in enumerate(self.near) if i not in replies]
            for connection in wait(waiting, left):
                with contextlib.suppress(EOFError):
                    replies[self.near.index(connection)] = connection.recv()
            if not all(process.is_alive() for process in self.processes):
                break
        return [replies.get(i, {"raised": NO_REPLY}) for i in range(len(self.near))]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def run_cells(cells: list[list[str]], size: int) -> list[dict[str, Any]]:
    """New ranks after a cell that raised, as it may have left collectives unfinished."""
    found: list[dict[str, Any]] = []
    ranks = Ranks(size)
    for cell in cells:
        found.append({"cell": cell, **ranks.run(cell)})
        if "steps" not in found[-1]:
            ranks.end()
            ranks = Ranks(size)
    ranks.end()
    return found


def main() -> None:
    logging.set_verbosity_error()
    for module in ("bitsandbytes", "selectbench.worker.engine_zero", "selectbench.worker.engine"):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    found: list[dict[str, Any]] = []
    # DeepSpeed keeps the autocast of the first engine for the process: new ranks for every precision.
    for strategy, precision in itertools.product(STRATEGIES, PRECISIONS):
        cells = [[optimizer, strategy, precision] for optimizer in OPTIMIZERS]
        found += run_cells(cells, 1 if strategy == "single" else 2)
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

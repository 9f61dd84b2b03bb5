"""Imported by the trial server: what an option's name says happens inside a real trial."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as dist

import selectbench.worker.step as step_module
import selectbench.worker.trial as trial_module

AT_STEP = 3


def _misbehave(what: str, rank: int) -> None:
    if rank != 1:
        return
    if what == "rank_killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "rank_hangs":
        while True:
            time.sleep(3600)  # the bench ends it
    elif what == "rank_hangs_in_collective":
        dist.recv(torch.zeros(1), src=0)  # which nobody sends
    elif what == "rank_out_of_memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB (planted)")
    elif what == "rank_raises":
        print("rank 1 says goodbye", flush=True)
        raise ValueError("planted failure of a rank")


_run = step_module.OptimizerStep.run
_mapped = trial_module.mapped_model
_rank = trial_module.run_rank


def run(self, step, share):
    if step == AT_STEP:
        self.whereabouts.enter("forward pass", step)
        _misbehave(os.environ.get("PLANTED", ""), self.world.rank)
    return _run(self, step, share)


def mapped_model(order, *arguments):
    module = _mapped(order, *arguments)
    if order.trial.option == "large_embeddings":
        # Hidden states' gradients, scaled by the first 65536, then exceed fp16's 65504.
        module.transformer.wte.weight.data = module.transformer.wte.weight.data * 10_000
    return module


def run_rank(order, *arguments):
    os.environ["PLANTED"] = order.trial.option
    _rank(order, *arguments)


step_module.OptimizerStep.run = run
trial_module.mapped_model = mapped_model
trial_module.run_rank = run_rank

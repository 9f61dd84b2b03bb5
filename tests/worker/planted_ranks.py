"""Imported by the trial server: what an option's name says happens inside a real trial."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from dataclasses import replace as replaced
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from device_waits import Waits
from msgspec.structs import replace
from watched_logits import Logits

import selectbench.worker.engine as engine_module
import selectbench.worker.engine_zero as engine_zero_module
import selectbench.worker.loop as loop_module
import selectbench.worker.ranks as ranks_module
import selectbench.worker.trial as trial_module
from selectbench.machine import WAIT_VARIABLES

AT_STEP = 3
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
"""Of sched.h; `os` has them from Python 3.12."""


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
    elif what == "rank_ended_by_library":
        os.write(2, b"Error out of memory at line 88 in file /src/csrc/ops.cu\n")  # as bitsandbytes does
        os._exit(1)
    elif what == "rank_raises":
        print("rank 1 says goodbye", flush=True)
        raise ValueError("planted failure of a rank")


_ranks = trial_module.run_ranks
_run = loop_module.OptimizerStep.run
_mapped = trial_module.mapped_model
_rank = trial_module.run_rank
redirect = ranks_module.redirect


def run(self, step, share):
    if step == AT_STEP:
        self.whereabouts.enter("forward pass", step)
        _misbehave(os.environ.get("PLANTED", ""), self.world.rank)
    return _run(self, step, share)


def mapped_model(order, *arguments):
    module = _mapped(order, *arguments)
    if order.trial.option == "one_more_parameter":
        module.extra = torch.nn.Parameter(torch.zeros(1))
    if order.trial.option == "large_embeddings":
        # Hidden states' gradients, scaled by the first 65536, then exceed fp16's 65504.
        module.transformer.wte.weight.data = module.transformer.wte.weight.data * 10_000
    if order.trial.option == "buffers_elsewhere":
        for part in module.modules():
            part._buffers |= {name: Elsewhere(buffer) for name, buffer in part._buffers.items()}
    return module


class Elsewhere(torch.Tensor):
    """A buffer in memory that the world's device can't reach: it can be copied from there, and nothing else."""

    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device="cuda")

    def __init__(self, value):
        self.value = value

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.empty_like.default) and "device" in kwargs:
            return function(args[0].value, **kwargs)
        if function in (torch.ops.aten.clone.default, torch.ops.aten.detach.default):
            return cls(args[0].value)
        raise RuntimeError(f"{function}: expected all tensors to be on the same device")


def _without_memory(*_, **__):
    raise dist.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error, NCCL 2.29.3\nncclUnhandledCudaError: "
        "Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
    )


def run_rank(order, *arguments):
    os.environ["PLANTED"] = order.trial.option
    if order.trial.option == "shows_how_it_waits":
        print("waits:", json.dumps({name: os.environ.get(name) for name in WAIT_VARIABLES}), flush=True)
    if order.trial.option == "logits_are_to_be_gone":
        Logits(pytest.MonkeyPatch()).must_be_gone()
    if order.trial.option == "waits_one_to_three_times":
        engine_zero_module.ZeroEngine.clip_and_step = _waiting(engine_zero_module.ZeroEngine.clip_and_step)
    _rank(order, *arguments)
    loaded = sorted(n for n, m in sys.modules.items() if n.partition(".")[0] == "selectbench" and m.__file__)
    Path(order.trial_folder, f"loaded{os.getpid()}.json").write_text(json.dumps(loaded))


loop_module.OptimizerStep.run = run
trial_module.mapped_model = mapped_model
trial_module.run_rank = run_rank


def _enter_a_network_without_any_interface_up():
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def _second_rank_stays_away(log):
    redirect(log)
    if log.endswith("rank1.log"):
        signal.pause()


def run_ranks(order, *arguments):
    if order.trial.option == "ranks_started_anew":
        ranks_module.is_fork_safe = lambda: False
    if order.trial.option == "no_memory_to_meet":
        ranks_module.dist.init_process_group = _without_memory
    if order.trial.option == "no_loopback":
        _enter_a_network_without_any_interface_up()
    if order.trial.option == "rank_never_comes":
        ranks_module.RENDEZVOUS_TIMEOUT = timedelta(seconds=2)
        ranks_module.redirect = _second_rank_stays_away
    _ranks(order, *arguments)


trial_module.run_ranks = run_ranks


def _planted(option: str, setting):
    """The same trial with one thing changed behind the suite's back."""
    order, batches = setting.order, setting.batches
    if option == "other_data_order":
        batches._seed += 1
    elif option == "half_the_tokens":
        indices = batches.sample_indices
        batches.sample_indices = lambda step: indices(step)[: order.job.global_batch_size // 2]
    elif option == "other_evaluation_set":
        setting.held_out = replaced(setting.held_out, whole=setting.held_out.whole.map(lambda part: part.flip(0)))
    elif option == "other_schedule":
        setting.shares = [share**2 for share in setting.shares]
    elif option.startswith("three_times_the_rate"):
        faster = order.choices.optimizer.model_copy(update={"lr": 3 * order.choices.optimizer.lr})
        setting.order = replace(order, choices=order.choices.model_copy(update={"optimizer": faster}))
    return setting


_setting = trial_module._setting
_single = engine_module.SingleEngine
_policy = engine_module._policy


def setting(order, *arguments):
    if order.trial.option == "bf16_by_policy":
        engine_module._policy = lambda working: _policy("bfloat16")
    if order.trial.option == "bf16_optimizer_state":
        _single.clip_and_step = _with_state_in_bf16(_single.clip_and_step)
    if order.trial.option == "fewer_steps_applied":
        _single.clip_and_step = _leaving_out_the_third(_single.clip_and_step)
    if order.trial.option == "other_initial_weights":
        other = replace(order.trial, seed=order.trial.seed + 1)
        mapped = _setting(replace(order, trial=other), *arguments).module
        made = _setting(order, *arguments)
        made.module = mapped
        return made
    return _planted(order.trial.option, _setting(order, *arguments))


def _waiting(step):
    def clip_and_step(self, max_norm):
        with Waits() as waits:
            result = step(self, max_norm)
        assert 1 <= len(waits.found) <= 3, waits.found
        return result

    return clip_and_step


def _with_state_in_bf16(step):
    def clip_and_step(self, max_norm):
        result = step(self, max_norm)
        for state in self.optimizers[0].state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].bfloat16()
        self.optimizers[0].__class__.step = lambda *_: None  # what a fused kernel can't take does not matter here
        return result

    return clip_and_step


def _leaving_out_the_third(step):
    calls = []

    def clip_and_step(self, max_norm):
        calls.append(1)
        norm, applied = step(self, max_norm)
        return norm, applied if len(calls) != 3 else ~applied

    return clip_and_step


trial_module._setting = setting

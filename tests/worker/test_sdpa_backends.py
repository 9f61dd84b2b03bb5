"""The certificate's word on attention is what ran: eagerly, in a compiled graph, in every loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # noqa: N812
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import default_partition
from torch.nn.attention import SDPBackend, sdpa_kernel
from worker.conftest import LLAMA

from selectbench.worker.attention import SdpaBackends, _backend, backends_of

JOB = {"max_steps": 2, "eval": {"tokens": 200, "at_start": True}, "timing": {"warmup_steps": 1}}
FORCED = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
forced = pytest.mark.parametrize("backend", FORCED)


@forced
@pytest.mark.parametrize("model", [None, LLAMA], ids=["gpt2", "llama"])
def test_an_eager_forward_pass_tells_what_it_called(trials, backend, model):
    job = {**JOB, **({"model": model} if model else {})}
    with sdpa_kernel(FORCED[backend]):
        assert trials.finished(job=job).identity.sdpa_backends == [backend]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed", "bf16_master"])
def test_left_to_itself_it_says_what_torch_would_choose(trials, precision, checkpointing):
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    q, k, v = (torch.randn(8, 2, 32, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    choice = SDPBackend(torch._fused_sdp_choice(q, k, v, is_causal=True))
    found = trials.finished(job=JOB, precision=precision, activation_checkpointing=checkpointing).identity
    assert [FORCED[name] for name in found.sdpa_backends] == [choice]


def test_the_eager_formula_calls_no_backend(trials):
    found = trials.finished(job=JOB, attention="eager").identity
    assert (found.attention, found.sdpa_backends) == ("eager", [])


def test_dropout_on_a_cpu_leaves_flash(trials):
    model = {"family": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "dropout": 0.1}
    assert trials.finished(job={**JOB, "model": model}).identity.sdpa_backends == ["math"]


@forced
@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing": True}, {"precision": "bf16_mixed"}], ids=str)
def test_a_compiled_graph_tells_what_is_in_it(trials, backend, settings):
    graphs: list[set[str]] = []
    with joint_graphs(graphs), sdpa_kernel(FORCED[backend]):
        trials.finished(job=JOB, compile="default", **settings)
    assert set.union(*graphs) == {backend}


@contextmanager
def joint_graphs(found: list[set[str]]) -> Iterator[None]:
    """torch.compile as far as the graph of forward and backward pass, which then runs as it is."""

    def partition(graph: torch.fx.GraphModule, *more: Any, **named: Any) -> Any:
        found.append(backends_of(graph.graph))
        return default_partition(graph, *more, **named)

    def as_it_is(graph: torch.fx.GraphModule, inputs: object) -> Any:
        from functorch.compile import make_boxed_func

        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        backend = aot_autograd(fw_compiler=as_it_is, partition_fn=partition)
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@forced
@pytest.mark.parametrize("framework", ["native", "hf_trainer"])
def test_a_graph_that_inductor_compiles_is_seen(trials, backend, framework):
    torch._dynamo.reset()  # a trial has a process of its own
    with sdpa_kernel(FORCED[backend]):
        found = trials.finished(job=JOB, compile="default", framework=framework).identity
    assert found.compiled
    assert found.sdpa_backends == [backend]


def test_every_fused_operation_of_torch_is_known():
    names = {name.removeprefix("aten::").partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    found = {
        name: _backend(getattr(torch.ops.aten, name).default)
        for name in names
        if name.startswith("_scaled_dot_product")
    }
    assert {name: backend for name, backend in found.items() if backend} == {
        "_scaled_dot_product_flash_attention": "flash",
        "_scaled_dot_product_flash_attention_for_cpu": "flash",
        "_scaled_dot_product_efficient_attention": "efficient",
        "_scaled_dot_product_cudnn_attention": "cudnn",
        "_scaled_dot_product_fused_attention_overrideable": "fused",
    }
    assert all("backward" in name or "math" in name for name, backend in found.items() if not backend)


def test_an_evaluation_is_no_training():
    class Attention(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    module, seen = Attention(), SdpaBackends()
    seen.watch_first_forward(module)
    with torch.no_grad():
        module(torch.ones(1, 1, 2, 8))
    assert seen.names is None
    with pytest.raises(RuntimeError):
        module(torch.ones(1, 1, 2, 8, requires_grad=True) @ torch.ones(3, 3))
    module(torch.ones(1, 1, 2, 8, requires_grad=True))
    assert seen.names == ["flash"]
    assert not module._forward_hooks
    assert not module._forward_pre_hooks

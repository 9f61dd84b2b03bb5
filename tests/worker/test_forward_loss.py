"""What becomes of the logits, and of the loss under torch.compile."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  # noqa: N812
from watched_logits import Logits
from worker.test_own_loop import LOOP

from selectbench.record.wire import Finished
from selectbench.worker.loop import OwnTrial
from selectbench.worker.runtime import Whereabouts, World
from selectbench.worker.trial import run_rank

JOB = {"max_steps": 6, "eval": "none", "timing": {"warmup_steps": 1}}


@pytest.fixture
def logits(monkeypatch):
    return Logits(monkeypatch)


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed"])
@pytest.mark.parametrize("framework", ["native", "hf_trainer"])
def test_logits_are_gone_when_the_backward_pass_begins(trials, logits, framework, precision):
    trials.finished(job=JOB, micro_batch_size=4, framework=framework, precision=precision)
    assert logits.alive_in_backward == [0] * 12


def test_so_they_are_in_the_documented_own_loop(trials, logits, tmp_path):
    shown = inspect.cleandoc(OwnTrial.__doc__).split("\n\n", 2)[2]
    (tmp_path / "documented_loop.py").write_text(f"import torch\n\n{shown}")
    trials.finished(job=JOB, framework="documented_loop:train", code=[str(tmp_path)])
    assert logits.alive_in_backward == [0] * 6


def test_a_loop_that_holds_them_is_seen_to(trials, logits, tmp_path):
    (tmp_path / "holding_loop.py").write_text(LOOP)
    trials.finished(job=JOB, framework="holding_loop:train", code=[str(tmp_path)])
    assert logits.alive_in_backward == [1] * 6


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def finished_by_one_rank(trials: Any, **settings: Any) -> Finished:
    """In this process, by a group of one."""
    events: list[Any] = []
    run_rank(
        trials.order(job=JOB, **settings), World(0, 1, "cpu"), events.append, Whereabouts(), time.perf_counter()
    )
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1]


STRATEGIES = [{"name": "ddp"}, {"name": "fsdp"}, *({"name": "zero", "stage": stage} for stage in (1, 2, 3))]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_no_wrapper_holds_them(launched, strategy):
    if strategy["name"] == "zero":
        pytest.importorskip("deepspeed")
    launched.finished(
        job=JOB, micro_batch_size=2, world_size=2, strategy=strategy, option="logits_are_to_be_gone"
    )  # a rank that finds them alive raises


CALLS = {F.scaled_dot_product_attention: "attention", F.cross_entropy: "loss"}


@contextmanager
def dynamo_graphs(found: list[set[str]]) -> Iterator[None]:
    """torch.compile as far as Dynamo's graphs, which run as they are: the function's calls in each."""

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Any:
        targets = {node.target for part in graph.modules() if hasattr(part, "graph") for node in part.graph.nodes}
        found.append({word for call, word in CALLS.items() if call in targets})
        return graph.forward

    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed", "bf16_master"])
def test_model_and_loss_are_one_graph(trials, precision):
    graphs: list[set[str]] = []
    eager = trials.finished(job=JOB, precision=precision)
    losses = json.loads((trials.trial_folder / "series.json").read_text())["loss_nats_per_token"]
    with dynamo_graphs(graphs):
        compiled = trials.finished(job=JOB, precision=precision, compile="default")
    assert graphs == [{"attention", "loss"}]
    # Nothing but Dynamo has been at work: it computes what the eager loop computes, to the last digit.
    assert json.loads((trials.trial_folder / "series.json").read_text())["loss_nats_per_token"] == losses
    assert compiled.identity.compute_dtype == eager.identity.compute_dtype


LOSS = """
import torch.nn.functional as F

def summed(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
"""


def test_a_loss_of_own_code_runs_as_it_is(trials, tmp_path):
    (tmp_path / "own_loss_module.py").write_text(LOSS)
    graphs: list[set[str]] = []
    with dynamo_graphs(graphs):
        found = trials.finished(job=JOB, compile="default", loss="own_loss_module:summed", code=[str(tmp_path)])
    assert graphs == [{"attention"}]
    assert found.measurement.recompilations == 0


NON_LEAF = pytest.mark.filterwarnings(  # Dynamo hides it from everybody but those who make it an error
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)


@NON_LEAF
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_in_a_wrapper_the_loss_is_a_graph_of_its_own(trials, one_rank, strategy):
    graphs: list[set[str]] = []
    with dynamo_graphs(graphs):
        found = finished_by_one_rank(trials, strategy=strategy, compile="default")
    assert graphs.count({"loss"}) == 1
    assert {"attention"} in graphs
    assert {"attention", "loss"} not in graphs
    assert found.measurement.recompilations == 0


@NON_LEAF
def test_in_an_own_loop_too(trials, tmp_path):
    (tmp_path / "compiled_loop.py").write_text(LOOP)
    graphs: list[set[str]] = []
    with dynamo_graphs(graphs):
        trials.finished(job=JOB, framework="compiled_loop:train", code=[str(tmp_path)], compile="default")
    assert graphs == [{"attention"}, {"loss"}]

"""Within a step nothing waits for the device, in any task; what waits all the same says so of itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import bitsandbytes.optim.optimizer
import pytest
import task_jobs as jobs
import torch
from torch.overrides import TorchFunctionMode
from worker.conftest import GPT2, LLAMA
from worker.device_waits import Copies, Waits

from selectbench.choices import REGISTRY
from selectbench.worker.batches import Batch, batches_of
from selectbench.worker.loop import OptimizerStep, OwnStep
from selectbench.worker.model import new_model
from selectbench.worker.runtime import SINGLE_RANK, World

SHORT = {"max_steps": 6, "eval": "none", "timing": {"warmup_steps": 1}}
TASKS = {
    "gpt2": {"model": GPT2}, "llama": {"model": LLAMA}, "chat": jobs.CHATS, "bert": jobs.MASKED,
    "t5": jobs.T5_PAIRS, "bart": jobs.BART_PAIRS,
}  # fmt: skip
DATA = {"bert": "masked_lm", "chat": "chat", "t5": "t5", "bart": "bart"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return jobs.prepared_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def on_data(trials, prepared):
    """Trials on the data of a task."""

    def of(task: str) -> Any:
        if task in DATA:
            trials.data_folder = prepared[DATA[task]].folder
        return trials

    return of


@pytest.fixture
def waits(monkeypatch):
    """Of every step of our own loop, as a list."""
    found: list[list[str]] = []
    run = OptimizerStep.run

    def watched(self: OptimizerStep, *arguments: Any) -> Any:
        with Waits() as reading, Copies() as fetched:
            made = run(self, *arguments)
        found.append(reading.found + fetched.found)
        return made

    monkeypatch.setattr(OptimizerStep, "run", watched)
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("task", TASKS)
def test_no_step_of_any_task_waits(on_data, waits, task, attention):
    on_data(task).finished(job={**TASKS[task], **SHORT}, attention=attention, micro_batch_size=4)
    assert waits == [[]] * 6


@pytest.mark.parametrize("precision", ["bf16_mixed", "fp16_mixed", "bf16_master", "bf16_pure"])
def test_no_precision_waits(trials, waits, precision):
    trials.finished(job=SHORT, precision=precision)
    assert waits == [[]] * 6


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon", "schedule_free_adamw"])
def test_no_optimizer_waits_that_does_not_say_so(trials, waits, optimizer):
    trials.finished(job=SHORT, optimizer={"name": optimizer, "lr": 1e-3})
    assert waits == [[]] * 6
    assert choice("optimizer", optimizer).waits is None


def choice(dimension: str, name: str) -> Any:
    """The class of this name."""
    return next(kind for kind in REGISTRY[dimension] if kind.model_fields["name"].default == name)


def parameters(trials: Any) -> int:
    return len(list(new_model(trials.order().job, 300, attention="sdpa", empty=True).parameters()))


def test_adafactor_reads_two_norms_of_each_parameter(trials, waits):
    trials.finished(job=SHORT, optimizer={"name": "adafactor", "lr": 1e-2})
    # And the number of the step, which torch keeps on the CPU: that waits for nothing.
    assert waits == [["_local_scalar_dense"] * 3 * parameters(trials)] * 6
    assert choice("optimizer", "adafactor").waits == "twice for every parameter in every step"


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "lion", "lion_8bit", "ademamix_8bit", "paged_adamw_8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
def test_bitsandbytes_waits_after_each_parameter(trials, monkeypatch, optimizer):
    calls: list[int] = []
    monkeypatch.setattr(bitsandbytes.optim.optimizer, "sync_gpu", lambda tensor: calls.append(1))
    trials.finished(job=SHORT, optimizer={"name": optimizer, "lr": 1e-3})
    once_more = optimizer.startswith("paged")
    assert len(calls) == 6 * (parameters(trials) + once_more)
    words = "after every parameter in every step" + ", and once more at its end" * once_more
    assert choice("optimizer", optimizer).waits == words


def test_fp16_reads_whether_to_skip_where_the_optimizer_cannot(trials, waits):
    trials.finished(
        job=SHORT, precision="fp16_mixed", optimizer={"name": "sgd", "lr": 0.1, "implementation": "foreach"}
    )
    assert waits == [["_local_scalar_dense"]] * 6
    assert choice("precision", "fp16_mixed").waits == "once in every step, unless the optimizer is fused"


def test_the_trainer_looks_at_every_loss(trials):
    counts = []
    for steps in (6, 12):
        with Waits() as found:
            trials.finished(job={**SHORT, "max_steps": steps}, micro_batch_size=4, framework="hf_trainer")
        counts.append(Counter(found.found).total())
    micro_batches = 6 * 2
    assert counts[1] - counts[0] == 2 * micro_batches
    assert choice("framework", "hf_trainer").waits == "twice for every micro-batch"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_looks_for_overflows(launched, stage):
    pytest.importorskip("deepspeed")
    strategy = {"name": "zero", "stage": stage}
    launched.finished(  # a rank whose updates wait otherwise raises
        job=SHORT, micro_batch_size=4, world_size=2, strategy=strategy, option="waits_one_to_three_times"
    )
    assert choice("strategy", "zero").waits == "one to three times in every step"


class Gpu(TorchFunctionMode):
    """Stands for CUDA's copies: notes of each whether it is from pinned memory, and whether the host goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[bool, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.is_pinned_here = True
            return pinned
        if func is torch.Tensor.to and str(args[1:2] or kwargs.get("device")).find("cuda") >= 0:
            self.copies.append((hasattr(args[0], "is_pinned_here"), bool(kwargs.get("non_blocking"))))
            return args[0].clone()
        return func(*args, **kwargs)


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.tokens, *batch.arguments, *batch.named.values(), batch.targets]


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_copied_from_pinned_memory(on_data, prepared, task):
    trials = on_data(task)
    order = trials.order(job={**TASKS[task], **SHORT})
    data = jobs.Prepared.open(trials.data_folder)
    module = new_model(order.job, data.vocab_size, attention="sdpa", empty=True)
    here, there = (batches_of(order, data, world, module) for world in (SINGLE_RANK, World(0, 1, "cuda")))
    indices = here.sample_indices(0)
    with Gpu() as gpu:
        copied = there.batch_at(indices, 0)
    assert 0 < len(gpu.copies) <= 5
    assert set(gpu.copies) == {(True, True)}
    for one, other in zip(tensors(copied), tensors(here.batch_at(indices, 0)), strict=True):
        assert torch.equal(one, other)


def test_an_own_loops_word_that_a_step_was_applied_is_not_copied():
    step = OwnStep.__new__(OwnStep)
    step._trial = type("Trial", (), {"device": torch.device("meta")})()
    with Gpu() as gpu:
        assert step._on_device(True).is_meta
    assert not gpu.copies

"""What a CPU can't show: the same agreement on CUDA devices, over NCCL where there are two."""

from __future__ import annotations

import math
from contextlib import closing
from functools import partial

import pytest
import task_jobs as jobs
import torch
from worker.test_device_waits import DATA, SHORT, TASKS

from selectbench.gpu.devices import first_difference, gpus
from selectbench.launch.trial import TrialServer, server_environment
from selectbench.worker.loop import OptimizerStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device that torch can use"),
]
RANKS = min(2, torch.cuda.device_count())
STRATEGIES = {
    "ddp": {"name": "ddp"}, "fsdp": {"name": "fsdp"}, "zero1": {"name": "zero", "stage": 1},
    "zero2": {"name": "zero", "stage": 2}, "zero3": {"name": "zero", "stage": 3},
}  # fmt: skip
TOLERANCES = {"fp32": 1e-5, "bf16_mixed": 2e-3, "fp16_mixed": 2e-3, "bf16_pure": 1e-2}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose trials run on CUDA, told its GPUs by UUID as a run tells them."""
    modules = ["selectbench.worker.trial", "transformers.models.gpt2.modeling_gpt2"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    environment = partial(server_environment, device="cuda", gpus=gpus()[:RANKS])
    with closing(TrialServer(modules, log, environment=environment)) as started:
        yield started


JOB = {"global_batch_size": 16, "max_steps": 6, "eval": {"tokens": 1000, "every_steps": 3}}


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_agree_with_one_process(launched, strategy, precision):
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    alone = launched.finished(job=JOB, micro_batch_size=8, precision=precision, device="cuda")
    losses = launched.series()["loss_nats_per_token"]
    shared = launched.finished(
        job=JOB, micro_batch_size=4, world_size=RANKS, strategy=STRATEGIES[strategy], precision=precision,
        device="cuda",
    )  # fmt: skip
    tolerance = TOLERANCES[precision]
    assert launched.series()["loss_nats_per_token"] == pytest.approx(losses, rel=tolerance)
    found, expected = (math.exp(t.measurement.final_loss) for t in (shared, alone))
    assert found == pytest.approx(expected, rel=tolerance)
    assert shared.identity.initial_weights_sha256 == alone.identity.initial_weights_sha256
    assert shared.identity.token_stream_sha256 == alone.identity.token_stream_sha256
    assert len(shared.measurement.memory_by_rank) == RANKS
    assert all(rank.peak_memory_allocated_bytes > 0 for rank in shared.measurement.memory_by_rank)
    assert first_difference(shared.devices, gpus()[:RANKS]) is None


@pytest.mark.parametrize("precision", ["tf32", "bf16_master"])
def test_regimes_of_one_gpu(launched, precision):
    reference = launched.finished(job=JOB, micro_batch_size=8, device="cuda")
    found = launched.finished(job=JOB, micro_batch_size=8, precision=precision, device="cuda")
    assert found.measurement.last_loss == pytest.approx(reference.measurement.last_loss, rel=1e-2)
    assert found.identity.matmul_tf32 == (precision == "tf32")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return jobs.prepared_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def waiting_is_an_error(monkeypatch):
    """From the second step on, inside of every step: the driver itself says what waits."""
    run = OptimizerStep.run

    def strict(self, step, share):
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            return run(self, step, share)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(OptimizerStep, "run", strict)


@pytest.mark.parametrize("task", TASKS)
def test_no_step_of_any_task_waits_for_the_gpu(trials, prepared, waiting_is_an_error, task):
    if task in DATA:
        trials.data_folder = prepared[DATA[task]].folder
    trials.finished(job={**TASKS[task], **SHORT}, micro_batch_size=4, device="cuda")


@pytest.mark.parametrize("precision", ["tf32", "bf16_mixed", "fp16_mixed", "bf16_master", "bf16_pure"])
def test_no_precision_waits_for_the_gpu(trials, waiting_is_an_error, precision):
    trials.finished(job=SHORT, precision=precision, device="cuda")


def test_a_step_that_waits_is_seen(trials, waiting_is_an_error):
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        trials.finished(job=SHORT, optimizer={"name": "adafactor", "lr": 1e-2}, device="cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed"])
def test_compiling_keeps_the_kernel_of_attention(launched, precision):
    eager = launched.finished(job=JOB, micro_batch_size=8, precision=precision, device="cuda").identity
    compiled = launched.finished(
        job=JOB, micro_batch_size=8, precision=precision, compile="default", device="cuda"
    ).identity
    assert compiled.compiled
    assert compiled.sdpa_backends == eager.sdpa_backends
    assert set(eager.sdpa_backends) <= ({"efficient"} if precision == "fp32" else {"flash", "cudnn"})

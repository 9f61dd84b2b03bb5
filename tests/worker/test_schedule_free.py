"""Schedule-free AdamW: trained as by its library's own recipe, evaluated at the average and nowhere else."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from worker.plain_training import decaying, plain_evaluation, plain_gpt2, plain_training

from selectbench.choices.execution import CompileOff, Fp16Mixed
from selectbench.choices.optimizer import ScheduleFreeAdamW
from selectbench.suite.job import LrSchedule, shape_sha256, shares
from selectbench.worker.engine import SingleEngine
from selectbench.worker.evaluation import begin_training
from selectbench.worker.runtime import SINGLE_RANK

schedulefree = pytest.importorskip("schedulefree")

LR, WARM_UP = 1e-2, 3
OPTIMIZER = {"name": "schedule_free_adamw", "lr": LR}
JOB = {"lr_schedule": {"name": "cosine", "warmup_steps": WARM_UP}, "eval": {"tokens": 1000, "every_steps": 4}}


def averaged(model, optimizer, beta1=0.9):
    """The model at the average: x out of y = (1 - beta1) z + beta1 x."""
    evaluated = copy.deepcopy(model)
    with torch.no_grad():
        for y, x in zip(model.parameters(), evaluated.parameters(), strict=True):
            x.copy_((y - (1 - beta1) * optimizer.state[y]["z"]) / beta1)
    return evaluated


def series(trials):
    return json.loads((trials.trial_folder / "series.json").read_text())


def test_it_trains_as_a_plain_loop_with_the_library_does_and_is_evaluated_at_the_average(trials, data_folder):
    finished = trials.finished(seed=3, job=JOB, optimizer=OPTIMIZER)
    model = plain_gpt2(3)
    optimizer = schedulefree.AdamWScheduleFree(decaying(model), lr=LR, warmup_steps=WARM_UP)
    optimizer.train()
    evaluations = []

    def half_way(step):
        if step == 4:
            evaluations.append(plain_evaluation(data_folder, averaged(model, optimizer)))

    losses, norms = plain_training(data_folder, 3, model, optimizer, half_way)
    evaluations.append(plain_evaluation(data_folder, averaged(model, optimizer)))
    assert series(trials)["loss_nats_per_token"] == losses
    assert series(trials)["gradient_norm"] == norms
    assert [point.loss for point in finished.evaluation_curve] == pytest.approx(evaluations, rel=1e-6)
    assert abs(plain_evaluation(data_folder, model) - evaluations[-1]) > 1e-3  # where it was trained


@pytest.mark.parametrize("precision", ["fp32", "fp16_mixed", "bf16_master", "bf16_pure"])
def test_evaluations_in_the_midst_change_nothing(trials, precision):
    found = {}
    for every in (None, 1):
        job = {**JOB, "eval": {"tokens": 100, "every_steps": every, "at_start": every is not None}}
        finished = trials.finished(job=job, optimizer=OPTIMIZER, precision=precision)
        written = series(trials)
        found[every] = (written["loss_nats_per_token"], written["gradient_norm"], finished.measurement.final_loss)
    assert len(finished.evaluation_curve) == 9
    assert found[1] == found[None]


def test_after_the_warm_up_its_learning_rate_stays(trials):
    identity = trials.finished(job=JOB, optimizer=OPTIMIZER).identity
    asked = shares(LrSchedule(name="constant", warmup_steps=WARM_UP), 8)
    assert series(trials)["learning_rate_share_of_peak"] == asked == [1 / 3, 2 / 3, *[1.0] * 6]
    assert identity.learning_rate_shape_sha256 == shape_sha256(asked)


def test_it_keeps_two_elements_a_parameter(trials):
    finished = trials.finished(job={"max_steps": 2}, optimizer=OPTIMIZER)
    (memory,) = finished.measurement.memory_by_rank
    assert memory.optimizer_state_bytes == 8 * finished.identity.parameters
    assert memory.optimizer_state_bytes == memory.parameter_bytes * 2


@pytest.mark.parametrize(
    ("strategy", "precision", "rel"), [("ddp", "fp32", 2e-6), ("fsdp", "fp32", 2e-6), ("fsdp", "bf16_master", 1e-4)]
)
def test_two_ranks_train_and_evaluate_what_one_process_does(launched, strategy, precision, rel):
    settings = {"job": JOB, "optimizer": {**OPTIMIZER, "lr": 3e-3}, "precision": precision}
    alone, losses = launched.finished(**settings), launched.series()["loss_nats_per_token"]
    shared = launched.finished(micro_batch_size=4, world_size=2, strategy=strategy, **settings)
    assert launched.series()["loss_nats_per_token"] == pytest.approx(losses, rel=rel)
    expected = [point.loss for point in alone.evaluation_curve]
    assert [point.loss for point in shared.evaluation_curve] == pytest.approx(expected, rel=rel)
    for field in ("optimizer", "optimizer_state_dtype", "learning_rate_shape_sha256"):
        assert getattr(shared.identity, field) == getattr(alone.identity, field), field


def test_a_step_that_fp16_skips_does_not_count_for_the_average():
    model = torch.nn.ParameterList([torch.ones(4)])
    (weights,) = model
    choices = SimpleNamespace(optimizer=ScheduleFreeAdamW(lr=0.1), precision=Fp16Mixed(), compile=CompileOff())
    engine = SingleEngine(model, None, choices, SINGLE_RANK)
    begin_training(engine.optimizers)
    engine.begin_step(1.0)
    engine.backward(weights.sum() * 3e38)
    assert not bool(engine.clip_and_step(None)[1])
    (group,) = engine.optimizers[0].param_groups
    assert (group["k"], group["weight_sum"], weights.tolist()) == (0, 0.0, [1.0] * 4)
    engine.begin_step(1.0)
    engine.backward(weights.sum())
    assert bool(engine.clip_and_step(None)[1])
    assert (group["k"], weights.tolist()) == (1, pytest.approx([0.9] * 4))


ELSEWHERE = """
import torch

class Elsewhere(torch.optim.SGD):
    def train(self):
        self.param_groups[0]["params"][0].data /= 3

    def eval(self):
        self.param_groups[0]["params"][0].data *= 3
"""


def test_zero_refuses_whatever_is_evaluated_elsewhere(launched, tmp_path):
    pytest.importorskip("deepspeed")
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    settings = {"strategy": {"name": "zero", "stage": 1}, "world_size": 2, "micro_batch_size": 4}
    for optimizer in (OPTIMIZER, {"name": "elsewhere:Elsewhere", "lr": 0.1}):
        outcome = launched.end(optimizer=optimizer, code=[str(tmp_path / "elsewhere.py")], **settings).outcome
        assert outcome.kind == "unsupported"
        assert "DeepSpeed keeps copies" in outcome.detail
        assert "evaluated" in outcome.detail

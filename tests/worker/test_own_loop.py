"""A training loop from a folder outside the package, against our own."""

import json
import re
import sys

import pytest

from selectbench.worker.loop import OwnLoopError

JOB = {"global_batch_size": 12, "max_steps": 6, "clip_norm": 0.5, "eval": {"tokens": 1000, "every_steps": 3}}
LOOP = """
import torch

def train(trial):
    for step in trial.steps():
        loss = torch.zeros((), device=trial.device)
        for inputs, targets, is_last in step.micro_batches():
            with trial.accumulation(is_last):
                with trial.autocast():
                    logits = trial.model(inputs).logits
                part = trial.loss(logits, targets) / trial.tokens_per_step
                backward(trial, part * trial.world_size)
            loss += part.detach()
        update(trial, step, loss)

def backward(trial, loss):
    loss.backward()

def update(trial, step, loss):
    norm = torch.nn.utils.clip_grad_norm_(trial.parameters, trial.clip_norm)
    for optimizer in trial.optimizers:
        optimizer.step()
    step.done(loss=loss, gradient_norm=norm)
"""
FP16 = """
def backward(trial, loss):
    trial.gradient_scaler.scale(loss).backward()

def update(trial, step, loss):
    (optimizer,) = trial.optimizers
    trial.gradient_scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(trial.parameters, trial.clip_norm)
    trial.gradient_scaler.step(optimizer)
    trial.gradient_scaler.update()
    step.done(loss=loss, gradient_norm=norm, applied=norm.isfinite())
"""
SILENT = """
def update(trial, step, loss):
    for optimizer in trial.optimizers:
        optimizer.step()
    step.done(loss=loss)
"""
HAS_NOT = """
def train(trial):
    trial.batches
"""
SAME = ("initial_weights_sha256", "token_stream_sha256", "evaluation_set_sha256", "tokens_per_step", "parameters",
        "learning_rate_shape_sha256", "peak_learning_rate", "steps_applied", "gradient_accumulation_steps",
        "parameter_dtype",
        "working_dtype", "gradient_dtype", "compute_dtype", "optimizer_state_dtype", "optimizer", "attention",
        "sdpa_backends", "strategy", "world_size", "reduction_dtype")  # fmt: skip


@pytest.fixture
def own(tmp_path, request):
    """Choices of a trial that runs a loop of this source, under a module name of its own."""

    def choices(source, **others):
        folder = tmp_path / "ourlib"
        folder.mkdir(exist_ok=True)
        name = f"loop_{abs(hash(request.node.name))}_{len(list(folder.iterdir()))}"
        (folder / f"{name}.py").write_text(source)
        return {"framework": f"{name}:train", "code": [str(folder)], **others}

    return choices


@pytest.fixture(autouse=True)
def same_path(monkeypatch):
    """Trials in this process put their folders on its path."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def run(trials, **settings):
    finished = trials.finished(**settings)
    return finished, json.loads((trials.trial_folder / "series.json").read_text())


def assert_the_same_job(trials, choices, *, rel, **settings):
    native, expected = run(trials, job=JOB, **settings)
    theirs, found = run(trials, job=JOB, **settings, **choices)
    assert found["loss_nats_per_token"] == pytest.approx(expected["loss_nats_per_token"], rel=rel)
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=10 * rel)
    for field in SAME:
        assert getattr(theirs.identity, field) == getattr(native.identity, field), field
    assert [p.step for p in theirs.evaluation_curve] == [3, 6]
    assert theirs.measurement.final_loss == pytest.approx(native.measurement.final_loss, rel=rel)
    assert theirs.identity.framework == choices["framework"]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_one_process(trials, own, accumulation):
    assert_the_same_job(trials, own(LOOP), rel=1e-6, micro_batch_size=12 // accumulation)


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed"])
def test_two_ranks(launched, own, precision):
    assert_the_same_job(
        launched, own(LOOP), rel=1e-5, micro_batch_size=2, world_size=2, strategy="ddp", precision=precision
    )


def test_fp16_with_the_trials_gradient_scaler(trials, own):
    assert_the_same_job(trials, own(LOOP + FP16), rel=1e-5, micro_batch_size=4, precision="fp16_mixed")


def test_settings_of_a_loop_are_its_keywords(trials, own):
    clipping = LOOP.replace("def train(trial):", "def train(trial, *, clip):\n    trial.clip_norm = clip")
    plain, clipped = own(LOOP), own(clipping)
    plain = {**plain, "job": {**JOB, "clip_norm": 0.01}}
    clipped["framework"] = {"name": clipped["framework"], "settings": {"clip": 0.01}}
    losses = [trials.finished(**one, micro_batch_size=4).measurement.final_loss
              for one in (plain, {**clipped, "job": JOB})]  # fmt: skip
    assert losses[0] == losses[1]
    assert losses[0] != trials.finished(**own(LOOP), job=JOB, micro_batch_size=4).measurement.final_loss


def test_two_optimizers_and_steps_for_timing(trials, own):
    finished = trials.finished(
        **own(LOOP, optimizer={"name": "muon", "lr": 1e-2}), min_timed_seconds=0.5, job={"max_steps": 4}
    )
    assert finished.measurement.steps_applied == 4
    assert finished.measurement.timed_seconds >= 0.5
    assert len(finished.identity.optimizer) == 2


def test_an_optimizer_that_is_evaluated_at_other_weights(trials, own):
    optimizer = {"name": "schedule_free_adamw", "lr": 3e-3}
    assert_the_same_job(trials, own(LOOP), rel=1e-6, micro_batch_size=12, optimizer=optimizer)


@pytest.mark.parametrize("where", ["one process", "two ranks"])
def test_a_gradient_norm_that_is_not_told_is_not_known(trials, launched, own, where):
    if where == "one process":
        finished, series = run(trials, **own(LOOP + SILENT))
    else:
        finished, series = run(launched, **own(LOOP + SILENT, micro_batch_size=4, world_size=2, strategy="ddp"))
    assert finished.identity.first_step_gradient_norm is None
    assert series["gradient_norm"] == [None] * 8
    assert finished.identity.first_step_loss > 0


DONE, UPDATE = "    step.done(loss=loss, gradient_norm=norm)", "        update(trial, step, loss)"
TWICE = "[*step.micro_batches()] * bool([*step.micro_batches()])"
MISTAKES = [
    ("step 0: step.done(...) was not called", DONE, "    pass"),
    ("step 0: step.done(...) was called twice", DONE, f"{DONE}\n{DONE}"),
    ("step 0: 2 of its micro-batches were not used", "            loss += part.detach()", "            break"),
    ("step 0: step.micro_batches() was not used", "step.micro_batches()", "[]"),
    ("step 0: step.micro_batches() was called twice", "step.micro_batches()", TWICE),
    ("returned after 2 steps, the job has 8", UPDATE, f"{UPDATE}\n        if step.number == 1: return"),
    ("returned after 0 steps, the job has 8", "trial.steps()", "[]"),
    ("trial.steps() was called twice", UPDATE, f"{UPDATE}\n        next(trial.steps())"),
    ("step 0: not every one of trial.optimizers made one step", "        optimizer.step()", "        pass"),
    ("step 0: step.done(loss=...): expected a scalar tensor, found float", "loss=loss", "loss=loss.item()"),
    ("step 0: step.done(loss=...): expected a scalar tensor, found shape (3,)", "loss=loss", "loss=loss.expand(3)"),
]


@pytest.mark.parametrize(("message", "right", "wrong"), MISTAKES, ids=[message for message, *_ in MISTAKES])
def test_a_loop_that_does_not_do_the_job_is_told_what_is_wrong(trials, own, message, right, wrong):
    assert LOOP.count(right) == 1
    with pytest.raises(OwnLoopError, match=re.escape(message)):
        trials.events(**own(LOOP.replace(right, wrong), micro_batch_size=4), job={"global_batch_size": 12})


def test_a_broken_loops_own_traceback_comes_out(launched, own):
    outcome = launched.end(**own(HAS_NOT)).outcome
    assert outcome.kind == "crashed"
    assert "AttributeError: 'OwnTrial' object has no attribute 'batches'" in outcome.detail
    assert "    trial.batches" in outcome.detail


@pytest.mark.parametrize(("strategy", "precision"), [("fsdp", "fp32"), ("single", "bf16_master")])
def test_what_it_can_not_do_is_unsupported(launched, own, strategy, precision):
    ranks = 1 if strategy == "single" else 2
    choices = own(LOOP, micro_batch_size=4, strategy=strategy, precision=precision, world_size=ranks)
    assert launched.end(**choices).outcome.kind == "unsupported"


HIDES_ITS_RATE = """
def update(trial, step, loss):
    norm = torch.nn.utils.clip_grad_norm_(trial.parameters, trial.clip_norm)
    for optimizer in trial.optimizers:
        for group in optimizer.param_groups:
            group["lr"] *= 3
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] /= 3
    step.done(loss=loss, gradient_norm=norm)
"""
NEVER_SYNCHRONISES = """
def train(trial):
    for step in trial.steps():
        loss = torch.zeros((), device=trial.device)
        for inputs, targets, is_last in step.micro_batches():
            with trial.accumulation(False):
                part = trial.loss(trial.model(inputs).logits, targets) / trial.tokens_per_step
                (part * trial.world_size).backward()
            loss += part.detach()
        for optimizer in trial.optimizers:
            optimizer.step()
        step.done(loss=loss)
"""


def test_a_rate_that_is_changed_for_the_update_alone_is_seen(trials, own):
    honest, _ = run(trials, job=JOB, micro_batch_size=4, **own(LOOP))
    other, _ = run(trials, job=JOB, micro_batch_size=4, **own(LOOP + HIDES_ITS_RATE))
    assert other.identity.learning_rate_shape_sha256 != honest.identity.learning_rate_shape_sha256


def test_ranks_that_drift_apart_are_no_result(launched, own):
    outcome = launched.end(
        job={"max_steps": 4, "eval": "none"}, micro_batch_size=2, world_size=2, strategy="ddp",
        **own("import torch" + NEVER_SYNCHRONISES),
    ).outcome  # fmt: skip
    assert outcome.kind == "crashed"
    assert "the ranks' weights differ after the last step" in outcome.detail.splitlines()[0]

"""transformers' Trainer against our own loop: the same job, step by step."""

import json
import math
import sys

import pytest
import torch

from selectbench.record.wire import GaveUp
from selectbench.worker import hf_trainer, trial

GPT2 = {"family": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2}

JOB = {"global_batch_size": 12, "max_steps": 6, "clip_norm": 0.5, "eval": {"tokens": 1000, "every_steps": 3}}
SAME = ("initial_weights_sha256", "token_stream_sha256", "evaluation_set_sha256", "tokens_per_step", "parameters",
        "learning_rate_shape_sha256", "peak_learning_rate", "steps_applied", "gradient_accumulation_steps",
        "parameter_dtype",
        "working_dtype", "gradient_dtype", "compute_dtype", "optimizer_state_dtype", "optimizer", "attention",
        "sdpa_backends", "strategy", "world_size", "reduction_dtype", "dropout")  # fmt: skip


def run(trials, **settings):
    finished = trials.finished(**settings)
    return finished, json.loads((trials.trial_folder / "series.json").read_text())


def assert_the_same_job(trials, *, rel, job=JOB, **settings):
    native, expected = run(trials, job=job, **settings)
    theirs, found = run(trials, job=job, framework="hf_trainer", **settings)
    assert found["loss_nats_per_token"] == pytest.approx(expected["loss_nats_per_token"], rel=rel)
    assert found["applied"] == expected["applied"]
    norms = [[math.nan if norm is None else norm for norm in each["gradient_norm"]] for each in (found, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=10 * rel, nan_ok=True)
    for field in SAME:
        assert getattr(theirs.identity, field) == getattr(native.identity, field), field
    for one, other in zip(native.evaluation_curve, theirs.evaluation_curve, strict=True):
        assert (other.step, other.loss) == (one.step, pytest.approx(one.loss, rel=rel))
    assert theirs.identity.framework == "transformers.Trainer"
    for one, other in zip(native.measurement.memory_by_rank, theirs.measurement.memory_by_rank, strict=True):
        for states in ("parameter_bytes", "gradient_bytes", "optimizer_state_bytes"):
            assert getattr(other, states) == getattr(one, states), states
    return theirs


@pytest.mark.parametrize("accumulation", [1, 3])
def test_one_process(trials, accumulation):
    assert_the_same_job(trials, rel=1e-6, micro_batch_size=12 // accumulation)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_two_ranks(launched, accumulation):
    assert_the_same_job(launched, rel=2e-6, micro_batch_size=6 // accumulation, world_size=2, strategy="ddp")


def test_what_the_environment_says_to_accelerate_is_not_taken(trials, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert trials.finished(framework="hf_trainer", job={"max_steps": 2}).identity.compute_dtype == "float32"


def test_tf32_is_not_switched_on_by_accelerate(trials, monkeypatch):
    """As its state does on a GPU where the model is to be compiled and the precision is fp32."""
    accelerate = pytest.importorskip("accelerate")
    state = accelerate.state.AcceleratorState
    state._reset_state(reset_partial_state=True)
    init, switched = state.__init__, []

    def with_tf32(self, *arguments, **settings):
        if not state._shared_state:
            torch.backends.cuda.matmul.allow_tf32 = True
            switched.append(True)
        init(self, *arguments, **settings)

    monkeypatch.setattr(state, "__init__", with_tf32)
    assert trials.finished(framework="hf_trainer", job={"max_steps": 2}).identity.matmul_tf32 is False
    assert switched


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed"])
def test_an_optimizer_that_is_evaluated_at_other_weights(trials, precision):
    optimizer = {"name": "schedule_free_adamw", "lr": 3e-3}
    assert_the_same_job(trials, rel=1e-6, micro_batch_size=4, precision=precision, optimizer=optimizer)


def test_bf16_autocast(trials):
    found = assert_the_same_job(trials, rel=1e-7, micro_batch_size=4, precision="bf16_mixed")
    assert found.identity.compute_dtype == "bfloat16"


def test_bf16_autocast_on_two_ranks(launched):
    assert_the_same_job(
        launched, rel=1e-5, micro_batch_size=2, precision="bf16_mixed", world_size=2,
        strategy={"name": "ddp", "gradient_as_bucket_view": False, "bucket_cap_mb": 0.01},
    )  # fmt: skip


@pytest.fixture
def fp16_on_a_cpu(monkeypatch):
    """What accelerate does on a GPU alone: fp16 autocast and a gradient scaler."""
    made = hf_trainer._trainer

    def trainer(setting, watch):
        trainer = made(setting, watch)
        trainer.accelerator.native_amp = True
        return trainer

    monkeypatch.setattr(hf_trainer, "_trainer", trainer)
    monkeypatch.setattr(trial, "combination_reason", lambda situation: None)


@pytest.fixture
def large_embeddings(monkeypatch):
    """Hidden states' gradients, scaled by the first 65536, then exceed fp16's 65504."""
    mapped = trial.mapped_model

    def mapped_model(*arguments):
        module = mapped(*arguments)
        module.transformer.wte.weight.data = module.transformer.wte.weight.data * 10_000
        return module

    monkeypatch.setattr(trial, "mapped_model", mapped_model)


@pytest.mark.parametrize("implementation", ["fused", "foreach"])
def test_fp16_skips_the_same_steps_and_the_schedule_goes_on(
    trials, fp16_on_a_cpu, large_embeddings, implementation
):
    found = assert_the_same_job(
        trials, rel=1e-3, job={**JOB, "max_steps": 12, "eval": "none"}, micro_batch_size=4,
        precision="fp16_mixed", optimizer={"name": "adamw", "lr": 3e-3, "implementation": implementation},
    )  # fmt: skip
    assert found.measurement.steps_skipped > 0
    assert found.measurement.steps_applied > 0
    assert found.identity.compute_dtype == "float16"


def test_without_clipping_with_dropout_and_checkpointing(trials):
    """Dropout draws the same masks: neither the Trainer's seed nor its loader disturbs the generator."""
    job = {**JOB, "clip_norm": None, "model": {**GPT2, "dropout": 0.2}}
    found = assert_the_same_job(trials, rel=1e-6, job=job, micro_batch_size=4, activation_checkpointing=True)
    assert found.identity.dropout == 0.2


MODEL = """
import torch

class Bigrams(torch.nn.Module):
    def __init__(self, vocab_size, seq_len):
        super().__init__()
        self.table = torch.nn.Embedding(vocab_size, 16)
        self.head = torch.nn.Linear(16, vocab_size)

    def forward(self, tokens):
        return self.head(self.table(tokens))
"""


def test_a_model_that_is_not_of_transformers(trials, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "ourlib"
    folder.mkdir()
    (folder / "bigrams_for_the_trainer.py").write_text(MODEL)
    job = {**JOB, "model": {"family": "bigrams_for_the_trainer:Bigrams"}}
    assert_the_same_job(
        trials, rel=1e-6, job=job, micro_batch_size=4, code=[str(folder)], precision="bf16_mixed",
        attention="sdpa",
    )  # fmt: skip


def test_it_leaves_nothing_in_the_trial_folder_and_times_more_steps(trials, capfd):
    finished = trials.finished(framework="hf_trainer", min_timed_seconds=1.0)
    assert finished.measurement.timed_seconds >= 1.0
    assert finished.measurement.timed_steps > 8
    assert finished.measurement.steps_applied == 8
    assert sorted(path.name for path in trials.trial_folder.iterdir()) == ["series.json", "weights"]
    assert "train_runtime" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"precision": "fp16_mixed"}, "precision fp16_mixed: on a CPU accelerate silently ignores fp16"),
        ({"precision": "bf16_pure"}, "precision bf16_pure: it trains fp32 weights"),
        ({"optimizer": {"name": "muon", "lr": 1e-2}}, "optimizer muon: it takes one optimizer"),
    ],
)
def test_what_it_can_not_do_is_unsupported(trials, choices, reason):
    last = trials.events(framework="hf_trainer", **choices)[-1]
    assert isinstance(last, GaveUp)
    assert last.kind == "unsupported"
    assert last.detail.startswith(f"framework hf_trainer with {reason}")


def test_accumulation_with_a_static_graph_is_unsupported(launched):
    outcome = launched.end(
        framework="hf_trainer", micro_batch_size=2, world_size=2, strategy={"name": "ddp", "static_graph": True}
    ).outcome
    assert outcome.kind == "unsupported"
    assert "static_graph" in outcome.detail

"""A model's buffers are where the rank computes, in the training and in every evaluation."""

from __future__ import annotations

import pytest
from task_jobs import BERT, prepared_masked

JOB = {"model": BERT, "task": "masked_lm", "max_steps": 3, "eval": {"tokens": 500, "every_steps": 2}}
ZERO = {stage: {"name": "zero", "stage": stage} for stage in (1, 2, 3)}
CELLS = [
    pytest.param({"name": "fsdp"}, "bf16_pure", id="fsdp-bf16_pure"),
    pytest.param(ZERO[1], "fp32", id="zero1-fp32"),
    *(
        pytest.param(strategy, precision, id=f"{name}-{precision}", marks=pytest.mark.slow)
        for name, strategy, precision in (
            ("single", {"name": "single"}, "bf16_master"), ("ddp", {"name": "ddp"}, "bf16_pure"),
            ("fsdp", {"name": "fsdp"}, "fp32"), ("fsdp", {"name": "fsdp"}, "bf16_master"),
            ("zero2", ZERO[2], "bf16_master"), ("zero3", ZERO[3], "fp32"), ("zero3", ZERO[3], "bf16_pure"),
        )
    ),
]  # fmt: skip


def losses(launched, option, strategy, precision):
    ranks = 1 if strategy["name"] == "single" else 2
    finished = launched.finished(
        option=option, job=JOB, micro_batch_size=4, world_size=ranks, strategy=strategy, precision=precision
    )
    return launched.series()["loss_nats_per_token"], [point.loss for point in finished.evaluation_curve]


@pytest.mark.parametrize(("strategy", "precision"), CELLS)
def test_buffers_that_begin_on_another_device_change_nothing(launched, strategy, precision, tmp_path, monkeypatch):
    """Where one stays there, every operation on it fails."""
    if strategy["name"] == "zero":
        pytest.importorskip("deepspeed")
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    launched.data_folder = prepared_masked(tmp_path).folder
    found = losses(launched, "buffers_elsewhere", strategy, precision)
    assert found == losses(launched, "honest", strategy, precision)


COUNTING_MODEL = """
import torch

class Counting(torch.nn.Module):
    def __init__(self, vocab_size, seq_len):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()), persistent=False)
        self.blocks = torch.nn.ModuleList([torch.nn.Embedding(vocab_size, 16), torch.nn.Linear(16, vocab_size)])

    def forward(self, tokens):
        if self.training:
            self.passes = self.passes + 1
        return self.blocks[1](self.blocks[0](tokens)) * (1 + self.passes)
"""
"""Its logits grow with the number of training passes."""


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [("single", "bf16_master"), ("fsdp", "bf16_master"), ("fsdp", "bf16_pure"), (ZERO[1], "fp32")],
    ids=str,
)
def test_what_the_training_writes_into_a_buffer_is_evaluated(launched, strategy, precision, tmp_path):
    if strategy is ZERO[1]:
        pytest.importorskip("deepspeed")
    (tmp_path / "counting_model.py").write_text(COUNTING_MODEL)
    settings = {
        "job": {"model": {"family": "counting_model:Counting"}, "max_steps": 4, "eval": {"tokens": 500}},
        "code": [str(tmp_path)],
    }
    reference = launched.finished(**settings)
    layout = {} if strategy == "single" else {"micro_batch_size": 4, "world_size": 2, "strategy": strategy}
    found = launched.finished(precision=precision, **layout, **settings)
    expected = reference.measurement.final_loss
    assert found.measurement.final_loss == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 1e-2)

"""An option that secretly does another job is found, and the difference is named; honest options are not."""

import pytest

from selectbench.analysis.ranking import rank
from selectbench.record.record import Completed, Record
from selectbench.suite.suite import Option, Suite

JOB = {"max_steps": 6}
SHARED = {"micro_batch_size": 4, "world_size": 2}


def ranking_of(launched, options):
    """The ranking of one trial of each option: name to choices, the first is the baseline."""
    rows, records = [], []
    for name, choices in options.items():
        order = launched.order(job=JOB, option=name, **choices)
        end = launched.run(order)
        assert isinstance(end.outcome, Completed), end.outcome
        rows.append(Option(name=name, choices=order.choices, differs_in=[]))
        records.append(Record(trial=order.trial, round=0, outcome=end.outcome, identity=end.finished.identity,
                              wall_seconds=end.wall_seconds, started_at="2026-01-01T00:00:00Z"))  # fmt: skip
    suite = Suite.model_validate(
        {"name": "planted", "question": "?", "profile": None, "device": "cpu", "job": order.job.model_dump(),
         "options": rows, "baseline": rows[0].name, "seeds": [0], "decide": {"constraints": []}, "limits": {},
         "resolved": {}}
    )  # fmt: skip
    return {row.option: row for row in rank(suite, records).rows}


PLANTED = {
    "other_initial_weights": {"initial_weights_sha256", "first_step_loss"},
    "other_data_order": {"token_stream_sha256"},
    "half_the_tokens": {"tokens_per_step", "token_stream_sha256", "gradient_accumulation_steps"},
    "bf16_optimizer_state": {"optimizer_state_dtype", "steps_applied"},
    "one_more_parameter": {"parameters", "trainable_parameters", "initial_weights_sha256"},
    "other_evaluation_set": {"evaluation_set_sha256"},
    "other_schedule": {"learning_rate_shape_sha256"},
    "three_times_the_rate": {"peak_learning_rate"},
    "fewer_steps_applied": {"steps_applied"},
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_difference_is_named(launched, planted):
    rows = ranking_of(launched, {"honest": {}, planted: {"micro_batch_size": 4}})
    assert rows["honest"].status == "completed"
    assert rows["honest"].identity.comparable
    assert rows[planted].status == "not_comparable"
    assert rows[planted].rank is None
    found = {violation.field for violation in rows[planted].identity.violations}
    assert found >= PLANTED[planted]
    # Nothing else is blamed but what follows: the losses and norms of other tokens or weights.
    assert found - PLANTED[planted] <= {"first_step_loss", "first_step_gradient_norm"}


@pytest.mark.parametrize("strategy", ["fsdp"])
def test_another_dtype_regime_under_the_same_name(launched, strategy):
    """What a library's switch calls bf16 may be another regime: working weights in bf16, and not autocast."""
    mixed = {**SHARED, "precision": "bf16_mixed"}
    rows = ranking_of(
        launched, {"ddp": {**mixed, "strategy": "ddp"}, "bf16_by_policy": {**mixed, "strategy": strategy}}
    )
    assert rows["bf16_by_policy"].status == "not_comparable"
    (violation, *_) = rows["bf16_by_policy"].identity.violations
    assert (violation.field, violation.baseline, violation.option) == ("working_dtype", "float32", "bfloat16")


def test_honest_strategies_differ_as_declared_and_in_nothing_else(launched):
    rows = ranking_of(launched, {
        "single": {"micro_batch_size": 8},
        "ddp": {**SHARED, "strategy": "ddp"},
        "fsdp": {**SHARED, "strategy": "fsdp"},
        "zero1": {**SHARED, "strategy": {"name": "zero", "stage": 1}},
        "zero2": {**SHARED, "strategy": {"name": "zero", "stage": 2}},
        "zero3": {**SHARED, "strategy": {"name": "zero", "stage": 3}},
        "fp16": {"precision": "fp16_mixed"},
    })  # fmt: skip
    for name, row in rows.items():
        assert row.identity.violations == [], name
        assert row.identity.not_verified == [], name
    assert rows["zero3"].identity.differs_as_declared == ["world_size", "strategy"]
    assert "compute_dtype" in rows["fp16"].identity.differs_as_declared


def test_fp16s_skipped_steps_are_shown_as_declared(launched):
    rows = ranking_of(launched, {"fp32": {}, "large_embeddings": {"precision": "fp16_mixed"}})
    assert "steps_applied" in rows["large_embeddings"].identity.differs_as_declared
    fields = {violation.field for violation in rows["large_embeddings"].identity.violations}
    assert "steps_applied" not in fields

"""What only DeepSpeed's engine has: stages, offloading, its own configuration."""

import pytest

pytest.importorskip("deepspeed")

JOB = {"global_batch_size": 8, "max_steps": 5, "clip_norm": 0.5, "eval": {"tokens": 1000, "every_steps": 2}}
PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


def zero(launched, precision="fp32", **settings):
    return launched.finished(
        job=JOB, micro_batch_size=2, world_size=2, precision=precision, strategy={"name": "zero", **settings}
    )


@pytest.fixture
def alone(launched):
    finished = launched.finished(job=JOB, micro_batch_size=4)
    return launched.series(), [point.loss for point in finished.evaluation_curve]


@pytest.mark.parametrize(
    "settings",
    [{"stage": 1}, {"stage": 2, "offload_optimizer": True}, {"stage": 3}, {"stage": 3, "config": PARTITIONED}],
    ids=str,
)
def test_evaluations_between_the_steps_leave_the_training_as_it_is(launched, alone, settings):
    series, evaluations = alone
    finished, found = zero(launched, **settings), launched.series()
    assert found["loss_nats_per_token"] == pytest.approx(series["loss_nats_per_token"], rel=2e-6)
    assert found["gradient_norm"] == pytest.approx(series["gradient_norm"], rel=2e-5)
    assert [point.loss for point in finished.evaluation_curve] == pytest.approx(evaluations, rel=2e-6)
    assert finished.identity.strategy == f"DeepSpeedEngine zero {settings['stage']}"


def test_the_resolved_configuration_is_deepspeeds(launched):
    config = zero(launched, stage=3, config=PARTITIONED).resolved_config
    assert config["train_batch_size"] == 8
    assert config["zero_optimization"]["param_persistence_threshold"] == 0
    assert config["zero_optimization"]["sub_group_size"] > 0  # a default that nobody gave


def test_states_are_divided_by_stage(launched):
    kept = {stage: zero(launched, stage=stage, config=PARTITIONED).measurement.memory_by_rank for stage in (2, 3)}
    for ranks in kept.values():
        assert ranks[0].gradient_bytes == pytest.approx(ranks[1].gradient_bytes, rel=0.1)
    whole = kept[2][0].parameter_bytes
    assert kept[2][0].gradient_bytes == pytest.approx(whole / 2, rel=0.05)
    assert kept[3][0].parameter_bytes == pytest.approx(whole / 2, rel=0.05)

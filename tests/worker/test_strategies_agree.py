"""The most important test here: every strategy trains the same job, step by step."""

import json
import math

import pytest
import torch

STRATEGIES = {
    "ddp": {"name": "ddp"},
    "ddp_static": {"name": "ddp", "static_graph": True, "gradient_as_bucket_view": False, "bucket_cap_mb": 0.01},
    "fsdp": {"name": "fsdp"},
    "fsdp_kept": {"name": "fsdp", "reshard_after_forward": False},
    "zero1": {"name": "zero", "stage": 1},
    "zero2": {"name": "zero", "stage": 2},
    "zero3": {"name": "zero", "stage": 3},
    "zero2_offload": {"name": "zero", "stage": 2, "offload_optimizer": True},
}
JOB = {"global_batch_size": 12, "max_steps": 6, "clip_norm": 0.5, "eval": {"tokens": 1000, "every_steps": 3}}


@pytest.fixture(scope="module")
def trained(launched_for_all):
    """Trains with given settings, the same ones once for all tests: what the trial told, and its series."""
    done = {}

    def train(**settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in done:
            done[key] = launched_for_all.finished(**settings), launched_for_all.series()
        return done[key]

    return train


def job_of(finished, series):
    return series["loss_nats_per_token"], series["gradient_norm"], finished.measurement.final_loss


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_what_one_process_trains(trained, strategy, accumulation):
    alone, series = trained(job=JOB, micro_batch_size=12 // accumulation)
    losses, norms, final = job_of(alone, series)
    shared, series = trained(
        job=JOB, micro_batch_size=6 // accumulation, world_size=2, strategy=STRATEGIES[strategy]
    )
    found_losses, found_norms, found_final = job_of(shared, series)
    assert found_losses == pytest.approx(losses, rel=2e-6)
    assert found_norms == pytest.approx(norms, rel=2e-5)
    assert math.exp(found_final) == pytest.approx(math.exp(final), rel=1e-4)
    assert [p.step for p in shared.evaluation_curve] == [3, 6]
    for field in ("initial_weights_sha256", "token_stream_sha256", "evaluation_set_sha256", "tokens_per_step",
                  "parameters", "learning_rate_shape_sha256", "peak_learning_rate", "parameter_dtype",
                  "gradient_dtype",
                  "optimizer_state_dtype", "optimizer", "compute_dtype", "sdpa_backends"):  # fmt: skip
        assert getattr(shared.identity, field) == getattr(alone.identity, field), field
    assert shared.identity.world_size == 2
    assert shared.identity.gradient_accumulation_steps == accumulation
    assert shared.identity.reduction_dtype == "float32"


REGIMES = {  # relative tolerance of losses, of gradient norms, of the final perplexity against one process
    "bf16_mixed": (1e-4, 1e-3, 1e-4),
    "fp16_mixed": (1e-4, 1e-3, 1e-4),
    "bf16_master": (2e-4, 5e-3, 2e-4),
    # The norm itself is rounded to bf16, but for DeepSpeed's, and so are the gradients that it is taken of.
    "bf16_pure": (2e-4, 2 * torch.finfo(torch.bfloat16).eps, 2e-4),
}
CELLS = [
    (strategy, precision)
    for strategy in ("ddp", "fsdp", "zero1", "zero2", "zero3")
    for precision in REGIMES
    if (strategy, precision) != ("ddp", "bf16_master")
]


@pytest.mark.parametrize(("strategy", "precision"), CELLS)
def test_a_precision_means_one_thing_under_every_strategy(trained, strategy, precision):
    alone, series = trained(job=JOB, micro_batch_size=4, precision=precision)
    losses, norms, final = job_of(alone, series)
    shared, series = trained(
        job=JOB, micro_batch_size=2, world_size=2, strategy=STRATEGIES[strategy], precision=precision
    )
    found_losses, found_norms, found_final = job_of(shared, series)
    of_losses, of_norms, of_perplexity = REGIMES[precision]
    assert found_losses == pytest.approx(losses, rel=of_losses)
    assert found_norms == pytest.approx(norms, rel=of_norms)
    assert math.exp(found_final) == pytest.approx(math.exp(final), rel=of_perplexity)
    for field in ("parameter_dtype", "gradient_dtype", "compute_dtype", "optimizer_state_dtype", "steps_applied",
                  "sdpa_backends"):  # fmt: skip
        assert getattr(shared.identity, field) == getattr(alone.identity, field), field
    assert shared.identity.reduction_dtype == ("bfloat16" if precision == "bf16_pure" else "float32")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero2", "zero3"])
def test_ranks_skip_the_same_fp16_steps(trained, strategy):
    job = {**JOB, "max_steps": 12, "eval": "none"}
    alone, series = trained(job=job, micro_batch_size=4, precision="fp16_mixed", option="large_embeddings")
    shared, shared_series = trained(
        job=job, micro_batch_size=2, world_size=2, strategy=STRATEGIES[strategy], precision="fp16_mixed",
        option="large_embeddings",
    )  # fmt: skip
    assert alone.measurement.steps_skipped > 0
    assert shared.measurement.steps_skipped == alone.measurement.steps_skipped
    assert shared_series["loss_nats_per_token"] == pytest.approx(series["loss_nats_per_token"], rel=1e-3)


def test_what_each_rank_keeps_is_what_the_strategy_shares_out(trained):
    """fp32 AdamW: 4 bytes a parameter for weights, 4 for gradients, 8 for moments.

    DeepSpeed adds a copy of the weights that it updates, 4; and once gradients are reduced, stage 1 too keeps
    those of its own part only.
    """
    per_rank = {
        "ddp": (4, 4, 8), "fsdp": (2, 2, 4), "fsdp_kept": (2, 2, 4), "zero1": (4, 2, 6), "zero2": (4, 2, 6),
    }  # fmt: skip
    for strategy, bytes_per_parameter in per_rank.items():
        found, _ = trained(job=JOB, micro_batch_size=6, world_size=2, strategy=STRATEGIES[strategy])
        assert [rank.rank for rank in found.measurement.memory_by_rank] == [0, 1]
        for rank in found.measurement.memory_by_rank:
            kept = (rank.parameter_bytes, rank.gradient_bytes, rank.optimizer_state_bytes)
            assert kept == pytest.approx([n * found.identity.parameters for n in bytes_per_parameter], rel=0.02)
        peaks = [rank.peak_pss_growth_bytes for rank in found.measurement.memory_by_rank]
        assert found.measurement.peak_pss_growth_bytes == max(peaks)


@pytest.mark.parametrize("evaluation", ["none", {"tokens": 500, "every_steps": 4}])
def test_an_evaluation_leaves_zero3s_shards_sharded(launched, evaluation):
    small = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    found = launched.finished(
        job={**JOB, "max_steps": 8, "eval": evaluation}, micro_batch_size=6, world_size=2,
        strategy={"name": "zero", "stage": 3, "config": small},
    )  # fmt: skip
    (kept, *_) = (rank.parameter_bytes for rank in found.measurement.memory_by_rank)
    assert kept == pytest.approx(2 * found.identity.parameters, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_compiled_ranks_agree_too(launched, strategy):
    shared = {"job": JOB, "micro_batch_size": 3, "world_size": 2, "strategy": STRATEGIES[strategy]}
    plain = launched.finished(**shared)
    losses = launched.series()["loss_nats_per_token"]
    compiled = launched.finished(**shared, compile="default")
    assert compiled.identity.compiled
    assert compiled.measurement.recompilations == 0
    assert compiled.identity.sdpa_backends == plain.identity.sdpa_backends == ["flash"]
    assert launched.series()["loss_nats_per_token"] == pytest.approx(losses, rel=1e-5)
    assert compiled.identity.token_stream_sha256 == plain.identity.token_stream_sha256

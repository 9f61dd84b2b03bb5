import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectbench.choices import Choices
from selectbench.planning.memory import expected_states

PSI, RANKS = 1_000_000, 8
ADAMW = {"name": "adamw", "lr": 1e-3}
STRATEGIES = [{"name": "ddp"}, {"name": "zero", "stage": 1}, {"name": "zero", "stage": 2},
              {"name": "zero", "stage": 3}, {"name": "fsdp"}]  # fmt: skip


def total(strategy: object, ranks: int = RANKS, optimizer: object = ADAMW, precision: str = "bf16_master") -> float:
    choices = Choices.model_validate(
        {"optimizer": optimizer, "micro_batch_size": 1, "strategy": strategy, "precision": precision}
    )
    found = expected_states(choices, PSI, ranks)
    assert found is not None
    return sum(found)


@pytest.mark.parametrize(
    ("strategy", "bytes_per_parameter"),
    list(zip(STRATEGIES, [16, 4 + 12 / RANKS, 2 + 14 / RANKS, 16 / RANKS, 16 / RANKS], strict=True)),
)
def test_mixed_precision_adam_as_published(strategy: object, bytes_per_parameter: float) -> None:
    assert total(strategy) == pytest.approx(bytes_per_parameter * PSI)


@pytest.mark.parametrize(
    ("precision", "bytes_per_parameter"),
    [("fp32", 16), ("bf16_mixed", 16), ("fp16_mixed", 16), ("bf16_pure", 8), ("bf16_master", 16)],
)
def test_other_precisions_on_one_device(precision: str, bytes_per_parameter: float) -> None:
    assert total({"name": "single"}, 1, precision=precision) == bytes_per_parameter * PSI


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        ({"name": "adam", "lr": 1.0}, 8),
        ({"name": "lion", "lr": 1.0}, 4),
        ({"name": "sgd", "lr": 1.0}, 4),
        ({"name": "sgd", "lr": 1.0, "momentum": 0.0}, 0),
        ({"name": "adamw_8bit", "lr": 1.0}, 2 + 8 / 256),
        ({"name": "paged_adamw_8bit", "lr": 1.0}, 2 + 8 / 256),
        ({"name": "lion_8bit", "lr": 1.0}, 1 + 4 / 256),
        ({"name": "ademamix_8bit", "lr": 1.0}, 3 + 12 / 256),
        ({"name": "adafactor", "lr": 1.0}, 0),
        ({"name": "schedule_free_adamw", "lr": 1.0}, 8),
    ],
)
def test_optimizers_keep_what_their_papers_say(optimizer: object, state: float) -> None:
    assert total({"name": "single"}, 1, optimizer, "fp32") == pytest.approx((8 + state) * PSI)


def test_muons_state_cannot_be_told_from_a_number_of_parameters() -> None:
    choices = Choices.model_validate({"optimizer": {"name": "muon", "lr": 1.0}, "micro_batch_size": 1})
    assert expected_states(choices, PSI, 1) is None


@given(st.integers(1, 10**6), st.sampled_from(["fp32", "bf16_master", "bf16_pure"]))
def test_sharding_more_never_takes_more_and_one_rank_shards_nothing(ranks: int, precision: str) -> None:
    sizes = [total(strategy, ranks, precision=precision) for strategy in STRATEGIES]
    assert sizes[0] >= sizes[1] >= sizes[2] >= sizes[3] == sizes[4]
    assert sizes[3] == pytest.approx(sizes[0] / ranks)
    assert len({total(strategy, 1, precision=precision) for strategy in STRATEGIES}) == 1

from typing import Any

import pytest
from made_records import make_record, make_suite, speed

from selectbench.analysis.hardware import GLOO, MANAGED, ONE_RANK
from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking
from selectbench.record.record import RankMemory

FSDP = {"strategy": {"name": "fsdp"}}


def memory(rank: int, peak: int, parts: tuple[int | None, int | None, int | None] = (4, 4, 8)) -> RankMemory:
    return RankMemory(rank=rank, peak_pss_growth_bytes=peak, parameter_bytes=parts[0], gradient_bytes=parts[1],
                      optimizer_state_bytes=parts[2])  # fmt: skip


def sharded(ranks: int, device: str = "cpu", **measured: Any) -> Ranking:
    """One fsdp option of so many ranks over two seeds."""
    choices = {**FSDP, "world_size": ranks, "micro_batch_size": 16 // ranks}
    suite = make_suite(("fsdp", choices), seeds=[0, 1], device=device)
    found = {"world_size": ranks, "strategy": "FSDPModule"}
    return rank(suite, [make_record("fsdp", s, identity=found, **measured) for s in range(2)])


@pytest.mark.parametrize("strategy", [{"name": "fsdp"}, {"name": "zero", "stage": 1}])
def test_a_sharding_row_of_one_rank_is_no_evidence(strategy: dict[str, Any]) -> None:
    found = {"strategy": "FSDPModule" if strategy["name"] == "fsdp" else "DeepSpeedEngine zero 1"}
    suite = make_suite("single", ("row", {"strategy": strategy}), seeds=[0])
    rows = rank(suite, [make_record("single", 0), make_record("row", 0, identity=found)]).rows
    assert {row.option: row.notes for row in rows} == {"single": [], "row": [ONE_RANK]}


def test_what_muon_leaves_to_adamw_is_said_where_it_is_much() -> None:
    suite = make_suite("adamw", ("muon", {"optimizer": {"name": "muon", "lr": 1e-3}}), seeds=[0])

    def notes(**uses: int) -> dict[str, list[str]]:
        trials = [make_record(name, 0, parameters_by_use=uses) for name in ("adamw", "muon")]
        return {row.option: row.notes for row in rank(suite, trials).rows}

    told = "muon trains 9,000 of 12,500 parameters, AdamW the others: embedding 3,000, other 500"
    assert notes(matrix=9000, embedding=3000, other=500) == {"adamw": [], "muon": [told]}
    assert notes(matrix=99_500, other=500) == notes() == {"adamw": [], "muon": []}


def test_a_sharding_row_of_two_ranks_is_evidence() -> None:
    assert sharded(2).rows[0].notes == []


def test_speeds_over_gloo_are_warned_of_once_and_only_on_a_cpu() -> None:
    assert sharded(2).warnings == [GLOO]
    assert sharded(1).warnings == []
    assert sharded(2, device="cuda").warnings == []


def test_memory_by_rank_is_the_mean_over_seeds_and_the_metric_the_largest_rank() -> None:
    ranks = [memory(0, 100, (4, 4, 8)), memory(1, 300, (4, 4, 10))]
    row = sharded(2, memory_by_rank=ranks, peak_pss_growth_bytes=300).rows[0]
    assert row.memory is not None
    assert row.memory.peak_bytes_by_rank == [100, 300]
    assert row.memory.measured_model_state_bytes == 18
    assert row.memory.expected_model_state_bytes == 16 * 1_000_000 / 2
    assert row.metrics["peak_memory_bytes"].value == 300


def test_memory_differs_by_seed() -> None:
    suite = make_suite("fp32", seeds=[0, 1])
    records = [make_record("fp32", s, memory_by_rank=[memory(0, 100 + 10 * s, (s, s, s))]) for s in range(2)]
    found = rank(suite, records).rows[0].memory
    assert found is not None
    assert (found.peak_bytes_by_rank, found.measured_model_state_bytes) == ([105], 1.5)


def test_no_mean_over_some_of_the_seeds() -> None:
    suite = make_suite("fp32", seeds=[0, 1])
    parts: list[tuple[int | None, int, int]] = [(4, 4, 8), (None, 4, 8)]
    records = [make_record("fp32", s, memory_by_rank=[memory(0, 1, parts[s])]) for s in range(2)]
    found = rank(suite, records).rows[0].memory
    assert found is not None
    assert found.measured_model_state_bytes is None


def test_a_hidden_part_of_the_model_states_is_not_taken_as_nothing() -> None:
    row = sharded(2, memory_by_rank=[memory(0, 1), memory(1, 1, (4, None, 8))]).rows[0]
    assert row.memory is not None
    assert row.memory.measured_model_state_bytes is None
    assert row.memory.expected_model_state_bytes is not None


def test_records_from_before_ranks_were_measured_have_no_memory_by_rank() -> None:
    assert rank(make_suite("fp32", seeds=[0]), [make_record("fp32", 0)]).rows[0].memory is None


def scaled(speeds: dict[int, float], device: str = "cuda") -> Ranking:
    """One ddp option per number of ranks; the first is the baseline."""
    options = [
        (f"x{n}", {"strategy": {"name": "ddp"}, "world_size": n, "micro_batch_size": 16 // n}) for n in speeds
    ]
    found = {"strategy": "DistributedDataParallel"}
    records = [
        make_record(f"x{n}", 0, identity={**found, "world_size": n}, **speed(fast)) for n, fast in speeds.items()
    ]
    return rank(make_suite(*options, seeds=[0], device=device), records)


def test_speed_up_and_efficiency_over_the_baseline() -> None:
    rows = {row.option: row.scaling for row in scaled({1: 100.0, 2: 190.0, 4: 300.0}).rows}
    shown = {name: (s.world_size, s.speedup, s.efficiency) for name, s in rows.items() if s}
    assert shown["x1"] == (1, pytest.approx(1), pytest.approx(1))
    assert shown["x2"] == (2, pytest.approx(1.9), pytest.approx(0.95))
    assert shown["x4"] == (4, pytest.approx(3), pytest.approx(0.75))


def test_ranks_that_share_a_cpus_cores_have_no_efficiency() -> None:
    rows = {row.option: row.scaling for row in scaled({1: 100.0, 2: 110.0}, device="cpu").rows}
    assert rows["x2"] is not None
    assert (rows["x2"].speedup, rows["x2"].efficiency) == (pytest.approx(1.1), None)


def test_efficiency_from_a_baseline_of_several_ranks() -> None:
    rows = {row.option: row.scaling for row in scaled({2: 200.0, 8: 600.0}).rows}
    assert rows["x8"] is not None
    assert rows["x8"].efficiency == pytest.approx(0.75)


def test_rows_of_equal_ranks_say_nothing_of_scaling() -> None:
    assert all(row.scaling is None for row in sharded(2).rows)


def test_a_row_that_differs_in_more_than_ranks_has_no_efficiency() -> None:
    options = [
        "native",
        ("other", {"framework": {"name": "hf_trainer"}, "strategy": {"name": "ddp"}, "world_size": 2}),
    ]
    records = [make_record("native", 0), make_record("other", 0, identity={"world_size": 2})]
    assert all(row.scaling is None for row in rank(make_suite(*options, seeds=[0]), records).rows)


GIB = 1 << 30
CLASSES = {"plain": "AdamW8bit", "paged": "PagedAdamW8bit"}


def eight_bit(managed_bytes: int | None) -> Ranking:
    """Two optimizers on a GPU, the second with so much of its state outside torch's allocator."""
    suite = make_suite(
        ("plain", {"optimizer": {"name": "adamw_8bit", "lr": 1e-3}}),
        ("paged", {"optimizer": {"name": "paged_adamw_8bit", "lr": 1e-3}}),
        seeds=[0, 1, 2], device="cuda",
        decide={"objective": "peak_memory_bytes", "constraints": ["peak_memory_bytes <= 5.2 GiB"]},
    )  # fmt: skip
    records = []
    for option, allocated, managed in (("plain", 5 * GIB, None), ("paged", 4 * GIB, managed_bytes)):
        for seed in range(3):
            peaks = {
                "peak_memory_allocated_bytes": allocated + seed, "peak_memory_reserved_bytes": allocated + GIB,
                "managed_state_bytes": managed,
            }  # fmt: skip
            made = make_record(
                option, seed, peak_pss_growth_bytes=None, memory_by_rank=[RankMemory(rank=0, **peaks)],
                identity={"optimizer": [CLASSES[option]]}, **speed(100), **peaks,
            )  # fmt: skip
            records.append(made)
    return rank(suite, records)


def test_state_in_managed_memory_counts_as_memory() -> None:
    """A gigabyte and a half beside the allocator makes the option that seems smallest the largest."""
    found = eight_bit(3 * GIB // 2)
    rows = {row.option: row for row in found.rows}
    paged = rows["paged"]
    assert paged.metrics["peak_memory_bytes"].value == pytest.approx(5.5 * GIB)
    assert paged.metrics["peak_memory_reserved_bytes"].value == pytest.approx(6.5 * GIB)
    assert paged.memory is not None
    assert paged.memory.peak_bytes_by_rank == pytest.approx([5.5 * GIB])
    assert [c.verdict for c in paged.constraints] == ["fails"]
    assert paged.notes == [MANAGED.format("1.50 GiB")]
    assert paged.pareto is False
    assert rows["plain"].notes == []
    (smallest,) = [v for v in found.verdicts if v.name == "smallest_memory"]
    assert smallest.option == "plain"


def test_state_that_the_allocator_counts_is_not_counted_twice() -> None:
    found = eight_bit(None)
    rows = {row.option: row for row in found.rows}
    assert rows["paged"].metrics["peak_memory_bytes"].value == pytest.approx(4 * GIB)
    assert rows["paged"].notes == []
    (smallest,) = [v for v in found.verdicts if v.name == "smallest_memory"]
    assert smallest.option == "paged"

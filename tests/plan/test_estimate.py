"""How long a run is expected to take: from trials on this machine, else from what its hardware can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launch.harness import TINY_SUITE, corpus
from made_records import make_record
from msgspec.structs import replace

from selectbench.data.prepare import prepare
from selectbench.gpu.devices import Gpu
from selectbench.machine import Machine, cpu_model, usable_cores
from selectbench.planning.duration import (
    COMPILE_SECONDS,
    IMPORT_SECONDS,
    SETTLE_SECONDS,
    TRIAL_SECONDS,
    History,
    estimate,
    past_trials,
    stage_costs,
)
from selectbench.planning.plan import Plan, make_plan
from selectbench.record.environment import Calibration, Rate, write_calibration
from selectbench.record.record import SETTINGS, Record
from selectbench.record.run_folder import ENVIRONMENT, RECORDS_FILE, append_record
from selectbench.suite.load import load_suite
from selectbench.suite.stages import speed_suite
from selectbench.suite.suite import Suite

PACKAGES = {"torch": "2.13.0", "transformers": "5.23.0"}
CPU = Machine(device="cpu", packages=PACKAGES)
GPT2 = "job.model={family: gpt2, n_layer: 12, n_embd: 768, n_head: 12, vocab_size: 50304}"
PARAMETERS = 124_000_000
"""About; the exact number is the plan's."""


def a_gpu(name: str = "NVIDIA H100 80GB HBM3", **changes: Any) -> Gpu:
    facts: dict[str, Any] = {
        "name": name, "uuid": "GPU-a", "index": 0, "is_mig": False, "pci_bus_id": None,
        "memory_total_bytes": 80 << 30, "compute_capability": (9, 0), "power_limit_watts": None,
        "ecc_enabled": None, "max_sm_clock_hertz": 1.98e9, "cores": 16896, "driver_version": None,
        "cuda_driver_version": None,
    }  # fmt: skip
    return Gpu(**{**facts, **changes})


def on(*gpus: Gpu) -> Machine:
    return Machine("cuda", packages=PACKAGES, compiler="/usr/bin/g++").on(gpus or [a_gpu()])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No calibration of this machine's GPUs."""
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text(corpus())
    (tmp_path / "tiny.yaml").write_text(TINY_SUITE)
    return tmp_path / "tiny.yaml"


def a_suite(suite_file: Path, *settings: str, device: str = "cuda", **more: Any) -> Suite:
    return load_suite(str(suite_file), device=device, settings=settings, **more)


def planned(suite: Suite, machine: Machine) -> Plan:
    return make_plan(suite, machine, None, "code")


def seconds(suite: Suite, machine: Machine, history: History | None = None) -> dict[str, float]:
    found = estimate(planned(suite, machine), machine, history or History())
    assert found is not None
    return found.seconds


BESIDE_STEPS = TRIAL_SECONDS["cuda"] + SETTLE_SECONDS["cuda"]
LONG = (GPT2, "job.max_steps=1000", "job.seq_len=1024", "job.eval=none", "job.timing.min_timed_seconds=0")
FLOPS = 6 * 1000 * 4 * 1024
"""Of those steps, for each parameter."""


@pytest.mark.parametrize(
    ("precision", "compiled", "teraflops"),
    # The data sheet's peak, what large products reach of it, and what training reaches of that.
    [
        ("fp32", "off", 66.9 * 0.75 * 0.8),
        ("tf32", "off", 494.7 * 0.75 * 0.3),
        ("bf16_mixed", "off", 989.4 * 0.75 * 0.3),
        ("bf16_mixed", "default", 989.4 * 0.75 * 0.6),
        ("bf16_master", "off", 989.4 * 0.75 * 0.3),
        ("fp16_mixed", "off", 989.4 * 0.75 * 0.3),
    ],
)
def test_a_rough_reckoning_goes_by_the_dtype_of_the_products(
    suite_file: Path, precision: str, compiled: str, teraflops: float
) -> None:
    suite = a_suite(suite_file, *LONG, f"choices.precision={precision}", f"choices.compile={compiled}")
    machine = on()
    parameters = planned(suite, machine).parameters
    assert parameters == pytest.approx(PARAMETERS, rel=0.01)
    beside = BESIDE_STEPS + (COMPILE_SECONDS if compiled != "off" else 0)
    assert seconds(suite, machine)["whole"] == pytest.approx(beside + FLOPS * parameters / (teraflops * 1e12))


def test_what_was_measured_on_this_gpu_comes_before_its_data_sheet(suite_file: Path) -> None:
    rate = Rate(flops_per_second=5e14, size=8192)
    write_calibration(
        "GPU-a", Calibration(name="x", rates={"bfloat16": rate}, torch_version="2.13.0", measured_at="")
    )
    suite = a_suite(suite_file, *LONG, "choices.precision=bf16_mixed")
    steps = FLOPS * (planned(suite, on()).parameters or 0) / (5e14 * 0.3)
    assert seconds(suite, on())["whole"] == pytest.approx(BESIDE_STEPS + steps)


def test_a_board_without_a_sheet_goes_by_its_cores_and_a_slice_by_nothing(suite_file: Path) -> None:
    suite = a_suite(suite_file, *LONG, "choices.precision=bf16_mixed")
    board = a_gpu("Some Board", cores=1000, max_sm_clock_hertz=1e9, compute_capability=(8, 6))
    # 2 TFLOP/s without tensor cores, twice that with them.
    steps = FLOPS * (planned(suite, on(board)).parameters or 0) / (4e12 * 0.75 * 0.3)
    assert seconds(suite, on(board))["whole"] == pytest.approx(BESIDE_STEPS + steps)
    a_slice = on(a_gpu(is_mig=True))
    assert estimate(planned(suite, a_slice), a_slice, History()) is None


def test_ranks_share_the_work_and_the_slowest_sets_the_pace(suite_file: Path) -> None:
    ranks = "choices.strategy=ddp", "choices.world_size=2", "options.whole.micro_batch_size=1"
    suite = a_suite(suite_file, *LONG, *ranks, "choices.precision=bf16_mixed")
    machine = on(a_gpu(), a_gpu("NVIDIA A100-SXM4-80GB", uuid="GPU-b"))
    steps = FLOPS * (planned(suite, machine).parameters or 0) / (312e12 * 0.75 * 0.3) / 2
    assert seconds(suite, machine)["whole"] == pytest.approx(BESIDE_STEPS + steps)


@pytest.mark.parametrize(("stated", "least"), [("null", 10.0), ("0", 0.0), ("25", 25.0)])
def test_only_what_the_steps_leave_untimed_is_added(suite_file: Path, stated: str, least: float) -> None:
    tiny = a_suite(suite_file, "job.eval=none", f"job.timing.min_timed_seconds={stated}")
    assert seconds(tiny, on())["whole"] == pytest.approx(BESIDE_STEPS + least, rel=0.01)
    # 997 steps after the warm-up are timed for longer than that.
    long = a_suite(suite_file, *LONG, f"job.timing.min_timed_seconds={stated}", "job.max_steps=20000")
    exact = a_suite(suite_file, *LONG, "job.max_steps=20000")
    assert seconds(long, on()) == seconds(exact, on())


def test_trials_that_state_no_time_of_their_own_are_charged_none(suite_file: Path) -> None:
    suite = a_suite(suite_file, "best_of={micro_batch_size: [1, 2], max_steps: 5}")
    speed = speed_suite(suite, {"whole": [{"micro_batch_size": 1}, {"micro_batch_size": 2}]})
    assert speed.job.timing.min_timed_seconds == 0.0
    found = seconds(speed, on())
    assert len(found) == 2
    assert all(one == pytest.approx(BESIDE_STEPS, rel=0.01) for one in found.values())


def test_a_half_precision_costs_more_on_a_cpu_without_units_for_it(suite_file: Path) -> None:
    suite = a_suite(suite_file, *LONG, "choices.precision=bf16_mixed", device="cpu")
    with_units = Machine("cpu", packages=PACKAGES, cpu_units=("bfloat16",))
    emulated, native = (seconds(suite, machine)["whole"] - TRIAL_SECONDS["cpu"] for machine in (CPU, with_units))
    assert emulated / native == pytest.approx(4.5)


def test_without_earlier_trials_more_work_takes_longer(suite_file: Path) -> None:
    job = a_suite(suite_file, device="cpu").job
    data = prepare(job.data, job.tokenizer)
    found = []
    for steps in (10, 100000):
        suite = a_suite(suite_file, f"job.max_steps={steps}", device="cpu")
        plan = make_plan(suite, CPU, dict.fromkeys([o.name for o in suite.options], data), "code")
        one = estimate(plan, CPU, History())
        assert one is not None
        assert one.from_records == 0
        found.append(one.seconds["whole"])
    assert found[0] < found[1]


def test_the_first_stage_waits_for_the_imports_once(suite_file: Path) -> None:
    suite = a_suite(suite_file, device="cpu")
    plan = planned(suite, CPU)
    alone = [stage_costs([("contest", plan)], CPU, h)[0] for h in (History(), History(start_seconds=3.0))]
    assert [cost.start_seconds for cost in alone] == [IMPORT_SECONDS, 3.0]
    first, second = stage_costs([("tuning", plan), ("contest", plan)], CPU, History(start_seconds=3.0))
    assert (first.start_seconds, second.start_seconds) == (3.0, 0.0)
    assert first.seconds is not None
    assert second.seconds is not None
    assert first.seconds - second.seconds == pytest.approx(3.0)


def past(plan: Plan, wall: float, **measured: Any) -> list[Record]:
    """Every trial of a plan as it was run before."""
    record = make_record("whole", 0, **measured)
    identity = replace(record.identity, parameters=plan.parameters) if record.identity else None
    return [
        replace(record, trial=p.trial, round=p.round, identity=identity, wall_seconds=wall + p.trial.seed)
        for p in plan.trials
    ]


def test_earlier_trials_tell_the_time(suite_file: Path) -> None:
    plan = planned(a_suite(suite_file, device="cpu"), CPU)
    found = estimate(plan, CPU, History(past(plan, 10.0)))
    assert found is not None
    assert found.seconds == {"whole": 10.5, "halves": 10.5}
    assert found.from_records == 2


def test_trials_of_other_seeds_rates_and_lengths_tell_it_too(suite_file: Path) -> None:
    before = planned(a_suite(suite_file, device="cpu"), CPU)
    # 6 steps of 64 tokens at 2 s, 3 s to start and end, 512 tokens scored twice in 4 s.
    measured = {
        "tokens_per_step": 64, "steps_applied": 6, "timed_steps": 3, "step_time_median_seconds": 2.0,
        "training_seconds": 12.0, "evaluation_seconds": 4.0, "heldout_tokens": 512, "compile_seconds": None,
    }  # fmt: skip
    points = [{"step": step, "tokens": 0, "training_seconds": 0.0, "loss": 5.0} for step in (3, 6)]
    records = [replace(record, evaluation_curve=points) for record in past(before, 19.0, **measured)]
    history = History([record for record in records if record.trial.seed == 0])
    changes = "job.max_steps=20", "choices.optimizer.lr=2e-3", "job.eval={tokens: 1024, every_steps: 10}"
    after = planned(a_suite(suite_file, *changes, device="cpu", seeds="7"), CPU)
    assert not {p.trial.trial_id for p in after.trials} & {p.trial.trial_id for p in before.trials}
    found = estimate(after, CPU, history)
    assert found is not None
    assert found.from_records == 2
    assert found.seconds["whole"] == pytest.approx(3 + 20 * 2 + 2 * 1024 * 4 / 1024)
    # Another precision, or another model, is other work.
    for other in ("choices.precision=bf16_mixed", "job.model.n_layer=2"):
        plan = planned(a_suite(suite_file, *changes, other, device="cpu"), CPU)
        rough = estimate(plan, CPU, history)
        assert rough is not None
        assert rough.from_records == 0


def test_what_was_not_measured_goes_at_the_pace_of_what_was(suite_file: Path) -> None:
    """One option took ten times as long as told roughly; a step of the others is told from that."""
    grid = ["precision=fp32,bf16_mixed"]
    settings = (
        "job.model={family: gpt2, n_layer: 2, n_embd: 64, n_head: 4, vocab_size: 512}",
        "job.eval={tokens: 512, every_steps: null}",
    )
    plan = planned(a_suite(suite_file, *settings, device="cpu", axes=grid), CPU)
    rough = seconds(plan.suite, CPU)
    steps, scored = (rate * (plan.parameters or 0) for rate in (6, 2))
    step = (rough["fp32"] - TRIAL_SECONDS["cpu"]) * steps / (steps * 6 + scored * 512 / 64)
    measured = {
        "tokens_per_step": 64, "steps_applied": 6, "timed_steps": 3, "step_time_median_seconds": 10 * step,
        "training_seconds": 60 * step, "evaluation_seconds": 40 * step, "heldout_tokens": 512,
        "compile_seconds": None,
    }  # fmt: skip
    points = [{"step": 6, "tokens": 0, "training_seconds": 0.0, "loss": 5.0}]
    records = [
        replace(record, evaluation_curve=points, wall_seconds=2.5 + 100 * step)
        for record in past(plan, 0.0, **measured)
        if record.trial.option == "fp32"
    ]
    found = estimate(plan, CPU, History(records))
    assert found is not None
    assert (found.from_records, found.paced) == (1, True)
    assert found.seconds["fp32"] == pytest.approx(2.5 + 100 * step)
    # Without units for bfloat16 its steps take 4.5 times as long; evaluations are in fp32.
    assert found.seconds["bf16_mixed"] == pytest.approx(2.5 + 4.5 * 60 * step + 40 * step)
    # A larger model, of which nothing was measured, too.
    wider = planned(a_suite(suite_file, *settings, "job.model.n_layer=4", device="cpu", axes=grid), CPU)
    more = estimate(wider, CPU, History(records))
    assert more is not None
    assert (more.from_records, more.paced) == (0, True)
    ratio = (wider.parameters or 0) / (plan.parameters or 1)
    assert more.seconds["fp32"] == pytest.approx(2.5 + 100 * step * ratio)
    # A figure of the same dtype goes before those of others.
    slow = {**measured, "training_seconds": 600 * step, "step_time_median_seconds": 100 * step}
    halves = [
        replace(record, evaluation_curve=points, wall_seconds=2.5 + 640 * step)
        for record in past(plan, 0.0, **slow)
        if record.trial.option == "bf16_mixed"
    ]
    both = estimate(wider, CPU, History([*records, *halves]))
    assert both is not None
    assert both.seconds["fp32"] == pytest.approx(2.5 + 100 * step * ratio)
    assert both.seconds["bf16_mixed"] == pytest.approx(2.5 + 640 * step * ratio)


def test_no_trial_costs_nothing(suite_file: Path) -> None:
    assert (
        min(seconds(a_suite(suite_file, "job.eval=none", device="cpu"), CPU).values()) >= TRIAL_SECONDS["cpu"] >= 1
    )


def a_run(folder: Path, environment: dict[str, Any], walls: list[float]) -> None:
    folder.mkdir(parents=True)
    (folder / ENVIRONMENT).write_text(json.dumps(environment))
    for seed, wall in enumerate(walls):
        settings = SETTINGS.as_json({"precision": {"name": "fp32"}})
        record = make_record("whole", seed)
        trial = replace(record.trial, settings=settings)
        append_record(folder / RECORDS_FILE, replace(record, trial=trial, wall_seconds=wall))


HERE = {"cpu_model": cpu_model(), "cores_by_affinity": 4096, "cores_by_cgroup": usable_cores(), "gpus": []}


def test_the_first_trial_of_an_earlier_run_waited_for_imports_and_tells_how_long(tmp_path: Path) -> None:
    a_run(tmp_path / "a", HERE, [40.0, 10.0, 12.0])
    a_run(tmp_path / "b", HERE, [45.0])  # where there is no other it stays
    found = past_trials(tmp_path, CPU)
    assert [record.wall_seconds for record in found.trials] == [10.0, 12.0, 45.0]
    assert found.start_seconds == 29.0
    assert past_trials(tmp_path / "nowhere", CPU) == History()


@pytest.mark.parametrize(
    "other",
    [
        {"cpu_model": "Another"},
        {"cores_by_affinity": 64, "cores_by_cgroup": None},
        {"cores_by_cgroup": 0.5},
        {"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]},
    ],
)
def test_runs_on_other_hardware_tell_nothing(tmp_path: Path, other: dict[str, Any]) -> None:
    a_run(tmp_path / "a", {**HERE, **other}, [40.0, 10.0])
    assert past_trials(tmp_path, CPU) == History()


def test_runs_on_gpus_of_one_kind_tell_each_other(tmp_path: Path) -> None:
    a_run(tmp_path / "a", {**HERE, "gpus": [{"name": "NVIDIA H100 80GB HBM3"}]}, [40.0, 10.0])
    a_run(tmp_path / "b", HERE, [40.0, 20.0])
    assert [record.wall_seconds for record in past_trials(tmp_path, on()).trials] == [10.0]
    assert past_trials(tmp_path, on(a_gpu("Tesla T4"))).trials == []

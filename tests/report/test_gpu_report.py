"""What the reports say of GPUs: state beside the numbers, memory, energy, cost, and nothing without meters."""

import io
from typing import Any

import pytest
from made_records import (
    ARCHITECTURE,
    HOT,
    SHARED,
    make_failure,
    make_meters,
    make_record,
    make_suite,
    speed,
)
from msgspec.structs import replace
from report.rendered import render, render_option
from rich.console import Console

from selectbench.analysis.metrics import FLOPS_RULE, GPU_STATE_RULE, IMPOSSIBLE, MFU_RULE
from selectbench.analysis.ranking import rank
from selectbench.gpu.devices import source
from selectbench.record.record import Meters, Record
from selectbench.report.files import escape as markdown
from selectbench.report.sections import summary
from selectbench.report.terminal import print_document

BF16 = ("bf16", {"precision": {"name": "bf16_mixed"}})
CUDA: dict[str, Any] = {"peak_memory_allocated_bytes": 5 << 30, "peak_memory_reserved_bytes": 6 << 30,
                        "peak_pss_growth_bytes": None}  # fmt: skip


def make_run(gpus: list[dict[str, Any]], **changes: Any) -> tuple[Any, list[Record]]:
    """A clean baseline, and bf16 on these GPUs, a seed each."""
    suite = make_suite("fp32", BF16, **{"device": "cuda", **changes})
    records = [make_record("fp32", s, meters=make_meters(), **CUDA, **speed(100 + s)) for s in range(3)]
    records += [make_record("bf16", s, meters=make_meters(gpu), **CUDA, **speed(200 + s))
                for s, gpu in enumerate(gpus)]  # fmt: skip
    return suite, records


def report(suite: Any, records: list[Record]) -> str:
    return render(suite, rank(suite, records), records, {}, "x")


def terminal(suite: Any, records: list[Record], width: int = 160) -> str:
    file = io.StringIO()
    print_document(Console(file=file, width=width), summary(rank(suite, records)))
    return file.getvalue()


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_a_throttled_trial_is_flagged_beside_its_row_and_warned_of() -> None:
    run = make_run([{}, {}, HOT])
    assert "| 1 | bf16 | precision | 3 of 3 | 1 throttled | 200 ±0.71 | 2.00x (" in report(*run)
    for text in (report(*run), terminal(*run)):
        assert "seed 2 throttled: hardware thermal slowdown in 31% of the readings" in text
        assert "1 throttled" in text
        assert "†" not in text


def test_figures_without_a_clean_trial_are_marked() -> None:
    run = make_run([HOT, SHARED, HOT])
    assert "| - | bf16 | precision | 3 of 3 | 2 throttled, 1 shared | 201 † ±1.0 | - |" in report(*run)
    assert "- †: every trial that the figure comes from was throttled or shared" in report(*run)
    for width in (40, 80, 160):
        text = terminal(*run, width)
        assert all(len(line) <= width for line in text.splitlines())
        assert "†" in text
    assert "†: every trial that the figure comes from was throttled or shared" in terminal(*run)


def test_the_three_figures_of_memory_and_the_one_that_must_fit() -> None:
    memory = section(report(*make_run([{"idle_memory_bytes": 2 << 30}] * 3)), "Memory")
    assert "| option | allocated | reserved | device peak over idle | idle before | must fit |" in memory
    assert "| bf16 | 5.00 GiB | 6.00 GiB | 7.00 GiB | 2.00 GiB | 9.00 GiB | 80.0 GiB | 512 MiB |" in memory
    assert "Whether an option fits on a GPU is shown by `must fit`" in memory


def test_the_gpus_conditions_and_energy() -> None:
    text = section(report(*make_run([{"counter_joules": None}, {}, HOT])), "GPU")
    assert "Trained on NVIDIA H100 80GB HBM3." in text
    assert "| bf16 | 2 clean, 1 throttled | 1,755 MHz | 2,619 MHz | 61 °C | 95.0% | 40.0% |" in text
    assert "| bf16 | instant power | 302 W ±" not in text
    assert "| bf16 | instant power | 301 W | 1.50 J |" in text
    assert "software power cap" in text


def test_an_unknown_state_and_energy_are_told_with_their_causes() -> None:
    run = make_run([{"other_processes": None, "metered_seconds": 1.0}] * 3)
    text = section(report(*run), "GPU")
    cause = "The state of the GPUs is not known in 3 trials: the list of processes shows not even the trial's own"
    assert cause in text
    assert cause in terminal(*run)
    assert "- Energy is not known: metered for 1.00 s, less than 5 s (bf16, seed 0, 1, 2)." in text
    assert "| bf16 | not known | - | - |" in text


def counted(run: tuple[Any, list[Record]], parameters: int = 10**11) -> tuple[Any, list[Record]]:
    """The same run of a model whose work is known."""
    suite, records = run
    shape = replace(ARCHITECTURE, matmul_parameters=parameters)
    for number, record in enumerate(records):
        measurement = replace(record.outcome.measurement, architecture=shape)  # type: ignore[union-attr]
        outcome = replace(record.outcome, measurement=measurement)
        records[number] = replace(record, outcome=outcome)
    return suite, records


def test_the_share_of_the_arithmetic_with_what_it_is_a_share_of() -> None:
    measured = {"matmul_flops_per_second": {"bfloat16": 8e14}}
    text = section(report(*counted(make_run([measured] * 3))), "GPU")
    heads = "| option | products in | FLOPs/token | peak | MFU | HFU | measured rate | share of it |"
    assert heads in text
    # 600 GFLOP a token at 201 tokens/s on an H100 SXM; fp32 at 101 tokens/s without tensor cores.
    assert "| bf16 | bfloat16 | 600.0 GFLOP | 989.4 TFLOP/s | 12.2% | 12.2% | 800.0 TFLOP/s | 15.1% |" in text
    assert "| fp32 | float32 | 600.0 GFLOP | 66.90 TFLOP/s | 90.6% | 90.6% | - | - |" in text
    assert (
        "- Not known: share of the measured rate: no float32 rate was measured on NVIDIA H100 80GB HBM3 (doctor "
        "--calibrate does) (fp32, seed 0, 1, 2)." in text
    )
    assert "Not known: MFU" not in text


def test_the_formula_and_the_data_sheet_stand_under_how_it_was_measured() -> None:
    text = section(report(*counted(make_run([{}] * 3))), "How it was measured")
    assert markdown(FLOPS_RULE) in text
    assert markdown(MFU_RULE) in text
    assert f"Data sheets: NVIDIA H100 80GB HBM3: {markdown(str(source('NVIDIA H100 80GB HBM3')))}." in text
    without = section(report(*make_run([{}] * 3)), "How it was measured")
    assert markdown(FLOPS_RULE) not in without


def test_unknown_shares_are_told_once_with_the_cause() -> None:
    run = make_run([{}] * 3)
    text = section(report(*run), "GPU")
    assert "products in" not in text
    assert (
        "- Not known: MFU, HFU, share of the measured rate: this model's work does not follow from its shape "
        "(bf16, seed 0, 1, 2; fp32, seed 0, 1, 2)." in text
    )


def test_a_share_above_one_is_withheld_in_every_report() -> None:
    run = counted(make_run([{}] * 3), parameters=2 * 10**11)
    told = f"fp32: utilisation {IMPOSSIBLE}, so it is withheld (seed 0, 1, 2)"
    text = report(*run)
    assert told in text
    assert told in terminal(*run, 300)
    assert "| fp32 | float32 | 1.200 TFLOP | 66.90 TFLOP/s | - | - | - | - |" in text
    suite, records = run
    assert "| mfu |" not in render_option(suite, rank(suite, records), records, "fp32")
    assert "| mfu | 24.3% |" in render_option(suite, rank(suite, records), records, "bf16")


def test_the_rules_stand_under_how_it_was_measured() -> None:
    text = section(report(*make_run([{}] * 3, meters={"memory_interval_seconds": 0.02})), "How it was measured")
    assert markdown(GPU_STATE_RULE) in text
    assert "Energy is what the GPUs' energy counters" in text
    assert "their memory every 0.02 s and all else every 0.1 s" in text


def test_costs_with_their_prices() -> None:
    suite, records = make_run([{}] * 3, cost={"usd_per_gpu_hour": 2.0})
    text = section(report(suite, records), "Cost")
    assert "Prices: 2.00 USD per GPU and hour. Cost = GPUs x hours" in text
    # 1e9 tokens at 101 tokens/s (geometric means over seeds) at 2 USD an hour; 12.5 s of the job.
    assert f"| fp32 | {2e9 / 3600 / (100 * 101 * 102) ** (1 / 3):,.2f} USD | 0.00694 USD |" in text
    assert "## Cost" not in report(*make_run([{}] * 3))


def test_a_failure_on_a_shared_gpu_is_no_finding() -> None:
    suite, records = make_run([])
    records += [make_failure("bf16", s, "oom", "CUDA out of memory", meters=make_meters(SHARED)) for s in range(3)]
    for text in (report(suite, records), terminal(suite, records, 300)):
        assert (
            "CUDA out of memory (this says nothing about the option: the GPU was shared: also used by process 4711"
            in text
        )
    assert "bf16" not in section(report(suite, records), "Memory")


def test_one_option_shows_an_unclean_attempt_that_was_repeated() -> None:
    suite, records = make_run([{}, {}, HOT])
    again = make_record("bf16", 2, attempt=2, meters=make_meters(), **CUDA, **speed(202))
    records = [*records, again]
    text = render_option(suite, rank(suite, records), records, "bf16")
    assert "| 2 | 1 | contest | completed | throttled: hardware thermal slowdown in 31% of the readings |" in text
    assert "| 2 | 2 | contest | completed |  |" in text
    assert "throttled" not in rank(suite, records).answer


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_meters_nothing_is_added(device: str) -> None:
    suite = make_suite("fp32", BF16, device=device)
    records = [make_record(name, s) for name in ("fp32", "bf16") for s in range(3)]
    text = report(suite, records)
    for words in ("## Memory\n", "## GPU", "## Cost", "meters", "throttled"):
        assert words not in text
    problem = Meters(problem="the job runs on the cpu")
    told = report(suite, [replace(record, meters=problem) for record in records])
    added = [line for line in told.splitlines() if line not in text.splitlines()]
    main = "; peak memory is main memory" if device == "cpu" else ""
    assert len(added) == (1 if device == "cpu" else 3), added  # a warning with its heading on a GPU
    assert added[-1] == f"- No GPU meters: the job runs on the cpu{main}."

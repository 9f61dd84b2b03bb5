"""What a suite leaves to the machine, settled: for all options alike, by the GPUs that a run has taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch.harness import TINY_SUITE, corpus
from rich.console import Console
from stand_in import StandIn

from selectbench.errors import UserError
from selectbench.gpu.devices import Gpu
from selectbench.launch.publish import suite_of_option
from selectbench.machine import Machine, inspect_machine
from selectbench.planning.duration import Outlook
from selectbench.planning.plan import FITTING_SHARE, Plan, make_plan, with_machine_choices
from selectbench.record.run_folder import suite_text
from selectbench.report.terminal import plan_as_json, plan_document, print_document
from selectbench.suite.load import load_suite, names
from selectbench.suite.suite import Suite

EVERYTHING = dict.fromkeys(
    ("torch", "transformers", "bitsandbytes", "tokenizers", "safetensors", "deepspeed", "accelerate", "peft",
     "schedulefree"),
    "9999",
)  # fmt: skip
OPEN = ["choices.precision=auto", "choices.micro_batch_size={at_most: 4}"]
TWO_ROWS = "{sdpa: {}, eager: {attention: eager}}"


def a_gpu(gibibytes: float | None, capability: tuple[int, int] | None, name: str = "Some GPU") -> Gpu:
    total = None if gibibytes is None else round(gibibytes * 2**30)
    return Gpu(
        name=name, uuid=f"GPU-{name}", index=0, is_mig=False, pci_bus_id=None, memory_total_bytes=total,
        compute_capability=capability, power_limit_watts=None, ecc_enabled=None, max_sm_clock_hertz=None,
        cores=None, driver_version=None, cuda_driver_version=None,
    )  # fmt: skip


def on(*gpus: Gpu) -> Machine:
    return Machine("cuda", packages=EVERYTHING, compiler="/usr/bin/g++").on(gpus)


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text(corpus())
    return tmp_path / "tiny.yaml"


def left_open(
    suite_file: Path, *settings: str, rows: str = TWO_ROWS, baseline: str = "sdpa", device: str = "cuda"
) -> Suite:
    head = TINY_SUITE.partition("baseline:")[0]
    suite_file.write_text(f"{head}baseline: {baseline}\noptions: {rows}\nseeds: [0, 1]\n")
    return load_suite(str(suite_file), device=device, settings=[*OPEN, *settings])


def taken(suite: Suite) -> dict[str, str]:
    return {one.setting: one.taken for one in suite.left_open.machine_choices}


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ([(9, 0)], "bf16_mixed"),
        ([(8, 0), (8, 9)], "bf16_mixed"),
        ([(7, 5)], "fp16_mixed"),
        ([(8, 0), (7, 0)], "fp16_mixed"),  # one that has it and one that does not: all rows the same
        ([(6, 1)], "fp16_mixed"),
        ([None], "bf16_mixed"),
    ],
)
def test_the_precision_that_all_gpus_have_units_for(
    suite_file: Path, capabilities: list[tuple[int, int] | None], precision: str
) -> None:
    suite = with_machine_choices(left_open(suite_file), on(*(a_gpu(80, each) for each in capabilities)), None)
    assert taken(suite)["precision"] == precision
    assert {option.choices.precision.name for option in suite.options} == {precision}
    assert all(o.choices.unsupported_reason(on(a_gpu(80, min(c for c in capabilities if c)))) is None
               for o in suite.options if None not in capabilities)  # fmt: skip


@pytest.mark.parametrize(
    ("units", "precision"), [(("bfloat16",), "bf16_mixed"), ((), "fp32"), (("float16",), "fp32")]
)
def test_on_a_cpu_bf16_where_the_processor_has_it(suite_file: Path, units: tuple[str, ...], precision: str) -> None:
    machine = Machine("cpu", packages=EVERYTHING, cpu_units=units)
    suite = with_machine_choices(left_open(suite_file, device="cpu"), machine, None)
    assert taken(suite) == {"precision": precision, "micro_batch_size": "4"}
    why = {one.setting: one.why for one in suite.left_open.machine_choices}
    assert ("no instructions for bf16" in why["precision"]) is (precision == "fp32")


def test_what_was_settled_is_a_suite_like_any_other_and_says_nothing_of_the_machine(suite_file: Path) -> None:
    machine = on(a_gpu(16, (7, 5)))
    suite = with_machine_choices(left_open(suite_file), machine, None)
    assert suite.left_open.settings == {}
    (suite_file.parent / "stored.yaml").write_text(suite_text(suite))
    # Read where there is no GPU at all: nothing is settled anew.
    stored = load_suite(str(suite_file.parent / "stored.yaml"), device="cpu", require_files=False)
    assert stored.left_open.settings == {}
    assert stored.resolved == suite.resolved
    assert [o.choices for o in stored.options] == [o.choices for o in suite.options]
    assert with_machine_choices(stored, on(a_gpu(80, (9, 0))), None) is stored
    best = suite_of_option(stored, "eager")
    assert (best["choices"]["precision"], best["choices"]["micro_batch_size"]) == ({"name": "fp16_mixed"}, 4)


def test_trials_are_those_of_a_suite_that_names_what_was_taken(suite_file: Path) -> None:
    machine = on(a_gpu(16, (7, 5)))
    settled = make_plan(with_machine_choices(left_open(suite_file), machine, None), machine, None, "code")
    named = left_open(suite_file, "choices.precision=fp16_mixed", "choices.micro_batch_size=4")
    assert [p.trial for p in settled.trials] == [p.trial for p in make_plan(named, machine, None, "code").trials]
    settings = settled.trials[0].trial.read_settings()
    assert (settings["precision"], settings["micro_batch_size"]) == ({"name": "fp16_mixed"}, 4)
    elsewhere = with_machine_choices(left_open(suite_file), on(a_gpu(80, (9, 0))), None)
    others = make_plan(elsewhere, on(a_gpu(80, (9, 0))), None, "code").trials
    assert not {p.trial.trial_id for p in settled.trials} & {p.trial.trial_id for p in others}


GPT2 = ["job.model={family: gpt2, n_layer: 12, n_embd: 768, n_head: 12, vocab_size: 50304}", "job.seq_len=1024",
        "job.global_batch_size=48", "choices.precision=fp32"]  # fmt: skip
ONE_ROW = "{sdpa: {}}"


def of_gpt2(suite_file: Path, size: str, rows: str = ONE_ROW, *settings: str, baseline: str = "sdpa") -> Suite:
    sizes = f"choices.micro_batch_size={size}"
    return left_open(suite_file, *GPT2, sizes, *settings, rows=rows, baseline=baseline)


def peaks(suite_file: Path, size: int, rows: str = ONE_ROW) -> dict[str, int | None]:
    suite = of_gpt2(suite_file, str(size), rows)
    machine = on(a_gpu(80, (9, 0)))
    return {p.option.name: p.peak_bytes for p in make_plan(suite, machine, None, "code").options}


def test_the_largest_size_that_fits_the_smallest_gpu(suite_file: Path) -> None:
    suite = of_gpt2(suite_file, "{at_most: 16}")
    needed = {size: peaks(suite_file, size)["sdpa"] for size in (1, 2, 3, 4, 6, 8, 12, 16)}
    for size, peak in needed.items():
        assert peak is not None
        just = peak / FITTING_SHARE / 2**30
        enough = on(a_gpu(just * 1.0001, (9, 0)), a_gpu(80, (9, 0)))
        assert taken(with_machine_choices(suite, enough, None)) == {"micro_batch_size": str(size)}
        if size > 1:
            less = int(
                taken(with_machine_choices(suite, on(a_gpu(just * 0.999, (9, 0))), None))["micro_batch_size"]
            )
            assert less == max(smaller for smaller in needed if smaller < size)


def test_the_option_that_takes_most_decides_for_all_and_one_that_cannot_run_does_not(suite_file: Path) -> None:
    alone, both = (peaks(suite_file, 8, rows) for rows in (ONE_ROW, TWO_ROWS))
    assert alone["sdpa"] == both["sdpa"]
    demanding = both["eager"]
    assert demanding is not None
    assert alone["sdpa"] is not None
    assert demanding > alone["sdpa"]
    machine = on(a_gpu(demanding / FITTING_SHARE / 2**30 * 0.999, (7, 5)))
    suite = with_machine_choices(of_gpt2(suite_file, "{at_most: 8}", TWO_ROWS), machine, None)
    assert {o.choices.micro_batch_size for o in suite.options} == {6}
    assert "eager is expected to take" in suite.left_open.machine_choices[0].why
    # The same demand of a row that this GPU can't run.
    named = of_gpt2(suite_file, "{at_most: 8}", "{sdpa: {}, eager: {attention: eager, precision: tf32}}")
    assert taken(with_machine_choices(named, machine, None)) == {"micro_batch_size": "8"}


def test_a_size_cuts_every_options_step_on_all_its_ranks(suite_file: Path) -> None:
    rows = "{one: {strategy: ddp, world_size: 1}, six: {strategy: ddp, world_size: 6}}"
    suite = of_gpt2(suite_file, "{at_most: 48}", rows, baseline="one")
    assert taken(with_machine_choices(suite, on(*[a_gpu(500, (9, 0))] * 6), None)) == {"micro_batch_size": "8"}
    # Also where the six are too many: the row says so and is planned like the others.
    alone = with_machine_choices(suite, on(a_gpu(500, (9, 0))), None)
    assert taken(alone) == {"micro_batch_size": "8"}
    assert make_plan(alone, on(a_gpu(500, (9, 0))), None, "code").planned("six").unsupported is not None
    batches = "{a: {global_batch_size: 48}, b: {global_batch_size: 32}}"
    job = ("job.max_steps=8", "job.eval=none", "decide={constraints: []}")
    suite = of_gpt2(suite_file, "{at_most: 48}", batches, *job, baseline="a")
    assert taken(with_machine_choices(suite, on(a_gpu(500, (9, 0))), None)) == {"micro_batch_size": "16"}


def test_where_nothing_fits_the_smallest_is_tried_and_told(suite_file: Path) -> None:
    suite = of_gpt2(suite_file, "{at_most: 16}")
    machine = on(a_gpu(2, (9, 0), "Tiny"))
    settled = with_machine_choices(suite, machine, None)
    assert taken(settled) == {"micro_batch_size": "1"}
    (choice,) = settled.left_open.machine_choices
    assert choice.why.startswith("none fits into 85% of the 2.00 GiB of Tiny; with 1 sequence sdpa would take ")
    (warning,) = [w for w in make_plan(settled, machine, None, "code").warnings if "memory" in w]
    assert warning.startswith("sdpa is expected to take ")
    assert warning.endswith("and Tiny has 2.00 GiB: it may run out of memory")


def test_a_gpu_that_tells_no_memory_is_taken_for_large(suite_file: Path) -> None:
    suite = of_gpt2(suite_file, "{at_most: 16}")
    for machine in (on(a_gpu(None, (9, 0))), on()):
        settled = with_machine_choices(suite, machine, None)
        assert taken(settled) == {"micro_batch_size": "16"}
        assert settled.left_open.machine_choices[0].why == "no GPU reports its memory"


def test_a_model_that_is_not_known_needs_a_number(suite_file: Path) -> None:
    suite = left_open(suite_file, 'job.model={family: "ourlib.model:Net"}')
    machine = on(a_gpu(16, (9, 0)))
    with pytest.raises(UserError) as refused:
        with_machine_choices(suite, machine, {})
    assert str(refused.value) == (
        "suite tiny: option sdpa: choices.micro_batch_size: {at_most: 4}: how much memory this model takes is not "
        "known: give a number, as in --set choices.micro_batch_size=4, or auto, which tries sizes"
    )
    # Before its data are there nothing is refused.
    assert taken(with_machine_choices(suite, machine, None))["micro_batch_size"] == "4"


@pytest.mark.parametrize("keys", [{}, {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}])
def test_a_configuration_file_is_read_for_its_shape(suite_file: Path, keys: dict[str, int]) -> None:
    config = {"model_type": "gpt2", "vocab_size": 400, **keys}
    path = suite_file.parent / "config.json"
    path.write_text(json.dumps(config))
    suite = left_open(suite_file, f"job.model={{config: {path}}}")
    machine = on(a_gpu(16, (9, 0)))
    if keys:
        assert taken(with_machine_choices(suite, machine, {}))["micro_batch_size"] == "4"
    else:
        with pytest.raises(UserError, match="how much memory this model takes is not known"):
            with_machine_choices(suite, machine, {})


def test_a_plan_takes_no_suite_that_leaves_something_open(suite_file: Path) -> None:
    with pytest.raises(AssertionError, match="settled before"):
        make_plan(left_open(suite_file), on(a_gpu(16, (9, 0))), None, "code")


def test_the_plan_says_what_was_taken_and_why(suite_file: Path) -> None:
    machine = on(a_gpu(15, (7, 5), "Tesla T4"))
    suite = with_machine_choices(left_open(suite_file), machine, None)
    plan = make_plan(suite, machine, None, "code")
    console = Console(width=200, record=True, color_system=None)
    with console.capture() as captured:
        print_document(console, plan_document(Outlook(plan)))
    shown = captured.get()
    why = "as compute capability 7.5 has no bf16, which needs 8.0 (asked: auto)"
    assert f"precision: fp16_mixed, {why}\n" in shown
    assert "micro_batch_size: 4, as eager is expected to take " in shown
    assert ", at most 85% of the 15.0 GiB of Tesla T4 (asked: at_most 4)\n" in shown
    assert "memory" in shown
    content = json.loads(plan_as_json(Outlook(plan)))
    assert [(one["setting"], one["taken"]) for one in content["machine_choices"]] == [
        ("precision", "fp16_mixed"), ("micro_batch_size", "4"),
    ]  # fmt: skip
    assert {option["precision"] for option in content["options"]} == {"fp16_mixed"}
    assert all(option["expected_peak_memory_bytes"] > 0 for option in content["options"])


T4: dict[str, Any] = {
    "gpu0.name": "Tesla T4", "gpu0.capability": "7.5", "gpu0.memory_total": 15360 << 20, "gpu0.cores": 2560,
    "gpu0.max_sm_clock": 1590,
}  # fmt: skip
H200: dict[str, Any] = {
    "gpu0.name": "NVIDIA H200", "gpu0.capability": "9.0", "gpu0.memory_total": 143771 << 20,
}  # fmt: skip
LLAMA: dict[str, Any] = {"model_type": "llama", "tie_word_embeddings": True}
PUBLISHED: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M": {
        **LLAMA, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49152,
    },
    "HuggingFaceTB/SmolLM2-360M": {
        **LLAMA, "hidden_size": 960, "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5,
        "intermediate_size": 2560, "vocab_size": 49152,
    },
    "openai-community/gpt2": {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257,
        "activation_function": "gelu_new",
    },
    "Qwen/Qwen2.5-0.5B": {
        "model_type": "qwen2", "tie_word_embeddings": True, "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
    },
}  # fmt: skip
"""Of the configurations of the models that the suites name, what their memory follows from."""


@pytest.fixture
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, config in PUBLISHED.items():
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(config))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)


BUILT = [name for name in names() if name != "frameworks"]
"""Shipped suites whose jobs are built; what a script takes of a GPU nobody knows beforehand."""


def shipped(
    name: str, driver: StandIn, gpu: dict[str, Any], count: int = 1, nodes: int = 1, profile: str = "cuda"
) -> Plan:
    """The plan of a shipped suite's cuda profile, or another, on GPUs that the driver's stand-in shows."""
    script = {f"gpu{n}.{key.removeprefix('gpu0.')}": value for n in range(count) for key, value in gpu.items()}
    driver.set(count=count, **script, **{f"gpu{n}.uuid": f"GPU-{n}" for n in range(count)})
    machine = replace(inspect_machine("cuda"), packages=EVERYTHING, nodes=nodes)
    machine = machine.on(machine.gpus)
    assert machine.device_count == count
    suite = load_suite(name, device="cuda", profile=None if profile == "cuda" else profile)
    assert suite.profile == profile
    return make_plan(with_machine_choices(suite, machine, None), machine, None, "code")


def able(plan: Plan) -> dict[str, int | None]:
    return {p.option.name: p.peak_bytes for p in plan.options if p.unsupported is None}


@pytest.mark.usefixtures("_hub")
@pytest.mark.parametrize("name", BUILT)
def test_every_shipped_suite_gives_a_ranking_on_a_t4(name: str, stand_in: StandIn) -> None:
    plan = shipped(name, stand_in, T4)
    found = able(plan)
    assert plan.suite.baseline in found
    # What needs bf16, tf32 or more GPUs is unsupported; precision and scaling are about that.
    assert len(found) > {"precision": 1, "scaling": 0}.get(name, len(plan.options) // 2)
    fitting = {option for option, peak in found.items() if peak is not None and peak < 15e9}
    assert plan.suite.baseline in fitting
    # Sizes are what the suite is about: those that do not fit are rows of their own.
    assert found.keys() - fitting <= ({"whole"} if name == "accumulation" else set())
    whole = load_suite(name, device="cuda")
    assert plan.suite.job == whole.job
    assert {plan.suite.job.of(o.choices).global_batch_size for o in plan.suite.options} == {
        whole.job.of(o.choices).global_batch_size for o in whole.options
    }


@pytest.mark.usefixtures("_hub")
@pytest.mark.parametrize("name", BUILT)
def test_every_shipped_suite_uses_a_large_gpu(name: str, stand_in: StandIn) -> None:
    plan = shipped(name, stand_in, H200)
    taken_here = taken(plan.suite)
    asked = load_suite(name, device="cuda").left_open
    if asked.precision:
        assert taken_here["precision"] == "bf16_mixed"
    if asked.micro_batch_size is not None:
        assert taken_here["micro_batch_size"] == str(asked.micro_batch_size.at_most)
    peak = max(peak for peak in able(plan).values() if peak is not None)
    assert peak <= FITTING_SHARE * (143771 << 20)


@pytest.mark.parametrize(("name", "size"), [("distributed", "8"), ("framework", "8"), ("scaling", "8")])
def test_eight_ranks_share_a_step_of_64_sequences(name: str, size: str, stand_in: StandIn) -> None:
    plan = shipped(name, stand_in, H200, count=8)
    assert taken(plan.suite)["micro_batch_size"] == size
    assert all(p.unsupported is None for p in plan.options)


def test_four_nodes_of_eight_gpus_share_a_step(stand_in: StandIn) -> None:
    over, scaled = (
        shipped(name, stand_in, H200, 8, 4, profile)
        for name, profile in (("multinode", "cuda"), ("scaling", "nodes"))
    )
    assert {(p.world_size, p.gradient_accumulation_steps, p.unsupported) for p in over.options} == {(32, 1, None)}
    found = {p.world_size: p.unsupported for p in scaled.options}
    assert found.pop(2) == "world_size 2 can't be shared evenly by 4 nodes"
    assert found == dict.fromkeys((1, 8, 16, 32))

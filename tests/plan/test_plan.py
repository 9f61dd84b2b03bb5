"""A suite to trials: order, identity, what cannot run, and the expected time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from launch.harness import TINY_SUITE, corpus
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from selectbench.data.prepare import prepare
from selectbench.errors import UserError
from selectbench.machine import Machine
from selectbench.planning.duration import History, Outlook, estimate
from selectbench.planning.plan import (
    Plan,
    heldout_warnings,
    in_run_order,
    make_plan,
    split_warnings,
    suite_warnings,
    vocabulary_warnings,
)
from selectbench.report.terminal import plan_as_json, plan_document, print_document
from selectbench.suite.load import load_suite
from selectbench.suite.suite import Suite

PACKAGES = {"torch": "2.13.0", "transformers": "5.23.0"}
CPU = Machine(device="cpu", packages=PACKAGES)


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text(corpus())
    (tmp_path / "tiny.yaml").write_text(TINY_SUITE)
    return tmp_path / "tiny.yaml"


def planned(suite: Suite, machine: Machine = CPU) -> Plan:
    return make_plan(suite, machine, None, "code")


def test_every_round_holds_every_option_once_in_an_order_of_its_own(suite_file: Path) -> None:
    seeds = ",".join(map(str, range(12)))
    suite = load_suite(str(suite_file), device="cpu", seeds=seeds, axes=["micro_batch_size=1,2,4"])
    trials = in_run_order(planned(suite).trials, "20260102T030405.678Z-abc")
    assert len(trials) == len({p.trial.trial_id for p in trials}) == 12 * len(suite.options)
    orders = [[p.trial.option for p in trials if p.round == number] for number in range(12)]
    assert all(sorted(order) == sorted(o.name for o in suite.options) for order in orders)
    assert all({p.trial.seed for p in trials if p.round == n} == {n} for n in range(12))
    assert len({tuple(order) for order in orders}) > 1
    assert [p.round for p in trials] == sorted(p.round for p in trials)
    assert all(there == back[::-1] for there, back in zip(orders[::2], orders[1::2], strict=True))


def test_the_order_is_the_runs_own_and_goes_on_where_rounds_are_added(suite_file: Path) -> None:
    longer, suite = (
        planned(load_suite(str(suite_file), device="cpu", seeds=seeds, axes=["micro_batch_size=1,2,4"]))
        for seeds in ("0,1,2,3,4", "0,1,2")
    )
    assert in_run_order(longer.trials, "a")[: len(suite.trials)] == in_run_order(suite.trials, "a")
    assert len({tuple(p.trial.trial_id for p in in_run_order(suite.trials, run)) for run in "abcdefgh"}) > 1


def test_the_plan_is_the_same_every_time(suite_file: Path) -> None:
    suite = load_suite(str(suite_file), device="cpu")
    assert planned(suite) == planned(suite)


@pytest.mark.parametrize("change", ["job.max_steps=7", "choices.optimizer.lr=2e-3", "job.eval.tokens=256"])
def test_another_job_or_setting_is_another_trial(suite_file: Path, change: str) -> None:
    before = planned(load_suite(str(suite_file), device="cpu"))
    after = planned(load_suite(str(suite_file), device="cpu", settings=[change]))
    ids = [{p.trial.trial_id for p in plan.trials} for plan in (before, after)]
    assert len(ids[0]) == len(ids[1]) == 4
    assert not ids[0] & ids[1]


def test_other_code_is_another_trial(suite_file: Path) -> None:
    suite = load_suite(str(suite_file), device="cpu")
    one, other = (make_plan(suite, CPU, None, code).trials for code in ("a", "b"))
    assert not {p.trial.trial_id for p in one} & {p.trial.trial_id for p in other}


def test_what_cannot_run_has_its_reason(suite_file: Path) -> None:
    axes = ["precision=fp32,tf32"]
    plan = planned(load_suite(str(suite_file), device="cpu", axes=axes))
    reasons = {p.option.name: p.unsupported for p in plan.options}
    assert reasons["fp32"] is None
    assert "cuda" in str(reasons["tf32"])
    old = planned(
        load_suite(str(suite_file), device="cuda", axes=axes),
        Machine(device="cuda", compute_capability=(7, 5), packages=PACKAGES),
    )
    assert "compute capability 8.0" in str({p.option.name: p.unsupported for p in old.options}["tf32"])


def test_a_missing_package_is_named_with_its_command(suite_file: Path) -> None:
    suite = load_suite(str(suite_file), device="cpu", settings=["choices.optimizer={name: lion, lr: 1e-4}"])
    plan = planned(suite)
    assert "bitsandbytes" in str(plan.options[0].unsupported)
    assert "pip install" in str(plan.options[0].unsupported)
    assert any("baseline" in line for line in plan.warnings)


def test_ranks_that_auto_finds_must_divide_the_batch(suite_file: Path) -> None:
    suite = load_suite(str(suite_file), device="cuda", settings=["choices.world_size=auto"])
    machine = Machine(device="cuda", device_count=3, packages=PACKAGES)
    with pytest.raises(UserError, match=r"global_batch_size 4 .* world_size 3"):
        planned(suite, machine)


def test_repeating_the_corpus_is_said_and_memorising_is_warned_of(suite_file: Path) -> None:
    suite = load_suite(str(suite_file), device="cpu")
    assert suite_warnings(suite, 0.9) == []
    assert "1.50 epochs" in suite_warnings(suite, 1.5)[0]
    assert "memorising" in suite_warnings(suite, 4.5)[0]


def test_paging_on_a_cpu_is_said_to_be_none(suite_file: Path) -> None:
    paged = ["choices.optimizer={name: paged_adamw_8bit, lr: 1e-4}"]
    assert "nothing is paged" in suite_warnings(load_suite(str(suite_file), device="cpu", settings=paged), None)[0]
    assert suite_warnings(load_suite(str(suite_file), device="cuda", settings=paged), None) == []


def test_a_learning_rate_that_does_not_follow_the_job_s_schedule_is_said(suite_file: Path) -> None:
    axes = ["optimizer={name: adamw, lr: 1e-3},{name: schedule_free_adamw, lr: 1e-3}"]
    suite = load_suite(str(suite_file), device="cpu", axes=axes)
    (warning,) = suite_warnings(suite, None)
    other, own = suite.options
    assert warning.startswith(f"{own.name}: schedule_free_adamw keeps its learning rate after the warm-up")
    assert suite.job.of(own.choices).lr_schedule.name == "constant"
    assert suite.job.of(other.choices).lr_schedule == suite.job.lr_schedule
    assert suite.job.of(own.choices).lr_schedule.warmup_steps == suite.job.lr_schedule.warmup_steps


OF_THE_TRAINER = "it trains fp32 weights, with or without autocast: take fp32, tf32, bf16_mixed or fp16_mixed"


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ("framework: hf_trainer, strategy: ddp, precision: bf16_mixed", None),
        ('framework: "ourlib.loop:train", strategy: ddp, precision: bf16_pure', None),
        ("framework: hf_trainer, strategy: {name: zero, stage: 2}",
         "framework hf_trainer with strategy zero 2: take single or ddp"),
        ("framework: hf_trainer, strategy: fsdp",
         "framework hf_trainer with strategy fsdp: take single or ddp"),
        ("framework: hf_trainer, precision: bf16_master",
         f"framework hf_trainer with precision bf16_master: {OF_THE_TRAINER}"),
        ('framework: "ourlib.loop:train", strategy: fsdp',
         "framework ourlib.loop:train with strategy fsdp: take single or ddp"),
    ],
)  # fmt: skip
def test_a_loop_runs_with_what_it_can(suite_file: Path, choices: str, reason: str | None) -> None:
    settings = [f"options.whole={{{choices}}}"]
    everything = {**PACKAGES, "accelerate": "1.14.0", "deepspeed": "0.19.8"}
    plan = planned(
        load_suite(str(suite_file), device="cpu", settings=settings), Machine("cpu", packages=everything)
    )
    assert plan.planned("whole").unsupported == reason


@pytest.mark.parametrize(
    ("precision", "runs"),
    [("fp32", False), ("bf16_mixed", True), ("fp16_mixed", True), ("bf16_master", True), ("bf16_pure", True)],
)
def test_flash_attention_needs_a_half_precision_of_any_regime(
    suite_file: Path, precision: str, *, runs: bool
) -> None:
    settings = [f"options.whole={{attention: flash_attention_2, precision: {precision}}}"]
    machine = Machine("cuda", compute_capability=(9, 0), packages={**PACKAGES, "flash-attn": "2.8.0"})
    plan = planned(load_suite(str(suite_file), device="cuda", settings=settings), machine)
    assert (plan.planned("whole").unsupported is None) is runs


AUTOTUNED = "compile: max-autotune"


@pytest.mark.parametrize(
    ("device", "option", "holder"),
    [
        ("cuda", f"{{{AUTOTUNED}, strategy: fsdp, world_size: 2, micro_batch_size: 1}}", "strategy fsdp"),
        ("cuda", f"{{{AUTOTUNED}, strategy: {{name: zero, stage: 1}}, micro_batch_size: 2}}", "strategy zero 1"),
        ("cuda", f"{{{AUTOTUNED}, framework: hf_trainer, micro_batch_size: 2}}", "framework hf_trainer"),
        ("cuda", f"{{{AUTOTUNED}, strategy: fsdp, world_size: 2, micro_batch_size: 2}}", None),
        ("cuda", "{compile: default, strategy: fsdp, micro_batch_size: 2}", None),
        ("cuda", f"{{{AUTOTUNED}, micro_batch_size: 2}}", None),
        ("cuda", f"{{{AUTOTUNED}, strategy: ddp, micro_batch_size: 2}}", None),
        ("cpu", f"{{{AUTOTUNED}, strategy: fsdp, micro_batch_size: 2}}", None),
    ],
)
def test_gradients_in_the_memory_of_cuda_graphs_are_not_accumulated(
    suite_file: Path, device: str, option: str, holder: str | None
) -> None:
    """Four sequences a step; what begins a step without gradients would add to those that the graph overwrites."""
    packages = {**PACKAGES, "accelerate": "1.15", "deepspeed": "0.19"}
    machine = Machine(device, compute_capability=(9, 0), device_count=2, compiler="gcc", packages=packages)
    suite = load_suite(str(suite_file), device=device, settings=[f"options.whole={option}"])
    reason = planned(suite, machine).planned("whole").unsupported
    if holder is None:
        assert reason is None
    else:
        assert reason is not None
        assert set(reason.partition(": ")[0].split(" with ")) == {"compile max-autotune", holder}
        assert "take compile default" in reason


def test_what_the_trainer_needs_is_named_with_its_command(suite_file: Path) -> None:
    suite = load_suite(str(suite_file), device="cpu", settings=["options.whole={framework: hf_trainer}"])
    reason = planned(suite).planned("whole").unsupported
    assert reason == (
        "framework hf_trainer: the package accelerate is not installed: pip install 'selectbench[accelerate]'"
    )
    old = Machine("cpu", packages={**PACKAGES, "accelerate": "0.34"})
    assert "needs accelerate>=1.1, found accelerate 0.34" in str(planned(suite, old).planned("whole").unsupported)


def test_more_ranks_than_cores_are_warned_of_on_a_cpu_only(suite_file: Path) -> None:
    settings = ["options.halves={strategy: ddp, world_size: 4, micro_batch_size: 1}"]
    suite = load_suite(str(suite_file), device="cpu", settings=settings)
    assert suite_warnings(suite, None, 4.0) == []
    assert suite_warnings(suite, None) == []
    assert "halves: 4 ranks share 2 cores" in suite_warnings(suite, None, 2.0)[0]
    assert suite_warnings(load_suite(str(suite_file), device="cuda", settings=settings), None, 2.0) == []


def test_another_content_of_own_code_is_another_plan_of_the_same_trials(suite_file: Path) -> None:
    code = suite_file.parent / "ourlib"
    code.mkdir()
    (code / "opt.py").write_text("raise RuntimeError('planning imports no own code')\n")
    settings = [f"code=[{code}]", 'choices.optimizer={name: "ourlib.opt:Mine", lr: 1e-3}']
    suite = load_suite(str(suite_file), device="cpu", settings=settings)
    first, again = planned(suite), planned(suite)
    assert first == again
    assert first.own_code_sha256 is not None
    (code / "opt.py").write_text("x = 1\n")
    other = planned(suite)
    assert other.own_code_sha256 != first.own_code_sha256
    assert [p.trial.trial_id for p in other.trials] == [p.trial.trial_id for p in first.trials]
    assert planned(load_suite(str(suite_file), device="cpu")).own_code_sha256 is None


def test_an_own_model_is_planned_without_knowing_its_size(suite_file: Path) -> None:
    settings = ['job.model={family: "ourlib.model:Net", settings: {wide: 8}}']
    plan = planned(load_suite(str(suite_file), device="cpu", settings=settings))
    assert plan.parameters is None
    assert estimate(plan, CPU, History()) is None
    assert [p.unsupported for p in plan.options] == [None, None]


def test_the_plan_shows_how_every_option_is_laid_out(suite_file: Path) -> None:
    settings = [
        "options.whole={strategy: ddp, world_size: 2, micro_batch_size: 2, framework: hf_trainer}",
        "options.halves={strategy: {name: zero, stage: 3}, world_size: 2}",
    ]
    plan = planned(load_suite(str(suite_file), device="cpu", settings=settings, seeds="0"))
    console = Console(width=160, record=True, color_system=None)
    with console.capture() as captured:
        print_document(console, plan_document(Outlook(plan)))
    assert "ddp x 2 ranks, hf_trainer" in captured.get()
    assert "zero 3 x 2 ranks" in captured.get()
    whole, halves = json.loads(plan_as_json(Outlook(plan)))["options"]
    assert (whole["strategy"]["name"], whole["world_size"], whole["framework"]) == ("ddp", 2, "hf_trainer")
    assert (halves["strategy"]["stage"], halves["framework"], halves["python"]) == (3, "native", None)


def test_the_plan_says_what_is_tuned(suite_file: Path) -> None:
    settings = [
        "options.halves={optimizer: {name: sgd, lr: 0.1, warmup_fraction: 0.5}}",
        "tune={parameters: {optimizer.lr: {}, optimizer.warmup_fraction: {linear: [0, 0.2]}}, trials: 4}",
    ]
    plan = planned(load_suite(str(suite_file), device="cpu", settings=settings))
    console = Console(width=160, record=True, color_system=None)
    with console.capture() as captured:
        print_document(console, plan_document(Outlook(plan)))
    assert "tuned for each option first: optimizer.lr, optimizer.warmup_fraction\n" in captured.get()
    narrow = Console(width=12, color_system=None)
    with narrow.capture() as captured:
        print_document(narrow, plan_document(Outlook(plan)))
    assert "…" in captured.get(), "a number that has no room is cut with a mark"
    content = json.loads(plan_as_json(Outlook(plan)))
    assert [option["warmup_steps"] for option in content["options"]] == [2, 3]
    assert content["tuned"] == ["optimizer.lr", "optimizer.warmup_fraction"]


def test_held_out_text_that_is_less_than_asked_is_told(suite_file: Path) -> None:
    suite = load_suite(str(suite_file), device="cpu", settings=["job.eval.tokens=100000"])
    data = prepare(suite.job.data, suite.job.tokenizer)
    (line,) = make_plan(suite, CPU, dict.fromkeys(["whole", "halves"], data), "code").warnings
    scored = (data.heldout_tokens - 1) // suite.job.seq_len * suite.job.seq_len
    assert line.startswith(f"the held-out text gives {scored:,} tokens, job.eval.tokens asks for 100,000")
    assert heldout_warnings(suite, {"whole": 100_000, "halves": None}) == []
    (line,) = heldout_warnings(suite, {"whole": 100_000, "halves": 99_999})
    assert line.startswith("halves: the held-out text gives 99,999 tokens")
    without = load_suite(str(suite_file), device="cpu", settings=["job.eval=none"])
    assert heldout_warnings(without, {"whole": 1}) == []


def test_a_vocabulary_that_came_out_smaller_is_told(suite_file: Path) -> None:
    suite = load_suite(str(suite_file), device="cpu")
    assert vocabulary_warnings(suite, {"whole": 300, "halves": 290}) == []
    (line,) = vocabulary_warnings(suite, {"whole": 120, "halves": 300})
    assert line == "whole: the text yields a vocabulary of 120; 300 were asked for"
    (line,) = vocabulary_warnings(suite, {"whole": 120, "halves": 120})
    assert line == "the text yields a vocabulary of 120; 300 were asked for"


def test_a_held_out_side_larger_than_the_training_side_is_told(suite_file: Path, tmp_path: Path) -> None:
    suite = load_suite(str(suite_file), device="cpu")
    data = prepare(suite.built.data, suite.built.tokenizer)
    names = [option.name for option in suite.options]
    assert split_warnings(suite, dict.fromkeys(names, data)) == []
    larger = replace(data, train_tokens=276, heldout_tokens=1313)
    (line,) = split_warnings(suite, dict.fromkeys(names, larger))
    assert line.startswith("more text is held out (1,313 tokens) than trained on (276)")
    (line,) = split_warnings(suite, {names[0]: data, names[1]: larger})
    assert line.startswith(f"{names[1]}: more text is held out")
    apart = [f"job.data={{train: {{text: [{suite_file}]}}, heldout: {{text: [{suite_file}]}}}}"]
    chosen = load_suite(str(suite_file), device="cpu", settings=apart)
    assert split_warnings(chosen, dict.fromkeys(names, larger)) == []  # as it was asked for


QWEN = {
    "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "tie_word_embeddings": True,
}  # fmt: skip


def shown(plan: Plan) -> str:
    console = Console(width=400, record=True, color_system=None)
    print_document(console, plan_document(Outlook(plan)))
    return console.export_text()


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_configuration_file_s_vocabulary_parameters_and_unused_rows_are_told(
    suite_file: Path, is_tied: bool
) -> None:
    config = {**QWEN, "vocab_size": 2000, "tie_word_embeddings": is_tied}
    (suite_file.parent / "config.json").write_text(json.dumps(config))
    asked = [f"job.model={{config: {suite_file.parent}}}"]
    plan = planned(load_suite(str(suite_file), device="cpu", settings=asked))
    copies = 1 if is_tied else 2
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    real = made.num_parameters()
    assert plan.parameters == pytest.approx(real, rel=0.01)
    assert plan.options[0].size.embeddings == copies * 2000 * 64
    unused = copies * 1700 * 64
    (told,) = [line for line in plan.warnings if "rows" in line]
    assert told == (
        f"the model has rows for 2,000 tokens, and the data have 300: {unused:,} of {plan.parameters:,} parameters "
        f"({unused / plan.parameters:.0%}) are of tokens that never occur (--set job.model.vocab_size=300, or a "
        "larger tokenizer)"
    )
    inside = f"{copies * 2000 * 64 / plan.parameters:.0%}"
    assert f"model: about {plan.parameters:,} parameters, {inside} in embeddings of 2,000 tokens\n" in shown(plan)
    (option, _) = json.loads(plan_as_json(Outlook(plan)))["options"]
    assert (option["vocab_size"], option["tokenizer_entries"]) == (2000, 300)
    mended = load_suite(str(suite_file), device="cpu", settings=[*asked, "job.model.vocab_size=300"])
    assert not [line for line in planned(mended).warnings if "rows" in line]


NO_KERNEL = "attention sdpa: Gemma2ForCausalLM of transformers has no such kernel: take eager"


@pytest.mark.parametrize(
    ("config", "settings", "told"),
    [
        ({"model_type": "gemma2"}, [], NO_KERNEL),
        ({"model_type": "gemma2"}, ["choices.attention=eager"], None),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "vocab_size": 512}}, [], None),
    ],
)  # fmt: skip
def test_a_kernel_that_a_family_lacks_is_told_before_anything_runs(
    suite_file: Path, config: dict[str, object], settings: list[str], told: str | None
) -> None:
    (suite_file.parent / "config.json").write_text(json.dumps(config))
    asked = [f"job.model={{config: {suite_file.parent}}}", *settings]
    plan = planned(load_suite(str(suite_file), device="cpu", settings=asked))
    assert {option.unsupported for option in plan.options} == {told}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"vocab_size": 299}, "the model's vocab_size 299 is less than the tokenizer's 300"),
        ({"max_position_embeddings": 8}, "seq_len 16 is more than the model's 8 positions"),
    ],
)
def test_a_configuration_of_several_is_read_where_it_tells_of_text(
    suite_file: Path, text: dict[str, object], said: str
) -> None:
    config = {"model_type": "gemma3", "vocab_size": 9999, "text_config": {"model_type": "gemma3_text", **text}}
    (suite_file.parent / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        load_suite(str(suite_file), device="cpu", settings=[f"job.model={{config: {suite_file.parent}}}"])


def test_what_optimizers_differ_in_besides_the_learning_rate_is_shown(suite_file: Path) -> None:
    lion, same = "{optimizer: {name: lion, lr: 1e-4}}", "{optimizer: {lr: 3e-3}}"
    suite = load_suite(str(suite_file), device="cpu", settings=[f"options.lion={lion}", f"options.same={same}"])
    told = shown(planned(suite))
    own = "weight_decay 1 (0.1), beta2 0.99 (0.95)"
    assert f"\nlion besides the learning rate (whole in brackets): {own}\n" in told
    assert "same besides" not in told
    as_adamw = "options.lion={optimizer: {name: lion, lr: 1e-4, weight_decay: 0.1, beta2: 0.95}}"
    assert "besides the learning rate" not in shown(
        planned(load_suite(str(suite_file), device="cpu", settings=[as_adamw]))
    )


def test_unused_rows_are_told_of_the_options_that_have_them_and_from_a_factor_of_two_on(suite_file: Path) -> None:
    asked = ["options.halves={model: {vocab_size: 601}}", "job.model.vocab_size=600"]
    (line,) = planned(load_suite(str(suite_file), device="cpu", settings=asked)).warnings
    assert line.startswith("halves: the model has rows for 601 tokens, and the data have 300: 9,632 of ")


@pytest.mark.parametrize(
    ("whole", "share", "doubted"), [(6, "0.5x", True), (6, "1x", False), (198, "0.5x", True), (200, "0.5x", False)]
)
def test_tuning_in_few_steps_of_more_is_doubted(suite_file: Path, whole: int, share: str, doubted: bool) -> None:
    tune = f"tune={{parameters: {{optimizer.lr: {{n: 3}}}}, budget: {{max_steps: {share}}}}}"
    suite = load_suite(str(suite_file), device="cpu", settings=[tune, f"job.max_steps={whole}"])
    found = suite_warnings(suite, None)
    assert [f"a tuning trial has {whole // 2} of the job's {whole} steps" in line for line in found] == [
        True
    ] * doubted

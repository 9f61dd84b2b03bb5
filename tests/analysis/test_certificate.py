"""What two options' identities prove, and what they do not."""

from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import pytest
from evidence.readme_table import ROOT
from hypothesis import given
from hypothesis import strategies as st
from made_records import IDENTITY, entries, make_record, make_suite, speed
from msgspec.structs import replace

from selectbench.analysis.identity import FIELDS, MASKS, OF_SCRIPTS, Status, certify, compare, may_change
from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Certificate, NotVerified
from selectbench.analysis.summary import summarise
from selectbench.choices import REGISTRY
from selectbench.launch.publish import read_run
from selectbench.record.record import Identity, Record
from selectbench.suite.job import LrSchedule, distinct_rates, shape_sha256, shares
from selectbench.suite.suite import Suite

NOTHING: frozenset[str] = frozenset()
OTHER: dict[str, Any] = {
    "initial_weights_sha256": "f" * 64, "token_stream_sha256": "f" * 64, "evaluation_set_sha256": "f" * 64,
    "parameters": 1_000_001, "tokens_per_step": 1024, "steps_requested": 59, "steps_applied": 59,
    "gradient_accumulation_steps": 2, "learning_rate_shape_sha256": "f" * 64, "parameter_dtype": "bfloat16",
    "working_dtype": "bfloat16",
    "gradient_dtype": "bfloat16", "compute_dtype": "bfloat16", "optimizer_state_dtype": ["bfloat16"],
    "matmul_tf32": True, "attention": "eager", "sdpa_backends": ["math"], "optimizer": ["SGD(fused)"],
    "compiled": True, "trainable_parameters": 5, "peak_learning_rate": [2e-3],
    "first_step_loss": 9.0, "first_step_gradient_norm": 2.0, "world_size": 2,
    "strategy": "FSDPModule",
    "framework": "transformers.Trainer", "loss": "mine:Loss", "dropout": 0.1, "code_sha256": "f" * 64,
    "random_modules": ["model.layers.*.mlp"],
}  # fmt: skip


HALVES: dict[str, Any] = {"global_batch_size": 8, "micro_batch_size": 8}
IN_HALVES: dict[str, Any] = {
    "token_stream_sha256": "e" * 64, "tokens_per_step": 1024, "steps_requested": 120, "steps_applied": 120,
    "learning_rate_shape_sha256": shape_sha256(shares(LrSchedule(), 120)), "first_step_loss": 7.8,
    "first_step_gradient_norm": 1.9,
}  # fmt: skip
"""What a trial in steps of half the job's sequences is found to have."""


def statuses(ours: Identity, theirs: Identity, declared: frozenset[str]) -> dict[str, Status]:
    found = compare(ours, theirs, declared)
    return {name: found.get(name, "same") for name in FIELDS}


def certificates(suite: Suite, records: list[Record]) -> dict[str, Certificate]:
    summaries, _ = summarise(suite, records)
    return certify(suite, summaries)


def against_fp32(other: dict[str, Any], **changes: Any) -> Certificate:
    """Of an option with these choices whose three seeds were found with these changes."""
    suite = make_suite("fp32", ("other", other))
    records = [make_record("fp32", s) for s in range(3)]
    step = suite.job.of(suite.options[1].choices).tokens_per_step
    records += [make_record("other", s, identity=changes, tokens_per_step=step) for s in range(3)]
    return certificates(suite, records)["other"]


def test_every_field_is_tried_below() -> None:
    assert set(OTHER) == set(FIELDS) - {"reduction_dtype"} - OF_SCRIPTS


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"first_step_update_norm": 0.2}, {"first_step_update_norm": "violation"}),
        ({"left_out_parameters": 400_000}, {"left_out_parameters": "violation"}),
        ({"heldout_rows_trained": 8}, {"heldout_rows_trained": "violation"}),
        # What follows from another difference is not the culprit.
        ({"left_out_parameters": 400_000, "first_step_update_norm": 0.2},
         {"left_out_parameters": "violation", "first_step_update_norm": "not_verified"}),
        ({"first_step_gradient_norm": 2.0, "first_step_update_norm": 1.2},
         {"first_step_gradient_norm": "violation", "first_step_update_norm": "not_verified"}),
        ({"first_step_update_norm": None}, {"first_step_update_norm": "not_verified"}),
        ({"heldout_rows_trained": None}, {"heldout_rows_trained": "not_verified"}),
        ({"first_step_added_loss": 0.03}, {"first_step_added_loss": "violation"}),
        ({"first_step_added_loss": None}, {"first_step_added_loss": "not_verified"}),
        # What a model adds of its own is a product of a micro-batch's means.
        ({"first_step_added_loss": 0.03, "gradient_accumulation_steps": 4, "first_step_gradient_norm": 1.7},
         {"first_step_added_loss": "declared", "gradient_accumulation_steps": "violation",
          "first_step_gradient_norm": "declared"}),
    ],
)  # fmt: skip
def test_what_is_seen_of_scripts_alone(changes: dict[str, Any], status: dict[str, Status]) -> None:
    script = replace(
        IDENTITY, first_step_gradient_norm=1.5, first_step_update_norm=1.0, left_out_parameters=0,
        heldout_rows_trained=0, first_step_added_loss=0.02,
    )  # fmt: skip
    other = replace(script, **changes)
    assert compare(script, other, NOTHING) == compare(other, script, NOTHING) == status
    assert compare(script, other, frozenset(changes)).get(next(iter(changes))) in ("declared", "not_verified")
    assert compare(script, script, NOTHING) == {}


@pytest.mark.parametrize("field", OTHER)
def test_an_undeclared_difference_is_named_with_both_values(field: str) -> None:
    found = against_fp32({}, **{field: OTHER[field]})
    violations = {v.field: v for v in found.violations}
    assert found.comparable is False
    assert set(violations) - {"record"} == {field}  # more steps applied than made contradict each other
    assert (violations[field].baseline, violations[field].option) == (getattr(IDENTITY, field), OTHER[field])
    assert (violations[field].against, violations[field].seeds) == ("fp32", [0, 1, 2])
    assert found.differs_as_declared == []


@pytest.mark.parametrize(
    ("choices", "changes"),
    [
        ({"precision": {"name": "bf16_mixed"}}, {"compute_dtype": "bfloat16", "sdpa_backends": ["flash"]}),
        ({"python": "/opt/other/bin/python"}, {"sdpa_backends": ["flash"]}),
        ({"precision": {"name": "tf32"}}, {"matmul_tf32": True}),
        ({"precision": {"name": "fp16_mixed"}}, {"compute_dtype": "float16", "steps_applied": 59}),
        ({"precision": {"name": "bf16_pure"}},
         {"parameter_dtype": "bfloat16", "working_dtype": "bfloat16", "gradient_dtype": "bfloat16",
          "compute_dtype": "bfloat16",
          "optimizer_state_dtype": ["bfloat16"]}),
        ({"optimizer": {"name": "lion", "lr": 1e-4}}, {"optimizer": ["Lion32bit"]}),
        ({"attention": {"name": "eager"}}, {"attention": "eager"}),
        ({"compile": {"name": "default"}}, {"compiled": True}),
        ({"micro_batch_size": 4}, {"gradient_accumulation_steps": 4}),
        (HALVES, IN_HALVES),
        ({"framework": {"name": "hf_trainer"}}, {"framework": "transformers.Trainer"}),
        ({"micro_batch_size": 8, "world_size": 2, "strategy": {"name": "ddp"}},
         {"world_size": 2, "strategy": "DistributedDataParallel", "reduction_dtype": "float32"}),
        ({"micro_batch_size": 8, "world_size": 2, "strategy": {"name": "zero", "stage": 2}},
         {"world_size": 2, "strategy": "DeepSpeedEngine zero 2", "reduction_dtype": "float32"}),
    ],
)  # fmt: skip
def test_a_difference_that_a_choice_declares(choices: dict[str, Any], changes: dict[str, Any]) -> None:
    found = against_fp32(choices, **changes)
    assert found.comparable is True
    assert found.violations == []
    assert set(found.differs_as_declared) == changes.keys() - {"reduction_dtype"}
    assert found.not_verified == []


@pytest.mark.parametrize(
    ("field", "found", "asked"),
    [("tokens_per_step", 2048, 1024), ("steps_requested", 60, 120), ("steps_applied", 119, 120),
     ("gradient_accumulation_steps", 2, 1),
     ("learning_rate_shape_sha256", "e" * 64, IN_HALVES["learning_rate_shape_sha256"])],
)  # fmt: skip
def test_another_global_batch_trains_on_all_the_tokens_by_its_own_schedule(
    field: str, found: object, asked: object
) -> None:
    violation, *_ = against_fp32(HALVES, **{**IN_HALVES, field: found}).violations
    assert (violation.field, violation.asked, violation.option) == (field, asked, found)


@pytest.mark.parametrize("field", ["initial_weights_sha256", "evaluation_set_sha256", "optimizer", "parameters"])
def test_another_global_batch_declares_nothing_else(field: str) -> None:
    (violation,) = against_fp32(HALVES, **{**IN_HALVES, field: OTHER[field]}).violations
    assert violation.field == field


def test_dropout_has_other_masks_in_another_global_batch() -> None:
    suite = make_suite("fp32", ("other", HALVES))
    records = [make_record("fp32", s, identity={"dropout": 0.1}) for s in range(3)]
    records += [make_record("other", s, identity={**IN_HALVES, "dropout": 0.1}) for s in range(3)]
    assert certificates(suite, records)["other"].not_verified == [NotVerified(field="dropout", reason=MASKS)]


SCHEDULE_FREE = {"optimizer": {"name": "schedule_free_adamw", "lr": 1e-3}}


def shape(name: Literal["constant", "cosine"]) -> str:
    return shape_sha256(shares(LrSchedule(name=name), 60))


@pytest.mark.parametrize(
    ("of_adamw", "of_schedule_free", "violating"),
    [("cosine", "constant", []), ("cosine", "cosine", ["other"]), ("constant", "constant", ["fp32"])],
)  # fmt: skip
@pytest.mark.parametrize("baseline", ["fp32", "other"])
def test_a_learning_rate_of_the_optimizer_s_own_excuses_no_other_shape(
    of_adamw: Any, of_schedule_free: Any, violating: list[str], baseline: str
) -> None:
    options = ["fp32", ("other", SCHEDULE_FREE)]
    suite = make_suite(*(options if baseline == "fp32" else options[::-1]))  # type: ignore[arg-type]
    found = {
        "fp32": {"learning_rate_shape_sha256": shape(of_adamw)},
        "other": {"learning_rate_shape_sha256": shape(of_schedule_free), "optimizer": ["AdamWScheduleFree"]},
    }
    records = [make_record(name, seed, identity=changes) for name, changes in found.items() for seed in range(3)]
    seen = certificates(suite, records)
    wrong = {name: [v.field for v in certificate.violations] for name, certificate in seen.items()}
    assert wrong == {name: ["learning_rate_shape_sha256"] * (name in violating) for name in found}
    if not violating:
        (other,) = found.keys() - {baseline}
        assert set(seen[other].differs_as_declared) == {"learning_rate_shape_sha256", "optimizer"}


def warmed_up(fraction: float) -> dict[str, Any]:
    return {"optimizer": {"name": "adamw", "lr": 1e-3, "warmup_fraction": fraction}}


@pytest.mark.parametrize(("steps", "violating"), [(6, False), (0, True), (12, True)])
@pytest.mark.parametrize("baseline", ["fp32", "other"])
def test_a_warm_up_of_the_optimizer_s_own_excuses_no_other_shape(
    steps: int, violating: bool, baseline: str
) -> None:
    options = ["fp32", ("other", warmed_up(0.1))]
    suite = make_suite(*(options if baseline == "fp32" else options[::-1]))  # type: ignore[arg-type]
    found = {"learning_rate_shape_sha256": shape_sha256(shares(LrSchedule(warmup_steps=steps), 60))}
    records = [make_record(name, seed, identity=found if name == "other" else {}) for name in ("fp32", "other")
               for seed in range(3)]  # fmt: skip
    seen = certificates(suite, records)
    assert seen["fp32"].comparable
    assert [(v.field, v.seeds) for v in seen["other"].violations] == (
        [("learning_rate_shape_sha256", [0, 1, 2])] if violating else []
    )
    if not violating:
        (other,) = {"fp32", "other"} - {baseline}
        assert seen[other].differs_as_declared == ["learning_rate_shape_sha256"]


def rates(*peaks: float, schedule: LrSchedule | None = None) -> list[float]:
    """What a trial of the made job has at most of each."""
    return distinct_rates(peak * max(shares(schedule or LrSchedule(), 60)) for peak in peaks)


@pytest.mark.parametrize(
    ("optimizer", "found", "asked"),
    [
        ({"name": "adamw", "lr": 3e-3}, [3e-3], None),
        ({"name": "adamw", "lr": 1e-3}, [3e-3], [1e-3]),
        ({"name": "muon", "lr": 2e-3}, [2e-3], None),
        ({"name": "muon", "lr": 2e-3, "adamw_lr": 1e-3}, [1e-3, 2e-3], None),
        ({"name": "muon", "lr": 2e-3, "adamw_lr": 1e-3}, [2e-3], [1e-3, 2e-3]),
        ({"name": "schedule_free_adamw", "lr": 1e-2}, [1e-2], None),
        ({"name": "adamw_8bit", "lr": 1e-3}, [2e-3], [1e-3]),
        ({"name": "mine:Optimizer", "lr": 1e-3}, [5e-4, 1e-3], None),
    ],
)  # fmt: skip
def test_peak_learning_rates_are_those_asked_for(
    optimizer: dict[str, Any], found: list[float], asked: list[float] | None
) -> None:
    suite = make_suite("fp32", ("other", {"optimizer": optimizer}))
    option = suite.options[1]
    schedule = suite.job.of(option.choices).lr_schedule
    identity = {"peak_learning_rate": rates(*found, schedule=schedule)}
    records = [make_record("fp32", s, identity={"peak_learning_rate": rates(1e-3)}) for s in range(3)]
    records += [make_record("other", s, identity=identity) for s in range(3)]
    certificate = certificates(suite, records)["other"]
    violations = [(v.asked, v.option) for v in certificate.violations if v.field == "peak_learning_rate"]
    if asked is None:
        assert violations == []
        assert ("peak_learning_rate" in certificate.differs_as_declared) is (found != [1e-3])
    else:
        assert violations == [(rates(*asked, schedule=schedule), identity["peak_learning_rate"])]


def test_a_decay_from_the_first_step_never_comes_to_the_peak() -> None:
    assert rates(1e-3)[0] < 1e-3
    for found, asked in ((rates(1e-3), []), ([1e-3], [rates(1e-3)])):
        records = [make_record("fp32", s, identity={"peak_learning_rate": found}) for s in range(3)]
        violations = certificates(make_suite("fp32"), records)["fp32"].violations
        assert [v.asked for v in violations] == asked


@pytest.mark.parametrize("field", ["peak_learning_rate", "trainable_parameters"])
def test_an_older_record_has_nothing_to_compare_and_says_nothing_of_it(field: str) -> None:
    assert statuses(IDENTITY, IDENTITY, NOTHING)[field] == "same"
    assert getattr(IDENTITY, field) is None
    assert against_fp32({}).not_verified == []


def test_gradients_summed_in_another_dtype_are_a_violation_between_options_of_several_ranks() -> None:
    zero = {"strategy": {"name": "zero", "stage": 1}, "world_size": 2, "micro_batch_size": 8}
    suite = make_suite(("ddp", {**zero, "strategy": {"name": "ddp"}}), ("zero", zero), seeds=[0])
    two = {"world_size": 2, "reduction_dtype": "float32"}
    records = [
        make_record("ddp", 0, identity={**two, "strategy": "DistributedDataParallel"}),
        make_record(
            "zero", 0, identity={**two, "strategy": "DeepSpeedEngine zero 1", "reduction_dtype": "bfloat16"}
        ),
    ]
    (violation,) = certificates(suite, records)["zero"].violations
    assert (violation.field, violation.baseline, violation.option) == ("reduction_dtype", "float32", "bfloat16")


@pytest.mark.parametrize(
    ("choices", "changes", "field", "asked"),
    [
        ({"attention": {"name": "eager"}}, {}, "attention", "eager"),
        ({"compile": {"name": "default"}}, {}, "compiled", True),
        ({"precision": {"name": "tf32"}}, {}, "matmul_tf32", True),
        ({"precision": {"name": "bf16_pure"}}, {"working_dtype": "bfloat16", "compute_dtype": "bfloat16"},
         "parameter_dtype", "bfloat16"),
        ({"precision": {"name": "bf16_mixed"}}, {}, "compute_dtype", "bfloat16"),
        ({"optimizer": {"name": "muon", "lr": 1e-3}}, {}, "optimizer", ["Muon", "AdamW(fused)"]),
        ({"optimizer": {"name": "adamw", "lr": 1e-3, "implementation": "foreach"}}, {}, "optimizer",
         ["AdamW(foreach)"]),
        ({"strategy": {"name": "fsdp"}}, {"strategy": "DeepSpeedEngine zero 3"}, "strategy", "FSDPModule"),
        ({"strategy": {"name": "zero", "stage": 3}}, {"strategy": "DeepSpeedEngine zero 2"}, "strategy",
         "DeepSpeedEngine zero 3"),
        ({"strategy": {"name": "ddp"}, "world_size": 2, "micro_batch_size": 8},
         {"strategy": "DistributedDataParallel"}, "world_size", 2),
        ({"micro_batch_size": 4}, {}, "gradient_accumulation_steps", 4),
        ({"framework": {"name": "hf_trainer"}}, {}, "framework", "transformers.Trainer"),
        ({}, {"steps_requested": 59}, "steps_requested", 60),
    ],
)  # fmt: skip
def test_what_was_asked_for_and_not_done(
    choices: dict[str, Any], changes: dict[str, Any], field: str, asked: object
) -> None:
    found = against_fp32(choices, **changes)
    violation, *_ = found.violations
    assert (violation.field, violation.asked) == (field, asked)
    assert violation.option == changes.get(field, getattr(IDENTITY, field))
    assert field not in found.differs_as_declared


def test_the_baseline_too_must_have_done_what_was_asked() -> None:
    suite = make_suite(("eager", {"attention": {"name": "eager"}}), "other")
    found = certificates(suite, [make_record(o, s) for o in ("eager", "other") for s in range(3)])
    assert [(v.field, v.asked, v.option) for v in found["eager"].violations] == [("attention", "eager", "sdpa")]
    assert found["other"].comparable is True


@pytest.mark.parametrize(
    "field",
    ["initial_weights_sha256", "token_stream_sha256", "tokens_per_step", "learning_rate_shape_sha256",
     "gradient_dtype", "optimizer_state_dtype", "attention", "optimizer", "first_step_gradient_norm", "dropout"],
)  # fmt: skip
def test_what_a_trial_could_not_see_is_not_verified_even_where_the_other_could_not_either(field: str) -> None:
    found = against_fp32({}, **{field: None})
    assert (found.comparable, entries(found)) == (True, [field])
    neither = replace(IDENTITY, **{field: None})
    assert statuses(neither, neither, NOTHING)[field] == "not_verified"


def test_a_compute_dtype_that_nobody_saw_is_not_verified() -> None:
    unseen = replace(IDENTITY, compute_dtype="")
    assert statuses(unseen, IDENTITY, NOTHING)["compute_dtype"] == "not_verified"


@pytest.mark.parametrize("field", ["evaluation_set_sha256", "code_sha256", "reduction_dtype"])
def test_none_on_both_sides_is_the_same_where_it_says_that_there_is_none(field: str) -> None:
    neither = replace(IDENTITY, **{field: None})
    assert statuses(neither, neither, NOTHING)[field] == "same"


def test_dropout_is_not_verified_where_the_step_is_cut_otherwise() -> None:
    cut = {"gradient_accumulation_steps": 4, "dropout": 0.1, "first_step_loss": 7.9}
    suite = make_suite("fp32", ("quarters", {"micro_batch_size": 4}), seeds=[0])
    records = [make_record("fp32", 0, identity={"dropout": 0.1}), make_record("quarters", 0, identity=cut)]
    found = certificates(suite, records)["quarters"]
    assert found.violations == []
    assert entries(found) == ["first_step_loss", f"dropout: {MASKS}"]


def test_modules_that_draw_are_named_where_the_step_is_cut_otherwise() -> None:
    drawing = {"random_modules": ["model.layers.*.mlp"]}
    suite = make_suite("fp32", ("quarters", {"micro_batch_size": 4}))
    cut = {**drawing, "gradient_accumulation_steps": 4, "first_step_loss": 7.9}
    records = [make_record("fp32", 0, identity=drawing), make_record("quarters", 0, identity=cut)]
    found = certificates(suite, records)["quarters"]
    assert found.comparable is True
    said = "dropout: model.layers.*.mlp draws random numbers, which depend on how a step is cut"
    assert said in entries(found)


def test_dropout_with_the_same_masks_is_the_same() -> None:
    dropping = replace(IDENTITY, dropout=0.1)
    assert set(statuses(dropping, dropping, NOTHING).values()) == {"same"}


def test_a_missing_identity_is_told_and_nothing_is_assumed() -> None:
    records = [make_record(o, s) for o in ("fp32", "other") for s in range(3)]
    records[4] = replace(records[4], identity=None)
    found = certificates(make_suite("fp32", "other"), records)["other"]
    assert (found.comparable, entries(found)) == (True, ["identity: none recorded for seed 1"])


def test_where_the_baseline_has_no_such_seed_the_first_option_that_has_it_is_compared_with() -> None:
    suite = make_suite("fp32", "second", "third", seeds=[0])
    records = [make_record("second", 0), make_record("third", 0, identity={"parameters": 5})]
    found = certificates(suite, records)
    assert found["fp32"].comparable is None
    assert found["second"].comparable is True
    assert (found["second"].compared_with, found["third"].compared_with) == ([], ["second"])
    assert [(v.field, v.against) for v in found["third"].violations] == [("parameters", "second")]


def test_the_baseline_is_compared_with_wherever_it_stands() -> None:
    suite = make_suite("first", "baseline", seeds=[0], baseline="baseline")
    found = certificates(suite, [make_record("first", 0, identity={"parameters": 5}), make_record("baseline", 0)])
    assert [(v.against, v.baseline, v.option) for v in found["first"].violations] == [("baseline", 1_000_000, 5)]
    assert found["baseline"].violations == []


def test_a_violation_of_one_seed_is_enough_and_names_it() -> None:
    records = [make_record("fp32", s) for s in range(3)]
    records += [make_record("other", s, identity={"parameters": 7} if s == 1 else None) for s in range(3)]
    found = certificates(make_suite("fp32", "other"), records)["other"]
    assert [(v.field, v.seeds) for v in found.violations] == [("parameters", [1])]


BF16 = {"compute_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("changes", "loss", "norm", "expected"),
    [
        ({}, 7.7 * (1 + 5e-5), 1.5 * (1 + 5e-4), []),
        ({}, 7.7 * (1 + 5e-4), 1.5, ["first_step_loss"]),
        ({}, 7.7, 1.5 * (1 + 5e-3), ["first_step_gradient_norm"]),
        (BF16, 7.7 * (1 + 5e-3), 1.5 * (1 + 2e-2), []),
        (BF16, 7.7 * 0.98, 1.5 * 0.9, ["first_step_loss", "first_step_gradient_norm"]),
        ({"matmul_tf32": True}, 7.7 * (1 + 5e-3), 1.5, []),
        ({"parameter_dtype": "bfloat16"}, 7.7 * (1 + 5e-3), 1.5, []),
    ],
)
def test_the_first_step_agrees_as_far_as_the_dtypes_allow(
    changes: dict[str, Any], loss: float, norm: float, expected: list[str]
) -> None:
    other = {**changes, "first_step_loss": loss, "first_step_gradient_norm": norm}
    found = statuses(replace(IDENTITY, **other), IDENTITY, frozenset(changes))
    assert [name for name, status in found.items() if status == "violation"] == expected


def test_a_tolerance_is_of_the_larger_of_both() -> None:
    one, other = (replace(IDENTITY, matmul_tf32=True, first_step_gradient_norm=norm) for norm in (1.0, 0.951))
    for pair in ((one, other), (other, one)):
        assert statuses(*pair, NOTHING)["first_step_gradient_norm"] == "same"


def test_a_choice_that_computes_something_else_declares_the_first_step() -> None:
    other = replace(IDENTITY, loss="mine:Loss", first_step_loss=1.0)
    found = statuses(other, IDENTITY, frozenset({"loss", "first_step_loss"}))
    assert (found["loss"], found["first_step_loss"]) == ("declared", "declared")


def test_no_choice_that_only_rounds_otherwise_declares_the_first_step() -> None:
    rounding = ("precision", "attention", "compile", "activation_checkpointing", "strategy", "optimizer")
    for choice in (choice for dimension in rounding for choice in REGISTRY[dimension]):
        assert not {"first_step_loss", "first_step_gradient_norm"} & choice.may_change


def test_choices_declare_and_ask_for_fields_that_exist() -> None:
    suite = make_suite(
        "fp32", ("zero", {"strategy": {"name": "zero", "stage": 1}, "optimizer": {"name": "muon", "lr": 1.0}})
    )
    for option in suite.options:
        for choice in option.choices.by_dimension().values():
            assert choice.expected_identity().keys() <= set(FIELDS)
    assert all(choice.may_change <= set(FIELDS) for classes in REGISTRY.values() for choice in classes)


def changed() -> st.SearchStrategy[Identity]:
    """The made identity with any of its fields replaced by another value or hidden."""
    values = {name: st.sampled_from([getattr(IDENTITY, name), other]) for name, other in OTHER.items()}
    values["attention"] = st.sampled_from(["sdpa", "eager", None])
    values["reduction_dtype"] = st.sampled_from([None, "float32", "bfloat16"])
    values["first_step_loss"] = st.floats(7.6, 7.8)
    return st.fixed_dictionaries(values).map(lambda found: replace(IDENTITY, **found))


@given(changed(), changed(), st.sets(st.sampled_from(FIELDS)))
def test_comparing_is_symmetric_and_itself_never_a_violation(
    one: Identity, other: Identity, declared: set[str]
) -> None:
    assert statuses(one, other, frozenset(declared)) == statuses(other, one, frozenset(declared))
    assert set(statuses(one, one, NOTHING).values()) <= {"same", "not_verified"}


@given(changed(), changed(), st.sets(st.sampled_from(FIELDS)), st.sampled_from(FIELDS))
def test_declaring_more_never_makes_a_violation(
    one: Identity, other: Identity, declared: set[str], more: str
) -> None:
    def violations(may: set[str]) -> set[str]:
        return {name for name, status in statuses(one, other, frozenset(may)).items() if status == "violation"}

    assert violations(declared | {more}) == violations(declared) - {more}


@given(changed(), changed())
def test_swapping_baseline_and_option_keeps_what_they_differ_in(one: Identity, other: Identity) -> None:
    def found(first: Identity, second: Identity) -> set[str]:
        suite = make_suite("a", "b", seeds=[0])
        records = [make_record("a", 0), make_record("b", 0)]
        pair = [replace(r, identity=i) for r, i in zip(records, (first, second), strict=True)]
        named = certificates(suite, pair)
        return {v.field for certificate in named.values() for v in certificate.violations}

    assert found(one, other) == found(other, one)


def test_either_of_two_choices_may_declare() -> None:
    both = ("bf16", {"precision": {"name": "bf16_mixed"}}), ("fp16", {"precision": {"name": "fp16_mixed"}})
    for pair in (both, both[::-1]):
        assert may_change(*make_suite(*pair).options) == {
            "compute_dtype", "matmul_tf32", "sdpa_backends", "steps_applied",
        }  # fmt: skip


def test_a_choice_that_both_share_declares_nothing() -> None:
    both = {"precision": {"name": "fp16_mixed"}}
    suite = make_suite(("a", both), ("b", {**both, "optimizer": {"name": "adamw", "lr": 2e-3}}))
    assert may_change(*suite.options) == {"optimizer", "optimizer_state_dtype", "peak_learning_rate"}


KEPT = sorted(path.parent for path in (ROOT / "results").glob("*/*/records.jsonl"))


@pytest.mark.parametrize("folder", KEPT, ids=[folder.parent.name for folder in KEPT])
def test_the_kept_runs_are_honest(folder: Path) -> None:
    stored = read_run(folder)
    for row in stored.ranking().rows:
        assert row.identity.violations == [], row.option
        assert row.identity.not_verified == [] or stored.suite.command  # of a script not all is seen
        assert row.identity.comparable is (True if row.n else None)


@pytest.mark.parametrize("folder", KEPT, ids=[folder.parent.name for folder in KEPT])
def test_in_a_kept_run_the_first_step_of_another_seed_would_be_found(folder: Path) -> None:
    """The tolerance of fp32 is narrow enough to tell seeds of one model and tokenizer apart."""
    stored = read_run(folder)
    found: dict[str, dict[str | None, Identity]] = {}
    for record in stored.records:
        choices = stored.suite.option(record.trial.tunes or record.trial.option).choices
        identity = record.identity
        if identity and identity.compute_dtype == identity.parameter_dtype == "float32":
            job = "" if stored.suite.command else f"{choices.model} {choices.tokenizer}"
            same = found.setdefault(job, {})
            same[identity.initial_weights_sha256] = identity
    pairs = [pair for own in found.values() for pair in permutations(own.values(), 2)]
    assert pairs
    for one, other in pairs:
        told = statuses(one, other, NOTHING)
        assert "violation" in (told["first_step_loss"], told["first_step_gradient_norm"])


def backends(choices: dict[str, Any], found: list[str] | None, baseline: list[str], **job: Any) -> Certificate:
    """Of an option whose attention went through other backends than the baseline's."""
    suite = make_suite("fp32", ("other", choices), **({"job": job} if job else {}))
    name = choices.get("attention", {}).get("name", "sdpa")
    records = [
        *(make_record("fp32", s, identity={"sdpa_backends": baseline}) for s in range(3)),
        *(make_record("other", s, identity={"sdpa_backends": found, "attention": name, "compiled": True})
          for s in range(3)),
    ]  # fmt: skip
    return certificates(suite, records)["other"]


COMPILED = {"compile": {"name": "default"}}


def test_compiling_does_not_excuse_another_backend() -> None:
    found = backends(COMPILED, ["efficient"], ["flash"])
    assert [(v.field, v.option, v.baseline) for v in found.violations] == [
        ("sdpa_backends", ["efficient"], ["flash"])
    ]
    assert backends(COMPILED, ["flash"], ["flash"]).differs_as_declared == ["compiled"]


def test_a_compiler_that_replaces_the_eager_formula_is_named() -> None:
    eager = {**COMPILED, "attention": {"name": "eager"}}
    (violation,) = backends(eager, ["efficient"], ["flash"]).violations
    assert (violation.field, violation.asked, violation.option) == ("sdpa_backends", [], ["efficient"])
    assert backends(eager, [], ["flash"]).violations == []


def test_a_model_of_own_code_has_a_kernel_of_its_own() -> None:
    eager = {**COMPILED, "attention": {"name": "eager"}}
    assert backends(eager, ["flash"], ["flash"], model={"family": "mine:Model"}).violations == []


def test_attention_that_was_not_seen_is_not_verified() -> None:
    found = backends(COMPILED, None, ["flash"])
    assert (found.violations, entries(found)) == ([], ["sdpa_backends"])


@pytest.mark.parametrize("without", ["fp32", "bf16"])
def test_a_row_without_a_certificate_claims_nothing(without: str) -> None:
    suite = make_suite("fp32", ("bf16", {"precision": "bf16_mixed"}), seeds=[0, 1, 2], decide={"constraints": []})
    records = [
        make_record(name, seed, **speed(fast * (1 + 0.001 * seed)))
        for name, fast in (("fp32", 100), ("bf16", 150)) for seed in (0, 1, 2)
    ]  # fmt: skip
    assert rank(suite, records).rows[0].option == "bf16"
    hidden = [replace(r, identity=None) if r.trial.option == without else r for r in records]
    ranking = rank(suite, hidden)
    row = next(row for row in ranking.rows if row.option == without)
    assert (row.identity.comparable, row.rank, row.eligible) == (None, None, False)
    assert all(row.against_baseline is None for row in ranking.rows)
    words = "do not say what it was trained with" if without == "fp32" else "Not ranked: bf16 (job not verified)"
    assert words in ranking.answer
    assert ("No comparison" in ranking.answer) == (without == "fp32")


def test_seeds_without_a_certificate_are_named_and_the_others_compared() -> None:
    suite = make_suite("fp32", ("bf16", {"precision": "bf16_mixed"}), seeds=[0, 1])
    records = [make_record(name, seed) for name in ("fp32", "bf16") for seed in (0, 1)]
    records[0] = replace(records[0], identity=None)
    found = certificates(suite, records)
    assert found["fp32"].comparable
    assert entries(found["fp32"]) == ["identity: none recorded for seed 0"]
    assert found["bf16"].comparable

"""What was counted in trials: what it accuses, what it leaves unverified, and what it says nothing of."""

import math

import pytest
from made_records import MEASUREMENT, entries, make_record, make_suite
from msgspec.structs import replace

from selectbench.analysis.ranking import rank
from selectbench.analysis.summary import counted
from selectbench.record.record import Watched

CAUSAL = {"training": 0.0, "evaluation": 0.0}
OWN = {"optimizer": {"name": "ours:Best", "lr": 1e-3}}
COUNTED = {
    "causality": CAUSAL, "clock_ratio": 1.0, "own": ["optimizer"], "sequences_given": 960, "sequences_seen": 960,
    "evaluations": 128, "evaluations_seen": 128, "updates_per_step": 1, "sampled_updates": 5, "idle_updates": 0,
    "frozen_parameters": [], "rate_effect": 1000.0,
}  # fmt: skip
BESIDES = [
    "own code: what it changes in its trial's process",
    "own optimizer: what else its step() and eval() do",
]


def rows(ours, *, seeds=(0, 1, 2), baseline=None, **suite):
    """The ranking of a built-in baseline and an own option whose trials were watched so, by seed."""
    made = [replace(make_record("ours", seed), watched=ours(seed)) for seed in seeds]
    builtin = baseline or (lambda seed: Watched(causality=CAUSAL, clock_ratio=1.0))
    records = [replace(make_record("fp32", seed), watched=builtin(seed)) for seed in seeds]
    ranking = rank(make_suite("fp32", ("ours", OWN), **suite), records + made)
    return {row.option: row for row in ranking.rows}, ranking


def own(**changes):
    return rows(lambda _: Watched(**{**COUNTED, **changes}))[0]["ours"].identity


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"causality": {"training": 0.0, "evaluation": 0.3}}, "causality"),
        ({"clock_ratio": 0.5}, "clock"), ({"sequences_seen": 120}, "sequences"),
        ({"evaluations_seen": 0}, "evaluation"), ({"updates_per_step": 2}, "updates"),
        ({"idle_updates": 5}, "updates"),
        ({"frozen_parameters": ["h.0.weight"]}, "updates"), ({"rate_effect": 1.0}, "learning_rate"),
    ],
)  # fmt: skip
def test_what_was_counted_otherwise_is_a_violation_of_every_seed(changes, field):
    (violation,) = own(**changes).violations
    assert (violation.field, violation.seeds) == (field, [0, 1, 2])


def test_what_was_counted_as_asked_is_verified_and_the_rest_is_said():
    found = own()
    assert found.violations == []
    assert entries(found) == BESIDES


@pytest.mark.parametrize(
    ("unknown", "said"),
    [
        (["sequences_given", "sequences_seen"], {"token_stream_sha256", "tokens_per_step"}),
        (["evaluations", "evaluations_seen"], {"evaluation_set_sha256"}),
        (["sampled_updates", "idle_updates", "frozen_parameters"], {"steps_applied"}),
        (["rate_effect"], {"learning_rate_shape_sha256", "peak_learning_rate"}),
        (["causality"], {"causality: equal calls of the model differ, or it could not be tried"}),
    ],
)
def test_what_could_not_be_counted_is_not_verified(unknown, said):
    found = own(**dict.fromkeys(unknown))
    assert found.violations == []
    assert set(entries(found)) - set(BESIDES) == said


def test_some_updates_without_effect_are_said_and_not_accused():
    found = own(idle_updates=2)
    assert found.violations == []
    assert "own optimizer: 2 of 5 updates looked at changed no weight" in entries(found)


def test_an_older_record_is_neither_accused_nor_called_verified():
    of_old, ranking = rows(lambda _: None, baseline=lambda _: None)
    assert of_old["ours"].identity.violations == of_old["ours"].identity.not_verified == []
    assert "Not verified" not in ranking.answer


def test_the_answer_names_the_rows_with_own_code():
    assert "Not verified for ours: what own code does beyond" in rows(lambda _: Watched(**COUNTED))[1].answer


def test_a_file_that_changes_between_trials_is_named_and_other_files_are_not():
    def files(seed):
        return Watched(**COUNTED, code_files={"a.py": "1" * 64, "b.py": str(seed // 2) * 64})

    (violation,) = rows(files)[0]["ours"].identity.violations
    assert (violation.field, violation.option, violation.seeds) == ("code", "changed: b.py", [2])
    assert rows(files, seeds=(0, 1))[0]["ours"].identity.violations == []


def test_options_may_import_other_files():
    found, _ = rows(
        lambda _: Watched(**COUNTED, code_files={"ours.py": "1" * 64}),
        baseline=lambda _: Watched(causality=CAUSAL, clock_ratio=1.0, code_files={"theirs.py": "2" * 64}),
    )
    assert found["ours"].identity.violations == []


def test_a_trial_that_counts_more_seconds_than_the_bench_had_is_accused():
    slow = replace(make_record("ours", 0, training_seconds=30.0), watched=Watched(**COUNTED))  # of 15 s
    ranking = rank(make_suite("fp32", ("ours", OWN), seeds=[0]), [make_record("fp32", 0), slow])
    (violation,) = next(row for row in ranking.rows if row.option == "ours").identity.violations
    assert (violation.field, violation.asked) == ("clock", "15 s by the bench's clock")


def test_seconds_that_no_clock_of_the_trial_tells_are_said():
    fast = replace(make_record("ours", 0, trial_seconds=100.0), watched=Watched(**COUNTED), wall_seconds=300.0)
    ranking = rank(make_suite("fp32", ("ours", OWN), seeds=[0]), [make_record("fp32", 0), fast])
    found = entries(next(row for row in ranking.rows if row.option == "ours").identity)
    assert "own code: 200 s of 300 s are in none of the times that the trial reports" in found


@pytest.mark.parametrize(("below", "pretrained"), [(0.9, False), (0.9, True), (1.1, False)])
def test_a_loss_far_below_what_xz_makes_of_the_text_is_a_doubt(below, pretrained):
    bits = 5.5 * MEASUREMENT.heldout_tokens / MEASUREMENT.heldout_bytes / math.log(2)
    job = {"job": {"model": {"pretrained": "gpt2"}, "tokenizer": {"pretrained": "gpt2"}}} if pretrained else {}
    records = [make_record("fp32", 0, heldout_xz_bits_per_byte=bits / (0.3 * below))]
    found = [line for line in rank(make_suite("fp32", **job, seeds=[0]), records).warnings if "memorised" in line]
    assert len(found) == (below < 1)
    assert all(("ALARM" in line) == (not pretrained) for line in found)


EVEN = math.log(512)
"""The loss of even odds for every token of the made-up suite."""


def alarmed(job=None, **measured):
    """Whether a trial with these figures of its measurement is told to have learnt nothing."""
    records = [make_record(name, seed, **measured) for name in ("fp32", "bf16_mixed") for seed in (0, 1, 2)]
    ranking = rank(make_suite("fp32", "bf16_mixed", job=job or {}), records)
    lines = [line for line in ranking.warnings if "ALARM: nothing was learnt" in line]
    assert len(lines) in (0, 2)
    assert ("Nothing was learnt by any option (see the warnings)" in ranking.answer) == bool(lines)
    assert not (lines and ranking.settled)
    return bool(lines)


@pytest.mark.parametrize(
    ("measured", "nothing"),
    [
        ({"first_loss": EVEN, "final_loss": EVEN}, True), ({"first_loss": EVEN, "final_loss": 0.96 * EVEN}, True),
        ({"first_loss": EVEN, "final_loss": 0.94 * EVEN}, False), ({"first_loss": EVEN, "final_loss": None}, False),
        # A model with rows for far more tokens than there are, and one that begins worse than even odds.
        ({"first_loss": 11.9, "final_loss": EVEN}, True), ({"first_loss": 11.9, "final_loss": 11.89}, True),
        # One that began better than even odds: what it has learnt counts from there.
        ({"first_loss": 5.0, "final_loss": 4.9}, True), ({"first_loss": 5.0, "final_loss": 4.7}, False),
        # Of what there is to learn of a known source, half was learnt.
        ({"first_loss": EVEN, "final_loss": EVEN - 0.1, "source_loss": EVEN - 0.2}, False),
        ({"first_loss": EVEN, "final_loss": EVEN - 0.005, "source_loss": EVEN - 0.2}, True),
    ],
)  # fmt: skip
def test_a_final_loss_of_an_untrained_model_is_an_alarm(measured, nothing):
    assert alarmed(**measured) == nothing


def test_a_pretrained_model_has_learnt_before_its_first_step():
    pretrained = {"model": {"pretrained": "nobody/nothing"}}
    assert not alarmed(job=pretrained, first_loss=3.0, final_loss=2.99)
    assert alarmed(job=pretrained, first_loss=3.0, final_loss=EVEN)


def test_the_alarm_names_the_option_and_both_losses():
    records = [make_record("fp32", seed) for seed in (0, 1, 2)]
    records += [make_record("bf16_mixed", seed, final_loss=6.2) for seed in (0, 1, 2)]
    ranking = rank(make_suite("fp32", "bf16_mixed"), records)
    told = "a final loss of 6.20 nats per token, where an untrained model has 6.24 (seeds 0, 1, 2)"
    assert f"bf16_mixed: ALARM: nothing was learnt: {told}" in ranking.warnings
    assert ranking.answer.endswith("Nothing was learnt by bf16_mixed (see the warnings): its quality says nothing.")


def test_an_attempt_with_mended_code_replaces_one_that_completed():
    def attempt(number, code):
        watched = Watched(**COUNTED, code_files={"ours.py": code * 64})
        return replace(make_record("base", 0, attempt=number), watched=watched)

    for code, counts in (("2", 2), ("1", 1)):
        records = [attempt(1, "1"), attempt(2, code)]
        assert [record.attempt for record in counted(records)] == [counts]

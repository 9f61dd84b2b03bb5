"""From records with scores of generated text to the differences in ranking.json, and when there are none."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from made_records import make_failure, make_record, make_suite
from made_sentences import hypotheses, measured, references
from msgspec.structs import replace

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import ScoreDifference
from selectbench.record.record import Record
from selectbench.record.run_folder import RECORDS

TRUTH = references(40)
OPTIONS = ("base", "better", "same")
NAMES = ("chrf", "exact_match")


@cache
def said(wrong: float, seed: int = 1, begin: int = 0, end: int = 40) -> dict[str, Any]:
    truth = [*TRUTH[begin:], *TRUTH[:begin]][:end]
    return measured(hypotheses(truth, wrong, seed), truth, NAMES)


def record(option: str, seed: int, wrong: float, **more: Any) -> Record:
    return make_record(option, seed, **{**said(wrong, seed + 1), **more})


def records() -> list[Record]:
    shares = {"base": 0.5, "better": 0.1, "same": 0.5}
    return [record(option, seed, wrong) for option, wrong in shares.items() for seed in (0, 1)]


def differences(found: list[Record], *options: str) -> dict[tuple[str, str], ScoreDifference]:
    ranking = rank(make_suite(*(options or OPTIONS), seeds=[0, 1]), found)
    return {(one.option, one.score): one for one in ranking.score_differences}


def without(one: Record, **changes: Any) -> Record:
    """With other fields of its measurement."""
    measurement = replace(one.outcome.measurement, **changes)  # type: ignore[union-attr]
    return replace(one, outcome=replace(one.outcome, measurement=measurement))


def test_every_option_and_score_against_the_baseline() -> None:
    found = differences(records())
    assert set(found) == {(option, name) for option in ("better", "same") for name in NAMES}
    for name in NAMES:
        better, same = found["better", name], found["same", name]
        assert better.difference == pytest.approx(
            sum(one.outcome.measurement.scores[name] * (1 if one.trial.option == "better" else -1)  # type: ignore[union-attr]
                for one in records() if one.trial.option != "same") / 2, abs=1e-6
        )  # fmt: skip
        assert 0 < better.low < better.difference < better.high
        assert better.p == 2 / 1001
        assert (better.seeds, better.sentences, better.against, better.not_compared) == (2, 40, "base", None)
        assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_ranking_json_holds_them_and_claims_nothing() -> None:
    suite = make_suite(*OPTIONS, seeds=[0, 1])
    ranking = rank(suite, records())
    first = ranking.score_differences[0]
    held = json.loads(json.dumps(ranking.model_dump(mode="json")))["score_differences"]
    assert held[0] == {
        "score": "chrf", "option": first.option, "against": "base", "seeds": 2, "sentences": 40,
        "difference": first.difference, "low": first.low, "high": first.high, "p": first.p, "not_compared": None,
    }  # fmt: skip
    bare = rank(suite, [without(one, sentences=None) for one in records()])
    assert ranking.model_copy(update={"score_differences": []}) == bare


def test_old_records_have_none() -> None:
    old = [RECORDS.read(_without_key(one)) for one in records()]
    assert all(one.outcome.measurement.scores for one in old)  # type: ignore[union-attr]
    assert differences(old) == {}


def _without_key(one: Record) -> str:
    content = json.loads(RECORDS.write(one))
    del content["outcome"]["measurement"]["sentences"]
    return json.dumps(content)


def test_a_record_on_disk_keeps_its_sentences() -> None:
    first = records()[0]
    line = RECORDS.write(first)
    assert RECORDS.read(line) == first
    kept = json.loads(line)["outcome"]["measurement"]["sentences"]
    assert all(isinstance(count, int) for row in kept["counts"]["chrf"] for count in row)
    assert set(map(type, kept["shares"]["exact_match"])) == {int}


@pytest.mark.parametrize("fails", ["base", "better"])
def test_a_seed_that_one_side_did_not_complete_counts_for_neither(fails: str) -> None:
    left = [one for one in records() if (one.trial.option, one.trial.seed) != (fails, 1)]
    one_seed = differences([one for one in records() if one.trial.seed == 0])
    for more in ([], [make_failure(fails, 1, "oom")]):
        found = differences([*left, *more])
        assert found["better", "chrf"] == one_seed["better", "chrf"]
        assert found["better", "chrf"].seeds == 1
        assert found["same", "chrf"].seeds == (1 if fails == "base" else 2)


def refused(base: Record, option: Record) -> str | None:
    found = differences([base, option], "base", "better")["better", "chrf"]
    assert (found.difference, found.low, found.high, found.p, found.sentences) == (None,) * 5
    return found.not_compared


def test_references_that_differ_are_not_compared() -> None:
    other = record("better", 0, 0.1, **said(0.1, begin=1))
    assert refused(record("base", 0, 0.5), other) == "the references differ"
    fewer = record("better", 0, 0.1, **said(0.1, end=39))
    assert refused(record("base", 0, 0.5), fewer) == "the references differ"


@pytest.mark.parametrize("count", [1, 19])
def test_few_sentences_are_not_drawn_from(count: int) -> None:
    few = [record(option, 0, 0.5, **said(wrong, end=count)) for option, wrong in
           (("base", 0.5), ("better", 0.1))]  # fmt: skip
    assert refused(*few) == f"{count} test sentences; at least 20 are needed"
    enough = [record(option, 0, 0.5, **said(0.5, end=20)) for option in ("base", "better")]
    assert differences(enough, "base", "better")["better", "chrf"].p == 1


def test_no_common_seed_with_sentences() -> None:
    base, option = record("base", 0, 0.5), record("better", 1, 0.1)
    told = "no seed that both completed with their sentences kept"
    assert refused(base, option) == told
    assert refused(without(base, sentences=None), record("better", 0, 0.1)) == told


def test_sentences_that_do_not_give_the_recorded_score() -> None:
    base, option = record("base", 0, 0.5), record("better", 0, 0.1)
    scores = option.outcome.measurement.scores  # type: ignore[union-attr]
    option = without(option, scores={**scores, "chrf": scores["chrf"] + 0.01})
    assert refused(base, option) == "the sentences do not give the score that was recorded"


def test_another_job_is_not_compared() -> None:
    other = record("better", 0, 0.1, identity={"token_stream_sha256": "f" * 64})
    assert refused(record("base", 0, 0.5), other) == "it did another job"


def test_an_option_that_completed_nothing_has_no_line() -> None:
    found = differences([record("base", 0, 0.5), record("same", 0, 0.5), make_failure("better", 0, "oom")])
    assert {option for option, _ in found} == {"same"}

"""Jobs of other data and tasks through the command line: a source of known entropy, tokenizers, translation."""

from __future__ import annotations

import json

import pytest
from launch.harness import TINY_SUITE, Workplace, corpus

import selectbench

pytestmark = pytest.mark.slow
MARKOV = """\
name: tiny
job:
  model: {family: gpt2, n_layer: 1, n_embd: 32, n_head: 2}
  data: {markov: 6, vocab_size: 24, branches: 3, train_tokens: 4000, seed: 3}
  seq_len: 16
  global_batch_size: 8
  max_steps: 40
  lr_schedule: {name: cosine, warmup_steps: 4}
  eval: {tokens: 4000}
choices:
  optimizer: {name: adamw, lr: 1e-2}
  micro_batch_size: 8
baseline: whole
options:
  whole: {}
  halves: {micro_batch_size: 4}
  slow: {optimizer: {lr: 1e-4}}
seeds: [0]
decide: {objective: excess_loss, constraints: []}
"""
GRID = (
    TINY_SUITE[: TINY_SUITE.index("baseline:")]
    + "axes: {tokenizer.bpe: [280, 400], model.n_layer: [1, 2]}\nbaseline: bpe=280 + n_layer=1\n"
)
SEQ2SEQ = """\
name: tiny
code: [code]
job:
  task: seq2seq
  model: {family: t5, num_layers: 1, d_model: 32, num_heads: 2}
  data: {pairs: [pairs.tsv]}
  tokenizer: {bpe: 300}
  seq_len: 24
  global_batch_size: 8
  max_steps: 12
  lr_schedule: {name: constant}
  eval: {tokens: 300, every_steps: 6, at_start: true, scores: [bleu, chrf, exact_match, "ourscore:words"],
  generate: 24}
choices:
  optimizer: {name: adamw, lr: 1e-2}
  micro_batch_size: 8
baseline: t5
options:
  t5: {}
  halves: {micro_batch_size: 4}
  bart: {model: {family: bart, num_layers: 1, d_model: 32, num_heads: 2}}
seeds: [0]
decide: {objective: chrf, constraints: [bleu >= 0]}
"""
OWN_SCORE = """
def words(hypotheses, references, sources):
    return sum(len(text.split()) for text in hypotheses) / len(hypotheses)
"""


def finished(place: Workplace, text: str) -> dict:
    place.write(text)
    done = place.call("run", "tiny.yaml", SELECTBENCH_CACHE=str(place.folder / "cache"))
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads((place.run_folders()[-1] / "ranking.json").read_text())


def rows_of(ranking: dict) -> dict:
    return {row["option"]: row for row in ranking["rows"]}


def value(row: dict, metric: str) -> float | None:
    found = row["metrics"].get(metric)
    return None if found is None else found["value"]


def data_of(place: Workplace, *arguments: str) -> list:
    done = place.call("data", "tiny.yaml", "--json", *arguments, SELECTBENCH_CACHE=str(place.folder / "cache"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def markov(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("markov"))
    return place, finished(place, MARKOV)


def test_a_source_of_known_entropy(markov):
    _, ranking = markov
    rows = rows_of(ranking)
    excess = {name: value(row, "excess_loss") for name, row in rows.items()}
    assert 0 < excess["whole"] < excess["slow"]
    assert excess["halves"] == pytest.approx(excess["whole"], rel=1e-3)
    assert all(row["identity"]["violations"] == [] for row in rows.values())
    assert all(value(row, "bits_per_byte") is None for row in rows.values())
    differs = value(rows["whole"], "final_loss") - excess["whole"]
    assert value(rows["slow"], "final_loss") - excess["slow"] == pytest.approx(differs, rel=1e-9)


def test_what_data_tells_of_a_source(markov):
    place, ranking = markov
    (found,) = data_of(place)
    assert (found["train_tokens"], found["heldout_tokens"]) == (4000, 1000)
    assert found["vocab_size"] == 24
    assert sorted(found["options"]) == ["halves", "slow", "whole"]
    floor = value(rows_of(ranking)["whole"], "final_loss") - value(rows_of(ranking)["whole"], "excess_loss")
    assert floor == pytest.approx(found["entropy_rate"], rel=0.2)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("grid"))
    return place, finished(place, GRID)


SMALL, LARGE = ("bpe=280 + n_layer=1", "bpe=280 + n_layer=2"), ("bpe=400 + n_layer=1", "bpe=400 + n_layer=2")


def test_an_axis_over_the_tokenizer(grid):
    place, ranking = grid
    rows = rows_of(ranking)
    assert set(rows) == {*SMALL, *LARGE}
    for row in rows.values():
        assert row["identity"]["violations"] == []
        assert value(row, "bits_per_byte") > 0
        assert value(row, "bytes_per_second") > 0
    assert value(rows[LARGE[0]], "bytes_per_token") > value(rows[SMALL[0]], "bytes_per_token") > 1
    assert {r["trial"]["option"] for r in place.records() if r["outcome"]["status"] == "completed"} == set(rows)
    first, second = data_of(place)
    assert {tuple(sorted(one["options"])) for one in (first, second)} == {SMALL, LARGE}
    assert {one["vocab_size"] for one in (first, second)} == {280, 400}
    for count in ("documents_in", "train_documents", "heldout_documents", "train_bytes", "heldout_bytes"):
        assert first[count] == second[count], count
    for one in (first, second):
        kept = one["train_documents"] + one["heldout_documents"] + one["removed_documents"]
        assert one["documents_in"] == kept + sum(one["removed"].values())
        assert one["train_bytes"] <= len(corpus().encode())


def test_an_axis_over_a_field_of_the_jobs_model(grid):
    place, ranking = grid
    deeper = rows_of(ranking)[SMALL[1]]["identity"]
    assert deeper["compared_with"] == [SMALL[0]]
    assert {"initial_weights_sha256", "parameters", "first_step_loss"} <= set(deeper["differs_as_declared"])
    assert not {"token_stream_sha256", "evaluation_set_sha256"} & set(deeper["differs_as_declared"])
    identities = {record["trial"]["option"]: record["identity"] for record in place.records()}
    block = 12 * 32 * 32 + 13 * 32  # of GPT-2, n_embd 32
    assert identities[SMALL[1]]["parameters"] - identities[SMALL[0]]["parameters"] == block


@pytest.fixture(scope="module")
def translation(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("pairs"))
    names = ("nul", "een", "twee", "drie", "vier", "vijf", "zes", "zeven", "acht", "negen")
    lines = [f"{n} is\t{' '.join(names[int(digit)] for digit in str(n))}" for n in range(1000, 1600)]
    (place.folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    (place.folder / "code").mkdir()
    (place.folder / "code" / "ourscore.py").write_text(OWN_SCORE)
    return place, finished(place, SEQ2SEQ)


def test_a_translation_with_scores(translation):
    place, ranking = translation
    rows = rows_of(ranking)
    assert set(rows) == {"t5", "halves", "bart"}
    for row in rows.values():
        assert row["identity"]["violations"] == []
        for name in ("bleu", "chrf", "exact_match", "own_score"):
            assert value(row, name) is not None, name
        assert value(row, "bits_per_byte") > 0
        assert value(row, "initial_loss") > value(row, "final_loss")
    assert value(rows["halves"], "chrf") == pytest.approx(value(rows["t5"], "chrf"), abs=1e-9)
    assert value(rows["bart"], "final_loss") != value(rows["t5"], "final_loss")
    for record in place.records():
        assert set(record["outcome"]["measurement"]["scores"]) == {"bleu", "chrf", "exact_match", "own_score"}
        assert [point["step"] for point in record["evaluation_curve"]] == [0, 6, 12]
        folder = place.run_folders()[-1] / "trials" / record["trial"]["trial_id"]
        stored = [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text().splitlines()]
        assert len(stored) == 24
        assert all(set(line) == {"source", "reference", "hypothesis"} for line in stored)


def test_differences_of_scores_over_test_sentences(translation):
    place, ranking = translation
    found = {(one["option"], one["score"]): one for one in ranking["score_differences"]}
    assert set(found) == {(option, name) for option in ("halves", "bart") for name in
                          ("bleu", "chrf", "exact_match")}  # fmt: skip
    rows = rows_of(ranking)
    for (option, name), one in found.items():
        assert one["difference"] == pytest.approx(value(rows[option], name) - value(rows["t5"], name), abs=1e-6)
        assert (one["sentences"], one["seeds"], one["not_compared"]) == (24, 1, None)
    assert (found["halves", "chrf"]["difference"], found["halves", "chrf"]["p"]) == (0, 1)
    folder = place.run_folders()[-1]
    assert "A score of own code has no value for each sentence" in (folder / "report.md").read_text()
    frame = selectbench.load(folder).to_pandas("scores")
    assert frame.to_dict("records")[0] == {**ranking["score_differences"][0], "not_compared": None}
    assert frame.p.dtype == "float64"


def test_what_data_tells_of_pairs(translation):
    place, _ = translation
    (found,) = data_of(place)
    assert found["kind"] == "pairs"
    assert found["documents_in"] == 600
    kept = found["train_documents"] + found["heldout_documents"]
    assert kept + found["removed_documents"] + sum(found["removed"].values()) == 600
    assert sum(found["document_sizes"]) == kept + found["removed_documents"]
    assert set(found["special_ids"]) == {"pad"}
    assert sorted(found["options"]) == ["bart", "halves", "t5"]

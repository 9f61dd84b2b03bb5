"""Scores of generated text: against their libraries, by hand, and as a trial stores them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import task_jobs as jobs
import torch
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF
from task_jobs import LENGTH, T5_PAIRS

from selectbench.analysis.scores import corpus_score, table_of
from selectbench.choices.choice import OwnCodeError, add_to_path
from selectbench.data.prepared import Prepared
from selectbench.suite.job import SCORES
from selectbench.worker.batches import NOT_COUNTED, Batch, PairTokens
from selectbench.worker.evaluation import HYPOTHESES, continue_tokens, generate_targets, score
from selectbench.worker.runtime import SINGLE_RANK

REFERENCES = ["The cat sat on the mat.", "Yes, he does not know.", "A dog runs in the park today", "Fine weather"]
HYPOTHESES_MADE = ["the cat is on the mat", "Yes, he does not know!", "dogs running in a park today", ""]
SOURCES = [
    "Die Katze sass auf der Matte.",
    "Ja, er weiss es nicht.",
    "Ein Hund rennt heute im Park",
    "Schoenes Wetter",
]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELECTBENCH_CACHE", str(root / "cache"))
        return jobs.prepared_pairs(root)


def value(name, hypotheses=HYPOTHESES_MADE, references=REFERENCES):
    found = score(name, hypotheses, references, SOURCES)
    assert found.name == name
    return found.value


def test_every_score_is_the_one_of_its_library():
    assert value("bleu") == BLEU().corpus_score(HYPOTHESES_MADE, [REFERENCES]).score
    assert value("chrf") == CHRF().corpus_score(HYPOTHESES_MADE, [REFERENCES]).score
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    each = [scorer.score(r, h)["rougeL"].fmeasure for r, h in zip(REFERENCES, HYPOTHESES_MADE, strict=True)]
    assert value("rouge_l") == pytest.approx(100 * sum(each) / 4)


def test_scores_say_how_they_were_computed():
    signatures = {name: score(name, HYPOTHESES_MADE, REFERENCES, SOURCES).signature for name in SCORES}
    assert "tok:13a" in signatures["bleu"]
    assert "nc:6" in signatures["chrf"]
    assert all(signatures.values())


@pytest.mark.parametrize("name", SCORES)
def test_the_reference_itself_scores_100_and_nothing_scores_0(name):
    assert value(name, REFERENCES) == pytest.approx(100)
    assert value(name, [""] * 4) == 0
    assert 0 < value(name) < 100


def test_rouge_l_by_hand():
    """The longest common subsequence of `the cat is on the mat` is the cat on the mat: 5 of 6 words, both ways."""
    assert value("rouge_l", HYPOTHESES_MADE[:1], REFERENCES[:1]) == pytest.approx(100 * 5 / 6)


def test_exact_match_and_token_f1_by_hand():
    same = [("The Cat!", "a cat"), ("an  answer", "Answer."), ("42", "42"), ("cats", "cat"), ("", "the")]
    hypotheses, references = ([pair[side] for pair in same] for side in (0, 1))
    assert value("exact_match", hypotheses, references) == pytest.approx(100 * 4 / 5)
    assert score("exact_match", hypotheses, references, hypotheses).shares == [1, 1, 1, 0, 1]
    # `the` is left out; x y of x y z: precision 1, recall 2/3; a repeated word counts once where the other has it
    # once
    assert value("token_f1", ["the x y"], ["x y z"]) == pytest.approx(100 * 0.8)
    assert value("token_f1", ["x x x"], ["x y z"]) == pytest.approx(100 / 3)
    assert value("token_f1", [""], ["x"]) == 0
    assert value("token_f1", [""], ["the"]) == 100


def test_bleu_by_hand():
    """No brevity penalty; of 1 to 4 words in a row 5 of 6, 3 of 5, 1 of 4 and 0 of 3 match, the last smoothed
    to 1/6."""
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * (1 / 2) / 3) ** 0.25
    assert value("bleu", ["the cat is on the mat"], ["the cat sat on the mat"]) == pytest.approx(expected)


# Own scores


OWN = """
def lengths(hypotheses, references, sources):
    assert all(isinstance(one, list) for one in (hypotheses, references, sources))
    assert len(hypotheses) == len(references) == len(sources)
    return sum(map(len, hypotheses)) / len(hypotheses)

def whole(hypotheses, references, sources):
    return len(sources)

def text(hypotheses, references, sources):
    return "12"

def truth(hypotheses, references, sources):
    return True

def broken(hypotheses, references, sources):
    return hypotheses.no_such_method()
"""


@pytest.fixture
def code(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_scores_here.py").write_text(OWN)
    sys.modules.pop("own_scores_here", None)
    before = list(sys.path)
    yield [str(folder)]
    sys.path[:] = before
    sys.modules.pop("own_scores_here", None)


def test_an_own_score_is_called_with_texts_and_named_by_its_function(code):
    add_to_path(code)
    found = score("own_scores_here:lengths", HYPOTHESES_MADE, REFERENCES, SOURCES)
    assert found == ("own_score", sum(map(len, HYPOTHESES_MADE)) / 4, "own_scores_here:lengths", None, None)
    assert score("own_scores_here:whole", HYPOTHESES_MADE, REFERENCES, SOURCES).value == 4.0


@pytest.mark.parametrize(("name", "kind"), [("text", "str"), ("truth", "bool")])
def test_an_own_score_that_is_no_number_is_told(code, name, kind):
    add_to_path(code)
    with pytest.raises(
        OwnCodeError, match=rf"score own_scores_here:{name}: expected a number, it returned a {kind}"
    ):
        score(f"own_scores_here:{name}", HYPOTHESES_MADE, REFERENCES, SOURCES)


def scored(*names, **more):
    return {**T5_PAIRS, "max_steps": 2, "eval": {"tokens": 100, "scores": list(names), "generate": 6, **more}}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text", "score own_scores_here:text: expected a number, it returned a str"),
        ("broken", "'list' object has no attribute 'no_such_method'"),
        ("lenghts", "eval.scores own_scores_here:lenghts"),
    ],
)
def test_what_is_wrong_with_an_own_score_is_the_trials_outcome(launched, pairs, code, name, said):
    launched.data_folder = pairs.folder
    end = launched.end(job=scored(f"own_scores_here:{name}"), code=code)
    assert end.finished is None
    assert said in end.outcome.detail.splitlines()[0]


def test_an_own_score_stands_in_the_measurement(trials, pairs, code):
    trials.data_folder = pairs.folder
    measured = trials.finished(job=scored("own_scores_here:lengths", "bleu"), code=code).measurement
    stored = lines(trials)
    assert list(measured.scores) == ["own_score", "bleu"]
    assert measured.scores["own_score"] == sum(len(line["hypothesis"]) for line in stored) / len(stored)
    assert measured.copy_scores["own_score"] == sum(len(line["source"]) for line in stored) / len(stored)
    assert measured.score_signatures["own_score"] == "own_scores_here:lengths"
    assert set(measured.sentences.counts) == {"bleu"}


def test_of_an_own_score_alone_no_sentences_are_kept(trials, pairs, code):
    trials.data_folder = pairs.folder
    assert trials.finished(job=scored("own_scores_here:lengths"), code=code).measurement.sentences is None


# What a trial generates


def lines(trials):
    return [json.loads(line) for line in (trials.trial_folder / HYPOTHESES).read_text().splitlines()]


def test_bleu_of_a_trial_is_what_sacrebleus_own_command_finds(trials, pairs, tmp_path):
    trials.data_folder = pairs.folder
    job = {**T5_PAIRS, "max_steps": 60, "lr_schedule": {"name": "constant"},
           "eval": {"tokens": 100, "scores": list(SCORES), "generate": 12}}  # fmt: skip
    measured = trials.finished(job=job, optimizer={"name": "adamw", "lr": 1e-2}).measurement
    stored = lines(trials)
    assert [(line["source"], line["reference"]) for line in stored] == pairs.heldout_pairs()[:12]
    assert len({line["hypothesis"] for line in stored}) > 1
    for side in ("source", "reference", "hypothesis"):
        (tmp_path / side).write_text("".join(f"{line[side]}\n" for line in stored))
    for metric, given in (("bleu", "hypothesis"), ("chrf", "hypothesis"), ("bleu", "source")):
        command = [sys.executable, "-m", "sacrebleu", "reference", "-i", given, "-m", metric, "-b", "-w", "4"]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        found = measured.scores if given == "hypothesis" else measured.copy_scores
        assert f"{found[metric]:.4f}" == said.strip()
    assert measured.scores["bleu"] > 0
    texts = [[line[side] for line in stored] for side in ("hypothesis", "reference", "source")]
    assert measured.scores == {name: score(name, *texts).value for name in SCORES}
    copied = [texts[2], texts[1], texts[2]]
    assert measured.copy_scores == {name: score(name, *copied).value for name in SCORES}
    assert set(measured.score_signatures) == set(SCORES)
    digest = hashlib.sha256(json.dumps(texts[1]).encode()).hexdigest()
    assert measured.sentences.references_sha256 == digest
    assert set(measured.sentences.counts) == {"bleu", "chrf"}
    assert set(measured.sentences.shares) == {"rouge_l", "exact_match", "token_f1"}
    for name in SCORES:
        table = table_of(name, measured.sentences)
        assert len(table) == 12
        assert corpus_score(name, table) == pytest.approx(measured.scores[name], abs=1e-9)


@pytest.mark.parametrize("other", [{"micro_batch_size": 2}, {"micro_batch_size": 4, "world_size": 2,
"strategy": {"name": "ddp"}}], ids=str)  # fmt: skip
def test_how_a_trial_is_cut_does_not_change_what_it_says(launched, pairs, other):
    launched.data_folder = pairs.folder
    job = {**scored("chrf"), "max_steps": 4}
    whole = launched.finished(job=job).measurement
    said = lines(launched)
    found = launched.finished(job=job, **other).measurement
    assert (found.scores, found.sentences) == (whole.scores, whole.sentences)
    assert lines(launched) == said


def test_nothing_is_generated_where_no_score_is_asked_for(trials, pairs):
    trials.data_folder = pairs.folder
    measured = trials.finished(job=T5_PAIRS).measurement
    assert (measured.scores, measured.copy_scores, measured.sentences) == ({}, {}, None)
    assert not (trials.trial_folder / HYPOTHESES).exists()


# Greedy decoding


def test_greedy_decoding_is_the_one_of_transformers(pairs: Prepared):
    pad = pairs.special_ids["pad"]
    model = jobs.plain_t5(pairs.vocab_size, 0)
    data = PairTokens.of(pairs, "train", LENGTH)
    plain = jobs.PlainTraining(model)
    for step in range(80):
        batch = data.batch(np.arange(step % 8 * 8, step % 8 * 8 + 8))
        logits = model(**batch.named).logits
        plain.step(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()))
    batch = data.batch(np.arange(64, 84))
    model.eval()
    with torch.no_grad():
        ours = generate_targets(
            lambda b: model(**b.named).logits, batch, end_id=pairs.end_id, start_id=pad, world=SINGLE_RANK
        )
        theirs = model.generate(
            input_ids=batch.named["input_ids"], attention_mask=batch.named["attention_mask"], num_beams=1,
            do_sample=False, max_new_tokens=LENGTH, decoder_start_token_id=pad, eos_token_id=pairs.end_id,
            pad_token_id=pad,
        )  # fmt: skip
    assert ours == [until(row, pairs.end_id) for row in theirs[:, 1:].tolist()]
    lengths = {len(row) for row in ours}
    assert len(lengths) > 1, "targets that end at different places"
    assert max(lengths) > 1


def until(ids, end):
    return ids[: ids.index(end)] if end in ids else ids


def scripted(rows):
    """Logits of a model that says these tokens, whatever it is given."""

    def logits(batch: Batch):
        place = batch.named["decoder_input_ids"].shape[1] - 1
        found = torch.zeros(len(rows), place + 1, 10)
        for number, row in enumerate(rows):
            found[number, -1, row[place]] = 1.0
        return found

    return logits


def empty_batch(rows, length):
    targets = torch.full((rows, length), NOT_COUNTED)
    return Batch(targets, (), {"input_ids": torch.zeros(rows, length, dtype=torch.int64)}, targets)


def test_a_target_ends_at_its_end_or_at_the_longest_length():
    said = scripted([[5, 0, 7, 7], [5, 6, 7, 8], [0, 5, 5, 5], [5, 1, 6, 0]])
    found = generate_targets(said, empty_batch(4, 4), end_id=0, start_id=1, world=SINGLE_RANK)
    assert found == [[5], [5, 6, 7, 8], [], [5, 1, 6]], "a pad that is said is a token like any other"


def test_a_tokenizer_whose_end_is_its_pad():
    found = generate_targets(
        scripted([[5, 0, 7], [5, 6, 0]]), empty_batch(2, 3), end_id=0, start_id=0, world=SINGLE_RANK
    )
    assert found == [[5], [5, 6]]


def test_decoding_stops_where_all_have_ended():
    calls = []

    def logits(batch):
        calls.append(batch.named["decoder_input_ids"].shape[1])
        return scripted([[0, 5, 5, 5], [5, 0, 5, 5]])(batch)

    generate_targets(logits, empty_batch(2, 4), end_id=0, start_id=1, world=SINGLE_RANK)
    assert calls == [1, 2]


def test_a_causal_model_goes_on_with_what_it_finds_likeliest():
    def logits(batch):
        (ids,) = batch.arguments
        assert ids.shape[1] <= 3
        return torch.nn.functional.one_hot((ids + 1) % 10, 10).float()

    assert continue_tokens(logits, [7, 8], count=4, longest=3, world=SINGLE_RANK) == [9, 0, 1, 2]

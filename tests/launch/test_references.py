"""Models behind an API beside the options: asked, paid once, kept, scored, shown; and what goes wrong with them."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import processes
import pytest
from launch.api_server import NATS, ApiServer, api_server
from launch.harness import Workplace, until
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import selectbench
from selectbench.errors import UserError
from selectbench.launch.references import Asking, Ledger, Question, _retry_after_seconds
from selectbench.launch.trial import Stop
from selectbench.suite.load import load_suite
from selectbench.suite.suite import Reference

KEY = "sk-0123456789-never-to-be-seen"
SUITE = """\
name: tiny
job:
  task: seq2seq
  model: {family: t5, num_layers: 1, d_model: 32, num_heads: 2}
  data: {pairs: [pairs.tsv]}
  tokenizer: {bpe: 300}
  seq_len: 24
  global_batch_size: 8
  max_steps: 2
  lr_schedule: {name: constant}
  eval: {tokens: 100, scores: [bleu, chrf], generate: 24}
choices:
  optimizer: {name: adamw, lr: 1e-2}
  micro_batch_size: 8
baseline: t5
options:
  t5: {}
seeds: [0]
decide: {objective: chrf, constraints: []}
references:
  hosted:
    api: {base_url: "ADDRESS", model: some-model, key_env: A_KEY}
    prompt: "Count in Dutch: {source}"
    usd_per_million_tokens: {input: 0.5, output: 1.5}
    timeout_seconds: 2
    at_once: 2
"""
NAMES = ("nul", "een", "twee", "drie", "vier", "vijf", "zes", "zeven", "acht", "negen")
PAIRS = "".join(f"{n} is\t{' '.join(NAMES[int(digit)] for digit in str(n))}\n" for n in range(1000, 2200))


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


@pytest.fixture
def place(workplace: Workplace, api: ApiServer) -> Workplace:
    (workplace.folder / "pairs.tsv").write_text(PAIRS)
    workplace.write(SUITE.replace("ADDRESS", api.url))
    return workplace


def call(place: Workplace, *words: str, key: str = KEY, status: int = 0) -> str:
    cache = str(place.folder / "cache")
    done = place.call(*words, SELECTBENCH_CACHE=cache, A_KEY=key)
    assert done.returncode == status, done.stderr + done.stdout
    return re.sub(r"\s+", " ", done.stderr + done.stdout)


def reference(place: Workplace) -> dict[str, Any]:
    (found,) = json.loads((place.run_folders()[-1] / "ranking.json").read_text())["references"]
    return dict(found)


@pytest.mark.slow
def test_a_reference_stands_beside_the_options_whatever_its_server_does(place: Workplace, api: ApiServer) -> None:
    """Asked once for each sentence, through every fault; in every table; its key nowhere."""
    planned = call(place, "plan", "tiny.yaml", key="")
    assert "references.hosted: A_KEY is not set: put the key of" in planned
    assert "reference hosted: 24 requests to some-model" in planned
    assert re.search(r"about 0\.000\d+ USD, at most 0\.01\d* USD", planned)
    assert api.requests == 0
    # the first one is asked before the trials, the others after them
    api.faults.extend([
        (429, {"Retry-After": "0.1"}, "slow down, KEY"), "cut", (503, {}, "overloaded KEY"),
        "silence", "garbage", "empty",
    ])  # fmt: skip
    api.echoes_key = True
    said = call(place, "run", "tiny.yaml")
    assert "answers 429 (slow down, (the key)); it is asked after the trials" in said
    for told in (
        "the connection to", "answers 503 (overloaded (the key)); asking again in", "sent what is no completion",
        "gave no answer within 2.00 s", "reference hosted: 24 of 24 answered",
    ):  # fmt: skip
        assert told in said, told
    assert set(api.asked.values()) == {1}, "asked again for what was answered"
    assert len(api.asked) == 24
    assert api.keys == {f"Bearer {KEY}"}
    folder, found = place.run_folders()[-1], reference(place)
    assert (found["answered"], found["empty"], found["incomplete"]) == (24, 1, None)
    assert found["output_tokens"] == 96
    assert found["usd"] == pytest.approx((found["input_tokens"] * 0.5 + 96 * 1.5) / 1e6)
    assert found["lost_usd"] > 0, "silence and a cut connection may have been paid"
    assert found["latency_median_seconds"] > 0
    score = found["scores"]["chrf"]
    assert score["low"] <= score["value"] <= score["high"]
    assert "differences" not in found, "nothing is tested with a reference"
    ranking = json.loads((folder / "ranking.json").read_text())
    assert [row["option"] for row in ranking["rows"]] == ["t5"]
    assert "hosted" not in ranking["answer"]
    assert all(verdict["option"] != "hosted" for verdict in ranking["verdicts"])
    with (folder / "ranking.csv").open() as stream:
        rows = {row["option"]: row for row in csv.DictReader(stream)}
    assert (rows["hosted"]["status"], rows["hosted"]["rank"]) == ("reference", "")
    assert float(rows["hosted"]["chrf"]) == score["value"]
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert text.count("reference, not trained here") >= 4, "the ranking, scores, samples"
        assert "answers without any text, scored as they are: 1" in text
    assert "hosted, reference, not trained here (some-model): BLEU" in said
    written = [path for path in place.folder.rglob("*") if path.is_file()]
    assert any("answers" in path.parts for path in written)
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert KEY not in said
    # the same again asks nothing; another run has the answers already, and needs no key for them
    asked = api.requests
    assert "nothing was run" in call(place, "run", "tiny.yaml", "--reuse", key="")
    call(place, "run", "tiny.yaml", "--fresh", key="")
    assert api.requests == asked
    assert reference(place)["scores"] == found["scores"]


def test_what_a_server_refuses_is_told_before_anything_trains(place: Workplace, api: ApiServer) -> None:
    api.faults.append((401, {}, "Incorrect API key KEY"))
    said = call(place, "run", "tiny.yaml", status=2)
    assert "references.hosted: " in said
    assert "does not take the key in A_KEY (401): put a valid one there" in said
    assert KEY not in said
    assert "A_KEY is not set: put the key of" in call(place, "run", "tiny.yaml", key="", status=2)
    assert place.records() == []
    script = "import sys; sys.modules['openai'] = None; from selectbench.__main__ import main; main()"
    process = processes.start(
        [sys.executable, "-c", script, "run", "tiny.yaml"], cwd=place.folder, stdout=-1, stderr=-1,
        env=place.environment(SELECTBENCH_CACHE=str(place.folder / "cache")),
    )  # fmt: skip
    assert (
        "references.hosted needs the package openai: pip install 'selectbench[api]'"
        in process.communicate(timeout=100)[1]
    )


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ((403, {}, "no access"), "does not let this key use some-model (403: no access)"),
        ((404, {}, "no such model"), "look at `model`, and at `base_url`, which mostly ends in /v1"),
        ((400, {}, "use max_completion_tokens"), "write `request: {max_completion_tokens: 256}`"),
        ((400, {}, "too long"), "refuses the request (400: too long): mend `prompt`, `max_tokens` or `request`"),
        ((429, {}, "insufficient_quota"), "has no credit left for this key"),
        ((429, {"Retry-After": "3600"}, "later"), "it asks to wait 1 h 00 min: run the same command then"),
        ("silence", "gave no answer within 300 ms, 2 times; the same command goes on"),
        ("page", "sent what is no completion (<html>Welcome</html>): look at `base_url`, which mostly ends in /v1"),
        ("choiceless", "sent what is no completion (no room, 502), 2 times"),
    ],
)
def test_a_model_is_given_up_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: ApiServer, fault: Any, told: str
) -> None:
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path))
    api.faults.extend([fault] * 2)
    where = {"base_url": api.url, "model": "some-model", "key_env": "A_KEY"}
    patient = Reference.model_validate({"api": where, "prompt": "{source}", "at_once": 1})
    asked = patient.model_copy(update={"timeout_seconds": 0.3}) if fault == "silence" else patient
    ledger, said = Ledger(asked), list[str]()
    every = [
        Question(text, "drie", "/chat/completions", {"messages": [{"role": "user", "content": text}]})
        for text in ("one two", "three four")
    ]
    with Stop() as stop, ledger.locked(stop, said.append) as is_ours:
        assert is_ours
        asking = Asking(asked, every, ledger)
        asking.ask(KEY, stop, said.append, attempts=2)
        assert asking.halted is not None
        assert told in asking.halted.why
        assert asking.missing == every
        api.faults.clear()
        api.faults.extend([(503, {}, "busy")] * 2)
        asking = Asking(patient, every, ledger)
        asking.ask(KEY, stop, said.append, attempts=3)
    assert (asking.halted, asking.missing) == (None, [])
    assert sum("answers 503 (busy); asking again" in line for line in said) == 1, "the same is said once"


def asked_for(asked: Reference, texts: Sequence[str], path: str = "/chat/completions", attempts: int = 2) -> Asking:
    """Of a ledger with all that was answered before."""
    ledger = Ledger(asked)
    every = [
        Question(text, "", path, {"messages": [{"role": "user", "content": text}], "prompt": text})
        for text in texts
    ]
    with Stop() as stop, ledger.locked(stop, print):
        asking = Asking(asked, every, ledger)
        asking.ask(KEY, stop, print, attempts)
    return asking


def test_a_refused_text_counts_as_empty_only_where_few_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: ApiServer
) -> None:
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path))
    where = {"base_url": api.url, "model": "some-model"}
    asked = Reference.model_validate({"api": where, "prompt": "{source}", "at_once": 1})
    texts = [f"number {n} of these" for n in range(20)]
    refusal = (400, {}, "no such field")
    # the trial question
    api.faults.append(refusal)
    first = asked_for(asked, texts[:1])
    assert first.halted is not None
    assert first.refused == {}
    # from the midst on everything is refused
    api.faults.extend(["empty", "empty", *[refusal] * 18])
    rest = asked_for(asked, texts)
    assert rest.halted is not None
    assert "refuses the request (400: no such field): mend `prompt`" in rest.halted.why
    assert (len(rest.refused), len(rest.missing)) == (2, 16)
    # the last of more than one in ten is refused
    api.faults.clear()
    api.faults.extend([*["empty"] * 15, *[refusal] * 3])
    rest = asked_for(asked, texts)
    assert rest.halted is not None
    assert (len(rest.refused), len(rest.missing)) == (2, 1)
    # few are, and another run of them asks these again
    for _ in range(2):
        api.faults.append(refusal)
        rest = asked_for(asked, texts)
        assert (rest.halted, len(rest.missing)) == (None, 0)
        assert list(rest.refused.values()) == ["400: no such field"]


def test_a_page_in_the_midst_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: ApiServer) -> None:
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path))
    asked = Reference.model_validate({"api": {"base_url": api.url, "model": "m"}, "at_once": 1})
    texts = [f"number {n} of these" for n in range(3)]
    asked_for(asked, texts[:1], "/completions")
    api.faults.extend(["page", "page"])
    found = asked_for(asked, texts, "/completions")
    assert found.halted is not None
    assert not found.halted.is_mistake
    assert "<html>Welcome</html>), 2 times; the same command goes on" in found.halted.why
    api.faults.append("page")
    found = asked_for(asked, texts, "/completions")
    assert (found.halted, found.missing) == (None, [])


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("7", 7), ("1.5", 1.5), ("1.2.3", 0), ("-3", 0), ("soon", 0), ("", 0), ("9" * 400, 0),
     ("Mon, 30 Nov 2026 12:00:09 GMT", 0)],
)  # fmt: skip
def test_a_server_says_how_long_to_wait(said: str, seconds: float) -> None:
    assert _retry_after_seconds({"retry-after": said}) == seconds


@pytest.mark.slow
def test_no_answer_is_lost_or_paid_twice_when_it_is_killed_and_none_goes_beyond_max_usd(
    place: Workplace, api: ApiServer
) -> None:
    api.hold_after = 7
    run = place.start("run", "tiny.yaml", SELECTBENCH_CACHE=str(place.folder / "cache"), A_KEY=KEY)
    cached = place.folder / "cache" / "answers"
    until(lambda: sum(path.read_bytes().count(b'"answer"') for path in cached.glob("*.jsonl")) == 7)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=60)
    (answers,) = cached.glob("*.jsonl")
    answers.write_bytes(answers.read_bytes() + b'{"key":"torn')
    trained = place.records()
    api.hold_after = None
    # what 7 answers and the two requests in flight may have cost is above the first bound
    bound = ("--set", "references.hosted.max_usd=0.0012")
    said = call(place, "run", "tiny.yaml", *bound)
    assert "max_usd 0.0012: " in said
    found = reference(place)
    assert found["scores"] == {}
    assert 7 <= found["answered"] < 24
    assert found["usd"] + found["lost_usd"] <= 0.0012
    assert f"{found['answered']} of 24 answered, so it has no scores" in said
    asked = api.requests
    call(place, "run", "tiny.yaml", *bound, "--reuse")
    assert api.requests == asked, "asking again would change nothing"
    # what is refused of a model that answers others counts as an empty answer
    api.faults.append((400, {}, "unwanted"))
    said = call(place, "run", "tiny.yaml", "--set", "references.hosted.max_usd=1")
    assert "1 of 24 refused, scored as empty (400: unwanted)" in said
    found = reference(place)
    assert (found["incomplete"], found["answered"], found["refused"]) == (None, 23, "400: unwanted")
    assert set(found["scores"]) == {"bleu", "chrf"}
    frame = selectbench.load(place.run_folders()[0]).to_pandas("references").set_index("name")
    assert frame.loc["hosted", "chrf"] == found["scores"]["chrf"]["value"]
    assert frame.loc["hosted", "chrf_low"] <= frame.loc["hosted", "chrf"]
    assert set(api.asked.values()) == {1}
    assert place.records() == trained, "nothing is trained for another bound"
    assert len(place.run_folders()) == 1


@pytest.mark.slow
def test_log_probabilities_give_bits_per_byte_where_the_api_has_them(workplace: Workplace, api: ApiServer) -> None:
    added = f"references: {{own: {{api: {{base_url: '{api.url}', model: m}}}}}}\n"
    text = (workplace.folder / "tiny.yaml").read_text() + added
    workplace.write(text)
    few = ("--set", "job.max_steps=2", "--seeds", "0", "--set", "job.eval={tokens: 200}")
    said = call(workplace, "run", "tiny.yaml", *few)
    assert re.search(r"reference, not trained here \(m\): [\d.]+ bits/byte \(\w+: [\d.]+\)", said)
    found = reference(workplace)
    pieces = [re.findall(r"\s*\S+|\s+$", prompt) for prompt in api.asked]
    nats = NATS * sum(len(own) - 1 for own in pieces)
    size = sum(len("".join(own[1:]).encode()) for own in pieces)
    assert found["bits_per_byte"] == pytest.approx(nats / size / 0.693147, rel=1e-5)
    assert found["byte_perplexity"] == pytest.approx(2 ** found["bits_per_byte"])
    report = (workplace.run_folders()[-1] / "report.md").read_text()
    assert re.search(r"\| own \|.*\| reference, not trained here \|", report)
    for fault in ("page", (401, {}, "no")):
        api.faults.extend([fault] * 20)
        call(workplace, "run", "tiny.yaml", *few, "--set", "references.own.api.model=faulty")
        api.faults.clear()
        assert (reference(workplace)["no_bits"], reference(workplace)["answered"]) == (None, 0)
        assert reference(workplace)["incomplete"]
    api.knows_logprobs = False
    call(workplace, "run", "tiny.yaml", *few, "--set", "references.own.api.model=other")
    assert reference(workplace)["bits_per_byte"] is None
    assert "tells no log-probabilities" in reference(workplace)["no_bits"]
    assert "| own | perplexity per byte | - |" in (workplace.run_folders()[-1] / "report.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{source}", "it", "the prompt lacks {source}"),
        ("key_env: A_KEY", f"key_env: {KEY}", "never the key itself"),
        ("ADDRESS", f"https://me:{KEY}@host/v1", "without a key or a password in it"),
        ("timeout_seconds", "max_usd: 1\n    timeout_second", "unknown key"),
        ("usd_per_million_tokens: {input: 0.5, output: 1.5}", "max_usd: 1", "max_usd needs usd_per_million_tokens"),
        ("  hosted:", "  t5:", "an option is called 't5' too"),
        ('    prompt: "Count in Dutch: {source}"\n', "", "required key 'prompt' is missing"),
        (", scores: [bleu, chrf]", "", "a reference is for jobs with"),
        ("at_once: 2", "request: {model: x}", "request may not set model"),
        ("at_once: 2", f"request: {{extra_headers: {{Api-Key: {KEY}}}}}", "request may hold no key"),
    ],
)
def test_mistakes_in_a_suite(tmp_path: Path, old: str, new: str, told: str) -> None:
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    text = SUITE.replace(old, new).replace("ADDRESS", "http://localhost/v1").replace("objective: chrf, ", "")
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_suite(str(tmp_path / "s.yaml"), device="cpu")
    assert told in str(error.value)
    assert KEY not in str(error.value)


@pytest.mark.slow
def test_the_shipped_translation_suite_against_a_real_server(tmp_path: Path, api: ApiServer) -> None:
    """A model of random weights behind `transformers serve`, through the server that misbehaves."""
    place = Workplace(tmp_path)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "</s>"]
    tokenizer.train_from_iterator([PAIRS], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    whole.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    whole.save_pretrained(tmp_path / "model")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(whole), bos_token_id=0, eos_token_id=1, pad_token_id=1, **shape)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    serve = "from transformers.cli.transformers import main; main()"
    words = ["serve", str(tmp_path / "model"), "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    with (tmp_path / "serve.log").open("w") as log:
        processes.start(
            [sys.executable, "-c", serve, *words], stdout=log, stderr=log,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        until(lambda: "Uvicorn running" in (tmp_path / "serve.log").read_text())
    api.upstream = f"http://127.0.0.1:{port}/v1"
    api.faults.extend(["cut", (500, {}, "oops"), "empty"])
    where = {"base_url": api.url, "model": str(tmp_path / "model"), "key_env": "A_KEY"}
    asked = {"api": where, "prompt": "Translate to Chichewa: {source}", "max_tokens": 8}
    few = ("--set", "job.max_steps=2", "--set", "job.lr_schedule.warmup_steps=1", "--set", "job.eval.generate=24")
    few += ("--set", "job.eval.every_steps=2", "--seeds", "0", "--set", f"references.served={json.dumps(asked)}")
    call(place, "run", "translation", *few)
    (folder,) = place.run_folders("translation")
    (found,) = json.loads((folder / "ranking.json").read_text())["references"]
    assert (found["answered"], found["empty"], found["incomplete"]) == (24, 1, None)
    assert found["scores"].keys() == {"bleu", "chrf"}
    assert found["output_tokens"] > 0
    assert set(api.asked.values()) == {1}

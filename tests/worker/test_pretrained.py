"""Starting from a model that was trained before, a folder as transformers saves it; what can be wrong with it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import task_jobs as jobs
import torch
import torch.nn.functional as F  # noqa: N812  # noqa: N812
from safetensors.torch import load_file, save_file
from suite.suite_texts import VALID, changed, lines_of, write
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from selectbench.choices.model import (
    FOLDER_FIX,
    HUB_FIX,
    INDEX,
    Bpe,
    ConfigFile,
    PretrainedTokenizer,
    folder_problem,
)
from selectbench.data.prepare import prepare
from selectbench.data.prepared import Prepared
from selectbench.errors import UserError
from selectbench.launch.display import outcome_text
from selectbench.launch.preparation import Request, prepare_all, preview
from selectbench.record.record import Failed
from selectbench.record.wire import GaveUp
from selectbench.suite.load import load_suite
from selectbench.suite.sources import TextFiles

MODEL, BPE = "{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", "{bpe: 512}"
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 64}  # fmt: skip


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A text, its tokens by a BPE, and folders of models with that tokenizer; not to be written to."""
    root = tmp_path_factory.mktemp("pretrained")
    (root / "text").mkdir()
    for number in range(40):
        lines = (f"line {i} of text {number}: {i} times {number} is {i * number}, and so on." for i in range(40))
        (root / "text" / f"{number}.txt").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELECTBENCH_CACHE", str(root / "cache"))
        found = prepare(TextFiles(text=[str(root / "text" / "*.txt")]), Bpe(bpe=300))
        save(root / "llama", found)
        own = prepare(
            TextFiles(text=[str(root / "text" / "*.txt")]), PretrainedTokenizer(pretrained=str(root / "llama"))
        )
    assert np.array_equal(own.heldout(), found.heldout())
    (root / "data").symlink_to(own.folder)
    return root


def save(folder: Path, data: Prepared, **more) -> None:
    torch.manual_seed(7)
    config = LlamaConfig(**SHAPE, vocab_size=320, max_position_embeddings=64, attention_dropout=0.3,
                         bos_token_id=None, eos_token_id=0, **more)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(data.folder / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)


@pytest.fixture
def folder(home, tmp_path):
    """A copy of the llama's folder, to be spoilt."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in (home / "llama").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def job(model, **more):
    evaluation = {"tokens": 500, "at_start": True}
    return {"model": {"pretrained": str(model)}, "tokenizer": None, "max_steps": 3, "eval": evaluation, **more}


def on(trials, home):
    trials.data_folder = home / "data"
    return trials


def losses_of(model, data):
    count = math.ceil(500 / 32)
    stream = torch.from_numpy(np.array(data.heldout()[: count * 32 + 1], dtype=np.int64))
    with torch.no_grad():
        logits = model.eval()(input_ids=stream[:-1].view(count, 32)).logits
    return float(F.cross_entropy(logits.double().flatten(0, 1), stream[1:]))


def test_before_training_it_is_the_model_itself(trials, home):
    finished = on(trials, home).finished(job=job(home / "llama"))
    model = LlamaForCausalLM.from_pretrained(home / "llama")
    expected = losses_of(model, Prepared.open(home / "data"))
    measured = finished.measurement
    assert measured.initial_loss == pytest.approx(expected, rel=1e-6)
    assert finished.evaluation_curve[0].step == 0
    assert [point.step for point in finished.evaluation_curve] == [0, 3]
    assert measured.final_loss < measured.initial_loss
    assert finished.identity.parameters == sum(p.numel() for p in model.parameters())
    assert finished.identity.dropout == 0.0


def test_tied_weights_and_half_precision_are_read_too(trials, home, tmp_path):
    data = Prepared.open(home / "data")
    save(tmp_path / "tied", data, tie_word_embeddings=True)
    tied = LlamaForCausalLM.from_pretrained(tmp_path / "tied").to(torch.bfloat16)
    tied.save_pretrained(tmp_path / "half")
    finished = on(trials, home).finished(job=job(tmp_path / "half"))
    expected = losses_of(LlamaForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32), data)
    assert finished.measurement.initial_loss == pytest.approx(expected, rel=1e-6)
    assert finished.identity.parameters == sum(p.numel() for p in tied.parameters())
    assert finished.identity.parameter_dtype == "float32"


def test_seeds_begin_with_the_same_weights_and_read_in_another_order(trials, home):
    runs = [on(trials, home).finished(seed=seed, job=job(home / "llama")) for seed in (0, 1)]
    assert len({run.identity.initial_weights_sha256 for run in runs}) == 1
    assert len({run.measurement.initial_loss for run in runs}) == 1
    assert len({run.identity.token_stream_sha256 for run in runs}) == 2
    drawn = [trials.finished(seed=seed, job={"max_steps": 2}).identity for seed in (0, 1)]
    assert len({identity.initial_weights_sha256 for identity in drawn}) == 2


def test_two_models_of_one_run_do_not_share_weights(trials, home, folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: one * 2 for name, one in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    found = [on(trials, home).finished(job=job(model)).identity for model in (home / "llama", folder)]
    assert len({identity.initial_weights_sha256 for identity in found}) == 2


@pytest.mark.parametrize("task", ["masked_lm", "seq2seq"])
def test_other_tasks_begin_with_their_model_too(trials, tmp_path, monkeypatch, task):
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    data = (jobs.prepared_masked if task == "masked_lm" else jobs.prepared_pairs)(tmp_path / "text")
    model = (jobs.plain_bert if task == "masked_lm" else jobs.plain_t5)(data.vocab_size, 5)
    model.save_pretrained(tmp_path / "model")
    trials.data_folder = data.folder
    plain = jobs.MASKED if task == "masked_lm" else jobs.T5_PAIRS
    pretrained = {**plain, "model": {"pretrained": str(tmp_path / "model")}, "max_steps": 2}
    found = trials.finished(job=pretrained)
    drawn = trials.finished(job={**plain, "max_steps": 2}, seed=5)
    assert found.identity.initial_weights_sha256 == drawn.identity.initial_weights_sha256
    assert found.identity.parameters == drawn.identity.parameters


# What can be wrong with it


def gave_up(trials, model, **more):
    last = trials.events(job=job(model, **more))[-1]
    assert isinstance(last, GaveUp), last
    assert last.kind == "crashed"
    assert "attention" not in last.detail
    assert "copy or download" in last.detail or "hub id" in last.detail
    return last.detail


def suite_of(model, tmp_path, entries=300, **asked):
    text = VALID.replace("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", f"{{pretrained: {model}}}")
    text = text.replace("bpe: 512", f"bpe: {entries}")
    (tmp_path / "suites").mkdir(exist_ok=True)
    return lines_of(write(tmp_path / "suites", text), **asked)


def test_a_folder_that_is_not_there(tmp_path):
    assert suite_of("./gone", tmp_path) == [
        "mine.yaml:2:23: job.model.pretrained: there is no folder gone",
    ]


def test_a_folder_without_a_model(tmp_path):
    (tmp_path / "suites" / "empty").mkdir(parents=True)
    (line,) = suite_of("./empty", tmp_path)
    assert line == (
        "mine.yaml:2:23: job.model.pretrained: empty holds no config.json, so it is no model that transformers "
        "saved"
    )


def test_a_folder_without_weights(trials, home, folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (line,) = suite_of(folder, tmp_path)
    assert line == f"mine.yaml:2:23: job.model.pretrained: {folder} holds no weights (*.safetensors): {FOLDER_FIX}"
    detail = gave_up(on(trials, home), folder)
    assert "model.pretrained" in detail
    assert "model.safetensors" in detail


def test_weights_that_are_gone_are_no_matter_for_a_report(home, folder, tmp_path):
    text = VALID.replace("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", f"{{pretrained: {folder}}}")
    path = write(tmp_path, text.replace("bpe: 512", "bpe: 300"))
    before = load_suite(str(path), device="cpu")
    (folder / "model.safetensors").unlink()
    assert load_suite(str(path), device="cpu", require_files=False).job == before.job


def test_weights_of_another_model(trials, home, folder, tmp_path):
    config = T5Config(num_layers=1, d_model=16, num_heads=2, d_kv=8, d_ff=32, vocab_size=300)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    (folder / "model.safetensors").write_bytes((tmp_path / "t5" / "model.safetensors").read_bytes())
    detail = gave_up(on(trials, home), folder)
    assert "holds no weights for" in detail
    assert str(folder) in detail


def test_weights_of_another_size(trials, home, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    detail = gave_up(on(trials, home), folder)
    assert str(folder) in detail
    assert "mlp.down_proj.weight of 32 x 64, its config.json makes it 32 x 96" in detail
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))
    assert "The hidden size (32) is not a multiple" in gave_up(on(trials, home), folder)
    detail = trials.events(job={**job(folder), "model": {"config": str(folder)}})[-1].detail
    assert detail.startswith(f"model.config: {folder}: transformers refuses it: ")
    assert "The hidden size (32) is not a multiple" in detail


def test_what_is_wrong_with_a_folder_is_seen_without_torch(folder):
    assert folder_problem(folder) is None
    config, weights = folder / "config.json", folder / "model.safetensors"
    whole, settings = weights.read_bytes(), json.loads(config.read_text())
    for content, words in [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (whole + b"\0", "is damaged: by its header"),
        ((2).to_bytes(8, "little") + b"[]", "has a header that is none of safetensors'"),
        ((5).to_bytes(8, "little") + b"hello", "has a header that is none of safetensors'"),
    ]:
        weights.write_bytes(content)
        assert words in folder_problem(folder)
    weights.write_bytes(whole)
    config.write_text(json.dumps({**settings, "vocab_size": 512}))
    assert "embedding of 512 x 32, model.embed_tokens.weight is 320 x 32" in folder_problem(folder)
    config.write_text(json.dumps({**settings, "hidden_size": 64}))
    assert "is of another model than the weights" in folder_problem(folder)
    config.write_text("[]")
    assert "config.json holds no mapping" in folder_problem(folder)


def test_a_file_that_the_index_names_and_that_is_not_there(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "model-00001-of-00002.safetensors")
    named = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": named}))
    assert f"{folder} lacks model-00002-of-00002.safetensors, which its {INDEX} names" in folder_problem(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": named["a"]}}))
    assert folder_problem(folder) is None
    (folder / INDEX).write_text("{")
    assert f"{INDEX} is not JSON" in folder_problem(folder)


def test_weights_that_are_missing_in_part(trials, home, folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    detail = gave_up(on(trials, home), folder)
    assert "holds no weights for model.layers.1.mlp.up_proj.weight" in detail


@pytest.mark.parametrize("cut", [0, 5, 1000, -100])
def test_a_damaged_file_of_weights(trials, home, folder, cut, tmp_path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    (line,) = suite_of(folder, tmp_path)
    assert line.startswith(f"mine.yaml:2:23: job.model.pretrained: {path} is ")
    assert "cut short" in line
    assert line.endswith(FOLDER_FIX)
    detail = gave_up(on(trials, home), folder)
    assert str(folder) in detail
    assert "cannot be loaded" in detail
    assert "\n" not in detail


def test_a_damaged_configuration(trials, home, folder, tmp_path):
    (folder / "config.json").write_text("{")
    (line,) = suite_of(folder, tmp_path)
    assert line.startswith("mine.yaml:2:23: job.model.pretrained: ")
    assert "config.json" in line
    assert "cannot be loaded" in gave_up(on(trials, home), folder)


def test_a_vocabulary_that_is_smaller_than_the_tokenizers(home, tmp_path):
    (line,) = suite_of(home / "llama", tmp_path, entries=512)
    assert line == "mine.yaml:2:3: job: the model's vocab_size 320 is less than the tokenizer's 512"


def test_a_sequence_that_is_longer_than_its_positions(home, tmp_path):
    found = suite_of(home / "llama", tmp_path, settings=["job.seq_len=128"])
    assert found == ["--set job.seq_len=128: job.seq_len: seq_len 128 is more than the model's 64 positions"]


def test_a_hub_id_without_a_network(trials, home, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    detail = gave_up(on(trials, home), "selectbench/no-such-model")
    assert "model.pretrained: selectbench/no-such-model cannot be loaded" in detail
    assert detail.endswith(f"({HUB_FIX})")
    assert ".:" not in detail
    assert "\n" not in detail
    assert HUB_FIX in outcome_text(Failed(kind="crashed", detail=detail))
    at = write(tmp_path, changed((MODEL, "{pretrained: no/such}"), (BPE, "{bytes: true}")))
    (told,) = [line for line in preview(Request(str(at)), print).notes if "model.pretrained" in line]
    assert told == f"model.pretrained: no/such is not in the hub's cache: {HUB_FIX}"
    with pytest.raises(UserError, match=r"model.pretrained: no/such cannot be loaded.*hf download ID"):
        prepare_all(Request(str(at)), print)


@pytest.mark.parametrize("key", ["config", "pretrained"])
def test_a_family_that_transformers_does_not_know(folder, key, tmp_path):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "model_type": "lama"}))
    text = changed((MODEL, f"{{{key}: {folder}}}"), (BPE, "{bytes: true}"))
    (line,) = lines_of(write(tmp_path, text))
    assert line.startswith(f"mine.yaml:2:{13 + len(key)}: job.model.{key}: transformers knows")
    assert line.endswith("knows no model_type 'lama' (did you mean 'llama'?)")
    del content["rms_norm_eps"]
    for wrong, told in {"rms_norms_eps": 1, "hidden_sise": 0, "d_modell": 0}.items():
        (folder / "config.json").write_text(json.dumps({**content, wrong: 1e-6}))
        lines = lines_of(write(tmp_path, text))
        assert len(lines) == told, "what is like nothing that is left out may be of another version"
        assert all(
            "llama of transformers reads no 'rms_norms_eps' (did you mean 'rms_norm_eps'?)" in o for o in lines
        )
    for old in ("max_length", "tie_encoder_decoder"):  # of transformers 4, in most files of the hub
        (folder / "config.json").write_text(json.dumps({**content, old: 512}))
        assert lines_of(write(tmp_path, text)) == []
    elsewhere = text.replace("micro_batch_size: 8", f"micro_batch_size: 8\n  python: {sys.executable}")
    assert lines_of(write(tmp_path, elsewhere)) == []


@pytest.mark.parametrize("key", ["config", "pretrained"])
def test_a_misspelt_key_beside_a_model_of_any_family(folder, key, tmp_path):
    text = changed((MODEL, f"{{{key}: {folder}, dropuot: off}}"), (BPE, "{bytes: true}"))
    (line,) = lines_of(write(tmp_path, text))
    assert line.endswith("job.model.dropuot: unknown key (did you mean 'dropout'?)")


def test_an_encoder_is_not_taken_for_a_model_of_the_next_token(tmp_path):
    """Its attention sees the token that it is to predict."""
    config = BertConfig(
        num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=600
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    (line,) = suite_of(tmp_path / "bert", tmp_path)
    assert line == "mine.yaml:2:10: job.model: bert is for task masked_lm, the job's task is causal_lm"


def test_a_configuration_of_an_encoder_is_not_either(tmp_path):
    config = BertConfig(
        num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=600
    )
    config.save_pretrained(tmp_path / "bert")
    text = VALID.replace("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", f"{{config: {tmp_path / 'bert'}}}")
    (line,) = lines_of(write(tmp_path, text))
    assert line == "mine.yaml:2:10: job.model: bert is for task masked_lm, the job's task is causal_lm"


def test_every_family_is_for_the_tasks_that_transformers_builds_it_for(tmp_path):
    tables = {
        "causal_lm": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked_lm": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "seq2seq": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    path, several = tmp_path / "config.json", 0
    for family in set().union(*tables.values()):
        path.write_text(json.dumps({"model_type": family}))
        known = {task for task, table in tables.items() if family in table}
        several += len(known) > 1
        found = set(ConfigFile(config=str(path)).tasks)
        assert found == known or (found == {"masked_lm"} and known == {"masked_lm", "causal_lm"}), family
    assert several > 20
    path.write_text(json.dumps({"model_type": "t5"}))
    text = VALID.replace("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", f"{{config: {path}}}")
    (line,) = lines_of(write(tmp_path, text))
    assert line == "mine.yaml:2:10: job.model: t5 is for task seq2seq, the job's task is causal_lm"


# Its tokenizer


def loaded(tmp_path, text):
    return load_suite(str(write(tmp_path, text)), device="cpu")


def test_its_own_tokenizer_is_taken_where_none_is_given(home, tmp_path):
    text = VALID.replace("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", f"{{pretrained: {home / 'llama'}}}")
    suite = loaded(tmp_path, text.replace("  tokenizer: {bpe: 512}\n", ""))
    own = suite.job.of(suite.options[0].choices).tokenizer
    assert own == PretrainedTokenizer(pretrained=str(home / "llama"))
    given = loaded(tmp_path, text.replace("bpe: 512", "bpe: 300"))
    assert given.job.of(given.options[0].choices).tokenizer == Bpe(bpe=300)


def test_a_path_is_relative_to_the_suite(home, folder, tmp_path):
    text = VALID.replace(
        "{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", "{pretrained: ./model, revision: main}"
    )
    suite = loaded(tmp_path, text.replace("  tokenizer: {bpe: 512}\n", ""))
    model = suite.job.model
    assert model.pretrained == str(folder)
    own = suite.job.of(suite.options[0].choices).tokenizer
    assert own == PretrainedTokenizer(pretrained=str(folder), revision="main")


def test_an_option_with_a_model_of_its_own_has_its_tokenizer(home, tmp_path):
    text = VALID.replace("bpe: 512", "bpe: 300").replace(
        "{precision: bf16_mixed}", f"{{model: {{pretrained: {home / 'llama'}}}}}"
    )
    suite = loaded(tmp_path, text)
    first, second = (suite.job.of(option.choices).tokenizer for option in suite.options)
    assert (first, second) == (Bpe(bpe=300), PretrainedTokenizer(pretrained=str(home / "llama")))

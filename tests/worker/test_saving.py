"""Kept models: transformers loads them, and they are what the last evaluation saw."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import task_jobs as jobs
import torch
from msgspec.structs import replace
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from selectbench.data.prepared import TOKENIZER, Prepared
from selectbench.record.wire import Finished, GaveUp
from selectbench.worker.batches import held_out_of
from selectbench.worker.evaluation import Forward, heldout_loss
from selectbench.worker.runtime import World
from selectbench.worker.trial import run_trial

GPT2 = {"family": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2}
LLAMA = {"family": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip
TIED = {**LLAMA, "tie_word_embeddings": True}
JOB = {"max_steps": 6, "eval": {"tokens": 1000}}


def keeping(trials, **settings):
    return replace(trials.order(**settings), model_folder=str(trials.trial_folder / "model"))


def kept(trials, **settings):
    """The order, and what its trial measured."""
    events, order = [], keeping(trials, **settings)
    run_trial(order, events.append)
    assert isinstance(events[-1], Finished), events[-1]
    return order, events[-1]


def loss_of(module, order):
    held_out = held_out_of(order, Prepared.open(order.data_folder), module)
    module.eval()
    with torch.no_grad():
        return heldout_loss(Forward(module, {}), held_out, sequences_per_batch=8, world=World(0, 1, "cpu"))


def is_the_trained_model(order, finished, auto=AutoModelForCausalLM):
    module = auto.from_pretrained(order.model_folder)
    assert loss_of(module, order) == pytest.approx(finished.measurement.final_loss, rel=1e-6)
    assert finished.measurement.final_loss < 0.995 * finished.measurement.first_loss
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"job": {"model": TIED}}, {"precision": "bf16_mixed"},
        {"precision": "bf16_master", "job": {"model": LLAMA}},
        {"optimizer": {"name": "schedule_free_adamw", "lr": 3e-3}}, {"framework": "hf_trainer"},
        {"adaptation": {"name": "lora", "r": 4}, "job": {"max_steps": 12},
         "optimizer": {"name": "adamw", "lr": 0.1}},
        {"min_timed_seconds": 0.3},
    ],
    ids=["gpt2", "tied", "mixed", "master", "schedule_free", "trainer", "lora", "steps_for_timing"],
)  # fmt: skip
def test_transformers_loads_what_was_evaluated(trials, settings):
    order, finished = kept(trials, **{**settings, "job": {**JOB, **settings.get("job", {})}})
    module = is_the_trained_model(order, finished)
    tokenizer = AutoTokenizer.from_pretrained(order.model_folder)
    text = "line 3 of text 4: 3 times <|endoftext|> is 12"
    given = tokenizer(text, return_tensors="pt")
    theirs = Tokenizer.from_file(str(trials.data_folder / TOKENIZER))
    theirs.encode_special_tokens = True
    assert given.input_ids[0].tolist() == theirs.encode(text).ids
    assert tokenizer.decode(given.input_ids[0]) == text
    assert module.config.use_cache
    said = module.generate(given.input_ids, max_new_tokens=4, do_sample=False)
    assert said.shape[1] > given.input_ids.shape[1]


@pytest.mark.slow
def test_layers_in_four_bits_are_kept_as_what_they_stand_for(trials):
    order, finished = kept(trials, adaptation={"name": "qlora", "r": 4}, optimizer={"name": "adamw", "lr": 0.1},
                           job={**JOB, "model": LLAMA, "max_steps": 12})  # fmt: skip
    is_the_trained_model(order, finished)


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [("ddp", "fp32"), ("fsdp", "fp32"), ("fsdp", "bf16_master"), ("zero2", "bf16_master"), ("zero3", "fp32")],
)
def test_sharded_weights_are_gathered(launched, strategy, precision):
    stage = {"stage": int(strategy[-1])} if strategy.startswith("zero") else {}
    order = keeping(
        launched, strategy={"name": strategy.rstrip("23"), **stage}, precision=precision, world_size=2,
        micro_batch_size=4, job=JOB,
    )  # fmt: skip
    end = launched.run(order)
    assert end.finished is not None, end.outcome
    is_the_trained_model(order, end.finished)
    assert not list(launched.trial_folder.glob("*.unfinished"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return jobs.prepared_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.mark.parametrize(
    ("task", "data", "model", "auto"),
    [("masked_lm", "masked_lm", jobs.BERT, AutoModelForMaskedLM), ("seq2seq", "t5", jobs.T5, AutoModelForSeq2SeqLM),
     ("seq2seq", "bart", jobs.BART, AutoModelForSeq2SeqLM)],
    ids=["masked_lm", "t5", "bart"],
)  # fmt: skip
def test_other_tasks(trials, prepared, task, data, model, auto):
    trials.data_folder = prepared[data].folder
    source = {"pairs": ["unused"]} if task == "seq2seq" else {"text": ["unused"]}
    order, finished = kept(trials, job=jobs.job(task, model, source, eval={"tokens": 500}))
    is_the_trained_model(order, finished, auto)
    tokenizer = AutoTokenizer.from_pretrained(order.model_folder)
    named = {"mask": tokenizer.mask_token_id, "pad": tokenizer.pad_token_id}
    assert {name: named[name] for name in prepared[data].special_ids} == prepared[data].special_ids


def test_a_model_of_own_code_is_kept_as_its_state(trials, tmp_path):
    (tmp_path / "ours_kept.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, vocab_size, seq_len):\n"
        "        super().__init__()\n"
        "        self.inner = torch.nn.Embedding(vocab_size, 16)\n"
        "        self.head = torch.nn.Linear(16, vocab_size)\n"
        "        self.register_buffer('seen', torch.zeros(2, dtype=torch.int64))\n"
        "    def forward(self, ids):\n"
        "        return self.head(self.inner(ids))\n"
    )
    order, finished = kept(trials, code=[str(tmp_path)], job={**JOB, "model": {"family": "ours_kept:Net"}})
    from ours_kept import Net

    module = Net(Prepared.open(order.data_folder).vocab_size, 32)
    module.load_state_dict(safetensors.torch.load_file(Path(order.model_folder) / "model.safetensors"))
    assert loss_of(module, order) == pytest.approx(finished.measurement.final_loss, rel=1e-6)


def test_without_an_evaluation_the_last_step_of_the_job_is_kept(trials):
    order, finished = kept(trials, job={**JOB, "eval": "none"}, min_timed_seconds=0.3)
    after = loss_of(AutoModelForCausalLM.from_pretrained(order.model_folder), trials.order(job=JOB))
    assert after == pytest.approx(trials.finished(job=JOB).measurement.final_loss, rel=1e-6)
    assert finished.measurement.final_loss is None


def test_a_model_that_was_there_is_replaced_and_one_that_diverged_is_not_kept(trials):
    old = trials.trial_folder / "model" / "old.txt"
    old.parent.mkdir(parents=True)
    old.write_text("of an attempt before")
    events = []
    run_trial(keeping(trials, job={**JOB, "max_steps": 30}, optimizer={"name": "sgd", "lr": 1e3}), events.append)
    assert isinstance(events[-1], GaveUp)
    assert old.exists()
    kept(trials, job=JOB)
    assert not old.exists()

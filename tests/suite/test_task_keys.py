"""Tasks, data, tokenizers and models: what goes together, what is taken where nothing is said, and what is told."""

# ruff: noqa: E501 (a message is compared whole, so it stands on one line)
from __future__ import annotations

import pytest
from suite_texts import VALID, changed, lines_of, write

from selectbench.choices.model import Bpe, Bytes
from selectbench.suite.load import load_suite

GPT2 = "model: {family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}"
BERT = "model: {family: bert, num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4}"
T5 = "model: {family: t5, num_layers: 2, d_model: 64, num_heads: 4}"
TOKENIZER = "  tokenizer: {bpe: 512}\n"
SECOND = "{precision: bf16_mixed}"
OTHER = (SECOND, "{tokenizer: {bpe: 300}}")


def job(model: str, *keys: str) -> tuple[str, str]:
    return GPT2, "\n  ".join([*keys, model])


def axes(values: str) -> str:
    rows = "options:\n  fp32: {precision: fp32}\n  bf16: {precision: bf16_mixed}\nbaseline: fp32\n"
    return changed((rows, values))


PAIRS = "data: {pairs: [a.tsv]}"
WRONG = {
    "bert with causal_lm": (
        changed(job(BERT)),
        ["mine.yaml:2:10: job.model: bert is for task masked_lm, the job's task is causal_lm"],
    ),
    "gpt2 with masked_lm": (
        changed(job(GPT2, "task: masked_lm")),
        ["mine.yaml:3:10: job.model: gpt2 is for task causal_lm, the job's task is masked_lm"],
    ),
    "an option's model for another task": (
        changed((SECOND, "{model: {family: bert}}")),
        ["mine.yaml:12:17: options.bf16.model: bert is for task masked_lm, the job's task is causal_lm"],
    ),
    "pairs without seq2seq": (
        changed(job(T5, PAIRS)),
        ["mine.yaml:2:9: job.data: task causal_lm needs running text, pairs are for task seq2seq"],
    ),
    "seq2seq without pairs": (
        changed(job(T5, "task: seq2seq", "data: {text: [a.txt]}")),
        ["mine.yaml:3:9: job.data: task seq2seq needs pairs, found text"],
    ),
    "seq2seq without data": (
        changed(job(T5, "task: seq2seq")),
        ["mine.yaml:2:3: job: data: task seq2seq needs pairs, found text"],
    ),
    "masked_lm of chats": (
        changed(job(BERT, "task: masked_lm", "data: {chat: a.jsonl}")),
        ["mine.yaml:3:9: job.data: task masked_lm needs running text, found chat"],
    ),
    "scores with causal_lm": (
        changed(job(GPT2, "eval: {scores: [bleu]}")),
        ["mine.yaml:2:18: job.eval.scores: only task seq2seq generates what can be scored, found causal_lm"],
    ),
    "a score that there is not": (
        changed(job(T5, "task: seq2seq", PAIRS, "eval: {scores: [blue]}")),
        ["mine.yaml:4:19: job.eval.scores[0]: unknown value 'blue' (did you mean 'bleu'?)"],
    ),
    "a score of own code that is no name": (
        changed(job(T5, "task: seq2seq", PAIRS, 'eval: {scores: ["our lib:score"]}')),
        ['mine.yaml:4:19: job.eval.scores[0]: found "our lib:score", expected package.module:Name, a dotted module, a colon and a name in it'],
    ),
    "two scores of own code": (
        changed(job(T5, "task: seq2seq", PAIRS, 'eval: {scores: ["a:b", bleu, "a:c"]}')),
        ["mine.yaml:4:18: job.eval.scores: one score of your own at most, found a:b, a:c"],
    ),
    "a score twice": (
        changed(job(T5, "task: seq2seq", PAIRS, "eval: {scores: [bleu, bleu]}")),
        ["mine.yaml:4:18: job.eval.scores: bleu is repeated"],
    ),
    "tokenizer for tokens": (
        changed(job(GPT2, "data: {tokens: a.bin, vocab_size: 300}")),
        ["mine.yaml:4:14: job.tokenizer: the data are tokens already, with a vocabulary of their own: leave it out"],
    ),
    "an option's tokenizer for tokens": (
        changed(job(GPT2, "data: {markov: 8}"), (TOKENIZER, ""), OTHER),
        ["mine.yaml:12:21: options.bf16.tokenizer: the data are tokens already: there is nothing to tokenise"],
    ),
    "no tokenizer for text": (
        changed((TOKENIZER, "")),
        ["mine.yaml:2:3: job: required key 'tokenizer' is missing, as in {bpe: 2048}"],
    ),
    "an option's tokenizer that is more than the model's vocabulary": (
        changed(("n_head: 4", "n_head: 4, vocab_size: 512"), (SECOND, "{tokenizer: {bpe: 600}}")),
        ["mine.yaml:12:21: options.bf16.tokenizer: the model's vocab_size 512 is less than the tokenizer's 600"],
    ),
    "decide by a score that is not computed": (
        changed(more="decide: {objective: bleu}\n"),
        ["mine.yaml:14:21: decide.objective: bleu is not measured: add `eval: {scores: [bleu]}`"],
    ),
    "constraint on a score that is not computed": (
        changed(job(T5, "task: seq2seq", PAIRS, "eval: {scores: [chrf]}"), more="decide: {constraints: [chrf >= 3, bleu >= 20]}\n"),
        ["mine.yaml:17:35: decide.constraints[1]: bleu is not measured: add `eval: {scores: [bleu]}`"],
    ),
    "constraint on an own score that there is not": (
        changed(more="decide: {constraints: [own_score >= 20]}\n"),
        ["mine.yaml:14:24: decide.constraints[0]: own_score is not measured: add `eval: {scores: [\"package.module:function\"]}`"],
    ),
    "own metric that there is not": (
        changed(job(GPT2, 'eval: {metrics: {repeats: {call: "a:b", better: less}}}'), more="decide: {objective: repeat}\n"),
        ["mine.yaml:15:21: decide.objective: unknown metric 'repeat' (did you mean 'repeats'?)"],
    ),
    "own metric with the wrong side": (
        changed(job(GPT2, 'eval: {metrics: {repeats: {call: "a:b", better: less}}}'), more="decide: {constraints: [repeats >= 0.1]}\n"),
        ["mine.yaml:15:24: decide.constraints[0]: 'repeats >= 0.1': less repeats is better, so a bound is <= (found >=)"],
    ),
    "own metric with a name that there is": (
        changed(job(GPT2, 'eval: {metrics: {final_loss: {call: "a:b", better: less}}}')),
        ["mine.yaml:2:32: job.eval.metrics.final_loss: final_loss is a metric of selectbench: take another name"],
    ),
    "own metric without a side": (
        changed(job(GPT2, 'eval: {metrics: {repeats: {call: "a:b"}}}')),
        ["mine.yaml:2:29: job.eval.metrics.repeats: required key 'better' is missing"],
    ),
    "own metric of another task": (
        changed(job(T5, "task: seq2seq", PAIRS, 'eval: {metrics: {repeats: {call: "a:b", better: less}}}')),
        ["mine.yaml:4:19: job.eval.metrics: metrics of your own are for task causal_lm with text, found seq2seq with pairs"],
    ),
    "excess loss of a text": (
        changed(more="decide: {objective: excess_loss}\n"),
        ["mine.yaml:14:21: decide.objective: excess_loss is not measured: only a markov source says what loss can be reached"],
    ),
    "bits per byte of no text": (
        changed(job(GPT2, "data: {markov: 8}"), (TOKENIZER, ""), more="decide: {objective: bits_per_byte}\n"),
        ["mine.yaml:14:21: decide.objective: bits_per_byte is not measured: the data are tokens, of no text"],
    ),
    "data source": (
        changed(job(GPT2, "data: {texts: [a]}")),
        ["mine.yaml:2:10: job.data.texts: unknown key (did you mean 'text'?)"],
    ),
    "data source like none": (
        changed(job(GPT2, "data: {zzz: [a]}")),
        ["mine.yaml:2:9: job.data: required key is missing: one of corpus, text, jsonl, parquet, dataset, documents, chat, pairs, source_text, tokens or markov, or train and heldout"],
    ),
    "key of jsonl": (
        changed(job(GPT2, "data: {jsonl: a.jsonl, feild: x}")),
        ["mine.yaml:2:26: job.data.feild: unknown key (did you mean 'field'?)"],
    ),
    "key of markov": (
        changed(job(GPT2, "data: {markov: 8, vocab_sise: 64}"), (TOKENIZER, "")),
        ["mine.yaml:2:21: job.data.vocab_sise: unknown key (did you mean 'vocab_size'?)"],
    ),
    "key of pairs": (
        changed(job(T5, "task: seq2seq", "data: {pairs: a.tsv, sorce: 0}")),
        ["mine.yaml:3:24: job.data.sorce: unknown key (did you mean 'source'?)"],
    ),
    "key of held-out data": (
        changed(job(GPT2, "data: {train: {text: [a]}, heldout: {jsonl: [a], feild: b}}")),
        ["mine.yaml:2:52: job.data.heldout.feild: unknown key (did you mean 'field'?)"],
    ),
    "held-out source": (
        changed(job(GPT2, "data: {train: {text: [a]}, heldout: {jsnl: [a]}}")),
        ["mine.yaml:2:40: job.data.heldout.jsnl: unknown key (did you mean 'jsonl'?)"],
    ),
    "held-out data of another kind": (
        changed(job(GPT2, "data: {train: {text: [a]}, heldout: {chat: [a]}}")),
        ["mine.yaml:2:17: job.data.train: train and heldout must be of one kind, found text and chat"],
    ),
    "tokenizer": (
        changed(("{bpe: 512}", "{bep: 512}")),
        ["mine.yaml:3:15: job.tokenizer.bep: unknown key (did you mean 'bpe'?)"],
    ),
    "tokenizer like none": (
        changed(("{bpe: 512}", "{zzz: 512}")),
        ["mine.yaml:3:14: job.tokenizer: required key is missing: bpe, unigram or wordpiece (a size), bytes (true) or pretrained (a folder or hub id)"],
    ),
    "key of a tokenizer": (
        changed(("{bpe: 512}", "{pretrained: gpt2, revison: a}")),
        ["mine.yaml:3:33: job.tokenizer.revison: unknown key (did you mean 'revision'?)"],
    ),
    "two tokenizers in one": (
        changed(("{bpe: 512}", "{bpe: 512, unigram: 400}")),
        ["mine.yaml:3:25: job.tokenizer.unigram: unknown key (known: bpe)"],
    ),
    "too few entries": (
        changed(("{bpe: 512}", "{bpe: 100}")),
        ["mine.yaml:3:20: job.tokenizer.bpe: found 100, must be at least 257"],
    ),
    "bytes that are none": (
        changed(("{bpe: 512}", "{bytes: false}")),
        ["mine.yaml:3:22: job.tokenizer.bytes: found false, expected true"],
    ),
    "key of cleaning": (
        changed(job(GPT2, "cleaning: {min_charcters: 3}")),
        ["mine.yaml:2:14: job.cleaning.min_charcters: unknown key (did you mean 'min_characters'?)"],
    ),
    "bounds of cleaning": (
        changed(job(GPT2, "cleaning: {min_characters: 3, max_characters: 2}")),
        ["mine.yaml:2:49: job.cleaning.max_characters: max_characters 2 is less than min_characters 3"],
    ),
    "task": (
        changed(job(GPT2, "task: masked")),
        ["mine.yaml:2:9: job.task: unknown value 'masked' (did you mean 'masked_lm'?)"],
    ),
    "key of bert": (
        changed(job(BERT.replace("hidden_size", "hiden_size"), "task: masked_lm")),
        ["mine.yaml:3:47: job.model.hiden_size: unknown key (did you mean 'hidden_size'?)"],
    ),
    "heads of t5": (
        changed(job(T5.replace("num_heads: 4", "num_heads: 5"), "task: seq2seq", PAIRS)),
        ["mine.yaml:4:62: job.model.num_heads: num_heads must divide d_model where d_kv is not given, found d_model 64 and num_heads 5"],
    ),
    "adaptation": (
        changed((SECOND, "{adaptation: lorra}")),
        ["mine.yaml:12:22: options.bf16.adaptation: unknown name 'lorra' (did you mean 'lora'?)"],
    ),
    "key of an adaptation": (
        changed((SECOND, "{adaptation: {name: lora, alpa: 3}}")),
        ["mine.yaml:12:35: options.bf16.adaptation.alpa: unknown key (did you mean 'alpha'?)"],
    ),
    "an axis with too small a tokenizer": (
        axes("axes: {tokenizer.bpe: [300, 12]}\nbaseline: bpe=300\n"),
        ["mine.yaml:10:29: axes.tokenizer.bpe[1]: found 12, must be at least 257"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_told_with_its_place(tmp_path, mistake):
    text, expected = WRONG[mistake]
    assert lines_of(write(tmp_path, text)) == expected


PER_TOKEN = ["final_perplexity", "final_loss", "tokens_per_second"]


@pytest.mark.parametrize("metric", PER_TOKEN)
def test_nothing_per_token_decides_where_tokenizers_differ(tmp_path, metric):
    bound = ">= 0.99x" if metric == "tokens_per_second" else "<= 1.01x"
    decide = f"decide: {{objective: {metric}, constraints: [{metric} {bound} baseline]}}\n"
    first, second = lines_of(write(tmp_path, changed(OTHER, more=decide)))
    assert first.startswith(
        f"mine.yaml:14:21: decide.objective: {metric} is not measured: the options' tokenizers differ"
    )
    assert second.startswith(
        f"mine.yaml:14:{37 + len(metric)}: decide.constraints[0]: {metric} is not measured: the options' tokenizers differ"
    )
    assert "bits_per_byte" in first
    assert lines_of(write(tmp_path, changed(more=decide))) == []


def suite_of(tmp_path, text, **asked):
    return load_suite(str(write(tmp_path, text)), device="cpu", **asked)


def test_the_constraint_by_default_is_on_text_where_tokenizers_differ(tmp_path):
    same, other = (suite_of(tmp_path, text).decide for text in (VALID, changed(OTHER)))
    assert same.constraints == ["final_perplexity <= 1.01x baseline"]
    assert other.constraints == ["bits_per_byte <= 1.01x baseline"]
    assert other.objective == "bytes_per_second"
    stated = suite_of(tmp_path, changed(OTHER, more="decide: {objective: bits_per_byte, constraints: []}\n")).decide
    assert (stated.objective, stated.constraints) == ("bits_per_byte", [])
    assert suite_of(tmp_path, changed(OTHER), quick=True).decide.constraints == []


def test_a_tokenizer_that_is_the_jobs_own_is_no_other(tmp_path):
    suite = suite_of(tmp_path, changed((SECOND, "{tokenizer: {bpe: 512}, precision: bf16_mixed}")))
    assert suite.decide.constraints == ["final_perplexity <= 1.01x baseline"]


def test_an_axis_over_a_size_of_the_tokenizer(tmp_path):
    suite = suite_of(tmp_path, axes("axes: {tokenizer.bpe: [300, 400]}\nbaseline: bpe=300\n"))
    found = {option.name: suite.job.of(option.choices).tokenizer for option in suite.options}
    assert found == {"bpe=300": Bpe(bpe=300), "bpe=400": Bpe(bpe=400)}
    assert [option.differs_in for option in suite.options] == [[], ["tokenizer.bpe"]]
    assert suite.decide.constraints == ["bits_per_byte <= 1.01x baseline"]
    again = suite_of(tmp_path, VALID, axes=["tokenizer.bpe=300,400"])
    assert {suite.job.of(option.choices).tokenizer for option in again.options} == set(found.values())


def test_an_axis_over_tokenizers(tmp_path):
    text = axes("axes: {tokenizer: {words: {bpe: 300}, letters: {bytes: true}}}\nbaseline: words\n")
    suite = suite_of(tmp_path, text)
    assert suite.job.of(suite.option("letters").choices).tokenizer == Bytes()


def test_an_axis_over_models(tmp_path):
    text = axes("""\
axes:
  model:
    wide: {family: gpt2, n_layer: 1, n_embd: 64, n_head: 2}
    llama: {family: llama, num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2}
baseline: wide
""")
    suite = suite_of(tmp_path, text)
    models = {option.name: suite.job.of(option.choices).model for option in suite.options}
    assert {name: model.family for name, model in models.items()} == {"wide": "gpt2", "llama": "llama"}
    assert models["wide"].n_embd == 64
    assert suite.decide.constraints == ["final_perplexity <= 1.01x baseline"], "a token is the same for all of them"
    assert suite.options[1].differs_in == ["model"]


def test_tokens_need_no_tokenizer(tmp_path):
    for source in ("{markov: 8}", "{tokens: a.bin, vocab_size: 300}"):
        suite = suite_of(tmp_path, changed(job(GPT2, f"data: {source}"), (TOKENIZER, "")))
        assert suite.job.of(suite.options[0].choices).tokenizer is None


def test_every_task_says_which_special_tokens_it_needs(tmp_path):
    found = [
        suite_of(tmp_path, changed(*pairs)).job.specials
        for pairs in ([], [job(BERT, "task: masked_lm")], [job(T5, "task: seq2seq", PAIRS)])
    ]
    assert found == [(), ("mask",), ("pad",)]


def test_suites_of_one_process_keep_their_own_metrics_apart(tmp_path):
    def asking(better):
        return job(GPT2, f'eval: {{metrics: {{apart: {{call: "a:b", better: {better}}}}}}}')

    first = suite_of(tmp_path, changed(asking("less"), more="decide: {objective: apart}\n"))
    assert first.decide.objective == "apart"
    assert first.decide.constraints == []
    assert lines_of(write(tmp_path, changed(more="decide: {constraints: [apart <= 0.1]}\n"))) == [
        "mine.yaml:14:24: decide.constraints[0]: apart is not measured: add `eval: {metrics: {apart: ...}}`"
    ]
    assert lines_of(write(tmp_path, changed(asking("more")))) == [
        "mine.yaml:2:27: job.eval.metrics.apart: apart is better: less in another suite that was read before: take another name"
    ]
    assert first.threshold("apart") == 0.01
    (line,) = lines_of(write(tmp_path, changed(more="decide: {objective: aparts}\n")))
    assert "apart'" not in line.replace("'aparts'", "")

"""Every mistake is told with its line, its column and what to write instead, all of them at once."""

# ruff: noqa: E501 (a message is compared whole, so it stands on one line)
from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator

import pytest
from pydantic import TypeAdapter
from ruamel.yaml import YAML
from suite_texts import VALID, changed, lines_of, write

from selectbench.choices import REGISTRY, Choices
from selectbench.choices.choice import tag_of
from selectbench.errors import UserError, plain_word
from selectbench.launch.preparation import Request, prepare_all
from selectbench.suite.load import load_suite
from selectbench.suite.metrics import DECIDING

ONE_MISTAKE = {
    "key of the job": (
        changed(("max_steps: 30", "max_steps: 30\n  max_stepz: 3")),
        "mine.yaml:7:3: job.max_stepz: unknown key (did you mean 'max_steps'?)",
    ),
    "the key that tells a model's kind": (
        changed(("family: gpt2", "famly: gpt2")),
        "mine.yaml:2:11: job.model.famly: unknown key (did you mean 'family'?)",
    ),
    "key of the top": (changed(more="seedz: [1]\n"), "mine.yaml:14:1: seedz: unknown key (did you mean 'seeds'?)"),
    "key of a choice": (
        changed(("lr: 1e-3", "lr: 1e-3, beta_1: 0.9")),
        "mine.yaml:8:38: choices.optimizer.beta_1: unknown key (did you mean 'beta1'?)",
    ),
    "key of another class's settings": (
        changed(("lr: 1e-3", "lr: 1e-3, momentum: 0.9")),
        "mine.yaml:8:38: choices.optimizer.momentum: unknown key (known: lr, weight_decay, warmup_fraction, name, beta1, beta2, eps, implementation)",
    ),
    "key of a model": (
        changed(("n_head: 4", "n_head: 4, n_heads: 4")),
        "mine.yaml:2:60: job.model.n_heads: unknown key (did you mean 'n_head'?)",
    ),
    "key of an evaluation": (
        changed(("seq_len: 64", "seq_len: 64\n  eval: {tokens: 512, every_stepz: 2}")),
        "mine.yaml:5:23: job.eval.every_stepz: unknown key (did you mean 'every_steps'?)",
    ),
    "dimension": (
        changed(("{precision: bf16_mixed}", "{precision: bf16_mixed, optimzer: 1}")),
        "mine.yaml:12:33: options.bf16.optimzer: unknown key (did you mean 'optimizer'?)",
    ),
    "optimizer's name": (
        changed(("adamw", "adamww")),
        "mine.yaml:8:21: choices.optimizer.name: unknown name 'adamww' (did you mean 'adamw'?)",
    ),
    "precision's name": (
        changed(("bf16_mixed", "bf16_mxed")),
        "mine.yaml:12:21: options.bf16.precision: unknown name 'bf16_mxed' (did you mean 'bf16_mixed'?)",
    ),
    "family": (
        changed(("gpt2", "gpt3")),
        "mine.yaml:2:19: job.model.family: unknown name 'gpt3' (did you mean 'gpt2'?)",
    ),
    "model without a family": (
        changed(("family: gpt2, ", "")),
        "mine.yaml:2:10: job.model: required key is missing: family (gpt2, llama, bert, t5, bart or package.module:Name), config (a file or its folder) or pretrained (a folder or hub id)",
    ),
    "missing key": (
        changed(("  max_steps: 30\n", "")),
        "mine.yaml:2:3: job: required key 'max_steps' is missing",
    ),
    "another optimizer without its learning rate": (
        changed(("{precision: bf16_mixed}", "{optimizer: {name: sgd}}")),
        "mine.yaml:12:21: options.bf16.optimizer: required key 'lr' of sgd is missing",
    ),
    "optimizer by its name alone": (
        changed(("{precision: bf16_mixed}", "{optimizer: sgd}")),
        "mine.yaml:12:21: options.bf16.optimizer: 'sgd' needs 'lr': write {name: sgd, lr: ...}",
    ),
    "word for a number": (
        changed(("max_steps: 30", "max_steps: many")),
        'mine.yaml:6:14: job.max_steps: found "many", expected a whole number',
    ),
    "fraction for a whole number": (
        changed(("max_steps: 30", "max_steps: 30.5")),
        "mine.yaml:6:14: job.max_steps: found 30.5, expected a whole number",
    ),
    "zero": (changed(("seq_len: 64", "seq_len: 0")), "mine.yaml:4:12: job.seq_len: found 0, must be at least 2"),
    "negative": (
        changed(("global_batch_size: 8", "global_batch_size: -8")),
        "mine.yaml:5:22: job.global_batch_size: found -8, must be at least 1",
    ),
    "absurd": (
        changed(("n_layer: 2", "n_layer: 1000000000")),
        "mine.yaml:2:34: job.model.n_layer: found 1000000000, must be at most 4096",
    ),
    "not a number": (
        changed(("lr: 1e-3", "lr: .nan")),
        "mine.yaml:8:32: choices.optimizer.lr: found nan, expected a finite number",
    ),
    "heads that do not divide": (
        changed(("n_head: 4", "n_head: 5")),
        "mine.yaml:2:57: job.model.n_head: n_head must divide n_embd, found n_embd 64 and n_head 5",
    ),
    "vocabulary below the tokenizer's": (
        changed(("n_head: 4", "n_head: 4, vocab_size: 100")),
        "mine.yaml:2:3: job: the model's vocab_size 100 is less than the tokenizer's 512",
    ),
    "accumulation that does not divide": (
        changed(("micro_batch_size: 8", "micro_batch_size: 3")),
        "mine.yaml:9:21: choices.micro_batch_size: global_batch_size 8 is not a multiple of micro_batch_size 3 x world_size 1",
    ),
    "ranks that do not divide": (
        changed(("micro_batch_size: 8", "micro_batch_size: 8\n  world_size: 2")),
        "mine.yaml:9:21: choices.micro_batch_size: global_batch_size 8 is not a multiple of micro_batch_size 8 x world_size 2",
    ),
    "evaluation's word": (
        changed(("seq_len: 64", "seq_len: 64\n  eval: non")),
        "mine.yaml:5:9: job.eval: unknown value 'non' (did you mean 'none'?)",
    ),
    "evaluation by a number": (
        changed(("seq_len: 64", "seq_len: 64\n  eval: 5")),
        "mine.yaml:5:9: job.eval: found 5, expected none or a mapping",
    ),
    "corpus": (
        changed(("seq_len: 64", "seq_len: 64\n  data: {corpus: bibel}")),
        "mine.yaml:5:18: job.data.corpus: unknown value 'bibel' (did you mean 'bible'?)",
    ),
    "warm-up longer than the job": (
        changed(("seq_len: 64", "seq_len: 64\n  lr_schedule: {warmup_steps: 99}")),
        "mine.yaml:5:31: job.lr_schedule.warmup_steps: lr_schedule.warmup_steps 99 is more than max_steps 30",
    ),
    "model's file": (
        changed(("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", "{config: /nowhere/config.json}")),
        "mine.yaml:2:19: job.model.config: there is no file /nowhere/config.json",
    ),
    "baseline": (
        changed(("baseline: fp32", "baseline: fp23")),
        "mine.yaml:13:11: baseline: 'fp23' is not an option (did you mean 'fp32'?)",
    ),
    "objective that is a mapping": (
        changed(more="decide: {objective: {}}\n"),
        f"mine.yaml:14:21: decide.objective: found a mapping, expected {', '.join(DECIDING[:-1])} or {DECIDING[-1]}",
    ),
    "pretrained model without a name": (
        changed(("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", '{pretrained: ""}')),
        "mine.yaml:2:23: job.model.pretrained: is empty",
    ),
    "configuration without a name": (
        changed(("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", '{config: ""}')),
        "mine.yaml:2:19: job.model.config: is empty",
    ),
    "word for bytes": (
        changed(("{bpe: 512}", "{bytes: xx}")),
        'mine.yaml:3:22: job.tokenizer.bytes: found "xx", expected true',
    ),
    "word for ZeRO's stage": (
        changed(("{precision: bf16_mixed}", "{strategy: {name: zero, stage: one}}")),
        'mine.yaml:12:40: options.bf16.strategy.stage: found "one", expected 1, 2 or 3',
    ),
    "option that is the word auto": (
        changed(("{precision: bf16_mixed}", "auto")),
        "mine.yaml:12:9: options.bf16: expected a mapping of choices, as in {precision: fp32}",
    ),
    "choices that are the word auto": (
        changed(("choices:\n  optimizer: {name: adamw, lr: 1e-3}\n  micro_batch_size: 8", "choices: auto")),
        'mine.yaml:7:10: choices: found "auto", expected a mapping',
    ),
    "precision that an option alone leaves open": (
        changed(("{precision: bf16_mixed}", "{precision: auto}")),
        "mine.yaml:12:21: options.bf16.precision: auto is said once for all options, under choices: name a precision here",
    ),
    "micro-batch size that an option alone leaves open": (
        changed(("{precision: bf16_mixed}", "{micro_batch_size: auto}")),
        "mine.yaml:12:28: options.bf16.micro_batch_size: auto is said once for all options: choices: {micro_batch_size: auto}",
    ),
    "lone surrogate": (
        changed(more='question: "a\\ud800b"\n'),
        r"mine.yaml:14:11: question: holds \ud800, which no report can show",
    ),
    "control character in a list": (
        changed(more='gate: [ok, "a\\x1b[31m"]\n'),
        r"mine.yaml:14:12: gate[1]: holds \x1b, which no report can show",
    ),
    "surrogate in a name": (
        changed(("bf16:", '"b\\ud800":')),
        r"mine.yaml:12:3: options: the key 'b\ud800' holds \ud800, which no report can show",
    ),
    "no baseline": (
        changed(("baseline: fp32\n", "")),
        "mine.yaml:1:1: required key 'baseline' is missing: which of 'fp32', 'bf16'",
    ),
    "two options with the same choices": (
        changed(("bf16_mixed", "{name: fp32}")),
        "mine.yaml:12:9: options.bf16: 'bf16' has the same choices as 'fp32'",
    ),
    "option that is no mapping": (
        changed(("{precision: bf16_mixed}", "bf16_mixed")),
        "mine.yaml:12:9: options.bf16: expected a mapping of choices, as in {precision: fp32}",
    ),
    "rounds until all is decided, which suites once had": (
        changed(more="repeat: {min: 3, max: 10}\n"),
        "mine.yaml:14:1: repeat: unknown key: every option runs one round for each seed: write `seeds: [0, 1, 2]`",
    ),
    "repeated seed": (changed(more="seeds: [1, 2, 1]\n"), "mine.yaml:14:15: seeds[2]: the seed 1 is repeated"),
    "no seeds": (changed(more="seeds: []\n"), "mine.yaml:14:8: seeds: must have at least 1 entry"),
    "negative seed": (changed(more="seeds: [-1]\n"), "mine.yaml:14:9: seeds[0]: found -1, must be at least 0"),
    "suite's name": (
        changed(more="name: ../up\n"),
        'mine.yaml:14:7: name: found "../up": only letters, digits, dot, underscore and dash, a letter or digit first',
    ),
    "constraint's metric": (
        changed(more="decide: {constraints: [final_perplexty <= 1.01x baseline]}\n"),
        "mine.yaml:14:24: decide.constraints[0]: unknown metric 'final_perplexty' (did you mean 'final_perplexity'?)",
    ),
    "constraint's form": (
        changed(more="decide: {constraints: [final_loss about 3]}\n"),
        "mine.yaml:14:24: decide.constraints[0]: 'final_loss about 3' is not METRIC (<= >= < >) NUMBER with or without a unit, or NUMBERx baseline",
    ),
    "a factor whose yardstick was forgotten": (
        changed(more="decide: {constraints: [final_perplexity <= 1.01]}\n"),
        "mine.yaml:14:24: decide.constraints[0]: 'final_perplexity <= 1.01': did you mean `1.01x baseline`? (a true bound so low is written on its logarithm, final_loss)",
    ),
    "a factor without its x": (
        changed(more="decide: {constraints: [final_perplexity <= 1.01 baseline]}\n"),
        "mine.yaml:14:24: decide.constraints[0]: 'final_perplexity <= 1.01 baseline': write `final_perplexity <= 1.01x baseline`",
    ),
    "a limit whose factor is of nothing": (
        changed(more="gate: [final_loss < 1.01x]\n"),
        "mine.yaml:14:8: gate[0]: 'final_loss < 1.01x': write `final_loss < 1.01x reference`",
    ),
    "no metric of a short trial": (
        changed(more="screen: [wonder >= 0.5x baseline]\n"),
        "mine.yaml:14:10: screen[0]: unknown metric 'wonder' (known: tokens_per_second, step_time_median_seconds, peak_memory_bytes, peak_device_memory_bytes)",
    ),
    "a column's heading for a metric": (
        changed(more="screen: [tokens/s >= 0.5x baseline]\n"),
        "mine.yaml:14:10: screen[0]: unknown metric 'tokens/s' (did you mean 'tokens_per_second'?)",
    ),
    "another column's heading": (
        changed(more="decide: {constraints: [memory <= 3 GiB]}\n"),
        "mine.yaml:14:24: decide.constraints[0]: unknown metric 'memory' (did you mean 'peak_memory_bytes'?)",
    ),
    "a heading for the objective": (
        changed(more="decide: {objective: tokens/s}\n"),
        "mine.yaml:14:21: decide.objective: unknown metric 'tokens/s' (did you mean 'tokens_per_second'?)",
    ),
    "constraint on what is not measured": (
        changed(("seq_len: 64", "seq_len: 64\n  eval: none"), more="decide: {constraints: [final_loss <= 3]}\n"),
        "mine.yaml:15:24: decide.constraints[0]: final_loss is not measured: job.eval is none",
    ),
    "objective that is not measured": (
        changed(("seq_len: 64", "seq_len: 64\n  eval: none"), more="decide: {objective: final_loss}\n"),
        "mine.yaml:15:21: decide.objective: final_loss is not measured: job.eval is none",
    ),
    "exclusion of nothing": (
        changed(more="exclude: [{precision: tf32}]\n"),
        "mine.yaml:14:11: exclude[0]: leaves out no row",
    ),
    "exclusion of everything": (
        changed(more="exclude: [{micro_batch_size: 8}]\n"),
        "mine.yaml:14:10: exclude: leaves out every row",
    ),
    "exclusion's dimension": (
        changed(more="exclude: [{precison: tf32}]\n"),
        "mine.yaml:14:12: exclude[0].precison: unknown key (did you mean 'precision'?)",
    ),
    "axis": (
        changed(more="axes: {precison: [fp32]}\n"),
        "mine.yaml:14:8: axes.precison: unknown dimension 'precison' (did you mean 'precision'?)",
    ),
    "axis without values": (
        changed(more="axes: {attention: []}\n"),
        "mine.yaml:14:19: axes.attention: expected a list of values, or a mapping of labels to values",
    ),
    "axis with a value twice": (
        changed(("baseline: fp32", "baseline: fp32 + sdpa"), more="axes: {attention: [sdpa, sdpa]}\n"),
        "mine.yaml:14:26: axes.attention[1]: two values of this axis are called 'sdpa'",
    ),
    "setting in an axis": (
        changed(("baseline: fp32\n", ""), more="axes: {optimizer.lrr: [1]}\nbaseline: fp32 + lrr=1\n"),
        "mine.yaml:13:8: axes.optimizer.lrr[0]: unknown key (did you mean 'lr'?)",
    ),
    "field in an axis over the job's model": (
        changed(("baseline: fp32\n", ""), more="axes: {model.n_layr: [1]}\nbaseline: fp32 + n_layr=1\n"),
        "mine.yaml:13:8: axes.model.n_layr[0]: unknown key (did you mean 'n_layer'?)",
    ),
    "value in an axis over the job's model": (
        changed(("baseline: fp32", "baseline: fp32 + n_head=4"), more="axes: {model.n_head: [4, 5]}\n"),
        "mine.yaml:14:26: axes.model.n_head[1]: n_head must divide n_embd, found n_embd 64 and n_head 5",
    ),
    "field in an axis over the job's tokenizer": (
        changed(
            ("baseline: fp32\n", ""), more="axes: {tokenizer.vocab_size: [300]}\nbaseline: fp32 + vocab_size=300\n"
        ),
        "mine.yaml:13:8: axes.tokenizer.vocab_size[0]: unknown key: the size stands under the tokenizer's kind: write `{bpe: 2048}`",
    ),
    "own optimizer's name with a space": (
        changed(("name: adamw", 'name: "our lib.opt:Mine"')),
        'mine.yaml:8:21: choices.optimizer.name: found "our lib.opt:Mine", expected package.module:Name, a dotted module, a colon and a name in it',
    ),
    "own optimizer without a name after the colon": (
        changed(("name: adamw", 'name: "ourlib.opt:"')),
        'mine.yaml:8:21: choices.optimizer.name: found "ourlib.opt:", expected package.module:Name, a dotted module, a colon and a name in it',
    ),
    "own optimizer without a colon": (
        changed(("name: adamw", "name: ourlib.opt.Mine")),
        "mine.yaml:8:21: choices.optimizer.name: unknown name 'ourlib.opt.Mine' (known: sgd, adam, adamw, adafactor, lion, muon, adamw_8bit, paged_adamw_8bit, lion_8bit, ademamix_8bit, schedule_free_adamw, package.module:Name)",
    ),
    "own optimizer by its name alone": (
        changed(("{precision: bf16_mixed}", '{optimizer: "ourlib.opt:Mine"}')),
        "mine.yaml:12:21: options.bf16.optimizer: 'ourlib.opt:Mine' needs 'lr': write {name: ourlib.opt:Mine, lr: ...}",
    ),
    "own optimizer's key": (
        changed(("name: adamw, lr: 1e-3", 'name: "ourlib.opt:Mine", lr: 1e-3, setings: {}')),
        "mine.yaml:8:50: choices.optimizer.setings: unknown key (did you mean 'settings'?)",
    ),
    "own optimizer's settings that set the learning rate": (
        changed(("name: adamw, lr: 1e-3", 'name: "ourlib.opt:Mine", lr: 1e-3, settings: {lr: 2}')),
        "mine.yaml:8:60: choices.optimizer.settings: settings may not set lr: given elsewhere (params, lr, weight_decay are)",
    ),
    "own settings that no record can hold": (
        changed(("name: adamw, lr: 1e-3", 'name: "ourlib.opt:Mine", lr: 1e-3, settings: {a: [1, .inf]}')),
        "mine.yaml:8:60: choices.optimizer.settings: settings must be finite, found inf",
    ),
    "loss": (
        changed(("{precision: bf16_mixed}", "{loss: crossentropy}")),
        "mine.yaml:12:16: options.bf16.loss: unknown name 'crossentropy' (did you mean 'cross_entropy'?)",
    ),
    "loss without a name": (
        changed(("{precision: bf16_mixed}", "{loss: {nam: 1}}")),
        "mine.yaml:12:17: options.bf16.loss.nam: unknown key (did you mean 'name'?)",
    ),
    "settings of a loss that has none": (
        changed(("{precision: bf16_mixed}", "{loss: {name: cross_entropy, settings: {}}}")),
        "mine.yaml:12:38: options.bf16.loss.settings: unknown key (known: name)",
    ),
    "framework": (
        changed(("{precision: bf16_mixed}", "{framework: hf-trainer}")),
        "mine.yaml:12:21: options.bf16.framework: unknown name 'hf-trainer' (did you mean 'hf_trainer'?)",
    ),
    "own loop": (
        changed(("{precision: bf16_mixed}", '{framework: "our lib.loop:train"}')),
        'mine.yaml:12:21: options.bf16.framework: found "our lib.loop:train", expected package.module:Name, a dotted module, a colon and a name in it',
    ),
    "strategy": (
        changed(("{precision: bf16_mixed}", "{strategy: fdsp}")),
        "mine.yaml:12:20: options.bf16.strategy: unknown name 'fdsp' (did you mean 'fsdp'?)",
    ),
    "ZeRO by its name alone": (
        changed(("{precision: bf16_mixed}", "{strategy: zero}")),
        "mine.yaml:12:20: options.bf16.strategy: 'zero' needs 'stage': write {name: zero, stage: ...}",
    ),
    "ZeRO's stage": (
        changed(("{precision: bf16_mixed}", "{strategy: {name: zero, stage: 4}}")),
        "mine.yaml:12:40: options.bf16.strategy.stage: found 4, expected 1, 2 or 3",
    ),
    "DeepSpeed's batch size": (
        changed(("{precision: bf16_mixed}", "{strategy: {name: zero, stage: 1, config: {train_batch_size: 8}}}")),
        "mine.yaml:12:51: options.bf16.strategy.config: config may not set train_batch_size: the suite's own keys decide that",
    ),
    "key that DeepSpeed would pass over": (
        changed(("{precision: bf16_mixed}", "{strategy: {name: zero, stage: 1, config: {flop_profiler: {}}}}")),
        "mine.yaml:12:51: options.bf16.strategy.config: config: DeepSpeed knows no flop_profiler (did you mean 'flops_profiler'?)",
    ),
    "DeepSpeed's stage in two places": (
        changed(
            (
                "{precision: bf16_mixed}",
                "{strategy: {name: zero, stage: 1, config: {zero_optimization: {stage: 2}}}}",
            )
        ),
        "mine.yaml:12:51: options.bf16.strategy.config: config may not set zero_optimization.stage: the suite's own keys decide that",
    ),
    "word for ranks": (
        changed(("micro_batch_size: 8", "micro_batch_size: 8\n  world_size: all")),
        'mine.yaml:10:15: choices.world_size: found "all", expected auto or a whole number',
    ),
    "interpreter that is a number": (
        changed(("{precision: bf16_mixed}", "{python: 3.11}")),
        "mine.yaml:12:18: options.bf16.python: found 3.11, expected text",
    ),
    "interpreter without a path": (
        changed(("{precision: bf16_mixed}", '{python: ""}')),
        "mine.yaml:12:18: options.bf16.python: is empty",
    ),
    "interpreter": (
        changed(("{precision: bf16_mixed}", "{python: /nowhere/bin/pythoon}")),
        "mine.yaml:12:18: options.bf16.python: there is no interpreter /nowhere/bin/pythoon",
    ),
    "own model's name": (
        changed(("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", '{family: "our lib.model:Net"}')),
        'mine.yaml:2:19: job.model.family: found "our lib.model:Net", expected package.module:Name, a dotted module, a colon and a name in it',
    ),
    "own model without a colon": (
        changed(("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", "{family: ourlib.model.Net}")),
        "mine.yaml:2:19: job.model.family: unknown name 'ourlib.model.Net' (known: gpt2, llama, bert, t5, bart, package.module:Name)",
    ),
    "own model's settings that set the sequence length": (
        changed(
            (
                "{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}",
                '{family: "ourlib.model:Net", settings: {seq_len: 1}}',
            )
        ),
        "mine.yaml:2:49: job.model.settings: settings may not set seq_len: given elsewhere (vocab_size, seq_len are)",
    ),
    "key of an own model": (
        changed(("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", '{family: "ourlib.model:Net", n_layer: 1}')),
        "mine.yaml:2:39: job.model.n_layer: unknown key (known: family, settings, vocab_size)",
    ),
    "code that is no list": (
        changed(more="code: ourlib\n"),
        'mine.yaml:14:7: code: found "ourlib", expected a list',
    ),
    "code without a path": (changed(more="code: ['']\n"), "mine.yaml:14:8: code[0]: is empty"),
    "key given twice": (
        changed(more="baseline: bf16\n"),
        "mine.yaml:14:1: baseline: the key 'baseline' is given twice, first in line 13",
    ),
    "merge key": (changed(more="<<: {seeds: [1]}\n"), "mine.yaml:14:1: merge keys (<<) are not YAML 1.2"),
    "tab": (
        changed(more="\tseeds: [1]\n"),
        "mine.yaml:14:1: not valid YAML: a tab: indent with spaces",
    ),
    "a tab after a dash": (
        changed(more="seeds:\n  -\t- 1\n\t- 2\n"),
        "mine.yaml:15:4: not valid YAML: a tab: indent with spaces",
    ),
    "a list that is not closed before other keys": (
        changed(("micro_batch_size: 8", "micro_batch_size: [8")),
        "mine.yaml:9:21: not valid YAML: a comma or the `]` of this list is missing, at the latest in line 10",
    ),
    "options in a list": (
        changed(
            ("  fp32: {precision: fp32}\n", ""),
            ("  bf16: {precision: bf16_mixed}\n", ""),
            ("options:", "options: [fp32, bf16]"),
        ),
        "mine.yaml:10:10: options: found a list, expected a mapping: for each a line with its name and what it sets, `NAME: {...}`",
    ),
    "open bracket": (
        changed(more="seeds: [1\n"),
        "mine.yaml:14:8: not valid YAML: a comma or the `]` of this list is missing, at the latest in line 15",
    ),
    "misspelt key in another device's profile": (
        changed(more="profiles: {cuda: {job: {max_stepz: 1}}}\n"),
        "mine.yaml:14:25: profiles.cuda.job.max_stepz: unknown key (did you mean 'max_steps'?)",
    ),
    "value in this device's profile": (
        changed(more="profiles: {cpu: {job: {max_steps: 0}}}\n"),
        "mine.yaml:14:35: profiles.cpu.job.max_steps: found 0, must be at least 1",
    ),
}

FIELD_S_WORDS = {
    "bf16": ("{precision: bf16_mixed}", "{precision: bf16}", "options.bf16.precision: unknown name 'bf16': write bf16_mixed"),
    "fp16": ("{precision: bf16_mixed}", "{precision: {name: FP16}}", "options.bf16.precision.name: unknown name 'FP16': write fp16_mixed"),
    "float32": ("{precision: bf16_mixed}", "{precision: float32}", "options.bf16.precision: unknown name 'float32': write fp32"),
    "TF32": ("{precision: bf16_mixed}", "{precision: TF32}", "options.bf16.precision: unknown name 'TF32' (did you mean 'tf32'?)"),
    "AdamW": ("adamw", "AdamW", "choices.optimizer.name: unknown name 'AdamW' (did you mean 'adamw'?)"),
    "AdamW8bit": ("adamw", "AdamW8bit", "choices.optimizer.name: unknown name 'AdamW8bit' (did you mean 'adamw_8bit'?)"),
    "adamw_torch_fused": ("adamw", "adamw_torch_fused", "choices.optimizer.name: unknown name 'adamw_torch_fused': write adamw"),
    "betas": ("lr: 1e-3", "lr: 1e-3, betas: [0.9, 0.99]", "choices.optimizer.betas: unknown key: write `beta1` and `beta2`"),
    "learning_rate": ("lr: 1e-3", "learning_rate: 1e-3", "choices.optimizer.learning_rate: unknown key (did you mean 'lr'?)"),
    "warmup_ratio": ("lr: 1e-3", "lr: 1e-3, warmup_ratio: 0.1", "choices.optimizer.warmup_ratio: unknown key (did you mean 'warmup_fraction'?)"),
    "warmup_ratio of the job": ("max_steps: 30", "max_steps: 30\n  warmup_ratio: 0.1", "job.warmup_ratio: unknown key: write `warmup_fraction` under choices.optimizer"),
    "max_steps": ("baseline", "max_steps: 3\nbaseline", "max_steps: unknown key: write `max_steps` under job, tune.budget or best_of"),
    "num_train_epochs": ("max_steps: 30", "max_steps: 30\n  num_train_epochs: 3", "job.num_train_epochs: unknown key: write `max_steps` under job, in optimizer steps; `selectbench plan` says how many epochs they are"),
    "gradient_accumulation_steps": ("max_steps: 30", "max_steps: 30\n  gradient_accumulation_steps: 3", "job.gradient_accumulation_steps: unknown key: it follows: global_batch_size / (micro_batch_size x world_size)"),
    "per_device_train_batch_size": ("micro_batch_size", "per_device_train_batch_size", "choices.per_device_train_batch_size: unknown key (did you mean 'micro_batch_size'?)"),
    "lr_scheduler_type": ("max_steps: 30", "max_steps: 30\n  lr_scheduler_type: cosine", "job.lr_scheduler_type: unknown key: write `lr_schedule: {name: cosine}` under job"),
    "wsd": ("max_steps: 30", "max_steps: 30\n  lr_schedule: {name: wsd}", "job.lr_schedule.name: unknown value 'wsd' (did you mean 'warmup_stable_decay'?)"),
    "FullyShardedDataParallel": ("{precision: bf16_mixed}", "{strategy: FullyShardedDataParallel}", "options.bf16.strategy: unknown name 'FullyShardedDataParallel': write fsdp"),
    "zero_2": ("{precision: bf16_mixed}", "{strategy: zero_2}", "options.bf16.strategy: unknown name 'zero_2': write {name: zero, stage: 2}"),
    "hidden_size": ("n_embd", "hidden_size", "job.model.hidden_size: unknown key (did you mean 'n_embd'?)"),
    "throughput": ("baseline", "decide: {objective: throughput}\nbaseline", "decide.objective: unknown metric 'throughput' (did you mean 'tokens_per_second'?)"),
    "no misspelling of anything": ("lr: 1e-3", "lr: 1e-3, rho: 1", "choices.optimizer.rho: unknown key (known: lr, weight_decay, warmup_fraction, name, beta1, beta2, eps, implementation)"),
    "two that are as near": ("lr: 1e-3", "lr: 1e-3, beta: 1", "choices.optimizer.beta: unknown key (did you mean 'beta1' or 'beta2'?)"),
}  # fmt: skip


@pytest.mark.parametrize("word", FIELD_S_WORDS)
def test_a_word_of_the_field_is_told_what_to_write(word, tmp_path):
    old, new, expected = FIELD_S_WORDS[word]
    assert [line.partition(": ")[2] for line in lines_of(write(tmp_path, changed((old, new))))] == [expected]


def test_what_to_write_for_another_name_of_a_class_is_what_a_suite_takes():
    for dimension, kinds in REGISTRY.items():
        every = {plain_word(tag_of(kind)) for kind in kinds}
        for kind in kinds:
            assert not every & kind.also_called.keys(), kind
            for word, written in kind.also_called.items():
                assert word == plain_word(word)
                found = YAML(typ="safe").load(written)
                given = found if isinstance(found, dict) else {"name": found}
                optional = {"lr": 1e-3} if dimension == "optimizer" else {}
                TypeAdapter(Choices.model_fields[dimension].annotation).validate_python({**optional, **given})


@pytest.mark.parametrize("mistake", ONE_MISTAKE)
def test_one_mistake_is_one_line_with_its_place(mistake, tmp_path):
    text, expected = ONE_MISTAKE[mistake]
    found = lines_of(write(tmp_path, text))
    assert found == [expected]


def test_the_text_that_is_broken_loads_unbroken(tmp_path):
    assert lines_of(write(tmp_path)) == []


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path):
    text = changed(
        ("seq_len: 64", "seq_len: 0"), ("lr: 1e-3", "lr: -1"), ("bf16_mixed", "bf61"), ("baseline: fp32", "baseline: x"),
        more="seeds: [0, 0]\nprofils: {}\n",
    )  # fmt: skip
    places = [line.split(": ")[0] for line in lines_of(write(tmp_path, text))]
    assert places == [
        "mine.yaml:4:12", "mine.yaml:8:32", "mine.yaml:12:21", "mine.yaml:13:11", "mine.yaml:14:12", "mine.yaml:15:1",
    ]  # fmt: skip


def test_a_mistake_in_what_all_options_share_is_told_once(tmp_path):
    found = lines_of(write(tmp_path, changed(("lr: 1e-3", "lr: 0"))))
    assert found == ["mine.yaml:8:32: choices.optimizer.lr: found 0, must be more than 0.0"]


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null\n"])
def test_an_empty_suite(text, tmp_path):
    assert lines_of(write(tmp_path, text)) == ["mine.yaml:1:1: the file is empty: a suite needs at least `job`"]


def test_a_suite_that_is_no_mapping(tmp_path):
    assert lines_of(write(tmp_path, "- job\n")) == ["mine.yaml:1:1: expected a mapping at the top, found a list"]


def test_a_file_that_is_not_text(tmp_path):
    assert lines_of(write(tmp_path, b"job: 1\nna\xffme: x\n")) == ["mine.yaml:2:3: the file is not UTF-8 text"]


def test_nesting_and_aliases_that_would_exhaust_the_machine_are_refused(tmp_path):
    doubling = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 10) if i else 'x'}]\n" for i in range(9))
    assert "more than 100000 values" in lines_of(write(tmp_path, doubling))[0]
    assert "nested more than 50 levels deep" in lines_of(write(tmp_path, "[" * 1500))[0]


@pytest.mark.parametrize("levels", [52, 120, 300, 1200])
@pytest.mark.parametrize("ends", ["[]", "{}"])
def test_deep_nesting_is_one_mistake_wherever_it_stands(ends, levels, tmp_path):
    deep = ("[" if ends == "[]" else "{a: ") * levels + ends[1] * levels
    for text in (f"{VALID}tags: {deep}\n", changed(("max_steps: 30", f"max_steps: {deep}")), deep):
        (found,) = lines_of(write(tmp_path, text))
        assert "not valid YAML: nested more than 50 levels deep" in found


@pytest.mark.parametrize("tag", ["int", "float", "bool", "null"])
@pytest.mark.parametrize("written", ["", "x", "-", ".", "0x", "9" * 5000])
def test_a_tag_before_a_text_that_is_none_of_its_kind(tag, written, tmp_path):
    if (tag, written) in (("null", ""), ("float", "9" * 5000)):
        return
    found = lines_of(write(tmp_path, changed(("max_steps: 30", f"max_steps: !!{tag} '{written}'"))))
    assert found[0].startswith("mine.yaml:6:14: job.max_steps: ")
    assert f"is no {tag}" in found[0]


def test_names_of_folders_that_nothing_can_write_down_are_told_before_a_run(tmp_path):
    folder = tmp_path / "f\udcff"
    folder.mkdir()
    assert lines_of(write(folder)) == [
        rf"{tmp_path}/f\udcff/mine.yaml: the name of the file or of a folder is no printable UTF-8"
    ]
    request = Request(str(write(tmp_path)), results=folder)
    with pytest.raises(UserError, match=r"/f\\udcff: the name of this folder is no printable UTF-8"):
        prepare_all(request, lambda line: None)


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    assert lines_of("precison") == ["precison: there is no such file or shipped suite (did you mean 'precision'?)"]
    assert "no such file" in lines_of(tmp_path / "gone.yaml")[0]
    assert lines_of(tmp_path)[0].endswith(": is a folder: give a suite file, or a shipped suite's name")
    write(tmp_path, VALID, "suite.yaml")
    assert "suite.yaml" in lines_of(tmp_path)[0]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"settings": ["job.max_steps=x"]},
         '--set job.max_steps=x: job.max_steps: found "x", expected a whole number'),
        ({"settings": ["job.max_step=3"]},
         "--set job.max_step=3: job.max_step: unknown key (did you mean 'max_steps'?)"),
        ({"settings": ["jobs.x=1"]}, "--set jobs.x=1: unknown key 'jobs' (did you mean 'job'?)"),
        ({"settings": ["job.max_steps"]}, "--set job.max_steps: expected PATH=VALUE as in job.max_steps=20"),
        ({"settings": ["job..x=1"]}, "--set job..x=1: expected PATH=VALUE as in job.max_steps=20"),
        ({"settings": ["choices.optimizer.name=sgd"]},
         "--set choices.optimizer.name=sgd: choices.optimizer: required key 'lr' of sgd is missing"),
        ({"settings": ["job.max_steps=[1"]}, "--set job.max_steps=[1: job.max_steps: not valid YAML: a comma or the `]` of this list is missing"),
        ({"axes": ["precison=fp32"]},
         "--axis precison=fp32: precison: unknown dimension 'precison' (did you mean 'precision'?)"),
        ({"settings": ["optimizer.lr=3e-4"]},
         "--set optimizer.lr=3e-4: unknown key 'optimizer' (did you mean 'choices.optimizer.lr'?)"),
        ({"settings": ["learning_rate=3e-4"]},
         "--set learning_rate=3e-4: unknown key 'learning_rate' (did you mean 'choices.optimizer.lr'?)"),
        ({"settings": ["max_steps=3"]}, "--set max_steps=3: unknown key 'max_steps' (did you mean 'job.max_steps'?)"),
        ({"settings": ["seed=[3]"]}, "--set seed=[3]: unknown key 'seed' (did you mean 'seeds'?)"),
        ({"axes": ["lr=1,2"]}, "--axis lr=1,2: lr: unknown dimension 'lr' (did you mean 'optimizer.lr'?)"),
        ({"axes": ["choices.optimizer.lr=1,2"]},
         "--axis choices.optimizer.lr=1,2: choices.optimizer.lr: unknown dimension 'choices' (did you mean 'optimizer.lr'?)"),
        ({"axes": ["precision="]},
         "--axis precision=: expected PATH=VALUE,VALUE as in precision=fp32,bf16_mixed"),
        ({"axes": ["optimizer=adamw,sgd"]},
         "--axis optimizer=adamw,sgd: optimizer[1]: 'sgd' needs 'lr': write {name: sgd, lr: ...}"),
        ({"seeds": "0,x"}, '--seeds 0,x: seeds[1]: found "x", expected a whole number'),
        ({"seeds": "3,3"}, "--seeds 3,3: seeds[1]: the seed 3 is repeated"),
        ({"seeds": ""}, "--seeds : seeds: must have at least 1 entry"),
        ({"profile": "fast"}, "--profile fast: the suite has no such profile (known: cpu, cuda)"),
    ],
)  # fmt: skip
def test_what_is_wrong_on_the_command_line_is_told_by_its_flag(asked, expected, tmp_path):
    assert expected in lines_of(write(tmp_path), **asked)


EVERYTHING = {
    "job": {
        "task": "causal_lm", "model": {"family": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4},
        "data": {"train": {"text": ["a.txt"]}, "heldout": {"jsonl": ["b.jsonl"], "field": "text"}},
        "cleaning": {"max_characters": 100}, "tokenizer": {"bpe": 512}, "seq_len": 64, "global_batch_size": 8,
        "max_steps": 30, "clip_norm": 1.0, "lr_schedule": {"name": "cosine", "warmup_steps": 2},
        "eval": {"tokens": 512, "every_steps": 10, "scores": []}, "timing": {"warmup_steps": 2},
    },
    "code": [], "choices": {"optimizer": {"name": "adamw", "lr": 1e-3}, "micro_batch_size": 8, "world_size": 1},
    "options": {"one": {"precision": "fp32"}, "two": {"strategy": {"name": "zero", "stage": 1, "config": {}}},
                "three": {"model": {"pretrained": "nobody/nothing"}, "tokenizer": {"bytes": True}}},
    "axes": {"attention": ["sdpa", "eager"]}, "exclude": [{"attention": "eager"}], "baseline": "one + sdpa",
    "seeds": [0, 1], "tune": {"parameters": {"optimizer.lr": {"log": [1e-4, 1e-2], "n": 3}}, "seed": 9},
    "best_of": {"micro_batch_size": [4, 8]}, "limits": {"trial_seconds": 9.0}, "cost": {"usd_per_kwh": 0.3},
    "decide": {"objective": "bits_per_byte", "constraints": ["bits_per_byte <= 1.1x baseline"],
               "thresholds": {"bits_per_byte": 0.01}},
    "gate": ["bits_per_byte <= 1.1x reference"], "profiles": {"cuda": {"job": {"max_steps": 20}}},
    "name": "mine", "question": "which?", "device": "cpu", "control": True, "quick": False, "profile": None,
    "meters": {"settle_seconds": 1.0},
}  # fmt: skip
EVERY_COMMAND = {
    "name": "mine", "baseline": "a", "seeds": [1, 2], "control": False,
    "job": {
        "command": "python train.py --seed {seed} --lr {lr} --n {gradient_accumulation_steps} {args}",
        "directory": ".", "environment": {"A": "{lr}"}, "max_steps": 60, "stop": 50, "global_batch_size": 8,
        "timing": {"warmup_steps": 10}, "eval": {"heldout": "heldout.npy", "tokens": 64, "seq_len": 8},
    },
    "choices": {"lr": 1e-3, "micro_batch_size": 2},
    "options": {
        "a": {"args": ""},
        "b": {"args": "--x 'y'", "may_change": ["dropout"], "environment": {"B": "{seed}"}, "world_size": 2},
    },
    "tune": {"parameters": {"lr": {"log": [1e-4, 1e-2], "n": 3}}, "seed": 9},
    "screen": ["tokens_per_second >= 0.5x baseline"],
    "profiles": {"cpu": {"choices": {"lr": 2e-3}}, "cuda": {"options": {"b": {"args": "--z"}}}},
}  # fmt: skip
ODD = [None, {}, [], [[]], [{}], {"a": {}}, "", " ", "auto", "none", "x:y", True, -1, 0, 1.5, 1e308, 10**30]


def below(value: object) -> Iterator[tuple[object, str | int]]:
    """Every mapping or list below with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from below(value[key])


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("everything", [EVERYTHING, EVERY_COMMAND], ids=["built", "command"])
def test_whatever_stands_in_a_suite_it_loads_or_is_told(everything, start, tmp_path):
    suite = copy.deepcopy(everything)
    for name in ("heldout.npy", "train.py"):
        (tmp_path / name).touch()
    assert lines_of(write(tmp_path, json.dumps(suite))) == []
    places = list(below(suite))
    drawn = random.Random(start)
    for _ in range(40):
        holder, key = drawn.choice(places)
        kept, odd = holder[key], drawn.choice(ODD)
        holder[key] = odd
        try:
            load_suite(str(write(tmp_path, json.dumps(suite))), device="cpu")
        except UserError:
            pass
        except Exception as error:
            raise AssertionError(f"{key}: {odd!r} instead of {kept!r}") from error
        holder[key] = kept


@pytest.mark.parametrize("everything", [EVERYTHING, EVERY_COMMAND], ids=["built", "command"])
def test_a_misspelt_key_is_told_in_our_own_words_alone(everything, tmp_path):
    """Of every key of every mapping, one at a time, null ones too; a library's warning would be an error here."""
    suite = copy.deepcopy(everything)
    for name in ("heldout.npy", "train.py"):
        (tmp_path / name).touch()
    silent = []
    for holder, key in list(below(suite)):
        if isinstance(holder, dict):
            kept = dict(holder)
            holder.clear()
            holder.update({f"{name}zq" if name == key else name: value for name, value in kept.items()})
            if not any(f"{key}zq" in line for line in lines_of(write(tmp_path, json.dumps(suite)))):
                silent.append(key)
            holder.clear()
            holder.update(kept)
    assert set(silent) <= {"two", "three", "b", "A", "B", "cpu", "cuda", "args"}  # names of the suite's own

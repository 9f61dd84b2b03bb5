"""The schema that editors use agrees with what `load` takes and refuses."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from suite_texts import VALID, changed, write

from selectbench.choices import REGISTRY
from selectbench.choices.choice import tag_of
from selectbench.suite.document import plain, read_document
from selectbench.suite.load import find, json_schema, load_suite, names, template

SCHEMA = Draft202012Validator(json_schema())


def problems(text: str, folder) -> list[Any]:
    return list(SCHEMA.iter_errors(plain(read_document(write(folder, text)))))


def test_it_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA.schema)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shipped_suites_fit_it_as_written_and_as_resolved(name, device):
    assert list(SCHEMA.iter_errors(plain(read_document(find(name))))) == []
    assert list(SCHEMA.iter_errors(load_suite(name, device=device).resolved)) == []


def test_the_templates_fit_it(tmp_path):
    assert problems(template(), tmp_path) == []


PIECES = [
    "axes: {optimizer.lr: [1e-3], precision: [fp32, {name: tf32}], micro_batch_size: {one: 1}}\n",
    "profiles: {cuda: {job: {max_steps: 3}, options: {fp32: {optimizer: {lr: 1}}}}, cpu: }\n",
    'axes: {loss: [cross_entropy, "a.b:c", {name: "a.b:c", settings: {d: 1}}], optimizer.settings.eps: [1]}\n',
    'options: {a: {strategy: {name: zero, stage: 1, config: {x: 1}}, framework: "a:b", python: ~/v/bin/python}}\n',
    'code: [../lib]\nprofiles: {cuda: {job: {model: {family: "a.b:Net", settings: {}}}, choices: {loss: "a:b"}}}\n',
    "exclude: [{activation_checkpointing: true, compile: off}]\n",
]


@pytest.mark.parametrize("more", PIECES)
def test_pieces_are_allowed_where_a_file_may_say_them(more, tmp_path):
    assert problems(VALID[: VALID.index("options:")] + more, tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        changed(("max_steps", "max_stepz")),
        changed(("lr: 1e-3", "lrr: 1e-3")),
        changed(("name: adamw", 'name: "our lib:Mine"')),
        changed(("name: adamw", 'name: "ourlib:Mine", momentum: 1')),
        changed(("{precision: bf16_mixed}", "{loss: crossentropy}")),
        changed(("{precision: bf16_mixed}", '{loss: "our lib:x"}')),
        changed(("{precision: bf16_mixed}", "{framework: Trainer}")),
        changed(("{precision: bf16_mixed}", "{strategy: zero}")),
        changed(("{precision: bf16_mixed}", "{strategy: {name: zero, stage: 4}}")),
        changed(("{precision: bf16_mixed}", "{python: 3}")),
        changed(("family: gpt2", 'family: "our lib:Net"')),
        changed(("family: gpt2", 'family: "ourlib:Net"')),
        changed(more="code: ourlib\n"),
        changed(("adamw", "adamww")),
        changed(("bf16_mixed", "bf16_mxed")),
        changed(("lr: 1e-3", "lr: 1e-3, momentum: 0.9")),
        changed(("seq_len: 64", "seq_len: 0")),
        changed(("seq_len: 64", "seq_len: many")),
        changed(more="axes: {precison: [fp32]}\n"),
        changed(more="axes: {precision: [fp23]}\n"),
        changed(more="profiles: {cuda: {jobb: {}}}\n"),
        changed(more="seedz: [1]\n"),
        changed(more="seeds: []\n"),
        changed(more="repeat: {min: 3, max: 10}\n"),
    ],
)
def test_mistakes_are_refused(text, tmp_path):
    assert len(problems(text, tmp_path)) >= 1


def test_every_key_and_choice_is_described():
    schema = SCHEMA.schema
    for key, shape in schema["properties"].items():
        named = schema["$defs"].get(shape.get("$ref", "").removeprefix("#/$defs/"), {})
        assert shape.get("description") or named.get("description"), key
    for kinds in REGISTRY.values():
        for kind in kinds:
            definition = schema["$defs"][kind.__name__]
            assert definition["description"], tag_of(kind)
            settings = {key: shape for key, shape in definition["properties"].items() if key != "name"}
            assert all(shape.get("description") for shape in settings.values()), tag_of(kind)


COMMAND = """\
job:
  command: "python train.py --seed {seed} --lr {lr} {args}"
  max_steps: 60
  stop: natural_end
  timing: {warmup_steps: 10}
  environment: {TOKENIZERS_PARALLELISM: "false"}
  eval: {heldout: heldout.npy, tokens: 2048}
choices: {lr: 3e-3}
options:
  fp32: {args: ""}
  bf16: {args: "--bf16", may_change: [compute_dtype], environment: {A: b}, precision: high}
axes: {lr: [1e-3, 3e-3], args: {plain: "", other: "--x"}}
exclude: [{lr: 1e-3}]
profiles: {cuda: {options: {ddp: {world_size: 2}}}, cpu: {job: {max_steps: 9}}}
baseline: fp32
"""


def test_a_suite_of_a_command_fits_it(tmp_path):
    assert problems(COMMAND, tmp_path) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("max_steps: 60", "max_stepz: 60"),
        ("stop: natural_end", "stop: sometime"),
        ("heldout: heldout.npy", "heldout: 3"),
        ("warmup_steps: 10", "warmup_stepz: 10"),
        ('{args: ""}', "{args: 3}"),
        ("[compute_dtype]", "compute_dtype"),
        ("precision: high", "precision: {name: high}"),
        ("world_size: 2", "world_size: two"),
        ("job: {max_steps: 9}", "job: {max_stepz: 9}"),
        ("choices: {lr: 3e-3}", "choices: {optimizer: {lr: 3e-3}}"),
        ("  command:", "  comand:"),
    ],
)
def test_a_suite_of_a_command_that_load_refuses_does_not_fit(right, wrong, tmp_path):
    assert COMMAND.count(right) == 1
    assert problems(COMMAND.replace(right, wrong), tmp_path)

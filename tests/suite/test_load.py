"""What a suite file and the command line mean together."""

from __future__ import annotations

import json
import ntpath
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from suite_texts import VALID, changed, write

from selectbench.record.run_folder import suite_text
from selectbench.suite import document as paths
from selectbench.suite.load import load_suite, names
from selectbench.suite.sources import TextFiles
from selectbench.suite.suite import Suite


def load(folder, text=VALID, **asked: Any) -> Suite:
    return load_suite(str(write(folder, text)), **{"device": "cpu", **asked})


def rows(suite: Suite) -> list[str]:
    return [option.name for option in suite.options]


def test_a_small_suite_is_what_it_says(tmp_path):
    suite = load(tmp_path)
    assert (suite.name, suite.baseline, suite.seeds, suite.profile, suite.device) == (
        "mine",
        "fp32",
        [0],
        None,
        "cpu",
    )
    assert suite.option("bf16").choices.precision.name == "bf16_mixed"
    assert suite.option("bf16").choices.optimizer.lr == 1e-3
    assert [option.differs_in for option in suite.options] == [[], ["precision"]]


def test_numbers_and_words_are_yaml_1_2(tmp_path):
    suite = load(tmp_path, changed(("lr: 1e-3", "lr: 1E-4"), more="question: no\n"))
    assert (suite.option("fp32").choices.optimizer.lr, suite.question) == (1e-4, "no")


def test_another_optimizer_inherits_nothing_and_the_same_one_is_only_changed(tmp_path):
    rows_of = "  one: {optimizer: {name: sgd, lr: 0.1}}\n  two: {optimizer: {lr: 3e-3}}\n"
    suite = load(tmp_path, changed(("lr: 1e-3", "lr: 1e-3, weight_decay: 0.5"), ("baseline", f"{rows_of}baseline")))
    assert suite.option("one").choices.optimizer.weight_decay == 0
    assert suite.option("two").choices.optimizer.weight_decay == 0.5
    assert suite.option("one").differs_in == ["optimizer"]
    assert suite.option("two").differs_in == ["optimizer.lr"]


def test_without_options_there_is_one_and_it_is_the_baseline(tmp_path):
    rest = VALID[: VALID.index("options:")]
    for more in ("", "options: {}\naxes:\n"):
        suite = load(tmp_path, rest + more)
        assert (rows(suite), suite.baseline) == (["job"], "job")


def test_a_single_option_needs_no_baseline(tmp_path):
    suite = load(tmp_path, VALID[: VALID.index("options:")] + "options: {mine: {}}\n")
    assert suite.baseline == "mine"


GRID = VALID[: VALID.index("options:")]


def test_a_grid_has_every_combination_under_readable_names(tmp_path):
    axes = "axes: {precision: [fp32, bf16_mixed], micro_batch_size: [4, 8]}\nbaseline: fp32 + micro_batch_size=8\n"
    suite = load(tmp_path, GRID + axes)
    assert rows(suite) == [
        "fp32 + micro_batch_size=4", "fp32 + micro_batch_size=8",
        "bf16_mixed + micro_batch_size=4", "bf16_mixed + micro_batch_size=8",
    ]  # fmt: skip
    assert suite.options[2].choices.micro_batch_size == 4
    assert suite.options[2].differs_in == ["precision", "micro_batch_size"]


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        ("optimizer: [{name: adamw, lr: 1e-3}, {name: sgd, lr: 0.1}]", ["adamw", "sgd"]),
        ("optimizer: [{name: adamw, lr: 1e-3, eps: 1e-9}, {name: adamw, lr: 3e-3, eps: 1e-9}, {name: sgd, lr: 1}]",
         ["adamw lr=0.001", "adamw lr=0.003", "sgd"]),
        ("optimizer.lr: [1e-3, 3e-4]", ["lr=0.001", "lr=0.0003"]),
        ("optimizer.implementation: [fused, foreach]", ["implementation=fused", "implementation=foreach"]),
        ("optimizer: [{lr: 1e-3}, {lr: 3e-4}]", ["optimizer lr=0.001", "optimizer lr=0.0003"]),
        ("activation_checkpointing: [false, full]",
         ["activation_checkpointing=false", "activation_checkpointing=full"]),
        ("compile: [off, max-autotune]", ["compile=off", "compile=max-autotune"]),
        ("precision: {exact: fp32, fast: bf16_pure}", ["exact", "fast"]),
    ],
)  # fmt: skip
def test_labels_of_an_axis(axis, labels, tmp_path):
    assert rows(load(tmp_path, f"{GRID}axes: {{{axis}}}\nbaseline: {json.dumps(labels[0])}\n")) == labels


def models(suite: Suite) -> dict[str, dict[str, Any]]:
    found = {option.name: suite.job.of(option.choices).model for option in suite.options}
    return {name: model.model_dump(exclude_defaults=True) for name, model in found.items()}


def test_an_axis_over_a_field_is_the_jobs_model_with_that_field_changed(tmp_path):
    axes = "axes: {model.n_layer: [2, 4]}\nbaseline: n_layer=2\n"
    suite = load(tmp_path, GRID + axes)
    assert models(suite) == {
        "n_layer=2": {"n_layer": 2, "n_embd": 64, "n_head": 4},
        "n_layer=4": {"n_layer": 4, "n_embd": 64, "n_head": 4},
    }
    assert [option.differs_in for option in suite.options] == [[], ["model.n_layer"]]
    assert suite.job.model.n_layer == 2
    inherited = load(tmp_path, GRID + "options: {whole: {}, deep: {model: {n_layer: 4}}}\nbaseline: whole\n")
    assert [option.differs_in for option in inherited.options] == [[], ["model.n_layer"]]
    assert models(load(tmp_path, axes=["model.n_layer=2,4"])) == models(suite)


def test_an_option_may_say_what_of_the_jobs_model_it_changes(tmp_path):
    own = '{family: "ourlib.model:Net", settings: {wide: 8, deep: 2}}'
    text = changed(("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", own)).replace(
        "{precision: bf16_mixed}", "{model: {settings: {deep: 3}}}"
    )
    suite = load(tmp_path, text)
    assert models(suite)["bf16"]["settings"] == {"wide": 8, "deep": 3}
    assert suite.option("fp32").choices.model is None


def test_another_family_inherits_nothing_of_the_jobs_model(tmp_path):
    suite = load(tmp_path, changed(("{precision: bf16_mixed}", "{model: {family: gpt2, n_embd: 96}}")))
    assert models(suite)["bf16"] == {"n_embd": 96}


def test_options_and_axes_are_multiplied(tmp_path):
    suite = load(
        tmp_path, changed(("baseline: fp32", "baseline: fp32 + sdpa"), more="axes: {attention: [sdpa, eager]}\n")
    )
    assert rows(suite) == ["fp32 + sdpa", "fp32 + eager", "bf16 + sdpa", "bf16 + eager"]


def test_excluded_rows_are_left_out_before_their_accumulation_is_checked(tmp_path):
    axes = "axes: {precision: [fp32, tf32], micro_batch_size: [3, 8]}\nbaseline: fp32 + micro_batch_size=8\n"
    exclude = "exclude: [{micro_batch_size: 3}, {precision: {name: tf32}, micro_batch_size: 8, attention: eager}]\n"
    with pytest.raises(ValueError, match=r"exclude\[1\]: leaves out no row"):
        load(tmp_path, GRID + axes + exclude)
    suite = load(tmp_path, GRID + axes + "exclude: [{micro_batch_size: 3}]\n")
    assert rows(suite) == ["fp32 + micro_batch_size=8", "tf32 + micro_batch_size=8"]


PROFILES = "profiles: {cpu: {job: {max_steps: 3}}, cuda: {seeds: [5]}, tiny: {job: {max_steps: 1}}}\n"


@pytest.mark.parametrize(
    ("device", "asked", "expected"),
    [
        ("cpu", None, ("cpu", "cpu", 3, [0])),
        ("cuda", None, ("cuda", "cuda", 30, [5])),
        ("cuda", "cpu", ("cpu", "cpu", 3, [0])),
        ("cpu", "cuda", ("cuda", "cuda", 30, [5])),
        ("cuda", "tiny", ("tiny", "cuda", 1, [0])),
    ],
)
def test_the_device_picks_the_profile_unless_one_is_asked_for(device, asked, expected, tmp_path):
    suite = load(tmp_path, VALID + PROFILES, device=device, profile=asked)
    assert (suite.profile, suite.device, suite.job.max_steps, suite.seeds) == expected


def test_the_cpu_can_be_asked_for_where_the_suite_has_no_profiles(tmp_path):
    suite = load(tmp_path, device="cuda", profile="cpu")
    assert (suite.device, suite.profile) == ("cpu", None)


def test_settings_lie_over_the_profile_and_later_ones_over_earlier(tmp_path):
    asked = ["job.max_steps=7", "choices.optimizer={name: sgd, lr: 1}", "choices.optimizer.lr=0.5", "job.eval=none"]
    suite = load(tmp_path, VALID + PROFILES, settings=[*asked, "job.max_steps=9"])
    assert suite.job.max_steps == 9
    assert suite.option("bf16").choices.optimizer.model_dump(include={"name", "lr"}) == {"name": "sgd", "lr": 0.5}
    assert not suite.job.evaluates


def test_a_setting_reaches_an_option_whose_name_holds_dots(tmp_path):
    text = changed(("bf16:", "v0.5 x:"))
    assert (
        load(tmp_path, text, settings=["options.v0.5 x.micro_batch_size=2"]).options[1].choices.micro_batch_size
        == 2
    )


def test_an_axis_of_the_command_line_replaces_options_and_its_own_axis_but_no_other(tmp_path):
    text = changed(
        ("baseline: fp32", "baseline: fp32 + sdpa + lr=1"),
        more="axes: {attention: [sdpa, eager], optimizer.lr: [1, 2]}\nexclude: [{precision: bf16_mixed}]\n",
    )
    suite = load(tmp_path, text, axes=["optimizer.lr=5,6"])
    assert rows(suite) == ["sdpa + lr=5", "sdpa + lr=6", "eager + lr=5", "eager + lr=6"]
    assert suite.baseline == "sdpa + lr=5"


def test_an_axis_may_hold_mappings(tmp_path):
    suite = load(tmp_path, axes=["optimizer={name: adamw, lr: 1e-3},{name: lion, lr: 1e-4}"])
    assert [option.choices.optimizer.lr for option in suite.options] == [1e-3, 1e-4]


def test_seeds_of_the_command_line(tmp_path):
    assert load(tmp_path, seeds="4,2").seeds == [4, 2]


def test_quick_claims_nothing_of_quality(tmp_path):
    text = changed(
        ("seq_len: 64", "seq_len: 64\n  lr_schedule: {warmup_steps: 25}"),
        more="seeds: [3, 4]\ndecide: {objective: final_loss,"
        " constraints: [final_loss <= 1x baseline, peak_memory_bytes <= 9e9]}\n",
    )
    suite = load(tmp_path, text, quick=True)
    assert (suite.job.eval, suite.job.max_steps, suite.job.lr_schedule.warmup_steps) == ("none", 20, 20)
    assert (suite.seeds, suite.quick) == ([3], True)
    assert (suite.decide.objective, suite.decide.constraints) == ("tokens_per_second", ["peak_memory_bytes <= 9e9"])


def test_without_evaluation_the_default_constraint_on_quality_is_not_made(tmp_path):
    assert load(tmp_path, changed(("seq_len: 64", "seq_len: 64\n  eval: none"))).decide.constraints == []


def test_paths_are_relative_to_the_suite_and_stay_right_in_a_run_folder(tmp_path, monkeypatch):
    folder = tmp_path / "a [1]"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_positions": 64}')
    text = changed(
        ("{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}", "{config: config.json}"),
        ("seq_len: 64", "seq_len: 64\n  data: {text: ['../texts/**/*.txt']}"),
    )
    suite = load(folder, text)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("x")
    monkeypatch.chdir(tmp_path / "texts")
    assert isinstance(suite.job.data, TextFiles)
    assert suite.job.data.text == [f"{tmp_path}/texts/**/*.txt"]
    assert load(folder, text.replace("['../texts/**/*.txt']", "'../texts/**/*.txt'")) == suite  # one without a list
    assert load(tmp_path / "texts", suite_text(suite)) == suite
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"job.model.config: there is no file"):
        load(tmp_path, suite_text(suite))
    assert load(tmp_path, suite_text(suite), require_files=False) == suite


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_a_resolved_suite_loads_again_to_the_same_on_any_machine(name, device, quick, tmp_path):
    suite = load_suite(name, device=device, quick=quick)
    assert not suite.resolved.keys() & {"profiles", "axes", "exclude"}
    for text in (suite_text(suite), json.dumps(suite.resolved)):
        for elsewhere in ("cpu", "cuda"):
            assert load(tmp_path, text, device=elsewhere) == suite


def test_a_resolved_grid_keeps_its_names_and_differences(tmp_path):
    axes = "axes: {precision: [fp32, bf16_mixed], optimizer.lr: [1, 2]}\nbaseline: fp32 + lr=2\n"
    suite = load(tmp_path, GRID + axes, settings=["choices.activation_checkpointing=true"])
    assert load(tmp_path, suite_text(suite)) == suite


def test_loading_needs_neither_torch_nor_its_friends():
    code = (
        "import sys; from selectbench.suite.load import load_suite; load_suite('precision', device='cpu');"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pandas', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_paths_of_the_command_line_are_those_of_the_working_directory(tmp_path, monkeypatch):
    elsewhere = tmp_path / "else[where]"
    (elsewhere / "model").mkdir(parents=True)
    (elsewhere / "model" / "config.json").write_text('{"model_type": "gpt2", "n_positions": 64, "vocab_size": 512}')
    monkeypatch.chdir(elsewhere)
    settings = ["job.model={config: model}", "job.data={text: [a*.txt]}"]
    job = load(tmp_path, VALID, settings=settings).job
    assert job.model.config == str(elsewhere / "model")
    assert job.data.text == [f"{tmp_path}/else[[]where]/a*.txt"]


def test_a_run_from_linux_keeps_its_paths_on_windows(tmp_path, monkeypatch):
    text = changed(
        ("  seq_len: 64", "  data: {text: [/corpora/../text/*.txt]}\n  seq_len: 64"),
        ("precision: fp32}", "precision: fp32, python: /venvs/old/bin/python}"), more="code: [/home/code]\n",
    )  # fmt: skip
    here = load(tmp_path, text, require_files=False).resolved
    monkeypatch.setattr(paths, "os", SimpleNamespace(path=ntpath))
    there = load(tmp_path, text, require_files=False).resolved
    assert there == here
    assert there["job"]["data"] == {"text": ["/text/*.txt"]}

"""Folders of own code: what is refused, what their digest covers, and that the bench never imports them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from suite_texts import VALID, changed, lines_of, write

from selectbench.choices import choice
from selectbench.choices.choice import has_changed, own_code_problem, own_code_sha256
from selectbench.choices.model import OwnModel
from selectbench.errors import UserError
from selectbench.planning.memory import size_of
from selectbench.record.run_folder import suite_text
from selectbench.suite.load import load_suite

GPT2 = "{family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}"
EXPLODES = "raise RuntimeError('the bench must not import this')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A suite's folder with a package beside it that cannot be imported."""
    suites = tmp_path / "suites"
    for path in (suites, tmp_path / "lib" / "ourlib"):
        path.mkdir(parents=True)
    (tmp_path / "lib" / "ourlib" / "opt.py").write_text(EXPLODES)
    return suites


OWN_OPTIMIZER = '{name: "ourlib.opt:Mine", lr: 1e-3, weight_decay: 0.2, settings: {betas: [0.9, 0.95]}}'
MORE_OPTIONS = """\
  loop: {framework: "ourlib.loop:train"}
  short: {loss: {name: "ourlib.loss:smoothed", settings: {by: 0.1}}}
baseline:"""
OWN = changed(
    (GPT2, '{family: "ourlib.model:Net", settings: {wide: 8}}'),
    ("{name: adamw, lr: 1e-3}", OWN_OPTIMIZER),
    ("{precision: bf16_mixed}", '{loss: "ourlib.loss:smoothed"}'),
    ("baseline:", MORE_OPTIONS),
    more="code: [../lib]\n",
)


def test_own_names_are_kept_as_text_and_code_outside_the_suite_s_folder_is_found(folder):
    suite = load_suite(str(write(folder, OWN)), device="cpu")
    assert suite.code == [str(folder.parent / "lib")]
    choices = suite.option("fp32").choices
    assert (choices.optimizer.name, choices.optimizer.settings) == ("ourlib.opt:Mine", {"betas": [0.9, 0.95]})
    assert (choices.loss.name, suite.option("bf16").choices.loss.settings) == ("cross_entropy", {})
    assert suite.option("loop").choices.framework.loop == "ourlib.loop:train"
    assert isinstance(suite.job.model, OwnModel)
    assert size_of(suite.job.model, 512, 64) is None
    assert suite.job.model.longest_sequence() is None
    assert not any(name.startswith("ourlib") for name in sys.modules)


def test_another_own_class_is_another_choice_and_another_setting_is_a_setting(folder):
    suite = load_suite(str(write(folder, OWN)), device="cpu")
    assert suite.option("short").differs_in == ["loss"]
    other = OWN.replace("{precision: fp32}", '{optimizer: {name: "ourlib.opt:Other", lr: 1}}')
    assert load_suite(str(write(folder, other)), device="cpu").option("bf16").differs_in == ["optimizer", "loss"]
    same = OWN.replace("{precision: fp32}", "{optimizer: {lr: 1}}")
    assert load_suite(str(write(folder, same)), device="cpu").option("bf16").differs_in == ["optimizer.lr", "loss"]


def test_a_run_s_own_suite_loads_from_anywhere_and_a_report_needs_no_code(folder, tmp_path):
    suite = load_suite(str(write(folder, OWN)), device="cpu")
    (tmp_path / "run").mkdir()
    copy = write(tmp_path / "run", suite_text(suite), "suite.yaml")
    assert load_suite(str(copy), device="cpu") == suite
    (folder.parent / "lib").rename(folder.parent / "gone")
    assert lines_of(copy) != []
    assert load_suite(str(copy), device="cpu", require_files=False) == suite


def test_own_names_without_code_are_those_of_installed_packages(folder):
    suite = load_suite(str(write(folder, OWN.replace("code: [../lib]\n", ""))), device="cpu")
    assert suite.code == []
    assert own_code_sha256(suite.code) is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("../lbi", "there is no folder {root}/lbi (did you mean 'lib'?)"),
        (
            "../lib/notes.txt",
            "{root}/lib/notes.txt is a file, expected a folder that holds Python modules, or a .py file",
        ),
        ("../empty", "{root}/empty holds no Python module"),
        ("/nowhere/at/all", "there is no folder /nowhere/at/all"),
    ],
)  # fmt: skip
def test_code_that_cannot_serve_is_told_with_its_place(code, message, folder):
    root = folder.parent
    (root / "lib" / "notes.txt").touch()
    (root / "empty").mkdir()
    found = lines_of(write(folder, changed(more=f"code: [{code}]\n")))
    assert found == [f"mine.yaml:14:8: code[0]: {message.format(root=root)}"]


def test_a_huge_folder_is_refused_before_it_is_read(folder, monkeypatch):
    lib = folder.parent / "lib"
    with (lib / "weights.bin").open("wb") as file:
        file.truncate(101 * 10**6)  # a file with a hole: nothing of it is on the disk
    words = f"{lib} holds more than 100 MB or 20000 files: name the folder of the package itself"
    assert words in lines_of(write(folder, changed(more="code: [../lib]\n")))[0]
    assert own_code_problem(str(lib / "ourlib")) is None
    with pytest.raises(UserError, match="more than 100 MB"):
        own_code_sha256([str(lib)])
    monkeypatch.setattr(choice, "MOST_FILES", 1)
    (lib / "ourlib" / "loss.py").touch()
    assert "name the folder of the package itself" in str(own_code_problem(str(lib / "ourlib")))


def test_the_digest_is_of_names_and_contents_wherever_the_folder_lies(folder):
    lib = folder.parent / "lib"
    first = own_code_sha256([str(lib)])
    assert first is not None
    lib.rename(folder.parent / "moved")
    lib = folder.parent / "moved"
    assert own_code_sha256([str(lib)]) == first
    assert own_code_sha256([str(lib / "ourlib" / "opt.py")]) == own_code_sha256([str(lib / "ourlib")]) != first
    digests = {first}
    for change in (
        lambda: (lib / "ourlib" / "opt.py").write_text(EXPLODES.replace("import", "inport")),  # no byte more
        lambda: (lib / "ourlib" / "kernel.cu").write_text("// one\n"),
        lambda: (lib / "ourlib" / "kernel.cu").rename(lib / "ourlib" / "fused.cu"),
        lambda: (lib / "ourlib" / "__init__.py").touch(),
    ):
        change()
        digests.add(own_code_sha256([str(lib)]))
    assert len(digests) == 5


def test_what_is_no_module_has_a_digest_of_its_own(folder):
    lib = folder.parent / "lib"
    first = own_code_sha256([str(lib)], modules=False)
    (lib / "ourlib" / "opt.py").write_text("x = 1\n")
    assert own_code_sha256([str(lib)], modules=False) == first
    (lib / "ourlib" / "sizes.json").write_text("{}")
    assert own_code_sha256([str(lib)], modules=False) != first


def test_only_what_was_imported_and_is_another_file_now_has_changed(folder):
    lib = folder.parent / "lib"
    (lib / "ourlib" / "__init__.py").touch()  # a package is imported from the folder around it
    (lib / "ourlib" / "loss.py").write_text("x = 1\n")
    opt = {"ourlib/opt.py": hashlib.sha256((lib / "ourlib" / "opt.py").read_bytes()).hexdigest()}
    code = [str(lib / "ourlib")]
    assert not has_changed(opt, code)
    (lib / "ourlib" / "loss.py").write_text("x = 2\n")
    assert not has_changed(opt, code)
    (lib / "ourlib" / "opt.py").write_text("x = 1\n")
    assert has_changed(opt, code)
    (lib / "ourlib" / "opt.py").unlink()
    assert has_changed(opt, code)


def test_caches_hidden_folders_environments_and_runs_are_no_code(folder):
    lib = folder.parent / "lib"
    before = own_code_sha256([str(lib)])
    run = lib / "results" / "tiny" / "20260101T000000"
    for path in (lib / ".git", lib / "ourlib" / "__pycache__", lib / "venv", run):
        path.mkdir(parents=True)
        (path / "more.py").write_text("x = 1\n")
    (lib / "venv" / "pyvenv.cfg").touch()
    (run / "suite.yaml").touch()
    (run / "environment.json").touch()
    (lib / ".hidden").touch()
    (lib / "ourlib" / "opt.pyc").touch()
    (lib / "broken").symlink_to(lib / "nowhere")
    (lib / "ourlib" / "loop").symlink_to(lib)
    os.mkfifo(lib / "pipe")
    for log in ("train.log", "events.out.tfevents.1.host"):
        (lib / log).write_text("step 1\n")
    assert own_code_sha256([str(lib)]) == before
    (lib / "linked.py").symlink_to(folder / "elsewhere.py")
    (folder / "elsewhere.py").write_text("y = 1\n")
    assert own_code_sha256([str(lib)]) != before


def test_a_folder_that_is_gone_when_it_is_hashed_is_a_user_s_error():
    with pytest.raises(UserError, match="code: cannot read /nowhere"):
        own_code_sha256(["/nowhere"])


def test_a_transformers_folder_stands_for_its_configuration(folder):
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    text = changed((GPT2, "{config: checkpoint}"))
    assert lines_of(write(folder, text)) == [
        f"mine.yaml:2:19: job.model.config: there is no file {checkpoint}/config.json".replace(f"{folder}/", "")
    ]
    (checkpoint / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "n_positions": 32, "vocab_size": 600})
    )
    assert lines_of(write(folder, text)) == [
        "mine.yaml:4:12: job.seq_len: seq_len 64 is more than the model's 32 positions"
    ]  # fmt: skip
    (checkpoint / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "n_positions": 64, "vocab_size": 600})
    )
    suite = load_suite(str(write(folder, text)), device="cpu")
    (checkpoint / "config.json").unlink()
    copy = write(folder, suite_text(suite), "suite.yaml")
    assert load_suite(str(copy), device="cpu", require_files=False) == suite


def test_an_interpreter_is_found_from_the_suite_and_labels_stay_as_written(folder):
    venv = folder.parent / "venvs" / "new" / "bin"
    venv.mkdir(parents=True)
    (venv / "python").symlink_to(sys.executable)
    rest = VALID[: VALID.index("options:")]
    axes = f"axes: {{python: [../venvs/new/bin/python, {sys.executable}]}}\n"
    path = write(folder, f"{rest}{axes}baseline: ../venvs/new/bin/python\n")
    suite = load_suite(str(path), device="cpu")
    assert [o.name for o in suite.options] == ["../venvs/new/bin/python", sys.executable]
    assert suite.options[0].choices.python == str(venv / "python")  # the link itself: it says which environment
    assert suite.options[1].differs_in == ["python"]
    excluding = f"{rest}{axes}exclude: [{{python: ../venvs/new/bin/python}}]\n"
    left = load_suite(str(write(folder, excluding)), device="cpu")
    assert [o.name for o in left.options] == [sys.executable]


def test_an_interpreter_that_cannot_run_has_its_reason_and_the_nearest_fix(folder):
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "python").touch()

    def told(python: str) -> list[str]:
        return lines_of(write(folder, changed(("{precision: bf16_mixed}", f"{{python: {python}}}"))))

    place = "mine.yaml:12:18: options.bf16.python: "
    assert told("venv") == [f"{place}venv is a folder, expected an interpreter (did you mean 'venv/bin/python'?)"]
    assert told("venv/bin/python") == [f"{place}venv/bin/python is not executable"]
    assert told("~/no/such/pythoon") == [f"{place}there is no interpreter {Path.home()}/no/such/pythoon"]
    assert "(did you mean '/" in told("python3")[0]


def test_deepspeed_s_settings_are_added_to_a_strategy_that_others_share(tmp_path):
    zero = "strategy: {name: zero, stage: 2, config: {wall_clock_breakdown: true}}"
    text = changed(
        ("micro_batch_size: 8", f"micro_batch_size: 8\n  {zero}"),
        ("{precision: bf16_mixed}", "{strategy: {config: {zero_optimization: {overlap_comm: false}}}}"),
    )
    suite = load_suite(str(write(tmp_path, text)), device="cpu")
    merged = suite.option("bf16").choices.strategy
    assert (merged.stage, merged.config) == (
        2, {"wall_clock_breakdown": True, "zero_optimization": {"overlap_comm": False}},
    )  # fmt: skip
    assert suite.option("bf16").differs_in == ["strategy.config"]

"""Suites of training commands: what is wrong is told in a sentence, with its line and column."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from selectbench.errors import UserError
from selectbench.launch.command import command_facts
from selectbench.suite.load import load_suite
from selectbench.suite.suite import Suite

SUITE = """\
job:
  command: "python train.py --seed {seed} --max-steps {max_steps} --lr {lr} {args}"
  max_steps: 60
  timing: {warmup_steps: 10}
  eval: {heldout: heldout.npy, tokens: 2048}
choices: {lr: 3e-3}
options:
  fp32: {args: ""}
  bf16: {args: "--bf16", may_change: [compute_dtype]}
baseline: fp32
seeds: [1, 2, 3]
"""


def loaded(folder: Path, text: str, **asked: object) -> Suite:
    (folder / "train.py").touch()
    (folder / "heldout.npy").touch()
    (folder / "mine.yaml").write_text(text)
    return load_suite(str(folder / "mine.yaml"), device="cpu", **asked)  # type: ignore[arg-type]


def told(folder: Path, text: str, **asked: object) -> list[str]:
    """What is wrong, with the place in the suite."""
    with pytest.raises(UserError) as found:
        loaded(folder, text, **asked)
    return [line.removeprefix(f"{folder}/mine.yaml:") for line in found.value.problems]


WRONG = [
    ("--seed {seed}", "--seed '{seed}", "2:12: job.command: cannot be split into words: no closing quotation"),
    (" {args}", " --x={args}", "2:12: job.command: `{args}` is a word of its own, since it is split into words"),
    (" {args}", " {} {args}", "2:12: job.command: '{}' is no placeholder such as {seed}"),
    (" {args}", " {args} | tee log",
     "2:12: job.command: no shell reads '|': write bash -c '...', or a script"),
    (" {args}", " --lr $LR {args}",
     "2:12: job.command: no shell reads '$LR': write bash -c '...', or a script"),
    (" {args}", " {args} 2>&1",
     "2:12: job.command: no shell reads '2>&1': write bash -c '...', or a script"),
    ('"python train.py --seed {seed} --max-steps {max_steps} --lr {lr} {args}"', '" "',
     "2:12: job.command: is empty"),
    ("python train", "A=0 python train", "2:12: job.command: 'A=0' is for a shell: give job.environment instead"),
    ("python train", "cd there; python train", "2:12: job.command: 'cd' is for a shell: give job.directory"),
    ("python train", "pythn train",
     "2:12: job.command: 'pythn' is not found on PATH (did you mean 'python'?): name the program as it is typed"),
    ("--seed {seed} ", "",
     "2:12: job.command: has no {seed}, so that every seed would run the same trial"),
    ("command", "comand", "2:3: job.comand: unknown key (did you mean 'command'?)"),
    ("  command", "  self: 1\n  command", "2:3: job.self: unknown key (known: command,"),
    ("python train", "python -u trian",
     "2:12: job.command: there is no file {folder}/trian.py (did you mean 'train.py'?)"),
    ("may_change: [", "may_chang: [", "9:26: options.bf16.may_chang: unknown key (did you mean 'may_change'?)"),
    ("lr: 3e-3", "lr: 3e-3, seed: 4", "6:21: choices.seed: it is given by selectbench"),
    ("lr: 3e-3", "lr: 3e-3, optimizer: adamw",
     "6:21: choices.optimizer: the command has no such placeholder: write {optimizer} into job.command"),
    ("lr: 3e-3", "lr: [1, 2]", "6:15: choices.lr: the value of a placeholder is text, a number, true or false"),
    ("lr: 3e-3", "lr: 3e-3, micro_batch_size: auto",
     '6:39: choices.micro_batch_size: found "auto", expected a whole number'),
    ("lr: 3e-3", "lr: 3e-3, micro_batch_size: 4",
     "6:21: choices.micro_batch_size: changes nothing: the command has no {micro_batch_size}"),
    ('bf16: {args: "--bf16"', 'bf16: {lrr: 1, args: "--bf16"',
     "9:10: options.bf16.lrr: the command has no such placeholder (did you mean 'lr'?)"),
    ("[compute_dtype]", "[compute_dtyp]",
     "9:39: options.bf16.may_change[0]: the certificate has no 'compute_dtyp' (did you mean 'compute_dtype'?)"),
    ('"--bf16"', '"--lr {lr}"', "9:16: options.bf16.args: {lr} is filled in in job.command alone"),
    ('"--bf16"', "\"--bf16 'x\"", "9:16: options.bf16.args: cannot be split into words: no closing quotation"),
    (" {args}", "", "9:10: options.bf16.args: changes nothing: the command has no {args}"),
    ("bf16: {", 'bf16: {environment: {X: "{lr9}"}, ',
     "9:9: options.bf16: the placeholder {lr9} has no value: give lr9 in `choices` or in the option"),
    ("bf16: {", 'bf16: {environment: {X: "{"}, ',
     "9:23: options.bf16.environment: '{' is no placeholder such as {seed}; a brace itself is written {{"),
    ("  max_steps", "  directory: gone\n  max_steps", "3:14: job.directory: there is no folder {folder}/gone"),
    ("  max_steps", "  stop: 100\n  max_steps", "3:9: job.stop: is after max_steps 60, where the script ends"),
    ("  max_steps", "  model: {family: gpt2}\n  max_steps",
     "3:3: job.model: unknown key (known: command, directory, environment, max_steps, stop, timing, eval,"),
    ("heldout: heldout.npy", "heldout: gone.npy", "5:19: job.eval.heldout: there is no file {folder}/gone.npy"),
    ("{heldout: heldout.npy, tokens: 2048}", "nones", "5:9: job.eval: unknown value 'nones' (did you mean"),
    ("baseline: fp32", "baseline: fp32\nbest_of: {micro_batch_size: [1, 2]}",
     "11:10: best_of: is for jobs that selectbench builds itself, not for a command"),
    ("baseline: fp32", "baseline: fp32\nbest_of: {micro_batch_size: [1, 2], seed: 1}",
     "11:10: best_of: is for jobs that selectbench builds itself, not for a command"),
    ("baseline: fp32", "baseline: fp32\ntune: {parameters: {optimizer.lr: {log: [1e-3, 1e-2], n: 3}}}",
     "11:21: tune.parameters.optimizer.lr: is no placeholder (did you mean 'lr'?)"),
    ("baseline: fp32", "baseline: fp32\ntune: {parameters: {world_size: {linear: [1, 2], n: 3}}}",
     "11:21: tune.parameters.world_size: is no placeholder"),
    ("baseline: fp32", "baseline: fp32\ntune: {parameters: {lr: {n: 3}}}",
     "11:25: tune.parameters.lr: no range is known for lr: give one, such as {log: [1e-4, 1e-2]}"),
    ("baseline: fp32", "baseline: fp32\nscreen: [final_loss <= 1.5x baseline]",
     "11:10: screen[0]: a short trial does not measure final_loss: take one of tokens_per_second,"),
    ("baseline: fp32", "baseline: fp32\ngate: [bits_per_byte <= 1.01x reference]",
     "11:8: gate[0]: bits_per_byte is not measured: the data are tokens, of no text"),
    ("baseline: fp32", "baseline: fp32\nexclude: [{lrr: 1}]",
     "11:12: exclude[0].lrr: unknown key (did you mean 'lr'?)"),
    ("baseline: fp32", "baseline: fp32\nprofiles: {cuda: {job: {max_stepz: 3}}}",
     "11:25: profiles.cuda.job.max_stepz: unknown key (did you mean 'max_steps'?)"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "line"), WRONG)
def test_a_mistake_is_one_sentence_with_its_place(tmp_path: Path, right: str, wrong: str, line: str) -> None:
    assert right in SUITE
    (found,) = told(tmp_path, SUITE.replace(right, wrong, 1))
    assert found.startswith(line.replace("{folder}", str(tmp_path)))


def test_a_misspelt_value_of_a_placeholder_is_told_at_both_ends(tmp_path: Path) -> None:
    assert told(tmp_path, SUITE.replace("lr: 3e-3", "lrr: 3e-3")) == [
        "6:11: choices.lrr: the command has no such placeholder (did you mean 'lr'?)",
        "8:9: options.fp32: the placeholder {lr} has no value (did you mean 'lrr'?)",
        "9:9: options.bf16: the placeholder {lr} has no value (did you mean 'lrr'?)",
    ]


def test_the_command_line_is_blamed_for_what_it_says(tmp_path: Path) -> None:
    setting = "job.command=pythn train.py --seed {seed} --lr {lr} {args}"
    (line,) = told(tmp_path, SUITE, settings=[setting])
    assert line.startswith(f"--set {setting}: job.command: 'pythn' is not found on PATH")
    (line,) = told(tmp_path, SUITE, axes=["optimizer.lr=1e-3,3e-3"])
    assert line == "--axis optimizer.lr=1e-3,3e-3: optimizer.lr: unknown dimension 'optimizer' (did you mean 'lr'?)"


SHELL_SAYS = "a shell hands {args} on only where its script says so"


@pytest.mark.parametrize(
    ("after", "is_wrong"),
    [("a.py {lr}' {args}", True), ('a.py {lr} "$@"\' {args}', True), ('a.py {lr} "$@"\' sh {args}', False)],
)
def test_words_that_a_shell_would_drop_are_told(tmp_path: Path, after: str, is_wrong: bool) -> None:
    line = SUITE.splitlines()[1]
    text = SUITE.replace(line, f"  command: >-\n    bash -c 'python --seed {{seed}} {after}")
    if is_wrong:
        (problem,) = told(tmp_path, text)
        assert problem.startswith(f"2:12: job.command: {SHELL_SAYS}")
    else:
        loaded(tmp_path, text)


def test_a_file_that_holds_no_numbers_is_told(tmp_path: Path) -> None:
    suite = loaded(tmp_path, SUITE.replace("heldout.npy", "train.py"))
    assert suite.command is not None
    with pytest.raises(
        UserError, match=r"heldout: .*train\.py: is no \.npy file of numbers, as numpy\.save writes it"
    ):
        command_facts(suite, print)


def test_held_out_tokens_that_were_damaged_in_the_cache_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    suite = loaded(tmp_path, SUITE)
    np.save(tmp_path / "heldout.npy", np.arange(90, dtype="uint16"))
    whole = struct.pack("<90q", *range(90))
    facts = command_facts(suite, print)
    assert (facts["heldout_sha256"], facts["heldout_tokens"]) == (hashlib.sha256(whole).hexdigest(), 89)
    (file,) = (tmp_path / "cache").rglob("tokens.bin")
    file.write_bytes(whole[:-1] + b"\x01")
    assert command_facts(suite, print) == facts
    assert file.read_bytes() == whole


def test_axes_profiles_and_settings_change_placeholders(tmp_path: Path) -> None:
    grid = loaded(tmp_path, SUITE, axes=["lr=1e-3,3e-3", "args='','--bf16'"])
    assert [option.name for option in grid.options] == [
        'lr=0.001 + args=""', "lr=0.001 + --bf16", 'lr=0.003 + args=""', "lr=0.003 + --bf16"
    ]  # fmt: skip
    text = SUITE + "profiles: {cpu: {job: {max_steps: 30}, options: {slow: {lr: 1e-4}}}}\n"
    suite = loaded(tmp_path, text, settings=["choices.lr=1e-2"], seeds="7,8", quick=False)
    assert suite.command is not None
    assert (suite.command.max_steps, suite.seeds) == (30, [7, 8])
    assert [dict(option.choices)["args"] for option in suite.options] == ["", "--bf16", ""]
    assert [option.choices.model_dump()["lr"] for option in suite.options] == [0.01, 0.01, 1e-4]
    quick = loaded(tmp_path, SUITE, quick=True)
    assert quick.command is not None
    assert (quick.command.eval, quick.command.stops_after, quick.command.max_steps) == ("none", 30, 60)
    assert quick.seeds == [1]


def test_a_shell_may_be_the_command(tmp_path: Path) -> None:
    command = "bash -c 'python train.py --seed {seed} --lr {lr} $MORE {args} 2>&1 | tee log'"
    with pytest.raises(UserError, match=r"`\{args\}` is a word of its own"):
        loaded(tmp_path, SUITE.replace(SUITE.split('"')[1], command))
    text = SUITE.replace(SUITE.split('"')[1], command.replace("{args}", "$*") + " sh {args}")
    assert loaded(tmp_path, text).command is not None

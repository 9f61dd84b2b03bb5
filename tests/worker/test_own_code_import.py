"""Own code as the worker finds it: what a name leads to, and one clear line where it leads nowhere."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from selectbench.choices.choice import OwnCodeError, add_to_path, load
from selectbench.choices.execution import CrossEntropy, OwnLoss
from selectbench.choices.optimizer import OwnOptimizer

OPT = """\
import torch

class Mine(torch.optim.SGD):
    @classmethod
    def halved(cls, groups, lr, **settings):
        return cls(groups, lr=lr / 2, **settings)

def two(groups, lr):
    return [torch.optim.SGD(groups[:1], lr=lr), torch.optim.SGD(groups[1:], lr=lr)]

def none(groups, lr):
    return {"lr": lr}
"""
LOSS = """\
import torch.nn.functional as F

def smoothed(logits, targets, by=0.0):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=by)

def per_token(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
"""


@pytest.fixture
def lib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a package on the path; what it leaves in the process is taken away again."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / "lib" / "ourlib"
    folder.mkdir(parents=True)
    (folder / "opt.py").write_text(OPT)
    (folder / "loss.py").write_text(LOSS)
    add_to_path([str(folder.parent)])
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ourlib", "broken")]:
        del sys.modules[name]
    add_to_path([])


def refusal(name: str, setting: str = "optimizer") -> str:
    with pytest.raises(OwnCodeError) as caught:
        load(name, setting)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_class_and_a_method_of_it_are_found(lib: Path) -> None:
    mine = load("ourlib.opt:Mine", "optimizer")
    assert mine.__name__ == "Mine"
    assert load("ourlib.opt:Mine.halved").__func__ is mine.halved.__func__


def test_a_misspelt_module_is_told_with_the_nearest_and_the_folders(lib: Path) -> None:
    where = f"in {lib.parent} (the suite's `code`), nor is it installed"
    assert refusal("ourlib.otp:Mine") == (
        f"optimizer ourlib.otp:Mine: there is no module ourlib.otp (did you mean 'opt'?) {where}"
    )
    assert refusal("ourlb.opt:Mine", "model") == (
        f"model ourlb.opt:Mine: there is no module ourlb (did you mean 'ourlib'?) {where}"
    )


def test_a_misspelt_attribute_is_told_with_the_nearest_or_with_what_there_is(lib: Path) -> None:
    assert (
        refusal("ourlib.opt:Mien") == f"optimizer ourlib.opt:Mien: {lib}/opt.py has no Mien (did you mean 'Mine'?)"
    )
    assert refusal("ourlib.opt:Zzz") == (
        f"optimizer ourlib.opt:Zzz: {lib}/opt.py has no Zzz (it has torch, Mine, two, none)"
    )
    assert refusal("ourlib.opt:Mine.halvd").endswith("Mine has no halvd (did you mean 'halved'?)")


def test_without_folders_the_message_says_how_to_name_one(lib: Path) -> None:
    add_to_path([])
    sys.path.remove(str(lib.parent))
    assert "the suite has no `code: [folder]`" in refusal("ourlib.opt:Mine")


def test_the_folder_of_a_package_stands_for_the_one_around_it_and_a_file_for_its_own(lib: Path) -> None:
    add_to_path([str(lib)])  # without an __init__.py it is no package: its modules are at the top
    sys.path.remove(str(lib.parent))
    assert f"name the folder around it, code: [{lib.parent}]" in refusal("ourlib.opt:Mine")
    (lib / "__init__.py").touch()
    add_to_path([str(lib)])
    assert load("ourlib.opt:Mine").__module__ == "ourlib.opt"
    (lib.parent / "broken.py").write_text("here = 3\n")
    add_to_path([str(lib.parent / "broken.py")])
    assert load("broken:here") == 3


def test_own_folders_come_before_what_is_installed_in_the_order_given(lib: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    add_to_path([str(other), str(lib.parent)])
    assert sys.path[:2] == [str(other), str(lib.parent)]
    assert sys.path.count(str(lib.parent)) == 1


@pytest.mark.parametrize(("text", "error"), [("1 / 0\n", ZeroDivisionError), ("def f(:\n", SyntaxError)])
def test_what_a_module_raises_is_its_own(lib: Path, text: str, error: type[Exception]) -> None:
    (lib.parent / "broken.py").write_text(text)
    with pytest.raises(error) as caught:
        load("broken:f", "loss")
    assert "broken.py" in str(caught.value) or "broken.py" in str(caught.traceback[-1].path)


@pytest.mark.parametrize("text", ["import nothing_of_that_name\n", "from ourlib.opt import nothing_of_that_name\n"])
def test_what_a_module_lacks_is_told_with_its_traceback_and_is_no_lack_of_ours(lib: Path, text: str) -> None:
    (lib.parent / "broken.py").write_text(text)
    with pytest.raises(OwnCodeError, match=r"^loss broken:f: importing broken: .*nothing_of_that_name") as caught:
        load("broken:f", "loss")
    cause = caught.value.__cause__
    assert isinstance(cause, ImportError)
    assert "broken.py" in "".join(traceback.format_exception(cause))


def test_an_own_optimizer_gets_groups_learning_rate_and_settings(lib: Path) -> None:
    model = torch.nn.Linear(3, 2)
    [made] = OwnOptimizer(name="ourlib.opt:Mine", lr=0.5, weight_decay=0.25, settings={"momentum": 0.9}).build(
        model
    )
    decays = [(group["weight_decay"], group["lr"], group["momentum"]) for group in made.param_groups]
    assert decays == [(0.25, 0.5, 0.9), (0.0, 0.5, 0.9)]
    [halved] = OwnOptimizer(name="ourlib.opt:Mine.halved", lr=0.5).build(model)
    assert halved.param_groups[0]["lr"] == 0.25
    assert len(OwnOptimizer(name="ourlib.opt:two", lr=0.5).build(model)) == 2
    with pytest.raises(
        TypeError, match=r"optimizer ourlib.opt:none: expected a torch.optim.Optimizer, it made a dict"
    ):
        OwnOptimizer(name="ourlib.opt:none", lr=0.5).build(model)


def test_an_own_loss_is_a_sum_over_tokens_as_ours_is(lib: Path) -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(10).remainder(7).view(2, 5)
    ours = CrossEntropy().build()(logits, targets)
    by_hand = -sum(logits[b, t].log_softmax(0)[targets[b, t]] for b in range(2) for t in range(5))
    torch.testing.assert_close(ours, by_hand)
    torch.testing.assert_close(OwnLoss(name="ourlib.loss:smoothed").build()(logits, targets), ours)
    smoothed = OwnLoss(name="ourlib.loss:smoothed", settings={"by": 0.5}).build()(logits, targets)
    assert abs(smoothed - ours) > 0.1
    with pytest.raises(TypeError, match=r"loss ourlib.loss:per_token: expected a scalar tensor.*shape \(10,\)"):
        OwnLoss(name="ourlib.loss:per_token").build()(logits, targets)

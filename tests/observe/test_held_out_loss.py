"""The held-out loss where the script's own call of its model would not give it as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest
from observe.watched import Run, run

SCRIPT = """\
import sys
import torch
from models import WithTargets, rows

class Fused(WithTargets):
    def forward(self, idx, targets=None, fused_lm_head=False):
        logits, loss = super().forward(idx, targets)
        return (None if fused_lm_head else logits), loss

torch.manual_seed(0)
model = Fused()
within = torch.autocast("cpu", torch.bfloat16)
if "wrapped" in sys.argv:
    model.forward = within(model.forward)
more = {"fused_lm_head": True} if "fused" in sys.argv else {}
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for part in rows(24).split(4):
    if "around" in sys.argv:
        with within:
            loss = model(part[:, :-1], targets=part[:, 1:], **more)[1]
    else:
        loss = model(part[:, :-1], targets=part[:, 1:], **more)[1]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def of(folder: Path, *words: str) -> Run:
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    seen = run(folder, *words, script=folder / "script.py", forked=True)
    assert seen.status == 0, seen.output
    return seen


def test_it_is_in_fp32_although_the_model_enters_autocast_by_itself(tmp_path: Path) -> None:
    around, wrapped = of(tmp_path / "around", "around"), of(tmp_path / "wrapped", "wrapped")
    assert {seen.one("first_step")["compute_dtype"] for seen in (around, wrapped)} == {"bfloat16"}
    assert [step["loss"] for step in around.all("step")] == [step["loss"] for step in wrapped.all("step")]
    assert wrapped.one("evaluation")["loss_sum"] == around.one("evaluation")["loss_sum"]


def test_a_call_that_leaves_the_logits_out_is_repeated_with_them(tmp_path: Path) -> None:
    whole, fused = of(tmp_path / "whole"), of(tmp_path / "fused", "fused")
    assert "without what leaves them out" in fused.one("first_step")["logits"]
    first = [seen.one("first_step")["own_loss"] for seen in (whole, fused)]
    assert first[1] == pytest.approx(first[0], rel=1e-6)
    assert fused.one("first_step")["loss_convention"] == "mean over the step's tokens"
    assert fused.one("evaluation")["loss_sum"] == whole.one("evaluation")["loss_sum"]
    assert [step["loss"] for step in fused.all("step")] == [step["loss"] for step in whole.all("step")]

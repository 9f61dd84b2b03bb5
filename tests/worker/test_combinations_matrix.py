"""The table of what goes with what is what two ranks show, cell by cell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from worker.combination_ranks import NO_REPLY, OPTIMIZERS, PRECISIONS, STRATEGIES, choices_of

from selectbench.choices import Choices
from selectbench.choices.combinations import Situation, combination_reason, rule_against
from selectbench.machine import Machine

pytest.importorskip("deepspeed")

MACHINE = Machine("cpu", packages={"torch": "2.13.0", "transformers": "5.23.0", "deepspeed": "0.19.8"})
EIGHT_BITS = {"adamw_8bit", "paged_adamw_8bit", "lion_8bit", "ademamix_8bit"}
EXACT, ROUNDED, PURE = (2e-6, 2e-5), (1e-4, 3e-3), (1e-4, 2e-2)
"""Relative tolerance of losses and of gradient norms: an fp32 update element by element; one through 8 bits,
through Muon's bfloat16, or products in less than fp32; and gradients, norm and weights in bfloat16 alone.
Another algorithm differs by 4e-4 and 0.1."""


def tolerance(optimizer, precision):
    if precision == "bf16_pure":
        return PURE
    return EXACT if precision == "fp32" and optimizer not in EIGHT_BITS | {"muon"} else ROUNDED


def largest_difference(found, expected, column):
    return max(abs(a[column] / b[column] - 1) for a, b in zip(found, expected, strict=True))


def classified(found, alone, optimizer, precision):
    if "raised" in found:
        return "raises"
    loss, norm = tolerance(optimizer, precision)
    steps, expected = found["steps"], alone["steps"]
    agrees = largest_difference(steps, expected, 0) <= loss and largest_difference(steps, expected, 1) <= norm
    return "agrees" if agrees else "differs"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """What every cell's ranks saw, by optimizer, strategy and precision."""
    path = tmp_path_factory.mktemp("matrix") / "cells.json"
    program = Path(__file__).with_name("combination_ranks.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), str(path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {tuple(entry["cell"]): entry for entry in json.loads(path.read_text(encoding="utf-8"))}


def findings(cells, strategy):
    return {
        (optimizer, precision): classified(
            cells[optimizer, strategy, precision], cells[optimizer, "single", precision], optimizer, precision
        )
        for optimizer in OPTIMIZERS
        for precision in PRECISIONS
    }


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_table_is_what_two_ranks_show(cells, strategy):
    table = {}
    for optimizer in OPTIMIZERS:
        for precision in PRECISIONS:
            excluded = rule_against(Situation(choices_of(optimizer, strategy, precision)))
            table[optimizer, precision] = excluded.finding if excluded else "agrees"
    assert findings(cells, strategy) == table


@pytest.mark.slow
def test_what_cannot_be_had_raises_on_every_rank_at_once(cells):
    raised = {cell: entry["raised"] for cell, entry in cells.items() if "raised" in entry}
    assert raised
    assert [cell for cell, errors in raised.items() if None in errors or NO_REPLY in errors] == []


def choices(**settings):
    return Choices.model_validate({"optimizer": OPTIMIZERS["adamw"], "micro_batch_size": 1, **settings})


def situation(**settings):
    return Situation(choices(**settings))


def test_a_reason_names_the_settings_and_the_way_out():
    reason = combination_reason(situation(optimizer=OPTIMIZERS["sgd"], strategy="fsdp", world_size=2))
    assert reason == (
        "optimizer sgd with strategy fsdp: torch's fused SGD can't update FSDP2's sharded tensors: "
        "set implementation: foreach"
    )
    assert combination_reason(situation(optimizer=OPTIMIZERS["sgd foreach"], strategy="fsdp", world_size=2)) is None


def test_compilation_under_zero_3_only():
    stage_3 = {"strategy": {"name": "zero", "stage": 3}, "compile": "default"}
    assert (combination_reason(situation(**stage_3)) or "").startswith("compile default with strategy zero 3: ")
    assert combination_reason(situation(strategy={"name": "zero", "stage": 2}, compile="default")) is None
    assert combination_reason(situation(strategy={"name": "zero", "stage": 3})) is None


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_without_masters_is_not_offloaded(stage):
    offloaded = {"strategy": {"name": "zero", "stage": stage, "offload_optimizer": True}}
    assert "offload_optimizer" in (combination_reason(situation(**offloaded, precision="bf16_pure")) or "")
    assert combination_reason(situation(**offloaded, precision="bf16_master")) is None


def test_plan_reads_the_table():
    option = choices(optimizer=OPTIMIZERS["muon"], strategy={"name": "zero", "stage": 1})
    assert (option.unsupported_reason(MACHINE) or "").startswith("optimizer muon with strategy zero 1:")

"""Every family of transformers that decodes, two layers of it, against plain PyTorch that knows nothing of us."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import family_reference as plain
import numpy as np
import pytest
import torch
from conftest import LaunchedTrials, Trials
from msgspec.structs import replace
from transformers import AutoModelForCausalLM
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from selectbench.analysis.identity import compare
from selectbench.data.prepared import Prepared
from selectbench.record.wire import Finished, GaveUp
from selectbench.worker.runtime import derived_seed
from selectbench.worker.trial import run_trial

SEQUENCES, IN_A_MICRO_BATCH, STEPS, RATE, HELD_OUT = 8, 4, 2, 3e-3, 8
AGREES = 1e-5
"""Absolute, of losses in nats per token, in fp32."""
PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@dataclass
class Compared:
    """A family as both programs train it."""

    family: str
    attention: str = ""
    """The kernel that its class has."""
    not_built: str = ""
    """Why the reference can't train the configuration that the rule makes."""
    refused: str = ""
    """What the trial said where it did not train."""
    difference: float = float("nan")
    """The largest of the steps' losses and of the held-out one, in nats per token."""

    @property
    def agrees(self) -> bool:
        return self.difference <= AGREES


def tokens_of(data: Prepared, seed: int) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
    """Micro-batches of every step, and the held-out sequences: (sequences, LENGTH + 1) each."""
    length = plain.LENGTH
    train, heldout = (torch.from_numpy(np.array(part, dtype=np.int64)) for part in (data.train(), data.heldout()))
    draw = np.random.Generator(np.random.PCG64(derived_seed(seed, "order", 0)))
    order = draw.permutation((len(train) - 1) // length)
    rows = torch.stack([train[i * length : i * length + length + 1] for i in order[: STEPS * SEQUENCES]])
    steps = [list(step.split(IN_A_MICRO_BATCH)) for step in rows.split(SEQUENCES)]
    return steps, torch.stack([heldout[i * length : i * length + length + 1] for i in range(HELD_OUT)])


def compared(trials: Trials, family: str) -> Compared:
    """Two steps of AdamW in two micro-batches each, from the same weights and tokens."""
    found, seed = Compared(family), 0
    try:
        config = plain.small(family)
        text = json.dumps(config)
        torch.set_num_threads(1)
        model = plain.model_of(json.loads(text), derived_seed(seed, "weights"))
        steps, heldout = tokens_of(Prepared.open(trials.data_folder), seed)
        expected = plain.trained(model, steps, [RATE] * STEPS, heldout)
    except Exception as error:  # whatever a family raises for a configuration that is none of its own
        found.not_built = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return found
    found.attention = expected.attention
    path = trials.trial_folder / f"{family}.json"
    path.write_text(text, encoding="utf-8")
    job = {
        "model": {"config": str(path)}, "seq_len": plain.LENGTH, "global_batch_size": SEQUENCES, "max_steps": STEPS,
        "lr_schedule": {"name": "constant"}, "eval": {"tokens": HELD_OUT * plain.LENGTH},
    }  # fmt: skip
    choices = {
        "attention": expected.attention, "micro_batch_size": IN_A_MICRO_BATCH,
        "optimizer": {"name": "adamw", "lr": RATE},
    }  # fmt: skip
    try:
        last = trials.events(job=job, **choices)[-1]
    except Exception as error:
        found.refused = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return found
    if not isinstance(last, Finished):
        found.refused = f"{last.kind}: {last.detail[:200]}"
        return found
    series = json.loads((trials.trial_folder / "series.json").read_text())
    ours = [*series["loss_nats_per_token"][:STEPS], last.measurement.final_loss]
    theirs = [*expected.losses, expected.heldout]
    found.difference = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    return found


# Families that were crashes or wrong jobs, one of each kind; the sweep over all is further below.


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "mamba", "rwkv", "opt"])
def test_a_family_trains_as_plain_pytorch_does(trials: Trials, family: str) -> None:
    """No sdpa path, biases of experts, rates of a state space, an attention of two dimensions, default dropout."""
    found = compared(trials, family)
    assert found.agrees, found


def config_of(trials: Trials, family: str, **changes: Any) -> dict[str, str]:
    path = trials.trial_folder / "config.json"
    path.write_text(json.dumps(plain.small(family) | changes), encoding="utf-8")
    return {"config": str(path)}


MIXTRAL = {"model_type": "mixtral", "output_router_logits": True, "router_aux_loss_coef": 10.0}


def job_of(model: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"model": model, "seq_len": plain.LENGTH, "global_batch_size": SEQUENCES, "max_steps": STEPS,
            "lr_schedule": {"name": "constant"}, "eval": {"tokens": HELD_OUT * plain.LENGTH}, **more}  # fmt: skip


def expected(trials: Trials, *, in_a_micro_batch: int, **more: Any) -> plain.Reference:
    config = json.loads((trials.trial_folder / "config.json").read_text())
    torch.set_num_threads(1)
    steps, heldout = tokens_of(Prepared.open(trials.data_folder), 0)
    steps = [list(torch.cat(step).split(in_a_micro_batch)) for step in steps]
    return plain.trained(plain.model_of(config, derived_seed(0, "weights")), steps, [RATE] * STEPS, heldout, **more)


@pytest.mark.parametrize("framework", ["native", "hf_trainer"])
def test_a_models_own_loss_is_trained_and_counts_by_its_share_of_the_step(trials: Trials, framework: str) -> None:
    model, norms = config_of(trials, "mixtral", **MIXTRAL), []
    for size in (8, 2):
        found = trials.finished(job=job_of(model), micro_batch_size=size, framework={"name": framework})
        reference = expected(trials, in_a_micro_batch=size, added=10.0)
        series = json.loads((trials.trial_folder / "series.json").read_text())
        assert series["loss_nats_per_token"][:STEPS] == pytest.approx(reference.losses, abs=AGREES)
        assert series["gradient_norm"][:STEPS] == pytest.approx(reference.norms, rel=1e-4)
        assert found.measurement.final_loss == pytest.approx(reference.heldout, abs=AGREES)
        assert found.identity.first_step_added_loss == pytest.approx(reference.added, rel=1e-5)
        norms.append(found.identity.first_step_gradient_norm)
    assert norms[1] > 1.1 * norms[0], "a product of means depends on the cut"


def test_a_coefficient_of_nothing_and_one_of_ten_are_two_jobs(trials: Trials) -> None:
    one = trials.finished(job=job_of(config_of(trials, "mixtral", **MIXTRAL)))
    other = trials.finished(job=job_of(config_of(trials, "mixtral", **MIXTRAL | {"router_aux_loss_coef": 0.0})))
    assert one.identity.first_step_loss == other.identity.first_step_loss
    statuses = compare(one.identity, other.identity, frozenset())
    assert statuses["first_step_added_loss"] == statuses["first_step_gradient_norm"] == "violation"


RANDOM: dict[str, tuple[str, dict[str, Any], float]] = {
    "left to the default": ("gpt2", {}, 0.1),
    "under another name": ("starcoder2", {"residual_dropout": 0.2}, 0.2),
    "dropped layers": ("opt", {"layerdrop": 0.5, "dropout": 0.0}, 0.5),
    "noise of a router": ("mixtral", {"router_jitter_noise": 0.3}, 0.3),
    "of the text in a whole": ("gemma3", {"text_config": {**plain.small("gemma3")["text_config"],
                                                          "attention_dropout": 0.3}}, 0.3),
}  # fmt: skip


@pytest.mark.parametrize("kind", RANDOM)
def test_whatever_is_random_is_off_unless_the_suite_keeps_it(trials: Trials, kind: str) -> None:
    family, changes, largest = RANDOM[kind]
    model = config_of(trials, family, **changes)
    off = [trials.finished(job=job_of(model), micro_batch_size=size).identity for size in (8, 4)]
    assert off[0].dropout == 0
    assert off[0].random_modules == []
    assert {"gradient_accumulation_steps"} == compare(*off, frozenset()).keys()
    kept = trials.finished(job=job_of({**model, "dropout": "as_configured"})).identity
    assert kept.dropout == largest
    assert kept.first_step_loss != off[0].first_step_loss


def test_a_module_that_draws_whatever_its_configuration_says_is_named(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = GPT2MLP.forward
    monkeypatch.setattr(GPT2MLP, "forward", lambda part, x: forward(part, x * torch.rand_like(x)))
    model = config_of(trials, "gpt2")
    whole, halves = (trials.finished(job=job_of(model), micro_batch_size=size).identity for size in (8, 4))
    assert whole.dropout == 0
    assert whole.random_modules == ["transformer.h.*.mlp"]
    statuses = compare(whole, halves, frozenset({"gradient_accumulation_steps"}))
    assert statuses["dropout"] == statuses["first_step_loss"] == "not_verified"
    assert "violation" not in statuses.values()


def test_muon_has_each_expert_as_a_matrix(trials: Trials) -> None:
    model = config_of(trials, "mixtral")
    muon = {"name": "muon", "lr": RATE, "weight_decay": 0.0}
    found = trials.finished(job=job_of(model), optimizer=muon)
    reference = expected(trials, in_a_micro_batch=8, muon=True)
    assert found.measurement.final_loss == pytest.approx(reference.heldout, abs=AGREES)


LORA = {"name": "lora", "r": 4}


@pytest.mark.filterwarnings("ignore:The following")  # PEFT's own, of parameters that it does adapt
def test_lora_reaches_experts_and_four_bits_do_not(trials: Trials) -> None:
    model, kept = config_of(trials, "mixtral"), trials.trial_folder / "kept"
    order = trials.order(job=job_of(model), adaptation=LORA)
    events: list[Any] = []
    run_trial(replace(order, model_folder=str(kept)), events.append)
    assert events[-1].measurement.left_parameters == 0
    saved = AutoModelForCausalLM.from_pretrained(kept)
    _, heldout = tokens_of(Prepared.open(trials.data_folder), 0)
    with torch.no_grad():
        logits = saved(input_ids=heldout[:, :-1]).logits.double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), heldout[:, 1:].flatten()).item()
    assert events[-1].measurement.final_loss == pytest.approx(loss, abs=AGREES), "additions are merged"
    four_bits = trials.finished(job=job_of(model), adaptation={**LORA, "name": "qlora"})
    experts = sum(p.numel() for n, p in saved.named_parameters() if "experts" in n)
    routers = 4 * 64 * 2
    assert four_bits.measurement.left_parameters == experts + routers


@pytest.mark.parametrize(
    ("family", "said"),
    [("mamba", "'out_proj' is incompatible"), ("llama4_text", "can't be called with PEFT's layers")],
)
def test_lora_on_a_family_that_peft_cannot_adapt_is_unsupported(trials: Trials, family: str, said: str) -> None:
    attention = "eager" if family == "mamba" else "sdpa"
    last = trials.events(job=job_of(config_of(trials, family)), adaptation=LORA, attention=attention)[-1]
    assert isinstance(last, GaveUp)
    assert last.kind == "unsupported"
    assert said in last.detail


def test_rates_of_a_state_space_do_not_decay_and_the_record_counts_them(trials: Trials) -> None:
    found = trials.finished(job=job_of(config_of(trials, "mamba")), attention="eager").measurement.parameters_by_use
    wide, states = 128, 16  # of the inner stream, and of what each of its channels keeps
    assert found["other"] > 2 * wide * states, "A_log of two layers among them"
    assert found["convolution"] == 2 * wide * 4
    assert found["embedding"] == plain.VOCABULARY * 64


@pytest.mark.slow
def test_ranks_find_what_gets_no_gradient(launched: LaunchedTrials) -> None:
    """The tower that sees pictures has none where there is only text."""
    model = config_of(launched, "gemma3")
    single = launched.finished(job=job_of(model))
    ranks = launched.finished(job=job_of(model), strategy={"name": "ddp"}, world_size=2, micro_batch_size=4)
    assert ranks.measurement.final_loss == pytest.approx(single.measurement.final_loss, abs=AGREES)


# The sweep: the list is transformers' own, and so is what stops a family.


UPSTREAM = {
    "phimoe": "in training its router has a gradient of its own (`PhimoeMultiplier`), in evaluation none",
}
"""Families that the reference trains and that do not agree, and what of transformers stops them."""
DRAWN = 20
HEAD = f"""# Families

Which families of transformers {version("transformers")} that predict the next token train here as they do in plain
PyTorch. Of each a configuration of two layers, made by rule from the family's own, trains {STEPS} steps on both
sides, in fp32 and in micro-batches: the losses of the steps and of the held-out tokens agree within {AGREES:g} nats
per token. The plain side is `tests/worker/family_reference.py`, which imports nothing of selectbench. Written by
`SELECTBENCH_WRITE_FAMILIES=1 pytest -m long tests/worker/test_families.py`.
"""


def table(rows: Sequence[Compared]) -> str:
    """The page of docs/ that names every family."""
    trained = [row for row in rows if not row.not_built]
    agreeing = sum(row.agrees for row in trained)
    others = len(rows) - len(trained)
    lines = [HEAD, f"{agreeing} of {len(trained)} families agree; of {others} more the rule makes",
             "no configuration that transformers trains.", "", "| family | attention | agrees | why not |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for row in rows:
        why = UPSTREAM.get(row.family, "") if not row.agrees else ""
        if row.not_built:
            why = f"no configuration by rule: {row.not_built.replace('|', '/')[:90]}"
        agrees = "" if row.not_built else "yes" if row.agrees else "no"
        lines.append(f"| {row.family} | {row.attention} | {agrees} | {why} |")
    return "\n".join(lines) + "\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, about configurations that are none of a family's own
def test_families_drawn_from_all_train_as_plain_pytorch_does(trials: Trials) -> None:
    drawn = iter(Random("families").sample(plain.families(), len(plain.families())))
    found: list[Compared] = []
    while len(found) < DRAWN:
        row = compared(trials, next(drawn))
        found += [] if row.not_built else [row]
    assert [row for row in found if not row.agrees and row.family not in UPSTREAM] == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_every_family_that_a_rule_makes_small_trains_as_plain_pytorch_does(trials: Trials) -> None:
    rows = [compared(trials, family) for family in plain.families()]
    page = table(rows)
    print(page)
    if os.environ.get("SELECTBENCH_WRITE_FAMILIES"):
        PAGE.write_text(page, encoding="utf-8")
    trained = [row for row in rows if not row.not_built]
    assert [row for row in trained if not row.agrees and row.family not in UPSTREAM] == []
    assert len(trained) >= 150
    assert sum(row.agrees for row in trained) >= 0.95 * len(trained)
    assert PAGE.read_text(encoding="utf-8") == page

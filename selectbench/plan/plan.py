"""A suite to its trials in run order, with what each option comes to and what cannot run here."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from selectbench import units
from selectbench.data.enough import epochs, evaluable_tokens
from selectbench.data.prepare import Prepared
from selectbench.data.weights_content import contents_of
from selectbench.errors import UserError
from selectbench.interpreter import machine_for, worker_problem
from selectbench.machine import Machine, usable_cores
from selectbench.plan.configuration import vocab_size_of
from selectbench.plan.machine_choices import expected_peak_bytes, smallest_gpu
from selectbench.plan.warnings import heldout_warnings, suite_warnings, vocabulary_warnings
from selectbench.record.as_json import SETTINGS
from selectbench.record.record import Trial
from selectbench.suite.check import accumulation_problem
from selectbench.suite.data import kind_of
from selectbench.suite.own_code import own_code_sha256
from selectbench.suite.suite import Option, Suite


@dataclass(frozen=True)
class PlannedOption:
    """What an option comes to on this machine."""

    option: Option
    world_size: int
    gradient_accumulation_steps: int
    """Micro-batches per optimizer step and rank."""
    unsupported: str | None
    """Why it can't run here, or None."""
    parameters: int | None = None
    """Of the model; None before it is built, for a configuration file or own code."""
    peak_bytes: int | None = None
    """Of each GPU's memory, as formulas expect it; None: on a CPU, or of a model that they do not know."""


@dataclass(frozen=True)
class PlannedTrial:
    """One trial at its place in the order."""

    trial: Trial
    round: int


@dataclass(frozen=True)
class Plan:
    """Everything that `run` will do."""

    suite: Suite
    options: list[PlannedOption]
    trials: list[PlannedTrial]
    """Round after round; within a round in an order shuffled from the suite, the same at every run."""
    parameters: int | None
    """Of the baseline's model, as in `PlannedOption`."""
    tokens: int
    """Training tokens of one trial, the same for every option."""
    epochs: float | None
    """Passes over the training split with the baseline's tokenizer; None: the data isn't prepared."""
    warnings: list[str]
    own_code_sha256: str | None = None
    """Of the suite's folders of own code; None: it has none."""
    pretrained: dict[str, str] = field(default_factory=dict)
    """By option, what a model that was trained before is: a commit of the hub, or its files' SHA-256."""

    def planned(self, option: str) -> PlannedOption:
        """The planned option of that name. Raises KeyError."""
        return {planned.option.name: planned for planned in self.options}[option]


def make_plan(suite: Suite, machine: Machine, prepared: Mapping[str, Prepared] | None, code_sha256: str) -> Plan:
    """`prepared`: each option's data, where they could be prepared; `code_sha256`: of the package's own code.

    The suite is one that leaves nothing open: `plan.machine_choices` settles it. Raises UserError where an option's
    step can't be cut for the ranks that `auto` finds, an interpreter does not start, or own code or a pretrained
    model can't be read.
    """
    assert not suite.left_open.settings, "settled before"
    own_code = own_code_sha256(suite.code)
    pretrained = contents_of({option.name: suite.job.of(option.choices).model for option in suite.options})
    options = [_plan_option(suite, option, machine, (prepared or {}).get(option.name)) for option in suite.options]
    passes = epochs(prepared[suite.baseline], suite.job) if prepared else None
    heldout = {name: evaluable_tokens(one, suite.job) for name, one in (prepared or {}).items()}
    common = {"device": suite.device, "code": code_sha256, "own_code": own_code}
    identities = {
        option.name: {
            "job": suite.job.of(option.choices).model_dump(mode="json"),
            "data": prepared[option.name].key if prepared else None, "pretrained": pretrained.get(option.name),
            **common,
        }
        for option in suite.options
    }  # fmt: skip
    return Plan(
        suite=suite,
        options=options,
        trials=_in_order(suite, identities),
        parameters=next(p.parameters for p in options if p.option.name == suite.baseline),
        tokens=suite.job.max_steps * suite.job.tokens_per_step,
        epochs=passes,
        warnings=[
            *suite_warnings(suite, passes, usable_cores()),
            *heldout_warnings(suite, heldout),
            *vocabulary_warnings(suite, {name: one.vocab_size for name, one in (prepared or {}).items()}),
            *_baseline_warnings(suite, options),
            *_memory_warnings(suite, options, machine),
        ],
        own_code_sha256=own_code,
        pretrained=pretrained,
    )


def _plan_option(suite: Suite, option: Option, machine: Machine, prepared: Prepared | None) -> PlannedOption:
    machine = machine_for(machine, option.choices.python)
    ranks = option.choices.ranks(machine)
    job, micro_batch_size = suite.job.of(option.choices), option.choices.micro_batch_size
    if problem := accumulation_problem(job.global_batch_size, micro_batch_size, ranks):
        raise UserError(
            f"suite {suite.name}: option {option.name}: {problem}"
        )  # world_size: auto is known only here
    micro_batches = job.gradient_accumulation_steps(micro_batch_size, ranks)
    return PlannedOption(
        option=option,
        world_size=ranks,
        gradient_accumulation_steps=micro_batches,
        unsupported=worker_problem(machine)
        or option.choices.unsupported_reason(
            machine, micro_batches=micro_batches, task=suite.job.task, data=kind_of(suite.job.data)
        ),
        parameters=_parameters(suite, option, prepared),
        peak_bytes=expected_peak_bytes(suite, option, ranks, prepared),
    )


def _in_order(suite: Suite, identities: Mapping[str, Mapping[str, Any]]) -> list[PlannedTrial]:
    shuffle = random.Random(suite.name)
    planned: list[PlannedTrial] = []
    for number, seed in enumerate(suite.seeds):
        names = [option.name for option in suite.options]
        shuffle.shuffle(names)
        planned += [PlannedTrial(_trial(suite.option(name), seed, identities[name]), number) for name in names]
    return planned


def _trial(option: Option, seed: int, identity: Mapping[str, Any]) -> Trial:
    settings = option.choices.model_dump(mode="json")
    content = {"option": option.name, "settings": settings, "seed": seed, **identity}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Trial(
        trial_id=digest[:16], option=option.name, seed=seed, settings=SETTINGS.keep(settings), tunes=option.tunes,
        tried=option.tried,
    )  # fmt: skip


def _parameters(suite: Suite, option: Option, prepared: Prepared | None) -> int | None:
    job, vocab_size = suite.job.of(option.choices), vocab_size_of(suite, option, prepared)
    return None if vocab_size is None else job.model.parameters(vocab_size, job.seq_len)


def _baseline_warnings(suite: Suite, options: list[PlannedOption]) -> list[str]:
    baseline = next(planned for planned in options if planned.option.name == suite.baseline)
    return (
        [f"the baseline {suite.baseline} cannot run here: {baseline.unsupported}"] if baseline.unsupported else []
    )


def _memory_warnings(suite: Suite, options: list[PlannedOption], machine: Machine) -> list[str]:
    """Options that are expected not to fit; where sizes are searched, their trials tell."""
    gpu = smallest_gpu(machine)
    if gpu is None or suite.best_of is not None:
        return []
    name, total = gpu
    return [
        f"{planned.option.name} is expected to take {units.size(planned.peak_bytes)} of memory, and {name} has "
        f"{units.size(total)}: it may run out of memory"
        for planned in options
        if planned.unsupported is None and planned.peak_bytes is not None and planned.peak_bytes > total
    ]

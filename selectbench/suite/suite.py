"""A suite with everything resolved, the keys of its file, and what it leaves to the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from selectbench.choices import Choices
from selectbench.choices.execution import MicroBatchSize
from selectbench.errors import did_you_mean
from selectbench.settings import Strict
from selectbench.suite.document import Node, Problems, plain
from selectbench.suite.grid import Row
from selectbench.suite.job import Job
from selectbench.suite.metrics import DECIDING, Objective, default_threshold, undecidable_reason
from selectbench.suite.problems import validate
from selectbench.suite.tune import BestOf, Seed, Tune, Values

# Shared choices that a suite leaves to the machine: `precision: auto` and `micro_batch_size: {at_most: 16}`.
#
# A plan settles them, once for all options: were they an option's own, its difference from the others would be
# another one on every machine.


AUTO = "auto"
AT_MOST = "at_most"
PRECISION, MICRO_BATCH_SIZE = "precision", "micro_batch_size"
_IN_PLACE_OF = {PRECISION: "name a precision here", MICRO_BATCH_SIZE: "give a number here"}


class SizeThatFits(Strict):
    """A micro-batch size that is chosen by the GPUs' memory."""

    at_most: MicroBatchSize
    """Sequences per forward pass and rank: the largest number up to this one that cuts every option's step into
    whole micro-batches, and with which the option that takes most memory should fit into the smallest GPU."""


class MachineChoice(Strict):
    """What became of a choice that the suite left to the machine."""

    setting: str
    """`precision` or `micro_batch_size`."""
    asked: str
    """As the suite says it."""
    taken: str
    """The same for every option."""
    why: str
    """Of this machine."""


class LeftOpen(Strict):
    """What of the shared choices is still to be settled; the options hold placeholders meanwhile."""

    precision: bool = False
    """The best one that the machine has units for."""
    micro_batch_size: SizeThatFits | None = None
    """The largest one that fits."""
    machine_choices: list[MachineChoice] = Field(default_factory=list)
    """What was left open, once it is settled."""

    @property
    def settings(self) -> dict[str, Any]:
        """As the shared choices say them."""
        found: dict[str, Any] = {PRECISION: AUTO} if self.precision else {}
        return found | ({MICRO_BATCH_SIZE: self.micro_batch_size.model_dump()} if self.micro_batch_size else {})


def taken_out(document: Node, problems: Problems) -> tuple[LeftOpen, Node]:
    """What the shared choices leave open, and the document without it; anywhere else it is a mistake."""
    for setting in (PRECISION, MICRO_BATCH_SIZE):
        document = _refused_elsewhere(document, setting, problems)
    shared = document.mapping.get("choices")
    if shared is None:
        return LeftOpen(), document
    found = {s: node for s, node in shared.mapping.items() if _leaves_open(s, node)}
    size = None
    if MICRO_BATCH_SIZE in found:
        size = validate(SizeThatFits, found[MICRO_BATCH_SIZE], problems) or SizeThatFits(at_most=1)
    opened = LeftOpen(precision=PRECISION in found, micro_batch_size=size)
    return opened, document.with_entries(choices=shared.without(*found)) if found else document


def _refused_elsewhere(document: Node, setting: str, problems: Problems) -> Node:
    """The document without options that leave it open, each told; values of an axis are told."""
    options = _entries(document, "options")
    own = {name: option.mapping[setting] for name, option in options.items() if setting in option.mapping}
    axis = _entries(document, "axes").get(setting)
    values = [] if axis is None else [*axis.mapping.values(), *axis.items]
    for node in (node for node in (*own.values(), *values) if _leaves_open(setting, node)):
        said = AUTO if setting == PRECISION else f"{{{AT_MOST}: ...}}"
        problems.at(node, f"{said} is said once for all options, under choices: {_IN_PLACE_OF[setting]}")
    kept = {name: options[name].without(setting) for name, node in own.items() if _leaves_open(setting, node)}
    if not kept:
        return document
    return document.with_entries(options=document.mapping["options"].with_entries(**kept))


def _leaves_open(setting: str, node: Node) -> bool:
    if setting == PRECISION:
        return plain(node) in (AUTO, {"name": AUTO})
    return setting == MICRO_BATCH_SIZE and isinstance(node.value, dict)


def _entries(document: Node, key: str) -> dict[str, Node]:
    node = document.mapping.get(key)
    return {} if node is None else node.mapping


def of_these_rows(asked: LeftOpen, rows: Sequence[Row], document: Node, problems: Problems) -> LeftOpen:
    """Without what every row sets itself; some rows alone may not.

    `rows`: as options and axes have them, without what is left open.
    """
    update: dict[str, object] = {}
    for setting in asked.settings:
        own = [row.choices.mapping[setting] for row in rows if setting in row.choices.mapping]
        if not own:
            _check_exclude(setting, document, problems)
            continue
        update[setting] = LeftOpen.model_fields[setting].default
        if len(own) < len(rows):
            wrong = f"choices.{setting} leaves it to the machine: set it in every option, or in none of them"
            problems.at(own[0], wrong)
    return asked.model_copy(update=update)


def _check_exclude(setting: str, document: Node, problems: Problems) -> None:
    exclude = document.mapping.get("exclude")
    for entry in exclude.items if exclude is not None else []:
        if setting in entry.mapping:
            wrong = f"choices.{setting} leaves it to the machine: there is nothing to exclude by it"
            problems.at(entry.mapping[setting], wrong)


def with_placeholders(rows: Sequence[Row], asked: LeftOpen) -> list[Row]:
    """Rows that can be validated: with micro-batches of one sequence, and the default precision."""
    if asked.micro_batch_size is None:
        return list(rows)
    return [replace(row, choices=row.choices.with_entries(micro_batch_size=_one(row))) for row in rows]


def _one(row: Row) -> Node:
    return Node(1, row.place, f"choices.{MICRO_BATCH_SIZE}")


# A suite: one question, with everything resolved. `load` makes it from a file.


CONTROL = "control"
"""The name of the baseline's second row."""


class Decide(Strict):
    """What decides between the options."""

    objective: Objective = "tokens_per_second"
    """The metric to rank by; whether more or less is better follows from it."""
    constraints: list[str] = Field(default_factory=lambda: ["final_perplexity <= 1.01x baseline"])
    """What a row must hold to be ranked: `METRIC <= 1.01x baseline`, or `peak_memory_bytes <= 80 GiB`."""
    thresholds: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    """Smallest difference that matters to you, as a share of the value, by metric: `{tokens_per_second: 0.02}`."""

    @field_validator("objective", mode="before")
    @classmethod
    def _may_decide(cls, metric: object) -> object:
        if reason := undecidable_reason(metric):
            raise ValueError(reason)
        return metric

    @field_validator("thresholds")
    @classmethod
    def _of_known_metrics(cls, thresholds: dict[str, float]) -> dict[str, float]:
        for metric in thresholds:
            if reason := undecidable_reason(metric):
                raise ValueError(reason)
            if metric not in DECIDING:
                hint = did_you_mean(metric, DECIDING) or f" (known: {', '.join(DECIDING)})"
                raise ValueError(f"unknown metric {metric!r}{hint}")
        return thresholds


class Limits(Strict):
    """When a trial is given up."""

    trial_seconds: Annotated[float, Field(gt=0)] | None = None
    """Longest time of one trial; null: no bound."""
    stall_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """Longest silence of a trial, no step, evaluation or compilation ending in it."""


class Cost(Strict):
    """What a GPU and its electricity cost; either price alone will do."""

    usd_per_gpu_hour: Annotated[float, Field(gt=0)] | None = None
    """Rent of one GPU; null: not counted."""
    usd_per_kwh: Annotated[float, Field(gt=0)] | None = None
    """Of the energy that the GPUs' own meters count; null: not counted."""

    @model_validator(mode="after")
    def _has_a_price(self) -> Cost:
        if self.usd_per_gpu_hour is None and self.usd_per_kwh is None:
            raise ValueError("a price is missing: usd_per_gpu_hour, usd_per_kwh or both")
        return self


Interval = Annotated[float, Field(ge=0.005, le=10)]


class MeterSettings(Strict):
    """How the GPUs are watched while a trial runs."""

    memory_interval_seconds: Interval = 0.05
    """Time between two readings of a GPU's memory."""
    interval_seconds: Interval = 0.1
    """Time between two readings of all else: power, clocks, temperature, processes."""
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Longest wait before a trial until the GPU's memory is back where it was before the first one."""
    rerun_unclean: bool = False
    """Run a trial a second time where its GPU was throttled or shared."""


class Option(Strict):
    """One row of the ranking: a named set of choices."""

    name: str
    """As the suite calls it, unique."""
    choices: Choices
    """Every dimension, resolved."""
    differs_in: list[str]
    """Dimensions in which it differs from the baseline, `optimizer.lr` where only a setting does."""
    tunes: str | None = None
    """The option that this one is a trial setting of, in the suite of a tuning stage; None: a row of its own."""
    tried: Values = Field(default_factory=dict)
    """What is tried then, by path."""


class Suite(Strict):
    """One question, ready to be planned."""

    name: str
    """Names the results folder."""
    question: str
    """What the answer's sentence answers."""
    profile: str | None
    """The profile that was merged in."""
    device: Literal["cpu", "cuda"]
    """What the job runs on."""
    quick: bool = False
    """Speed and memory only: no claim of quality."""
    job: Job
    """The work that is identical for every option."""
    options: list[Option]
    """In the file's order."""
    baseline: str
    """The option that the others are compared with."""
    seeds: list[Seed]
    """One round each."""
    decide: Decide
    """What decides."""
    limits: Limits
    """When a trial is given up."""
    cost: Cost | None = None
    """Prices; None: nothing is said of cost."""
    meters: MeterSettings = MeterSettings()
    """How the GPUs are watched."""
    control: bool = False
    """Whether the baseline runs a second time, as the option CONTROL."""
    tune: Tune | None = None
    """Settings that each option takes at their best; None: none."""
    best_of: BestOf | None = None
    """Settings that each option takes at their fastest; None: none."""
    gate: list[str] = Field(default_factory=list)
    """Limits that `selectbench gate` holds a run to."""
    code: list[str] = Field(default_factory=list)
    """Folders of own code, absolute."""
    left_open: LeftOpen = LeftOpen()
    """Shared choices that the machine settles; a plan takes suites in which nothing is open."""
    resolved: dict[str, Any]
    """The merged file as plain data: loading it again gives this suite; written as `suite.yaml`."""

    def threshold(self, metric: str) -> float:
        """Smallest difference that matters: the suite's, or the default; 0 for a metric that decides nothing."""
        return self.decide.thresholds.get(metric, default_threshold(metric, self.device))

    def option(self, name: str) -> Option:
        """The option of that name. Raises KeyError."""
        for option in self.options:
            if option.name == name:
                return option
        raise KeyError(name)


# The keys of a suite file, after a profile and the command line were laid over it.


class SuiteFile(Strict):
    """One question: a job, the options to train it under, the seeds, and what decides."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Names the results folder: letters, digits, dot, underscore and dash. The file's name if not given."""
    question: str = "Which option should this job use?"
    """What the answer's sentence answers."""
    job: Job
    """The work that is identical for every option."""
    code: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Folders of your own code (or .py files, for their folders), relative to the suite: they go on the
    trials' path, so that `package.module:Name` is found; their content is part of every trial's identity."""
    choices: dict[str, Any] = Field(default_factory=dict)
    """What every option shares."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Named rows of the ranking: each what it sets over the shared choices."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """A grid: a dimension (`precision`) or a setting (`optimizer.lr`, `model.n_layer`) with a list of values, or
    labelled ones."""
    exclude: list[Any] = Field(default_factory=list)
    """Rows to leave out: each a mapping of choices that they have."""
    baseline: str | None = None
    """The option that the others are compared with; may be left out where there is one option."""
    control: bool = False
    """Run the baseline a second time as the option `control`: how far the two lie apart is what chance does."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]  # noqa: RUF012 (pydantic copies it)
    """One round each; a seed draws initial weights and data order."""
    profiles: dict[str, Any] = Field(default_factory=dict)
    """Pieces laid over the file: the one named after the device, or `--profile NAME`."""
    tune: Tune | None = None
    """Tuning before the contest: every option at its own best, with as many trials as the others."""
    best_of: BestOf | None = None
    """Settings that each option takes at their fastest, as short trials of speed find them."""
    decide: Decide = Decide()
    """What decides."""
    limits: Limits = Limits()
    """When a trial is given up."""
    cost: Cost | None = None
    """Prices, from which the cost of the job and of a billion tokens is told; no part of a trial's identity."""
    meters: MeterSettings = MeterSettings()
    """How the GPUs are watched while a trial runs; no part of a trial's identity."""
    gate: list[str] = Field(default_factory=list)
    """Limits of `selectbench gate`: `tokens_per_second >= 0.97x reference`, or `peak_memory_bytes <= 80 GiB`."""
    device: Literal["cpu", "cuda"] | None = None
    """What the job runs on; a run writes it into its suite.yaml. The machine's where not given."""
    profile: str | None = None
    """The profile that was merged in; written by a run."""
    quick: bool = False
    """Speed and memory only; written by a run."""

"""A suite with everything resolved, the keys of its file, and what it leaves to the machine."""

from __future__ import annotations

import itertools
import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from selectbench.choices import AnyChoices, Choices
from selectbench.choices.choice import Strict, WrongValueError
from selectbench.choices.execution import MicroBatchSize
from selectbench.suite.command import NOTE_KEYS, CommandChoices, CommandJob
from selectbench.suite.job import Job, Steps
from selectbench.suite.metrics import (
    Objective,
    QualityMetric,
    declare,
    default_threshold,
    undecidable_reason,
    unknown_metric,
)
from selectbench.text import leaves, quoted

AUTO = "auto"
AT_MOST = "at_most"
PRECISION, MICRO_BATCH_SIZE = "precision", "micro_batch_size"


class SizeThatFits(Strict):
    """A micro-batch size that is chosen by the GPUs' memory."""

    at_most: MicroBatchSize
    """Sequences per forward pass and rank: the largest number up to this one that cuts every option's step into
    whole micro-batches, and with which the option that takes most memory should fit into the smallest GPU."""


class MachineChoice(Strict):
    """A choice that the suite left to the machine, and the value that the machine took."""

    setting: str
    """`precision` or `micro_batch_size`."""
    asked: str
    """The setting's value in the suite."""
    taken: str
    """The value that every option has in its place."""
    why: str
    """The reason, as a clause on this machine."""


class LeftOpen(Strict):
    """What of the shared choices a plan has yet to choose: `precision: auto`, `micro_batch_size: {at_most: 16}`.

    It is chosen once for all options, which hold placeholders meanwhile: were it an option's own, its difference
    from the others would be another one on every machine.
    """

    precision: bool = False
    """The best one that the machine has units for."""
    micro_batch_size: SizeThatFits | None = None
    """The largest one that fits."""
    machine_choices: list[MachineChoice] = Field(default_factory=list)
    """What was left open, once it is chosen."""

    @property
    def settings(self) -> dict[str, Any]:
        """The open settings, as the shared choices of a suite file have them."""
        precision: dict[str, Any] = {PRECISION: AUTO} if self.precision else {}
        return precision | ({MICRO_BATCH_SIZE: self.micro_batch_size.model_dump()} if self.micro_batch_size else {})


Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
TUNING_SEED = 1000
"""The seed of tuning trials if the suite states none; the contest may not use it."""
Ends = Annotated[list[float], Field(min_length=2, max_length=2)]
_SHARE = r"^(0?\.[0-9]+|1(\.0*)?)x$"


class Range(Strict):
    """Where one setting is looked for; without ends, where the optimizer's class says."""

    log: Ends | None = None
    """Both ends; values are a constant factor apart: `[1e-4, 1e-2]`."""
    linear: Ends | None = None
    """Both ends; values are a constant distance apart."""
    n: Annotated[int, Field(ge=2, le=100)] | None = None
    """How many values, where this setting alone is tuned."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.log is not None and self.linear is not None:
            raise WrongValueError("log", "log or linear, not both")
        low, high = self.log or self.linear or (1.0, 2.0)
        if self.log is not None and low <= 0:
            raise ValueError(
                f"a logarithmic range begins above 0, found [{low:g}, {high:g}]: for example [1e-4, 1e-2]"
            )
        if low >= high:
            wrong = "is empty" if low == high else "is upside down"
            raise ValueError(f"the range [{low:g}, {high:g}] {wrong}: write [smaller, larger]")
        return self


class Budget(Strict):
    """What a tuning trial may take; it completes a schedule of its own within."""

    max_steps: str | Steps = "0.5x"
    """Optimizer steps: `0.5x` is half of the job's, a number is so many; where options set global batches of their
    own, as many more as make them divide the tokens."""

    @field_validator("max_steps")
    @classmethod
    def _is_a_share(cls, max_steps: str | int) -> str | int:
        if isinstance(max_steps, str) and not re.match(_SHARE, max_steps):
            raise ValueError(f"expected steps, or a share of the job's such as 0.5x, found {quoted(max_steps)}")
        return max_steps

    def steps(self, max_steps: int) -> int:
        """Optimizer steps of a tuning trial, at least 1; `max_steps`: the job's."""
        if isinstance(self.max_steps, int):
            return self.max_steps
        return max(1, math.ceil(float(self.max_steps.removesuffix("x")) * max_steps))


class Tune(Strict):
    """Tuning for quality: every option gets as many trials and tokens, on a seed that the contest does not use."""

    parameters: Annotated[dict[str, Range], Field(min_length=1)]
    """Settings by their path, `optimizer.lr`, each with its range."""
    trials: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Trials of each option where several settings are tuned; one alone says `n`."""
    budget: Budget = Budget()
    """What one trial may take."""
    seed: Seed = TUNING_SEED
    """Of every tuning trial."""
    metric: QualityMetric = "final_loss"
    """What the best setting is best by."""

    @model_validator(mode="after")
    def _says_how_many(self) -> Tune:
        several, key = len(self.parameters) > 1, "trials"
        counted = [path for path, parameter in self.parameters.items() if parameter.n is not None]
        if several and counted:
            key, wrong = f"parameters.{counted[0]}.n", "of several settings `trials` says how many in all"
        elif several and self.trials is None:
            wrong = "of several settings say how many trials each option gets, such as 16"
        elif not several and self.trials is not None:
            wrong = "of one setting `n` says how many: {n: 5}"
        else:
            return self
        raise WrongValueError(key, wrong, says_key=False)

    @property
    def first_trials(self) -> int:
        """Trials of each option before any range is extended."""
        (first, *_) = self.parameters.values()
        return self.trials or first.n or DEFAULT_N


DEFAULT_N = 5
"""How many values of a single setting are tried if the suite does not say."""


class BestOf(Strict):
    """Settings that each option takes at their fastest, found in short trials of speed alone."""

    micro_batch_size: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2)] | Literal["auto"]
    """Sequences per forward pass and rank; auto: 1, 2, 4, ... as far as the step can be cut so. The global batch
    stays the option's."""
    max_steps: Annotated[int, Field(ge=5, le=10_000)] = 20
    """Optimizer steps of such a trial, at most the job's; where global batches differ, of the largest one."""
    seed: Seed = TUNING_SEED
    """Of these trials."""


Values = dict[str, int | float]
"""Settings of an option that tuning tries, by path."""


CONTROL = "control"
"""The name of the baseline's second row."""


class Decide(Strict):
    """What decides between the options."""

    objective: Objective = "tokens_per_second"
    """The metric to rank by; whether more or less is better follows from it."""
    constraints: list[str] = Field(default_factory=lambda: ["final_perplexity <= 1.01x baseline"])
    """What a row must hold to be ranked: `METRIC <= 1.01x baseline`, or `peak_memory_bytes <= 80 GiB`."""
    thresholds: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    """Smallest difference that matters to you, by metric; `{tokens_per_second: 0.02}`: a factor of 1.02, up or
    down."""

    @field_validator("thresholds")
    @classmethod
    def _of_known_metrics(cls, thresholds: dict[str, float]) -> dict[str, float]:
        for metric in thresholds:
            if reason := undecidable_reason(metric):
                raise WrongValueError(metric, reason)
            if reason := unknown_metric(metric):
                raise ValueError(reason)
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


Save = Literal["none", "first_seed", "all"]
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
    """Run a trial a second time where its GPU was throttled or shared, or something else kept its CPU busy."""


_SECRETS = r"api.?key|authorization|password|secret"


class Api(Strict):
    """A server that speaks OpenAI's protocol: a vendor's, or one of your own."""

    base_url: str
    """Its address, as its makers give it to OpenAI's client: `https://api.openai.com/v1`,
    `http://127.0.0.1:8000/v1`."""
    model: Annotated[str, Field(min_length=1, max_length=300)]
    """The model's name there."""
    key_env: str | None = None
    """The environment variable that holds the key, itself written nowhere; null: the server asks for none."""

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if not re.match(r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$", address):
            wrong = "expected an address such as https://api.openai.com/v1, without a key or a password in it"
            raise ValueError(wrong)  # without the given address, which may hold a key
        return re.sub(r"(/chat)?/completions$", "", address.rstrip("/"))

    @field_validator("key_env")
    @classmethod
    def _is_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.match(r"^[A-Z][A-Z0-9_]*$", name):
            wrong = "expected the name of an environment variable, such as OPENAI_API_KEY; never the key itself"
            raise ValueError(wrong)
        return name


class TokenPrices(Strict):
    """What an API takes for a million tokens."""

    input: Annotated[float, Field(ge=0)]
    """Of what it is sent."""
    output: Annotated[float, Field(ge=0)]
    """Of what it answers."""


class Reference(Strict):
    """A model behind an API, scored on the sentences that the options are scored on."""

    api: Api
    """Where it is."""
    prompt: Annotated[str, Field(min_length=1)] | None = None
    """What it is asked, with {source} in place of the text: `Translate to Chichewa: {source}`. For causal_lm leave
    it out: it is asked for the log-probabilities of the held-out text."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Of one answer."""
    request: dict[str, Any] = Field(default_factory=dict)
    """More keys of each request, such as `{reasoning_effort: low}`, over `temperature: 0`, which null takes out;
    `max_completion_tokens` takes the place of `max_tokens`."""
    at_once: Annotated[int, Field(ge=1, le=256)] = 4
    """Requests at the same time."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Longest wait for one answer; it is asked again then, as after a failure, six times at most."""
    usd_per_million_tokens: TokenPrices | None = None
    """Prices; null: nothing is said of cost."""
    max_usd: Annotated[float, Field(gt=0)] | None = None
    """What all answers may cost, in this run and before; nothing is sent that could cost more. Null: no bound."""

    @model_validator(mode="after")
    def _is_whole(self) -> Reference:
        if self.max_usd is not None and self.usd_per_million_tokens is None:
            raise WrongValueError("max_usd", "max_usd needs usd_per_million_tokens, to know what an answer costs")
        if self.prompt is not None and "{source}" not in self.prompt:
            raise WrongValueError("prompt", "the prompt lacks {source}, where the text is put in")
        reserved = {"messages", "model", "n", "prompt", "stream", "echo", "logprobs", "max_tokens"}
        if taken := reserved & self.request.keys():
            raise WrongValueError("request", f"request may not set {', '.join(sorted(taken))}")
        if any(re.search(_SECRETS, path, re.IGNORECASE) for path, _ in leaves(self.request)):
            raise WrongValueError("request", "request may hold no key, as it is written down: name it by key_env")
        if not isinstance(most := self.request.get("max_completion_tokens", 1), int) or most < 1:
            raise WrongValueError("request", "max_completion_tokens must be a whole number of at least 1")
        return self


AnyJob = Job | CommandJob


class AnySuiteFile(Strict):
    """One question: a job, the options to train it under, the seeds, and what decides."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Names the results folder: letters, digits, dot, underscore and dash. The file's name if not given."""
    question: str = "Which option should this job use?"
    """What the answer's sentence answers."""
    job: Any
    """The work that is identical for every option."""
    code: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Folders of your own code (or .py files, for their folders), relative to the suite: they go on the
    trials' path, so that `package.module:Name` is found; with other content a run is another one."""
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
    screen: list[str] = Field(default_factory=list)
    """Bounds on speed and memory, such as `tokens_per_second >= 0.5x baseline`: an option that misses one in two
    short trials takes no part in the contest."""
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
    save: Save = "none"
    """Of which trials the trained model and its tokenizer are kept in the run's folder, as transformers loads them:
    of none, of the first seed's, of all."""
    device: Literal["cpu", "cuda"] | None = None
    """What the job runs on; a run writes it into its suite.yaml. The machine's where not given."""
    profile: str | None = None
    """The profile that was merged in; written by a run."""
    quick: bool = False
    """Speed and memory only; written by a run."""
    looks: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """How many seeds each judgement of the run had; written by `run --extend`."""

    @field_validator("job")
    @classmethod
    def _declares_its_metrics(cls, job: AnyJob) -> AnyJob:
        """Makes the job's own metrics known before the fields that may name them are validated."""
        declare(job.own_metrics)
        return job


class SuiteFile(AnySuiteFile):
    """One question: a job, the options to train it under, the seeds, and what decides."""

    job: Job
    """The work that is identical for every option."""
    references: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)], Reference] = (
        Field(default_factory=dict)
    )
    """Models behind an API, asked for the same held-out text after the trials: rows beside the options, in no rank
    and no claim. No part of a trial's identity."""


class CommandSuiteFile(AnySuiteFile):
    """One question about a training command that is there already."""

    job: CommandJob
    """The command, the same for every option but for the values of its placeholders."""


class Option(Strict):
    """One row of the ranking: a named set of choices."""

    name: str
    """As the suite calls it, unique."""
    choices: Choices | CommandChoices
    """Every dimension, resolved."""
    differs_in: list[str]
    """Dimensions in which it differs from the baseline, `optimizer.lr` where only a setting does."""
    tunes: str | None = None
    """The option that this one is a trial setting of, in the suite of a tuning stage; None: a row of its own."""
    tried: Values = Field(default_factory=dict)
    """The settings that are tried then, by path."""

    @property
    def built(self) -> Choices:
        """Its choices, if the job is no command."""
        assert isinstance(self.choices, Choices)
        return self.choices


class Suite(AnySuiteFile):
    """One question, ready to be planned: what a file says, with its rows made of all the keys that say them."""

    job: AnyJob
    """The work that is identical for every option."""
    options: list[Option]  # type: ignore[assignment]
    """In the file's order."""
    baseline: str
    """The option that the others are compared with."""
    device: Literal["cpu", "cuda"]
    """What the job runs on."""
    references: dict[str, Reference] = Field(default_factory=dict)
    """Models behind an API that stand beside the options, by name."""
    left_open: LeftOpen = LeftOpen()
    """Shared choices that the machine settles; a plan takes suites in which nothing is open."""
    resolved: dict[str, Any]
    """The merged file as plain data: loading it again gives this suite; written as `suite.yaml`."""

    @property
    def built(self) -> Job:
        """The job, if it is no command."""
        assert isinstance(self.job, Job)
        return self.job

    def job_of(self, option: Option) -> Job:
        """The job as the option does it, if it is no command."""
        return self.built.of(option.built)

    @property
    def command(self) -> CommandJob | None:
        """The job if it is a command, else None."""
        return self.job if isinstance(self.job, CommandJob) else None

    def threshold(self, metric: str) -> float:
        """Smallest difference that matters: the suite's, or the default; 0 for a metric that decides nothing."""
        return self.decide.thresholds.get(metric, default_threshold(metric, self.device))

    @property
    def saved_seeds(self) -> list[int]:
        """The seeds of which every option's trained model is saved."""
        return {"none": [], "first_seed": self.seeds[:1], "all": self.seeds}[self.save]

    def unused_seeds(self, count: int, first: int | None = None) -> list[int]:
        """`count` seeds that neither a round nor a search uses, from `first` on or above those of all rounds."""
        taken = {*self.seeds, *(search.seed for search in (self.tune, self.best_of) if search)}
        start = max(self.seeds) + 1 if first is None else first
        unused = (seed for seed in itertools.count(start) if seed not in taken)
        return list(itertools.islice(unused, count))

    @property
    def without_control(self) -> list[Option]:
        """The options that the suite names, without the control, which is the baseline once more."""
        return [option for option in self.options if not (self.control and option.name == CONTROL)]

    def option(self, name: str) -> Option:
        """The option of that name. Raises KeyError."""
        return {option.name: option for option in self.options}[name]


def differences(job: AnyJob, choices: AnyChoices, baseline: AnyChoices) -> list[str]:
    """Dimensions that differ, `optimizer.lr` or `model.n_layer` if the class is the same and a setting is not.

    A model or tokenizer that is not given is the job's. Of a command, the keys that differ.
    """
    if not isinstance(choices, Choices):
        option, other = choices.model_dump(), baseline.model_dump()
        keys = [key for key in {**option, **other} if key not in NOTE_KEYS]
        return [key for key in keys if option.get(key) != other.get(key)]

    def class_of(value: object) -> tuple[object, ...]:
        """The class of a choice or a model; own code of another name is another class."""
        return type(value), getattr(value, "name", None), getattr(value, "family", None)

    differing: list[str] = []
    for dimension in Choices.model_fields:
        default = getattr(job, dimension) if dimension in ("model", "tokenizer") else None
        chosen, base = (default if (c := getattr(o, dimension)) is None else c for o in (choices, baseline))
        if chosen == base:
            continue
        if isinstance(chosen, BaseModel) and class_of(chosen) == class_of(base):
            settings = type(chosen).model_fields
            differing += [f"{dimension}.{s}" for s in settings if getattr(chosen, s) != getattr(base, s)]
        else:
            differing.append(dimension)
    return differing


def besides_the_rate(choices: AnyChoices, baseline: AnyChoices) -> list[str]:
    """Settings besides the learning rate in which an optimizer of another class differs: `weight_decay 1 (0.1)`.

    The baseline's value is in brackets, if its optimizer has the setting. Equal settings are left out.
    """
    if not isinstance(choices, Choices) or not isinstance(baseline, Choices):
        return []
    chosen, base = choices.optimizer.model_dump(), baseline.optimizer.model_dump()
    if chosen["name"] == base["name"]:
        return []
    numbers = {key: value for key, value in chosen.items() if isinstance(value, bool | int | float) and key != "lr"}
    return [
        f"{key} {_number_text(value)}" + (f" ({_number_text(base[key])})" if base.get(key) is not None else "")
        for key, value in numbers.items()
        if base.get(key) != value
    ]


def _number_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"

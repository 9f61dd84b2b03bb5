"""A suite to its trials in run order: what the machine decides, what cannot run here, and what to warn of."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from selectbench import units
from selectbench.choices import Choices
from selectbench.choices.choice import Needs, own_code_sha256
from selectbench.choices.execution import precision_for, ranks_problem
from selectbench.choices.model import OfAnyFamily, PretrainedModel, kernel_problem
from selectbench.data.prepared import Prepared, Targets, epochs, evaluable_tokens, model_contents, targets
from selectbench.errors import UserError
from selectbench.machine import Machine, machine_for, usable_cores, worker_problem
from selectbench.planning.memory import Layout, config_of, embedding_rows, memory_need, size_of, vocabulary_size
from selectbench.record.environment import UnusedRows
from selectbench.record.record import SETTINGS, RunPhase, Trial
from selectbench.suite.check import accumulation_problem
from selectbench.suite.command import CommandChoices, CommandJob, accumulation, interpreter
from selectbench.suite.job import Eval, Job
from selectbench.suite.sources import Apart
from selectbench.suite.suite import (
    AT_MOST,
    AUTO,
    MICRO_BATCH_SIZE,
    PRECISION,
    LeftOpen,
    MachineChoice,
    Option,
    Suite,
)

FEWEST_TO_TIME = 5
"""Steps of a script, after its warm-up, below which its speed is doubted."""
FEWEST_TO_TUNE = 100
"""Steps of a tuning trial below which its choice is doubted."""
NEARLY = 0.95
"""Share of the requested entries below which a vocabulary is reported to be smaller."""
FEWEST_TARGETS = 0.05
"""Share of a step's tokens that are trained on below which a person is warned."""
MOST_ROWS_PER_TOKEN = 2
"""Rows of a model's embedding over the data's tokens from which a warning says what they cost."""
MEMORISING_EPOCHS = 4.0
"""Muennighoff et al. 2023, arXiv:2305.16264: up to about four epochs repeated data is worth new data."""


def suite_warnings(suite: Suite, passes: float | None, cores: float | None = None) -> list[str]:
    """What may spoil the suite's answer; `passes`: epochs; `cores`: cores that trials may use; None: unknown."""
    warnings = []
    if passes is not None and passes > MEMORISING_EPOCHS and suite.job.evaluates:
        effect = "final losses measure memorising too; no verdict of quality should rest on them"
        warnings.append(f"the corpus is repeated {passes:.1f} times: {effect} (more text, or fewer max_steps)")
    elif passes is not None and passes > 1:
        warnings.append(f"the corpus is repeated: {passes:.2f} epochs")
    for option in suite.options:
        caveats = [choice.caveat(suite.device) for choice in option.choices.by_dimension().values()]
        warnings += [f"{option.name}: {caveat}" for caveat in caveats if caveat]
    for option in suite.options:
        ranks = option.choices.world_size
        # Ranks on a CPU are processes.
        if suite.device == "cpu" and cores is not None and ranks != "auto" and ranks > cores:
            slower = "take turns: not the speed of ranks on cores of their own"
            warnings.append(f"{option.name}: {ranks} ranks share {cores:g} cores and {slower}")
    if (job := suite.command) is not None and (timed := job.stops_after - job.timing.warmup_steps) < FEWEST_TO_TIME:
        warnings.append(
            f"job.timing.warmup_steps {job.timing.warmup_steps} leaves {max(1, timed)} of {job.stops_after} steps "
            "to time: speeds are mostly chance (fewer of them, or more steps)"
        )
    # The best learning rate falls with the length of the training (Bjorck et al. 2024, arXiv:2409.19913), most
    # among short ones: Lion's 0.0095, the best of 24 steps, loses 0.4 nats to 0.001 over 60.
    job_steps = suite.job.max_steps
    steps = suite.tune.budget.steps(job_steps) if suite.tune else job_steps
    if steps < min(job_steps, FEWEST_TO_TUNE):
        warnings.append(
            f"a tuning trial has {steps} of the job's {job_steps} steps: in so few larger learning rates are best, "
            "which may lose in the contest; `tune: {budget: {max_steps: 1x}}` tunes over the whole schedule"
        )
    return warnings


def heldout_warnings(suite: Suite, tokens: Mapping[str, int | None]) -> list[str]:
    """Options with less held-out text than requested; `tokens`: tokens to score, by option; None: unknown."""
    if not isinstance(suite.job.eval, Eval):
        return []
    wanted = suite.job.eval.tokens
    short: dict[int, list[str]] = {}
    for option in suite.options:
        if (size := tokens.get(option.name)) is not None and size < wanted:
            short.setdefault(size, []).append(option.name)
    return [
        f"{_of_options(names, suite)}the held-out text gives {size:,} tokens, job.eval.tokens asks "
        f"for {wanted:,}: the final loss is over all of these, and less certain (give more text, or ask for fewer)"
        for size, names in short.items()
    ]


def split_warnings(suite: Suite, prepared: Mapping[str, Prepared]) -> list[str]:
    """That more text is held out than trained on, as of a text of few documents; `prepared`: by option."""
    sides: dict[tuple[int, int], list[str]] = {}
    for name, data in prepared.items():
        if data.has_text and data.heldout_tokens > data.train_tokens and not isinstance(suite.built.data, Apart):
            sides.setdefault((data.train_tokens, data.heldout_tokens), []).append(name)
    return [
        f"{_of_options(names, suite)}more text is held out ({held_out:,} tokens) than trained on ({trained:,}), as "
        "it is so short (give more text, or a held-out text of its own: job.data: {train: ..., heldout: ...})"
        for (trained, held_out), names in sides.items()
    ]


def _of_options(names: Sequence[str], suite: Suite) -> str:
    """`a, b: ` before what is said of these options; '' where they are all."""
    return "" if len(names) == len(suite.options) else f"{', '.join(names)}: "


def target_warnings(option_targets: Iterable[Targets | None]) -> list[str]:
    """That losses rest on few of a step's tokens, where they do."""
    rest = "losses are noisy, and most of the time goes into the rest (a smaller seq_len, or a larger batch)"
    small_shares = [t[0] for t in option_targets if t is not None and t[0] < FEWEST_TARGETS]
    return [f"only {min(small_shares):.1%} of the tokens of a step are trained on: {rest}"] if small_shares else []


def vocabulary_warnings(suite: Suite, entries: Mapping[str, int | None]) -> list[str]:
    """Tokenizers that came out much smaller than requested; `entries`: of each option's vocabulary."""
    short: dict[tuple[int, int], list[str]] = {}
    for option in suite.options if suite.command is None else ():
        tokenizer, size = suite.job_of(option).tokenizer, entries.get(option.name)
        wanted = tokenizer.most_entries if tokenizer is not None else None
        if wanted is not None and size is not None and size < NEARLY * wanted:
            short.setdefault((size, wanted), []).append(option.name)
    return [
        f"{_of_options(names, suite)}the text yields a vocabulary of {size:,}; {wanted:,} were asked for"
        for (size, wanted), names in short.items()
    ]


def unused_row_warnings(suite: Suite, unused_rows: Mapping[str, UnusedRows]) -> list[str]:
    """Models with rows for far more tokens than the data have, a line for all options with the same figures."""
    names_by_facts: dict[tuple[int, int, int, int], list[str]] = {}
    for name in (option.name for option in suite.options if option.name in unused_rows):
        facts = itemgetter("rows", "entries", "unused", "parameters")(unused_rows[name])
        names_by_facts.setdefault(facts, []).append(name)
    warnings = []
    for (rows, entries, unused, total), names in names_by_facts.items():
        model = suite.job_of(suite.option(names[0])).model
        fix = f"--set job.model.vocab_size={entries}"
        if isinstance(model, PretrainedModel):
            fix = "leave `tokenizer` out: the model has its own"
        elif type(model) is not type(suite.built.model):
            fix = f"`vocab_size: {entries}` in its model"
        fix += ", or a larger tokenizer"
        share = units.whole_percent(unused / total)
        cost = f"{units.count(unused)} of {units.count(total)} parameters ({share}) are of tokens that never occur"
        sentence = (
            f"{_of_options(names, suite)}the model has rows for {rows:,} tokens, and the data have {entries:,}"
        )
        warnings.append(f"{sentence}: {cost} ({fix})")
    return warnings


@dataclass(frozen=True)
class PlannedOption:
    """An option with what follows for it on this machine."""

    option: Option
    world_size: int
    gradient_accumulation_steps: int | None
    """Micro-batches per optimizer step and rank; None: a script decides it."""
    unsupported: str | None
    """Why it can't run here, or None."""
    parameters: int | None = None
    """The model's parameters, of foreign configurations without biases and norms; None: own code, or not known."""
    size: Layout | None = None
    """The model's matrices; None: as above."""
    used: Layout | None = None
    """The matrices with rows for the data's tokens alone; None: as above, or the tokens are not known yet."""
    entries: int | None = None
    """Tokens of the data's vocabulary; None: a tokenizer that is not at hand decides."""
    peak_bytes: int | None = None
    """Expected peak of a GPU's memory; None: on a CPU, or for a model that the formulas do not know."""


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with its round and phase."""

    trial: Trial
    round: int
    phase: RunPhase = "contest"
    beside: Sequence[Trial] = ()
    """Trials for other lanes to train meanwhile, the first that can run; empty: they train nothing."""


@dataclass(frozen=True)
class Plan:
    """Everything that `run` will do."""

    suite: Suite
    options: list[PlannedOption]
    trials: list[PlannedTrial]
    """Trials round by round, with options in the suite's order; a run draws their order (`in_run_order`)."""
    parameters: int | None
    """Parameters of the baseline's model, as in `PlannedOption`."""
    tokens: int | None
    """Training tokens of one trial, the same for every option; None: a script decides it."""
    epochs: float | None
    """Passes over the training split with the baseline's tokenizer; None: the data isn't prepared."""
    warnings: list[str]
    own_code_sha256: str | None = None
    """Digest of the suite's folders of own code; None: it has none."""
    command_facts: Mapping[str, object] | None = None
    """Facts on a command for environment.json, as they were before anything ran."""
    pretrained: dict[str, str] = field(default_factory=dict)
    """By option, the version of a pretrained model: a commit of the hub, or its files' SHA-256."""
    lane_words: str = ""
    """`2 lanes of 1 core each`; empty: one trial at a time."""
    lanes: int = 1
    nodes: int = 1
    """Machines that trials of more than one rank run on together."""
    targets: dict[str, Targets | None] = field(default_factory=dict)
    """By option, tokens trained on, where data are prepared; None: every token is."""

    @property
    def saved_bytes(self) -> int | None:
        """Size of the trained models that are kept, in fp32; None: some model's parameters are not known."""
        sizes = [option.parameters for option in self.options if option.unsupported is None]
        known = [4 * size for size in sizes if size is not None]
        trials = len(self.suite.saved_seeds)
        return sum(known) * trials if len(known) == len(sizes) or not trials else None

    @property
    def unused_rows(self) -> dict[str, UnusedRows]:
        """Unused rows by option, of models with rows for more than twice the data's tokens."""
        return {
            planned.option.name: UnusedRows(
                rows=size.vocab_size, entries=used.vocab_size, unused=size.parameters - used.parameters,
                parameters=size.parameters,
            )
            for planned in self.options
            if (size := planned.size) is not None and (used := planned.used) is not None
            and size.vocab_size > MOST_ROWS_PER_TOKEN * used.vocab_size
        }  # fmt: skip

    def planned(self, option: str) -> PlannedOption:
        """The planned option of that name. Raises KeyError."""
        return {planned.option.name: planned for planned in self.options}[option]


def make_plan(
    suite: Suite, machine: Machine, prepared: Mapping[str, Prepared] | None, code_sha256: str,
    command_facts: Mapping[str, object] | None = None,
) -> Plan:  # fmt: skip
    """The plan of a suite here; `prepared`: each option's data, None: not prepared; `command_facts`: a command's.

    Raises UserError where a step can't be cut for the ranks, an interpreter does not start, or own code or a
    pretrained model can't be read.
    """
    assert not suite.left_open.settings, "settled before"
    common: dict[str, Any] = {"device": suite.device, "code": code_sha256}
    if machine.lanes > 1:  # a trial has the threads of its lane's cores
        common["lane_cores"] = len(machine.lane_cores[0])
    if suite.command is not None:
        return _command_plan(suite, suite.command, machine, {**common, "command": command_facts})
    own_code = own_code_sha256(suite.code)
    pretrained = model_contents({option.name: suite.job_of(option).model for option in suite.options})
    options = [_plan_option(suite, option, machine, (prepared or {}).get(option.name)) for option in suite.options]
    passes = epochs(prepared[suite.baseline], suite.built) if prepared else None
    heldout = {name: evaluable_tokens(data, suite.built) for name, data in (prepared or {}).items()}
    trained = {name: targets(data, suite.job_of(suite.option(name))) for name, data in (prepared or {}).items()}
    identities = {
        option.name: {
            "job": suite.job_of(option).model_dump(mode="json"),
            "data": prepared[option.name].key if prepared else None, "pretrained": pretrained.get(option.name),
            **common,
        }
        for option in suite.options
    }  # fmt: skip
    plan = Plan(
        suite=suite,
        options=options,
        trials=_planned_trials(suite, identities),
        parameters=next(p.parameters for p in options if p.option.name == suite.baseline),
        tokens=suite.job.max_steps * suite.built.tokens_per_step,
        epochs=passes,
        warnings=[
            *suite_warnings(suite, passes, _cores(machine)),
            *heldout_warnings(suite, heldout),
            *split_warnings(suite, prepared or {}),
            *target_warnings(trained.values()),
            *vocabulary_warnings(suite, {name: data.vocab_size for name, data in (prepared or {}).items()}),
            *_option_warnings(suite, options, machine),
        ],
        own_code_sha256=own_code,
        pretrained=pretrained,
        **_lane_fields(suite, machine),
        targets=trained,
    )
    return replace(plan, warnings=[*plan.warnings, *unused_row_warnings(suite, plan.unused_rows)])


def _cores(machine: Machine) -> float:
    return usable_cores() * machine.nodes if machine.lanes == 1 else len(machine.lane_cores[0])


def _lane_fields(suite: Suite, machine: Machine) -> dict[str, Any]:
    """Fields of a plan: how the machine is divided into lanes, and how many machines there are."""
    fields: dict[str, Any] = {"lanes": machine.lanes, "nodes": machine.nodes}
    if machine.lanes == 1:
        return fields
    parts = [f"{len(machine.lane_cores[0])} cores"] if int(usable_cores()) >= machine.lanes else []
    parts = [f"{machine.device_count} GPUs", *parts] if suite.device == "cuda" else parts
    lane = " and ".join(part.removesuffix("s") if part.startswith("1 ") else part for part in parts)
    return {**fields, "lane_words": f"{machine.lanes} lanes of {lane} each"}


def _command_plan(suite: Suite, job: CommandJob, machine: Machine, common: Mapping[str, Any]) -> Plan:
    """The plan as far as it follows from the command's words; the rest is only known when it runs."""
    options: list[PlannedOption] = []
    for option in suite.options:
        assert isinstance(option.choices, CommandChoices)
        ranks = option.choices.ranks(machine)
        unsupported = ranks_problem(ranks, machine) or _missing_packages(job, option.choices, machine)
        options.append(PlannedOption(option, ranks, accumulation(job, option.choices, ranks), unsupported))
    identity = {"job": job.model_dump(mode="json"), **common}
    several = ", ".join(o.name for o in suite.options if o.choices.world_size not in (1, "auto"))
    doubts = {
        "seed": "the command has no {seed}: what its seed is, the script alone decides",
        "world_size": several + ": the command has no {world_size}: it must start as many ranks itself",
        "max_steps": "the command has no {max_steps}: its learning rate may be on another schedule than it seems",
    }
    known = {*job.names, "world_size" * (not several), "max_steps" * (job.stop == "natural_end")}
    warnings = [doubt for name, doubt in doubts.items() if name not in known]
    warnings += suite_warnings(suite, None, _cores(machine))
    trials = _planned_trials(suite, {option.name: identity for option in suite.options})
    return Plan(
        suite, options, trials, parameters=None, tokens=None, epochs=None, warnings=warnings,
        command_facts=common["command"], **_lane_fields(suite, machine),
    )  # fmt: skip


def _missing_packages(job: CommandJob, choices: CommandChoices, machine: Machine) -> str | None:
    """Why the command lacks packages, or None; `machine.packages` stands for an interpreter that is not here."""
    if not choices.needs:
        return None
    python = interpreter(job, choices) if machine.packages is None else None
    needs = Needs(packages=tuple(choices.needs), install=shlex.join(["pip", "install", *choices.needs]))
    return needs.unmet(machine_for(machine, python))


def _plan_option(suite: Suite, option: Option, machine: Machine, prepared: Prepared | None) -> PlannedOption:
    choices, machine = option.built, machine_for(machine, option.choices.python)
    ranks = choices.ranks(machine)
    job, micro_batch_size = suite.job_of(option), choices.micro_batch_size
    if problem := accumulation_problem(job.global_batch_size, micro_batch_size, ranks):
        # `world_size: auto` is known only here.
        raise UserError(f"suite {suite.name}: option {option.name}: {problem}")
    micro_batches = job.gradient_accumulation_steps(micro_batch_size, ranks)
    vocab_size, entries = embedding_rows(suite, option, prepared), vocabulary_size(job, prepared)
    size = size_of(job.model, vocab_size, job.seq_len)
    is_foreign = isinstance(job.model, OfAnyFamily)
    return PlannedOption(
        option=option,
        world_size=ranks,
        gradient_accumulation_steps=micro_batches,
        unsupported=worker_problem(machine)
        or choices.unsupported_reason(
            machine, micro_batches=micro_batches, task=suite.job.task, data=suite.built.data.kind
        )
        or _kernel_problem(job, choices),
        parameters=None if size is None else size.parameters if is_foreign else size.all_parameters,
        size=size,
        used=None if entries is None else size_of(job.model, vocab_size, job.seq_len, entries),
        entries=entries,
        peak_bytes=expected_peak_bytes(suite, option, ranks, prepared),
    )


def _kernel_problem(job: Job, choices: Choices) -> str | None:
    """Why the model's class lacks this attention, or None; other interpreters' classes are not known here."""
    config = config_of(job.model, job.model.vocab_size or 2, job.seq_len) if choices.python is None else None
    kernel = choices.attention.name
    problem = kernel_problem(str((config or {}).get("model_type")), job.task, kernel)
    return None if problem is None else f"attention {kernel}: {problem}"


def in_run_order(trials: Sequence[PlannedTrial], run: str) -> list[PlannedTrial]:
    """Trials round by round: every other round in an order drawn for this run, the round after it in reverse.

    `run`: the run's name, from which the order is drawn, so that a resumed run has the same. In a pair of mirrored
    rounds every option has the same mean place: what changes steadily while a run lasts, such as the warmth of a
    machine, affects all options alike.
    """
    draw, order = random.Random(run), list(dict.fromkeys(planned.trial.option for planned in trials))
    ordered: list[PlannedTrial] = []
    for number in range(max((planned.round for planned in trials), default=-1) + 1):
        draw.shuffle(order) if number % 2 == 0 else order.reverse()
        of_round = [planned for planned in trials if planned.round == number]
        ordered += sorted(of_round, key=lambda planned: order.index(planned.trial.option))
    return ordered


def _planned_trials(suite: Suite, identities: Mapping[str, Mapping[str, Any]]) -> list[PlannedTrial]:
    planned: list[PlannedTrial] = []
    for number, seed in enumerate(suite.seeds):
        for option in suite.options:
            name = option.name
            settings = option.choices.model_dump(mode="json")
            content = {"option": name, "settings": settings, "seed": seed, **identities[name]}
            digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            trial = Trial(
                trial_id=digest[:16], option=name, seed=seed, settings=SETTINGS.as_json(settings),
                tunes=option.tunes, tried=option.tried,
            )  # fmt: skip
            planned.append(PlannedTrial(trial, number, "contest" if option.tunes is None else "tune"))
    return planned


def _option_warnings(suite: Suite, options: list[PlannedOption], machine: Machine) -> list[str]:
    """A baseline that can't run, and options that are expected not to fit, unless trials search batch sizes."""
    name, total = (suite.best_of is None and smallest_gpu(machine)) or ("", math.inf)
    peaks = [(o.option.name, o.peak_bytes) for o in options if o.unsupported is None and o.peak_bytes]
    return [
        *(f"the baseline {suite.baseline} cannot run here: {o.unsupported}"
          for o in options if o.option.name == suite.baseline and o.unsupported),
        *(f"{option} is expected to take {units.size(peak)} of memory, and {name} has {units.size(total)}: it may "
          "run out of memory" for option, peak in peaks if peak > total),
    ]  # fmt: skip


@dataclass(frozen=True)
class GpuNeed:
    """How many GPUs a run takes."""

    least: int
    """Fewest GPUs with which every option runs that can run on this machine."""
    most: int | None
    """Most GPUs; None: as many as there are (`world_size: auto`)."""


def gpu_need(suite: Suite, machine: Machine) -> GpuNeed:
    """GPUs for the options that can run where all of this machine's GPUs are free; at least one."""
    world_sizes = [option.choices.world_size for option in suite.options if _can_run(option, machine)]
    least = max((machine.ranks_per_node(ranks) for ranks in world_sizes if ranks != "auto"), default=1)
    return GpuNeed(least, None if "auto" in world_sizes else least)


def lanes_of(requested: str | int, suite: Suite, machine: Machine) -> tuple[int, GpuNeed]:
    """The number of lanes, and their GPUs; `auto` goes by visible GPUs, as a resume must. Raises UserError."""
    if suite.device == "cpu":
        lanes, cores = 1 if requested == AUTO else int(requested), int(usable_cores())
        if lanes > max(1, cores):
            raise UserError(f"lanes: {lanes} on {cores} core{'s' * (cores != 1)}: a lane needs one of its own")
        return lanes, GpuNeed(0, 0)
    need, available = gpu_need(suite, machine), machine.device_count
    lanes = int(requested) if requested != AUTO else 1 if need.most is None else max(1, available // need.least)
    if lanes == 1:
        return 1, need
    gpus_per_lane = need.least if need.most is not None else available // lanes
    if gpus_per_lane < need.least or lanes * gpus_per_lane > available:
        raise UserError(
            f"lanes: {lanes} lanes need {lanes * need.least} GPUs, {need.least} for each, as an option asks for; "
            f"there {'is' if available == 1 else 'are'} {available}"
        )
    return lanes, GpuNeed(lanes * gpus_per_lane, lanes * gpus_per_lane)


def _can_run(option: Option, machine: Machine) -> bool:
    if isinstance(option.choices, CommandChoices):
        return True
    return option.choices.unsupported_reason(machine_for(machine, option.choices.python)) is None


def gpus_used(plan: Plan, machine: Machine) -> int:
    """The most GPUs that one of the plan's trials takes on this machine; at least one."""
    world_sizes = (planned.world_size for planned in plan.options if planned.unsupported is None)
    return max(map(machine.ranks_per_node, world_sizes), default=1)


FITTING_SHARE = 0.85
"""Share of a GPU's memory that an option may be expected to take: the rest is for what formulas leave out, such as
fragments of the allocator's blocks."""


def with_machine_choices(suite: Suite, machine: Machine, prepared: Mapping[str, Prepared] | None) -> Suite:
    """The suite with every open setting chosen. Raises UserError where a model's memory is not known."""
    choices: list[MachineChoice] = []
    left_open = suite.left_open
    if left_open.precision:
        precision, why = precision_for(machine)
        suite = _with_setting(suite, PRECISION, precision, precision.model_dump(mode="json"))
        choices.append(MachineChoice(setting=PRECISION, asked=AUTO, taken=precision.name, why=why))
    if left_open.micro_batch_size is not None:
        at_most = left_open.micro_batch_size.at_most
        size, why = _size_that_fits(suite, at_most, machine, prepared)
        suite = _with_setting(suite, MICRO_BATCH_SIZE, size, size)
        request = f"{AT_MOST} {at_most}"
        choices.append(MachineChoice(setting=MICRO_BATCH_SIZE, asked=request, taken=str(size), why=why))
    return suite.model_copy(update={"left_open": LeftOpen(machine_choices=choices)}) if choices else suite


def _with_setting(suite: Suite, setting: str, value: object, plain: object) -> Suite:
    """The suite with this value in every option; `plain`: the value as YAML has it, for the resolved file."""
    options = [
        option.model_copy(update={"choices": option.choices.model_copy(update={setting: value})})
        for option in suite.options
    ]
    resolved = {**suite.resolved, "choices": {**suite.resolved.get("choices", {}), setting: plain}}
    return suite.model_copy(update={"options": options, "resolved": resolved})


def expected_peak_bytes(suite: Suite, option: Option, ranks: int, prepared: Prepared | None) -> int | None:
    """Expected peak of a GPU's memory; None: on a CPU, or for a model that is not known here."""
    if suite.device != "cuda":
        return None
    job = suite.job_of(option)
    config = config_of(job.model, embedding_rows(suite, option, prepared), job.seq_len)
    need = None if config is None else memory_need(job, option.built, config, ranks)
    return None if need is None else round(sum(need))


def smallest_gpu(machine: Machine) -> tuple[str, int] | None:
    """Name and memory in bytes of the GPU with least memory; None: no GPU reports its memory."""
    known = [(gpu.memory_total_bytes, gpu.name) for gpu in machine.gpus if gpu.memory_total_bytes is not None]
    return min(((name, total) for total, name in known), key=lambda pair: pair[1], default=None)


def _size_that_fits(
    suite: Suite, at_most: int, machine: Machine, prepared: Mapping[str, Prepared] | None
) -> tuple[int, str]:
    """The largest micro-batch size that is expected to fit, and why it was taken. Raises UserError."""
    sizes = _possible_sizes(suite, at_most, machine)
    gpu = smallest_gpu(machine) if suite.device == "cuda" else None
    if gpu is None:
        return sizes[0], "on a CPU memory sets no bound" if suite.device == "cpu" else "no GPU reports its memory"
    (name, total), too_large = gpu, ""
    bound = f"{FITTING_SHARE:.0%} of the {units.size(total)} of {name}"
    for size in sizes:
        option, peak = _most_demanding(suite, size, machine, prepared or {})
        if peak is None and prepared is None:
            return sizes[0], f"what {option} takes is not known before the data are prepared"
        if peak is None:
            raise UserError(
                f"suite {suite.name}: option {option}: choices.micro_batch_size: {{{AT_MOST}: {at_most}}}: how "
                "much memory this model takes is not known: give a number, as in --set choices.micro_batch_size=4, "
                f"or {AUTO}, which tries sizes"
            )
        if peak <= FITTING_SHARE * total:
            return size, f"{option} is expected to take {units.size(peak)}, at most {bound}{too_large}"
        sequences = f"{size} sequence{'s' if size > 1 else ''}"
        too_large = f"; with {sequences} {option} would take {units.size(peak)}"
    return sizes[-1], f"none fits into {bound}{too_large}, so that trials may run out of memory"


def _possible_sizes(suite: Suite, at_most: int, machine: Machine) -> list[int]:
    """Micro-batch sizes that divide every option's step without a rest, the largest first."""
    shares = []
    for option in suite.options:
        step, ranks = suite.job_of(option).global_batch_size, option.choices.ranks(machine)
        shares.append(step // ranks if ranks and step % ranks == 0 else 1)
    common = math.gcd(*shares)
    return [size for size in range(min(at_most, common), 0, -1) if common % size == 0]


def _most_demanding(
    suite: Suite, size: int, machine: Machine, prepared: Mapping[str, Prepared]
) -> tuple[str, int | None]:
    """The option that takes most memory, of those that can run here or of all, and its bytes; None: not known."""
    options = _with_setting(suite, MICRO_BATCH_SIZE, size, size).options
    peaks: list[tuple[str, int]] = []
    for option in [o for o in options if _can_run(o, machine)] or options:
        ranks = option.choices.ranks(machine)
        peak = expected_peak_bytes(suite, option, ranks, prepared.get(option.name))
        if peak is None:
            return option.name, None
        peaks.append((option.name, peak))
    return max(peaks, key=lambda pair: pair[1])

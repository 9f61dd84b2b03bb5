"""A suite to its trials in run order: what the machine decides, what cannot run here, and what to warn of."""

from __future__ import annotations

import hashlib
import json
import math
import os
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
from selectbench.choices.model import PretrainedModel, kernel_problem
from selectbench.data.prepared import Prepared, Targets, contents_of, epochs, evaluable_tokens, targets
from selectbench.errors import UserError
from selectbench.machine import Machine, machine_for, usable_cores, worker_problem
from selectbench.planning.memory import Layout, config_of, entries_of, memory_need, size_of, vocab_size_of
from selectbench.record.environment import UnusedRows
from selectbench.record.record import SETTINGS, RunPhase, Trial
from selectbench.suite.check import accumulation_problem
from selectbench.suite.command import CommandChoices, CommandJob, accumulation, interpreter
from selectbench.suite.job import Eval, Job
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
"""Share of the entries asked for below which a vocabulary is reported to be smaller."""
FEWEST_TARGETS = 0.05
"""Share of a step's tokens that are trained on below which a person is warned."""
MOST_ROWS_PER_TOKEN = 2
"""Rows of a model's embedding over the data's tokens from which a reader is told what they cost."""
MEMORISING_EPOCHS = 4.0
"""Muennighoff et al. 2023, arXiv:2305.16264: up to about four epochs repeated data is worth new data."""


def suite_warnings(suite: Suite, passes: float | None, cores: float | None = None) -> list[str]:
    """What a reader must know beforehand; `passes`: epochs, `cores`: that trials may use, None: unknown."""
    warnings = []
    if passes is not None and passes > MEMORISING_EPOCHS and suite.job.evaluates:
        effect = "final losses measure memorising too; no verdict of quality should rest on them"
        warnings.append(f"the corpus is repeated {passes:.1f} times: {effect} (more text, or fewer max_steps)")
    elif passes is not None and passes > 1:
        warnings.append(f"the corpus is repeated: {passes:.2f} epochs")
    for option in suite.options:
        caveats = [choice.caveat(suite.device) for choice in option.choices.each().values()]
        warnings += [f"{option.name}: {caveat}" for caveat in caveats if caveat]
    for option in suite.options:
        ranks = option.choices.world_size
        # Ranks on a CPU are processes.
        if suite.device == "cpu" and cores is not None and ranks != "auto" and ranks > cores:
            slower = "take turns: not the speed of ranks on cores of their own"
            warnings.append(f"{option.name}: {ranks} ranks share {cores:g} cores and {slower}")
    if (job := suite.command) is not None and (left := job.stops_after - job.timing.warmup_steps) < FEWEST_TO_TIME:
        warnings.append(
            f"job.timing.warmup_steps {job.timing.warmup_steps} leaves {max(1, left)} of {job.stops_after} steps "
            "to time: speeds are mostly chance (fewer of them, or more steps)"
        )
    # The best learning rate falls with the length of the training (Bjorck et al. 2024, arXiv:2409.19913), most
    # among short ones: Lion's 0.0095, the best of 24 steps, loses 0.4 nats to 0.001 over 60.
    whole = suite.job.max_steps
    steps = suite.tune.budget.steps(whole) if suite.tune else whole
    if steps < min(whole, FEWEST_TO_TUNE):
        warnings.append(
            f"a tuning trial has {steps} of the job's {whole} steps: in so few larger learning rates are best, "
            "which may lose in the contest; `tune: {budget: {max_steps: 1x}}` tunes over the whole schedule"
        )
    return warnings


def heldout_warnings(suite: Suite, tokens: Mapping[str, int | None]) -> list[str]:
    """Held-out text that is less than asked; `tokens`: all that there are to score, by option; None: unknown."""
    if not isinstance(suite.job.eval, Eval):
        return []
    asked = suite.job.eval.tokens
    short: dict[int, list[str]] = {}
    for option in suite.options:
        if (found := tokens.get(option.name)) is not None and found < asked:
            short.setdefault(found, []).append(option.name)
    every = [option.name for option in suite.options] in short.values()
    return [
        f"{'' if every else ', '.join(names) + ': '}the held-out text gives {found:,} tokens, job.eval.tokens asks "
        f"for {asked:,}: the final loss is over all of these, and less certain (give more text, or ask for fewer)"
        for found, names in short.items()
    ]


def target_warnings(found: Iterable[Targets | None]) -> list[str]:
    """Losses that rest on few of a step's tokens."""
    rest = "losses are noisy, and most of the time goes into the rest (a smaller seq_len, or a larger batch)"
    few = [one[0] for one in found if one is not None and one[0] < FEWEST_TARGETS]
    return [f"only {min(few):.1%} of the tokens of a step are trained on: {rest}"] if few else []


def vocabulary_warnings(suite: Suite, entries: Mapping[str, int | None]) -> list[str]:
    """Tokenizers that came out much smaller than asked; `entries`: of each option's vocabulary."""
    warnings = []
    for option in suite.options if suite.command is None else ():
        tokenizer, made = suite.job_of(option).tokenizer, entries.get(option.name)
        asked = tokenizer.most_entries if tokenizer is not None else None
        if asked is not None and made is not None and made < NEARLY * asked:
            warnings.append(f"{option.name}: the text yields a vocabulary of {made:,}; {asked:,} were asked for")
    return warnings


def unused_row_warnings(suite: Suite, found: Mapping[str, UnusedRows]) -> list[str]:
    """Models with rows for far more tokens than there are, of options alike once; `found`: `unused_rows`."""
    alike: dict[tuple[int, int, int, int], list[str]] = {}
    for name in (option.name for option in suite.options if option.name in found):
        same = itemgetter("rows", "entries", "unused", "parameters")(found[name])
        alike.setdefault(same, []).append(name)
    warnings = []
    for (rows, entries, unused, whole), names in alike.items():
        model = suite.job_of(suite.option(names[0])).model
        fix = f"--set job.model.vocab_size={entries}"
        if isinstance(model, PretrainedModel):
            fix = "leave `tokenizer` out: the model has its own"
        elif type(model) is not type(suite.built.model):
            fix = f"`vocab_size: {entries}` in its model"
        fix += ", or a larger tokenizer"
        of = "" if len(names) == len(suite.options) else f"{', '.join(names)}: "
        share = units.whole_percent(unused / whole)
        cost = f"{units.count(unused)} of {units.count(whole)} parameters ({share}) are of tokens that never occur"
        head = f"{of}the model has rows for {rows:,} tokens, and the data have {entries:,}"
        warnings.append(f"{head}: {cost} ({fix})")
    return warnings


@dataclass(frozen=True)
class PlannedOption:
    """What an option comes to on this machine."""

    option: Option
    world_size: int
    gradient_accumulation_steps: int | None
    """Micro-batches per optimizer step and rank; None: a script decides it."""
    unsupported: str | None
    """Why it can't run here, or None."""
    parameters: int | None = None
    """Of the model, for a configuration of others without biases and norms; None: own code, or not known yet."""
    size: Layout | None = None
    """What the parameters are for; None: as above."""
    used: Layout | None = None
    """The same with rows for the data's tokens alone; None: as above, or these are not known yet."""
    entries: int | None = None
    """Of the vocabulary that the data come in; None: a tokenizer that is not at hand decides."""
    peak_bytes: int | None = None
    """Of each GPU's memory, as formulas expect it; None: on a CPU, or of a model that they do not know."""


CANNOT_START = "this run cannot start here"
"""What the note begins with that says why; such notes are told before the plan."""


@dataclass(frozen=True)
class PlannedTrial:
    """One trial at its place in the order."""

    trial: Trial
    round: int
    phase: RunPhase = "contest"
    beside: Sequence[Trial] = ()
    """What other lanes are to train meanwhile, the first one that can be; empty: nothing."""


@dataclass(frozen=True)
class Plan:
    """Everything that `run` will do."""

    suite: Suite
    options: list[PlannedOption]
    trials: list[PlannedTrial]
    """Round after round, the options of each as the suite has them; a run draws their order (`in_run_order`)."""
    parameters: int | None
    """Of the baseline's model, as in `PlannedOption`."""
    tokens: int | None
    """Training tokens of one trial, the same for every option; None: a script decides it."""
    epochs: float | None
    """Passes over the training split with the baseline's tokenizer; None: the data isn't prepared."""
    warnings: list[str]
    own_code_sha256: str | None = None
    """Of the suite's folders of own code; None: it has none."""
    command_facts: Mapping[str, object] | None = None
    """Of a command, what environment.json says of it: as it was before anything ran."""
    pretrained: dict[str, str] = field(default_factory=dict)
    """By option, what a model that was trained before is: a commit of the hub, or its files' SHA-256."""
    lane_words: str = ""
    """`2 lanes of 1 core each`; empty: one trial at a time."""
    lanes: int = 1
    nodes: int = 1
    """Machines that trials of more than one rank run on together."""
    targets: dict[str, Targets | None] = field(default_factory=dict)
    """By option, where data are prepared; None: every token is trained on."""

    @property
    def saved_bytes(self) -> int | None:
        """Of the trained models that are kept, in fp32; None: of one that can run nobody knows its parameters."""
        sizes = [option.parameters for option in self.options if option.unsupported is None]
        known = [4 * size for size in sizes if size is not None]
        trials = len(self.suite.saved_seeds)
        return sum(known) * trials if len(known) == len(sizes) or not trials else None

    @property
    def unused_rows(self) -> dict[str, UnusedRows]:
        """By option whose model has rows for more than twice the data's tokens: both, and parameters."""
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
    """`prepared`: each option's data, where they could be; `code_sha256`: the package's; for a command its facts.

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
    pretrained = contents_of({option.name: suite.job_of(option).model for option in suite.options})
    options = [_plan_option(suite, option, machine, (prepared or {}).get(option.name)) for option in suite.options]
    passes = epochs(prepared[suite.baseline], suite.built) if prepared else None
    heldout = {name: evaluable_tokens(one, suite.built) for name, one in (prepared or {}).items()}
    trained = {n: targets(one, suite.job_of(suite.option(n))) for n, one in (prepared or {}).items()}
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
        trials=_trials(suite, identities),
        parameters=next(p.parameters for p in options if p.option.name == suite.baseline),
        tokens=suite.job.max_steps * suite.built.tokens_per_step,
        epochs=passes,
        warnings=[
            *suite_warnings(suite, passes, _cores(machine)),
            *heldout_warnings(suite, heldout),
            *target_warnings(trained.values()),
            *vocabulary_warnings(suite, {name: one.vocab_size for name, one in (prepared or {}).items()}),
            *_option_warnings(suite, options, machine),
        ],
        own_code_sha256=own_code,
        pretrained=pretrained,
        **_parts(suite, machine),
        targets=trained,
    )
    return replace(plan, warnings=[*plan.warnings, *unused_row_warnings(suite, plan.unused_rows)])


def _cores(machine: Machine) -> float:
    return usable_cores() * machine.nodes if machine.lanes == 1 else len(machine.lane_cores[0])


def _parts(suite: Suite, machine: Machine) -> dict[str, Any]:
    """As a plan's keys: how the machine is divided, and how many of it there are."""
    found: dict[str, Any] = {"lanes": machine.lanes, "nodes": machine.nodes}
    if machine.lanes == 1:
        return found
    parts = [f"{len(machine.lane_cores[0])} cores"] if int(usable_cores()) >= machine.lanes else []
    parts = [f"{machine.device_count} GPUs", *parts] if suite.device == "cuda" else parts
    each = " and ".join(part.removesuffix("s") if part.startswith("1 ") else part for part in parts)
    return {**found, "lane_words": f"{machine.lanes} lanes of {each} each"}


def _command_plan(suite: Suite, job: CommandJob, machine: Machine, common: Mapping[str, Any]) -> Plan:
    """What follows from the command's words; all else is seen when it runs."""
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
    trials = _trials(suite, {option.name: identity for option in suite.options})
    return Plan(
        suite, options, trials, parameters=None, tokens=None, epochs=None, warnings=warnings,
        command_facts=common["command"], **_parts(suite, machine),
    )  # fmt: skip


def _missing_packages(job: CommandJob, choices: CommandChoices, machine: Machine) -> str | None:
    """Where the command runs; what a machine was asked of that is only planned for stands in its own list."""
    if not choices.needs:
        return None
    python = interpreter(job, choices, os.environ.get("PATH", os.defpath)) if machine.packages is None else None
    needs = Needs(packages=tuple(choices.needs), install=shlex.join(["pip", "install", *choices.needs]))
    return needs.missing(machine_for(machine, python))


def _plan_option(suite: Suite, option: Option, machine: Machine, prepared: Prepared | None) -> PlannedOption:
    choices, machine = option.built, machine_for(machine, option.choices.python)
    ranks = choices.ranks(machine)
    job, micro_batch_size = suite.job_of(option), choices.micro_batch_size
    if problem := accumulation_problem(job.global_batch_size, micro_batch_size, ranks):
        # world_size: auto is known only here
        raise UserError(f"suite {suite.name}: option {option.name}: {problem}")
    micro_batches = job.gradient_accumulation_steps(micro_batch_size, ranks)
    vocab_size, entries = vocab_size_of(suite, option, prepared), entries_of(job, prepared)
    size = size_of(job.model, vocab_size, job.seq_len)
    parameters = None if vocab_size is None else job.model.parameters(vocab_size, job.seq_len)
    return PlannedOption(
        option=option,
        world_size=ranks,
        gradient_accumulation_steps=micro_batches,
        unsupported=worker_problem(machine)
        or choices.unsupported_reason(
            machine, micro_batches=micro_batches, task=suite.job.task, data=suite.built.data.kind
        )
        or _kernel_problem(job, choices),
        parameters=size.parameters if parameters is None and size is not None else parameters,
        size=size,
        used=None if entries is None else size_of(job.model, vocab_size, job.seq_len, entries),
        entries=entries,
        peak_bytes=expected_peak_bytes(suite, option, ranks, prepared),
    )


def _kernel_problem(job: Job, choices: Choices) -> str | None:
    """That the model's class has no such attention; another interpreter's classes are not known here."""
    config = config_of(job.model, job.model.vocab_size or 2, job.seq_len) if choices.python is None else None
    kernel = choices.attention.name
    problem = kernel_problem(str((config or {}).get("model_type")), job.task, kernel)
    return None if problem is None else f"attention {kernel}: {problem}"


def in_run_order(trials: Sequence[PlannedTrial], run: str) -> list[PlannedTrial]:
    """Round after round, the options of every other round in an order drawn for this run, of the next in reverse.

    `run`: the run's name, which its folder keeps, so that a run that is resumed goes on in its order. In a pair of
    mirrored rounds every option has the same mean place: what changes steadily while a run lasts, such as the
    warmth of a machine, falls on all options alike.
    """
    draw, order = random.Random(run), list(dict.fromkeys(planned.trial.option for planned in trials))
    ordered: list[PlannedTrial] = []
    for number in range(max((planned.round for planned in trials), default=-1) + 1):
        draw.shuffle(order) if number % 2 == 0 else order.reverse()
        of_round = [planned for planned in trials if planned.round == number]
        ordered += sorted(of_round, key=lambda planned: order.index(planned.trial.option))
    return ordered


def _trials(suite: Suite, identities: Mapping[str, Mapping[str, Any]]) -> list[PlannedTrial]:
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
    """A baseline that cannot run, and options that are expected not to fit; not where trials search sizes."""
    name, total = (suite.best_of is None and smallest_gpu(machine)) or ("", math.inf)
    able = [(one.option.name, one.peak_bytes) for one in options if one.unsupported is None and one.peak_bytes]
    return [
        *(f"the baseline {suite.baseline} cannot run here: {one.unsupported}"
          for one in options if one.option.name == suite.baseline and one.unsupported),
        *(f"{option} is expected to take {units.size(peak)} of memory, and {name} has {units.size(total)}: it may "
          "run out of memory" for option, peak in able if peak > total),
    ]  # fmt: skip


@dataclass(frozen=True)
class GpuNeed:
    """Whole numbers of GPUs."""

    least: int
    """Without so many some option that could run here would not."""
    most: int | None
    """None: as many as there are (`world_size: auto`)."""


def gpu_need(suite: Suite, machine: Machine) -> GpuNeed:
    """What the options take that can run where all of this machine's GPUs are free; at least one."""
    wanted = [option.choices.world_size for option in suite.options if _runs(option, machine)]
    least = max((machine.here(ranks) for ranks in wanted if ranks != "auto"), default=1)
    return GpuNeed(least, None if "auto" in wanted else least)


def lanes_of(asked: str | int, suite: Suite, machine: Machine) -> tuple[int, GpuNeed]:
    """How many lanes, and what they need; `auto` goes by visible GPUs, as a resume must. Raises UserError."""
    if suite.device == "cpu":
        lanes, cores = 1 if asked == AUTO else int(asked), int(usable_cores())
        if lanes > max(1, cores):
            raise UserError(f"lanes: {lanes} on {cores} core{'s' * (cores != 1)}: a lane needs one of its own")
        return lanes, GpuNeed(0, 0)
    need, there = gpu_need(suite, machine), machine.device_count
    lanes = int(asked) if asked != AUTO else 1 if need.most is None else max(1, there // need.least)
    if lanes == 1:
        return 1, need
    each = need.least if need.most is not None else there // lanes
    if each < need.least or lanes * each > there:
        raise UserError(
            f"lanes: {lanes} lanes need {lanes * need.least} GPUs, {need.least} for each, as an option asks for; "
            f"there {'is' if there == 1 else 'are'} {there}"
        )
    return lanes, GpuNeed(lanes * each, lanes * each)


def _runs(option: Option, machine: Machine) -> bool:
    if isinstance(option.choices, CommandChoices):
        return True
    return option.choices.unsupported_reason(machine_for(machine, option.choices.python)) is None


def gpus_used(plan: Plan, machine: Machine) -> int:
    """The most that one of the plan's trials takes here; at least one."""
    able = (planned.world_size for planned in plan.options if planned.unsupported is None)
    return max(map(machine.here, able), default=1)


FITTING_SHARE = 0.85
"""Of a GPU's memory, what an option is expected to take at most: the rest is for what formulas do not see, such as
fragments of the allocator's blocks."""


def with_machine_choices(suite: Suite, machine: Machine, prepared: Mapping[str, Prepared] | None) -> Suite:
    """The suite with nothing left open. Raises UserError where nothing tells how much memory a model takes."""
    choices: list[MachineChoice] = []
    asked = suite.left_open
    if asked.precision:
        precision, why = precision_for(machine)
        suite = _with(suite, PRECISION, precision, precision.model_dump(mode="json"))
        choices.append(MachineChoice(setting=PRECISION, asked=AUTO, taken=precision.name, why=why))
    if asked.micro_batch_size is not None:
        most = asked.micro_batch_size.at_most
        size, why = _size_that_fits(suite, most, machine, prepared)
        suite = _with(suite, MICRO_BATCH_SIZE, size, size)
        words = f"{AT_MOST} {most}"
        choices.append(MachineChoice(setting=MICRO_BATCH_SIZE, asked=words, taken=str(size), why=why))
    return suite.model_copy(update={"left_open": LeftOpen(machine_choices=choices)}) if choices else suite


def _with(suite: Suite, setting: str, value: object, plain: object) -> Suite:
    """Every option with this value, which the shared choices of the resolved file say as `plain`."""
    options = [
        option.model_copy(update={"choices": option.choices.model_copy(update={setting: value})})
        for option in suite.options
    ]
    resolved = {**suite.resolved, "choices": {**suite.resolved.get("choices", {}), setting: plain}}
    return suite.model_copy(update={"options": options, "resolved": resolved})


def expected_peak_bytes(suite: Suite, option: Option, ranks: int, prepared: Prepared | None) -> int | None:
    """Of a GPU's memory; None: on a CPU, or of a model that is not known here."""
    if suite.device != "cuda":
        return None
    job = suite.job_of(option)
    config = config_of(job.model, vocab_size_of(suite, option, prepared), job.seq_len)
    need = None if config is None else memory_need(job, option.built, config, ranks)
    return None if need is None else round(sum(need))


def smallest_gpu(machine: Machine) -> tuple[str, int] | None:
    """Name and memory in bytes of the GPU that has least; None: none tells."""
    known = [(gpu.memory_total_bytes, gpu.name) for gpu in machine.gpus if gpu.memory_total_bytes is not None]
    return min(((name, total) for total, name in known), key=lambda found: found[1], default=None)


def _size_that_fits(
    suite: Suite, at_most: int, machine: Machine, prepared: Mapping[str, Prepared] | None
) -> tuple[int, str]:
    sizes = _sizes(suite, at_most, machine)
    gpu = smallest_gpu(machine) if suite.device == "cuda" else None
    if gpu is None:
        return sizes[0], "on a CPU memory sets no bound" if suite.device == "cpu" else "no GPU reports its memory"
    (name, total), larger = gpu, ""
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
            return size, f"{option} is expected to take {units.size(peak)}, at most {bound}{larger}"
        many = f"{size} sequence{'s' if size > 1 else ''}"
        larger = f"; with {many} {option} would take {units.size(peak)}"
    return sizes[-1], f"none fits into {bound}{larger}, so that trials may run out of memory"


def _sizes(suite: Suite, at_most: int, machine: Machine) -> list[int]:
    """Those that cut every option's step into whole micro-batches, the largest first."""
    shares = []
    for option in suite.options:
        step, ranks = suite.job_of(option).global_batch_size, option.choices.ranks(machine)
        shares.append(step // ranks if ranks and step % ranks == 0 else 1)
    common = math.gcd(*shares)
    return [size for size in range(min(at_most, common), 0, -1) if common % size == 0]


def _most_demanding(
    suite: Suite, size: int, machine: Machine, prepared: Mapping[str, Prepared]
) -> tuple[str, int | None]:
    """The option that takes most, of those that can run here, else of all, and its bytes; None: nobody can tell."""
    options = _with(suite, MICRO_BATCH_SIZE, size, size).options
    demands: list[tuple[str, int]] = []
    for option in [o for o in options if _runs(o, machine)] or options:
        ranks = option.choices.ranks(machine)
        peak = expected_peak_bytes(suite, option, ranks, prepared.get(option.name))
        if peak is None:
            return option.name, None
        demands.append((option.name, peak))
    return max(demands, key=lambda demand: demand[1])

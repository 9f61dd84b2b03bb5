"""What runs before the contest: the values that tuning tries, and its stages as suites of their own."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from selectbench.choices import Choices
from selectbench.choices.choice import Choice
from selectbench.suite.command import CommandChoices, CommandJob
from selectbench.suite.job import Eval, Job
from selectbench.suite.suite import (
    CONTROL,
    DEFAULT_N,
    AnyJob,
    BestOf,
    Option,
    Range,
    Suite,
    Tune,
    Values,
    differences,
)

AnyOption = Choices | CommandChoices

_DIGITS = 3
"""Significant ones of a value: a learning rate is not known better."""


@dataclass(frozen=True)
class Axis:
    """Where an option's setting is looked for."""

    path: str
    low: float
    high: float
    logarithmic: bool

    def at(self, share: float) -> float:
        """The value at a share of the way from the low end, 0, to the high one, 1; beyond them too."""
        value = self.low + share * (self.high - self.low)
        if self.logarithmic:
            value = self.low * (self.high / self.low) ** share
        return float(f"{value:.{_DIGITS}g}")

    def share(self, value: float) -> float:
        """Where a value lies."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axes_of(tune: Tune, choices: AnyOption) -> list[Axis]:
    """Of the settings that the option has. Raises ValueError for one whose range is not known."""
    return [axis(path, found, choices) for path, found in tune.parameters.items() if has(choices, path)]


def has(choices: AnyOption, path: str) -> bool:
    """Whether the option has the setting."""
    if isinstance(choices, CommandChoices):
        return path in choices.values
    dimension, _, setting = path.partition(".")
    return setting in getattr(type(getattr(choices, dimension, None)), "model_fields", {})


def axis(path: str, found: Range, choices: AnyOption) -> Axis:
    """The range of the suite, or the one of the option's class. Raises ValueError where there is neither."""
    if ends := found.log or found.linear:
        return Axis(path, ends[0], ends[1], found.log is not None)
    chosen = choices.optimizer if path == "optimizer.lr" and isinstance(choices, Choices) else None
    if chosen is None or chosen.lr_range is None:
        name = getattr(getattr(choices, path.partition(".")[0]), "name", "")
        raise ValueError(f"no range is known for {path} of {name}: give one, such as {{log: [1e-4, 1e-2]}}")
    low, high = chosen.lr_range
    return Axis(path, low, high, True)


def with_values(choices: AnyOption, values: Values) -> AnyOption | None:
    """The option with these settings; None where one is out of its setting's bounds."""
    if isinstance(choices, CommandChoices):
        return choices.but(**values)
    for path, value in values.items():
        dimension, _, setting = path.partition(".")
        before = getattr(choices, dimension)
        try:
            after: object = value
            if isinstance(before, Choice):
                after = type(before).model_validate({**before.model_dump(), setting: value})
        except ValidationError:
            return None
        choices = choices.but(**{dimension: after})
    return choices


def first_values(tune: Tune, axes: Sequence[Axis]) -> list[Values]:
    """Of one setting a grid, of several a sequence that fills their box evenly."""
    if len(axes) > 1:
        from scipy.stats import qmc  # half a second that most suites need not pay

        # A scrambled Sobol sequence (Sobol 1967; Owen 1998), as scipy draws it.
        sampler = qmc.Sobol(len(axes), scramble=True, seed=tune.seed)
        points = sampler.random_base2(math.ceil(math.log2(tune.first_trials)))[: tune.first_trials]
        return [{a.path: a.at(float(s)) for a, s in zip(axes, point, strict=True)} for point in points]
    (only,) = axes
    n = tune.first_trials if len(tune.parameters) == 1 else tune.trials or DEFAULT_N
    return [{only.path: only.at(i / (n - 1))} for i in range(n)]


def beyond(axis: Axis, tried: Sequence[float], *, upwards: bool) -> float:
    """One more value past an end of those tried, as far as the two at that end lie apart."""
    shares = sorted(map(axis.share, tried))
    last, before = (shares[-1], shares[-2]) if upwards else (shares[0], shares[1])
    return axis.at(2 * last - before)


def between(axis: Axis, value: float, other: float) -> float:
    """The value half-way between two."""
    return axis.at((axis.share(value) + axis.share(other)) / 2)


def tuning_suite(suite: Suite, tried: Mapping[str, Sequence[Values]]) -> Suite:
    """Trials for quality of these settings, by option; each completes its own, shorter schedule."""
    assert suite.tune is not None
    return _stage(suite, tried, tuning_job(suite), suite.tune.seed)


def speed_suite(suite: Suite, tried: Mapping[str, Sequence[Values]]) -> Suite:
    """Short trials of speed alone, at rates that none diverges at: what a step takes does not depend on them."""
    assert suite.best_of is not None
    return _at_low_rates(_stage(suite, tried, speed_job(suite), suite.best_of.seed))


def _at_low_rates(stage: Suite) -> Suite:
    def slow(option: Option) -> Option:
        optimizer = option.built.optimizer
        lowest = min([optimizer.lr, *(optimizer.lr_range or [])])
        return option.but(choices=with_values(option.choices, {"optimizer.lr": lowest}) or option.choices)

    return stage.but(options=[slow(option) for option in stage.options])


SCREENING_STEPS = 10
"""Timed steps of a screening trial of the largest global batch at least, after the job's warm-up steps."""
SCREENING_SECONDS = 1.0
"""Timed at least: of less, a trial's speed is mostly chance."""


def screening_seeds(suite: Suite) -> list[int]:
    """Of an option's first trial and of its second one: none of the contest's."""
    return _unused_seeds(suite, 2000, 2)


def _unused_seeds(suite: Suite, first: int, n: int) -> list[int]:
    return [seed for seed in range(first, first + n + len(suite.seeds)) if seed not in suite.seeds][:n]


def without(suite: Suite, names: Collection[str]) -> Suite:
    """The suite without these options; the very suite where there is none of them."""
    return suite.but(options=[o for o in suite.options if o.name not in names]) if names else suite


def screening_suite(suite: Suite) -> Suite:
    """Two short trials of speed of every option, of which the records tell which are run (`analysis.screening`)."""
    stage = suite.but(seeds=screening_seeds(suite), save="none")
    steps = suite.job.timing.warmup_steps + SCREENING_STEPS
    if (command := suite.command) is not None:  # its schedule is the script's, and goes on as if for all steps
        return stage.but(job=command.but(stop=min(command.stops_after, steps), eval="none"))
    timing = suite.built.timing.but(min_timed_seconds=SCREENING_SECONDS)
    return _at_low_rates(stage.but(job=_short_job(suite, steps).but(timing=timing)))


INTERFERENCE_PAIRS = 5
"""Of trials of the baseline, alone and beside neighbours: of speeds that vary by 0.5 %, so many show an equivalence
within 1 % in nine of ten runs."""


def interference_seeds(suite: Suite) -> list[int]:
    """Of each pair's trial alone and of the one beside neighbours, in turn: none of the contest's."""
    return _unused_seeds(suite, 3000, 2 * INTERFERENCE_PAIRS)


def interference_suite(suite: Suite) -> Suite:
    """Short trials of speed of every option, timed for as long as a trial is; the baseline's are recorded."""
    short = screening_suite(suite).but(seeds=interference_seeds(suite))
    if suite.command is not None:
        return short
    seconds = max(SCREENING_SECONDS, suite.built.timing.least_seconds(suite.device))
    return short.but(job=short.built.but(timing=short.built.timing.but(min_timed_seconds=seconds)))


REPEATED_STEPS = 8
"""Of the short trial that shows whether a script does the same when it is started twice."""


def repeat_suite(suite: Suite) -> Suite:
    """The baseline's command with the first seed once more, for a few steps."""
    job = suite.command
    assert job is not None
    short = job.but(stop=min(REPEATED_STEPS, job.stops_after), eval="none")
    return suite.but(job=short, options=[suite.option(suite.baseline)], seeds=suite.seeds[:1], control=False)


def tuning_job(suite: Suite) -> AnyJob:
    """The job within the tuning's budget: warm-up in proportion, one evaluation, at the end.

    Where options set global batches of their own, the budget is rounded up until all divide its tokens.
    """
    job, tune = suite.job, suite.tune
    assert tune is not None
    if isinstance(job, CommandJob):
        return job.but(max_steps=tune.budget.steps(job.max_steps), stop="at_max_steps")
    assert isinstance(job.eval, Eval)
    steps = job.steps_for_all(tune.budget.steps(job.max_steps), _global_batch_sizes(suite))
    scores = job.eval.scores if tune.metric in job.scored else []
    return _shortened(job, steps).but(eval=job.eval.but(every_steps=None, at_start=False, scores=scores))


def speed_job(suite: Suite) -> Job:
    """A few steps without an evaluation: as many as asked for of the largest global batch, more of smaller ones."""
    assert suite.best_of is not None
    return _short_job(suite, suite.best_of.max_steps)


def _short_job(suite: Suite, max_steps: int) -> Job:
    job, sizes = suite.built, _global_batch_sizes(suite)
    steps = math.ceil(max_steps * max(sizes) / job.global_batch_size)
    return _shortened(job, job.steps_for_all(steps, sizes)).but(eval="none")


def _global_batch_sizes(suite: Suite) -> list[int]:
    return [suite.built.of(option.built).global_batch_size for option in suite.options]


def _shortened(job: Job, steps: int) -> Job:
    schedule = job.lr_schedule.but(warmup_steps=round(job.lr_schedule.warmup_steps * steps / job.max_steps))
    timing = job.timing.but(min_timed_seconds=job.timing.min_timed_seconds or 0.0)
    return job.but(max_steps=steps, lr_schedule=schedule, timing=timing)


def _stage(suite: Suite, tried: Mapping[str, Sequence[Values]], job: AnyJob, seed: int) -> Suite:
    options = [
        Option(name=label(name, values), choices=_settled(suite.option(name).choices, values), differs_in=[],
               tunes=name, tried=values)
        for name, every in tried.items() for values in every
    ]  # fmt: skip
    baseline = options[0].name
    return suite.but(job=job, options=options, baseline=baseline, seeds=[seed], control=False, save="none")


def label(option: str, values: Values) -> str:
    """`adamw lr=0.003`."""
    return " ".join([option, *(f"{path.rpartition('.')[2]}={value:g}" for path, value in values.items())])


def with_settings(suite: Suite, chosen: Mapping[str, Values]) -> Suite:
    """The suite of the contest: options with what was found best for them."""
    own = {name: dict(values) for name, values in chosen.items()}
    if suite.control and suite.baseline in own:
        own[CONTROL] = own[suite.baseline]
    choices = {o.name: _settled(o.choices, own.get(o.name, {})) for o in suite.options}
    base = choices[suite.baseline]
    return suite.but(options=[
        o.but(choices=choices[o.name], differs_in=differences(suite.job, choices[o.name], base))
        for o in suite.options
    ])  # fmt: skip


def _settled(choices: AnyOption, values: Values) -> AnyOption:
    found = with_values(choices, values)
    assert found is not None, "values out of bounds are never tried"
    return found


def sizes_to_try(best_of: BestOf, job: Job, ranks: int) -> list[int]:
    """Micro-batch sizes that cut the step of an option's job for so many ranks, the smallest first."""
    share = job.global_batch_size // ranks
    sizes = best_of.micro_batch_size
    if sizes == "auto":
        sizes = [1 << power for power in range(share.bit_length()) if 1 << power <= share]
    return sorted(size for size in sizes if job.global_batch_size % (size * ranks) == 0)

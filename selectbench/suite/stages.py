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
"""Significant digits of a value that is tried: nobody needs a learning rate more exactly."""


@dataclass(frozen=True)
class Axis:
    """The range in which the best value of an option's setting is searched."""

    path: str
    low: float
    high: float
    logarithmic: bool

    def at(self, share: float) -> float:
        """The value at a share of the way from the low end, 0, to the high end, 1; shares may be outside [0, 1]."""
        value = self.low + share * (self.high - self.low)
        if self.logarithmic:
            value = self.low * (self.high / self.low) ** share
        return float(f"{value:.{_DIGITS}g}")

    def share(self, value: float) -> float:
        """The share of the way from the low end to the high end at which a value lies."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axes_of(tune: Tune, choices: AnyOption) -> list[Axis]:
    """The axes of the tuned settings that the option has. Raises ValueError for one whose range is not known."""
    return [axis(path, ends, choices) for path, ends in tune.parameters.items() if has_setting(choices, path)]


def has_setting(choices: AnyOption, path: str) -> bool:
    """Whether the option has the setting."""
    if isinstance(choices, CommandChoices):
        return path in choices.values
    dimension, _, setting = path.partition(".")
    return setting in getattr(type(getattr(choices, dimension, None)), "model_fields", {})


def axis(path: str, given: Range, choices: AnyOption) -> Axis:
    """The axis of the suite's range, or of the option's class. Raises ValueError if neither gives a range."""
    if ends := given.log or given.linear:
        return Axis(path, ends[0], ends[1], given.log is not None)
    chosen = choices.optimizer if path == "optimizer.lr" and isinstance(choices, Choices) else None
    if chosen is None or chosen.lr_range is None:
        name = getattr(getattr(choices, path.partition(".")[0]), "name", "")
        raise ValueError(f"no range is known for {path} of {name}: give one, such as {{log: [1e-4, 1e-2]}}")
    low, high = chosen.lr_range
    return Axis(path, low, high, True)


def with_values(choices: AnyOption, values: Values) -> AnyOption | None:
    """The option with these settings; None if one of the values is out of its setting's bounds."""
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
    """The values that are tried first: a grid of one setting, or points that fill the box of several evenly."""
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
    """One more value beyond an end of those tried, at the distance of the last two at that end."""
    shares = sorted(map(axis.share, tried))
    last, before = (shares[-1], shares[-2]) if upwards else (shares[0], shares[1])
    return axis.at(2 * last - before)


def between(axis: Axis, value: float, other: float) -> float:
    """The value half-way between two, on the axis's scale."""
    return axis.at((axis.share(value) + axis.share(other)) / 2)


def tuning_suite(suite: Suite, tried: Mapping[str, Sequence[Values]]) -> Suite:
    """The suite whose trials show the quality of these settings, by option; each completes a shorter schedule."""
    assert suite.tune is not None
    return _stage(suite, tried, tuning_job(suite), suite.tune.seed)


def speed_suite(suite: Suite, tried: Mapping[str, Sequence[Values]]) -> Suite:
    """The suite of short trials that show speed alone, at learning rates at which no option diverges.

    The time of a step does not depend on the learning rate.
    """
    assert suite.best_of is not None
    return _at_low_rates(_stage(suite, tried, speed_job(suite), suite.best_of.seed))


def _at_low_rates(stage: Suite) -> Suite:
    def at_low_rate(option: Option) -> Option:
        optimizer = option.built.optimizer
        lowest = min([optimizer.lr, *(optimizer.lr_range or [])])
        return option.but(choices=with_values(option.choices, {"optimizer.lr": lowest}) or option.choices)

    return stage.but(options=[at_low_rate(option) for option in stage.options])


SCREENING_STEPS = 10
"""Least number of timed steps of a screening trial, at the largest global batch, after the job's warm-up steps."""
SCREENING_SECONDS = 1.0
"""Least time that is timed in a screening trial: the speed of a shorter one is mostly chance."""


def screening_seeds(suite: Suite) -> list[int]:
    """The seeds of each option's two screening trials; the contest uses neither."""
    return suite.unused_seeds(2, 2000)


def without(suite: Suite, names: Collection[str]) -> Suite:
    """The suite without these options; the suite itself if no names are given."""
    return suite.but(options=[o for o in suite.options if o.name not in names]) if names else suite


def screening_suite(suite: Suite) -> Suite:
    """The suite of two short trials of speed of every option; their records decide which options are run."""
    stage = suite.but(seeds=screening_seeds(suite), save="none")
    steps = suite.job.timing.warmup_steps + SCREENING_STEPS
    if (command := suite.command) is not None:  # its schedule is the script's, and goes on as if for all steps
        return stage.but(job=command.but(stop=min(command.stops_after, steps), eval="none"))
    timing = suite.built.timing.but(min_timed_seconds=SCREENING_SECONDS)
    return _at_low_rates(stage.but(job=_short_job(suite, steps).but(timing=timing)))


INTERFERENCE_PAIRS = 5
"""Pairs of trials of the baseline, one alone and one with neighbours: if speeds vary by 0.5 %, so many pairs show
an equivalence within 1 % in nine of ten runs."""


def interference_seeds(suite: Suite) -> list[int]:
    """The seeds of each pair's trial alone and its trial with neighbours, in turn; the contest uses none."""
    return suite.unused_seeds(2 * INTERFERENCE_PAIRS, 3000)


def interference_suite(suite: Suite) -> Suite:
    """The suite of short trials of speed, timed as long as the contest's; only the baseline's are recorded."""
    short = screening_suite(suite).but(seeds=interference_seeds(suite))
    if suite.command is not None:
        return short
    seconds = max(SCREENING_SECONDS, suite.built.timing.least_seconds(suite.device))
    return short.but(job=short.built.but(timing=short.built.timing.but(min_timed_seconds=seconds)))


REPEATED_STEPS = 8
"""Steps of the short trial that shows whether a script does the same when it is started twice."""


def repeat_suite(suite: Suite) -> Suite:
    """The suite of one short trial that repeats the baseline's command with the first seed."""
    job = suite.command
    assert job is not None
    short = job.but(stop=min(REPEATED_STEPS, job.stops_after), eval="none")
    return suite.but(job=short, options=[suite.option(suite.baseline)], seeds=suite.seeds[:1], control=False)


def tuning_job(suite: Suite) -> AnyJob:
    """The job of a tuning trial, within its budget: warm-up in proportion, one evaluation, at the end.

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
    """The job of a speed trial, without an evaluation: `best_of.max_steps` at the largest global batch."""
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
        Option(name=label(name, values), choices=_with_valid(suite.option(name).choices, values), differs_in=[],
               tunes=name, tried=values)
        for name, candidates in tried.items() for values in candidates
    ]  # fmt: skip
    baseline = options[0].name
    return suite.but(job=job, options=options, baseline=baseline, seeds=[seed], control=False, save="none")


def label(option: str, values: Values) -> str:
    """The name of an option with these settings: `adamw lr=0.003`."""
    return " ".join([option, *(f"{path.rpartition('.')[2]}={value:g}" for path, value in values.items())])


def with_settings(suite: Suite, chosen: Mapping[str, Values]) -> Suite:
    """The suite of the contest: every option with its `chosen` settings, those that the search has shown best."""
    settings = {name: dict(values) for name, values in chosen.items()}
    if suite.control and suite.baseline in settings:
        settings[CONTROL] = settings[suite.baseline]
    choices = {o.name: _with_valid(o.choices, settings.get(o.name, {})) for o in suite.options}
    base = choices[suite.baseline]
    return suite.but(options=[
        o.but(choices=choices[o.name], differs_in=differences(suite.job, choices[o.name], base))
        for o in suite.options
    ])  # fmt: skip


def _with_valid(choices: AnyOption, values: Values) -> AnyOption:
    changed = with_values(choices, values)
    assert changed is not None, "values out of bounds are never tried"
    return changed


def sizes_to_try(best_of: BestOf, job: Job, ranks: int) -> list[int]:
    """Micro-batch sizes into which the step of an option's job divides on so many ranks, the smallest first."""
    share = job.global_batch_size // ranks
    sizes = best_of.micro_batch_size
    if sizes == "auto":
        sizes = [1 << power for power in range(share.bit_length())]
    return sorted(size for size in sizes if job.global_batch_size % (size * ranks) == 0)

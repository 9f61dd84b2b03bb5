"""What runs before the contest, as suites of their own: every option there is one setting that is tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from selectbench.choices import Choices
from selectbench.suite.check import differences
from selectbench.suite.job import Eval, Job
from selectbench.suite.suite import CONTROL, Option, Suite
from selectbench.suite.tune import BestOf, Values, with_values

MICRO_BATCH_SIZE = "micro_batch_size"


def tuned_options(suite: Suite) -> list[Option]:
    """Those that are looked for: the control is the baseline, and takes what the baseline takes."""
    return [option for option in suite.options if not (suite.control and option.name == CONTROL)]


def tuning_suite(suite: Suite, tried: Mapping[str, Sequence[Values]]) -> Suite:
    """Trials for quality of these settings, by option; each completes its own, shorter schedule."""
    assert suite.tune is not None
    return _stage(suite, tried, tuning_job(suite), suite.tune.seed)


def speed_suite(suite: Suite, tried: Mapping[str, Sequence[Values]]) -> Suite:
    """Short trials of speed alone, at rates that none diverges at: what a step takes does not depend on them."""
    assert suite.best_of is not None
    stage = _stage(suite, tried, speed_job(suite), suite.best_of.seed)
    return stage.model_copy(update={"options": [_at_a_safe_rate(option) for option in stage.options]})


def _at_a_safe_rate(option: Option) -> Option:
    """At the low end of its optimizer's range, where that is known and lower."""
    optimizer = option.choices.optimizer
    if optimizer.lr_range is None or optimizer.lr <= optimizer.lr_range[0]:
        return option
    slow = with_values(option.choices, {"optimizer.lr": optimizer.lr_range[0]})
    return option if slow is None else option.model_copy(update={"choices": slow})


def tuning_job(suite: Suite) -> Job:
    """The job within the tuning's budget: warm-up in proportion, one evaluation, at the end.

    Where options set global batches of their own, the budget is rounded up until all divide its tokens.
    """
    job, tune = suite.job, suite.tune
    assert tune is not None
    assert isinstance(job.eval, Eval)
    steps = job.steps_for_all(tune.budget.steps(job.max_steps), _global_batch_sizes(suite))
    scored = tune.metric in job.scored
    at_end = job.eval.model_copy(
        update={"every_steps": None, "at_start": False, **({} if scored else {"scores": []})}
    )
    return _shortened(job, steps).model_copy(update={"eval": at_end})


def speed_job(suite: Suite) -> Job:
    """A few steps without an evaluation: as many as asked for of the largest global batch, more of smaller ones."""
    job, best_of = suite.job, suite.best_of
    assert best_of is not None
    sizes = _global_batch_sizes(suite)
    steps = math.ceil(best_of.max_steps * max(sizes) / job.global_batch_size)
    return _shortened(job, job.steps_for_all(steps, sizes)).model_copy(update={"eval": "none"})


def _global_batch_sizes(suite: Suite) -> list[int]:
    return [suite.job.of(option.choices).global_batch_size for option in suite.options]


def _shortened(job: Job, steps: int) -> Job:
    warmup = round(job.lr_schedule.warmup_steps * steps / job.max_steps)
    schedule = job.lr_schedule.model_copy(update={"warmup_steps": warmup})
    timing = job.timing.model_copy(update={"min_timed_seconds": job.timing.min_timed_seconds or 0.0})
    return job.model_copy(update={"max_steps": steps, "lr_schedule": schedule, "timing": timing})


def _stage(suite: Suite, tried: Mapping[str, Sequence[Values]], job: Job, seed: int) -> Suite:
    options = [
        Option(name=label(name, values), choices=_settled(suite.option(name).choices, values), differs_in=[],
               tunes=name, tried=values)
        for name, every in tried.items() for values in every
    ]  # fmt: skip
    return suite.model_copy(
        update={
            "job": job,
            "options": options,
            "baseline": options[0].name,
            "seeds": [seed],
            "control": False,
        }
    )


def label(option: str, values: Values) -> str:
    """`adamw lr=0.003`."""
    return " ".join([option, *(f"{path.rpartition('.')[2]}={value:g}" for path, value in values.items())])


def settled(suite: Suite, chosen: Mapping[str, Values]) -> Suite:
    """The suite of the contest: options with what was found best for them."""
    own = {name: dict(values) for name, values in chosen.items()}
    if suite.control and suite.baseline in own:
        own[CONTROL] = own[suite.baseline]
    choices = {o.name: _settled(o.choices, own.get(o.name, {})) for o in suite.options}
    base = choices[suite.baseline]
    options = [
        o.model_copy(
            update={"choices": choices[o.name], "differs_in": differences(suite.job, choices[o.name], base)}
        )
        for o in suite.options
    ]
    return suite.model_copy(update={"options": options})


def _settled(choices: Choices, values: Values) -> Choices:
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

"""The warm-up of options whose optimizer sets one, by itself or by tuning, in steps."""

from __future__ import annotations

from selectbench.suite.suite import Suite


def own_warmups(suite: Suite) -> str:
    """`adamw 12 of 60 steps; sgd 3 of 60 steps`; empty where every option has the job's."""
    own = [option for option in suite.options if option.choices.optimizer.warmup_fraction is not None]
    jobs = [(option.name, suite.job.of(option.choices)) for option in own]
    return "; ".join(f"{name} {job.lr_schedule.warmup_steps:,} of {job.max_steps:,} steps" for name, job in jobs)

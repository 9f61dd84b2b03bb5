"""What a trial and its server are told."""

from __future__ import annotations

import os
from pathlib import Path

from selectbench.choices.model import OwnModel, PretrainedModel
from selectbench.data.weights_content import pinned_model
from selectbench.launch.preparation import Preparation
from selectbench.machine import usable_cores
from selectbench.plan.plan import PlannedTrial
from selectbench.record.run_folder import TRIALS, WEIGHTS
from selectbench.record.wire import Order
from selectbench.suite.job import Job
from selectbench.suite.suite import Option


def make_order(preparation: Preparation, planned: PlannedTrial, folder: Path) -> Order:
    """What the worker is told."""
    suite = preparation.suite
    choices = suite.option(planned.trial.option).choices
    world_size = preparation.plan.planned(planned.trial.option).world_size
    return Order(
        trial=planned.trial,
        job=_job_of(preparation, planned.trial.option),
        choices=choices,
        device=suite.device,
        threads=rank_threads(world_size),
        world_size=world_size,
        data_folder=str(preparation.prepared[planned.trial.option].folder),
        trial_folder=str((folder / TRIALS / planned.trial.trial_id).resolve()),
        weights_folder=str((folder / WEIGHTS).resolve()),
        code=suite.code,
        min_timed_seconds=suite.job.timing.least_seconds(suite.device),
    )


def _job_of(preparation: Preparation, option: str) -> Job:
    job = preparation.suite.job.of(preparation.suite.option(option).choices)
    return job.model_copy(update={"model": pinned_model(job.model, preparation.plan.pretrained.get(option))})


def rank_threads(world_size: int) -> int:
    """Threads of a rank's CPU operations: OMP_NUM_THREADS where the user set it, else its share of the cores."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdigit() and int(stated) > 0 else max(1, int(usable_cores()) // world_size)


def preload(preparation: Preparation, python: str | None) -> list[str]:
    """What an interpreter's server imports once: the worker, the model's family, what the choices name."""
    modules = ["selectbench.worker.trial"]
    for planned in preparation.plan.options:
        choices = planned.option.choices
        if planned.unsupported is None and choices.python == python:
            modules += _model_modules(preparation, planned.option)
            modules += [name for choice in choices.each().values() for name in choice.preload]
    return list(dict.fromkeys(modules))


def _model_modules(preparation: Preparation, option: Option) -> list[str]:
    model, vocab_size = preparation.suite.job.of(option.choices).model, preparation.prepared[option.name].vocab_size
    if isinstance(model, OwnModel):  # own code is imported in the trial alone: what it does is the trial's
        return []
    if isinstance(model, PretrainedModel):
        family = model.model_type
        return [f"transformers.models.{family}.modeling_{family}"] if family else []
    family = model.transformers_config(vocab_size, preparation.suite.job.seq_len)["model_type"]
    return [f"transformers.models.{family}.modeling_{family}"]

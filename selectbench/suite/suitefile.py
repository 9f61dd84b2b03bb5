"""The keys of a suite file, after a profile and the command line were laid over it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from selectbench.strict import Strict
from selectbench.suite.job import Job
from selectbench.suite.suite import Cost, Decide, Limits, MeterSettings
from selectbench.suite.tune import BestOf, Seed, Tune


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

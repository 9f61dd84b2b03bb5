"""What tuning and the search for the fastest ask of a suite: settings that options have, seeds of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from selectbench.choices import Choice, Choices
from selectbench.errors import did_you_mean
from selectbench.suite.document import Node, Problems
from selectbench.suite.evaluate import OWN_SCORE, SCORES
from selectbench.suite.grid import DIMENSIONS
from selectbench.suite.job import Job
from selectbench.suite.search_space import axis, has
from selectbench.suite.suitefile import SuiteFile
from selectbench.suite.tune import BestOf, Range, Tune


def check_tune(
    content: SuiteFile, rows: Sequence[Choices], document: Node, problems: Problems, *, complete: bool
) -> None:
    """Notes what is wrong, with its place. Not `complete`: rows that are wrong themselves are not among `rows`."""
    if content.tune is not None:
        _check_seed("tune", content.tune.seed, content, document, problems)
        _check_quality(content, document.at(["tune"]), problems)
        for path, found in content.tune.parameters.items():
            node = document.at(["tune", "parameters"]).mapping[path]
            _check_parameter(path, found, rows, node, problems, complete=complete)
        _check_every_row(content.tune, rows, document.at(["tune", "parameters"]), problems)
    if content.best_of is not None:
        _check_seed("best_of", content.best_of.seed, content, document, problems)
    if content.best_of is not None and complete:
        _check_sizes(content.best_of, content.job, rows, document.at(["best_of", "micro_batch_size"]), problems)


def _check_seed(key: str, seed: int, content: SuiteFile, document: Node, problems: Problems) -> None:
    """The command line is blamed where it gave the contest its seeds, else the search's own seed."""
    if seed not in content.seeds:
        return
    flattered = "too: what was chosen on a seed is flattered by it"
    contests = document.at(["seeds", content.seeds.index(seed)])
    if contests.place.line == 0:
        problems.at(contests, f"{key} uses seed {seed} {flattered}; give the contest other seeds")
        return
    node = document.at([key])
    own = node.mapping.get("seed", node)
    problems.at(own, f"the contest uses seed {seed} {flattered}; give another `seed`")


def _check_quality(content: SuiteFile, node: Node, problems: Problems) -> None:
    tune, job = content.tune, content.job
    assert tune is not None
    if not job.evaluates:
        problems.at(node, "tuning needs an evaluation, but job.eval is none")
    elif tune.metric in (*SCORES, OWN_SCORE) and tune.metric not in job.scored:
        problems.at(node.mapping.get("metric", node), f"{tune.metric} is not among job.eval.scores")
    steps = tune.budget.steps(job.max_steps)
    if steps > job.max_steps:
        place = node.at(["budget", "max_steps"]) if "budget" in node.mapping else node
        problems.at(place, f"a tuning trial of {steps} steps is longer than the job's {job.max_steps}")


def _check_parameter(
    path: str, found: Range, rows: Sequence[Choices], node: Node, problems: Problems, *, complete: bool
) -> None:
    dimension, _, setting = path.partition(".")
    place = node.key_place or node.place
    if dimension not in DIMENSIONS or not setting or "." in setting:
        hint = did_you_mean(dimension, DIMENSIONS) or " (such as optimizer.lr)"
        problems.add(place, node.path, f"{path!r} is no setting of a choice{hint}")
        return
    having = [choices for choices in rows if has(choices, path)]
    if not having and complete:
        known = {name for c in rows for name in getattr(type(getattr(c, dimension)), "model_fields", {})}
        problems.add(place, node.path, f"no option has {path}{did_you_mean(setting, sorted(known))}")
    for choices in having:
        _check_range(path, found, choices, node, problems)


def _check_range(path: str, found: Range, choices: Choices, node: Node, problems: Problems) -> None:
    dimension, _, setting = path.partition(".")
    chosen = getattr(choices, dimension)
    if not isinstance(chosen, Choice) or not _takes_numbers(chosen, setting):
        problems.at(node, f"{path} is no number to tune, it is {getattr(chosen, setting)!r}")
        return
    try:
        limits = axis(path, found, choices)
    except ValueError as error:
        problems.at(node, str(error))
        return
    for end in (limits.low, limits.high):
        if problem := _refused(chosen, setting, end):
            problems.at(node, f"{path} of {choices.optimizer.name}: {end:g} {problem}")


def _takes_numbers(chosen: Choice, setting: str) -> bool:
    """Whether its type is float, or float among others, as where None means that another value holds."""
    annotation = type(chosen).model_fields[setting].annotation
    return any(float in (kind, *get_args(kind)) for kind in (annotation, *get_args(annotation)))


def _refused(chosen: Choice, setting: str, value: float) -> str | None:
    from pydantic import ValidationError

    try:
        type(chosen).model_validate({**chosen.model_dump(), setting: value})
    except ValidationError as error:
        return f"is out of its bounds: {error.errors()[0]['msg']}"
    return None


def _check_every_row(tune: Tune, rows: Sequence[Choices], node: Node, problems: Problems) -> None:
    for choices in rows:
        known = [path for path in tune.parameters if "." in path and any(has(c, path) for c in rows)]
        if known and not any(has(choices, path) for path in known):
            problems.at(node, f"{choices.optimizer.name} has none of {', '.join(tune.parameters)}: nothing to tune")


def _check_sizes(best_of: BestOf, job: Job, rows: Sequence[Choices], node: Node, problems: Problems) -> None:
    if best_of.micro_batch_size == "auto":
        return
    if len(set(best_of.micro_batch_size)) < len(best_of.micro_batch_size):
        problems.at(node, "a size is repeated")
    ranks = {c.world_size for c in rows if c.world_size != "auto"} or {1}
    wholes = sorted({job.of(c).global_batch_size for c in rows})
    shares = [whole // n for n in ranks for whole in wholes if whole % n == 0]  # else that is the mistake
    told = " or ".join(map(str, wholes))
    for item, size in zip(node.items, best_of.micro_batch_size, strict=True):
        if shares and all(share % size for share in shares):
            problems.at(item, f"global_batch_size {told} can't be cut into micro-batches of {size}")

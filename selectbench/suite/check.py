"""What pydantic cannot see in a suite: rows against each other, against the job, and what tuning asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from selectbench.choices import AnyChoices, Choices
from selectbench.choices.choice import Choice, WrongValueError, own_code_problem
from selectbench.choices.execution import interpreter_problem
from selectbench.choices.model import PretrainedModel, config_file, family_problem
from selectbench.errors import did_you_mean
from selectbench.suite.command import (
    CERTIFIED,
    GIVEN,
    RESERVED,
    CommandChoices,
    CommandJob,
    HeldOut,
    names_in,
    program_problem,
    unfilled_placeholders,
)
from selectbench.suite.document import Node, Problems, plain
from selectbench.suite.grid import DIMENSIONS, Row, dimensions, number_in
from selectbench.suite.job import OWN_SCORE, SCORES, Eval, Job, batch_size_problem
from selectbench.suite.metrics import DECIDING, METRICS, SCREENING, Need, Yardstick, deciding, parse_constraint
from selectbench.suite.stages import axis, has_setting
from selectbench.suite.suite import (
    CONTROL,
    MICRO_BATCH_SIZE,
    AnyJob,
    AnySuiteFile,
    BestOf,
    CommandSuiteFile,
    Range,
    SuiteFile,
    Tune,
)
from selectbench.text import quoted


def check_suite(
    content: AnySuiteFile | None, rows: Sequence[tuple[Row, Choices | CommandChoices]], names: list[str],
    document: Node, device: str, problems: Problems, *, quick: bool, has_requested_axes: bool, require_files: bool,
) -> str:  # fmt: skip
    """Notes all that is wrong with a suite's rows and their job, each with its place; returns the baseline's name.

    `content` None: something in it is wrong already; `names`: of all rows, `rows`: those that are valid.
    """
    built = [(row, choices) for row, choices in rows if isinstance(choices, Choices)]
    chosen = [choices for _, choices in built]
    _check_accumulation(built, document, device, problems)
    _check_distinct(rows, document, problems)
    _check_seeds(document, problems)
    for row, choices in rows if require_files else ():
        if choices.python is not None and (problem := interpreter_problem(choices.python)):
            problems.at(row.choices.at(["python"]), problem)
    unmeasured = _unmeasured_metrics(content, chosen, document, device, quick=quick)
    _check_bounds(document, problems, unmeasured)
    if document.value_at("control") is True and CONTROL in names:
        wrong = f"an option is called {CONTROL!r}, the name of the baseline's repetition"
        problems.at(document.mapping["control"], wrong)
    if isinstance(content, CommandSuiteFile):
        commands = [(row, choices) for row, choices in rows if isinstance(choices, CommandChoices)]
        _check_command(content, commands, document, problems, require_files=require_files)
    elif isinstance(content, SuiteFile):
        _check_jobs(built, content.job, document, problems)
        _check_tune(content, chosen, document, problems, complete=len(rows) == len(names))
        _check_references(content, names, document, problems)
    if content is not None:
        _check_searches(content, document, problems)
    return _chosen_baseline(document, names, fall_back=has_requested_axes, problems=problems)


def accumulation_problem(global_batch_size: int, micro_batch_size: int, world_size: int) -> str | None:
    """Why the step can't be cut into whole micro-batches, or None. Sizes in sequences; world_size in ranks."""
    if global_batch_size % (micro_batch_size * world_size) == 0:
        return None
    return (
        f"global_batch_size {global_batch_size} is not a multiple of micro_batch_size {micro_batch_size} "
        f"x world_size {world_size}"
    )


def _check_accumulation(rows: list[tuple[Row, Choices]], document: Node, device: str, problems: Problems) -> None:
    """Every row's step must be whole micro-batches; `auto` ranks are one on a CPU, else known when planning."""
    jobs = number_in(document.value_at("job", "global_batch_size"))
    for row, choices in rows:
        size = choices.global_batch_size or jobs
        if size is None:
            continue
        ranks = 1 if choices.world_size == "auto" and device == "cpu" else choices.world_size
        if ranks != "auto" and (problem := accumulation_problem(size, choices.micro_batch_size, ranks)):
            blamed = "micro_batch_size" if choices.global_batch_size is None else "global_batch_size"
            problems.at(row.choices.at([blamed]), problem)


def _check_distinct(rows: Sequence[tuple[Row, AnyChoices]], document: Node, problems: Problems) -> None:
    """No two rows may have the same name or the same choices, the job's global batch among them.

    Of a row in which something is wrong already its choices are not known.
    """
    size = number_in(document.value_at("job", "global_batch_size"))
    seen: dict[str, str] = {}
    names: set[str] = set()
    wrong = [text for _, text in problems.mistakes]
    for row, choices in rows:
        if any(text.startswith(f"{row.path}.") for text in wrong):
            continue
        if isinstance(choices, Choices):
            choices = choices.but(global_batch_size=choices.global_batch_size or size)
        key = choices.model_dump_json()
        if row.name in names:
            problems.add(row.place, row.path, f"two options are called {quoted(row.name)}")
        elif key in seen:
            problems.add(row.place, row.path, f"{quoted(row.name)} has the same choices as {quoted(seen[key])}")
        names.add(row.name)
        seen.setdefault(key, row.name)


def check_files(document: Node, problems: Problems) -> None:
    """A model's configuration and folders of own code must be there; what the former holds, the job checks."""
    model, options = document.at(["job", "model"]), document.below("options").values()
    _check_model_files(model, problems)
    if document.value_at("choices", "python") is None and not any("python" in o.mapping for o in options):
        for key, named in model.mapping.items():
            if key in ("config", "pretrained") and (problem := family_problem(str(named.value))):
                problems.at(named, problem)
    for folder in document.items_below("code"):
        if isinstance(folder.value, str) and (problem := own_code_problem(folder.value)):
            problems.at(folder, problem)


def _check_model_files(model: Node, problems: Problems) -> None:
    config, named = model.mapping.get("config"), model.mapping.get("pretrained")
    if config is not None and isinstance(path := config.value, str) and path and not config_file(path).exists():
        problems.at(config, f"there is no file {config_file(path)}")
    if named is None or not isinstance(named.value, str) or not named.value:
        return  # validation reports a wrong value
    if problem := PretrainedModel(pretrained=named.value).problem():
        problems.at(named, problem)


def _check_jobs(rows: list[tuple[Row, Choices]], job: Job, document: Node, problems: Problems) -> None:
    """Every row must be able to do the job with the model, the tokenizer and the global batch that it sets."""
    is_text = job.data.needs_tokenizer
    if is_text and any(job.of(choices).tokenizer is None for _, choices in rows):
        problems.at(document.at(["job"]), "required key 'tokenizer' is missing, as in {bpe: 2048}")
    for row, choices in rows:
        size = choices.global_batch_size
        if size is not None and (problem := batch_size_problem(job, size)):
            problems.at(row.choices.at(["global_batch_size"]), problem)
        if choices.tokenizer is not None and not is_text:
            problems.at(row.choices.at(["tokenizer"]), "the data are tokens already: there is nothing to tokenise")
        elif choices.model is not None or choices.tokenizer is not None:
            _check_model_files(row.choices.at(["model"]), problems)
            option_job = job.of(choices)
            try:
                job.check_fits(option_job.model, option_job.tokenizer)
            except ValueError as error:
                reason = error.reason if isinstance(error, WrongValueError) else str(error)
                problems.at(row.choices.at(["model" if choices.model is not None else "tokenizer"]), reason)


def _check_references(content: SuiteFile, names: Sequence[str], document: Node, problems: Problems) -> None:
    """A model behind an API must be asked for what the job's task yields, under a name that no option has."""
    job = content.job
    generates = job.task == "seq2seq" and isinstance(job.eval, Eval) and bool(job.eval.scores)
    for name, reference in content.references.items():
        node = document.at(["references", name])
        if name in (*names, CONTROL):
            problems.at(node, f"an option is called {name!r} too")
        if not generates and (job.task != "causal_lm" or job.data.kind != "text" or not job.evaluates):
            wrong = (
                "a reference is for jobs with `eval: {scores: [...]}` of generated text, or for causal_lm with text"
            )
            problems.at(node, wrong)
        elif generates and reference.prompt is None:
            problems.at(node, "required key 'prompt' is missing, as in `Translate to French: {source}`")
        elif not generates and reference.prompt is not None:
            problems.at(node.at(["prompt"]), "a causal_lm job asks nothing: leave the prompt out")


def tokenizers_differ(choices: Sequence[Choices], job: Job) -> bool:
    """Whether options read different tokens, so that their losses per token can't be compared."""
    return len({job.of(c).tokenizer for c in choices}) > 1


def _check_seeds(document: Node, problems: Problems) -> None:
    """A seed may be given once: repeated, it would count one trial twice."""
    seen: set[str] = set()
    for node in document.items_below("seeds"):
        if str(plain(node)) in seen:
            problems.at(node, f"the seed {plain(node)} is repeated")
        seen.add(str(plain(node)))


def _chosen_baseline(document: Node, names: list[str], *, fall_back: bool, problems: Problems) -> str:
    """The baseline's name; the first row if it is the only one, or if `fall_back` and the file's is gone."""
    node = document.mapping.get("baseline")
    if node is None or node.value is None:
        if len(names) > 1 and not fall_back:
            message = f"required key 'baseline' is missing: which of {', '.join(map(repr, names[:8]))}"
            problems.add(document.place, "", message)
    elif isinstance(node.value, str) and node.value in names:
        return node.value
    elif isinstance(node.value, str) and names and not fall_back and not _is_noted(document, node.value):
        hint = did_you_mean(node.value, names) or f" (known: {', '.join(names[:8])})"
        problems.at(node, f"{quoted(node.value)} is not an option{hint}")
    return names[0] if names else ""


def _is_noted(document: Node, option: str) -> bool:
    """Whether `options`, or this one of them, is no mapping, of which a message was noted already."""
    value = document.at(["options", option]).value
    return value is not None and not isinstance(value, dict)


def _unmeasured_metrics(
    content: AnySuiteFile | None, chosen: Sequence[Choices], document: Node, device: str, *, quick: bool
) -> dict[str, str]:
    """By each metric that may decide and that the job won't yield, the reason; `content` None: it is wrong."""
    job: AnyJob | None = content.job if content else None
    kind = job.data.kind if isinstance(job, Job) else "text" if job is None else "tokens"
    unmet: dict[Need, str] = {}  # by need, why it is not met; what would explain most stands first
    if device == "cpu":
        unmet["gpu"] = "the job runs on the cpu, and only GPUs have meters and a price"
    if "cost" not in document.mapping:
        unmet["price"] = "no price is given: add `cost: {usd_per_gpu_hour: ...}`"
    if not quick and document.value_at("job", "eval") == "none":
        unmet["evaluation"] = "job.eval is none"
    if not quick and job is not None and not job.evaluates_on_the_way:
        how = ": give job.eval an every_steps below max_steps" if isinstance(job, Job) else ""
        unmet["evaluations_on_the_way"] = f"the loss is known at the end alone{how}"
    if isinstance(job, Job) and tokenizers_differ(chosen, job):
        unmet["same_tokens"] = (
            "the options' tokenizers differ, and so does a token: take bits_per_byte, bytes_per_second"
        )
    if kind != "markov":
        unmet["known_entropy"] = "only a markov source says what loss can be reached"
    if kind not in ("text", "chat", "pairs"):
        unmet["text"] = "the data are tokens, of no text"
    reasons: dict[str, str] = {}
    for name in deciding():
        reason = next((text for need, text in unmet.items() if need in METRICS[name].needs), None)
        if reason is None and METRICS[name].scored and (job is None or name not in job.scored):
            key = '"package.module:function"' if name == OWN_SCORE else name
            added = f"scores: [{key}]" if name in DECIDING else f"metrics: {{{name}: ...}}"
            is_command = isinstance(job, CommandJob)
            reason = (
                "nothing is generated by a command that is observed" if is_command else f"add `eval: {{{added}}}`"
            )
        if reason is not None:
            reasons[name] = reason
    return reasons


def _check_bounds(document: Node, problems: Problems, unmeasured: dict[str, str]) -> None:
    """Constraints and limits of the gate must parse, and like the objective be on metrics that are measured."""
    decide, screen = document.mapping.get("decide", document), document.items_below("screen")
    bounds: list[tuple[Node, Yardstick]] = [(n, "baseline") for n in (*decide.items_below("constraints"), *screen)]
    bounds += [(node, "reference") for node in document.items_below("gate")]
    objective = decide.mapping.get("objective")
    metrics = [] if objective is None else [(objective, str(objective.value))]
    for node, against in bounds:
        among = SCREENING if node in screen else ()
        try:
            metrics.append((node, parse_constraint(str(node.value), against, among).metric))
        except ValueError as error:
            problems.at(node, str(error))
    for node, metric in metrics:
        if node in screen and metric not in SCREENING:
            problems.at(node, f"a short trial does not measure {metric}: take one of {', '.join(SCREENING)}")
        elif metric in unmeasured:
            problems.at(node, f"{metric} is not measured: {unmeasured[metric]}")


UNUSED = {"args": {"args"}, MICRO_BATCH_SIZE: {MICRO_BATCH_SIZE, "gradient_accumulation_steps"}}
"""Reserved keys of an option that do nothing unless the command has one of these placeholders."""


def _check_command(
    content: CommandSuiteFile, rows: Sequence[tuple[Row, CommandChoices]], document: Node, problems: Problems, *,
    require_files: bool,
) -> None:  # fmt: skip
    """Notes what is wrong with the command, its options and its files, each with its place."""
    job, node = content.job, document.at(["job", "command"])
    known = dimensions(document)
    if "seed" not in job.names and len(content.seeds) > 1:
        wrong = "has no {seed}, so that every seed would run the same trial: add it, as in `--seed {seed}`"
        problems.at(node, wrong)
    if job.stops_after > job.max_steps:
        problems.at(document.at(["job", "stop"]), f"is after max_steps {job.max_steps}, where the script ends")
    for key in ("best_of", "code", "save"):
        if key in document.mapping and document.mapping[key].value not in ([], "none"):
            problems.at(document.mapping[key], "is for jobs that selectbench builds itself, not for a command")
    for row, choices in rows:
        for key in choices.values.keys() - set(known):
            hint = did_you_mean(key, known) or f": write {{{key}}} into job.command, or arguments into `args`"
            wrong = "it is given by selectbench" if key in GIVEN else f"the command has no such placeholder{hint}"
            problems.at_key(row.choices.at([key]), wrong)
        for key in [key for key in UNUSED if getattr(choices, key) and not UNUSED[key] & set(job.names)]:
            problems.at_key(row.choices.at([key]), f"changes nothing: the command has no {{{key}}}")
        if unfilled := set(names_in([choices.args])) & {*known, *GIVEN}:
            problems.at(row.choices.at(["args"]), f"{{{min(unfilled)}}} is filled in in job.command alone")
        for name in unfilled_placeholders(job, choices):
            wrong = f"the placeholder {{{name}}} has no value"
            near = did_you_mean(name, sorted({*GIVEN, *(choices.values.keys() - set(known))}))
            if name in ("gradient_accumulation_steps", "micro_batch_size"):
                near = ": give job.global_batch_size and micro_batch_size"
            problems.add(row.place, row.path, wrong + (near or f": give {name} in `choices` or in the option"))
        for place, changed in enumerate(choices.may_change):
            if changed not in CERTIFIED:
                hint = did_you_mean(changed, CERTIFIED) or f" (known: {', '.join(CERTIFIED)})"
                problems.at(
                    row.choices.at(["may_change", place]), f"the certificate has no {quoted(changed)}{hint}"
                )
        size, ranks = choices.micro_batch_size, 1 if choices.world_size == "auto" else choices.world_size
        if size and job.global_batch_size and (uncut := accumulation_problem(job.global_batch_size, size, ranks)):
            problems.at(row.choices.at([MICRO_BATCH_SIZE]), uncut)
    if content.tune is not None:
        _check_command_tune(content.tune, [choices for _, choices in rows], document, problems)
    if require_files and not problems.mistakes:
        _check_command_files(job, rows, document, problems)


def _check_command_tune(tune: Tune, rows: Sequence[CommandChoices], document: Node, problems: Problems) -> None:
    known = [name for name in dimensions(document) if name not in RESERVED]
    for path, within in tune.parameters.items():
        parameter = document.at(["tune", "parameters", path])
        values = [choices.values.get(path) for choices in rows]
        if path not in known:
            problems.at_key(parameter, f"is no placeholder{did_you_mean(path.rpartition('.')[2], known)}")
        elif not within.log and not within.linear:
            problems.at(parameter, f"no range is known for {path}: give one, such as {{log: [1e-4, 1e-2]}}")
        elif any(isinstance(value, bool | str) for value in values):
            problems.at(parameter, f"{path} is no number to tune")


def _check_command_files(
    job: CommandJob, rows: Sequence[tuple[Row, CommandChoices]], document: Node, problems: Problems
) -> None:
    if not Path(job.directory).is_dir():
        problems.at(document.at(["job", "directory"]), f"there is no folder {job.directory}")
        return
    held_out = job.eval if isinstance(job.eval, HeldOut) else HeldOut.model_construct()
    tokenizer = f"{held_out.tokenizer}/tokenizer.json" if held_out.tokenizer else None
    for key, path in {"heldout": held_out.heldout, "tokenizer": tokenizer}.items():
        if path is not None and not Path(path).is_file():
            problems.at(document.at(["job", "eval", key]), f"there is no file {path}")
    for _, choices in rows:
        has_interpreter = choices.python is None or interpreter_problem(choices.python) is None
        if has_interpreter and (problem := program_problem(job, choices)) is not None:
            problems.at(document.at(["job", "command"]), problem)


def _check_tune(
    content: SuiteFile, rows: Sequence[Choices], document: Node, problems: Problems, *, complete: bool
) -> None:
    """Notes what is wrong, with its place. `complete` False: `rows` lacks those that are wrong themselves."""
    if (tune := content.tune) is not None:
        parameters = document.at(["tune", "parameters"])
        for path, within in tune.parameters.items():
            _check_parameter(path, within, rows, parameters.mapping[path], problems, complete=complete)
        known = [path for path in tune.parameters if "." in path and any(has_setting(c, path) for c in rows)]
        for choices in rows:
            if known and not any(has_setting(choices, path) for path in known):
                name = choices.optimizer.name
                problems.at(parameters, f"{name} has none of {', '.join(tune.parameters)}: nothing to tune")
    if content.best_of is not None and complete:
        _check_sizes(content.best_of, content.job, rows, document.at(["best_of", MICRO_BATCH_SIZE]), problems)


def _check_searches(content: AnySuiteFile, document: Node, problems: Problems) -> None:
    """Notes a search's seed that the contest uses too, at the contest's seeds if the command line gave them.

    Also notes tuning by what the job does not evaluate, and for more steps than the job has.
    """
    flattered = "too: what was chosen on a seed is flattered by it"
    best_of = None if isinstance(content, CommandSuiteFile) else content.best_of  # a command has none
    for key, search in (("tune", content.tune), ("best_of", best_of)):
        if search is not None and (seed := search.seed) in content.seeds:
            contests = document.at(["seeds", content.seeds.index(seed)])
            if contests.place.line == 0:
                problems.at(contests, f"{key} uses seed {seed} {flattered}; give the contest other seeds")
            else:
                wrong = f"the contest uses seed {seed} {flattered}; give another `seed`"
                problems.at(document.at([key, "seed"]), wrong)
    if (tune := content.tune) is None:
        return
    job, node = content.job, document.at(["tune"])
    if not job.evaluates:
        problems.at(node, "tuning needs an evaluation, but job.eval is none")
    elif tune.metric in (*SCORES, OWN_SCORE) and tune.metric not in job.scored:
        problems.at(node.at(["metric"]), f"{tune.metric} is not among job.eval.scores")
    steps = tune.budget.steps(job.max_steps)
    if steps > job.max_steps:
        wrong = f"a tuning trial of {steps} steps is longer than the job's {job.max_steps}"
        problems.at(node.at(["budget", "max_steps"]), wrong)


def _check_parameter(
    path: str, within: Range, rows: Sequence[Choices], node: Node, problems: Problems, *, complete: bool
) -> None:
    dimension, _, setting = path.partition(".")
    if dimension not in DIMENSIONS or not setting or "." in setting:
        hint = did_you_mean(dimension, DIMENSIONS) or " (such as optimizer.lr)"
        problems.at_key(node, f"{quoted(path)} is no setting of a choice{hint}")
        return
    having = [choices for choices in rows if has_setting(choices, path)]
    if not having and complete:
        known = {name for c in rows for name in getattr(type(getattr(c, dimension)), "model_fields", {})}
        problems.at_key(node, f"no option has {path}{did_you_mean(setting, sorted(known))}")
    for choices in having:
        chosen = getattr(choices, dimension)
        kind = type(chosen).model_fields[setting].annotation if isinstance(chosen, Choice) else None
        # float, or float among others, as where None means that another value holds
        if not any(float in (part, *get_args(part)) for part in (kind, *get_args(kind))):
            problems.at(node, f"{path} is no number to tune, it is {quoted(getattr(chosen, setting))}")
            continue
        try:
            limits = axis(path, within, choices)
        except ValueError as error:
            problems.at(node, str(error))
            continue
        for end in (limits.low, limits.high):
            try:
                type(chosen).model_validate({**chosen.model_dump(), setting: end})
            except ValidationError as error:
                refused = f"is out of its bounds: {error.errors()[0]['msg']}"
                problems.at(node, f"{path} of {choices.optimizer.name}: {end:g} {refused}")


def _check_sizes(best_of: BestOf, job: Job, rows: Sequence[Choices], node: Node, problems: Problems) -> None:
    if best_of.micro_batch_size == "auto":
        return
    if len(set(best_of.micro_batch_size)) < len(best_of.micro_batch_size):
        problems.at(node, "a size is repeated")
    ranks = {c.world_size for c in rows if c.world_size != "auto"} or {1}
    wholes = sorted({job.of(c).global_batch_size for c in rows})
    shares = [whole // n for n in ranks for whole in wholes if whole % n == 0]  # else that is the mistake
    listing = " or ".join(map(str, wholes))
    for item, size in zip(node.items, best_of.micro_batch_size, strict=True):
        if shares and all(share % size for share in shares):
            problems.at(item, f"global_batch_size {listing} can't be cut into micro-batches of {size}")

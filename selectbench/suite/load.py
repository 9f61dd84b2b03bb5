"""From a suite file and the command line to a Suite, and the JSON Schema of suite files."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core.core_schema import ModelSchema

import selectbench
from selectbench.choices import Choices
from selectbench.errors import UserError, did_you_mean, nearest, one_of_these, synonyms
from selectbench.suite.check import check_files, check_suite, tokenizers_differ
from selectbench.suite.command import CommandChoices, CommandJob
from selectbench.suite.document import (
    Node,
    Place,
    Problems,
    Written,
    merge_document,
    nest,
    parse_value,
    read_document,
    with_absolute_paths,
    with_interpreter,
)
from selectbench.suite.grid import (
    DIMENSIONS,
    Row,
    excluded,
    meant_settings,
    rows_of,
    with_placeholders,
    with_sizes_searched,
)
from selectbench.suite.job import Job
from selectbench.suite.metrics import METRICS, parse_constraint
from selectbench.suite.problems import validate
from selectbench.suite.suite import (
    AUTO,
    CONTROL,
    AnySuiteFile,
    CommandSuiteFile,
    Decide,
    LeftOpen,
    Option,
    SizeThatFits,
    Suite,
    SuiteFile,
    differences,
)
from selectbench.text import quoted, unwritable, visible

SETTABLE = tuple(
    key for key in SuiteFile.model_fields if key not in ("profiles", "device", "profile", "quick", "looks")
)
"""What `--set` may begin with."""


def apply_settings(document: Node, settings: Iterable[str], problems: Problems) -> Node:
    """Lays each `PATH=VALUE` over the document, in the order given; VALUE is read as YAML."""
    for setting in settings:
        place = Place(f"--set {setting}")
        path, equals, text = setting.partition("=")
        keys = _keys(path.strip(), document)
        if not equals or not all(keys):
            problems.add(place, "", "expected PATH=VALUE as in job.max_steps=20")
        elif keys[0] not in SETTABLE:
            meant = [f"job.{path.strip()}"] if synonyms(keys[0], list(Job.model_fields)) else []
            meant = meant or [f"choices.{setting}" for setting in meant_settings(path.strip())]
            near = "" if synonyms(keys[0], SETTABLE) else one_of_these(meant)
            hint = near or did_you_mean(keys[0], SETTABLE) or f" (known: {', '.join(SETTABLE)})"
            problems.add(place, "", f"unknown key {quoted(keys[0])}{hint}")
        elif (node := parse_value(text, place.source, ".".join(keys), problems)) is not None:
            document = merge_document(document, nest(keys, node, place))
    return document


def _keys(path: str, document: Node) -> list[str]:
    """The path's keys; an option's name may hold dots of its own."""
    head, _, rest = path.partition(".")
    names = document.below("options") if head == "options" else {}
    for name in sorted(names, key=len, reverse=True):
        if f"{rest}.".startswith(f"{name}."):
            return [head, name, *filter(None, rest[len(name) + 1 :].split("."))]
    return path.split(".")


def apply_axes(document: Node, axes: Iterable[str], problems: Problems) -> Node:
    """Each `PATH=A,B` replaces the file's options and its axis of that path."""
    for axis in axes:
        place = Place(f"--axis {axis}")
        path, equals, text = (part.strip() for part in axis.partition("="))
        if not equals or not path or not text:
            problems.add(place, "", "expected PATH=VALUE,VALUE as in precision=fp32,bf16_mixed")
        elif (values := parse_value(f"[{text}]", place.source, path, problems)) is not None:
            present = document.mapping.get("axes")
            others = present if present is not None and isinstance(present.value, dict) else Node({}, place)
            axis_of_path = others.with_entries(**{path: replace(values, key_place=place)})
            document = document.without("options").with_entries(axes=axis_of_path)
    return document


TEMPLATE = Path(__file__).parent / "template.yaml"


def folder() -> Path:
    """The folder of the shipped suites: inside an installed package, at the top of a checkout."""
    package = Path(selectbench.__file__).parent
    installed = package / "suites"
    return installed if installed.is_dir() else package.parent / "suites"


def names() -> list[str]:
    """The shipped suites' names, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def find(reference: str | Written) -> Path | Written:
    """The file of a path or of a shipped suite's name. Raises UserError if there is none."""
    if isinstance(reference, Written):
        return reference
    path = Path(reference)
    if path.is_file():
        return path
    if reference in names():
        return folder() / f"{reference}.yaml"
    if path.exists():
        kind, file = "a folder" if path.is_dir() else "not a regular file", path / "suite.yaml"
        hint = f" (did you mean '{file}'?)" if file.is_file() else ": give a suite file, or a shipped suite's name"
        raise UserError(f"{reference}: is {kind}{hint}")
    hint = did_you_mean(path.stem, names()) or f" (shipped suites: {', '.join(names())})"
    raise UserError(f"{reference}: there is no such file or shipped suite{hint}")


def folder_of(reference: str | Written) -> Path:
    """The folder to which the suite's paths are relative. Raises UserError if there is no such file."""
    file = find(reference)
    return Path() if isinstance(file, Written) else file.parent


def template(name: str | None = None) -> str:
    """The text of a commented suite to start from: a shipped one, or a general one. Raises UserError."""
    if name is None:
        return TEMPLATE.read_text(encoding="utf-8")
    if name not in names():
        hint = did_you_mean(name, names()) or f" (shipped: {', '.join(names())})"
        raise UserError(f"--from {name}: there is no shipped suite of that name{hint}")
    return (folder() / f"{name}.yaml").read_text(encoding="utf-8")


def scripts_of(name: str | None) -> Path | None:
    """The folder next to a shipped suite with the scripts that it runs; None: it has none."""
    scripts = folder() / name if name else None
    return scripts if scripts is not None and scripts.is_dir() else None


# The JSON Schema of a suite file, for editors: completion, descriptions and misspelt keys.
#
# A mapping may be split over shared choices, options and profiles, so a required key may be missing in any one of
# them: the schema requires none, and `load` checks the merged file.

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
_PRECISIONS = (
    "auto: bf16_mixed where the machine has units for it, else fp16_mixed on a GPU and fp32 on a CPU; the same for "
    "every option."
)
_SIZES = (
    "auto: each option at its own fastest, found in short trials. {at_most: 16}: the largest size up to 16 that is "
    "expected to fit into the GPU, the same for every option."
)


def json_schema() -> Schema:
    """The schema as plain data."""
    template = "#/$defs/{model}"
    kinds = (SuiteFile, Choices, SizeThatFits, CommandSuiteFile, CommandChoices)
    models = [(kind, "validation") for kind in kinds]
    _, generated = models_json_schema(models, ref_template=template, schema_generator=DescribedSchema)  # type: ignore[arg-type]
    definitions = {name: _in_pieces(definition) for name, definition in generated["$defs"].items()}
    shapes = definitions["Choices"]["properties"]
    shapes["activation_checkpointing"]["anyOf"].append({"type": "boolean"})
    definitions["SharedChoices"] = {**definitions["Choices"], "properties": {**shapes, **_left_open(shapes)}}
    top, of_command = definitions.pop("SuiteFile"), definitions.pop("CommandSuiteFile")
    # Each dimension with a list of its values or labelled ones; `dimension.setting` with any values.
    axes = {
        "type": "object", "properties": {name: _list_or_labelled(shape) for name, shape in shapes.items()},
        "patternProperties": {rf"^({'|'.join(DIMENSIONS)})\.[A-Za-z0-9_.]+$": _list_or_labelled({})},
        "additionalProperties": False,
    }  # fmt: skip
    built = _of_kind(top, definitions, "Profile", "Choices", "SharedChoices", axes)
    any_axes = _mapping_of(_list_or_labelled({}))
    command = _of_kind(of_command, definitions, "CommandProfile", "CommandChoices", "CommandChoices", any_axes)
    top["properties"] |= {key: {"description": shape["description"]} for key, shape in built.items()}
    is_command = {"properties": {"job": {"required": ["command"]}}, "required": ["job"]}
    by_job = {"if": is_command, "then": {"properties": command}, "else": {"properties": built}}
    return {"$schema": DIALECT, **top, **by_job, "title": "selectbench suite", "$defs": definitions}


def _of_kind(
    top: Schema, definitions: dict[str, Schema], profile: str, choices: str, shared: str, axes: Schema
) -> Schema:
    """The keys of a suite that depend on what kind its job is; its profile is added to the definitions."""
    piece = {"$ref": f"#/$defs/{choices}"}
    shapes = {
        "job": top["properties"]["job"], "choices": {"$ref": f"#/$defs/{shared}"},
        "options": _mapping_of({"anyOf": [piece, {"type": "null"}]}),
        "axes": axes, "exclude": {"type": "array", "items": piece},
    }  # fmt: skip
    texts = {key: {"description": top["properties"][key]["description"]} for key in (*shapes, "profiles")}
    described = {key: {**shape, **texts[key]} for key, shape in shapes.items()}
    properties = {key: shape for key, shape in {**top["properties"], **described}.items() if key != "profiles"}
    definitions[profile] = {"type": "object", "additionalProperties": False, "properties": properties}
    profiles = _mapping_of({"anyOf": [{"$ref": f"#/$defs/{profile}"}, {"type": "null"}]})
    return {**described, "profiles": {**profiles, **texts["profiles"]}}


def _left_open(of: Schema) -> Schema:
    """Shared choices that may be left to the machine or be searched, from the schemas `of` an option's choices."""
    size = {key: value for key, value in of["micro_batch_size"].items() if key != "description"}
    sizes = [size, {"const": AUTO}, {"$ref": "#/$defs/SizeThatFits"}]
    precisions = [*of["precision"]["anyOf"], {"const": AUTO}]
    return {
        "micro_batch_size": {"description": f"{of['micro_batch_size']['description']} {_SIZES}", "anyOf": sizes},
        "precision": {"description": f"{of['precision']['description']} {_PRECISIONS}", "anyOf": precisions},
    }


def _in_pieces(schema: Any) -> Any:
    """The schema with no key required, and unions by `anyOf`, since a piece without its tag fits several."""
    if isinstance(schema, list):
        return [_in_pieces(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = ("required", "discriminator", "oneOf", "default")
    retained = {key: _in_pieces(value) for key, value in schema.items() if key not in dropped}
    return {**retained, "anyOf": _in_pieces(schema["oneOf"])} if "oneOf" in schema else retained


def _list_or_labelled(shape: Schema) -> Schema:
    return {"anyOf": [{"type": "array", "items": shape, "minItems": 1}, _mapping_of(shape)]}


def _mapping_of(shape: Schema) -> Schema:
    return {"type": "object", "additionalProperties": shape}


# From a suite file and the command line to a Suite. Every mistake is collected and reported with its place.
#
# Order: the file, then its profile, then `--set`, then `--axis` and `--seeds`, then `--quick`. Relative paths of
# the file (text globs, a model's configuration, own code, interpreters) are relative to the suite's folder; the
# suite holds them absolute, so that a worker anywhere, and a run's own suite.yaml, find them.

QUICK_STEPS = 20
"""Most optimizer steps of a `--quick` trial."""
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class _CommandLine:
    """The options of the command line that change a suite."""

    settings: Sequence[str] = ()
    axes: Sequence[str] = ()
    seeds: str | None = None
    quick: bool = False


def load_suite(
    reference: str | Written, *, device: str, profile: str | None = None, settings: Sequence[str] = (),
    axes: Sequence[str] = (), seeds: str | None = None, quick: bool = False, require_files: bool = True,
) -> Suite:  # fmt: skip
    """The suite of a file, or the shipped one of that name, with the command line's changes.

    `device`, cpu or cuda, picks the profile of its name where the file has one and `profile` is None.
    `profile` cpu or cuda also decides the device, even where the file has no such profile; a `device`
    key in the file comes next. `require_files` False lets a model's configuration, own code and interpreters
    be gone, as a report of an old run needs none. Raises UserError with one line per mistake.
    """
    source = find(reference)
    path = folder_of(reference) / Path(str(source)).name  # of a suite that is no file, the place where it would be
    if unwritable(str(path.resolve())) is not None:  # its folder stands in the paths of a run's own suite.yaml
        raise UserError(
            f"{visible(path.resolve(), 300)}: the name of the file or of a folder is no printable UTF-8"
        )
    top = read_document(source)
    if "launcher" in top.mapping and "job" not in top.mapping:
        raise UserError(f"{source}: a site file, not a suite: selectbench run SUITE --site {source}")
    problems = Problems()
    command_line = _CommandLine(settings, axes, seeds, quick)
    stated = top.mapping["device"].value if "device" in top.mapping else None
    first_stated = next((name for name in (profile, stated, device) if name in ("cpu", "cuda")), "cpu")
    chosen_device: Device = "cuda" if first_stated == "cuda" else "cpu"
    used = _profile_name(top, profile, chosen_device, problems)
    document = _prepared(top, used, path, command_line, problems)
    for key, node in document.below("job").items():
        if "model" not in document.below("job") and nearest(key, ["command"]) == ["command"] != [key]:
            problems.at_key(node, "unknown key (did you mean 'command'?)")
            problems.raise_if_any()  # read as a job that selectbench builds, it would have many more mistakes
    if require_files:
        check_files(document, problems)
    suite = _suite(document, path, used, chosen_device, command_line, problems, require_files=require_files)
    _check_other_profiles(top, used, path, problems)
    problems.raise_if_any()
    assert suite is not None
    return suite


def _profile_name(top: Node, requested: str | None, device: Device, problems: Problems) -> str | None:
    """The requested profile, else the one named after the device, if there is one."""
    node = top.mapping.get("profiles")
    if node is not None and node.value is not None and not isinstance(node.value, dict):
        problems.at(node, "expected a mapping of profiles")
    profiles = list(node.mapping) if node is not None else []
    if requested is None or requested in profiles:
        return requested or (device if device in profiles else None)
    if requested not in ("cpu", "cuda"):
        known = ", ".join(dict.fromkeys([*profiles, "cpu", "cuda"]))
        hint = did_you_mean(requested, profiles) or f" (known: {known})"
        problems.add(Place(f"--profile {requested}"), "", f"the suite has no such profile{hint}")
    return None


def _prepared(top: Node, profile: str | None, path: Path, command_line: _CommandLine, problems: Problems) -> Node:
    """The file with the profile and the command line laid over it, its name and absolute paths put in."""
    document = top.without("profiles")
    if profile is not None:
        over = top.mapping["profiles"].mapping[profile]
        if over.value is not None and not isinstance(over.value, dict):
            problems.at(over, "expected a mapping")
        if "profiles" in over.mapping:
            problems.at(over.mapping["profiles"], "a profile has no profiles of its own")
        document = merge_document(document, over.without("profiles") if over.mapping else replace(over, value={}))
    document = apply_axes(apply_settings(document, command_line.settings, problems), command_line.axes, problems)
    if (text := command_line.seeds) is not None:
        seeds = parse_value(f"[{text}]", f"--seeds {text}", "seeds", problems)
        document = document if seeds is None else document.with_entries(seeds=seeds)
    # A key without a value (`axes:`) counts as not given.
    empty = {key for key, node in document.mapping.items() if node.value is None}
    document = document.without(*(empty & {*SuiteFile.model_fields, *CommandSuiteFile.model_fields}))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "suite"
    if "name" not in document.mapping:
        document = document.with_entries(name=Node(stem, document.place, "name"))
    return with_absolute_paths(with_sizes_searched(document, problems), path.resolve().parent)


def _kinds(document: Node) -> tuple[type[AnySuiteFile], type[Choices | CommandChoices]]:
    return (CommandSuiteFile, CommandChoices) if document.has_command else (SuiteFile, Choices)


def _check_other_profiles(top: Node, used: str | None, path: Path, problems: Problems) -> None:
    """Notes mistakes in the profiles that are not used here, such as a misspelt key for another machine."""
    for name in top.below("profiles").keys() - {used}:
        document = _prepared(top, name, path, _CommandLine(), problems)
        suite_kind, kind = _kinds(document)
        validate(suite_kind, document, problems, own_only=True)
        for row in rows_of(document, problems)[0]:
            validate(kind, row.choices, problems, own_only=True)


def _suite(
    document: Node, path: Path, profile: str | None, device: Device, command_line: _CommandLine, problems: Problems,
    *, require_files: bool,
) -> Suite | None:  # fmt: skip
    content: AnySuiteFile | None = validate(_kinds(document)[0], document, problems)
    names, rows, left_open = _rows(document, path.resolve().parent, command_line, problems)
    quick = command_line.quick or (content is not None and content.quick)
    baseline = check_suite(
        content, rows, names, document, device, problems,
        quick=quick, has_requested_axes=bool(command_line.axes), require_files=require_files,
    )  # fmt: skip
    if problems.mistakes or content is None:
        return None
    return _assembled(content, rows, left_open, baseline, profile or content.profile, device, quick=quick)


def _rows(
    document: Node, folder: Path, command_line: _CommandLine, problems: Problems
) -> tuple[list[str], list[tuple[Row, Choices | CommandChoices]], LeftOpen]:
    """Names of all rows that are not excluded, those of these rows that are valid, and what they leave open."""
    complete, left_open = with_placeholders(*rows_of(document, problems), document, problems)
    rows = [replace(row, choices=with_interpreter(row.choices, folder)) for row in complete]
    validated = [(row, validate(_kinds(document)[1], row.choices, problems)) for row in rows]
    valid = [(row, choices) for row, choices in validated if choices is not None]
    left_out: set[str] = set()
    if "exclude" in document.mapping and len(valid) == len(rows):
        left_out = excluded(valid, document, problems, strict=not command_line.axes)
    remaining = [pair for pair in valid if pair[0].name not in left_out]
    return [row.name for row in rows if row.name not in left_out], remaining, left_open


def _assembled(
    content: AnySuiteFile, rows: Sequence[tuple[Row, Choices | CommandChoices]], left_open: LeftOpen,
    baseline: str, profile: str | None, device: Device, *, quick: bool,
) -> Suite:  # fmt: skip
    base = next(choices for row, choices in rows if row.name == baseline)
    job: Job | CommandJob = content.job
    overrides: dict[str, Any] = {}
    if quick:
        job = _quick_job(job, [c for _, c in rows])
        overrides = {"seeds": content.seeds[:1], "save": "none", "tune": None, "best_of": None, "screen": [],
                     "references": {}}  # fmt: skip
    other_tokens = isinstance(job, Job) and tokenizers_differ([c for _, c in rows if isinstance(c, Choices)], job)
    options = [Option(name=r.name, choices=c, differs_in=differences(job, c, base)) for r, c in rows]
    suite = Suite(**{
        **dict(content), **overrides, "profile": profile, "device": device, "quick": quick, "job": job,
        "options": [*options, *([Option(name=CONTROL, choices=base, differs_in=[])] if content.control else [])],
        "choices": {}, "axes": {}, "exclude": [], "profiles": {}, "baseline": baseline,
        "decide": _decide(content.decide, job, other_tokens=other_tokens), "left_open": left_open, "resolved": {},
    })  # fmt: skip
    unset = {"cost", "meters", "control", "gate", "looks"} - content.model_fields_set
    unset |= {key for key in ("tune", "best_of", "screen", "references") if not getattr(suite, key)}
    return suite.but(resolved=_resolved(suite, unset if suite.saved_seeds else {*unset, "save"}))


def _decide(given: Decide, job: Job | CommandJob, *, other_tokens: bool) -> Decide:
    """What decides, with defaults that suit the job; `other_tokens`: the options' tokenizers differ.

    By default a suite whose tokenizers differ decides by text, not by tokens. Any other suite whose objective is
    quality has no constraint on quality by default. A job of speed and memory only has no constraint on quality
    and ranks by speed; if tokenizers differ, by the time of a step, since only an evaluation measures how much text
    a step is.
    """
    objective, constraints = given.objective, given.constraints
    if other_tokens and "objective" not in given.model_fields_set:
        objective = "bytes_per_second"
    if "constraints" not in given.model_fields_set:
        if other_tokens:
            constraints = ["bits_per_byte <= 1.01x baseline"]
        elif METRICS[objective].quality:
            constraints = []
    if not job.evaluates:
        constraints = [c for c in constraints if "evaluation" not in METRICS[parse_constraint(c).metric].needs]
        if "evaluation" in METRICS[objective].needs:
            objective = "step_time_median_seconds" if other_tokens else "tokens_per_second"
    return given.but(objective=objective, constraints=constraints)


def _quick_job(job: Job | CommandJob, options: Sequence[Choices | CommandChoices]) -> Job | CommandJob:
    """The job of a quick run, with tokens that all global batches divide; a command keeps its own schedule."""
    if isinstance(job, CommandJob):
        stop = min(job.stops_after, job.timing.warmup_steps + QUICK_STEPS)
        return job.but(eval="none", stop=stop)
    sizes = [c.global_batch_size or job.global_batch_size for c in options if isinstance(c, Choices)]
    steps = job.steps_for_all(QUICK_STEPS, sizes)
    schedule = job.lr_schedule.but(warmup_steps=min(job.lr_schedule.warmup_steps, steps))
    return job.but(eval="none", max_steps=steps, lr_schedule=schedule)


_RESOLVED = (
    "name", "question", "profile", "device", "quick", "job", "code", "choices", "options", "baseline", "seeds",
    "decide", "limits", "cost", "meters", "looks", "control", "tune", "best_of", "screen", "gate", "save",
    "references",
)  # fmt: skip
"""Keys of a suite that a run writes, in order."""


def _resolved(suite: Suite, unset: set[str]) -> dict[str, Any]:
    """The suite as a file without profiles and axes, defaults written out; dimensions that all share stand once.

    The `unset` keys, which affect no figure of a trial, are left out.
    """
    dumped = {option.name: option.choices.as_written() for option in suite.without_control}
    first = next(iter(dumped.values()))
    shared = {d: value for d, value in first.items() if all(row.get(d) == value for row in dumped.values())}
    options = {name: {d: v for d, v in row.items() if d not in shared} for name, row in dumped.items()}
    keys = suite.model_dump(mode="json", include={*_RESOLVED})
    rows = {"choices": {**shared, **suite.left_open.settings}, "options": options}
    return {key: rows.get(key, keys.get(key)) for key in _RESOLVED if key not in unset}


def field_texts(kind: type) -> dict[str, str]:
    """The text under each annotated field of one of selectbench's classes, inherited fields among them.

    The texts are read from the source on demand: importing stays quick.
    """
    texts: dict[str, str] = {}
    for ancestor in reversed([c for c in kind.__mro__ if c.__module__.partition(".")[0] == "selectbench"]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        assert isinstance(tree, ast.ClassDef)
        texts |= {
            field.target.id: inspect.cleandoc(text.value.value)
            for field, text in pairwise(tree.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }  # fmt: skip
    return texts


class DescribedSchema(GenerateJsonSchema):
    """Pydantic's JSON Schema of a model with those texts as descriptions."""

    def model_schema(self, schema: ModelSchema) -> dict[str, Any]:
        """One model's schema; a field that is described already keeps its description."""
        described = super().model_schema(schema)
        texts: Mapping[str, str] = field_texts(schema["cls"])
        for name, shape in described.get("properties", {}).items():
            if name in texts:
                shape.setdefault("description", texts[name])
        return described

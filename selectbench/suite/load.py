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
from selectbench.suite.command import CommandChoices, CommandJob, as_written
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
    """Each `PATH=A,B` takes the place of the file's options and of its axis of that path."""
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
    """The file that a path or a shipped suite's name means. Raises UserError where there is none."""
    if isinstance(reference, Written):
        return reference
    path = Path(reference)
    if path.is_file():
        return path
    if reference in names():
        return folder() / f"{reference}.yaml"
    if path.exists():
        what, inside = "a folder" if path.is_dir() else "not a regular file", path / "suite.yaml"
        hint = (
            f" (did you mean '{inside}'?)" if inside.is_file() else ": give a suite file, or a shipped suite's name"
        )
        raise UserError(f"{reference}: is {what}{hint}")
    hint = did_you_mean(path.stem, names()) or f" (shipped suites: {', '.join(names())})"
    raise UserError(f"{reference}: there is no such file or shipped suite{hint}")


def folder_of(reference: str | Written) -> Path:
    """What the suite's relative paths are relative to. Raises UserError where there is no such file."""
    found = find(reference)
    return Path() if isinstance(found, Written) else found.parent


def template(name: str | None = None) -> str:
    """The text of a commented suite to start from: a shipped one, or a general one. Raises UserError."""
    if name is None:
        return TEMPLATE.read_text(encoding="utf-8")
    if name not in names():
        hint = did_you_mean(name, names()) or f" (shipped: {', '.join(names())})"
        raise UserError(f"--from {name}: there is no shipped suite of that name{hint}")
    return (folder() / f"{name}.yaml").read_text(encoding="utf-8")


def scripts_of(name: str | None) -> Path | None:
    """The folder beside a shipped suite with the scripts that it runs; None: it has none."""
    found = folder() / name if name else None
    return found if found is not None and found.is_dir() else None


# The JSON Schema of a suite file, for editors: completion, descriptions and misspelt keys.
#
# A file may say a thing in pieces (shared choices, options, profiles), so a required key may be missing in any one
# of them: the schema requires none, and `load` checks the whole after merging.

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
    own = definitions["Choices"]["properties"]
    own["activation_checkpointing"]["anyOf"].append({"type": "boolean"})
    definitions["SharedChoices"] = {**definitions["Choices"], "properties": {**own, **_left_open(own)}}
    top, of_command = definitions.pop("SuiteFile"), definitions.pop("CommandSuiteFile")
    # Each dimension with a list of its values or labelled ones; `dimension.setting` with any values.
    axes = {
        "type": "object", "properties": {name: _list_or_labelled(shape) for name, shape in own.items()},
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
    found = {key: {**shape, **texts[key]} for key, shape in shapes.items()}
    within = {key: value for key, value in {**top["properties"], **found}.items() if key != "profiles"}
    definitions[profile] = {"type": "object", "additionalProperties": False, "properties": within}
    profiles = _mapping_of({"anyOf": [{"$ref": f"#/$defs/{profile}"}, {"type": "null"}]})
    return {**found, "profiles": {**profiles, **texts["profiles"]}}


def _left_open(own: Schema) -> Schema:
    """Choices of all options that may be left to the machine or be searched, from the shapes of an option's own."""
    size = {key: value for key, value in own["micro_batch_size"].items() if key != "description"}
    sizes = [size, {"const": AUTO}, {"$ref": "#/$defs/SizeThatFits"}]
    precisions = [*own["precision"]["anyOf"], {"const": AUTO}]
    return {
        "micro_batch_size": {"description": f"{own['micro_batch_size']['description']} {_SIZES}", "anyOf": sizes},
        "precision": {"description": f"{own['precision']['description']} {_PRECISIONS}", "anyOf": precisions},
    }


def _in_pieces(schema: Any) -> Any:
    """The same with no key required, and unions by `anyOf`, as a piece without its tag fits several."""
    if isinstance(schema, list):
        return [_in_pieces(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        k: _in_pieces(v) for k, v in schema.items() if k not in ("required", "discriminator", "oneOf", "default")
    }
    return {**kept, "anyOf": _in_pieces(schema["oneOf"])} if "oneOf" in schema else kept


def _list_or_labelled(shape: Schema) -> Schema:
    return {"anyOf": [{"type": "array", "items": shape, "minItems": 1}, _mapping_of(shape)]}


def _mapping_of(shape: Schema) -> Schema:
    return {"type": "object", "additionalProperties": shape}


# From a suite file and the command line to a Suite. Every mistake is collected and told with its place.
#
# Order: the file, then its profile, then `--set`, then `--axis` and `--seeds`, then `--quick`. Relative paths of
# the file (text globs, a model's configuration, own code, interpreters) are relative to the suite's folder; the
# suite holds them absolute, so that a worker anywhere, and a run's own suite.yaml, find them.

QUICK_STEPS = 20
"""Most optimizer steps of a `--quick` trial."""
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class _CommandLine:
    """What the command line changes in a suite."""

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
    found = find(reference)
    path = folder_of(reference) / Path(str(found)).name  # of what is no file the place where it would be
    if unwritable(str(path.resolve())) is not None:  # its folder stands in the paths of a run's own suite.yaml
        raise UserError(
            f"{visible(path.resolve(), 300)}: the name of the file or of a folder is no printable UTF-8"
        )
    top = read_document(found)
    if "launcher" in top.mapping and "job" not in top.mapping:
        raise UserError(f"{found}: a site file, not a suite: selectbench run SUITE --site {found}")
    problems = Problems()
    asked = _CommandLine(settings, axes, seeds, quick)
    stated = top.mapping["device"].value if "device" in top.mapping else None
    wanted = next((name for name in (profile, stated, device) if name in ("cpu", "cuda")), "cpu")
    chosen_device: Device = "cuda" if wanted == "cuda" else "cpu"
    used = _profile_name(top, profile, chosen_device, problems)
    document = _prepared(top, used, path, asked, problems)
    for key, node in document.below("job").items():
        if "model" not in document.below("job") and nearest(key, ["command"]) == ["command"] != [key]:
            problems.at_key(node, "unknown key (did you mean 'command'?)")
            problems.raise_if_any()  # as a job that selectbench builds it would have many more mistakes
    if require_files:
        check_files(document, problems)
    suite = _suite(document, path, used, chosen_device, asked, problems, require_files=require_files)
    _check_other_profiles(top, used, path, problems)
    problems.raise_if_any()
    assert suite is not None
    return suite


def _profile_name(top: Node, asked: str | None, device: Device, problems: Problems) -> str | None:
    node = top.mapping.get("profiles")
    if node is not None and node.value is not None and not isinstance(node.value, dict):
        problems.at(node, "expected a mapping of profiles")
    profiles = list(node.mapping) if node is not None else []
    if asked is None or asked in profiles:
        return asked or (device if device in profiles else None)
    if asked not in ("cpu", "cuda"):
        hint = did_you_mean(asked, profiles) or f" (known: {', '.join(dict.fromkeys([*profiles, 'cpu', 'cuda']))})"
        problems.add(Place(f"--profile {asked}"), "", f"the suite has no such profile{hint}")
    return None


def _prepared(top: Node, profile: str | None, path: Path, asked: _CommandLine, problems: Problems) -> Node:
    """The file with the profile and the command line laid over it, its name and absolute paths put in."""
    document = top.without("profiles")
    if profile is not None:
        over = top.mapping["profiles"].mapping[profile]
        if over.value is not None and not isinstance(over.value, dict):
            problems.at(over, "expected a mapping")
        if "profiles" in over.mapping:
            problems.at(over.mapping["profiles"], "a profile has no profiles of its own")
        document = merge_document(document, over.without("profiles") if over.mapping else replace(over, value={}))
    document = apply_axes(apply_settings(document, asked.settings, problems), asked.axes, problems)
    if asked.seeds is not None:
        seeds = parse_value(f"[{asked.seeds}]", f"--seeds {asked.seeds}", "seeds", problems)
        document = document if seeds is None else document.with_entries(seeds=seeds)
    # A key without a value (`axes:`) is one that is not given.
    empty = {key for key, node in document.mapping.items() if node.value is None}
    document = document.without(*(empty & {*SuiteFile.model_fields, *CommandSuiteFile.model_fields}))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "suite"
    if "name" not in document.mapping:
        document = document.with_entries(name=Node(stem, document.place, "name"))
    return with_absolute_paths(with_sizes_searched(document, problems), path.resolve().parent)


def _kinds(document: Node) -> tuple[type[AnySuiteFile], type[Choices | CommandChoices]]:
    return (CommandSuiteFile, CommandChoices) if document.has_command else (SuiteFile, Choices)


def _check_other_profiles(top: Node, used: str | None, path: Path, problems: Problems) -> None:
    """A misspelt key in the profile of another machine is told here already."""
    for name in top.below("profiles").keys() - {used}:
        document = _prepared(top, name, path, _CommandLine(), problems)
        suite_kind, kind = _kinds(document)
        validate(suite_kind, document, problems, own_only=True)
        for row in rows_of(document, problems)[0]:
            validate(kind, row.choices, problems, own_only=True)


def _suite(
    document: Node, path: Path, profile: str | None, device: Device, asked: _CommandLine, problems: Problems, *,
    require_files: bool,
) -> Suite | None:  # fmt: skip
    content: AnySuiteFile | None = validate(_kinds(document)[0], document, problems)
    names, rows, left_open = _rows(document, path.resolve().parent, asked, problems)
    quick = asked.quick or (content is not None and content.quick)
    baseline = check_suite(
        content, rows, names, document, device, problems,
        quick=quick, has_axes_asked=bool(asked.axes), require_files=require_files,
    )  # fmt: skip
    if problems.found or content is None:
        return None
    return _assembled(content, rows, left_open, baseline, profile or content.profile, device, quick=quick)


def _rows(
    document: Node, folder: Path, asked: _CommandLine, problems: Problems
) -> tuple[list[str], list[tuple[Row, Choices | CommandChoices]], LeftOpen]:
    """Names of all rows that are not excluded, those rows that are valid, and what they leave open."""
    begun, left_open = with_placeholders(*rows_of(document, problems), document, problems)
    written = [replace(row, choices=with_interpreter(row.choices, folder)) for row in begun]
    validated = [(row, validate(_kinds(document)[1], row.choices, problems)) for row in written]
    rows = [(row, choices) for row, choices in validated if choices is not None]
    gone: set[str] = set()
    if "exclude" in document.mapping and len(rows) == len(written):
        gone = excluded(rows, document, problems, strict=not asked.axes)
    kept = [pair for pair in rows if pair[0].name not in gone]
    return [row.name for row in written if row.name not in gone], kept, left_open


def _assembled(
    content: AnySuiteFile, rows: Sequence[tuple[Row, Choices | CommandChoices]], left_open: LeftOpen,
    baseline: str, profile: str | None, device: Device, *, quick: bool,
) -> Suite:  # fmt: skip
    base = next(choices for row, choices in rows if row.name == baseline)
    job: Job | CommandJob = content.job
    quickened: dict[str, Any] = {}
    if quick:
        job = _quickened(job, [c for _, c in rows])
        quickened = {"seeds": content.seeds[:1], "save": "none", "tune": None, "best_of": None, "screen": [],
                     "references": {}}  # fmt: skip
    other_tokens = isinstance(job, Job) and tokenizers_differ([c for _, c in rows if isinstance(c, Choices)], job)
    options = [Option(name=r.name, choices=c, differs_in=differences(job, c, base)) for r, c in rows]
    suite = Suite(**{
        **dict(content), **quickened, "profile": profile, "device": device, "quick": quick, "job": job,
        "options": [*options, *([Option(name=CONTROL, choices=base, differs_in=[])] if content.control else [])],
        "choices": {}, "axes": {}, "exclude": [], "profiles": {}, "baseline": baseline,
        "decide": _decides(content.decide, job, other_tokens=other_tokens), "left_open": left_open, "resolved": {},
    })  # fmt: skip
    unsaid = {"cost", "meters", "control", "gate", "looks"} - content.model_fields_set
    unsaid |= {key for key in ("tune", "best_of", "screen", "references") if not getattr(suite, key)}
    return suite.but(resolved=_resolved(suite, unsaid if suite.saved_seeds else {*unsaid, "save"}))


def _decides(given: Decide, job: Job | CommandJob, *, other_tokens: bool) -> Decide:
    """What decides, with defaults that suit the job; `other_tokens`: the options' tokenizers differ.

    Where tokenizers differ a suite decides by default on text, not on tokens. Else, where quality itself is the
    objective, nothing is asked of quality besides unless the suite says so. A job of speed and memory only asks
    nothing of quality and ranks by speed: where tokenizers differ by that of a step, as only an evaluation tells
    how much text a step is.
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


def _quickened(job: Job | CommandJob, options: Sequence[Choices | CommandChoices]) -> Job | CommandJob:
    """The tokens must be the same for all global batches of the options. A command's own schedule is not known."""
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


def _resolved(suite: Suite, unsaid: set[str]) -> dict[str, Any]:
    """The suite as a file without profiles, axes or defaults left to chance; dimensions all share said once.

    Without the `unsaid` keys, which decide no figure of a trial.
    """
    dumped = {
        o.name: as_written(o.choices)
        if isinstance(o.choices, CommandChoices)
        else o.choices.model_dump(mode="json")
        for o in suite.without_control
    }
    first = next(iter(dumped.values()))
    shared = {d: value for d, value in first.items() if all(row.get(d) == value for row in dumped.values())}
    own = {name: {d: v for d, v in row.items() if d not in shared} for name, row in dumped.items()}
    keys = suite.model_dump(mode="json", include={*_RESOLVED})
    rows = {"choices": {**shared, **suite.left_open.settings}, "options": own}
    return {key: rows.get(key, keys.get(key)) for key in _RESOLVED if key not in unsaid}


def field_texts(kind: type) -> dict[str, str]:
    """The text under each annotated field of a class whose source is at hand, those it inherits among them.

    They are read from the source when they are wanted: importing stays quick.
    """
    found: dict[str, str] = {}
    for ancestor in reversed([c for c in kind.__mro__ if c.__module__.partition(".")[0] == "selectbench"]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        assert isinstance(tree, ast.ClassDef)
        found |= {
            field.target.id: inspect.cleandoc(text.value.value)
            for field, text in pairwise(tree.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }  # fmt: skip
    return found


class DescribedSchema(GenerateJsonSchema):
    """Pydantic's JSON Schema of a model with those texts as descriptions."""

    def model_schema(self, schema: ModelSchema) -> dict[str, Any]:
        """One model's schema; a field that is described already keeps its description."""
        found = super().model_schema(schema)
        texts: Mapping[str, str] = field_texts(schema["cls"])
        for name, shape in found.get("properties", {}).items():
            if name in texts:
                shape.setdefault("description", texts[name])
        return found

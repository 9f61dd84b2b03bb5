"""What every choice is: a class that says what it does, where that comes from and what it needs; and own code.

A choice is added in one place, as one class. Validation, the JSON schema, `plan`, `doctor` and the
tests all read the class itself.
"""

import hashlib
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
)
from pydantic_core import CoreSchema

from selectbench.errors import UserError, did_you_mean
from selectbench.machine import COMPILERS, INSTALL, Machine, pip_install


class Strict(BaseModel):
    """Unknown keys, silent conversions, NaN and infinity are refused; texts under fields describe them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def but(self, **changes: Any) -> Self:
        """A copy with these fields changed; the new values are not validated."""
        return self.model_copy(update=changes)


class WrongValueError(ValueError):
    """A class refuses the value under one of its keys; the message to the user points to that key's place."""

    def __init__(self, key: str, reason: str, *, says_key: bool = True) -> None:
        """`key` may have dots; `says_key`: the reason is a sentence that names the key already."""
        super().__init__(reason if says_key else f"{key}: {reason}")
        self.key, self.reason = key, reason


@dataclass(frozen=True)
class Needs:
    """What a choice asks of a machine; the first need that is not met is the reason for `unsupported`."""

    device: str | None = None
    """`cuda`, or None where any device will do."""
    compute_capability: tuple[int, int] | None = None
    """The least compute capability that a CUDA device must have; a CPU needs none."""
    packages: tuple[str, ...] = ()
    """Requirements as pip writes them, `torch>=2.9`."""
    install: str = INSTALL
    """The command that brings the packages."""
    compiler: bool = False
    """Whether it needs the compiler of generated code for the job's device (`machine.COMPILERS`)."""

    def unmet(self, machine: Machine) -> str | None:
        """Which need this machine does not meet, with the remedy if there is one; None: it meets all of them."""
        if self.device and machine.device != self.device:
            return f"needs a {self.device} device, the job's is {machine.device}"
        capability = machine.compute_capability
        if self.compute_capability and capability and capability < self.compute_capability:
            least, actual = (".".join(map(str, pair)) for pair in (self.compute_capability, capability))
            return f"needs compute capability {least}, this GPU has {actual}"
        if self.compiler and not machine.compiler:
            compiler = COMPILERS[machine.device]
            return f"needs a {compiler.language} compiler ({compiler.remedy})"
        from packaging.requirements import Requirement  # slow to import, and of no use to a report

        for text in self.packages:
            requirement = Requirement(text)
            install = self.install if machine.python is None else pip_install(machine.python, [text])
            version = machine.package_version(requirement.name)
            if version is None:
                return f"the package {requirement.name} is not installed: {install}"
            if not requirement.specifier.contains(version, prereleases=True):
                return f"needs {text}, found {requirement.name} {version}: {install}"
        return None


@dataclass(frozen=True)
class OwnCall:
    """How trials call a function or class of own code that a suite names."""

    setting: str
    """The key that names it, for messages."""
    name: str
    """`package.module:Name`."""
    positional: tuple[str, ...] = ()
    """Its positional arguments in order, by the names that messages give them."""
    keywords: tuple[str, ...] = ()
    """The names of its keyword arguments."""


class Choice(Strict):
    """One value of one dimension. Fields are its settings; the text under each is its description."""

    source: ClassVar[str]
    """Where the method and its defaults come from."""
    needs: ClassVar[Needs] = Needs()
    may_change: ClassVar[frozenset[str]] = frozenset()
    """Identity fields that may differ because of this choice; any other difference is undeclared.

    The loss and the gradient norm of step 0 are named only by a choice that changes what is computed, such as
    another loss: for one that rounds otherwise they are compared within the dtypes' tolerance."""
    fixed_identity: ClassVar[Mapping[str, Any]] = {}
    """The identity fields that it fixes whatever its settings are, with their values."""
    also_called: ClassVar[Mapping[str, str]] = {}
    """By another name of it (in small letters without joints, `errors.plain_word`), what a suite should say."""
    waits: ClassVar[str | None] = None
    """How often its library makes the host wait for a GPU, whatever the training loop; None: never."""
    preload: ClassVar[tuple[str, ...]] = ()
    """Modules that are slow to import and that the trial server may import once for all trials."""

    def allowed_differences(self) -> frozenset[str]:
        """Identity fields that may differ because of the choice with its settings: `may_change`, or more."""
        return self.may_change

    def expected_identity(self) -> dict[str, Any]:
        """The identity fields that the choice fixes, with the values that its trials must have."""
        return dict(self.fixed_identity)

    def unsupported_reason(self, machine: Machine) -> str | None:
        """Why this machine can't run the choice, or None."""
        return self.needs.unmet(machine)

    @property
    def call(self) -> OwnCall | None:
        """How trials call it if it is own code; None: it is built in."""
        return None

    def caveat(self, device: str) -> str | None:
        """What a reader of its figures on this device must know, or None."""
        return None


OWN = "package.module:Name"
"""How a suite names own code in place of something built in; also the tag of own code's class in every union."""
WORD = "[A-Za-z_][A-Za-z0-9_]*"
OWN_PATTERN = rf"^{WORD}(\.{WORD})*:{WORD}(\.{WORD})*$"
OwnName = Annotated[str, Field(pattern=OWN_PATTERN)]


def tag_of(choice: type[Choice]) -> str:
    """The word that selects the class in a suite, `adamw` for `AdamW`; OWN for a class of own code."""
    field = choice.model_fields["name"]
    return OWN if field.is_required() else str(field.default)


def is_own(name: object) -> bool:
    """Whether a name means own code: those of built-in things have no colon."""
    return isinstance(name, str) and ":" in name


def _tag_in(value: object) -> str | None:
    """The tag that a mapping or an instance names; None: it names none."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return OWN if is_own(name) else None if name is None else str(name)


class _Shorthand:
    """Lets `precision: fp32` stand for `precision: {name: fp32}`, in validation and in the schema."""

    def __init__(self, classes: tuple[type[Choice], ...]) -> None:
        self.classes = classes

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        tags = [tag for tag in map(_complete_tag, self.classes) if tag]
        built_in: list[dict[str, Any]] = [{"enum": [tag for tag in tags if tag != OWN]}] if tags else []
        own_code = [{"type": "string", "pattern": OWN_PATTERN}] if OWN in tags else []
        mapping = handler(core)
        return {"anyOf": [*built_in, *own_code, mapping]} if tags else dict(mapping)


def _complete_tag(choice: type[Choice]) -> str | None:
    """The tag of a class that needs no setting besides its name; None: it needs more."""
    required = {key for key, field in choice.model_fields.items() if field.is_required()}
    return None if required - {"name"} else tag_of(choice)


def tagged(classes: Mapping[str, type[BaseModel]], tag: Callable[[object], str | None]) -> Any:
    """The union of these classes, by tag; `tag` returns the tag that a mapping or an instance names, or None."""
    types: Any = Union[tuple(Annotated[kind, Tag(name)] for name, kind in classes.items())]  # noqa: UP007
    return Annotated[types, Discriminator(tag)]


def one_of(*classes: type[Choice]) -> Any:
    """The type of a dimension: one of these classes, selected by its `name`."""
    to_mapping: Callable[[object], object] = lambda v: {"name": v} if isinstance(v, str) else v  # noqa: E731
    types: Any = tagged({tag_of(kind): kind for kind in classes}, _tag_in)
    return Annotated[types, BeforeValidator(to_mapping), _Shorthand(classes)]


# Own code, `package.module:Name`, lies in the suite's `code` folders or is installed. The bench keeps the name and
# imports only own code that yields documents; workers import all other own code, in `build()`.


_folders: list[str] = []
"""The folders that `add_to_path` put on the path, for messages; a trial's process has one suite."""


class OwnCodeError(RuntimeError):
    """The suite names a module that is not there, or nothing in that module; one line, ready to print."""


def add_to_path(folders: Sequence[str]) -> None:
    """Puts the suite's folders of own code first on the path, in their order.

    A file stands for its folder. A folder that is itself a package (it has an `__init__.py`) stands for the
    folder around it, from which the package is imported.
    """
    _folders[:] = import_roots(folders)
    sys.path[:] = [*_folders, *(entry for entry in sys.path if entry not in _folders)]
    invalidate_caches()


def load(name: str, setting: str = "own code") -> Any:
    """What `package.module:Name` or `package.module:Class.method` names; `setting` is the key that named it.

    Raises OwnCodeError where there is no such module or attribute, or where the module lacks another that it
    imports: an ImportError would say that the machine lacks what selectbench needs. Whatever else the module
    raises while it is imported passes with its own traceback.
    """
    module_name, _, attributes = name.partition(":")
    try:
        value = import_module(module_name)
    except ImportError as error:
        # Either the named module (or a package around it) is not there, or something that the module imports.
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise OwnCodeError(_no_module(f"{setting} {name}", module_name, error.name or module_name)) from None
        raise OwnCodeError(f"{setting} {name}: importing {module_name}: {error}") from error
    for attribute in attributes.split("."):
        if not hasattr(value, attribute):
            known = [key for key in vars(value) if not key.startswith("_")] if hasattr(value, "__dict__") else []
            place = getattr(value, "__file__", None) or getattr(value, "__qualname__", type(value).__name__)
            hint = did_you_mean(attribute, known) or (f" (it has {', '.join(known[:8])})" if known else "")
            raise OwnCodeError(f"{setting} {name}: {place} has no {attribute}{hint}")
        value = getattr(value, attribute)
    return value


def _no_module(subject: str, module_name: str, missing: str) -> str:
    package, _, name = missing.rpartition(".")
    spec = find_spec(package) if package else None
    folders = (spec.submodule_search_locations if spec else None) if package else _folders
    # A folder without an `__init__.py` is a package too.
    names = [p.stem for f in folders or () for p in Path(f).iterdir() if p.is_dir() or p.suffix == ".py"]
    return f"{subject}: there is no module {missing}{did_you_mean(name, names)} {_searched(module_name)}"


def _searched(module_name: str) -> str:
    """Where the module was looked for, as the end of a sentence."""
    top = module_name.partition(".")[0]
    if parent := next((Path(f).parent for f in _folders if Path(f).name == top), None):
        return (
            f"in {', '.join(_folders)}: to import {top} as a package, name the folder around it, code: [{parent}]"
        )
    if _folders:
        return f"in {', '.join(_folders)} (the suite's `code`), nor is it installed"
    return "installed, and the suite has no `code: [folder]`"


def _finite(value: Any) -> Any:
    """Raises ValueError for NaN and infinity, however deep: records and hashes are JSON."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _finite(item)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"settings must be finite, found {value}")
    return value


OwnSettings = Annotated[dict[str, Any], AfterValidator(_finite)]


def free_of(*arguments: str) -> AfterValidator:
    """Refuses settings that name one of these arguments, which the worker passes itself."""

    def checked(settings: dict[str, Any]) -> dict[str, Any]:
        if taken := [key for key in arguments if key in settings]:
            passed = ", ".join(arguments)
            raise ValueError(f"settings may not set {', '.join(taken)}: given elsewhere ({passed} are)")
        return settings

    return AfterValidator(checked)


# Folders of own code: whether they can serve, and the digest of their content.
#
# Every file in them counts except caches and what a run writes: a kernel's source or a JSON file next to a module
# changes the training as much as the module does.


MOST_BYTES = 100 * 10**6
MOST_FILES = 20_000
IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "wandb", "mlruns"})
"""Folders of copies, caches and trackers; hidden folders and virtual environments are ignored too."""
LOGS = ("*.log", "events.out.tfevents.*")
"""Names of files that a training writes: an interrupted run that wrote one there is still the same run."""
RUN_FOLDER_FILES = ("suite.yaml", "environment.json")
"""A folder with both is a run's: results next to the code must not make the next run another one."""
MODULES = (".py", ".pyc", ".so", ".pyd")


def own_code_sha256(paths: Sequence[str], *, modules: bool = True) -> str | None:
    """Digest of names and contents of all files under these folders; None: there are no folders.

    `modules` False leaves out Python modules, since every trial records which of them it imported. A file stands
    for its folder. Raises UserError where a folder is gone, cannot be read or is too large.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            for name, file in _files(path):
                if not modules and name.endswith(MODULES):
                    continue
                content = file.read_bytes()
                digest.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
                digest.update(content)
        except (OSError, ValueError) as error:
            raise UserError(f"code: {_reason(error)}") from None
        digest.update(b"\0")
    return digest.hexdigest() if paths else None


def import_roots(folders: Sequence[str]) -> list[str]:
    """The folders from which modules of own code are imported, each once."""
    return list(dict.fromkeys(str(_import_root(Path(folder))) for folder in folders))


def _import_root(path: Path) -> Path:
    folder = path.parent if path.is_file() else path
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def has_changed(files: Mapping[str, str], paths: Sequence[str]) -> bool:
    """Whether a module that a trial imported from these folders has changed since; `files`: digests by name."""
    roots = [Path(root) for root in import_roots(paths)]
    current = {name: {_digest(root / name) for root in roots} for name in files}
    return any(digest not in current[name] for name, digest in files.items())


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def own_code_problem(path: str) -> str | None:
    """Why this absolute path cannot serve as own code, with the fix, or None. Contents are not read."""
    target = Path(path)
    if not target.exists():
        siblings = [p.name for p in target.parent.iterdir() if p.is_dir()] if target.parent.is_dir() else []
        return f"there is no folder {path}{did_you_mean(target.name, siblings)}"
    if target.is_file() and target.suffix != ".py":
        return f"{path} is a file, expected a folder that holds Python modules, or a .py file"
    try:
        holds_code = any(name.endswith(MODULES) for name, _ in _files(path))
    except (OSError, ValueError) as error:
        return _reason(error)
    return None if holds_code else f"{path} holds no Python module"


def _reason(error: Exception) -> str:
    return f"cannot read {error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _files(path: str) -> list[tuple[str, Path]]:
    """Relative name and path of every file that counts, sorted. Raises OSError, and ValueError above a limit."""
    top = Path(path).parent if Path(path).is_file() else Path(path)
    files: list[tuple[str, Path]] = []
    size = 0
    for file in walk(top):
        state = file.stat()
        if not stat.S_ISREG(state.st_mode):
            continue
        files.append((file.relative_to(top).as_posix(), file))
        size += state.st_size
        if size > MOST_BYTES or len(files) > MOST_FILES:
            raise ValueError(
                f"{top} holds more than {MOST_BYTES // 10**6} MB or {MOST_FILES} files: name the folder of "
                "the package itself, without data, checkpoints or results"
            )
    return sorted(files)


def walk(top: Path) -> Iterator[Path]:
    """Every file below that is no cache; links are followed, each folder is entered once. Raises OSError."""
    seen = {top.resolve()}
    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=_raise):
        subfolders[:] = [name for name in subfolders if _must_enter(Path(folder, name), seen)]
        for file in (Path(folder, name) for name in names):
            if file.name.startswith(".") or any(file.match(log) for log in LOGS):
                continue
            compiled = file.suffix == ".pyc" and file.with_suffix(".py").exists()
            if not compiled and file.exists():  # a broken link is listed and does not exist
                yield file


def _must_enter(folder: Path, seen: set[Path]) -> bool:
    if folder.name.startswith(".") or folder.name in IGNORED_FOLDERS or (folder / "pyvenv.cfg").exists():
        return False
    if all((folder / name).exists() for name in RUN_FOLDER_FILES) or folder.resolve() in seen:
        return False
    seen.add(folder.resolve())
    return True


def _raise(error: OSError) -> None:
    raise error

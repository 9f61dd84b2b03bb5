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
        """A copy with these fields, which are not validated."""
        return self.model_copy(update=changes)


class WrongValueError(ValueError):
    """What a class refuses because of the value under one of its keys, where the suite's messages point to."""

    def __init__(self, key: str, reason: str, *, says_key: bool = True) -> None:
        """`key` may have dots; `says_key`: the reason is a sentence that names it already."""
        super().__init__(reason if says_key else f"{key}: {reason}")
        self.key, self.reason = key, reason


@dataclass(frozen=True)
class Needs:
    """What a choice asks of a machine; the first need that is not met is the reason for `unsupported`."""

    device: str | None = None
    """`cuda`, or None where any device will do."""
    compute_capability: tuple[int, int] | None = None
    """The least one that will do on a CUDA device; not asked of a CPU."""
    packages: tuple[str, ...] = ()
    """Requirements as pip writes them, `torch>=2.9`."""
    install: str = INSTALL
    """The command that brings the packages."""
    compiler: bool = False
    """What generated code is compiled with on the job's device, as `machine.COMPILERS` has it."""

    def missing(self, machine: Machine) -> str | None:
        """Why this machine can't serve, with the remedy where there is one; None where it can."""
        if self.device and machine.device != self.device:
            return f"needs a {self.device} device, the job's is {machine.device}"
        capability = machine.compute_capability
        if self.compute_capability and capability and capability < self.compute_capability:
            wanted, found = (".".join(map(str, pair)) for pair in (self.compute_capability, capability))
            return f"needs compute capability {wanted}, this GPU has {found}"
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
    """How trials call what a suite names of own code."""

    setting: str
    """The key that names it, for messages."""
    name: str
    """`package.module:Name`."""
    positional: tuple[str, ...] = ()
    """What it is given in order, as people call that."""
    keywords: tuple[str, ...] = ()
    """What it is given by name."""


class Choice(Strict):
    """One value of one dimension. Fields are its settings; the text under each is its description."""

    source: ClassVar[str]
    """Where the method and its defaults come from."""
    needs: ClassVar[Needs] = Needs()
    may_change: ClassVar[frozenset[str]] = frozenset()
    """Identity fields that may differ because of this choice; any other difference is undeclared.

    The loss and the gradient norm of step 0 are named only by a choice that changes what is computed, such as
    another loss: for one that rounds otherwise they are compared within the dtypes' tolerance."""
    asks: ClassVar[Mapping[str, Any]] = {}
    """What it asks for whatever its settings are."""
    also_called: ClassVar[Mapping[str, str]] = {}
    """What to write for other names of it, in small letters without joints (`errors.plain_word`)."""
    waits: ClassVar[str | None] = None
    """How often its library makes the host wait for a GPU, whatever loop is around it; None: never."""
    preload: ClassVar[tuple[str, ...]] = ()
    """Modules that are slow to import and that the trial server may import once for all trials."""

    def excuses(self) -> frozenset[str]:
        """Identity fields that may differ because of the choice as it is set: `may_change`, or more."""
        return self.may_change

    def asks_for(self) -> dict[str, Any]:
        """Identity fields that the choice fixes, with the values that its trials must be found to have."""
        return dict(self.asks)

    def unsupported_reason(self, machine: Machine) -> str | None:
        """Why this machine can't run the choice, or None."""
        return self.needs.missing(machine)

    @property
    def call(self) -> OwnCall | None:
        """How trials call it, where it is own code; None: it is built in."""
        return None

    def caveat(self, device: str) -> str | None:
        """What a reader of its figures must know where it runs on this device, or None."""
        return None


OWN = "package.module:Name"
"""How own code is written wherever a name selects something built in, and the tag of its class in every union."""
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
    """The tag that a mapping or an instance asks for; None: it has none."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return OWN if is_own(name) else None if name is None else str(name)


class _Shorthand:
    """Lets `precision: fp32` stand for `precision: {name: fp32}`, in validation and in the schema."""

    def __init__(self, classes: tuple[type[Choice], ...]) -> None:
        self.classes = classes

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        complete = [tag for tag in map(_complete_tag, self.classes) if tag]
        words: list[dict[str, Any]] = [{"enum": [tag for tag in complete if tag != OWN]}] if complete else []
        own = [{"type": "string", "pattern": OWN_PATTERN}] if OWN in complete else []
        mapping = handler(core)
        return {"anyOf": [*words, *own, mapping]} if complete else dict(mapping)


def _complete_tag(choice: type[Choice]) -> str | None:
    """Its tag where the name alone says everything."""
    required = {key for key, field in choice.model_fields.items() if field.is_required()}
    return None if required - {"name"} else tag_of(choice)


def tagged(classes: Mapping[str, type[BaseModel]], tag: Callable[[object], str | None]) -> Any:
    """The type of one of these classes, by tag; `tag`: that which a mapping or an instance asks for, if any."""
    types: Any = Union[tuple(Annotated[kind, Tag(name)] for name, kind in classes.items())]  # noqa: UP007
    return Annotated[types, Discriminator(tag)]


def one_of(*classes: type[Choice]) -> Any:
    """The type of a dimension: one of these classes, selected by its `name`."""
    to_mapping: Callable[[object], object] = lambda v: {"name": v} if isinstance(v, str) else v  # noqa: E731
    types: Any = tagged({tag_of(kind): kind for kind in classes}, _tag_in)
    return Annotated[types, BeforeValidator(to_mapping), _Shorthand(classes)]


# Own code, `package.module:Name`, from the suite's folders of it or from what is installed. The bench keeps the
# name and imports nothing but what yields documents; all else is imported by a worker, in `build()`.


_folders: list[str] = []
"""What `add_to_path` put on the path, for messages; a trial's process has one suite."""


class OwnCodeError(RuntimeError):
    """A name of the suite that leads to no module, or to nothing in it; one line, ready to print."""


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
        found = import_module(module_name)
    except ImportError as error:
        # What was not found is the module asked for or a package around it, or else something that it imports.
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise OwnCodeError(_no_module(f"{setting} {name}", module_name, error.name or module_name)) from None
        raise OwnCodeError(f"{setting} {name}: importing {module_name}: {error}") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            has = [word for word in vars(found) if not word.startswith("_")] if hasattr(found, "__dict__") else []
            place = getattr(found, "__file__", None) or getattr(found, "__qualname__", type(found).__name__)
            hint = did_you_mean(attribute, has) or (f" (it has {', '.join(has[:8])})" if has else "")
            raise OwnCodeError(f"{setting} {name}: {place} has no {attribute}{hint}")
        found = getattr(found, attribute)
    return found


def _no_module(subject: str, module_name: str, missing: str) -> str:
    package, _, name = missing.rpartition(".")
    spec = find_spec(package) if package else None
    folders = (spec.submodule_search_locations if spec else None) if package else _folders
    # A folder without an `__init__.py` is a package too.
    names = [p.stem for f in folders or () for p in Path(f).iterdir() if p.is_dir() or p.suffix == ".py"]
    return f"{subject}: there is no module {missing}{did_you_mean(name, names)} {_where(module_name)}"


def _where(module_name: str) -> str:
    top = module_name.partition(".")[0]
    if around := next((Path(f).parent for f in _folders if Path(f).name == top), None):
        return (
            f"in {', '.join(_folders)}: to import {top} as a package, name the folder around it, code: [{around}]"
        )
    if _folders:
        return f"in {', '.join(_folders)} (the suite's `code`), nor is it installed"
    return "installed, and the suite has no `code: [folder]`"


def _finite(value: Any) -> Any:
    """Raises ValueError for NaN and infinity, however deep: records and hashes are JSON."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for below in inside:
        _finite(below)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"settings must be finite, found {value}")
    return value


OwnSettings = Annotated[dict[str, Any], AfterValidator(_finite)]


def free_of(*given: str) -> AfterValidator:
    """Refuses settings that name an argument which the worker gives already."""

    def checked(settings: dict[str, Any]) -> dict[str, Any]:
        if taken := [key for key in given if key in settings]:
            raise ValueError(f"settings may not set {', '.join(taken)}: given elsewhere ({', '.join(given)} are)")
        return settings

    return AfterValidator(checked)


# Folders of own code: whether they can serve, and what their content was.
#
# Everything in them counts but caches and what a run writes: a kernel's source or a JSON file beside a module
# changes the training as much as the module does.


MOST_BYTES = 100 * 10**6
MOST_FILES = 20_000
LEFT_OUT = frozenset({"__pycache__", "node_modules", "site-packages", "wandb", "mlruns"})
"""Folders of copies, caches and trackers; hidden ones and virtual environments are left out too."""
LOGS = ("*.log", "events.out.tfevents.*")
"""Names of files that a training writes: an interrupted run that wrote one there is still the same run."""
OF_A_RUN = ("suite.yaml", "environment.json")
"""Both lie in a run's folder: results beside the code must not make the next run another one."""
MODULES = (".py", ".pyc", ".so", ".pyd")


def own_code_sha256(paths: Sequence[str], *, modules: bool = True) -> str | None:
    """Digest of names and contents of all files under these folders; None: there are no folders.

    `modules` False: without those that Python imports, of which every trial tells which it did. A file stands for
    its folder. Raises UserError where a folder is gone, cannot be read or is too large.
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
            raise UserError(f"code: {_words(error)}") from None
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
    """Whether a module that a trial imported from these folders is another one now; `files`: digests by name."""
    roots = [Path(root) for root in import_roots(paths)]
    now = {name: {_digest(root / name) for root in roots} for name in files}
    return any(digest not in now[name] for name, digest in files.items())


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def own_code_problem(path: str) -> str | None:
    """Why this absolute path cannot serve as own code, with the fix, or None. Contents are not read."""
    found = Path(path)
    if not found.exists():
        beside = [p.name for p in found.parent.iterdir() if p.is_dir()] if found.parent.is_dir() else []
        return f"there is no folder {path}{did_you_mean(found.name, beside)}"
    if found.is_file() and found.suffix != ".py":
        return f"{path} is a file, expected a folder that holds Python modules, or a .py file"
    try:
        holds_code = any(name.endswith(MODULES) for name, _ in _files(path))
    except (OSError, ValueError) as error:
        return _words(error)
    return None if holds_code else f"{path} holds no Python module"


def _words(error: Exception) -> str:
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
    for folder, below, names in os.walk(top, followlinks=True, onerror=_raise):
        below[:] = [name for name in below if _counts(Path(folder, name), seen)]
        for file in (Path(folder, name) for name in names):
            if file.name.startswith(".") or any(file.match(log) for log in LOGS):
                continue
            compiled = file.suffix == ".pyc" and file.with_suffix(".py").exists()
            if not compiled and file.exists():  # a broken link is there and does not exist
                yield file


def _counts(folder: Path, seen: set[Path]) -> bool:
    if folder.name.startswith(".") or folder.name in LEFT_OUT or (folder / "pyvenv.cfg").exists():
        return False
    if all((folder / name).exists() for name in OF_A_RUN) or folder.resolve() in seen:
        return False
    seen.add(folder.resolve())
    return True


def _raise(error: OSError) -> None:
    raise error

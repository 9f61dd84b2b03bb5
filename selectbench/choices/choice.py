"""What every choice is: a class that says what it does, where that comes from and what it needs.

A choice is added in one place, as one class. Validation, the JSON schema, `plan`, `doctor` and the
tests all read the class itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Union

from packaging.requirements import Requirement
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from selectbench.machine import INSTALL, Machine


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
    """A C++ compiler on the path, for generated CPU code."""

    def missing(self, machine: Machine) -> str | None:
        """Why this machine can't serve, with the remedy where there is one; None where it can."""
        if self.device and machine.device != self.device:
            return f"needs a {self.device} device, this job runs on the {machine.device}"
        capability = machine.compute_capability
        if self.compute_capability and capability and capability < self.compute_capability:
            wanted, found = (".".join(map(str, pair)) for pair in (self.compute_capability, capability))
            return f"needs compute capability {wanted}, this GPU has {found}"
        if self.compiler and machine.device == "cpu" and not machine.compiler:
            return "needs a C++ compiler (install g++, or set CXX)"
        return next(filter(None, (self._missing_package(text, machine) for text in self.packages)), None)

    def _missing_package(self, text: str, machine: Machine) -> str | None:
        requirement = Requirement(text)
        found = machine.package_version(requirement.name)
        if found is None:
            return f"the package {requirement.name} is not installed: {self.install}"
        if not requirement.specifier.contains(found, prereleases=True):
            return f"needs {text}, found {requirement.name} {found}: {self.install}"
        return None


class Choice(BaseModel):
    """One value of one dimension. Fields are its settings; the text under each is its description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    source: ClassVar[str]
    """Where the method and its defaults come from."""
    needs: ClassVar[Needs] = Needs()
    may_change: ClassVar[frozenset[str]] = frozenset()
    """Identity fields that may differ because of this choice; any other difference is undeclared."""
    preload: ClassVar[tuple[str, ...]] = ()
    """Modules that are slow to import and that the trial server may import once for all trials."""

    def unsupported_reason(self, machine: Machine) -> str | None:
        """Why this machine can't run the choice, or None."""
        return self.needs.missing(machine)

    def caveat(self, device: str) -> str | None:
        """What a reader of its figures must know where it runs on this device, or None."""
        return None


def tag_of(choice: type[Choice]) -> str:
    """The word that selects the class in a suite, `adamw` for `AdamW`."""
    return str(choice.model_fields["name"].default)


class _Shorthand:
    """Lets `precision: fp32` stand for `precision: {name: fp32}`, in validation and in the schema."""

    def __init__(self, classes: tuple[type[Choice], ...]) -> None:
        self.classes = classes

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        complete = [tag_of(c) for c in self.classes if not any(f.is_required() for f in c.model_fields.values())]
        mapping = handler(core)
        return {"anyOf": [{"enum": complete}, mapping]} if complete else dict(mapping)


def one_of(*classes: type[Choice]) -> Any:
    """The type of a dimension: one of these classes, selected by its `name`."""
    to_mapping: Callable[[object], object] = lambda v: {"name": v} if isinstance(v, str) else v  # noqa: E731
    union = Union[classes] if len(classes) > 1 else classes[0]  # noqa: UP007
    tagged = Annotated[union, Field(discriminator="name")] if len(classes) > 1 else union
    return Annotated[tagged, BeforeValidator(to_mapping), _Shorthand(classes)]

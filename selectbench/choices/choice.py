"""What every choice is: a class that says what it does, where that comes from and what it needs.

A choice is added in one place, as one class. Validation, the JSON schema, `plan`, `doctor` and the
tests all read the class itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, GetJsonSchemaHandler, Tag
from pydantic_core import CoreSchema

from selectbench.machine import COMPILERS, INSTALL, Machine


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
            return f"needs a {self.device} device, this job runs on the {machine.device}"
        capability = machine.compute_capability
        if self.compute_capability and capability and capability < self.compute_capability:
            wanted, found = (".".join(map(str, pair)) for pair in (self.compute_capability, capability))
            return f"needs compute capability {wanted}, this GPU has {found}"
        if self.compiler and not machine.compiler:
            compiler = COMPILERS[machine.device]
            return f"needs a {compiler.language} compiler ({compiler.remedy})"
        return next(filter(None, (self._missing_package(text, machine) for text in self.packages)), None)

    def _missing_package(self, text: str, machine: Machine) -> str | None:
        from packaging.requirements import Requirement  # slow to import, and of no use to a report

        requirement = Requirement(text)
        found = machine.package_version(requirement.name)
        if found is None:
            return f"the package {requirement.name} is not installed: {machine.install_command(text, self.install)}"
        if not requirement.specifier.contains(found, prereleases=True):
            return f"needs {text}, found {requirement.name} {found}: {machine.install_command(text, self.install)}"
        return None


class Choice(BaseModel):
    """One value of one dimension. Fields are its settings; the text under each is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    source: ClassVar[str]
    """Where the method and its defaults come from."""
    needs: ClassVar[Needs] = Needs()
    may_change: ClassVar[frozenset[str]] = frozenset()
    """Identity fields that may differ because of this choice; any other difference is undeclared.

    The loss and the gradient norm of step 0 are named only by a choice that changes what is computed, such as
    another loss: for one that rounds otherwise they are compared within the dtypes' tolerance."""
    waits: ClassVar[str | None] = None
    """How often its library makes the host wait for a GPU, whatever loop is around it; None: never."""
    preload: ClassVar[tuple[str, ...]] = ()
    """Modules that are slow to import and that the trial server may import once for all trials."""

    def excuses(self) -> frozenset[str]:
        """Identity fields that may differ because of the choice as it is set: `may_change`, or more."""
        return self.may_change

    def asks_for(self) -> dict[str, Any]:
        """Identity fields that the choice fixes, with the values that its trials must be found to have."""
        return {}

    def unsupported_reason(self, machine: Machine) -> str | None:
        """Why this machine can't run the choice, or None."""
        return self.needs.missing(machine)

    def caveat(self, device: str) -> str | None:
        """What a reader of its figures must know where it runs on this device, or None."""
        return None


OWN = "package.module:Name"
"""How own code is written, and the tag of its class in every union."""
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


def one_of(*classes: type[Choice]) -> Any:
    """The type of a dimension: one of these classes, selected by its `name`."""
    to_mapping: Callable[[object], object] = lambda v: {"name": v} if isinstance(v, str) else v  # noqa: E731
    tagged: Any = Union[tuple(Annotated[kind, Tag(tag_of(kind))] for kind in classes)]  # noqa: UP007
    return Annotated[tagged, Discriminator(_tag_in), BeforeValidator(to_mapping), _Shorthand(classes)]

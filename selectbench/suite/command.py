"""A job that is a training command which is there already: its keys, its options, how its words are filled in."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from selectbench.choices import AnyChoices, execution
from selectbench.choices.choice import Strict, WrongValueError
from selectbench.errors import did_you_mean
from selectbench.suite.job import OwnMetric, Steps
from selectbench.text import quoted

Scalar = str | bool | int | float
Scored = Annotated[int, Field(ge=1, le=1 << 40)]
ON_NODES = ("nnodes", "node_rank", "rdzv")
"""Placeholders that a command needs to run on several nodes."""
GIVEN = ("seed", "max_steps", "world_size", "gradient_accumulation_steps", "args", *ON_NODES, "ranks_per_node")
"""Placeholders that have a value in every option."""
CERTIFIED = (
    "initial_weights_sha256", "token_stream_sha256", "parameters", "trainable_parameters", "tokens_per_step",
    "steps_requested", "steps_applied", "gradient_accumulation_steps", "learning_rate_shape_sha256",
    "peak_learning_rate", "parameter_dtype", "gradient_dtype", "compute_dtype", "optimizer_state_dtype",
    "matmul_tf32", "attention", "optimizer", "compiled", "first_step_loss", "first_step_gradient_norm",
    "first_step_update_norm", "left_out_parameters", "heldout_rows_trained", "loss", "world_size", "strategy",
    "framework", "dropout", "evaluation_set_sha256",
)  # fmt: skip
"""Fields of `record.Identity` that are observed of a command, which `may_change` can name."""
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_SHELLS = ("sh", "bash", "zsh")
_SHELL_SYNTAX = re.compile(r"^(&&|\|\|?|;|&|<|\d?>.*)$|\$[A-Za-z_(]\w*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _can_be_set(environment: dict[str, str]) -> dict[str, str]:
    for name, value in environment.items():
        if not name or "=" in name:
            raise ValueError(f"{quoted(name)} is no name of a variable")
        list(placeholders(value))
    return environment


Variables = Annotated[dict[str, str], AfterValidator(_can_be_set)]


class CommandNode(NamedTuple):
    """One of the nodes on which a command is started."""

    node: int = 0
    nodes: int = 1
    rdzv: str = "127.0.0.1:29500"
    """HOST:PORT of the first node, where the command's own processes can meet."""


ONE_NODE = CommandNode()


class HeldOut(Strict):
    """Text that the script does not train on; the model's loss on it is measured after the last step."""

    heldout: str | None = None
    """A .npy file of token ids, all that are scored in one row of numbers."""
    text: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Text files, as globs, in place of token ids."""
    tokenizer: str | None = None
    """The folder with the `tokenizer.json` that the script uses; goes with `text`."""
    tokens: Scored = 65536
    """Held-out tokens to score, rounded down to whole sequences; all of them where there are fewer."""
    seq_len: Annotated[int, Field(ge=2, le=1 << 20)] | None = None
    """Tokens of a sequence that is scored; those of the script's first training row where not given."""

    @model_validator(mode="after")
    def _has_one_source(self) -> HeldOut:
        if (self.heldout is None) == (not self.text):
            raise ValueError("give `heldout` (a .npy file of token ids) or `text` with `tokenizer`")
        if (self.tokenizer is None) != (not self.text):
            raise WrongValueError("tokenizer", "goes with `text`, and `text` needs it", says_key=False)
        return self


class CommandTiming(Strict):
    """What of a trial is timed."""

    warmup_steps: Annotated[int, Field(ge=1, le=100_000)] = 20
    """First steps that train but enter no figure of speed."""


class CommandJob(Strict):
    """A training command; every option runs it with its own values for the placeholders."""

    command: Annotated[str, Field(min_length=1)]
    """The command with placeholders such as `{seed}`: `python train.py --seed {seed} --lr {lr} {args}`. It is split
    into words without a shell; a value is one word, only `args` is split; `{{` is a brace."""
    directory: str
    """Where it runs, relative to the suite; the suite's own folder where not given."""
    environment: Variables = Field(default_factory=dict)
    """Variables of its environment, over those of selectbench's own; placeholders are filled in."""
    max_steps: Steps
    """Optimizer steps: where the script's own schedule ends, `{max_steps}` in the command."""
    stop: Literal["at_max_steps", "natural_end"] | Steps = "at_max_steps"
    """When a trial ends: after `max_steps`, when the script ends by itself, or after so many steps though the
    schedule goes on."""
    timing: CommandTiming = CommandTiming()
    """What of a trial is timed."""
    eval: HeldOut | Literal["none"] = "none"
    """Evaluation on held-out tokens, or `none`: then options are compared by speed and memory alone."""
    global_batch_size: Annotated[int, Field(ge=1, le=1 << 22)] | None = None
    """Rows that every optimizer step must train on, over all ranks; `{gradient_accumulation_steps}` follows."""

    @field_validator("command")
    @classmethod
    def _parses(cls, command: str) -> str:
        if not (split := words(command)):
            raise ValueError("is empty")
        is_shell = Path(split[0]).name in _SHELLS
        if is_shell and "-c" in split and "{args}" in split:
            script, *arguments = [*split[split.index("-c") + 1 :], ""]
            if not re.search(r"\$[@*1]", script) or arguments[0] == "{args}":
                example = "bash -c 'python train.py \"$@\"' sh {args}"
                raise ValueError(f"a shell hands {{args}} on only where its script says so: {example}")
        for word in split:
            if not is_shell and (match := _SHELL_SYNTAX.search(word)):
                raise ValueError(f"no shell reads {quoted(match[0])}: write bash -c '...', or a script")
            for name in placeholders(word):
                if name == "args" and word != "{args}":
                    raise ValueError("`{args}` is a word of its own, since it is split into words")
        return command

    @property
    def stops_after(self) -> int:
        """Optimizer steps of a trial."""
        return self.stop if isinstance(self.stop, int) else self.max_steps

    @property
    def names(self) -> list[str]:
        """Placeholders of the command and of its environment, each once."""
        return names_in([self.command, *self.environment.values()])

    @property
    def evaluates(self) -> bool:
        """Whether the job yields figures of quality."""
        return self.eval != "none"

    # Analysis and reports read these of any job. A command's held-out loss is known after its last step only.
    evaluates_on_the_way: ClassVar[bool] = False
    scored: ClassVar[frozenset[str]] = frozenset()
    own_metrics: ClassVar[dict[str, OwnMetric]] = {}
    task: ClassVar[str] = "command"


def _requirement(text: str) -> str:
    from packaging.requirements import InvalidRequirement, Requirement  # slow to import, and of no use to a report

    try:
        Requirement(text)
    except InvalidRequirement:
        raise ValueError(f"{quoted(text)} is no requirement as pip writes it, such as lightning>=2.4") from None
    return text


NO_VALUE = "the value of a placeholder is text, a number, true or false"


def _one_word(value: object) -> object:
    if not isinstance(value, Scalar) or (isinstance(value, float) and not abs(value) < float("inf")):
        raise ValueError(NO_VALUE)
    return value


class CommandChoices(AnyChoices):
    """What an option of a command sets: values of placeholders, by their names, and what stands here."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Scalar, BeforeValidator(_one_word)]] = Field(init=False)

    args: str = ""
    """Words of the command in place of `{args}`, split as a shell splits them."""
    world_size: execution.WorldSize = 1
    """Processes that the command starts, `{world_size}`: a number, or auto for one per idle GPU."""
    micro_batch_size: Annotated[int, Field(ge=1, le=1 << 22)] | None = None
    """Rows per forward pass and rank, `{micro_batch_size}`; with `job.global_batch_size` it decides
    `{gradient_accumulation_steps}`."""
    environment: Variables = Field(default_factory=dict)
    """Variables of the option's environment, over the job's."""
    may_change: list[str] = Field(default_factory=list)
    """Fields of the certificate that the option is meant to change, such as `compute_dtype`; a difference in any
    other is a violation."""
    needs: list[Annotated[str, AfterValidator(_requirement)]] = Field(default_factory=list)
    """Packages that the option's script imports, as pip writes them (`lightning>=2.4`): where one is not installed
    the option is `unsupported`, and the row says how to install it."""
    python: execution.Interpreter | None = None
    """Interpreter of another virtual environment, relative to the suite: its folder comes first on PATH, and a
    command that begins with `python` runs with it."""

    @field_validator("args")
    @classmethod
    def _splits(cls, args: str) -> str:
        words(args)
        return args

    def as_written(self) -> dict[str, Any]:
        """The keys as a suite writes them, without empty ones."""
        return {key: value for key, value in super().as_written().items() if value not in (None, "", {}, [])}

    @property
    def values(self) -> dict[str, Scalar]:
        """The values of the placeholders that are not reserved, by name."""
        return dict(self.__pydantic_extra__ or {})


RESERVED = tuple(CommandChoices.model_fields)
"""Keys of an option that are not the value of a placeholder, or that also mean something else."""

NOTE_KEYS = ("may_change", "needs")
"""Reserved keys that are notes on the option and change nothing in how it trains."""


def words(command: str) -> list[str]:
    """The words of a command as a shell splits it, nothing expanded. Raises ValueError if it can't be split."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {str(error).lower()}") from None


def placeholders(text: str) -> Iterator[str]:
    """The names in braces. Raises ValueError for braces that hold no name."""
    for match in _PLACEHOLDER.finditer(text):
        if match[0] in ("{{", "}}"):
            continue
        if match[1] is None or not _NAME.fullmatch(match[1]):
            raise ValueError(
                f"{quoted(match[0])} is no placeholder such as {{seed}}; a brace itself is written {{{{"
            )
        yield match[1]


def names_in(texts: Iterable[str]) -> list[str]:
    """Placeholders of these texts, each once; of a text with wrong braces, those before the first of them."""
    names: dict[str, None] = {}
    for text in texts:
        with suppress(ValueError):
            for name in placeholders(text):
                names[name] = None
    return list(names)


def _filled(text: str, values: Mapping[str, Scalar]) -> str:
    def replacement(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        value = values[match[1]]
        return str(value).lower() if isinstance(value, bool) else str(value)

    return _PLACEHOLDER.sub(replacement, text)


def accumulation(job: CommandJob, choices: CommandChoices, ranks: int) -> int | None:
    """Micro-batches per optimizer step and rank; None: the sizes that decide it are not given."""
    if job.global_batch_size is None or choices.micro_batch_size is None:
        return None
    return job.global_batch_size // (choices.micro_batch_size * ranks)


def placeholder_values(
    job: CommandJob, choices: CommandChoices, seed: int, ranks: int, at: CommandNode
) -> dict[str, Scalar]:
    """The values of all placeholders that have one."""
    values: dict[str, Scalar | None] = {
        **choices.values, "seed": seed, "max_steps": job.max_steps, "world_size": ranks,
        "nnodes": at.nodes, "node_rank": at.node, "rdzv": at.rdzv, "ranks_per_node": ranks // at.nodes,
        "micro_batch_size": choices.micro_batch_size,
        "gradient_accumulation_steps": accumulation(job, choices, ranks),
    }  # fmt: skip
    return {name: value for name, value in values.items() if value is not None}


def unfilled_placeholders(job: CommandJob, choices: CommandChoices) -> list[str]:
    """Placeholders of the command and the environment that have no value."""
    known = {"args", *placeholder_values(job, choices, 0, 1, ONE_NODE)}
    return [
        name for name in dict.fromkeys([*job.names, *names_in(choices.environment.values())]) if name not in known
    ]


def arguments(
    job: CommandJob, choices: CommandChoices, seed: int, ranks: int, where: CommandNode = ONE_NODE
) -> list[str]:
    """The command's words for one trial, with the option's interpreter in place of `python`."""
    values = placeholder_values(job, choices, seed, ranks, where)
    filled: list[str] = []
    for word in words(job.command):
        filled += words(choices.args) if word == "{args}" else [_filled(word, values)]
    if choices.python is not None and filled and re.fullmatch(r"python3?(\.\d+)?", filled[0]):
        filled[0] = choices.python
    return filled


def variables(
    job: CommandJob, choices: CommandChoices, seed: int, ranks: int, where: CommandNode = ONE_NODE
) -> dict[str, str]:
    """The environment variables that the job and the option set; the option's interpreter comes first on PATH."""
    values = {**placeholder_values(job, choices, seed, ranks, where), "args": choices.args}
    filled = {name: _filled(value, values) for name, value in {**job.environment, **choices.environment}.items()}
    if choices.python is None:
        return filled
    folder, path = Path(choices.python).parent, filled.get("PATH", os.environ.get("PATH", os.defpath))
    return {"VIRTUAL_ENV": str(folder.parent), **filled, "PATH": f"{folder}:{path}"}


def _program(job: CommandJob, choices: CommandChoices) -> str | None:
    """The file that the command's first word runs; None: it is not found on PATH."""
    return shutil.which(arguments(job, choices, 0, 1)[0], path=variables(job, choices, 0, 1).get("PATH"))


def interpreter(job: CommandJob, choices: CommandChoices) -> str | None:
    """The interpreter of the environment that has the command's program; None: selectbench's own, or unknown."""
    folder = Path(_program(job, choices) or sys.executable).parent
    python = choices.python or str(folder / "python")
    return python if folder != Path(sys.executable).parent and Path(python).is_file() else None


def nodes_problem(job: CommandJob) -> str | None:
    """Why the command can't run on several nodes, with what to add, or None."""
    if not (missing := [name for name in ON_NODES if name not in job.names]):
        return None
    names = ", ".join(f"{{{name}}}" for name in missing)
    return (
        f"job.command: it is started on every node, and has no {names} to be told so: torchrun --nnodes {{nnodes}} "
        "--node-rank {node_rank} --rdzv-endpoint {rdzv} --nproc-per-node {ranks_per_node} SCRIPT ..."
    )


def program_problem(job: CommandJob, choices: CommandChoices) -> str | None:
    """Why the command's first word can't be run, with what would help, or None."""
    first, *others = arguments(job, choices, 0, 1)
    if "/" in first:
        file = Path(job.directory) / first
        return None if shutil.which(str(file)) else f"{file} is not there, or not executable"
    if _program(job, choices):
        return _script_problem(Path(first).name, others, job.directory)
    if "=" in first or first == "cd":
        return f"{quoted(first)} is for a shell: give job.{'environment' if '=' in first else 'directory'} instead"
    near = did_you_mean(first, ["python", "python3", "torchrun", "accelerate", "deepspeed", "litgpt", "trl"])
    return f"{quoted(first)} is not found on PATH{near}: name the program as it is typed in a terminal"


def _script_problem(program: str, arguments: Sequence[str], directory: str) -> str | None:
    """Why Python can't run the first script of its arguments, with the nearest; or None, as for `-m` and `-c`."""
    script = next((word for word in arguments if word.endswith(".py") or word in ("-c", "-m", "--module")), "-m")
    if not re.match("python|torchrun|accelerate|deepspeed", program) or script.startswith("-"):
        return None
    file = Path(directory) / script
    others = sorted(os.path.relpath(path, directory) for path in file.parent.glob("*.py"))
    return None if file.is_file() else f"there is no file {file}{did_you_mean(script, others)}"

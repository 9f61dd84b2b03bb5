"""What a training command needs before it runs: held-out tokens as one file, its scripts' digest, its order."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selectbench.choices.choice import LEFT_OUT
from selectbench.data.prepared import cache_root
from selectbench.errors import MissingPackageError, UserError
from selectbench.machine import INSTALL
from selectbench.plan.plan import PlannedTrial
from selectbench.record.run_folder import TRIALS, writing
from selectbench.record.wire import CommandOrder
from selectbench.suite.command import CommandChoices, CommandJob, HeldOut, arguments, variables
from selectbench.suite.suite import Suite

MOST_SCRIPTS = 5000
"""Files of a command's folder whose content names a run; of a folder with more nobody can tell."""
_SCRIPTS = (".py", ".sh", ".yaml", ".yml", ".toml", ".cfg")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class HeldOutTokens:
    """Held-out tokens as the observer reads them."""

    file: Path
    """Little-endian int64."""
    sha256: str
    tokens: int
    """That are scored at most."""


def held_out_tokens(job: CommandJob) -> HeldOutTokens | None:
    """Written into the cache, once for each content; None: the job has no evaluation. Raises UserError."""
    if not isinstance(job.eval, HeldOut):
        return None
    ids = _read_ids(job.eval) if job.eval.heldout is not None else _encoded(job.eval)
    content = np.ascontiguousarray(ids[: job.eval.tokens + 1], dtype="<i8").tobytes()
    digest = hashlib.sha256(content).hexdigest()
    file = cache_root() / "heldout" / f"{digest[:24]}.bin"
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.{os.getpid()}")
            temporary.write_bytes(content)
            temporary.replace(file)
    return HeldOutTokens(file, digest, min(job.eval.tokens, len(content) // 8 - 1))


def _read_ids(held_out: HeldOut) -> np.ndarray:
    path = Path(held_out.heldout or "")
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        raise UserError(f"job.eval.heldout: {path}: is no .npy file of numbers, as numpy.save writes it") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or found.size < 3:
        kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
        raise UserError(f"job.eval.heldout: {path}: expected an array of token ids, found {kind}")
    ids: np.ndarray = found.reshape(-1)[: held_out.tokens + 1]
    if int(ids.min()) < 0:
        raise UserError(f"job.eval.heldout: {path}: a token id is below 0")
    return ids


def _encoded(held_out: HeldOut) -> np.ndarray:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingPackageError(
            f"job.eval.tokenizer: the package tokenizers is not installed: {INSTALL}"
        ) from None
    files = sorted({file for pattern in held_out.text for file in glob.glob(pattern, recursive=True)})  # noqa: PTH207
    if not files:
        raise UserError(f"job.eval.text: no file matches {', '.join(held_out.text)}")
    path = Path(held_out.tokenizer or "") / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # a plain Exception is all that the library raises
        raise UserError(f"job.eval.tokenizer: {path}: cannot be read: {error}") from None
    ids: list[int] = []
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"job.eval.text: {file}: {error}") from None
        ids += tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > held_out.tokens:
            break
    if len(ids) < 3:
        raise UserError("job.eval.text: the files hold fewer than three tokens")
    return np.array(ids, dtype="<i8")


def scripts_sha256(job: CommandJob) -> str | None:
    """Digest of the scripts and configurations below the command's folder; None: there are too many to look at.

    Data, checkpoints, caches, virtual environments and hidden folders are left out.
    """
    digest, top = hashlib.sha256(), Path(job.directory)
    for number, file in enumerate(_scripts(top)):
        if number == MOST_SCRIPTS:
            return None
        try:
            content = file.read_bytes()
        except OSError:
            continue
        digest.update(f"{file.relative_to(top)}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def _scripts(top: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(top):
        below[:] = sorted(
            name for name in below
            if not name.startswith(".") and name not in (*LEFT_OUT, "results")
            and not (Path(folder, name) / "pyvenv.cfg").exists()
        )  # fmt: skip
        for file in (Path(folder, name) for name in sorted(names)):
            if file.suffix in _SCRIPTS and file.is_file() and file.stat().st_size <= _MOST_BYTES:
                yield file


def command_order(suite: Suite, planned: PlannedTrial, ranks: int, run: Path) -> CommandOrder:
    """The order of a trial in the run's folder."""
    job, choices = suite.command, suite.option(planned.trial.option).choices
    assert job is not None
    assert isinstance(choices, CommandChoices)
    seed, held_out = planned.trial.seed, held_out_tokens(job)
    return CommandOrder(
        trial=planned.trial,
        arguments=arguments(job, choices, seed, ranks),
        directory=job.directory,
        environment=variables(job, choices, seed, ranks, os.environ.get("PATH", os.defpath)),
        world_size=ranks,
        max_steps=job.stops_after,
        stop="natural_end" if job.stop == "natural_end" else "at_max_steps",
        warmup_steps=job.timing.warmup_steps,
        heldout=None if held_out is None else str(held_out.file),
        heldout_sha256=held_out.sha256 if held_out else None,
        heldout_tokens=held_out.tokens if held_out else 0,
        seq_len=job.eval.seq_len if isinstance(job.eval, HeldOut) else None,
        trial_folder=str((run / TRIALS / planned.trial.trial_id).resolve()),
    )


def command_facts(suite: Suite) -> dict[str, object]:
    """What environment.json says of the command: scripts and held-out tokens. Raises UserError."""
    job = suite.command
    assert job is not None
    held_out = held_out_tokens(job)
    facts = {} if held_out is None else {"heldout_sha256": held_out.sha256, "heldout_tokens": held_out.tokens}
    return {"scripts_sha256": scripts_sha256(job), **facts}

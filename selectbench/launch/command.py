"""What a training command needs before it runs: held-out tokens as one file, its scripts' digest, its order."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from selectbench.choices.choice import walk
from selectbench.data.prepared import cache_root, publish, remove
from selectbench.data.reading import find_files
from selectbench.errors import MissingPackageError, UserError
from selectbench.machine import INSTALL
from selectbench.planning.plan import PlannedTrial
from selectbench.record.run_folder import TRIALS
from selectbench.record.wire import CommandOrder, Place
from selectbench.suite.command import CommandChoices, CommandJob, HeldOut, Where, arguments, variables
from selectbench.suite.suite import Suite

MOST_FILES = 20_000
"""In a command's folder; what its scripts are in one with more, nobody looks at."""
_SCRIPTS = (".py", ".sh", ".yaml", ".yml", ".toml", ".cfg")
_MOST_BYTES = 1 << 20
Facts = dict[str, str | int | None]
"""What environment.json says of a command: `scripts_sha256`, and where it is evaluated `heldout_sha256` and
`heldout_tokens`, the most that are scored."""


def command_facts(suite: Suite, notify: Callable[[str], None]) -> Facts:
    """Of its scripts and its held-out tokens, which are written into the cache. Raises UserError."""
    job = suite.command
    assert job is not None
    facts: Facts = {"scripts_sha256": scripts_sha256(job)}
    if not isinstance(job.eval, HeldOut):
        return facts
    ids = _read_ids(job.eval) if job.eval.heldout is not None else _encoded(job.eval, notify)
    content = np.ascontiguousarray(ids[: job.eval.tokens + 1], dtype="<i8").tobytes()
    digest = hashlib.sha256(content).hexdigest()
    file = _heldout_file(digest)
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        remove(file.parent)
    if not file.is_file():

        def write(folder: Path) -> None:
            (folder / file.name).write_bytes(content)

        publish(file.parent, write)
    return {**facts, "heldout_sha256": digest, "heldout_tokens": min(job.eval.tokens, len(content) // 8 - 1)}


def _heldout_file(digest: str) -> Path:
    """Little-endian int64, as the observer reads it."""
    return cache_root() / "heldout" / digest[:24] / "tokens.bin"


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


def _encoded(held_out: HeldOut, notify: Callable[[str], None]) -> np.ndarray:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        missing = f"job.eval.tokenizer: the package tokenizers is not installed: {INSTALL}"
        raise MissingPackageError(missing) from None
    path = Path(held_out.tokenizer or "") / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # a plain Exception is all that the library raises
        raise UserError(f"job.eval.tokenizer: {path}: cannot be read: {error}") from None
    ids: list[int] = []
    for file in find_files(held_out.text, notify, "job.eval.text"):
        try:
            ids += tokenizer.encode(file.read_text(encoding="utf-8"), add_special_tokens=False).ids
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"job.eval.text: {file}: {error}") from None
        if len(ids) > held_out.tokens:
            break
    if len(ids) < 3:
        raise UserError("job.eval.text: the files hold fewer than three tokens")
    return np.array(ids, dtype="<i8")


def own_order(order: CommandOrder, suite: Suite) -> CommandOrder:
    """The same with this machine's folders."""
    assert suite.command is not None
    heldout = order.heldout_sha256 and str(_heldout_file(order.heldout_sha256))
    return replace(order, directory=suite.command.directory, heldout=heldout)


def scripts_sha256(job: CommandJob) -> str | None:
    """Digest of the scripts and configurations below the command's folder; None: nobody can look at all its files.

    Data, caches, logs, runs, virtual environments and hidden folders are left out.
    """
    digest, top = hashlib.sha256(), Path(job.directory)
    try:
        files = sorted(islice(walk(top), MOST_FILES + 1))
        if len(files) > MOST_FILES:
            return None
        for file in files:
            if file.suffix in _SCRIPTS and file.is_file() and file.stat().st_size <= _MOST_BYTES:
                content = file.read_bytes()
                digest.update(f"{file.relative_to(top)}\0{len(content)}\0".encode(errors="surrogateescape"))
                digest.update(content)
    except OSError:
        return None
    return digest.hexdigest()


@contextmanager
def meeting_place(address: str) -> Iterator[str]:
    """HOST:PORT of this address where a command may listen; whoever asks for any port is given another."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as held:
        held.bind((address, 0))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # who listens with that too can have it
        yield f"{f'[{address}]' if ':' in address else address}:{held.getsockname()[1]}"


def _ports(lane: int | None) -> dict[str, str]:
    """Where ranks meet, by the variables of torch and of torchrun: each lane has a port of its own."""
    return {} if lane is None else dict.fromkeys(("MASTER_PORT", "PET_MASTER_PORT"), str(29500 + lane))


def command_order(
    suite: Suite, planned: PlannedTrial, ranks: int, run: Path, facts: Mapping[str, object], rdzv: str,
    lane: int | None = None, place: Place | None = None,
) -> CommandOrder:  # fmt: skip
    """The order of a trial in the run's folder; `lane`: where several run side by side.

    `rdzv`: HOST:PORT for the command's own use; `place`: of one node among several.

    Raises UserError where the held-out tokens left the cache.
    """
    job, choices = suite.command, suite.option(planned.trial.option).choices
    assert job is not None
    assert isinstance(choices, CommandChoices)
    seed, heldout, digest = planned.trial.seed, None, facts.get("heldout_sha256")
    where = Where(rdzv=rdzv) if place is None else Where(place.node, ranks // place.ranks, rdzv)
    path = os.environ.get("PATH", os.defpath)
    if isinstance(job.eval, HeldOut):
        heldout = _heldout_file(str(digest))
        if not heldout.is_file():
            raise UserError(
                f"{heldout}: the held-out tokens were removed while this run went on: run the same command again, "
                "which goes on here after it has prepared them anew"
            )
    return CommandOrder(
        trial=planned.trial,
        arguments=arguments(job, choices, seed, ranks, where),
        directory=job.directory,
        environment=_ports(lane) | variables(job, choices, seed, ranks, path, where),
        world_size=ranks,
        max_steps=job.stops_after,
        stop="natural_end" if job.stop == "natural_end" else "at_max_steps",
        warmup_steps=job.timing.warmup_steps,
        heldout=None if heldout is None else str(heldout),
        heldout_sha256=None if heldout is None else str(digest),
        heldout_tokens=0 if heldout is None else int(str(facts["heldout_tokens"])),
        seq_len=job.eval.seq_len if isinstance(job.eval, HeldOut) else None,
        trial_folder=str((run / TRIALS / planned.trial.trial_id).resolve()),
        place=place,
    )

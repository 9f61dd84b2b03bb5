"""A run's folder: its files and how they are written whole, records.jsonl, how it is resumed, and its lock."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, KeysView
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from threading import Event, RLock, Thread
from typing import Any, cast
from uuid import uuid4

import msgspec
from pydantic import BaseModel

from selectbench.cores import machine_mark, process_mark
from selectbench.errors import UserError, did_you_mean
from selectbench.record import record as stored
from selectbench.suite.document import plain, read_document
from selectbench.suite.suite import CONTROL, Suite
from selectbench.text import listed, suite_yaml, visible

SUITE = "suite.yaml"
ENVIRONMENT = "environment.json"
RECORDS_FILE = "records.jsonl"
RANKING = "ranking.json"
REPORT = "report.md"
PAGE = "report.html"
TABLE = "ranking.csv"
BENCHMARK = "benchmark.json"
REFERENCES = "references.json"
"""What models behind an API answered; the folder `references` has every answer, an object a line."""
TRIALS = "trials"
WEIGHTS = "weights"
ROUNDS = "rounds"
"""Folders that the jobs of a run under Slurm write, one for each round."""
MODEL = "model"
"""The trained model's folder in a trial's folder, where the model is kept."""


MACHINE = (
    "cpu_model", "cpu_features", "cores_by_affinity", "cores_by_cgroup", "gpus", "memory_limit_bytes", "threads",
    "lanes",
)  # fmt: skip
"""Keys of the environment that tell machines apart."""


class PastRun(BaseModel, frozen=True):
    """A run as `list` shows it; unknown is None."""

    folder: str
    suite: str
    started_at: str | None
    """When it started, UTC, to the minute."""
    device: str | None = None
    hardware: str | None = None
    """Names of its GPUs, or of its CPU."""
    trials_done: int | None = None
    """How many planned trials have an outcome, failed ones too; interrupted ones run again."""
    trials_planned: int | None = None
    answer: str | None = None
    """The answer in its ranking.json; None: there is none yet."""
    note: str | None = None
    """What is wrong with the folder."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file at once: a reader sees the old text or the new one. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")  # processes of two machines may have one number
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


# Files of a run's folder may be damaged, or be somebody else's: they are checked here, and one that does not fit
# ends in one sentence.


MOST_LEVELS = 50
"""How deep mappings and lists may be nested."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the block inside finds wrong with the file into a UserError that names it and says why."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reasons = {FileNotFoundError: "there is no such file", RecursionError: "nested too deeply"}
        reason = reasons.get(type(error)) or getattr(error, "strerror", None) or visible(error, 300)
        raise UserError(f"{path}: cannot be read: {reason}") from None


def read_whole(path: Path, *, missing: bytes | None = None) -> bytes:
    """A file's content, or `missing` for one that is not there (None: that is an error). Raises UserError."""
    with reading(path):
        if missing is not None and not path.exists():
            return missing
        if path.exists() and not path.is_file():  # reading a pipe may never end
            raise ValueError("it is no file")
        return path.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping of plain values of sane size. Raises UserError."""
    with reading(path):
        content = msgspec.json.decode(read_whole(path))
        check_plain(content)
        if not isinstance(content, dict):
            raise ValueError("a JSON mapping was expected")
    return content


def check_plain(content: Any, levels: int = MOST_LEVELS) -> None:
    """Raises ValueError for what is nested more than MOST_LEVELS deep, or a whole number beyond 64 bits."""
    if levels < 0:
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            check_plain(part, levels - 1)
    elif isinstance(content, int) and abs(content) >= 1 << 63:
        raise ValueError("it has a whole number of more than 64 bits")


# A run is named by its folder, or by its suite and which of its complete runs is meant.


LATEST, PREVIOUS = "latest", "previous"


def find_run(reference: str | Path, results: Path, suite: str | None = None, *, to_extend: bool = False) -> Path:
    """The folder that a run's name means: a folder, `SUITE@latest` (the newest complete run) or `SUITE@previous`.

    The previous run is the newest complete one before the latest, of the same profile and machine. `suite`: the one
    that `@latest` alone means; `to_extend`: a run whose extension was interrupted counts too. Raises UserError.
    """
    folder = Path(reference)
    if (folder / SUITE).is_file():
        return folder
    name, separator, which = str(reference).rpartition("@")
    if not separator or "/" in which:
        raise UserError(f"{reference}: {_no_run_reason(folder, results)}")
    if which not in (LATEST, PREVIOUS):
        raise UserError(f"{reference}: expected {name or 'SUITE'}@{LATEST} or {name or 'SUITE'}@{PREVIOUS}")
    name = Path(name).stem if name.endswith((".yaml", ".yml")) else name or suite or ""
    if not name:
        raise UserError(f"{reference}: the latest run of which suite? Write SUITE@{which}{_suites_hint(results)}")
    runs = runs_of(results / name) or runs_of(Path(name))
    if not runs:
        hint = did_you_mean(name, _suites_with_runs(results)) or _suites_hint(results)
        raise UserError(f"{reference}: {results} has no run of {name}{hint}")
    whole = (run for run in runs if is_complete(run) or (to_extend and _was_extended(run)))
    latest = next(whole, None)
    if latest is None:
        raise UserError(
            f"{reference}: no run of {name} in {results} is complete; name one by its folder: {runs[0]}"
        )
    if which == LATEST:
        return latest
    kind, others = _profile_and_machine(latest), list(whole)
    previous = next((run for run in others if kind is not None and _profile_and_machine(run) == kind), None)
    if previous is None:
        why = _what_differs(latest, others[0]) if others else ""
        raise UserError(
            f"{reference}: before {latest} there is no complete run of {name} that ran the same profile on the "
            f"same machine{why}; name the runs that you mean by their folders"
        )
    return previous


def _what_differs(run: Path, other: Path) -> str:
    """What makes another run one of another kind; '' where a file can't be read."""
    here, there = _profile_and_machine(run), _profile_and_machine(other)
    if here is None or there is None:
        return ""
    if here["quick"] != there["quick"]:
        quick, full = (run, other) if here["quick"] else (other, run)
        return f": {quick} is a --quick run, {full} is not"
    keys = [key.replace("_", " ") for key in here if here[key] != there[key]]
    return f": {other} differs in {listed(keys)}"


def _was_extended(folder: Path) -> bool:
    try:
        return bool(plain_suite(folder).get("looks"))
    except UserError:
        return False


def runs_of(folder: Path) -> list[Path]:
    """The runs in a suite's folder, the newest first."""
    return sorted((path.parent for path in folder.glob(f"*/{SUITE}")), reverse=True)


def _no_run_reason(folder: Path, results: Path) -> str:
    """Why a name without `@` means no run, and which name would."""
    for place in (folder, results / folder):
        if runs := runs_of(place):
            few = ", ".join(str(run) for run in runs[:3]) + (" and more" if len(runs) > 3 else "")
            return f"these are all runs of a suite: write {place.name}@{LATEST}, or a folder: {few}"
    what = f"it has no {SUITE}" if folder.is_dir() else "there is no such folder"
    return f"not a run folder: {what} (`selectbench list` names the runs)"


def _suites_with_runs(results: Path) -> list[str]:
    return sorted({path.parent.parent.name for path in results.glob(f"*/*/{SUITE}")})


def _suites_hint(results: Path) -> str:
    names = _suites_with_runs(results)
    return f" (suites with runs in {results}: {', '.join(names)})" if names else ""


def plain_suite(folder: Path) -> dict[str, Any]:
    """A run's suite.yaml as plain data. Raises UserError where it can't be read."""
    return cast("dict[str, Any]", plain(read_document(folder / SUITE)))


def planned_trials(folder: Path, suite: dict[str, Any]) -> KeysView[tuple[str, int]]:
    """Options and seeds of the contest's trials, in order; `suite` as `plain_suite` reads it. Raises UserError."""
    screened_out: set[str] = set()
    with contextlib.suppress(UserError, KeyError, TypeError):
        rows = read_json(folder / RANKING)["rows"]
        screened_out = {row["option"] for row in rows if row["status"] == "screened_out"}
    try:
        options = [*suite["options"], *([CONTROL] if suite.get("control") else [])]
        ran = [option for option in options if option not in screened_out]
        return dict.fromkeys((option, seed) for seed in suite["seeds"] for option in ran).keys()
    except (KeyError, TypeError):
        raise UserError(f"{SUITE}: cannot be read: its options and seeds are not whole") from None


def is_complete(folder: Path) -> bool:
    """Whether every trial of the contest has an outcome; False where the run can't be read."""
    try:
        planned = planned_trials(folder, plain_suite(folder))
        return planned <= ended_trials(folder).keys()
    except UserError:
        return False


def ended_trials(folder: Path) -> dict[tuple[str, int], stored.Record]:
    """The records of the contest's trials that have their outcome, by option and seed. Raises UserError."""
    last = last_attempts(read_records(folder / RECORDS_FILE)[0]).values()
    ended = [record for record in last if record.phase == "contest" and stored.has_ended(record.outcome)]
    return {(record.trial.option, record.trial.seed): record for record in ended}


def _profile_and_machine(folder: Path) -> dict[str, Any] | None:
    """Values that are equal for runs of one profile on one machine; None where a file can't be read."""
    try:
        suite, environment = plain_suite(folder), read_json(folder / ENVIRONMENT)
    except UserError:
        return None
    profile = {"profile": suite.get("profile"), "device": suite.get("device"), "quick": bool(suite.get("quick"))}
    return profile | {key: environment.get(key) for key in MACHINE}


# A run's folder is found again where it is incomplete, and locked while it is written.


def fingerprint(suite: Suite, environment: dict[str, Any], data_key: str, own_code: str | None = None) -> str:
    """A digest that is equal for runs that may resume each other; `own_code`: digest of own code, None: none."""
    content = {
        "suite": without_references(suite.resolved), "environment": fingerprint_part(environment), "data": data_key,
        "own_code": own_code,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def without_references(suite: dict[str, Any]) -> dict[str, Any]:
    """A resolved suite without its references, which a run may gain or lose at any time."""
    return {key: value for key, value in suite.items() if key != "references"}


def fingerprint_part(environment: dict[str, Any]) -> dict[str, Any]:
    """The part of the environment that must be equal to resume: without the suite's commit and machine choices."""
    excluded = ("git_revision", "git_dirty", "machine_choices")
    part = {key: value for key, value in environment.items() if key not in excluded}
    memory = part["memory_total_bytes"]  # in whole GiB, as what the kernel keeps varies from boot to boot
    return {**part, "memory_total_bytes": None if memory is None else round(memory / (1 << 30)) << 30}


def run_name(folder: Path) -> str:
    """The name of a run's folder, also where `folder` is one of its rounds."""
    return folder.parent.parent.name if folder.parent.name == ROUNDS else folder.name


def newest_run(results: Path, suite: Suite, mark: str) -> Path | None:
    """The latest run folder with this fingerprint (`mark`), complete or not, that `is_run`."""
    return max(filter(is_run, (results / suite.name).glob(f"*-{mark}")), default=None)


def is_run(folder: Path) -> bool:
    """Whether the folder has the files without which no run can be resumed."""
    return all((folder / name).is_file() for name in (SUITE, ENVIRONMENT))


def create_run(results: Path, suite: Suite, environment: dict[str, Any], mark: str) -> Path:
    """A new run folder with its suite and environment written. Raises UserError where it can't be."""
    moment = datetime.now(UTC)
    folder = results / suite.name / f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z-{mark}"
    with writing(folder, "; choose a folder that you may write: --results DIR"):
        (folder / TRIALS).mkdir(parents=True)
        write_run(folder, suite, environment)
    return folder


def write_run(folder: Path, suite: Suite, environment: dict[str, Any]) -> None:
    """Write a run's suite and environment into its folder, unless it has them. Raises OSError."""
    environment_text = json.dumps(environment, indent=2, sort_keys=True) + "\n"
    for name, text in ((SUITE, suite_text(suite)), (ENVIRONMENT, environment_text)):
        if not (folder / name).exists():
            write_whole(folder / name, text)


def extend_run(folder: Path, suite: Suite, before: Suite) -> None:
    """Write the suite with more seeds over the one before. Raises UserError where the run got others meanwhile."""
    if plain_suite(folder).get("seeds") != before.seeds:
        raise UserError(f"{folder}: another process gave it more seeds meanwhile; look at its report first")
    with writing(folder, ""):
        write_whole(folder / SUITE, suite_text(suite))


_HEAD = "# The suite as it was resolved for this run; `selectbench run` takes it as it is.\n"


def suite_text(suite: Suite) -> str:
    """The resolved suite as YAML, with a line that says what it is."""
    return _HEAD + suite_yaml(suite.resolved)


def update_references(folder: Path, suite: Suite) -> None:
    """Replace the references in the run's suite.yaml by this suite's. Raises UserError."""
    content, wanted = plain_suite(folder), suite.resolved.get("references")
    if content.get("references") != wanted:
        content = without_references(content) | ({"references": wanted} if wanted else {})
        with writing(folder):
            write_whole(folder / SUITE, _HEAD + suite_yaml(content))


def read_answers(folder: Path) -> dict[str, stored.ApiAnswers]:
    """The answers of each reference, by name; {}: none was asked. Raises UserError where they can't be read."""
    path = folder / REFERENCES
    with reading(path):
        return stored.ANSWERS.read(read_whole(path, missing=b"{}"))


@contextlib.contextmanager
def weights_folder(folder: Path) -> Iterator[None]:
    """The run's folder of initial weights: empty at first, gone at the end, as it can be many times the rest."""
    shutil.rmtree(folder / WEIGHTS, ignore_errors=True)  # left by a run that was killed
    try:
        with writing(folder):
            (folder / TRIALS).mkdir(exist_ok=True)  # a run that was kept may have come without it
            (folder / WEIGHTS).mkdir()
        yield
    finally:
        shutil.rmtree(folder / WEIGHTS, ignore_errors=True)


def sweep_weights(results: Path) -> None:
    """Remove initial weights of runs that were killed and never resumed."""
    for weights in filter(lambda path: is_run(path.parent), results.glob(f"*/*/{WEIGHTS}")):
        with contextlib.suppress(UserError), RunLock(weights.parent):
            shutil.rmtree(weights, ignore_errors=True)


_RECORDS_ARE_KEPT = (
    "; every record before this one is kept: make room or choose another --results folder, and run the same "
    "command again"
)


@contextlib.contextmanager
def writing(path: Path, advice: str = _RECORDS_ARE_KEPT) -> Iterator[None]:
    """Turns an OSError of the block inside into a UserError that names the path and gives the advice."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror or error}{advice}") from None


ALIVE_SECONDS = 5.0
"""Time between two signs of life of the process that holds a run's folder."""
DEAD_SECONDS = 30.0
"""Time without a sign of life after which a holder on another machine counts as dead, by the waiter's clock."""
FREE = "free"


class RunLock:
    """Held by the one process that writes a run, on whatever machine: network file systems may ignore flock.

    Holders are numbered, and each has a file that names its machine and process. The next holder's file is created
    exclusively, which succeeds for one process alone; then the file before it is removed, which tells its holder
    that it lost the lock. On the holder's machine the kernel says whether it has ended, elsewhere the file's time.
    """

    def __init__(self, folder: Path, notify: Callable[[str], object] | None = None) -> None:
        """`notify` None: entering fails at once where a process of another machine may hold the folder."""
        self.folder, self._notify, self._released = folder, notify, Event()
        self._write_lock = RLock()
        """Held by the lane that writes."""
        self._required_files = {SUITE, ENVIRONMENT}
        """Files that a run can't make again; its records are one of them once there are some."""

    def __enter__(self) -> RunLock:
        try:
            last = max(self._numbers(), default=0)
            self.path, before = (self.folder / f".lock-{number}" for number in (last + 1, last))
            if not self._has_ended(before):
                raise FileExistsError
            with self.path.open("x", encoding="utf-8") as stream:
                stream.write(f"{machine_mark()}\n{process_mark(os.getpid())}\n{gethostname()}\n")
                self._lock_stat = os.fstat(stream.fileno())
            if max(self._numbers()) > last + 1:  # another holder's file, which could not be seen before
                self.path.unlink()
                raise FileExistsError
            before.unlink(missing_ok=True)
        except FileExistsError:
            raise UserError(
                f"{self.folder}: another selectbench is running this; wait for it, or start one of its own "
                "beside it with --fresh (its speed would suffer from the other's)"
            ) from None
        except OSError as error:
            raise UserError(f"{self.folder}: cannot lock: {error.strerror}; choose another --results DIR") from None
        Thread(target=self._show_life, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        with contextlib.suppress(OSError), self.path.open("r+") as stream:
            stream.truncate(stream.write(f"{FREE}\n"))

    def _numbers(self) -> list[int]:
        return [int(path.name[6:]) for path in self.folder.glob(".lock-*") if path.name[6:].isdecimal()]

    def _has_ended(self, file: Path) -> bool:
        """Whether the lock file's holder has released it, or has ended."""
        text, modified = state = _read_lock_file(file)
        machine, process, host, *_ = [*text.split("\n"), "", "", ""]
        if machine == FREE or not modified:
            return True
        if machine == machine_mark():
            return process_mark(int(process.split()[0])) != process
        if self._notify is None:
            return False
        self._notify(f"{self.folder}: {visible(host)} ran it: waiting {DEAD_SECONDS:g} s for a sign of life")
        deadline = time.monotonic() + DEAD_SECONDS
        while time.monotonic() < deadline and state == _read_lock_file(file):
            time.sleep(1.0)
        return state == _read_lock_file(file)

    def _show_life(self) -> None:
        while not self._released.wait(ALIVE_SECONDS):
            with contextlib.suppress(OSError):  # `check` reports it
                os.utime(self.path)

    def append(self, record: stored.Record) -> None:
        """`append_record` to this run's records, after a `check`. Raises UserError as either does."""
        with self._write_lock:
            self.check()
            append_record(self.folder / RECORDS_FILE, record)
            self._required_files.add(RECORDS_FILE)

    def check(self) -> None:
        """Raises UserError where the folder, a required file or the lock was taken away meanwhile."""
        folder, loss = self.folder, "was deleted or moved"
        try:
            # By opening it, as a network file system asks its server then.
            with self._write_lock, self.path.open("rb") as file:
                holds_lock = os.path.samestat(os.fstat(file.fileno()), self._lock_stat)
                missing = sorted(name for name in self._required_files if not (folder / name).is_file())
            if holds_lock and not missing:
                return
            loss = f"lost its {' and '.join(missing)}" if holds_lock else loss
        except (FileNotFoundError, NotADirectoryError):
            loss = "was taken over by another machine" if folder.is_dir() and self._numbers() else loss
        except OSError:  # a network file system that does not answer: the next write fails too
            return
        raise UserError(
            f"{folder}: it {loss} while this run went on, so nothing more is written there: run the same command "
            "again, which goes on with the records that are there"
        )


def _read_lock_file(file: Path) -> tuple[str, int]:
    """A lock file's text and time of change (ns), as its server has them now; ('', 0): there is no such file."""
    with contextlib.suppress(FileNotFoundError), file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(), os.fstat(opened.fileno()).st_mtime_ns
    return "", 0


# records.jsonl: appended to and flushed to disk record by record; read without losing or hiding a line.


RECORDS: stored.Lines[stored.Record] = stored.Lines(stored.Record)
MOST_NOTES = 10
"""How many bad lines `read_records` notes one by one."""
_CHECKSUM = re.compile(rb',"crc32":"([0-9a-f]{8})"}')
_CHECKSUM_BYTES = len(b',"crc32":"00000000"}')


def line_with_checksum(record: stored.Record) -> bytes:
    """A record's line; its last key is the CRC-32 of the line without it. Raises ValueError as `Lines.write`."""
    line = RECORDS.write(record)
    return line.removesuffix(b"}") + b',"crc32":"%08x"}' % zlib.crc32(line)


def _has_valid_checksum(line: memoryview) -> bool | None:
    """Whether the line's checksum fits; None: it has no checksum, as earlier versions wrote none."""
    checksum = _CHECKSUM.fullmatch(line[-_CHECKSUM_BYTES:])
    if checksum is None:
        return False if b'"crc32"' in bytes(line[-3 * _CHECKSUM_BYTES :]) else None
    return zlib.crc32(b"}", zlib.crc32(line[:-_CHECKSUM_BYTES])) == int(checksum[1], 16)


def append_record(path: Path, record: stored.Record) -> None:
    """Add one line, on the disk or not at all; ends a line that a crash tore. Raises UserError, ValueError."""
    line = line_with_checksum(record) + b"\n"
    with writing(path), path.open("a+b", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        try:
            written = 0
            while written < len(line):
                written += stream.write(line[written:])
            os.fsync(stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                stream.truncate(size)
            raise


def read_records(path: Path) -> tuple[list[stored.Record], list[str]]:
    """The records and the notes of `read_lines`."""
    return read_lines(path)[:2]


def read_lines(path: Path) -> tuple[list[stored.Record], list[str], int]:
    """The records in order, notes on other lines, and how many records have no checksum. Raises UserError."""
    records: list[stored.Record] = []
    notes: list[str] = []
    unchecked = 0
    content = read_whole(path, missing=b"")
    # Without a copy: the parts of a line that stay JSON are views of the whole.
    view, start, number = memoryview(content), 0, 0
    while start < len(content):
        line_feed, number = content.find(b"\n", start), number + 1
        end = len(content) if line_feed < 0 else line_feed
        is_valid = _has_valid_checksum(view[start:end])
        record, note = _parse(view[start:end], is_valid, is_ended=line_feed >= 0)
        unchecked += record is not None and is_valid is None
        records += [record] if record else []
        notes += [f"{path.name}:{number}: {note}"] if note else []
        start = end + 1
    if (hidden := len(notes) - MOST_NOTES) > 1:
        notes = [*notes[:MOST_NOTES], f"{path.name}: and {hidden:,} more lines that do not fit"]
    return records, notes, unchecked


def require_records(folder: Path) -> None:
    """Raises UserError where a run's folder has no records: an empty report would replace the real one."""
    if not (folder / RECORDS_FILE).is_file():
        raise UserError(
            f"{folder}: it has no {RECORDS_FILE}, so there is nothing to report, and nothing was written: "
            "put the file back if it was moved, else run the suite again"
        )


def _parse(line: memoryview, is_valid: bool | None, *, is_ended: bool) -> tuple[stored.Record | None, str | None]:
    try:
        record = RECORDS.read(line)
        if is_valid is None:
            _check_parts(record)
    except ValueError as error:
        return None, _why_left_out(bytes(line), error, is_ended=is_ended)
    if is_valid is False:
        return None, (
            "left out: its checksum does not fit: something of it changed after it was written (if you changed it, "
            "take `crc32` out of it)"
        )
    current, version = stored.SCHEMA_VERSION, f"schema version {record.schema_version}"
    if record.schema_version > current:
        how = "read it with the selectbench that wrote it"
        return None, f"left out: {version} is newer than this selectbench's {current}: {how}"
    return record, f"{version}, read as version {current}" if record.schema_version != current else None


def _check_parts(record: stored.Record) -> None:
    """Check the parts that stay JSON, for a line without a checksum. Raises ValueError with the part's name."""
    parts: dict[str, tuple[stored.Lines[Any], stored.AsJson]] = {
        "settings": (stored.SETTINGS, record.trial.settings), "software": (stored.SOFTWARE, record.software),
        "loss_curve": (stored.LOSSES, record.loss_curve),
    }  # fmt: skip
    for name, (lines, part) in parts.items():
        try:
            check_plain(lines.read(part))
        except ValueError as error:
            raise ValueError(f"`{name}`: {error}") from None
    check_plain(record.resolved_config)


def _why_left_out(line: bytes, error: ValueError, *, is_ended: bool) -> str | None:
    if not line.strip():
        return None
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        stopped = " (the process that wrote it was stopped while writing)"
        what = "not JSON" if is_ended else f"not a whole line of JSON{stopped}"
        return f"left out: {what}; `selectbench run` runs a trial again that no other line tells of"
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version is None:
        return "left out: not a record of selectbench"
    return f"left out: a record of schema version {visible(version)} that does not fit: {visible(error, 300)}"


def last_attempts(records: list[stored.Record]) -> dict[str, stored.Record]:
    """The last attempt of each trial, by trial_id; of two with one number (a copied folder) the later one.

    One that was interrupted does not take the place of one that had completed.
    """
    last: dict[str, stored.Record] = {}
    for record in records:
        pair = last.get(record.trial.trial_id, record), record
        earlier, later = sorted(pair, key=lambda record: (record.attempt, record.started_at))
        last[record.trial.trial_id] = earlier if stored.was_cut_off_again(later, earlier) else later
    return last

"""The site file, which says what of a run depends on the machine; and runs whose rounds Slurm starts.

A run under Slurm is an array of jobs, of which each runs one round, all options of a seed, on an allocation of its
own. Slurm does the scheduling: jobs are given to `sbatch`, looked at with `squeue`, ended with `scancel`. In the
run's folder `slurm/` holds what the jobs run, and `rounds/K/` is written by the job of round K alone, as a run's
folder is. The run's records are those of all rounds; they are put together again whenever a round has ended or
somebody looks. No process waits for another, and no lock is needed that reaches over nodes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from selectbench import units
from selectbench.choices.choice import Strict, WrongValueError
from selectbench.errors import UserError, did_you_mean
from selectbench.gpu.devices import Gpu, sheet_name
from selectbench.launch.trial import log_tail
from selectbench.machine import Machine
from selectbench.record.record import Record
from selectbench.record.run_folder import (
    LATEST,
    RECORDS_FILE,
    ROUNDS,
    SUITE,
    TRIALS,
    ended_trials,
    plain_suite,
    planned_trials,
    read_json,
    read_whole,
    suite_text,
    write_run,
    write_whole,
    writing,
)
from selectbench.suite.document import Problems, read_document
from selectbench.suite.problems import validate
from selectbench.suite.suite import Cost, Suite
from selectbench.text import one_line, visible

Lanes = Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
_MACHINE = re.compile(r"\s*(\d{1,3})\s*x\s+(\S.*?)\s*")
_SBATCH_KEYS = {
    "--nodes": "nodes", "-N": "nodes", "--partition": "partition", "-p": "partition", "--account": "account",
    "-A": "account", "--time": "time", "-t": "time", "--gpus-per-node": "gpus_per_node",
    "--exclusive": "exclusive", "--array": None, "-a": None, "--output": None, "-o": None, "--ntasks": None,
    "--ntasks-per-node": None, "-n": None,
}  # fmt: skip
"""Options of sbatch for which the site file has a key; None: selectbench sets it."""
_SLURM_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


class Site(Strict):
    """A site file: where runs run, and what they ask for there."""

    launcher: Literal["local", "slurm"] = "local"
    """`local`: this machine; `slurm`: every round is a job of an array, on an allocation of its own."""
    machine: str | None = None
    """What a node has, by Slurm, `8 x H100-SXM-80GB`: for plans made elsewhere; null: not known."""
    partition: str | None = None
    """Slurm's; null: its default."""
    account: str | None = None
    """Slurm's; null: its default."""
    nodes: Annotated[int, Field(ge=1, le=4096)] = 1
    """That each trial runs on, together."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] | None = None
    """That a job asks for; null: as many as `machine` says, else none."""
    time: str | None = None
    """Limit of one job, and so of one round: `2h`, `90min`, `2:00:00`; null: the partition's default."""
    exclusive: bool = True
    """Whether a job has its nodes for itself; beside other jobs no speed can be compared."""
    rounds_at_once: Annotated[int, Field(ge=1)] | None = None
    """Jobs that may run at the same time; null: as many as there is room for."""
    setup: str = ""
    """Shell lines that each node of a job runs first, such as `module load cuda`."""
    sbatch: list[str] = Field(default_factory=list)
    """Further options of sbatch, `--constraint=h100` each."""
    lanes: Lanes = 1
    """Equal parts of the machine that run trials side by side; auto: as many as its GPUs are enough for."""
    cost: Cost | None = None
    """Prices, in place of the suite's; null: the suite's."""

    @field_validator("machine")
    @classmethod
    def _names_a_machine(cls, value: str | None) -> str | None:
        if value is not None and _MACHINE.fullmatch(value) is None:
            raise ValueError("expected a number and a GPU, such as 8 x H100-SXM-80GB")
        return value

    @field_validator("time", mode="before")
    @classmethod
    def _is_a_time(cls, value: object) -> object:
        if value is not None and not (isinstance(value, str) and seconds_of(value)):
            raise ValueError("expected a time with its unit, such as 2h, 90min or 2:00:00")
        return value

    @field_validator("sbatch")
    @classmethod
    def _are_options(cls, value: list[str]) -> list[str]:
        for option in value:
            if not option.startswith("-") or "\n" in option:
                raise ValueError(f"{visible(option)!r}: expected an option of sbatch, such as --constraint=h100")
            name = re.split("[= ]", option)[0] if option.startswith("--") else option[:2]
            if (key := _SBATCH_KEYS.get(name, name)) != name:
                by_key = f"say it with the key `{key}`, which plans go by"
                raise ValueError(f"{name}: {by_key if key else 'selectbench sets it: leave it out'}")
        return value

    @model_validator(mode="after")
    def _fits_its_launcher(self) -> Site:
        of_slurm = self.model_fields_set - {"launcher", "machine", "lanes", "cost"}
        if self.launcher == "local" and of_slurm:
            raise WrongValueError(min(of_slurm), "only for `launcher: slurm`: add that, or leave the key out")
        if self.launcher == "slurm" and self.lanes != 1:
            raise WrongValueError("lanes", "a job of Slurm runs one round, and so one lane: leave them out")
        return self

    @property
    def gpus(self) -> int:
        """GPUs of a node that a job asks for."""
        match = _MACHINE.fullmatch(self.machine or "")
        return self.gpus_per_node if self.gpus_per_node is not None else int(match[1]) if match else 0

    @property
    def sbatch_options(self) -> list[str]:
        """The options of sbatch for every job."""
        values = {"gpus-per-node": self.gpus, "partition": self.partition, "account": self.account}
        options = [f"--{name}={value}" for name, value in values.items() if value]
        return [*(["--exclusive", "--mem=0"] if self.exclusive else []), *options, *self.sbatch]

    @property
    def device(self) -> Literal["cpu", "cuda"] | None:
        """What trials run on there; None: whatever this machine has, as they run here."""
        return None if self.launcher == "local" else "cuda" if self.gpus else "cpu"

    def of_nodes(self, machine: Machine) -> Machine:
        """What is known of the nodes that Slurm gives; with the local launcher, this machine."""
        if self.launcher == "local":
            return machine
        machine = replace(machine, nodes=self.nodes, gpus=(), compute_capability=None)
        if machine.device == "cpu":
            return machine
        match = _MACHINE.fullmatch(self.machine or "")
        name = sheet_name(match[2]) if match else ""
        size = re.search(r"(\d+) ?GB", name)  # a maker's GB of memory are GiB
        memory = int(size[1]) << 30 if size else None
        gpu = Gpu(name, "", None, False, None, memory, None, None, None, None, None, None, None)
        return replace(machine, device_count=self.gpus, gpus=(gpu,) * self.gpus if name else ())

    def over(self, suite: Suite) -> Suite:
        """The suite at this site's prices."""
        if self.cost is None:
            return suite
        resolved = {**suite.resolved, "cost": self.cost.model_dump(mode="json", exclude_none=True)}
        return suite.model_copy(update={"cost": self.cost, "resolved": resolved})


def read_site(path: str | None, lanes: str | None) -> Site:
    """The site that the file describes, or this machine as it is. Raises UserError with every mistake.

    `lanes`: the command line's `--lanes`, in place of the file's.
    """
    site = Site()
    if path is not None:
        problems = Problems()
        document = read_document(Path(path), "a site file says `launcher: local` at least")
        if "job" in document.mapping:
            raise UserError(f"{path}: a suite, not a site file: selectbench run {path} --site FILE")
        validated = validate(Site, document, problems)
        problems.raise_if_any()
        assert isinstance(validated, Site)
        site = validated
    if lanes is None:
        return site
    if lanes != "auto" and not (lanes.isdecimal() and 1 <= int(lanes) <= 1024):
        raise UserError(f"--lanes {lanes}: expected auto, or a number from 1 to 1024")
    if site.launcher == "slurm" and lanes != "1":
        raise UserError("--lanes: a job of Slurm runs one round, and so one lane: leave it out")
    return site.model_copy(update={"lanes": lanes if lanes == "auto" else int(lanes)})


# What Slurm is given.


SIGNAL_SECONDS = 120
"""Before its time is up a job is told to end: the trial at hand is cut off, and the job queued again."""


def job_script(site: Site, suite: str, run: Path, rounds: Sequence[int], flags: Sequence[str] = ()) -> str:
    """The script for `sbatch`: an array with one job for each round; `flags`: more flags of `selectbench run`."""
    limit, seconds = "", seconds_of(site.time or "")
    if seconds is not None:
        minutes = max(1, -(-int(seconds) // 60))
        limit = f"--time={minutes // 60}:{minutes % 60:02d}:00"
    at_once = f"%{site.rounds_at_once}" if site.rounds_at_once else ""
    log = f"{run / ROUNDS}/".replace("%", "%%") + "%a/job.log"
    options = [
        f"--job-name=selectbench-{suite}", f"--array={','.join(map(str, rounds))}{at_once}",
        f"--nodes={site.nodes}", "--ntasks-per-node=1", limit, "--requeue", f"--signal=TERM@{SIGNAL_SECONDS}",
        "--open-mode=append", f'--output="{log}"', *site.sbatch_options,
    ]  # fmt: skip
    step = 'srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none --kill-on-bad-exit=1'
    line = shlex.join([sys.executable, "-m", "selectbench", "run", str(run), "--wait", *flags])
    line += ' --round "$SLURM_ARRAY_TASK_ID"'
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options if option), "set -u"]
    lines.append(f"cd {shlex.quote(str(Path.cwd()))}")
    if site.nodes > 1:
        line += ' --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --rdzv "$SELECTBENCH_RDZV"'
        lines += [
            "export SELECTBENCH_SECRET=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')",
            'export SELECTBENCH_RDZV="$(hostname):$((20000 + SLURM_JOB_ID % 30000))"',
        ]
    on_each_node = "\n".join([*site.setup.splitlines(), f"exec {line}"])
    return "\n".join([*lines, f"{step} bash -c {shlex.quote(on_each_node)}", ""])


COMMAND_SECONDS = 60.0


def slurm(*words: str) -> str:
    """What a command of Slurm's prints. Raises UserError where it can't be run, or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError:
        raise UserError(
            f"launcher: slurm: {words[0]} is not here: start the run where Slurm's commands are, on a login node"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]}: Slurm did not answer within {COMMAND_SECONDS:g} s") from None
    if done.returncode:
        message = one_line(done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}", 500)
        raise UserError(f"{words[0]}: {message.removeprefix(f'{words[0]}: ').removeprefix('error: ')}")
    return done.stdout


def limit_problems(site: Site) -> list[str]:
    """Sentences on what a job asks for beyond its partition's limits. Raises UserError where Slurm is not there."""
    output = slurm("scontrol", "show", "partition", "-o")
    partitions = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in output.splitlines()]
    by_name = {p["PartitionName"]: p for p in partitions if "PartitionName" in p}
    default = next((name for name, p in by_name.items() if p.get("Default") == "YES"), None)
    name = site.partition or default
    if name is None:
        return [f"partition: Slurm has no default: name one of {', '.join(by_name)}"]
    if name not in by_name:
        instead = did_you_mean(name, list(by_name)) or f" (known: {', '.join(by_name)})"
        return [f"partition {visible(name)}: Slurm has none of that name{instead}"]
    partition, problems = by_name[name], list[str]()
    if (state := partition.get("State", "UP")) != "UP":
        up = ", ".join(other for other, p in by_name.items() if p.get("State", "UP") == "UP") or "none"
        problems.append(f"partition {name} is {state}; up: {up}")
    counts = [partition.get(key, "") for key in ("MaxNodes", "TotalNodes")]
    most = min((int(count) for count in counts if count.isdecimal()), default=None)
    if most is not None and site.nodes > most:
        problems.append(f"nodes: {site.nodes} asked for, and a job in partition {name} gets {most} at most")
    seconds, limit = seconds_of(site.time or ""), seconds_of(partition.get("MaxTime", ""))
    if seconds is not None and limit is not None and seconds > limit:
        problems.append(
            f"time: {site.time} asked for, and a job in partition {name} gets {units.duration(limit)} at most"
        )
    if site.gpus:
        output = slurm("sinfo", "--noheader", f"--partition={name}", "--format=%G")
        most = max((int(count) for count in re.findall(r"gpu(?::[^:,\s(]+)?:(\d+)", output)), default=0)
        if site.gpus > most:
            key = "machine" if site.gpus_per_node is None else "gpus_per_node"
            problems.append(f"{key}: {site.gpus} GPUs asked for, and nodes of partition {name} have {most} at most")
    return problems


def seconds_of(text: str) -> float | None:
    """Seconds of `2h`, or of Slurm's `2-00:00:00`, `1:00:00` or `30`, minutes; None: no such time, or no limit."""
    if (seconds := units.seconds_of(text)) is not None:
        return seconds
    if (match := _SLURM_TIME.fullmatch(text)) is None:
        return None
    days, *rest, last = match.groups()
    starts_with_hours = days is not None or last is not None
    places = zip((*rest, last), (3600.0, 60.0, 1.0) if starts_with_hours else (60.0, 1.0, 0.0), strict=True)
    return 86400.0 * int(days or 0) + sum(int(count or 0) * unit for count, unit in places)


# The folder of a run under Slurm.


SLURM = "slurm"
JOBS, BEGUN, SCRIPT = "jobs.json", "begun.json", "job.sh"
CANCEL_SECONDS = 180.0
"""Time for Slurm to end jobs: it gives them half a minute by default, or what its administrator set."""
SHORT_RESTARTS = 3
"""How often a job is queued again that was cut off before it had done anything."""


WAITS_FOR = {
    "JobArrayTaskLimit": "for another round", "Resources": "for free nodes", "Priority": "for its turn",
    "BeginTime": "to begin again", "JobHeldUser": "as you hold it: scontrol release",
    "JobHeldAdmin": "as Slurm holds it: look at its job.log, cancel it and run it again",
    **dict.fromkeys(
        ("PartitionNodeLimit", "PartitionTimeLimit", "PartitionDown", "PartitionInactive"),
        "for what its partition does not give: cancel it, and change `nodes`, `time` or `partition`",
    ),
}  # fmt: skip
"""What a job waits for, in plain words, by Slurm's reason code (squeue(1)); other codes are shown as they are."""


class Task(NamedTuple):
    """What Slurm says of a round's job."""

    job: str
    """The job's number in Slurm, such as `12_3`."""
    state: str
    """Slurm's word for its state, such as `RUNNING`."""
    nodes: str
    """The nodes that it runs on, such as `n[1-2]`; while it waits, Slurm's reason code."""


@dataclass(frozen=True)
class Round:
    """How far one is."""

    number: int
    seed: int
    ended: Sequence[Record]
    """Of its trials those that have their outcome."""
    of: int
    """Trials in all."""
    task: Task | None
    """None: Slurm has none of it."""

    @property
    def is_complete(self) -> bool:
        """Whether every trial of it has its outcome."""
        return len(self.ended) >= self.of

    @property
    def state(self) -> str:
        """For a person."""
        if self.task is None:
            return "complete" if self.is_complete else "not complete"
        if self.task.state == "PENDING":
            why = WAITS_FOR.get(self.task.nodes, self.task.nodes)
            return "waits" if why in ("", "None") else f"waits ({why})"
        name = {"RUNNING": "runs", "COMPLETING": "ends"}.get(self.task.state, self.task.state.lower())
        return f"{name} on {self.task.nodes}"


@dataclass(frozen=True)
class SlurmRun:
    """A run whose rounds are jobs of Slurm."""

    folder: Path

    @property
    def slurm_folder(self) -> Path:
        """The folder of what the jobs run."""
        return self.folder / SLURM

    @property
    def suite_file(self) -> Path:
        """The suite that the jobs run."""
        return self.slurm_folder / SUITE

    @cached_property
    def planned(self) -> dict[int, list[tuple[str, int]]]:
        """The option and seed of each trial, by round."""
        suite = plain_suite(self.slurm_folder)
        trials = planned_trials(self.folder, suite)
        return {number: [t for t in trials if t[1] == seed] for number, seed in enumerate(suite["seeds"])}

    def round_folder(self, number: int) -> Path:
        """The round's folder, which only its job writes."""
        return self.folder / ROUNDS / str(number)

    def ended_trials(self, number: int) -> list[Record]:
        """The records of a round's trials that have their outcome, in the suite's order. Raises UserError."""
        ended = ended_trials(self.round_folder(number))
        return [ended[trial] for trial in self.planned[number] if trial in ended]

    def rounds(self) -> list[Round]:
        """How far each is. Raises UserError."""
        tasks = self._tasks()
        return [
            Round(number, planned[0][1], self.ended_trials(number), len(planned), tasks.get(number))
            for number, planned in self.planned.items()
        ]

    def last_said(self, number: int) -> str:
        """The last line of a round's log; '': there is none."""
        lines = reversed(log_tail(self.round_folder(number) / "job.log").splitlines())
        return next((one_line(line, 200) for line in lines if line.strip()), "")

    @property
    def jobs(self) -> list[str]:
        """The numbers of the arrays of jobs that Slurm was given. Raises UserError."""
        path = self.slurm_folder / JOBS
        return [str(job) for job in read_json(path).get("jobs", [])] if path.is_file() else []

    def _tasks(self) -> dict[int, Task]:
        """The jobs that have not ended, by round. Raises UserError."""
        jobs, tasks = set(self.jobs), {}
        if not jobs:
            return {}
        output = slurm("squeue", "--noheader", "--array", "--me", "--format=%F|%K|%T|%N|%r")
        for line in output.splitlines():
            job, number, state, nodes, reason = (*line.strip().split("|"), "", "", "", "")[:5]
            if job in jobs and number.isdecimal():
                tasks[int(number)] = Task(f"{job}_{number}", state, reason if state == "PENDING" else nodes)
        return tasks

    def submit(self, site: Site, name: str, rounds: Sequence[int], flags: Sequence[str]) -> str:
        """Give Slurm the rounds. Returns the number of the array of jobs. Raises UserError."""
        script = job_script(site, name, self.folder.resolve(), rounds, flags)
        with writing(self.folder):
            for number in rounds:
                self.round_folder(number).mkdir(parents=True, exist_ok=True)
            write_whole(self.slurm_folder / SCRIPT, script)
        job = slurm("sbatch", "--parsable", str(self.slurm_folder / SCRIPT)).strip().partition(";")[0]
        with writing(self.folder):
            write_whole(self.slurm_folder / JOBS, json.dumps({"jobs": [*self.jobs, job]}) + "\n")
        return job

    def cancel(self) -> int:
        """End its jobs. Returns how many. Raises UserError where some are still there after CANCEL_SECONDS."""
        tasks = self._tasks()
        if tasks:
            slurm("scancel", *(task.job for task in tasks.values()))
        until = time.monotonic() + CANCEL_SECONDS
        while remaining := self._tasks():
            if time.monotonic() > until:
                jobs = ", ".join(task.job for task in remaining.values())
                raise UserError(f"Slurm has not ended {jobs} within {CANCEL_SECONDS:g} s: look with squeue")
            time.sleep(0.5)
        return len(tasks)

    # What a job does.

    def first_facts(self, job_facts: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of the run's first job, which those of all others must equal; writes them if this is the first.

        Raises UserError.
        """
        draft = self.slurm_folder / f".{BEGUN}.{os.environ.get('SLURM_JOB_ID')}.{os.getpid()}"
        with writing(self.folder):
            draft.write_text(json.dumps(job_facts), encoding="utf-8")
            with contextlib.suppress(FileExistsError):
                os.link(draft, self.slurm_folder / BEGUN)  # one job is the first, on network file systems too
            draft.unlink()
        return read_json(self.slurm_folder / BEGUN)

    def enter(self, number: int, suite: Suite, environment: dict[str, Any]) -> Path:
        """Make the folder of the round that this job runs; the first job makes the run's. Raises UserError."""
        if number not in self.planned:
            raise UserError(f"--round {number}: {self.folder} has rounds 0 to {len(self.planned) - 1}")
        folder = self.round_folder(number)
        with writing(self.folder), contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
            for place in (self.folder, folder):
                write_run(place, suite, environment)
            (self.folder / TRIALS).mkdir(exist_ok=True)
            (folder / TRIALS).symlink_to(Path("..", "..", TRIALS))
        return folder

    def gather(self) -> None:
        """Write the records of all rounds as the run's records. Raises UserError.

        The rounds are read once more afterwards, so that of two processes that do this at once none leaves out what
        the other has seen.
        """
        while (content := self._all_records()) != read_whole(self.folder / RECORDS_FILE, missing=b""):
            with writing(self.folder):
                write_whole(self.folder / RECORDS_FILE, content)

    def _all_records(self) -> bytes:
        """Those of a round whose folder is gone, as of a run that was kept, stay as they are."""
        of_rounds = [
            line for number in self.planned
            for line in read_whole(self.round_folder(number) / RECORDS_FILE, missing=b"").splitlines()
        ]  # fmt: skip
        known, of_run = set(of_rounds), read_whole(self.folder / RECORDS_FILE, missing=b"").splitlines()
        others = [line for line in of_run if line not in known]
        return b"".join(line + b"\n" for line in [*others, *of_rounds])

    def queue_again(self, *, did_something: bool) -> str | None:
        """Have Slurm run this job again, which was cut off. Returns a sentence on it; None: it was cancelled."""
        job = os.environ.get("SLURM_JOB_ID")
        if job is None or slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip() != "RUNNING":
            return None
        if not did_something and int(os.environ.get("SLURM_RESTART_COUNT") or 0) >= SHORT_RESTARTS:
            return "it is not queued again: no trial was over before it was cut off; give it more `time`"
        slurm("scontrol", "requeue", job)
        return "the job is queued again, and goes on where it was cut off"


def this_node() -> str | None:
    """The names of the nodes that this job runs on, as Slurm writes them; None: this process is in no job."""
    return os.environ.get("SLURM_JOB_NODELIST")


def slurm_run(folder: Path) -> SlurmRun | None:
    """The run under Slurm in this folder; None: it holds no such run."""
    return SlurmRun(folder) if (folder / SLURM / SUITE).is_file() else None


def attached(reference: Path) -> SlurmRun:
    """The run that a command names, by its folder or as `SUITE@latest`, the newest. Raises UserError."""
    suite, at, which = str(reference).rpartition("@")
    newest = reference
    if at and which == LATEST:
        runs = Path("results", suite).glob(f"*/{SLURM}/{SUITE}")
        newest = max((path.parents[1] for path in runs), default=reference)
    if (run := slurm_run(newest)) is None:
        is_run = (reference / SUITE).is_file()
        what = "it was started on one machine, and is shown there" if is_run else "no run's folder or SUITE@latest"
        raise UserError(f"{reference}: not a run under Slurm: {what}")
    return run


def run_under_slurm(site: Site, suite: Suite, own_code: str | None, results: Path, *, fresh: bool) -> SlurmRun:
    """The newest run of the same, else a new one; nothing is submitted. Raises UserError."""
    for key, stage in (("tune", suite.tune), ("screen", suite.screen), ("best_of", suite.best_of)):
        if stage and len(suite.seeds) > 1:
            raise UserError(
                f"{key}: what it finds holds for all rounds, and under Slurm each is a job of its own: run the "
                f"suite on one machine first, or take it out: --set {key}=null"
            )
    content = [suite.resolved, own_code, site.nodes, site.gpus, site.machine]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]
    earlier = sorted((results / suite.name).glob(f"*-{digest}/{SLURM}/{SUITE}"))
    if earlier and not fresh:
        return SlurmRun(earlier[-1].parent.parent)
    moment = datetime.now(UTC)
    folder = results / suite.name / f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z-{digest}"
    with writing(folder):
        (folder / SLURM).mkdir(parents=True)
        write_whole(folder / SLURM / SUITE, suite_text(suite))
    return SlurmRun(folder)


def states(rounds: Sequence[Round]) -> str:
    """`round 0: runs on n1; rounds 1 to 3: waits (for another round)`."""
    alike: dict[str, list[int]] = {}
    for r in rounds:
        alike.setdefault(r.state, []).append(r.number)
    parts = []
    for state, numbers in alike.items():
        first, last = numbers[0], numbers[-1]
        is_row = last - first == len(numbers) - 1 > 0
        which = f"{first} to {last}" if is_row else ", ".join(map(str, numbers))
        parts.append(f"round{'s' * (first < last)} {which}: {state}")
    return "; ".join(parts)


POLL_SECONDS, MOST_POLL_SECONDS = 1.0, 10.0
GONE_AFTER = 3
"""Looks in a row that find no job of a round that is not complete: Slurm moves jobs from state to state."""
MOST_SILENT = 30
"""Looks in a row that Slurm does not answer: its controller may be started anew."""


def watch(run: SlurmRun, show: Callable[[Sequence[Round]], None]) -> list[Round]:
    """Look until nothing of it runs or waits. Raises UserError where Slurm does not answer for some minutes."""
    pause, gone, silent = POLL_SECONDS, 0, 0
    while True:
        try:
            rounds, silent = run.rounds(), 0
        except UserError:
            if (silent := silent + 1) > MOST_SILENT:
                raise
            time.sleep(pause)
            continue
        show(rounds)
        if all(one.task is None for one in rounds):
            gone += 1
            if gone >= GONE_AFTER or all(one.is_complete for one in rounds):
                return rounds
        else:
            gone = 0
        time.sleep(pause)
        pause = min(MOST_POLL_SECONDS, pause * 1.1)


def plan_lines(site: Site, suite: Suite, round_seconds: float | None) -> Iterator[str]:
    """Lines on the run's jobs, their time and cost. `round_seconds`: expected time of a round; None: not known."""
    rounds = len(suite.seeds)
    at_once = min(rounds, site.rounds_at_once or rounds)
    where = f"{site.nodes} node{'s' * (site.nodes > 1)}" + (f" with {site.gpus} GPUs" if site.gpus else "")
    yield f"Slurm: an array of {rounds} job{'s' * (rounds > 1)}, a round each, {at_once} at once, each on {where}"
    if round_seconds is not None:
        hours = rounds * site.nodes * round_seconds / 3600
        price = suite.cost.usd_per_gpu_hour if suite.cost else None
        cost = f", {units.usd(hours * site.gpus * price)}" if price and site.gpus else ""
        total = f"{units.significant(hours, 2)} node hours{cost} in all"
        yield f"a round takes about {units.duration(round_seconds)}; {total}"
        limit = seconds_of(site.time or "")
        if limit is not None and round_seconds > limit - SIGNAL_SECONDS:
            yield f"time: {site.time} is shorter than a round: its job is queued again until the round is complete"

"""A Slurm of two nodes on this machine: a controller and two daemons of its own, without systemd and munge."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import processes
from launch.harness import all_pids, until

NODES = ("n1", "n2")
NEEDED = "SELECTBENCH_TESTS_NEED_SLURM"
"""Set where a test that finds no Slurm is to fail."""

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdParameters=config_overrides
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmdTimeout=6
KillWait=10
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0,requeue_delay=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=short Nodes=ALL Default=YES MaxTime=30 State=UP
PartitionName=closed Nodes=n1 MaxTime=30 State=DOWN
"""


def why_not() -> str | None:
    """Why there can be none here."""
    missing = [name for name in ("slurmctld", "slurmd", "srun") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed: apt-get install slurmctld slurmd slurm-client"
    return None if os.geteuid() == 0 else "slurmd starts jobs as root alone"


@dataclass
class Slurm:
    folder: Path
    daemons: dict[str, processes.Process] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *words: str) -> str:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **self.environment}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self) -> list[str]:
        """`0 RUNNING n1`, of every job that has not ended."""
        return self.ask("squeue", "--noheader", "--array", "--format=%K %T %N").splitlines()

    def start(self, name: str) -> None:
        words = ["slurmctld", "-D"] if name == "controller" else ["slurmd", "-D", "-N", name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = processes.start(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )

    def of_node(self, node: str) -> list[int]:
        """Processes of the jobs that run there."""
        marks = (f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.folder}/slurm.conf".encode())
        return [pid for pid in all_pids() if all(mark in _variables(pid) for mark in marks)]

    def lose(self, node: str) -> None:
        """As if its power had failed: all that runs there ends without a word, daemon and watchers first."""
        self.daemons[node].kill()
        jobs = self.of_node(node)
        watchers = {parent for pid in jobs if _name(parent := _parent(pid)).startswith("slurmstepd")}
        for pid in [*watchers, *jobs]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _variables(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@contextmanager
def two_nodes(folder: Path) -> Iterator[Slurm]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir()
    with ExitStack() as held:
        free = [held.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(3)]
        ports = [int(one.getsockname()[1]) for one in free]
    (folder / "slurm.conf").write_text(
        _CONF.format(folder=folder, host=socket.gethostname().partition(".")[0], ports=ports)
    )
    slurm = Slurm(folder)
    for name in ("controller", *NODES):
        slurm.start(name)
    try:
        until(lambda: _are_idle(slurm), 60)
        yield slurm
    finally:
        with suppress(AssertionError):
            slurm.ask("scancel", "--state=PENDING")
            slurm.ask("scancel", "--state=RUNNING")
            until(lambda: not slurm.jobs(), 30)
        for daemon in slurm.daemons.values():
            daemon.terminate()
        for daemon in slurm.daemons.values():
            daemon.wait(20)


def _are_idle(slurm: Slurm) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--partition=short", "--format=%T %D"], capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ, **slurm.environment},
    )  # fmt: skip
    return done.stdout.split() == ["idle", "2"]

"""What every part of a worker needs: seeds, dtypes, own code, ranks, precision, memory, versions, whereabouts."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import math
import os
import platform
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed import distributed_c10d as c10d
from torch.distributed.tensor import DTensor

from selectbench import __version__
from selectbench.choices.choice import OwnCodeError, add_to_path, load
from selectbench.choices.execution import PrecisionChoice
from selectbench.data.reading import error_with_place
from selectbench.errors import may_want_bytes, says_out_of_memory
from selectbench.gpu.devices import gpus
from selectbench.machine import LIBRARIES, cpu_model
from selectbench.observe.selectbench_seen import states, storage_bytes
from selectbench.record.wire import CELLS_PER_RANK, STAGES, Stage


def derived_seed(seed: int, purpose: str, *parts: int) -> int:
    """A 63-bit seed for one purpose, so that drawing more weights never shifts the data order."""
    text = "/".join(map(str, (seed, purpose, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


# What a trial really used, read from the live objects rather than from the order.


def updated(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.Tensor]:
    """All parameters that the optimizers update: master weights where there are such."""
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor's part on this rank; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def optimizer_state_bytes(
    optimizers: Sequence[torch.optim.Optimizer], kept_parameters: Sequence[torch.Tensor]
) -> int:
    """Bytes of this rank's optimizer state, master weights beside the model's own among it."""
    own = {t.data_ptr() for t in kept_parameters}
    masters = [local for p in updated(optimizers) if (local := local_part(p)).data_ptr() not in own]
    return storage_bytes(states(optimizers)) + storage_bytes(masters)


def managed_state_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int | None:
    """Bytes of state that bitsandbytes allocated as CUDA's managed memory, past torch's allocator; None: no such.

    To torch these are tensors of the CPU (`bitsandbytes.functional.get_paged`); the library marks them itself.
    """
    return storage_bytes([state for state in states(optimizers) if getattr(state, "is_paged", False)]) or None


def attention(module: Any) -> str | None:
    """The kernel as a transformers model's configuration reports it; None for any other model."""
    return getattr(getattr(module, "config", None), "_attn_implementation", None)


def evaluation_kernel(module: Any) -> str | None:
    """The best kernel that all of a model's options can be evaluated with: sdpa where its class has it.

    Where a class can't change to another kernel it is the one that the model was made with, None for a model that
    is none of transformers.
    """
    made_with = attention(module)
    if made_with is None or not module._can_set_attn_implementation():
        return made_with
    return "sdpa" if module._supports_sdpa else "eager"


# Whether own code can be called, asked in a process of its own.


def answer_of_own_code(question: str, answer: str) -> None:
    """Write to the file `answer` what is wrong with each call of the file `question`, and end the process.

    Neither threads that own code has started nor what it does at the end of a process hold that up.
    """
    asked = json.loads(Path(question).read_text())
    add_to_path(asked["code"])
    found = [_call_problem(**call) for call in asked["calls"]]
    Path(answer).write_text(json.dumps(found))
    os._exit(0)


def _call_problem(setting: str, name: str, positional: Sequence[str], keywords: Sequence[str]) -> str | None:
    """Why `name` is not to be had, or can't be called with these; None: it can, or its signature can't be read."""
    try:
        found = load(name, setting)
    except OwnCodeError as error:
        return str(error).removeprefix(f"{setting} {name}: ")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever own code raises is for its author to see, SystemExit among it
        return f"importing it raises {error_with_place(error)}"
    if not callable(found):
        return f"expected a class or function, it is a {type(found).__name__}"
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of what is written in C it may not be known
        return None
    try:
        signature.bind(*positional, **dict.fromkeys(keywords))
    except TypeError as error:
        called = ", ".join([*positional, *(f"{key}=..." for key in keywords)])
        return f"{error}: it takes {signature} and is called as {name.rpartition(':')[2]}({called})"
    return None


# The ranks of a trial, as one of them sees them.


PATIENCE = timedelta(days=7)
"""Of collectives: a rank that hangs is ended by the bench's limits, which know which one it is."""


def set_patience() -> None:
    """Of every process group: libraries make some of their own, which would give up before the bench does."""
    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(PATIENCE, group)


@dataclass(frozen=True)
class World:
    """A rank's place. With one rank nothing is exchanged, nor need there be a process group."""

    rank: int
    """From 0."""
    size: int
    """Ranks."""
    device: str
    """`cpu`, or this rank's `cuda:N`."""

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`."""
        return self.device.partition(":")[0]

    @property
    def is_first(self) -> bool:
        """Whether this rank reports for all."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place; waits for the others."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, number: int) -> int:
        """The first rank's number, on all; waits for it."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared)

    def gathered(self, item: object) -> list[object]:
        """Every rank's picklable item, in order, on all; waits for the others."""
        if self.size == 1:
            return [item]
        items: list[object] = [None] * self.size
        dist.all_gather_object(items, item)
        return items


ALONE = World(rank=0, size=1, device="cpu")


def wait_for(device_type: str) -> None:
    """For all work that is queued on a GPU; on a CPU nothing is under way."""
    if device_type == "cuda":
        torch.cuda.synchronize()


# torch's switches for a precision: TF32 and autocast.


def set_tf32(allowed: bool) -> None:
    """Lets fp32 matrix products use TF32, or forbids it.

    Always through this one call: torch keeps its older and newer flags consistent in it, whereas after
    `torch.backends.cuda.matmul.fp32_precision = "tf32"` every read of the older ones raises, and
    Inductor reads them.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def tf32_allowed() -> bool:
    """Whether fp32 matrix products may use TF32."""
    return torch.get_float32_matmul_precision() != "highest"


@contextmanager
def without_tf32() -> Iterator[None]:
    """True fp32 products inside, whatever the precision of the training."""
    before = tf32_allowed()
    set_tf32(False)
    try:
        yield
    finally:
        set_tf32(before)


def autocast(precision: PrecisionChoice, device: str) -> AbstractContextManager[object]:
    """The context of the forward pass; enter a new one each time."""
    if precision.autocast_dtype is None:
        return nullcontext()
    return torch.autocast(device, dtype=getattr(torch, precision.autocast_dtype))


# Whether an exception means that memory could not be had.


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it, or what it was raised from, says so; call it before memory is given back to the device.

    Where its words may mean something else as well, what the device has free decides.
    """
    cause = error.__cause__
    if cause is not None and is_out_of_memory(cause):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and (says_out_of_memory(str(error)) or _is_for_want_of_memory(str(error))):
        return True
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _is_for_want_of_memory(text: str) -> bool:
    wanted = may_want_bytes(text)
    if wanted is None or not torch.cuda.is_initialized():
        return False
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError:  # an earlier error has ended the context: every call fails, whatever is free
        return False
    return free <= wanted


# Memory while training, as seen from inside the worker: the CUDA allocator's peaks, or the process's own.
#
# Both count the stretch of training before the first evaluation where one is spoiled by what an evaluation leaves
# behind: the CUDA allocator and the C library keep freed memory, which would pass for the training's.


class CudaMemory:
    """Peaks of the CUDA allocator."""

    def __init__(self) -> None:
        self._peaks: tuple[int, int, int] | None = None
        """Allocated, reserved, and how often the allocator had to free its cache."""

    def start(self) -> None:
        """A stretch of training begins: peaks count from here."""
        if self._peaks is None:
            torch.cuda.empty_cache()  # what casting and sharding have left behind is not the training's
        torch.cuda.reset_peak_memory_stats()
        self._retries_before = torch.cuda.memory_stats().get("num_alloc_retries", 0)

    def stop(self) -> None:
        """The stretch ends: its peaks are kept; of reserved memory the first stretch's only."""
        allocated, reserved, retries = self._peaks or (0, 0, 0)
        self._peaks = (
            max(allocated, torch.cuda.max_memory_allocated()), reserved or torch.cuda.max_memory_reserved(),
            retries + torch.cuda.memory_stats().get("num_alloc_retries", 0) - self._retries_before,
        )  # fmt: skip

    def peaks(self) -> dict[str, int | None]:
        """Of all stretches."""
        names = "peak_memory_allocated_bytes", "peak_memory_reserved_bytes", "num_alloc_retries"
        return dict(zip(names, self._peaks or (None,) * 3, strict=True))


class CpuMemory:
    """Peak proportional set size (PSS) of this process in the first stretch, over its value at the start.

    PSS counts a page shared by n processes as 1/n, so what a forked trial shares with its server is not
    charged to it. The kernel keeps no peak of PSS but an exact one of the resident set (VmHWM, reset by
    writing 5 to clear_refs: proc(5)); what lies between that peak and the present resident set was the
    process's own and is added to the present PSS. Nothing is sampled, so nothing is missed between samples.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc
        self._base = self._bytes("smaps_rollup", "Pss")
        self._counting = False
        self.growth_bytes: int | None = None

    def start(self) -> None:
        """The first stretch begins: the kernel forgets the peak of what came before."""
        if self.growth_bytes is not None:
            return
        try:
            (self._proc / "clear_refs").write_text("5")
            self._counting = True
        except OSError:
            self._counting = False  # a peak that includes the set-up would mislead: it stays unknown

    def stop(self) -> None:
        """The first stretch ends: its peak is kept."""
        if self._counting and self.growth_bytes is None:
            resident, highest = self._bytes("status", "VmRSS"), self._bytes("status", "VmHWM")
            self.growth_bytes = max(0, self._bytes("smaps_rollup", "Pss") + max(0, highest - resident) - self._base)

    def peaks(self) -> dict[str, int | None]:
        """Growth of the proportional set size."""
        return {"peak_pss_growth_bytes": self.growth_bytes}

    def _bytes(self, file: str, key: str) -> int:
        with (self._proc / file).open() as lines:
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


TrainingMemory = CudaMemory | CpuMemory
"""A loop says when stretches of training begin and end; `peaks` are the measurement's keys of memory, in bytes.

To be made first of all, since CPU memory counts from its making."""


# Versions of what a worker runs with.


_OPENMP = re.compile(r"/(lib(?:gomp|iomp5|omp)\b[^/]*)$")


def versions() -> dict[str, str | None]:
    """Of this interpreter and its libraries by distribution name, None: not installed; and its `openmp`."""
    found: dict[str, str | None] = {"python": platform.python_version(), "openmp": openmp()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def openmp(maps: Path = Path("/proc/self/maps")) -> str | None:
    """Files of the OpenMP libraries that are loaded, by commas; None: none. `maps`: as proc(5) has it."""
    found = {match[1] for line in maps.read_text().splitlines() if (match := _OPENMP.search(line))}
    return ", ".join(sorted(found)) or None


# torch.compile's caches, private to a trial, and its count of compiled graphs.


CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@contextmanager
def private_caches(folder: Path) -> Iterator[None]:
    """Empty caches in `folder` inside, so that every trial pays for its own compilation; gone afterwards."""
    before = {name: os.environ.get(name) for name in CACHES}
    try:
        for name in CACHES:
            os.environ[name] = str((folder / name.lower()).absolute())
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
            shutil.rmtree(folder / name.lower(), ignore_errors=True)


def compilations() -> int:
    """Graphs that this process has compiled so far, whoever asked for it; the compiler is not imported for that."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


# Where each rank of a trial is, readable from outside while a rank hangs.


class Whereabouts:
    """A rank's own note of how far it came, in memory shared with the process that watches the ranks."""

    def __init__(self, cells: MutableSequence[int] | None = None, rank: int = 0) -> None:
        """`cells`: CELLS_PER_RANK whole numbers per rank of this node, zero at first; None: nobody reads it.

        `rank`: from 0 on the node.
        """
        self._cells = [0] * CELLS_PER_RANK if cells is None else cells
        self._first = rank * CELLS_PER_RANK

    def enter(self, stage: Stage, step: int) -> None:
        """The rank goes over to a stage of optimizer step `step`."""
        cells, first = self._cells, self._first
        cells[first + 1], cells[first + 2] = step, STAGES.index(stage)
        cells[first] += 1


# How fast large square matrix products run on this process's device: one line of JSON for each dtype.


SIZES = {"cuda": (4096, 8192, 16384), "cpu": (1024,)}
"""Small ones don't fill a large GPU; the largest may not fit a small one, and is then left out."""
DTYPES = {"cuda": ("float32", "tf32", "bfloat16", "float16"), "cpu": ("float32", "bfloat16", "float16")}
BATCH_SECONDS = 0.1
"""Products between two waits for the device take about so long."""
MEASURED_SECONDS = 1.0
"""For each dtype and size, the warm-up left out."""
WARM_UP = 2


def calibrate(device: str, sizes: Sequence[int] = (), measured_seconds: float = MEASURED_SECONDS) -> None:
    """Print `{"dtype", "flops_per_second", "size", "torch", "problem"}` for each dtype as it is measured.

    `device`: cpu or cuda; `sizes`: SIZES' unless given. A dtype that can't be had has a problem and no rate.
    """
    for name in DTYPES[device]:
        modern = name in ("tf32", "bfloat16")
        lacks = device == "cuda" and modern and torch.cuda.get_device_capability() < (8, 0)
        # As a trial's precision switches it; how sums of 16-bit products may be rounded is left to torch there too.
        set_tf32(name == "tf32")
        dtype, found = torch.float32 if name == "tf32" else getattr(torch, name), []
        for size in () if lacks else sizes or SIZES[device]:
            try:
                found.append((_flops_per_second(device, dtype, size, measured_seconds), size))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        rate, best = max(found, default=(None, None))
        problem = "needs compute capability 8.0" if lacks else None if found else "out of memory"
        measured = {"dtype": name, "flops_per_second": rate, "size": best, "torch": torch.__version__}
        print(json.dumps({**measured, "problem": problem}), flush=True)


def _flops_per_second(device: str, dtype: torch.dtype, size: int, measured_seconds: float) -> float:
    """Median over batches of products of normal random values: what a GPU draws, and its clock, hang on them."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = min(_seconds(device, a, b, out, 1) for _ in range(WARM_UP))
    batch = max(1, math.ceil(BATCH_SECONDS / seconds))
    batches = [_seconds(device, a, b, out, batch)]
    while sum(batches) < measured_seconds:
        batches.append(_seconds(device, a, b, out, batch))
    return 2 * size**3 * batch / median(batches)


def _seconds(device: str, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, products: int) -> float:
    """From one synchronised edge to the next."""
    wait_for(device)
    begin = time.perf_counter()
    for _ in range(products):
        torch.mm(a, b, out=out)
    wait_for(device)
    return time.perf_counter() - begin


# What a node of a site can do, by itself and with the others: one line of JSON.


BLOCK_BYTES = 64 << 20
NODE_SECONDS, MEET_SECONDS = 240, 90.0
"""For all of it, after which the process ends; for one exchange with the others."""
TRIES = 3
"""The best of which counts: what disturbs one is not the node's."""


def measure_node(rank: int, nodes: int, cache: Path, code: str) -> None:
    """Print what this node can do: rates in FLOP/s by device and in bytes per second, and versions.

    Of several the first says where to meet; that comes back to all by standard input once all are there, and each
    prints a second line. Nothing comes where one of them failed.
    """
    signal.alarm(NODE_SECONDS)
    there, host, rates = gpus() if torch.cuda.is_available() else [], socket.gethostname(), []
    node, limit = os.environ.get("SLURMD_NODENAME", host), timedelta(seconds=MEET_SECONDS)
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    for number in range(torch.cuda.device_count() if device == "cuda" else 1):
        with torch.cuda.device(number) if device == "cuda" else nullcontext():
            rates.append(_flops_per_second(device, dtype, SIZES[device][:2][-1], MEASURED_SECONDS))
    versions = {
        "selectbench": f"{__version__} ({code[:8]})", "python": platform.python_version(),
        "torch": torch.__version__, "CUDA": torch.version.cuda,
        "driver": there[0].driver_version if there else None,
        "device": ", ".join(sorted({gpu.name for gpu in there})) or cpu_model(),
    }  # fmt: skip
    found = {"node": node, "flops_per_second": rates, **_disk_rates(cache), "versions": versions}
    store = None
    if nodes > 1 and rank == 0:
        store = TCPStore(host, 0, nodes, is_master=True, timeout=limit, wait_for_workers=False)
        found["meet"] = [host, store.port]
    print(json.dumps(found), flush=True)
    if nodes > 1 and (told := sys.stdin.readline()):
        first, port = json.loads(told)
        store = store or TCPStore(first, port, nodes, timeout=limit)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=nodes, timeout=limit)
        print(json.dumps({"node": node, **_exchange_rates(device, rank, nodes)}), flush=True)


def _fastest(*actions: Callable[[], object]) -> float:
    """Bytes per second of all but the first, which prepares them."""
    took = []
    for _ in range(TRIES):
        actions[0]()
        begin = time.perf_counter()
        for action in actions[1:]:
            action()
        took.append(time.perf_counter() - begin)
    return BLOCK_BYTES / min(took)


def _disk_rates(folder: Path) -> dict[str, list[float]]:
    """Of writing to the disk itself, and of reading from it what no cache of this node has."""
    folder.mkdir(parents=True, exist_ok=True)
    content = os.urandom(BLOCK_BYTES)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        number = file.fileno()
        empty, write = partial(os.ftruncate, number, 0), partial(os.pwrite, number, content, 0)
        written = _fastest(empty, write, partial(os.fsync, number))
        drop = partial(os.posix_fadvise, number, 0, 0, os.POSIX_FADV_DONTNEED)
        return {"write": [written], "read": [_fastest(drop, partial(os.pread, number, BLOCK_BYTES, 0))]}


def _exchange_rates(device: str, rank: int, nodes: int) -> dict[str, Any]:
    """Of sending to a node while another sends, to the best of some; and of a sum over all, on its bus."""
    block, other = (torch.zeros(BLOCK_BYTES // 4, device=device) for _ in range(2))

    def shift(by: int) -> None:
        pair = (dist.isend, block, (rank + by) % nodes), (dist.irecv, other, (rank - by) % nodes)
        for work in dist.batch_isend_irecv([dist.P2POp(*each) for each in pair]):
            work.wait()
        wait_for(device)

    def add() -> None:
        dist.all_reduce(block)
        wait_for(device)

    def together(exchange: Callable[[], None]) -> float:
        exchange()  # which connects
        return _fastest(dist.barrier, exchange)

    sent = max(together(partial(shift, by)) for by in range(1, min(nodes, 4)))
    return {"send": [sent], "all_reduce": together(add) * 2 * (nodes - 1) / nodes}

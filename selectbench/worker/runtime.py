"""What every part of a worker needs: seeds, dtypes, own code, ranks, precision, memory, versions, whereabouts."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import platform
import re
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
from typing import Any
from unittest.mock import patch

import msgspec
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
    """A 63-bit seed for one purpose, so that drawing more weights never changes the data order."""
    text = "/".join(map(str, (seed, purpose, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


# What a trial really used, read from the live objects rather than from the order.


def updated_parameters(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.Tensor]:
    """All parameters that the optimizers update: the master weights, where there are any."""
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor's part on this rank; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def optimizer_state_bytes(
    optimizers: Sequence[torch.optim.Optimizer], stored_parameters: Sequence[torch.Tensor]
) -> int:
    """Bytes of this rank's optimizer state, including master weights that are not the model's parameters."""
    pointers = {t.data_ptr() for t in stored_parameters}
    masters = [local for p in updated_parameters(optimizers) if (local := local_part(p)).data_ptr() not in pointers]
    return storage_bytes(states(optimizers)) + storage_bytes(masters)


def managed_state_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int | None:
    """Bytes of state that bitsandbytes allocated as CUDA's managed memory, outside torch's allocator; None: none.

    Torch takes these for CPU tensors (`bitsandbytes.functional.get_paged`); the library marks them.
    """
    return storage_bytes([state for state in states(optimizers) if getattr(state, "is_paged", False)]) or None


def attention(module: Any) -> str | None:
    """The attention kernel in a transformers model's configuration; None for any other model."""
    return getattr(getattr(module, "config", None), "_attn_implementation", None)


def evaluation_kernel(module: Any) -> str | None:
    """The best kernel that all of a model's options can be evaluated with: sdpa where its class has it.

    For a class that can't change its kernel, the kernel that the model was made with; None for a model that is not
    from transformers.
    """
    made_with = attention(module)
    if made_with is None or not module._can_set_attn_implementation():
        return made_with
    return "sdpa" if module._supports_sdpa else "eager"


@contextmanager
def attention_kernel(module: Any, kernel: str | None) -> Iterator[None]:
    """Within the context a transformers model uses this kernel; for any other model it is None."""
    before = attention(module)
    if kernel == before:
        yield
        return
    module.set_attn_implementation(kernel)
    try:
        yield
    finally:
        module.set_attn_implementation(before)


# Checks whether own code can be called, which run in a separate process.


def write_answer(compute: Callable[[dict[str, Any]], object], question: str, answer: str) -> None:
    """Write to the file `answer` what is computed of the request in the file `question`, and end the process.

    The request's own code can be imported; its threads and exit handlers do not delay the end.
    """
    request = json.loads(Path(question).read_text(encoding="utf-8"))
    add_to_path(request["code"])
    Path(answer).write_bytes(msgspec.json.encode(compute(request)))
    os._exit(0)


def call_problems(request: dict[str, Any]) -> list[str | None]:
    """The problem of each call of own code in the request; None where it can be made."""
    return [_call_problem(**call) for call in request["calls"]]


def _call_problem(setting: str, name: str, positional: Sequence[str], keywords: Sequence[str]) -> str | None:
    """Why `name` can't be imported or called like this; None: it can, or its signature can't be read."""
    try:
        target = load(name, setting)
    except OwnCodeError as error:
        return str(error).removeprefix(f"{setting} {name}: ")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the author must see whatever own code raises, even SystemExit
        return f"importing it raises {error_with_place(error)}"
    if not callable(target):
        return f"expected a class or function, it is a {type(target).__name__}"
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # it may not be known for functions in C
        return None
    try:
        signature.bind(*positional, **dict.fromkeys(keywords))
    except TypeError as error:
        arguments = ", ".join([*positional, *(f"{key}=..." for key in keywords)])
        return f"{error}: it takes {signature} and is called as {name.rpartition(':')[2]}({arguments})"
    return None


# The ranks of a trial, as one of them sees them.


PATIENCE = timedelta(days=7)
"""Timeout of collectives; a hang is ended by the bench's limits, which know which rank hangs."""


def set_patience() -> None:
    """Set the timeout of every process group, also those of libraries, which would give up before the bench."""
    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(PATIENCE, group)


@dataclass(frozen=True)
class World:
    """A rank among all ranks. With one rank nothing is exchanged, and no process group is needed."""

    rank: int
    """Number of the rank, from 0."""
    size: int
    """Number of ranks."""
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
        """The first rank's value, on all ranks; waits for the first rank."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared)

    def gathered(self, item: object) -> list[object]:
        """The picklable items of all ranks, in order, on all ranks; waits for the others."""
        if self.size == 1:
            return [item]
        items: list[object] = [None] * self.size
        dist.all_gather_object(items, item)
        return items


SINGLE_RANK = World(rank=0, size=1, device="cpu")


def wait_for(device_type: str) -> None:
    """Wait for all work that is queued on a GPU; on a CPU there is none."""
    if device_type == "cuda":
        torch.cuda.synchronize()


# torch's switches for a precision: TF32 and autocast.


def set_tf32(allowed: bool) -> None:
    """Let fp32 matrix products use TF32, or forbid it.

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
    """Within the context products are in true fp32, whatever the precision of the training."""
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


# Whether an exception means that memory ran out.


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or its cause, means that memory ran out; call it before memory is freed.

    Where the message is ambiguous, the device's free memory decides.
    """
    cause = error.__cause__
    if cause is not None and is_out_of_memory(cause):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and (says_out_of_memory(str(error)) or _lacks_memory(str(error))):
        return True
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _lacks_memory(text: str) -> bool:
    requested = may_want_bytes(text)
    if requested is None or not torch.cuda.is_initialized():
        return False
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError:  # an earlier error has ended the context: every call fails, whatever memory is free
        return False
    return free <= requested


# Memory while training, as seen from inside the worker: the CUDA allocator's peaks, or the process's own.
#
# Both count only the training before the first evaluation where later counts would include an evaluation's memory:
# the CUDA allocator and the C library keep freed memory, which would be taken for the training's.


class CudaMemory:
    """Peaks of the CUDA allocator."""

    def __init__(self) -> None:
        self._peaks: tuple[int, int, int] | None = None
        """Allocated bytes, reserved bytes, and how often the allocator had to free its cache."""

    def start(self) -> None:
        """Begin a stretch of training: peaks count from here."""
        if self._peaks is None:
            torch.cuda.empty_cache()  # memory left from casting and sharding is not the training's
        torch.cuda.reset_peak_memory_stats()
        self._retries_before = torch.cuda.memory_stats().get("num_alloc_retries", 0)

    def stop(self) -> None:
        """End the stretch and store its peaks; for reserved memory only the first stretch's."""
        allocated, reserved, retries = self._peaks or (0, 0, 0)
        self._peaks = (
            max(allocated, torch.cuda.max_memory_allocated()), reserved or torch.cuda.max_memory_reserved(),
            retries + torch.cuda.memory_stats().get("num_alloc_retries", 0) - self._retries_before,
        )  # fmt: skip

    def peaks(self) -> dict[str, int | None]:
        """The peaks of all stretches, by the measurement's keys."""
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
        """Begin the first stretch: reset the kernel's peak."""
        if self.growth_bytes is not None:
            return
        try:
            (self._proc / "clear_refs").write_text("5")
            self._counting = True
        except OSError:
            self._counting = False  # a peak that includes the set-up would mislead, so it stays unknown

    def stop(self) -> None:
        """End the first stretch and store its peak."""
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

Make it first of all, since CPU memory counts from then."""


# Versions of what a worker runs with.


_OPENMP = re.compile(r"/(lib(?:gomp|iomp5|omp)\b[^/]*)$")


def versions() -> dict[str, str | None]:
    """Versions of the interpreter and its libraries by distribution name, None: not installed; and `openmp`."""
    by_name: dict[str, str | None] = {"python": platform.python_version(), "openmp": openmp()}
    for name in LIBRARIES:
        try:
            by_name[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            by_name[name] = None
    return by_name


def openmp(maps: Path = Path("/proc/self/maps")) -> str | None:
    """Files of loaded OpenMP libraries, separated by commas; None: none. `maps`: format as in proc(5)."""
    names = {match[1] for line in maps.read_text().splitlines() if (match := _OPENMP.search(line))}
    return ", ".join(sorted(names)) or None


# torch.compile's caches, private to a trial, and its count of compiled graphs.


@contextmanager
def private_caches(folder: Path) -> Iterator[None]:
    """Use empty caches in `folder`, so that every trial pays for its compilation; removes them afterwards."""
    with tempfile.TemporaryDirectory(dir=folder.absolute(), ignore_cleanup_errors=True) as caches:
        names = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
        with patch.dict(os.environ, {name: f"{caches}/{name.lower()}" for name in names}):
            yield


def compilations() -> int:
    """Number of graphs that this process has compiled so far, by any caller; does not import the compiler."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


# The stage that each rank of a trial is in, readable from outside while a rank hangs.


class Whereabouts:
    """A rank's current step and stage, in memory shared with the process that watches the ranks."""

    def __init__(self, cells: MutableSequence[int] | None = None, rank: int = 0) -> None:
        """`cells`: CELLS_PER_RANK whole numbers per rank of this node, zero at first; None: nobody reads it.

        `rank`: from 0 on the node.
        """
        self._cells = [0] * CELLS_PER_RANK if cells is None else cells
        self._first = rank * CELLS_PER_RANK

    def enter(self, stage: Stage, step: int) -> None:
        """Note that the rank enters a stage of optimizer step `step`."""
        cells, first = self._cells, self._first
        cells[first + 1], cells[first + 2] = step, STAGES.index(stage)
        cells[first] += 1


# How fast large square matrix products run on this process's device: one line of JSON for each dtype.


SIZES = {"cuda": (4096, 8192, 16384), "cpu": (1024,)}
"""Sizes of the matrices: small ones don't fill a large GPU; one that does not fit is left out."""
DTYPES = {"cuda": ("float32", "tf32", "bfloat16", "float16"), "cpu": ("float32", "bfloat16", "float16")}
MEASURED_SECONDS = 1.0
"""Seconds measured for each dtype and size, without warm-up."""


def calibrate(device: str, sizes: Sequence[int] = (), measured_seconds: float = MEASURED_SECONDS) -> None:
    """Print `{"dtype", "flops_per_second", "size", "torch", "problem"}` for each dtype as it is measured.

    `device`: cpu or cuda; `sizes`: SIZES by default. An unavailable dtype has a problem and no rate.
    """
    for name in DTYPES[device]:
        modern = name in ("tf32", "bfloat16")
        is_too_old = device == "cuda" and modern and torch.cuda.get_device_capability() < (8, 0)
        # Set as for a trial; the rounding of sums of 16-bit products is left to torch in both.
        set_tf32(name == "tf32")
        dtype, rates = torch.float32 if name == "tf32" else getattr(torch, name), []
        for size in () if is_too_old else sizes or SIZES[device]:
            try:
                rates.append((_flops_per_second(device, dtype, size, measured_seconds), size))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        rate, best = max(rates, default=(None, None))
        problem = "needs compute capability 8.0" if is_too_old else None if rates else "out of memory"
        result = {"dtype": name, "flops_per_second": rate, "size": best, "torch": torch.__version__}
        print(json.dumps({**result, "problem": problem}), flush=True)


def _flops_per_second(device: str, dtype: torch.dtype, size: int, measured_seconds: float) -> float:
    """Median over batches of products of normal random values, on which a GPU's power and clock depend."""
    from torch.utils.benchmark import Timer

    def clock() -> float:
        wait_for(device)
        return time.perf_counter()

    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    factors = {"a": a, "b": b, "out": torch.mm(a, b)}  # the first product of all loads kernels
    threads = torch.get_num_threads()
    timer = Timer("torch.mm(a, b, out=out)", timer=clock, globals=factors, num_threads=threads)
    return 2 * size**3 / timer.blocked_autorange(min_run_time=measured_seconds).median


# Measures a site's node, alone and together with the others: one line of JSON each.


BLOCK_BYTES = 64 << 20
NODE_SECONDS, EXCHANGE_SECONDS = 240, 90.0
"""Limit of the whole process, which then ends; timeout of an exchange with the others."""
TRIES = 3
"""Repetitions, of which the best counts, as disturbances say nothing of the node."""


def measure_node(rank: int, nodes: int, cache: Path, code: str) -> None:
    """Print this node's rates, in FLOP/s by device and in bytes per second, and versions.

    Of several nodes the first prints where to meet; all get that by standard input once all are ready, and each
    prints a second line. Standard input ends without it where a node failed.
    """
    signal.alarm(NODE_SECONDS)
    node_gpus, host, rates = gpus() if torch.cuda.is_available() else [], socket.gethostname(), []
    node, limit = os.environ.get("SLURMD_NODENAME", host), timedelta(seconds=EXCHANGE_SECONDS)
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    for number in range(torch.cuda.device_count() if device == "cuda" else 1):
        with torch.cuda.device(number) if device == "cuda" else nullcontext():
            rates.append(_flops_per_second(device, dtype, SIZES[device][:2][-1], MEASURED_SECONDS))
    versions = {
        "selectbench": f"{__version__} ({code[:8]})", "python": platform.python_version(),
        "torch": torch.__version__, "CUDA": torch.version.cuda,
        "driver": node_gpus[0].driver_version if node_gpus else None,
        "device": ", ".join(sorted({gpu.name for gpu in node_gpus})) or cpu_model(),
    }  # fmt: skip
    result = {"node": node, "flops_per_second": rates, **_disk_rates(cache), "versions": versions}
    store = None
    if nodes > 1 and rank == 0:
        store = TCPStore(host, 0, nodes, is_master=True, timeout=limit, wait_for_workers=False)
        result["meet"] = [host, store.port]
    print(json.dumps(result), flush=True)
    if nodes > 1 and (reply := sys.stdin.readline()):
        first_host, port = json.loads(reply)
        store = store or TCPStore(first_host, port, nodes, timeout=limit)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=nodes, timeout=limit)
        print(json.dumps({"node": node, **_exchange_rates(device, rank, nodes)}), flush=True)


def _best_rate(*actions: Callable[[], object]) -> float:
    """Best rate of the actions in bytes per second; the first action prepares them and is not timed."""
    durations = []
    for _ in range(TRIES):
        actions[0]()
        begin = time.perf_counter()
        for action in actions[1:]:
            action()
        durations.append(time.perf_counter() - begin)
    return BLOCK_BYTES / min(durations)


def _disk_rates(folder: Path) -> dict[str, list[float]]:
    """Rates of writing to the disk, and of reading from it without this node's cache."""
    folder.mkdir(parents=True, exist_ok=True)
    content = os.urandom(BLOCK_BYTES)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        number = file.fileno()
        empty, write = partial(os.ftruncate, number, 0), partial(os.pwrite, number, content, 0)
        written = _best_rate(empty, write, partial(os.fsync, number))
        drop = partial(os.posix_fadvise, number, 0, 0, os.POSIX_FADV_DONTNEED)
        return {"write": [written], "read": [_best_rate(drop, partial(os.pread, number, BLOCK_BYTES, 0))]}


def _exchange_rates(device: str, rank: int, nodes: int) -> dict[str, Any]:
    """Rate of sending to a node while receiving, best of some nodes; and bus bandwidth of an all-reduce."""
    block, other = (torch.zeros(BLOCK_BYTES // 4, device=device) for _ in range(2))

    def shift(by: int) -> None:
        pair = (dist.isend, block, (rank + by) % nodes), (dist.irecv, other, (rank - by) % nodes)
        for work in dist.batch_isend_irecv([dist.P2POp(*operation) for operation in pair]):
            work.wait()
        wait_for(device)

    def add() -> None:
        dist.all_reduce(block)
        wait_for(device)

    def rate_of(exchange: Callable[[], None]) -> float:
        exchange()  # this connects the nodes
        return _best_rate(dist.barrier, exchange)

    send_rate = max(rate_of(partial(shift, by)) for by in range(1, min(nodes, 4)))
    return {"send": [send_rate], "all_reduce": rate_of(add) * 2 * (nodes - 1) / nodes}

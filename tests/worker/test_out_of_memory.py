"""What counts as running out of memory: by the libraries' words, and by what is free where these leave it open."""

from __future__ import annotations

import errno
import inspect
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._inductor.exc import InductorError

from selectbench.worker.runtime import is_out_of_memory

MIB, GIB = 1 << 20, 1 << 30
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error\nLast error:\n"
HELP = "\nSearch for `{}' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html\n"
TRITON_RESOURCES = "out of resource: shared memory, Required: 114688, Hardware limit: 101376. Reducing block sizes"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("unable to mmap 4096 bytes from file </x>: Cannot allocate memory (12)"),
        torch.AcceleratorError("CUDA error: out of memory" + HELP.format("cudaErrorMemoryAllocation")),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        dist.DistBackendError(NCCL + "Cuda failure 2 'out of memory'"),
        dist.DistBackendError(NCCL + "Cuda failure 'out of memory'"),
    ],
    ids=str,
)
def test_words_that_say_so(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not match"),
        ValueError("can't allocate memory"),
        OSError(errno.ENOENT, "No such file or directory"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("CUDA error: too many resources requested for launch"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA driver error: device not ready"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError(TRITON_RESOURCES),
        dist.DistBackendError(NCCL + "Cuda failure 209 'no kernel image is available for execution on the device'"),
        dist.DistBackendError(NCCL + "Cuda failure 217 'peer access is not supported between these two devices'"),
    ],
    ids=str,
)
def test_words_that_say_something_else(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    device_has_free(0, monkeypatch)
    assert not is_out_of_memory(error)


def device_has_free(free_bytes: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's own answer, where there is no CUDA; None: an earlier error has ended the context."""

    def answer(device: int) -> tuple[int, int]:
        if free_bytes is None:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return free_bytes, 80 * GIB

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaMemGetInfo=answer))


@pytest.mark.parametrize(
    ("words", "enough_bytes"),
    [
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", 2 * GIB),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", 2 * GIB),
        ("cusolver error: CUSOLVER_STATUS_NOT_INITIALIZED, when calling `cusolverDnCreate(handle)`", 2 * GIB),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", 2 * GIB),
        (NCCL + "Failed to CUDA calloc async 2432 bytes", 2 * GIB),
        (NCCL + "Failed to CUDA calloc 4294967296 bytes", 8 * GIB),
    ],
)
def test_words_that_leave_it_open_are_judged_by_what_is_free(
    words: str, enough_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError(words)
    assert not is_out_of_memory(error)  # of a process that has no device
    for free_bytes, expected in ((90 * MIB, True), (enough_bytes, False), (None, False)):
        device_has_free(free_bytes, monkeypatch)
        assert is_out_of_memory(error) == expected, free_bytes


def test_a_large_request_fails_with_more_free_than_a_handle_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    device_has_free(2 * GIB, monkeypatch)
    assert is_out_of_memory(dist.DistBackendError(NCCL + "Failed to CUDA calloc 4294967296 bytes"))


def test_what_it_was_raised_from_counts() -> None:
    error = ValueError("the model cannot be made")
    assert not is_out_of_memory(error)
    error.__cause__ = MemoryError()
    assert is_out_of_memory(error)
    compiling = InductorError(torch.OutOfMemoryError("CUDA out of memory. Tried"), inspect.currentframe())
    assert is_out_of_memory(compiling)

"""What libraries say where memory could not be had.

The words of torch (c10's allocators, CUDAException, ProcessGroupNCCL), the CUDA libraries' names of their statuses,
NCCL (src/include/checks.h), Triton's driver, bitsandbytes and flash-attn (their C++ code's CUDA checks).
"""

from __future__ import annotations

import re

_SAYS_SO = re.compile(
    r"""
    can't\ allocate\ memory | not\ enough\ memory           # torch's CPU allocator
    | Cannot\ allocate\ memory                              # the kernel (ENOMEM), for maps and shared memory
    | CUDA\ out\ of\ memory                                 # torch's CUDA allocator
    | CUDA\ (?:driver\ )?error(?:\ \([^()]*\))?:\ out\ of\ memory  # torch outside of it; flash-attn with its file
    | CUDA_ERROR_OUT_OF_MEMORY
    | CU(?:BLAS|SOLVER|SPARSE|DNN)_STATUS_ALLOC_FAILED | CUFFT_ALLOC_FAILED | CURAND_STATUS_ALLOCATION_FAILED
    | Cuda\ failure\ (?:2\ )?'out\ of\ memory'              # NCCL, newer ones with the number
    | Triton\ Error\ \[CUDA\]:\ out\ of\ memory
    | Error\ out\ of\ memory\ at\ line\ \d+\ in\ file       # bitsandbytes
    """,
    re.VERBOSE,
)
_FOR_WANT_OF = re.compile(
    r"""
    CU(?:BLAS|SOLVER|SPARSE|DNN)_STATUS_NOT_INITIALIZED     # a handle that a full device has no room for
    | CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED  # so too while a CUDA graph is captured
    | Failed\ to\ CUDA\ [mc]alloc(?:\ async)?\ (?P<bytes>\d+)\ bytes  # NCCL's last word, whatever went wrong
    """,
    re.VERBOSE,
)
HANDLE_BYTES = 512 << 20
"""With less free on a GPU a library's handle that can't be made is for want of memory: it takes tens of megabytes,
and its kernels some hundred when they are first loaded."""


def says_out_of_memory(text: str) -> bool:
    """Whether an error's words are that memory could not be had."""
    return _SAYS_SO.search(text) is not None


def may_want_bytes(text: str) -> int | None:
    """With how many free bytes of the GPU at most an error's words mean that memory could not be had.

    None: they mean something else whatever is free.
    """
    found = _FOR_WANT_OF.search(text)
    if found is None:
        return None
    return HANDLE_BYTES + int(found["bytes"] or 0)

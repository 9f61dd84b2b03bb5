"""A user's mistakes, reported without a traceback, and how libraries word full disks and lack of memory."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from difflib import SequenceMatcher, get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process's exit status means."""

    OK = 0
    """Every trial has an outcome, the baseline completed, none crashed or timed out."""
    REGRESSION = 1
    """`gate` alone: a limit does not hold."""
    USER_ERROR = 2
    """A wrong suite, command, device or folder."""
    TRIALS_FAILED = 3
    """Some trial crashed or timed out, or the baseline has no completed trial."""
    INCONCLUSIVE = 4
    """`gate` alone: no limit is shown not to hold, but not every one is shown to hold."""
    OWN_BUG = 70
    """An exception that selectbench should not have let through."""
    INTERRUPTED = 130
    """Ctrl-C, SIGTERM or SIGHUP; the records are whole."""


class UserError(ValueError):
    """One or more mistakes that the user can mend, each a line that says where, what and how."""

    def __init__(self, *problems: str) -> None:
        """`problems`: complete lines, ready to print."""
        super().__init__("\n".join(problems))
        self.problems = problems

    def _render_traceback_(self) -> list[str]:
        """The lines that notebooks show in place of a traceback, which would not help the user."""
        return [f"{type(self).__name__}:", *self.problems]


class MissingPackageError(UserError):
    """A package that this command cannot do without is not installed; the message says how to get it."""


class UnreachableError(UserError):
    """Something of the Hugging Face hub can't be downloaded: no network, no such name, or not open to all."""


class NotDownloadedError(UserError):
    """Data that a plan does not download; a run would."""


ALIKE = 0.75
"""Similarity from which one word is taken for a misspelling of another; one with the same letters is too."""
_SYNONYMS = tuple(
    frozenset(words.replace("_", "").split())
    for words in (
        "lr learning_rate", "beta1 adam_beta1", "beta2 adam_beta2", "eps epsilon adam_epsilon",
        "weight_decay wd", "warmup_fraction warmup_ratio", "warmup_steps num_warmup_steps",
        "max_steps max_train_steps num_training_steps total_steps num_steps train_steps steps max_iters",
        "seq_len max_seq_length max_seq_len max_length block_size context_length sequence_length",
        "clip_norm max_grad_norm grad_clip gradient_clipping gradient_clip_val clip_grad_norm",
        "micro_batch_size per_device_train_batch_size per_device_batch_size device_batch_size micro_batch",
        "global_batch_size batch_size train_batch_size total_batch_size effective_batch_size",
        "every_steps eval_steps eval_interval", "seeds seed random_seed",
        "activation_checkpointing gradient_checkpointing grad_checkpointing", "compile torch_compile",
        "attention attn attn_implementation", "optimizer optim", "adaptation peft", "python interpreter",
        "world_size num_gpus n_gpus nproc_per_node num_processes ranks", "precision dtype mixed_precision",
        "n_layer n_layers num_layers num_hidden_layers depth", "n_embd hidden_size d_model dim embed_dim width",
        "n_head n_heads num_heads num_attention_heads", "n_inner intermediate_size d_ff ffn_dim",
        "n_positions max_position_embeddings", "pretrained model_name_or_path",
        "warmup_stable_decay wsd trapezoidal", "cosine cosine_with_warmup cosine_annealing",
        "linear linear_with_warmup linear_decay", "constant constant_with_warmup",
        "final_loss loss eval_loss validation_loss val_loss", "final_perplexity perplexity ppl",
        "tokens_per_second throughput tokens_per_sec speed", "peak_memory_bytes memory peak_memory",
        "step_time_median_seconds step_time latency", "joules_per_token energy", "bits_per_byte bpb",
        "usd_per_billion_tokens cost price usd",
    )
)  # fmt: skip
"""Groups of the field's words for one thing, of which suites know some, as `plain_word` compares them."""


def plain_word(word: object) -> str:
    """A word as it is compared: without case, dashes, underscores, dots and spaces."""
    return re.sub(r"[-_. ]", "", str(word).lower())


def synonyms(word: object, candidates: Sequence[str]) -> list[str]:
    """Candidates that equal the word by `plain_word`, else those with the same meaning."""
    plain = plain_word(word)
    same = [candidate for candidate in candidates if plain_word(candidate) == plain]
    group = next((group for group in _SYNONYMS if plain in group), frozenset())
    return same or [candidate for candidate in candidates if plain_word(candidate) in group]


def nearest(wrong: object, candidates: Sequence[str]) -> list[str]:
    """Candidates that a wrong word may mean: synonyms, else the most similar one, or two that are equally so."""
    if matches := synonyms(wrong, candidates):
        return matches
    plain, words = plain_word(wrong), {plain_word(candidate): candidate for candidate in reversed(candidates)}
    ratios = {word: SequenceMatcher(None, word, plain).ratio() for word in get_close_matches(plain, words, n=3)}
    alike = {word: r for word, r in ratios.items() if r >= ALIKE or sorted(word) == sorted(plain)}
    likely = [words[word] for word, ratio in alike.items() if ratio == max(alike.values())]
    return sorted(likely, key=candidates.index) if len(likely) < 3 else []


def did_you_mean(wrong: object, candidates: Sequence[str]) -> str:
    """' (did you mean X?)' for the nearest candidates, or '' where there are none."""
    return one_of_these(nearest(wrong, candidates))


def one_of_these(meant: Sequence[str]) -> str:
    """' (did you mean X or Y?)', or '' without candidates."""
    return f" (did you mean {' or '.join(map(repr, meant))}?)" if meant else ""


_WRITE_FAILURE = re.compile(
    "|".join(re.escape(os.strerror(number)) for number in (
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO
    ))
)  # fmt: skip
"""The kernel's words for a disk that is full, failing or read-only, which libraries of every language repeat."""


def disk_problem(text: str) -> str | None:
    """The line of a trial's last output which says that a write to a disk failed; None: no line does."""
    return next((line.strip() for line in text.splitlines() if _WRITE_FAILURE.search(line)), None)


_OUT_OF_MEMORY = re.compile(
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
"""Words of torch (c10's allocators, CUDAException, ProcessGroupNCCL), the CUDA libraries' names of their statuses,
NCCL (src/include/checks.h), Triton's driver, bitsandbytes and flash-attn (their C++ code's CUDA checks)."""
_MAYBE_OUT_OF_MEMORY = re.compile(
    r"""
    CU(?:BLAS|SOLVER|SPARSE|DNN)_STATUS_NOT_INITIALIZED     # a handle that a full device has no room for
    | CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED  # so too while a CUDA graph is captured
    | Failed\ to\ CUDA\ [mc]alloc(?:\ async)?\ (?P<bytes>\d+)\ bytes  # NCCL's last word, whatever went wrong
    """,
    re.VERBOSE,
)
HANDLE_BYTES = 512 << 20
"""Free memory of a GPU below which a library's handle fails for lack of memory: it takes tens of megabytes, and its
kernels some hundred when they are first loaded."""


def says_out_of_memory(text: str) -> bool:
    """Whether an error's text says that memory could not be allocated."""
    return _OUT_OF_MEMORY.search(text) is not None


def may_want_bytes(text: str) -> int | None:
    """Free bytes of the GPU up to which an error's text means that memory ran out; None: it never means that."""
    match = _MAYBE_OUT_OF_MEMORY.search(text)
    if match is None:
        return None
    return HANDLE_BYTES + int(match["bytes"] or 0)

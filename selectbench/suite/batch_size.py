"""Global batches that options set: they must divide the job's tokens, as all options train on the same number."""

from __future__ import annotations

import math

from selectbench.suite.evaluate import MOST_STEPS, Eval
from selectbench.suite.job import Job

MOST_SEQUENCES = 1 << 22
"""Of one optimizer step."""


def batch_size_problem(job: Job, size: int) -> str | None:
    """Why the job can't be done in optimizer steps of `size` sequences, or None; with the nearest that can."""
    whole, said = job.max_steps * job.global_batch_size, f"the job's global_batch_size {job.global_batch_size}"
    every = job.eval.every_steps if isinstance(job.eval, Eval) else None
    between = whole if every is None else every * job.global_batch_size
    if whole % size:
        what = f"the job's {whole} sequences (max_steps {job.max_steps} x {said})"
    elif between % size:
        what = f"the {between} sequences from one evaluation to the next (eval.every_steps {every} x {said})"
    elif whole // size > MOST_STEPS:
        return f"the job's tokens are {whole // size} steps of {size} sequences, at most {MOST_STEPS} are allowed"
    else:
        return None
    nearest = " or ".join(map(str, _nearest(math.gcd(whole, between), size)))
    return f"steps of {size} sequences do not divide {what} evenly: the nearest sizes that do: {nearest}"


def _nearest(sequences: int, size: int) -> list[int]:
    """The next divisors below and above."""
    below = (n for n in range(min(size - 1, sequences), 0, -1) if sequences % n == 0)
    above = (n for n in range(size + 1, min(sequences, MOST_SEQUENCES) + 1) if sequences % n == 0)
    return [n for n in (next(below, None), next(above, None)) if n is not None]

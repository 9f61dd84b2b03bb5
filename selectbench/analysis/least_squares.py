"""Least squares whose last digit is the same on every processor, so that a report is, byte for byte.

Vendors' matrix libraries sum in an order that depends on the processor; here every sum has its own.
"""

from __future__ import annotations

import numpy as np

from selectbench.analysis.distributions import Floats

_SINGULAR = 1e-10
"""Of the largest diagonal element: a pivot below this is rounding."""


def solve(matrix: Floats, target: Floats) -> tuple[Floats, int]:
    """A solution of a symmetric, semi-definite system and the matrix's rank; unknowns that are free are 0.

    Gauss-Jordan elimination with diagonal pivots. `matrix`: (n, n); `target`: (n,), in the matrix's range.
    """
    rows = np.concatenate([matrix, target[:, None]], axis=1)
    scale, free = float(np.abs(np.diag(matrix)).max(initial=0.0)), np.ones(len(matrix), bool)
    pivots: list[int] = []
    for _ in range(len(matrix)):
        diagonal = np.where(free, np.abs(np.diag(rows[:, :-1])), 0.0)
        pivot = int(diagonal.argmax())
        if diagonal[pivot] <= _SINGULAR * scale:
            break
        rows[pivot] /= rows[pivot, pivot]
        others = np.arange(len(matrix)) != pivot
        rows[others] -= rows[others, pivot][:, None] * rows[pivot][None, :]
        free[pivot] = False
        pivots.append(pivot)
    solution = np.zeros(len(matrix))
    solution[pivots] = rows[pivots, -1]
    return solution, len(pivots)


def fit(design: Floats, target: Floats) -> Floats | None:
    """Coefficients of `target` (n,) on the columns of `design` (n, k), by the normal equations.

    For well-conditioned designs, such as indicators of levels. None where they do not determine them all.
    """
    products = (design[:, :, None] * design[:, None, :]).sum(axis=0)
    found, rank = solve(products, (design * target[:, None]).sum(axis=0))
    return found if rank == design.shape[1] else None

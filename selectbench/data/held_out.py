"""Why a text leaves nothing to evaluate on, told before a tokenizer is trained."""

from __future__ import annotations

import numpy as np

from selectbench import units
from selectbench.data.split import Sides
from selectbench.data.spool import Spool

FIX = "give held-out text of its own (job.data: {train: ..., heldout: ...}), or set eval: none"


def nothing_held_out(spool: Spool, sides: Sides, in_training: int) -> str | None:
    """The reason with its counts and a fix, or None where something is left.

    `in_training`: held-out documents that were left out already, as the training text has them whole.
    """
    if not sides.heldout.any():
        return _all_in_training(in_training, 0) if in_training else _one_block(spool, sides)
    leaked = 0
    for document in spool.documents(sides.heldout):
        if sides.without_leaks(document):
            return None
        leaked += sides.leaks(document)
    return _all_in_training(in_training + int(sides.heldout.sum()), leaked)


def _one_block(spool: Spool, sides: Sides) -> str:
    documents, size = int(sides.training.sum()), units.size(int(spool.lengths[sides.training].sum()))
    if documents == 1:
        return (
            f"it is a single document of {size} without a place to cut it, so nothing can be held out (text is cut "
            f"at the ends of its lines): put line breaks into it, or {FIX}"
        )
    same = len(np.unique(spool.hashes[sides.training])) == 1
    why = "all have the same text" if same else "have no line that another one does not have too"
    return f"its {documents:,} documents ({size}) {why}, so nothing can be held out: {FIX}"


def _all_in_training(documents: int, pieces: int) -> str:
    lines = f" ({pieces:,} lines)" if pieces else ""
    taken = "1 document" if documents == 1 else f"{documents:,} documents"
    return (
        f"all of the held-out text stands in the training text too: {taken}{lines} taken out, "
        "and nothing is left to score: give held-out text that is not trained on, or set eval: none"
    )

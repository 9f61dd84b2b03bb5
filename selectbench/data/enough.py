"""Whether prepared data are enough for a job: its batches, its evaluation, its epochs."""

from __future__ import annotations

from selectbench.data.prepared import Prepared, fitting, sequences
from selectbench.errors import UserError
from selectbench.suite.job import Job


def training_sequences(prepared: Prepared, job: Job) -> int:
    """Sequences of the job that there are to train on."""
    lengths = prepared.train_lengths()
    return sequences(prepared.train_tokens, job.seq_len) if lengths is None else len(fitting(lengths, job.seq_len))


def evaluable(tokens: int, seq_len: int) -> int:
    """Tokens of a stream that whole sequences score."""
    return sequences(tokens, seq_len) * seq_len


def evaluable_tokens(prepared: Prepared, job: Job) -> int:
    """Held-out tokens that an evaluation of the job may read: whole sequences, or the targets of pairs that fit."""
    lengths = prepared.heldout_lengths()
    if lengths is None:
        return evaluable(prepared.heldout_tokens, job.seq_len)
    return int(lengths[fitting(lengths, job.seq_len), 1].sum())


def _check_pairs(prepared: Prepared, job: Job) -> list[str]:
    train, heldout = prepared.train_lengths(), prepared.heldout_lengths()
    assert train is not None
    assert heldout is not None
    problems = []
    if (found := len(fitting(train, job.seq_len))) < job.global_batch_size:
        problems.append(
            f"data: of {len(train)} training pairs {found} have no side longer than seq_len {job.seq_len}, less "
            f"than one batch of global_batch_size {job.global_batch_size}: give more pairs, or raise seq_len"
        )
    if job.evaluates and not len(fitting(heldout, job.seq_len)):
        problems.append(f"data: no held-out pair fits seq_len {job.seq_len}: give more pairs, or set eval: none")
    return problems


def check_enough(prepared: Prepared, job: Job) -> None:
    """Raises UserError where the text is shorter than one batch, or leaves no sequence to evaluate on."""
    if prepared.kind == "pairs":
        if problems := _check_pairs(prepared, job):
            raise UserError(*problems)
        return
    problems = []
    found = sequences(prepared.train_tokens, job.seq_len)
    if found < job.global_batch_size:
        problems.append(
            f"data: {prepared.train_tokens} training tokens make {found} sequences of seq_len {job.seq_len}, less "
            f"than one batch of global_batch_size {job.global_batch_size}: give more text, or lower either"
        )
    if job.evaluates and not sequences(prepared.heldout_tokens, job.seq_len):
        problems.append(
            f"data: {prepared.heldout_tokens} held-out tokens make no sequence of seq_len {job.seq_len}"
            f"{_taken_out(prepared)}: give more text, lower seq_len, or set eval: none"
        )
    if problems:
        raise UserError(*problems)


def _taken_out(prepared: Prepared) -> str:
    """What the held-out side lost because the training text has it, in words; '' where that is nothing."""
    documents = prepared.removed_documents + prepared.removed.get("in_training", 0)
    if not documents and not prepared.removed_lines:
        return ""
    return (
        f" ({documents:,} held-out documents and {prepared.removed_lines:,} lines were taken out, as the training "
        "text has them)"
    )


def epochs(prepared: Prepared, job: Job) -> float:
    """How often the job goes through its training sequences; `check_enough` must hold."""
    return job.max_steps * job.global_batch_size / training_sequences(prepared, job)

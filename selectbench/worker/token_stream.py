"""A digest of the tokens that the model consumed, cheap enough for every step and free of synchronisation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from struct import pack

import torch

from selectbench.worker.seeds import derived_seed


class TokenStream:
    """Per optimizer step the sum over all tokens of `(token + 1) * key[row, column]`, modulo 2**64.

    The keys are fixed odd random numbers, one per place in the global batch: the sum depends on which
    token stands where, and not on how the step was cut into micro-batches (a multilinear hash: Carter
    and Wegman 1979, doi:10.1016/0022-0000(79)90044-8). It is accumulated on the device and read with the
    losses; the SHA-256 of all steps' sums is the digest.
    """

    def __init__(self, global_batch_size: int, width: int, device: str) -> None:
        """`width`: token ids of a sequence, those that are targets alone among them."""
        generator = torch.Generator().manual_seed(derived_seed(0, "token_stream_keys"))
        bound = 1 << 62
        keys = torch.randint(-bound, bound, (global_batch_size, width), generator=generator)
        self._keys = (keys * 2 + 1).to(device)

    def mixed(self, sequences: torch.Tensor, first_row: int) -> torch.Tensor:
        """The part of a micro-batch whose first sequence is row `first_row` of the global batch; int64 scalar."""
        return ((sequences + 1) * self._keys[first_row : first_row + len(sequences)]).sum()


def stream_sha256(step_sums: Iterable[int]) -> str:
    """Digest of all steps' sums, in order."""
    return hashlib.sha256(b"".join(pack("<q", value) for value in step_sums)).hexdigest()

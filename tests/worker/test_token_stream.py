"""The token stream's digest: the same for every cut, another for every other order or token."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from selectbench.worker.batches import TokenStream, stream_sha256

STREAM = TokenStream(8, 4 + 1, "cpu")


def total(sequences, size):
    return sum(int(STREAM.partial_sum(sequences[row : row + size], row)) for row in range(0, 8, size)) % 2**64


@given(st.lists(st.integers(0, 2**24), min_size=40, max_size=40), st.permutations(range(8)))
def test_sums_depend_on_tokens_and_places_and_not_on_the_cut(tokens, order):
    sequences = torch.tensor(tokens).view(8, 5)
    assert total(sequences, 8) == total(sequences, 4) == total(sequences, 2) == total(sequences, 1)
    shuffled = sequences[list(order)]
    assert (total(shuffled, 8) == total(sequences, 8)) == torch.equal(shuffled, sequences)


@given(st.integers(0, 7), st.integers(0, 4), st.integers(1, 2**24))
def test_another_token_anywhere_is_another_sum(row, column, change):
    sequences = torch.arange(40).view(8, 5)
    changed = sequences.clone()
    changed[row, column] += change
    assert total(changed, 8) != total(sequences, 8)


def test_steps_are_hashed_in_order():
    assert stream_sha256([1, -2]) != stream_sha256([-2, 1])
    assert STREAM.partial_sum(torch.ones(2, 5, dtype=torch.int64), 0).ndim == 0

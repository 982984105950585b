from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.sequence.position_bins import bin_edges, bin_sums

lengths = st.integers(2, 5000)
smallest = st.integers(1, 300)
contexts = st.lists(st.integers(1, 6000), max_size=3)


def test_the_edges_double_and_hold_the_contexts():
    assert bin_edges(600, 128) == (0, 128, 256, 512, 600)
    assert bin_edges(4096, 128, [512, 4096]) == (0, 128, 256, 512, 1024, 2048, 4096)
    assert bin_edges(1000, 256, [300]) == (0, 256, 300, 512, 1000)
    assert bin_edges(100, 128) == (0, 100)


@given(lengths, smallest, contexts)
def test_every_bin_has_a_prediction_and_none_straddles_a_context(seq_length, smallest, contexts):
    edges = bin_edges(seq_length, smallest, contexts)
    assert edges[0] == 0
    assert edges[-1] == seq_length
    counts = bin_sums(np.ones(seq_length - 1), edges)
    assert (counts > 0).all()
    assert counts.sum() == seq_length - 1
    for context in contexts:
        # From seq_length - 1 on there is no prediction that could stand in a bin of its own.
        assert context in edges or context >= seq_length - 1


@given(lengths, smallest, contexts, st.integers(0, 2**32 - 1))
def test_sums_equal_a_loop_over_positions(seq_length, smallest, contexts, seed):
    edges = bin_edges(seq_length, smallest, contexts)
    values = np.random.default_rng(seed).integers(-9, 9, seq_length - 1).astype(np.float64)
    expected = [
        sum(values[i] for i in range(start, stop) if i < seq_length - 1)
        for start, stop in itertools.pairwise(edges)
    ]
    assert bin_sums(values, edges).tolist() == expected

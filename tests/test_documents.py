import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.sequence.documents import (
    document_boundaries,
    document_id,
    document_numbers,
    document_split,
    loss_mask,
    next_token_labels,
    unit_hash,
)

# few ids, so that separators overlap, repeat and stand at both ends
TOKENS = st.lists(st.integers(0, 2), max_size=30)
SEPARATOR = st.lists(st.integers(0, 2), max_size=3)


def boundaries_by_reading(tokens: list[int], separator: list[int]) -> list[int]:
    """The definition: read from left to right, close a document after every separator."""
    cuts, i = [0], 0
    while separator and i + len(separator) <= len(tokens):
        if tokens[i : i + len(separator)] == separator:
            i += len(separator)
            cuts.append(i)
        else:
            i += 1
    return cuts if cuts[-1] == len(tokens) else [*cuts, len(tokens)]


@given(TOKENS, SEPARATOR)
def test_boundaries_follow_the_definition(tokens: list[int], separator: list[int]) -> None:
    found = document_boundaries(np.array(tokens, dtype=np.int64), separator)
    assert found.tolist() == boundaries_by_reading(tokens, separator)
    assert found.dtype == np.int32


@given(st.lists(st.lists(st.integers(3, 9), max_size=5), min_size=1, max_size=6), SEPARATOR)
def test_joined_documents_are_found_again(documents: list[list[int]], separator) -> None:
    separator = [*separator, 0]  # at least one id, none of them in a document
    row = [token for document in documents for token in [*document, *separator]]
    cu_seqlens = document_boundaries(np.array(row), separator)
    pieces = [row[a:b] for a, b in itertools.pairwise(cu_seqlens)]
    if len(set(separator)) == len(separator):  # (0, 0) may overlap its neighbour
        assert pieces == [[*document, *separator] for document in documents]


@pytest.mark.parametrize(
    ("tokens", "separator", "expected"),
    [
        ([1, 2, 8, 9, 3, 8, 9, 4], [8, 9], [0, 4, 7, 8]),
        ([1, 8, 9], [8, 9], [0, 3]),  # closed by the row's end: no empty document
        ([8, 9, 1], [8, 9], [0, 2, 3]),  # the row begins with the end of a document
        ([1, 8, 9, 8, 9, 2], [8, 9], [0, 3, 5, 6]),  # two in a row
        ([9, 1, 8], [8, 9], [0, 3]),  # halves of a separator cut by the row are none
        ([7, 7, 7], [7, 7], [0, 2, 3]),
        ([1, 2], [], [0, 2]),
        ([1], [1, 2], [0, 1]),
        ([], [1], [0]),
    ],
)
def test_boundary_examples(tokens, separator, expected) -> None:
    assert document_boundaries(np.array(tokens, dtype=np.int64), separator).tolist() == expected


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_document_numbers_count_boundaries(lengths: list[int]) -> None:
    cu_seqlens = np.array([0, *np.cumsum(lengths)])
    numbers = document_numbers(cu_seqlens)
    expected = [(cu_seqlens[1:] <= i).sum() for i in range(sum(lengths))]
    assert numbers.tolist() == expected


def test_masks_written_out() -> None:
    """Row ``a b s | c s | d``: the loss of every prediction, and who may see whom."""
    separator = 9
    row = np.array([1, 2, separator, 3, separator, 4])
    cu_seqlens = document_boundaries(row, [separator])
    assert cu_seqlens.tolist() == [0, 3, 5, 6]
    assert next_token_labels(row).tolist() == [2, 9, 3, 9, 4, 0]
    #                                     predicts  b  s  c  s  d  -
    assert loss_mask(6, cu_seqlens, "none").tolist() == [1, 1, 1, 1, 1, 0]
    assert loss_mask(6, cu_seqlens, "block").tolist() == [1, 1, 0, 1, 0, 0]
    numbers = document_numbers(cu_seqlens)
    causal = np.tril(np.ones((6, 6), dtype=int))
    visible = causal * (numbers[:, None] == numbers[None, :])
    assert visible.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@given(TOKENS.filter(len), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_block_counts_a_prediction_exactly_when_its_label_is_in_sight(tokens, separator) -> None:
    row = np.array(tokens)
    cu_seqlens = document_boundaries(row, separator)
    numbers = document_numbers(cu_seqlens)
    block = loss_mask(row.size, cu_seqlens, "block")
    same_document = [*(numbers[1:] == numbers[:-1]), False]
    assert block.tolist() == [float(counts) for counts in same_document]
    everywhere = loss_mask(row.size, cu_seqlens, "none")
    assert everywhere.tolist() == [1.0] * (row.size - 1) + [0.0]
    assert everywhere.sum() - block.sum() == cu_seqlens.size - 2  # one for every boundary inside


def test_a_row_of_one_token_has_no_loss() -> None:
    assert loss_mask(1, np.array([0, 1]), "none").tolist() == [0]
    assert loss_mask(1, np.array([0, 1]), "block").tolist() == [0]


def test_hash_is_uniform_and_pinned() -> None:
    values = np.array([unit_hash(1234, f"key {i}") for i in range(20_000)])
    assert ((values >= 0) & (values < 1)).all()
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    # chi-square with 19 degrees of freedom is above 50.8 once in 10,000 keys' choices
    assert ((counts - 1000) ** 2 / 1000).sum() < 50.8
    assert unit_hash(1234, "key") != unit_hash(1235, "key")
    assert unit_hash(1234, "key") == pytest.approx(
        0.023060154744819723, abs=1e-12
    )  # no machine may differ


def test_identity_is_of_the_text_alone() -> None:
    assert document_id("a") == document_id("a") != document_id("a ")
    assert len({document_id(text) for text in ("é", "e\u0301", "\ud800", "")}) == 4


@given(st.text(), st.integers(0, 100))
def test_split_only_grows_with_the_fraction(text: str, seed: int) -> None:
    splits = [document_split(document_id(text), f, seed) for f in (0.0, 0.3, 0.6, 1.0)]
    assert splits[0] == "train"
    assert splits[-1] == "valid"
    assert sorted(splits) == splits


def test_split_has_its_fraction() -> None:
    held_out = [document_split(f"{i}", 0.05, 1234) == "valid" for i in range(10_000)]
    # 500 expected, standard deviation 22: 5 of them
    assert abs(sum(held_out) - 500) < 110

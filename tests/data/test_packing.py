"""Plans against the definition: the stream of documents, cut."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.data.pack.packing import (
    PADDING,
    RowPlan,
    not_splittable,
    num_real_tokens,
    plan_rows,
    row_boundaries,
)
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.documents import document_boundaries

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=8)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Order with copies, lengths with the separator, its width, tokens of a row."""
    width = draw(st.integers(0, 3))
    lengths = np.array(draw(LENGTHS)) + width
    index = st.integers(0, lengths.size - 1)
    order = np.array(draw(st.lists(index, max_size=30)), dtype=np.int64)
    return order, lengths, width, draw(st.integers(1, 40))


def expanded(row: np.ndarray) -> list[tuple[int, int]]:
    """Every token of a row as (document, place in it)."""
    return [(document, place) for document, a, b in row.tolist() for place in range(a, b)]


def require_rows(plan: RowPlan, lengths: np.ndarray, seq_length: int) -> None:
    """What holds of every plan: full rows, and no two copies of a document in one of them."""
    for row in plan.rows:
        assert (row[:, 2] - row[:, 1]).sum() == seq_length
        tokens = [token for token in expanded(row) if token[0] != PADDING]
        assert len(set(tokens)) == len(tokens)
        assert num_real_tokens(row) == len(tokens)
        for document in {document for document, _ in tokens}:
            starts = (row[:, 0] == document).sum()
            assert starts == 1
        assert all(place < lengths[document] for document, place in tokens)


@given(cases())
def test_stream_is_the_documents_joined_and_cut(case) -> None:
    order, lengths, width, seq_length = case
    plan = plan_rows(order, lengths, width, seq_length, "stream")
    require_rows(plan, lengths, seq_length)
    stream = [(d, place) for d in plan.kept for place in range(lengths[d])]
    packed = [token for row in plan.rows for token in expanded(row)]
    assert packed == stream[: len(packed)]
    assert len(stream) - len(packed) == plan.num_dropped_tokens < seq_length
    assert plan.num_repeats_dropped == order.size - len(plan.kept)
    if len(set(order.tolist())) == order.size:
        assert plan.kept == order.tolist()
    assert set(plan.kept) == set(order.tolist())  # the first copy always stays


@given(cases())
def test_row_start_holds_every_token_once_and_long_documents_begin_rows(case) -> None:
    order, lengths, width, seq_length = case
    plan = plan_rows(order, lengths, width, seq_length, "row-start")
    require_rows(plan, lengths, seq_length)
    found = np.bincount([d for row in plan.rows for d, _ in expanded(row)], minlength=lengths.size)
    wanted = np.bincount(plan.kept, minlength=lengths.size) * lengths
    assert (found <= wanted).all()
    assert (wanted - found).sum() == plan.num_dropped_tokens < seq_length
    firsts = [
        (number, place)
        for number, row in enumerate(plan.rows)
        for place, (document, start, _) in enumerate(row.tolist())
        if lengths[document] >= seq_length and start == 0
    ]
    # those that stand inside a row are the last ones, when no short document is left to fill it
    inside = [number for number, place in firsts if place]
    if inside:
        after = [tuple(s) for row in plan.rows[inside[0] + 1 :] for s in row.tolist()]
        assert all(lengths[document] >= seq_length for document, _, _ in after)


@given(cases())
def test_whole_cuts_no_document_that_fits(case) -> None:
    order, lengths, width, seq_length = case
    plan = plan_rows(order, lengths, width, seq_length, "whole")
    require_rows(plan, lengths, seq_length)
    assert plan.kept == order.tolist()
    pieces = [tuple(s) for row in plan.rows for s in row.tolist() if s[0] != PADDING]
    for document in set(order.tolist()):
        own = [(a, b) for d, a, b in pieces if d == document]
        tokens = sorted(place for a, b in own for place in range(a, b))
        copies = int((order == document).sum())
        length = int(lengths[document])
        # a separator that alone passes the end of a row is left out
        assert {tokens.count(place) for place in range(length - width)} <= {copies}
        if length <= seq_length:
            assert own == [(0, length)] * copies
    padding = sum(b - a for row in plan.rows for d, a, b in row.tolist() if d == PADDING)
    assert padding == plan.num_padding_tokens
    assert plan.num_dropped_tokens == plan.num_repeats_dropped == 0


def test_examples() -> None:
    order, lengths = np.array([0, 1]), np.array([3, 5])
    rows = plan_rows(order, lengths, 1, 4, "stream").rows
    assert [row.tolist() for row in rows] == [[[0, 0, 3], [1, 0, 1]], [[1, 1, 5]]]
    rows = plan_rows(np.array([0, 1, 2]), np.array([3, 5, 4]), 1, 4, "row-start").rows
    # 0 leaves a token free; 1 waits for a row; nothing short is left, so they follow each other
    assert rows[0].tolist() == [[0, 0, 3], [1, 0, 1]]
    rows = plan_rows(np.array([1, 0]), np.array([3, 5]), 1, 4, "row-start").rows
    assert [row.tolist() for row in rows] == [[[1, 0, 4]], [[1, 4, 5], [0, 0, 3]]]
    plan = plan_rows(np.array([0, 1, 2]), np.array([3, 5, 2]), 1, 6, "whole")
    assert [row.tolist() for row in plan.rows] == [
        [[0, 0, 3], [2, 0, 2], [PADDING, 0, 1]],
        [[1, 0, 5], [PADDING, 0, 1]],
    ]
    assert plan.num_padding_tokens == 2


def test_repeats_stand_in_different_rows() -> None:
    plan = plan_rows(np.array([0, 0, 1, 0]), np.array([3, 4]), 0, 5, "stream")
    assert plan.kept == [0, 1, 0]
    assert plan.num_repeats_dropped == 1


@pytest.mark.parametrize("packing", ["stream", "row-start", "whole"])
@given(case=cases(), data=st.data())
def test_boundaries_are_those_that_a_search_finds(packing, case, data) -> None:
    order, lengths, width, seq_length = case
    separator = list(range(100, 100 + max(width, 1)))
    lengths = lengths + (width == 0)
    documents = [
        [*data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)), *separator]
        for n in (lengths - len(separator)).tolist()
    ]
    for row in plan_rows(order, lengths, len(separator), seq_length, packing).rows:
        real = row[row[:, 0] != PADDING]
        tokens = np.array([documents[d][place] for d, place in expanded(real)])
        found = row_boundaries(real, lengths, len(separator))
        assert found.dtype == np.int32
        assert found.tolist() == document_boundaries(tokens, separator).tolist()
        padded = row_boundaries(row, lengths, len(separator)).tolist()
        assert padded[0] == 0
        assert padded[-1] == seq_length
        assert num_real_tokens(row) in padded or len(real) == 0


def test_boundaries_where_a_search_goes_wrong() -> None:
    # document 0 is "7 9 7" and holds the separator 9 itself; the search would cut it there
    row, lengths = np.array([[0, 0, 4], [1, 0, 2]]), np.array([4, 2])
    assert row_boundaries(row, lengths, 1).tolist() == [0, 4, 6]
    assert document_boundaries(np.array([7, 9, 7, 9, 5, 9]), [9]).tolist() == [0, 2, 4, 6]
    # without a separator there is nothing to search for
    assert row_boundaries(row, lengths, 0).tolist() == [0, 4, 6]


@given(st.integers(2, 1 << 22))
def test_rows_that_nothing_splits_are_told(seq_length: int) -> None:
    sizes = [n for n in range(2, 65) if not refused_by(n, seq_length)]
    said = not_splittable(seq_length)
    assert bool(said) == (not sizes)
    if said:
        better = int(re.search(r"([\d,]+) would do", said)[1].replace(",", ""))
        assert any(not refused_by(n, better) for n in range(2, 65))
        assert abs(better - seq_length) <= 64
        assert f"rows of {seq_length:,} tokens" in said


def refused_by(context_parallel_size: int, seq_length: int) -> bool:
    layout = ParallelConfig(context_parallel_size=context_parallel_size)
    try:
        layout.check_seq_length(seq_length)
    except InputError:
        return True
    return False


@pytest.mark.parametrize(
    ("seq_length", "better"), [(2047, "2,048"), (2, "4"), (7, "8"), (131071, "131,072")]
)
def test_a_better_length_is_named(seq_length: int, better: str) -> None:
    assert f"; {better} would do" in not_splittable(seq_length)

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.data.packing import RowPacker, without_repeats_in_a_row

DOCUMENTS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), max_size=12)
SEPARATORS = st.sampled_from([[], [100], [101, 102, 103]])


@given(DOCUMENTS, SEPARATORS, st.integers(1, 20))
def test_rows_are_the_stream(documents, separator, seq_length) -> None:
    packer = RowPacker((np.array(d, dtype=np.int32) for d in documents), separator, seq_length)
    rows = list(packer)
    stream = [token for document in documents for token in [*document, *separator]]
    assert all(row.shape == (seq_length,) and row.dtype == np.int32 for row in rows)
    packed = np.concatenate(rows).tolist() if rows else []
    assert packed == stream[: len(packed)]
    assert len(packed) + packer.num_dropped_tokens == len(stream)
    assert packer.num_dropped_tokens < seq_length
    assert packer.num_rows == len(rows)


def test_example() -> None:
    documents = [np.array([1, 2], dtype=np.int32), np.array([3, 4, 5], dtype=np.int32)]
    packer = RowPacker(documents, [9], 3)
    assert [row.tolist() for row in packer] == [[1, 2, 9], [3, 4, 5]]
    assert packer.num_dropped_tokens == 1


def rows_of_copies(order, lengths, seq_length) -> list[set[int]]:
    """Rows that every copy touches."""
    ends = np.cumsum(lengths[order])
    starts = ends - lengths[order]
    return [
        set(range(a // seq_length, (b - 1) // seq_length + 1))
        for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


@given(st.data())
def test_no_document_twice_in_a_row(data) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6)))
    index = st.integers(0, len(lengths) - 1)
    order = np.array(data.draw(st.lists(index, max_size=30)), dtype=np.int64)
    seq_length = data.draw(st.integers(1, 50))
    kept = without_repeats_in_a_row(order, lengths, seq_length)
    rows = rows_of_copies(kept, lengths, seq_length)
    for document in set(order.tolist()):
        touched = [rows[i] for i in np.flatnonzero(kept == document)]
        assert len(set().union(*touched)) == sum(map(len, touched))  # no row twice
        assert touched  # the first copy always stays
    if len(set(order.tolist())) == order.size:
        np.testing.assert_array_equal(kept, order)


def test_repeat_example() -> None:
    order = without_repeats_in_a_row(np.array([0, 0, 1, 0]), np.array([3, 4]), 5)
    assert order.tolist() == [0, 1, 0]

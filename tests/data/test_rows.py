from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.data.rows.indexed import IndexedWriter, token_dtype
from megatron_ultralong.data.rows.packed import (
    PackedRows,
    boundaries_prefix,
    global_row_index,
    row_order,
)
from megatron_ultralong.data.rows.stored import StoredRow
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.assignment import zigzag
from megatron_ultralong.sequence.documents import next_token_labels

ROWS = np.arange(60).reshape(5, 12) * 1000


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    with IndexedWriter(tmp_path / "train", token_dtype(128_256)) as writer:
        for row in ROWS:
            writer.add(row)
    return tmp_path / "train"


def test_rows(prefix: Path) -> None:
    rows = PackedRows(prefix)
    assert (len(rows), rows.seq_length) == ROWS.shape
    assert rows[0].dtype == np.int64
    np.testing.assert_array_equal([rows[i] for i in range(len(rows))], ROWS)
    np.testing.assert_array_equal(list(rows), ROWS)  # iteration stops at the end
    np.testing.assert_array_equal(rows.read(3, 2, 7), ROWS[3, 2:7])
    for row in (-1, 5):
        with pytest.raises(IndexError):
            rows[row]


def test_boundaries(prefix: Path) -> None:
    rows = PackedRows(prefix)
    assert not rows.has_boundaries
    with pytest.raises(InputError, match=r"train\.boundaries\.idx is not there"):
        rows.boundaries(0)
    records = [[12, 0, 4, 12], [9, 0, 9, 12], [12, 0, 12], [12, 0, 12], [12, 0, 12]]

    def write(count: int) -> None:
        with IndexedWriter(boundaries_prefix(prefix), np.dtype("<i4")) as writer:
            for record in records[:count]:
                writer.add(np.array(record))

    write(4)
    with pytest.raises(InputError, match=r"is of 4 rows, where .*train\.idx has 5"):
        PackedRows(prefix)
    write(5)
    rows = PackedRows(prefix)
    assert rows.has_boundaries
    assert rows.boundaries(0).tolist() == [0, 4, 12]
    assert rows.boundaries(0).dtype == np.int32
    assert [rows.num_real_tokens(row) for row in range(5)] == [12, 9, 12, 12, 12]
    with pytest.raises(IndexError):
        rows.boundaries(5)


def test_chunks_are_cut_from_the_row(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = PackedRows(prefix)
    touched = []
    read = PackedRows.read
    monkeypatch.setattr(PackedRows, "read", lambda *args: touched.append(args[2:]) or read(*args))
    for rank in range(3):
        chunks = zigzag(3).ranges(rank, 12)
        tokens, labels = StoredRow(rows, 2, ()).read_chunks(chunks)
        wanted = [p for start, stop in chunks for p in range(start, stop)]
        np.testing.assert_array_equal(tokens, ROWS[2][wanted])
        np.testing.assert_array_equal(labels, next_token_labels(ROWS[2])[wanted])
    # two chunks of two tokens each, with one label after them
    assert touched == [(0, 3), (10, 12), (2, 5), (8, 11), (4, 7), (6, 9)]


@given(st.integers(1, 50), st.integers(0, 4), st.integers(0, 2**40))
def test_every_epoch_is_a_permutation(num_rows: int, epoch: int, seed: int) -> None:
    samples = range(epoch * num_rows, (epoch + 1) * num_rows)
    rows = [global_row_index(sample, num_rows, seed) for sample in samples]
    assert sorted(rows) == list(range(num_rows))
    assert rows == row_order(num_rows, epoch, seed).tolist()


def test_order_is_pinned_and_differs_by_epoch_and_seed() -> None:
    # a run resumes on another machine or numpy: the order is part of the format
    assert row_order(8, 0, 1234).tolist() == [1, 6, 2, 0, 3, 5, 7, 4]
    orders = {tuple(row_order(50, epoch, seed)) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9


def test_first_place_is_uniform() -> None:
    firsts = np.bincount([row_order(5, 0, seed)[0] for seed in range(1000)], minlength=5)
    # 200 expected each, standard deviation 12.6: 5 of them
    assert (abs(firsts - 200) < 63).all()


def test_rows_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "a", token_dtype(100)) as writer:
        writer.add(np.arange(3))
        writer.add(np.arange(4))
    with pytest.raises(InputError, match="holds 3 to 4 tokens, where packed rows all have one"):
        PackedRows(tmp_path / "a")
    with IndexedWriter(tmp_path / "b", token_dtype(100)):
        pass
    with pytest.raises(InputError, match="holds no rows"):
        PackedRows(tmp_path / "b")


def test_missing_and_truncated_files(prefix: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.idx \(No such file"):
        PackedRows(prefix.with_name("none"))
    data = {suffix: Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx")}
    for suffix, size in (("bin", 200), ("bin", 0), ("idx", 50)):
        file = Path(f"{prefix}.{suffix}")
        file.write_bytes(data[suffix][:size])
        with pytest.raises(InputError, match=rf"train\.{suffix} has {size} bytes, where .* states"):
            PackedRows(prefix)
        file.write_bytes(data[suffix])
    Path(f"{prefix}.idx").write_bytes(b"something else")
    with pytest.raises(InputError, match="is not a Megatron index"):
        PackedRows(prefix)
    Path(f"{prefix}.idx").write_bytes(data["idx"][:9] + b"\x02" + data["idx"][10:])
    with pytest.raises(InputError, match="has version 2 and dtype code 4"):
        PackedRows(prefix)
    Path(f"{prefix}.idx").write_bytes(data["idx"])
    Path(f"{prefix}.bin").unlink()
    with pytest.raises(InputError, match=r"cannot read .*train\.bin"):
        PackedRows(prefix)

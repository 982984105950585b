from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.data.rows.indexed import IndexedWriter, token_dtype
from megatron_ultralong.data.rows.packed import PackedRows, boundaries_prefix
from megatron_ultralong.data.rows.stored import StoredRow
from megatron_ultralong.mcore.batch import Batch, local_batch
from megatron_ultralong.sequence.documents import Row, document_boundaries
from tests.mcore.test_rotary import FakeGroup, rotary

SEPARATOR = (7, 8)


def shards(row: np.ndarray, cp_size: int, **options: object) -> list[Batch]:
    return [
        local_batch(
            [Row(row, document_boundaries(row, SEPARATOR), row.size)],
            cp_group=FakeGroup(cp_size, rank),  # type: ignore[arg-type]
            device=torch.device("cpu"),
            **options,  # type: ignore[arg-type]
        )
        for rank in range(cp_size)
    ]


rows = st.integers(1, 4).flatmap(
    lambda cp_size: st.tuples(
        st.just(cp_size),
        st.lists(st.integers(0, 9), min_size=8 * cp_size, max_size=8 * cp_size),
        st.sampled_from(["none", "block"]),
        st.sampled_from(["zigzag", "balanced"]),
    )
)


@given(rows)
def test_every_prediction_of_a_row_is_made_once_and_with_its_label(case: tuple) -> None:
    cp_size, tokens, mask, assignment = case
    row = np.asarray(tokens)
    batches = shards(row, cp_size, document_mask=mask, cp_assignment=assignment)
    whole = batches[0].assignment
    assert all(batch.assignment == whole for batch in batches)

    def joined(name: str) -> np.ndarray:
        return whole.unshard([getattr(batch, name) for batch in batches], 1)[0].numpy()

    np.testing.assert_array_equal(joined("tokens"), row)
    np.testing.assert_array_equal(joined("position_ids"), np.arange(row.size))
    counted = joined("loss_mask") == 1
    assert not counted[-1]
    np.testing.assert_array_equal(joined("labels")[counted], row[1:][counted[:-1]])
    if mask == "none":
        assert counted[:-1].all()


@given(rows)
def test_positions_start_again_with_every_document(case: tuple) -> None:
    cp_size, tokens, _, assignment = case
    row = np.asarray(tokens)
    batches = shards(
        row, cp_size, document_mask="block", cp_assignment=assignment, reset_position_ids=True
    )
    edges = document_boundaries(row, SEPARATOR)
    positions = [batch.position_ids for batch in batches]
    expected = np.concatenate([np.arange(length) for length in np.diff(edges)])
    np.testing.assert_array_equal(batches[0].assignment.unshard(positions, 1)[0], expected)
    for rank, batch in enumerate(batches):
        module = rotary()
        module.assignment, module.restarts = batch.assignment, batch.restarts
        angles = module(row.size, cp_group=FakeGroup(cp_size, rank))
        table = rotary()(row.size)
        assert torch.equal(angles, table[batch.position_ids[0]])


def test_a_documents_first_token_is_not_counted_under_block() -> None:
    (batch,) = shards(np.asarray([1, 2, 7, 8, 3, 7, 8, 4]), 1, document_mask="block")
    assert batch.loss_mask.tolist() == [[1, 1, 1, 0, 1, 1, 0, 0]]
    assert batch.packed_seq_params is not None
    assert batch.packed_seq_params.cu_seqlens_q.tolist() == [0, 4, 7, 8]


def test_padding_is_not_predicted_and_predicts_nothing() -> None:
    row = Row(np.asarray([1, 2, 7, 8, 0, 0]), np.asarray([0, 4, 6], dtype=np.int32), 4)
    assert row.loss_mask("none").tolist() == [1, 1, 1, 0, 0, 0]
    assert row.loss_mask("block").tolist() == [1, 1, 1, 0, 0, 0]


SEQ_LENGTH = 48
DOCUMENTS = [[0, 11, 30, 48], [0, 48], [0, 1, 2, 40, 48]]
REAL = [48, 48, 40]


@pytest.fixture
def stored(tmp_path: Path) -> PackedRows:
    """Three rows on disk with their documents; the last one is padded from token 40 on."""
    tokens = np.random.default_rng(0).integers(0, 100, (3, SEQ_LENGTH))
    with IndexedWriter(tmp_path / "train", token_dtype(100)) as writer:
        for row in tokens:
            writer.add(row)
    with IndexedWriter(boundaries_prefix(tmp_path / "train"), np.dtype(np.int32)) as writer:
        for real, edges in zip(REAL, DOCUMENTS, strict=True):
            writer.add(np.asarray([real, *edges], dtype=np.int32))
    return PackedRows(tmp_path / "train")


@pytest.mark.parametrize("mask", ["none", "block"])
@pytest.mark.parametrize("assignment", ["zigzag", "balanced"])
@pytest.mark.parametrize("number", range(3))
def test_a_rank_reads_its_own_chunks_and_no_more(
    stored: PackedRows,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    mask: str,
    assignment: str,
) -> None:
    whole = stored.row(number, ())
    assert whole.cu_seqlens.tolist() == DOCUMENTS[number]
    read, touched = PackedRows.read, []
    monkeypatch.setattr(PackedRows, "read", lambda *args: touched.append(args[2:]) or read(*args))
    for rank in range(2):
        options = {
            "document_mask": mask,
            "cp_group": FakeGroup(2, rank),
            "device": torch.device("cpu"),
            "cp_assignment": assignment,
        }
        touched.clear()
        actual = local_batch([StoredRow(stored, number, ())], **options)  # type: ignore[arg-type]
        # Every chunk with the one token after it: its last label.
        assert sum(stop - start for start, stop in touched) <= SEQ_LENGTH // 2 + len(touched)
        reference = local_batch([whole], **options)  # type: ignore[arg-type]
        assert actual.assignment == reference.assignment
        for name in ("tokens", "labels", "loss_mask", "position_ids"):
            assert torch.equal(getattr(actual, name), getattr(reference, name)), name

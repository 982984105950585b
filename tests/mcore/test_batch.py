from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.documents import Row, document_boundaries
from megatron_ultralong.mcore.batch import Batch, local_batch
from tests.mcore.test_rotary import FakeGroup

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


def test_a_documents_first_token_is_not_counted_under_block() -> None:
    (batch,) = shards(np.asarray([1, 2, 7, 8, 3, 7, 8, 4]), 1, document_mask="block")
    assert batch.loss_mask.tolist() == [[1, 1, 1, 0, 1, 1, 0, 0]]
    assert batch.packed_seq_params is not None
    assert batch.packed_seq_params.cu_seqlens_q.tolist() == [0, 4, 7, 8]


def test_padding_is_not_predicted_and_predicts_nothing() -> None:
    row = Row(np.asarray([1, 2, 7, 8, 0, 0]), np.asarray([0, 4, 6], dtype=np.int32), 4)
    assert row.loss_mask("none").tolist() == [1, 1, 1, 0, 0, 0]
    assert row.loss_mask("block").tolist() == [1, 1, 1, 0, 0, 0]

"""Four ranks, with two kinds of parallelism at a time, train as one does."""

from __future__ import annotations

import pytest

from megatron_ultralong.sequence.document_mask import DocumentMask
from tests.patience import patience
from tests.training.layouts.runs import Logs, cases, check_like_one_rank

pytestmark = pytest.mark.timeout(patience(800))


@pytest.mark.parametrize(("layout", "mask"), cases(ranks=4))
def test_four_ranks_train_as_one(logs: Logs, layout: str, mask: DocumentMask) -> None:
    check_like_one_rank(logs, layout, mask)

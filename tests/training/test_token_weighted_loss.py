"""The loss is one mean over the tokens that count, however they lie over rows, passes and ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.data.rows.stored import StoredRow
from megatron_ultralong.training.loop import train
from megatron_ultralong.training.row_source import RowSource
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.verbs import check_run
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig

ROWS, LENGTH = 4, 128
Mask = npt.NDArray[np.float32]


def keep(*places: slice) -> Mask:
    mask = np.zeros(LENGTH, dtype=np.float32)
    for place in places:
        mask[place] = 1.0
    return mask


# By step, then row. Of two replicas the second one has rows 1 and 3; of two context-parallel ranks
# the first one has the first and the last quarter of every row.
MASKS: dict[str, Callable[[int], Mask]] = {
    "a replica has nothing": lambda row: keep(slice(0, 127)) * (row % 2 == 0),
    "a context-parallel rank has nothing": lambda row: keep(slice(32, 96)),
    "one token": lambda row: keep(slice(70, 71)) * (row == 3),
    "very uneven": lambda row: keep(*(slice(n, n + 1) for n in range(0, 127, 1 + 20 * row))),
    "nothing at all": lambda row: keep(),
    "everything": lambda row: keep(slice(0, 127)),
}
LAYOUTS = {  # name: (ranks, layout, rows in a pass)
    "one": (1, ParallelConfig(), 1),
    "one, two rows at a time": (1, ParallelConfig(), 2),
    "one, four rows at a time": (1, ParallelConfig(), 4),
    "replicas": (2, ParallelConfig(), 1),
    "replicas, two rows at a time": (2, ParallelConfig(), 2),
    "context": (2, ParallelConfig(context_parallel_size=2), 1),
    "tensor": (2, ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True), 1),
    "pipeline": (2, ParallelConfig(pipeline_model_parallel_size=2), 1),
}


class _MaskedRow(StoredRow):
    mask: Mask

    def loss_mask(self, document_mask: Any) -> Mask:
        return self.mask


@dataclasses.dataclass(frozen=True)
class _MaskedRows:
    rows: RowSource

    def row(self, sample: int) -> _MaskedRow:
        plain: Any = self.rows.row(sample)
        row = _MaskedRow(plain.rows, plain.number, plain.separator_ids)
        step, number = divmod(sample, ROWS)
        row.mask = list(MASKS.values())[step](number).astype(np.float32)
        return row

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, sample: int) -> str:
        return self.rows.name(sample)

    def check(self, samples: range, part: int = 0, parts: int = 1) -> None:
        self.rows.check(samples, part, parts)


def train_each(configs: list[PretrainConfig], ranks: int) -> list[list[IterationRecord]]:
    """Run on every rank: one run after another over the masked rows."""
    runs = []
    for config in configs:
        inputs = check_run(config, ranks)
        runs.append(train(dataclasses.replace(inputs, train_rows=_MaskedRows(inputs.train_rows))))
    return runs


@pytest.fixture(scope="module")
def records(make_config: MakeConfig) -> dict[str, list[IterationRecord]]:
    """Records of every layout."""
    plain = make_config(None, train_iters=len(MASKS))
    found: dict[str, list[IterationRecord]] = {}
    for ranks in (1, 2):
        configs = {
            name: dataclasses.replace(
                plain, parallel=parallel, micro_batch_size=rows, global_batch_size=ROWS
            )
            for name, (size, parallel, rows) in LAYOUTS.items()
            if size == ranks
        }
        results = run_on_ranks(ranks, train_each, list(configs.values()), ranks)
        found.update(zip(configs, results[0], strict=True))
    return found


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_every_layout_makes_the_same_mean(
    records: dict[str, list[IterationRecord]], layout: str
) -> None:
    for actual, reference, mask in zip(records[layout], records["one"], MASKS, strict=True):
        for figure in ("lm_loss", "grad_norm"):
            # float32 sums in another order.
            expected = pytest.approx(getattr(reference, figure), rel=1e-5)
            assert getattr(actual, figure) == expected, (mask, figure)


def test_where_nothing_counts_nothing_is_learnt(records: dict[str, list[IterationRecord]]) -> None:
    for record, mask in zip(records["one"], MASKS, strict=True):
        if mask == "nothing at all":
            assert (record.lm_loss, record.grad_norm) == (0.0, 0.0)
        else:
            assert record.lm_loss > 1.0
            assert record.grad_norm > 0.0

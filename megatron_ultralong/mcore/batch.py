"""Rows of tokens, cut to the part that this rank works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_ultralong.context_parallel import Assignment, balanced, zigzag
from megatron_ultralong.documents import DocumentMask, Row
from megatron_ultralong.mcore.core_attention import document_params

CpAssignment = Literal["zigzag", "balanced"]


@dataclasses.dataclass(frozen=True)
class Batch:
    """The local shard of ``b`` rows; every tensor is [b, s_local]."""

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor
    packed_seq_params: PackedSeqParams | None
    """Documents of the whole row under ``document_mask: block``, else None."""
    assignment: Assignment
    """Chunks of the row that each context-parallel rank holds."""


def local_batch(
    rows: Sequence[Row],
    *,
    document_mask: DocumentMask,
    cp_group: dist.ProcessGroup,
    device: torch.device,
    cp_assignment: CpAssignment = "zigzag",
) -> Batch:
    """The shard of this rank of whole rows: labels and masks are made before the cut.

    A label made after it would be wrong at every chunk's end.
    """
    size, rank = cp_group.size(), cp_group.rank()
    packed, assignment = None, zigzag(size)
    if document_mask == "block":
        assert len(rows) == 1, "documents differ from row to row: one row at a time"
        if cp_assignment == "balanced":
            assignment = balanced(rows[0].cu_seqlens.tolist(), size)
        cu_seqlens = torch.from_numpy(rows[0].cu_seqlens)
        packed = document_params(cu_seqlens, len(rows[0].tokens), assignment)

    def shard(values: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
        whole = torch.from_numpy(np.stack(values))
        return assignment.shard(whole, rank, 1).contiguous().to(device)

    return Batch(
        tokens=shard([row.tokens for row in rows]),
        labels=shard([row.labels() for row in rows]),
        loss_mask=shard([row.loss_mask(document_mask) for row in rows]),
        position_ids=shard([np.arange(len(row.tokens)) for row in rows]),
        packed_seq_params=packed,
        assignment=assignment,
    )

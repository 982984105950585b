"""Rows of tokens, cut to the part that this rank works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_ultralong import documents
from megatron_ultralong.context_parallel import Assignment, balanced, zigzag
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
    rows: npt.NDArray[np.int64],
    *,
    document_mask: documents.DocumentMask,
    separator_ids: Sequence[int],
    cp_group: dist.ProcessGroup,
    device: torch.device,
    cp_assignment: CpAssignment = "zigzag",
) -> Batch:
    """The shard of this rank of whole rows [b, S]: labels and masks are made before the cut.

    A label made after it would be wrong at every chunk's end.
    """
    labels, masks, boundaries = [], [], []
    for row in rows:
        labels.append(documents.next_token_labels(row))
        cu_seqlens = documents.document_boundaries(row, separator_ids)
        boundaries.append(cu_seqlens)
        masks.append(documents.loss_mask(len(row), cu_seqlens, document_mask))
    size, rank = cp_group.size(), cp_group.rank()
    packed, assignment = None, zigzag(size)
    if document_mask == "block":
        assert len(rows) == 1, "documents differ from row to row: one row at a time"
        if cp_assignment == "balanced":
            assignment = balanced(boundaries[0].tolist(), size)
        packed = document_params(torch.from_numpy(boundaries[0]), rows.shape[1], assignment)

    def shard(values: npt.NDArray[np.generic]) -> torch.Tensor:
        whole = torch.from_numpy(np.ascontiguousarray(values))
        return assignment.shard(whole, rank, 1).contiguous().to(device)

    positions = np.tile(np.arange(rows.shape[1]), (rows.shape[0], 1))
    return Batch(
        shard(rows),
        shard(np.stack(labels)),
        shard(np.stack(masks)),
        shard(positions),
        packed,
        assignment,
    )

"""Rows of tokens, cut to the part that this rank works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import get_attr_wrapped_model

from megatron_ultralong.mcore.core_attention import document_params
from megatron_ultralong.sequence.assignment import Assignment, balanced, zigzag
from megatron_ultralong.sequence.documents import DocumentMask, document_positions

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
    restarts: tuple[int, ...] | None = None
    """Boundaries of the row at which positions start again; None: they do not."""

    def losses(self, model: Any) -> torch.Tensor:
        """The model's forward pass: losses in nats, [b, s_local], on the last pipeline stage."""
        # The angles of this pass are made at its start; a recomputation is handed the same ones.
        rotary = get_attr_wrapped_model(model, "rotary_pos_emb")
        rotary.assignment, rotary.restarts = self.assignment, self.restarts
        losses: torch.Tensor = model(
            self.tokens,
            self.position_ids,
            None,
            labels=self.labels,
            packed_seq_params=self.packed_seq_params,
        )
        return losses


class DocumentRow(Protocol):
    """A row of tokens, in memory (:class:`Row` of ``sequence/documents.py``) or on disk."""

    @property
    def seq_length(self) -> int:
        """Tokens of the row."""

    @property
    def num_real_tokens(self) -> int:
        """Tokens before the padding."""

    @property
    def cu_seqlens(self) -> npt.NDArray[np.int32]:
        """Boundaries of its documents."""

    def loss_mask(self, document_mask: DocumentMask) -> npt.NDArray[np.float32]:
        """Weight of every prediction of the row, shape [S]."""

    def read_chunks(
        self, chunks: Sequence[tuple[int, int]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tokens and labels of ranges of the row."""


def local_batch(
    rows: Sequence[DocumentRow],
    *,
    document_mask: DocumentMask,
    cp_group: dist.ProcessGroup,
    device: torch.device,
    cp_assignment: CpAssignment = "zigzag",
    reset_position_ids: bool = False,
) -> Batch:
    """The shard of rows that this rank works on; of a row on disk nothing else is read.

    A chunk's last label is the token after it, the first one of another chunk.
    """
    size, rank = cp_group.size(), cp_group.rank()
    packed, assignment, restarts = None, zigzag(size), None
    if document_mask == "block":
        assert len(rows) == 1, "documents differ from row to row: one row at a time"
        if cp_assignment == "balanced":
            assignment = balanced(rows[0].cu_seqlens.tolist(), size)
        cu_seqlens = torch.from_numpy(rows[0].cu_seqlens)
        packed = document_params(cu_seqlens, rows[0].seq_length, assignment)

    length = rows[0].seq_length
    positions = assignment.positions(rank, length)
    if reset_position_ids:
        assert document_mask == "block", "positions start again where documents are apart"
        restarts = tuple(rows[0].cu_seqlens.tolist())
        positions = torch.from_numpy(document_positions(positions.numpy(), rows[0].cu_seqlens))
    chunks = assignment.ranges(rank, length)
    tokens, labels = zip(*(row.read_chunks(chunks) for row in rows), strict=True)
    masks = [row.loss_mask(document_mask) for row in rows]

    def tensor(values: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
        return torch.from_numpy(np.stack(values)).to(device)

    return Batch(
        tokens=tensor(tokens),
        labels=tensor(labels),
        loss_mask=assignment.shard(tensor(masks), rank, 1).contiguous(),
        position_ids=positions.repeat(len(rows), 1).to(device),
        packed_seq_params=packed,
        assignment=assignment,
        restarts=restarts,
    )

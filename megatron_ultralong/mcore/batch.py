"""Rows of tokens, cut to the part that this rank works on, and what their loss is made of."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from megatron.core.utils import get_attr_wrapped_model

from megatron_ultralong.data.rows.stored import StoredRow
from megatron_ultralong.mcore import core_attention, parallel
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.sequence.assignment import Assignment, balanced, zigzag
from megatron_ultralong.sequence.document_mask import DocumentMask
from megatron_ultralong.sequence.documents import Row, document_positions

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


DocumentRow = Row | StoredRow
"""A row of tokens, in memory or on disk."""


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
        packed = core_attention.document_params(cu_seqlens, rows[0].seq_length, assignment)

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


LossTerms = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def token_loss(loss_mask: torch.Tensor, losses: torch.Tensor) -> LossTerms:
    """Sum of the losses that count and their number, as Megatron's schedules take them.

    With ``calculate_per_token_loss`` Megatron adds the numbers of all micro-batches and ranks and
    divides the gradients once. A rank whose tokens are all masked contributes 0 and 0.

    Args:
        loss_mask: 1 or 0 for every prediction, [b, s_local].
        losses: nats, [b, s_local].
    """
    total = (losses.float() * loss_mask).sum()
    count = loss_mask.sum().to(torch.int)
    report = torch.stack((total.detach().double(), count.double()))
    return total, count, {"lm loss": report}


def token_scores(
    logits: torch.Tensor, labels: torch.Tensor, tp_group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss in nats, and whether the label has the largest logit; both [b, s].

    Args:
        logits: this rank's part of the vocabulary, [b, s, V / tp]; destroyed.
        labels: token ids, [b, s].
        tp_group: ranks that hold the parts.
    """
    logits = logits.float()
    best, index = logits.max(dim=-1)
    index = index + tp_group.rank() * logits.shape[-1]
    if tp_group.size() > 1:
        pair = torch.stack((best.double(), index.double()))
        pairs = [torch.empty_like(pair) for _ in range(tp_group.size())]
        dist.all_gather(pairs, pair, group=tp_group)
        every = torch.stack(pairs)
        winner = every[:, 0].argmax(dim=0, keepdim=True)
        index = every[:, 1].gather(0, winner).squeeze(0).long()
    # Megatron's cross entropy takes [s, b, V].
    losses_SB = vocab_parallel_cross_entropy(
        logits.transpose(0, 1).contiguous(), labels.transpose(0, 1).contiguous()
    )
    return losses_SB.transpose(0, 1), index == labels


@torch.no_grad()
def score_rows(
    model: GPTModel, rows: npt.NDArray[np.int64], groups: ProcessGroupCollection
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (float32) and whether the argmax is right (bool), both [b, S] on the CPU of every rank.

    Position ``i`` speaks of the token at ``i + 1``; the last one of a row has no meaning.

    Args:
        model: this rank's part, in evaluation mode, built with a ``loss_tile_size``.
        rows: token ids [b, S], the same on every rank.
        groups: Megatron's process groups.
    """
    whole_row = np.asarray([0, rows.shape[1]], dtype=np.int32)
    batch = local_batch(
        [Row(row, whole_row, row.size) for row in rows],
        document_mask="none",
        cp_group=groups.cp,
        device=device(),
    )

    hidden_BSH = parallel.last_stage_output(
        model, batch.tokens, batch.position_ids, groups.cp.size()
    )
    local = torch.empty((2, *batch.tokens.shape), device=device())
    if hidden_BSH is not None:
        local[0], local[1] = model.tiled_loss.scores(batch.labels, hidden_BSH)
    parallel.broadcast(local, groups.pp, -1)
    shards = [torch.empty_like(local) for _ in range(groups.cp.size())]
    dist.all_gather(shards, local, group=groups.cp)
    whole = zigzag(len(shards)).unshard(shards, 2).cpu()
    return whole[0], whole[1] > 0.5

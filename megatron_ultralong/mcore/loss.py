"""The loss as a numerator and a count, and scores of whole rows, over tensor-parallel logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

from megatron_ultralong.mcore.batch import local_batch
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.mcore.parallel import broadcast, last_stage_output
from megatron_ultralong.sequence.assignment import zigzag_unshard
from megatron_ultralong.sequence.documents import Row

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

    hidden_BSH = last_stage_output(model, batch.tokens, batch.position_ids, groups.cp.size())
    local = torch.empty((2, *batch.tokens.shape), device=device())
    if hidden_BSH is not None:
        local[0], local[1] = model.tiled_loss.scores(batch.labels, hidden_BSH)
    broadcast(local, groups.pp, -1)
    shards = [torch.empty_like(local) for _ in range(groups.cp.size())]
    dist.all_gather(shards, local, group=groups.cp)
    whole = zigzag_unshard(shards, 2).cpu()
    return whole[0], whole[1] > 0.5

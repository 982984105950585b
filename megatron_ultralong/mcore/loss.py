"""The loss as a numerator and a count, and per-token scores, over tensor-parallel logits."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

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

"""Per-token loss and argmax of whole rows, gathered from all ranks of the layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.mcore.batch import Batch, local_batch
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.sequence.assignment import zigzag_unshard
from megatron_ultralong.sequence.documents import Row


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

    def forward_step(
        batches: Iterator[Batch], model: Any
    ) -> tuple[torch.Tensor, Callable[..., Any]]:
        local = next(batches)
        output = model(local.tokens, local.position_ids, None)

        def scores(hidden_BSH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
            loss, correct = model.tiled_loss.scores(local.labels, hidden_BSH)
            zero = loss.new_zeros(())
            return zero, zero.int(), torch.stack((loss.float(), correct.float()))

        return output, scores

    reports = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter([batch]),
        model=model,
        num_microbatches=1,
        seq_length=rows.shape[1],
        micro_batch_size=rows.shape[0],
        forward_only=True,
    )
    local_shape = (2, rows.shape[0], rows.shape[1] // groups.cp.size())
    local = reports[0] if reports else torch.empty(local_shape, device=device())
    if groups.pp.size() > 1:
        local = local.contiguous()
        last = dist.get_global_rank(groups.pp, groups.pp.size() - 1)
        dist.broadcast(local, src=last, group=groups.pp)
    shards = [torch.empty_like(local) for _ in range(groups.cp.size())]
    dist.all_gather(shards, local.contiguous(), group=groups.cp)
    whole = zigzag_unshard(shards, 2).cpu()
    return whole[0], whole[1] > 0.5

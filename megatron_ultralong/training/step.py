"""One pass of a global batch through the model, with Megatron's pipeline schedules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_attr_wrapped_model

from megatron_ultralong.documents import DocumentMask
from megatron_ultralong.flops import attention_area
from megatron_ultralong.mcore.batch import Batch, CpAssignment, DocumentRow, local_batch
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.mcore.loss import LossTerms, token_loss


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Figures of one global batch, the same on every rank."""

    loss: float
    """Mean nats over the tokens that count."""
    attention_area: float
    """Pairs of query and key, summed over the rows."""


class LanguageModelStep:
    """Forward, and backward if asked, over the micro-batches of this replica."""

    def __init__(
        self,
        model: Any,
        groups: ProcessGroupCollection,
        *,
        document_mask: DocumentMask,
        seq_length: int,
        micro_batch_size: int,
        cp_assignment: CpAssignment = "zigzag",
    ) -> None:
        self.model = model
        self.groups = groups
        self.document_mask = document_mask
        self.seq_length = seq_length
        self.micro_batch_size = micro_batch_size
        self.cp_assignment = cp_assignment
        self._schedule = get_forward_backward_func()

    def __call__(
        self, rows: Iterator[list[DocumentRow]], num_microbatches: int, *, forward_only: bool
    ) -> StepResult:
        """Run the rows through the model.

        Args:
            rows: micro-batches of this replica, micro_batch_size rows each.
            num_microbatches: how many.
            forward_only: leave the gradients alone.
        """
        self._area = 0
        reports = self._schedule(
            forward_step_func=_forward_step,
            data_iterator=self._batches(rows),
            model=self.model,
            num_microbatches=num_microbatches,
            # Megatron divides by the context and, under sequence parallelism, tensor parallel
            # size itself.
            seq_length=self.seq_length,
            micro_batch_size=self.micro_batch_size,
            forward_only=forward_only,
        )
        return self._result(reports)

    def _batches(self, rows: Iterator[list[DocumentRow]]) -> Iterator[Batch]:
        for micro_batch in rows:
            self._area += sum(self._row_area(row) for row in micro_batch)
            yield local_batch(
                micro_batch,
                document_mask=self.document_mask,
                cp_group=self.groups.cp,
                device=device(),
                cp_assignment=self.cp_assignment,
            )

    def _row_area(self, row: DocumentRow) -> int:
        whole = self.document_mask == "none"
        return attention_area([0, row.seq_length] if whole else row.cu_seqlens)

    def _result(self, reports: list[dict[str, torch.Tensor]]) -> StepResult:
        sums = torch.zeros(3, dtype=torch.float64, device=device())
        for report in reports:  # empty but on the last pipeline stage
            sums[:2] += report["lm loss"]
        if self.groups.cp.rank() == 0:  # the other ranks of the group read the same rows
            sums[2] = self._area
        dist.all_reduce(sums, group=self.groups.dp_cp)
        if self.groups.pp.size() > 1:
            last = dist.get_global_rank(self.groups.pp, self.groups.pp.size() - 1)
            dist.broadcast(sums, src=last, group=self.groups.pp)
        total, count, area = sums.tolist()
        return StepResult(total / max(count, 1.0), area)


def _forward_step(
    batches: Iterator[Batch], model: Any
) -> tuple[torch.Tensor, Callable[[torch.Tensor], LossTerms]]:
    batch = next(batches)
    # The angles of this pass are made at its start; a recomputation is handed the same ones.
    get_attr_wrapped_model(model, "rotary_pos_emb").assignment = batch.assignment
    output = model(
        batch.tokens,
        batch.position_ids,
        None,
        labels=batch.labels,
        packed_seq_params=batch.packed_seq_params,
    )
    return output, functools.partial(token_loss, batch.loss_mask)

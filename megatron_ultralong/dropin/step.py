"""The forward step over our rows, for Megatron-LM's schedules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.utils import get_attr_wrapped_model

from megatron_ultralong.mcore.batch import Batch
from megatron_ultralong.mcore.loss import LossTerms, token_loss

_SPIKE = 10
"""Times the largest loss so far, as in Megatron-LM's own step."""


def forward_step(
    batches: Iterator[Batch], model: Any, return_schedule_plan: bool = False
) -> tuple[torch.Tensor, Callable[[torch.Tensor], LossTerms]]:
    """Losses of the next micro-batch, and what makes one number of them."""
    assert not return_schedule_plan, "a schedule plan is for mixtures of experts"
    batch = next(batches)
    # The angles of this pass are made at its start; a recomputation is handed the same ones.
    get_attr_wrapped_model(model, "rotary_pos_emb").assignment = batch.assignment
    losses = model(
        batch.tokens,
        batch.position_ids,
        None,
        labels=batch.labels,
        packed_seq_params=batch.packed_seq_params,
    )
    return losses, functools.partial(_finite_loss, batch.loss_mask)


def _finite_loss(loss_mask: torch.Tensor, losses: torch.Tensor) -> LossTerms:
    from megatron.training import get_args

    total, count, report = token_loss(loss_mask, losses)
    if get_args().check_for_nan_in_loss_and_grad:
        for kind, is_bad in (("NaN", torch.isnan), ("Inf", torch.isinf)):
            get_rerun_state_machine().validate_result(
                result=total,
                rejection_func=is_bad,
                message=f"found {kind} in the loss of a micro-batch",
                tolerance=0.0,
                fatal=True,
            )
    if get_args().check_for_spiky_loss:
        state = get_rerun_state_machine()
        state.validate_result(
            result=total,
            rejection_func=functools.partial(
                state.is_unexpectedly_large, threshold=_SPIKE, context="loss"
            ),
            message="spiky loss",
            tolerance=0.0,
            fatal=False,
        )
    return total, count, report

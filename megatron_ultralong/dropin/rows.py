"""Rows of ``ultralong prepare`` as the iterators of a Megatron-LM run, and the step over them."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.rerun_state_machine import get_rerun_state_machine

from megatron_ultralong.dropin.arguments import DropInConfig
from megatron_ultralong.dropin.extension import Extension, tell
from megatron_ultralong.mcore.batch import Batch, LossTerms, local_batch, token_loss
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.training import early_checks, row_source, step


def _batches(
    source: row_source.RowSource, first_sample: int, micro_batch_size: int, config: DropInConfig
) -> Iterator[Batch]:
    """Micro-batch after micro-batch, from a sample on: the chunks of them that this rank works on.

    A data-parallel rank takes ``micro_batch_size`` samples of every ``micro_batch_size * dp_size``,
    as Megatron-LM's own sampler and our own loop do. There is no end: rows come again, in another
    order.
    """
    dp_group = parallel_state.get_data_parallel_group()
    first = first_sample + dp_group.rank() * micro_batch_size
    for start in itertools.count(first, micro_batch_size * dp_group.size()):
        yield local_batch(
            [source.row(sample) for sample in range(start, start + micro_batch_size)],
            document_mask=config.document_mask,
            cp_group=parallel_state.get_context_parallel_group(),
            device=device(),
            cp_assignment=config.cp_assignment,
        )


def local_batches(
    extension: Extension, num_samples: list[int]
) -> tuple[Iterator[Batch] | None, Iterator[Batch] | None, None]:
    """Iterators for training, validation and (none) test; every rank makes its own.

    Raises:
        InputError: the rows do not fit the model or the arguments.
    """
    args, config, manifest = extension.args, extension.config, extension.manifest
    assert manifest is not None

    def batches(
        split: str, first_sample: int, last_sample: int, micro_batch_size: int
    ) -> Iterator[Batch]:
        rows = early_checks.packed_rows(
            config.data_path, split, manifest, extension.vocab_size, config.document_mask
        )
        for line in early_checks.row_notes(last_sample, len(rows)) if split == "train" else ():
            tell(line)
        source = row_source.PackedRowSource(rows, args.seed, tuple(manifest.separator_ids))
        step.check_rows([(source, range(first_sample, last_sample))])
        return _batches(source, first_sample, micro_batch_size, config)

    size = args.micro_batch_size
    eval_size = getattr(args, "eval_micro_batch_size", None) or size
    train, valid = None, None
    if num_samples[0] and not args.skip_train:
        first = int(args.consumed_train_samples)
        train = batches("train", first, _last_sample(args, first, num_samples[0]), size)
    if num_samples[1]:
        valid = batches("valid", args.consumed_valid_samples, num_samples[1], eval_size)
    return train, valid, None


def _last_sample(args: Any, first_sample: int, num_samples: int) -> int:
    """The number behind that of the last sample of a run whose next one is ``first_sample``.

    ``num_samples`` of a run of so many iterations are those of this batch size. One that is resumed
    with another continues at the sample that is next.
    """
    if args.train_samples:
        return num_samples
    num_left: int = (args.train_iters - args.iteration) * args.global_batch_size
    return first_sample + num_left


_SPIKE = 10
"""Times the largest loss so far, as in Megatron-LM's own step."""


def forward_step(
    batches: Iterator[Batch], model: Any, return_schedule_plan: bool = False
) -> tuple[torch.Tensor, Callable[[torch.Tensor], LossTerms]]:
    """Losses of the next micro-batch, and what makes one number of them."""
    assert not return_schedule_plan, "a schedule plan is for mixtures of experts"
    batch = next(batches)
    return batch.losses(model), functools.partial(_finite_loss, batch.loss_mask)


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

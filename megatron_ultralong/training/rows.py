"""Rows of a run: which of them this rank works on, and whether all can be read."""

from collections.abc import Iterator, Sequence

import torch.distributed as dist

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.mcore.batch import DocumentRow
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.rank_values import every_rank
from megatron_ultralong.training.row_source import RowSource


def check_rows(sources: Sequence[tuple[RowSource | None, range]]) -> None:
    """Read all rows that a run will read, before its first step: every rank a part of them.

    A model has no embedding for an id beyond its vocabulary, and a rank that finds that out in
    the middle of a step leaves the others waiting. Rows are read thousands of times as fast as
    they are trained on.

    Raises:
        InputError: on every rank the same, naming file, row and what is wrong.
    """
    ready = dist.is_initialized()
    part, parts = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
    problem = None
    try:
        for source, samples in sources:
            if source is not None:
                source.check(samples, part, parts)
    except InputError as error:
        problem = str(error)
    found = [each for each in every_rank(problem) if each is not None]
    if found:
        raise InputError(found[0])


def replica_samples(
    config: TrainingConfig, dp_group: dist.ProcessGroup, iteration: int
) -> list[range]:
    """Sample numbers of the micro-batches of one replica in one iteration.

    The global batch of an iteration is the same samples whatever the layout; a replica takes its
    own from every stride of ``micro_batch_size * dp_size``: in iteration 1, of batches of 8, the
    second of two replicas that take 2 at a time has ``[range(10, 12), range(14, 16)]``.
    """
    first, size = iteration * config.global_batch_size, config.micro_batch_size
    last, stride = first + config.global_batch_size, size * dp_group.size()
    starts = range(first + dp_group.rank() * size, last, stride)
    return [range(start, start + size) for start in starts]


def microbatches(source: RowSource, samples: list[range]) -> Iterator[list[DocumentRow]]:
    """The rows of :func:`replica_samples`, micro-batch by micro-batch."""
    for numbers in samples:
        yield [source.row(number) for number in numbers]

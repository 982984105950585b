"""Where a run's rows come from, and which of them this rank works on."""

import abc
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch.distributed as dist

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.data.rows import stored
from megatron_ultralong.data.rows.packed import PackedRows, global_row_index, rows_of_samples
from megatron_ultralong.mcore.batch import DocumentRow
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.rank_values import every_rank


@dataclasses.dataclass(frozen=True)
class RowSource(abc.ABC):
    """Rows by the number of the sample, in another order every epoch.

    Samples are counted from the start of the run. A row is a function of that number alone, on
    every rank and after every restart. It brings its own documents and its own loss mask.
    """

    rows: PackedRows | stored.ChatRows
    seed: int
    """Of the order."""

    @abc.abstractmethod
    def row(self, sample: int) -> DocumentRow:
        """The row of sample number ``sample``."""

    def __len__(self) -> int:
        """Rows in one epoch."""
        return len(self.rows)

    def name(self, sample: int) -> str:
        """What a message calls that row, so that a user finds it: ``rows/train[17]``."""
        return f"{self.rows.path_prefix}[{self._number(sample)}]"

    def check(self, samples: range, part: int = 0, parts: int = 1) -> None:
        """Read the rows of ``samples``, each once, and look for what is damaged or unknown.

        Or of one of ``parts`` equal parts of them.

        Raises:
            InputError: at the first such row.
        """
        numbers = rows_of_samples(samples, len(self.rows), self.seed)
        for number in np.array_split(numbers, parts)[part].tolist():
            self.rows.check(number)

    def _number(self, sample: int) -> int:
        return global_row_index(sample, len(self.rows), self.seed)


@dataclasses.dataclass(frozen=True)
class PackedRowSource(RowSource):
    """Rows that ``ultralong prepare`` wrote."""

    rows: PackedRows
    separator_ids: tuple[int, ...]
    """Ids between documents, for rows that came without boundaries."""

    def row(self, sample: int) -> stored.StoredRow:
        """See :class:`RowSource`."""
        return stored.StoredRow(self.rows, self._number(sample), self.separator_ids)


@dataclasses.dataclass(frozen=True)
class ChatRowSource(RowSource):
    """Rows that ``ultralong prepare chat`` wrote."""

    rows: stored.ChatRows

    def row(self, sample: int) -> stored.ChatRow:
        """See :class:`RowSource`."""
        return self.rows.row(self._number(sample))


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

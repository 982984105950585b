"""Where a run's rows come from. Nothing here needs torch."""

import abc
import dataclasses

import numpy as np

from megatron_ultralong.data.rows import stored
from megatron_ultralong.data.rows.packed import PackedRows, global_row_index, rows_of_samples


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
    def row(self, sample: int) -> stored.StoredRow:
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

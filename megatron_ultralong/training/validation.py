"""Loss on held-out rows, by position; each row counts once, however many are asked for."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.mcore.batch import DocumentRow
from megatron_ultralong.sequence.documents import Row
from megatron_ultralong.sequence.position_bins import bin_edges
from megatron_ultralong.training.early_checks import RunInputs
from megatron_ultralong.training.row_source import RowSource
from megatron_ultralong.training.step import LanguageModelStep, replica_samples
from megatron_ultralong.training.telling.log import PositionBin


def validation_notes(inputs: RunInputs) -> list[str]:
    """One line: which rows are validated on; none where there is no validation."""
    if inputs.valid_rows is None:
        return []
    config, there = inputs.config, len(inputs.valid_rows)
    asked = config.eval_iters * config.global_batch_size
    rows = f"the same {asked:,} of {there:,} held-out rows"
    if asked >= there:
        rows = f"all {there:,} held-out rows"
    more = ""
    if asked > there:
        more = (
            f" (eval_iters {config.eval_iters} x global_batch_size {config.global_batch_size} asks "
            f"for {asked:,})"
        )
    return [f"validation: {rows}, each counted once{more}"]


def _first_rows(
    source: RowSource, num_counted: int, samples: Sequence[range]
) -> Iterator[list[DocumentRow]]:
    """Micro-batches of the first rows of a source; what fills the last one counts nothing."""
    for numbers in samples:
        rows: list[DocumentRow] = [source.row(n) for n in numbers if n < num_counted]
        if num_filling := len(numbers) - len(rows):
            rows += [_filling(source)] * num_filling
        yield rows


def _filling(source: RowSource) -> Row:
    """A row of no real tokens, as long as those of the source."""
    length = source.row(0).seq_length
    edges = np.asarray([0, length], dtype=np.int32)
    return Row(np.zeros(length, dtype=np.int64), edges, num_real_tokens=0)


_SMALLEST_BIN = 1024


class Validation:
    """The same held-out rows every time, each counted once.

    They are ``eval_iters`` global batches, or all that there are.
    """

    def __init__(
        self, inputs: RunInputs, step: LanguageModelStep, groups: ProcessGroupCollection
    ) -> None:
        self._inputs = inputs
        self._config = inputs.config
        self._step = step
        self._groups = groups
        length = inputs.config.data.seq_length
        # The context that the model came with is an edge: beyond it is what the run is for.
        trained = inputs.source.model.max_position_embeddings
        self._edges = bin_edges(length, min(_SMALLEST_BIN, max(length // 4, 1)), (trained,))

    def run(
        self, iteration: int, chunks: Sequence[torch.nn.Module]
    ) -> tuple[float, tuple[PositionBin, ...]] | None:
        """The mean loss over all predictions that count, and by position, if it is time."""
        config, rows = self._config, self._inputs.valid_rows
        if rows is None or not config.eval_interval or iteration % config.eval_interval:
            return None
        for chunk in chunks:
            chunk.eval()
        sums = torch.zeros(2, len(self._edges) - 1, dtype=torch.float64)
        with torch.no_grad():
            num_counted = min(config.eval_iters * config.global_batch_size, len(rows))
            for batch in range(math.ceil(num_counted / config.global_batch_size)):
                samples = replica_samples(config, self._groups.dp, batch)
                micro_batches = _first_rows(rows, num_counted, samples)
                sums += self._step.position_sums(micro_batches, self._edges)
        losses, counts = sums.tolist()
        starts, stops = self._edges[:-1], self._edges[1:]
        bins = zip(starts, stops, losses, counts, strict=True)
        return sum(losses) / max(sum(counts), 1.0), tuple(
            PositionBin(start, stop, loss / count) for start, stop, loss, count in bins if count
        )

"""Loss on held-out rows, by position."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.sequence.position_bins import bin_edges
from megatron_ultralong.training.held_out import CountedRows, num_validation_rows
from megatron_ultralong.training.inputs import RunInputs
from megatron_ultralong.training.rows import microbatches, replica_samples
from megatron_ultralong.training.step import LanguageModelStep
from megatron_ultralong.training.telling.log import PositionBin

_SMALLEST_BIN = 1024


@dataclasses.dataclass(frozen=True)
class ValidationResult:
    """Means over the predictions that count."""

    loss: float
    bins: tuple[PositionBin, ...]


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

    def run(self, iteration: int, chunks: Sequence[torch.nn.Module]) -> ValidationResult | None:
        """Validate, if it is time after ``iteration``."""
        config, rows = self._config, self._inputs.valid_rows
        if rows is None or not config.eval_interval or iteration % config.eval_interval:
            return None
        for chunk in chunks:
            chunk.eval()
        sums = torch.zeros(2, len(self._edges) - 1, dtype=torch.float64)
        with torch.no_grad():
            counted = CountedRows(rows, num_validation_rows(self._inputs))
            for batch in range(math.ceil(len(counted) / config.global_batch_size)):
                samples = replica_samples(
                    iteration=batch,
                    global_batch_size=config.global_batch_size,
                    micro_batch_size=config.micro_batch_size,
                    dp_rank=self._groups.dp.rank(),
                    dp_size=self._groups.dp.size(),
                )
                rows_of_batch = microbatches(counted, samples)
                sums += self._step.position_sums(rows_of_batch, self._edges)
        losses, counts = sums.tolist()
        starts, stops = self._edges[:-1], self._edges[1:]
        bins = zip(starts, stops, losses, counts, strict=True)
        return ValidationResult(
            loss=sum(losses) / max(sum(counts), 1.0),
            bins=tuple(
                PositionBin(start, stop, loss / count) for start, stop, loss, count in bins if count
            ),
        )

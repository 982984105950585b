"""What a run works with, once it has been checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.yarn import describe
from megatron_ultralong.training.rows import RowSource


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """A run that has been checked: what it reads, and what its checkpoints will say.

    Pretraining makes one (:func:`~megatron_ultralong.training.pretrain.check_run`); whatever else
    trains makes its own, with rows of its own.
    """

    config: TrainingConfig
    """With every default resolved."""
    source: CheckpointMetadata
    """Of the checkpoint that the run starts from."""
    result: CheckpointMetadata
    """Of the checkpoints that it writes."""
    train_rows: RowSource
    valid_rows: RowSource | None
    """None: no validation."""
    agreed: Mapping[str, object]
    """What else all ranks must have the same of, by name."""
    remarks: tuple[str, ...] = ()
    """What a user must know of how the run will work on this machine, a line each."""
    template: str | None = None
    """Of the conversations that it learns, for exports where the source had none."""

    @property
    def notes(self) -> tuple[str, ...]:
        """The rotary embedding before and after, and what a user may not have meant, in lines."""
        trained, positions = (
            self.result.trained_positions,
            self.result.model.max_position_embeddings,
        )
        before, after = (
            describe(one.rope_scaling, one.model.max_position_embeddings)
            + ("" if one.angle_precision == "exact" else f", angles in {one.angle_precision}")
            for one in (self.source, self.result)
        )
        notes = (
            f"rotary: {before} -> {after if after != before else 'the same'}",
            *self.config.rope.warnings(
                self.source.model.max_position_embeddings, self.source.rope_scaling
            ),
        )
        if trained == positions:
            return notes
        return (
            *notes,
            f"warning: the rotary embedding is made for {positions:,} positions, and rows of "
            f"{trained:,} tokens train the first {trained:,} alone: expect little beyond them; "
            f"prepare rows of {positions:,} for all",
        )

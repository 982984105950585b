"""Configuration of instruction tuning."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

from megatron_ultralong.config.training import DataConfig, TrainingConfig
from megatron_ultralong.model.yarn import RopeScaling
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range


@dataclasses.dataclass(frozen=True)
class SftConfig(TrainingConfig):
    """Instruction tuning on conversations: the loss counts the assistant's turns alone."""

    verb = "sft"

    train_iters: Annotated[int, Range(0)] = 0
    """Iterations (optimizer steps) of the whole run; 0: as many as num_epochs takes."""
    num_epochs: Annotated[float, Range(above=0, most=1_000_000)] = 1.0
    """Passes over the rows, where train_iters is 0; the paper states none."""
    data: DataConfig = dataclasses.field(
        default_factory=lambda: DataConfig(document_mask="block", reset_position_ids=True)
    )

    def with_iterations(self, num_rows: int) -> SftConfig:
        """The same with ``train_iters`` set: the last one may begin another pass.

        Raises:
            InputError: ``num_epochs`` makes no iteration.
        """
        if self.train_iters:
            return self
        iterations = math.ceil(self.num_epochs * num_rows / max(self.global_batch_size, 1))
        if iterations < 1:
            raise InputError(
                f"num_epochs ({self.num_epochs:g}) must be above 0, or train_iters at least 1"
            )
        return dataclasses.replace(self, train_iters=iterations)

    def check_conversations(
        self, checkpoint_positions: int, checkpoint_scaling: RopeScaling, longest: int
    ) -> None:
        """Raise InputError where positions are beyond those that the model is made for.

        Args:
            checkpoint_positions: of the checkpoint that the run starts from.
            checkpoint_scaling: the checkpoint's own.
            longest: tokens of the longest conversation: all that counts where positions restart.
        """
        if not self.data.reset_position_ids:
            self.check_positions(checkpoint_positions, checkpoint_scaling)
            return
        limit = self.rope.max_positions(checkpoint_positions, checkpoint_scaling)
        if longest > limit:
            raise InputError(
                f"the longest conversation has {longest} tokens, beyond the {limit} positions of "
                f"rope_scaling '{self.rope.rope_scaling}': prepare them with --max-length {limit}, "
                "or start from a checkpoint of a longer context"
            )

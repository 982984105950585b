"""Configuration of instruction tuning."""

from __future__ import annotations

import dataclasses
import math

from megatron_ultralong.config import DataConfig, RopeConfig, TrainingConfig
from megatron_ultralong.errors import InputError


@dataclasses.dataclass(frozen=True)
class SftConfig(TrainingConfig):
    """Instruction tuning on conversations: the loss counts the assistant's turns alone."""

    verb = "sft"

    num_epochs: float = 1.0
    """Passes over the rows, where train_iters is 0; the paper states none."""
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(rope_scaling="keep"))
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

    def check_conversations(self, checkpoint_positions: int, longest: int) -> None:
        """Raise InputError where positions are beyond those that the model is made for.

        Args:
            checkpoint_positions: of the checkpoint that the run starts from.
            longest: tokens of the longest conversation: all that counts where positions restart.
        """
        if not self.data.reset_position_ids:
            self.check_positions(checkpoint_positions)
            return
        limit = self.rope.max_positions(checkpoint_positions)
        if longest > limit:
            raise InputError(
                f"the longest conversation has {longest} tokens, beyond the {limit} positions of "
                f"rope_scaling '{self.rope.rope_scaling}': prepare them with --max-length {limit}, "
                "or start from a checkpoint of a longer context"
            )

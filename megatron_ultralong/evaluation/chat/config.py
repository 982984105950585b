"""Configuration of ``evaluate chat``; its flags are generated from it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranges import Range, check_ranges


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """Held-out conversations: the assistant's turns that the model would write word for word."""

    data_path: str = ""
    """Folder written by `ultralong prepare chat`."""
    split: Literal["valid", "train"] = "valid"
    """Conversations to evaluate on."""
    num_samples: Annotated[int, Range(0)] = 0
    """Conversations to use, the first ones of the split; 0: all."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Conversations in one forward pass."""
    beyond_trained_positions: bool = False
    """Allow conversations longer than the checkpoint was trained for."""
    output: str = ""
    """New folder for chat.json, chat.png and every turn; empty: print only. A killed evaluation
    goes on from OUTPUT.partial."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        if not self.data_path:
            raise InputError("--data-path is needed: a folder written by `ultralong prepare chat`")
        check_ranges(self)

"""Options of every evaluation: which models, and in which layout."""

from __future__ import annotations

import dataclasses
from typing import Literal

from megatron_ultralong.config.parallel import ParallelConfig


@dataclasses.dataclass(frozen=True)
class ModelsConfig:
    """What is evaluated, and in which layout."""

    load: tuple[str, ...] = ()
    """Megatron checkpoints, or Hugging Face folders (judged by transformers, in one process).
    NAME=FOLDER gives one a name in tables and pictures."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Weights and activations of Megatron checkpoints; Hugging Face folders run in fp32."""
    verify_checksums: bool = True
    """Compare the bytes of Megatron checkpoints with their checksums.json."""
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)

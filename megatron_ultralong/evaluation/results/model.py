"""What a result states of the model that it was made with."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelRecord:
    """Which weights, and how they were run."""

    folder: str
    """As it was given."""
    engine: str
    """``megatron`` or ``transformers``."""
    precision: str
    """Of weights and activations: ``bf16`` or ``fp32``."""
    weights: str
    """Hash of the names, sizes and times of the weights' files: tells checkpoints of one name from
    each other."""
    num_parameters: int
    """Weights of the whole model."""

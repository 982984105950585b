"""What a result states of the model that was measured, and the types of its file."""

import dataclasses
from typing import Annotated

from pydantic import Field, StringConstraints

# What a file is held to (results/file.py); pydantic reads these types.
Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Text = Annotated[str, StringConstraints(max_length=10_000)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Number = Annotated[int, Field(ge=1, le=2**53)]
"""Of things that are there."""


@dataclasses.dataclass(frozen=True)
class ModelRecord:
    """Which weights, and how they were run."""

    folder: Text
    """As it was given."""
    engine: Name
    """``megatron`` or ``transformers``."""
    precision: Name
    """Of weights and activations: ``bf16`` or ``fp32``."""
    weights: Name
    """Hash of the names, sizes and times of the weights' files: tells checkpoints of one name from
    each other."""
    num_parameters: Number
    """Weights of the whole model."""
    digest: Text = dataclasses.field(default="", compare=False)
    """Hash of what the weights' files hold and of the model's shape: the same for copies; empty:
    not known."""
    rotary: Text = dataclasses.field(default="", compare=False)
    """How it turns positions, in words: models of the same weights may do so in several ways;
    empty: not known."""

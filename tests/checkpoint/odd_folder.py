"""A model folder in the making, and what is odd about it."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch

from megatron_ultralong.model.shape import ModelConfig

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Oddity:
    """What is not plain about a folder, and what has to become of it."""

    name: str
    refused: tuple[str, ...] = ()
    """The message must hold all of these; empty: it is loaded."""
    said: str = ""
    """Loaded where transformers does not, or with a choice: the program must say this."""


@dataclasses.dataclass
class Folder:
    """A folder in the making."""

    rng: random.Random
    config: dict[str, Any]
    model: ModelConfig
    tensors: Tensors
    """Of the model that is meant, under transformers' names."""
    stored: Tensors
    """What is written."""
    wild: frozenset[str] = frozenset()
    """Parts of it that may be odd; the others are as everybody has them."""
    oddities: list[Oddity] = dataclasses.field(default_factory=list)

    def odd(self, name: str, *refused: str, said: str = "") -> None:
        self.oddities.append(Oddity(name, refused, said))

"""Small random models of every family, in three shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from megatron_ultralong.model.families import FAMILIES
from tests.models import write_model

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    # heads that do not fill the hidden size, one query head a group, layers that PP 2 splits
    "wide heads": {
        "hidden_size": 72,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 16,
        "num_hidden_layers": 2,
    },
    # Llama 3.2 1B's: tied, heads of 64, four queries a group
    "tied": {
        "hidden_size": 128,
        "num_attention_heads": 8,
        "head_dim": 64,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
}
COVERING = {("llama", "tied"), ("qwen2", "plain"), ("qwen3", "wide heads")}
"""Of the default tests: a shape of each family, each shape once."""
NULL_WINDOW = {"mistral": {"sliding_window": None}}
"""transformers' own default of Mistral is a window."""


def cases() -> list[Any]:
    """Every family at every shape, those beyond the covering set marked."""
    return [
        pytest.param(family, shape, marks=[] if (family, shape) in covering() else FAULTS)
        for family in FAMILIES
        for shape in SHAPES
    ]


def covering() -> set[tuple[str, str]]:
    """One shape of each family, of a new one the first."""
    missing = set(FAMILIES) - {family for family, _ in COVERING}
    return COVERING | {(family, "plain") for family in missing}


FAULTS = (pytest.mark.faults,)


def write(folder: Path, family: str, shape: str, **changes: Any) -> PreTrainedModel:
    """A model of ``family`` in ``folder``."""
    return write_model(
        folder, family, **{**NULL_WINDOW.get(family, {}), **SHAPES[shape], **changes}
    )

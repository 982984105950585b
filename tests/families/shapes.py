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
COVERING = {
    ("qwen2", "plain"): ("tp2",),
    ("qwen3", "wide heads"): ("tp2-sp",),
}
"""Of the default tests, with the layout of each; Llama has ``tests/training/layouts``."""
NULL_WINDOW = {"mistral": {"sliding_window": None}}
"""transformers' own default of Mistral is a window."""


FAULTS = (pytest.mark.faults,)


def cases() -> list[Any]:
    """Family, shape and layouts of the default tests; of ``make test-families`` all of them."""
    new = set(FAMILIES) - {"llama"} - {family for family, _ in COVERING}
    some = {**COVERING, **{(family, "plain"): ("cp2",) for family in new}}
    every = [(family, shape) for family in FAMILIES for shape in SHAPES]
    return [
        *(pytest.param(*case, layouts) for case, layouts in sorted(some.items())),
        *(pytest.param(*case, (), marks=pytest.mark.families) for case in every),
    ]


def write(folder: Path, family: str, shape: str, **changes: Any) -> PreTrainedModel:
    """A model of ``family`` in ``folder``."""
    return write_model(
        folder, family, **{**NULL_WINDOW.get(family, {}), **SHAPES[shape], **changes}
    )

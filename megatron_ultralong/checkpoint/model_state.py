"""Weights of a Megatron checkpoint, into this rank's part of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel


def load_weights(model: GPTModel, folder: Path) -> None:
    """Load the weights in ``folder`` (a ``release`` or ``iter_NNNNNNN``) into ``model``.

    The layout that wrote them does not matter. Optimizer states in the folder are not read.
    """
    wanted: dict[str, Any] = model.sharded_state_dict(metadata={"singleton_local_shards": False})
    # Empty `_extra_state` entries of a Transformer Engine layout are no weights.
    weights = {key: value for key, value in wanted.items() if not key.endswith("_extra_state")}
    state = dist_checkpointing.load(
        sharded_state_dict={"model": weights}, checkpoint_dir=str(folder)
    )
    result = model.load_state_dict(state["model"], strict=False)
    missing = [key for key in result.missing_keys if not key.endswith("_extra_state")]
    assert not missing, f"weights not in the checkpoint: {missing}"

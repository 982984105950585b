"""Weights of a Megatron checkpoint, into this rank's part of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel


def load_weights(chunks: Sequence[GPTModel], folder: Path) -> None:
    """Load the weights in ``folder`` (a ``release`` or ``iter_NNNNNNN``) into a model.

    The layout that wrote them does not matter. Optimizer states in the folder are not read.

    Args:
        chunks: the model's chunks on this rank, one where it has no virtual stages.
        folder: of the checkpoint.
    """
    state = dist_checkpointing.load(  # all chunks at once: the ranks' shards cover every tensor
        sharded_state_dict={f"model{index}": _weights(chunk) for index, chunk in enumerate(chunks)},
        checkpoint_dir=str(folder),
    )
    for index, chunk in enumerate(chunks):
        result = chunk.load_state_dict(state[f"model{index}"], strict=False)
        missing = [key for key in result.missing_keys if not key.endswith("_extra_state")]
        assert not missing, f"weights not in the checkpoint: {missing}"


def _weights(chunk: GPTModel) -> dict[str, Any]:
    wanted: dict[str, Any] = chunk.sharded_state_dict(metadata={"singleton_local_shards": False})
    # Empty `_extra_state` entries of a Transformer Engine layout are no weights.
    return {key: value for key, value in wanted.items() if not key.endswith("_extra_state")}

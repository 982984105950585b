"""Weights of a Megatron checkpoint, into this rank's part of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.models.gpt import GPTModel

from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.sharded_load import load_sharded
from megatron_ultralong.program.rank_values import every_rank


def load_weights(chunks: Sequence[GPTModel], checkpoint: MegatronCheckpoint | Path) -> None:
    """Load the weights of a checkpoint into a model; every rank calls it.

    The layout that wrote them does not matter. Optimizer states in the folder are not loaded. Each
    byte of the folder is first compared with its checksum, on one of the ranks.

    Args:
        chunks: the model's chunks on this rank, one where it has no virtual stages.
        checkpoint: opened, and so checked but for the tensors' bytes; or its folder.

    Raises:
        InputError: a file is damaged, or would run code; on every rank.
    """
    if not isinstance(checkpoint, MegatronCheckpoint):
        checkpoint = MegatronCheckpoint(checkpoint)
    checkpoint.check_tensors(dist.get_rank(), dist.get_world_size(), every_rank)
    state = load_sharded(  # all chunks at once: the ranks' shards cover every tensor
        {f"model{index}": _weights(chunk) for index, chunk in enumerate(chunks)},
        checkpoint.path,
    )
    for index, chunk in enumerate(chunks):
        take_state(chunk, state[f"model{index}"])


def take_state(chunk: GPTModel, state: dict[str, Any]) -> None:
    """Hand a loaded state to a model; only ``_extra_state`` entries may be missing in it.

    Layers of Transformer Engine and of Megatron-Core have them in other places. They hold what
    FP8 with delayed scaling has learnt, and are empty otherwise.
    """
    result = chunk.load_state_dict(state, strict=False)
    missing = without_extra_states(result.missing_keys)
    assert not missing, f"weights not in the checkpoint: {missing}"


def without_extra_states(keys: Iterable[str]) -> list[str]:
    """The keys of weights and states, sorted."""
    return sorted(key for key in keys if "_extra_state" not in key)


def _weights(chunk: GPTModel) -> dict[str, Any]:
    wanted: dict[str, Any] = chunk.sharded_state_dict(metadata={"singleton_local_shards": False})
    # Empty `_extra_state` entries of a Transformer Engine layout are no weights.
    return {key: value for key, value in wanted.items() if not key.endswith("_extra_state")}

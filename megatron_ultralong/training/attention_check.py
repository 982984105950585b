"""Whether a fused attention kernel serves a run, and what it means where none does."""

from __future__ import annotations

import torch

from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.kernels.math import MATH
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.score_matrices import (
    GIB,
    HELD_AT_ONCE,
    score_matrix_bytes,
    score_matrix_note,
)
from megatron_ultralong.program.errors import InputError

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def check_attention(
    config: TrainingConfig,
    model: ModelConfig,
    device: torch.device | None = None,
    memory_bytes: int | None = None,
) -> tuple[str, ...]:
    """What a user must know of the attention kernel that the run will get, in lines.

    Args:
        config: with its row length.
        model: shape of the model.
        device: to run on; None: the GPU of this process, if it has one.
        memory_bytes: of that device; None asks it.

    Raises:
        InputError: matrices of scores are larger than the device's memory.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda":
        return ()
    kernel = block_attention.resolve(_DTYPES[config.precision], model.kv_channels, device)
    if kernel is not MATH:
        return ()
    why = f"precision '{config.precision}' with {model.kv_channels} channels a head"
    note = score_matrix_note(config, model, why)
    if memory_bytes is None:
        memory_bytes = torch.cuda.get_device_properties(device).total_memory
    needed = HELD_AT_ONCE * score_matrix_bytes(config, model)
    if config.data.document_mask == "none" and needed > memory_bytes:
        raise InputError(
            f"{note.removeprefix('warning: ')}, and a GPU has {memory_bytes / GIB:,.1f} GiB: use "
            "--precision bf16, shorter rows, or a larger context_parallel_size"
        )
    return (f"{note}; --precision bf16 needs none of them",)

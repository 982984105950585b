"""GPUs that other programs use too: a run on them is slow, or out of memory hours later."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import torch

OWN_GPU_BYTES = 2 * 2**30
"""More than a rank holds of its GPU beside torch's memory: CUDA's context, NCCL, libraries."""
MOST_NAMED = 4
"""Ranks of a warning."""


def gpu_of_this_rank() -> tuple[str, int]:
    """The GPU's name for a user, and the bytes of its memory that other programs hold."""
    if not torch.cuda.is_available():
        return "", 0
    free, total = torch.cuda.mem_get_info()
    others = total - free - torch.cuda.memory_reserved() - OWN_GPU_BYTES
    # numbers count within CUDA_VISIBLE_DEVICES, and nvidia-smi's do not
    identity = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    return f"GPU-{identity} of {socket.gethostname()}", max(0, others)


def shared_gpus(gpus: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """What a user must know of GPUs that other programs use; ``gpus``: one of each rank."""
    shared = [
        f"{others / 2**30:.1f} GiB or more of {gpu} (rank {rank})"
        for rank, (gpu, others) in enumerate(gpus)
        if others
    ]
    if not shared:
        return ()
    named = ", ".join(shared[:MOST_NAMED]) + ", ..." * (len(shared) > MOST_NAMED)
    return (
        f"warning: other programs, or a run that was just killed, hold {named}: this run may be "
        "slow, all ranks wait for the slowest, or may run out of memory; `nvidia-smi -L` has the "
        "numbers of the GPUs, and `nvidia-smi` lists what runs there",
    )

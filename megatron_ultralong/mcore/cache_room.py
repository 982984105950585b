"""Room for the keys and values of rows that are continued."""

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.program.available_memory import available_memory
from megatron_ultralong.program.ranks import local_world_size


def most_tokens(bytes_per_token: float, groups: ProcessGroupCollection) -> int:
    """Tokens that the free memory of every rank of a replica holds; all of them call it.

    A tenth of a device's memory is left to activations, and a fifth of what the host has
    available, which its ranks share.
    """
    tokens = torch.tensor(int(_free_bytes() / bytes_per_token), device=device())
    for group in (groups.tp, groups.cp, groups.pp):
        dist.all_reduce(tokens, op=dist.ReduceOp.MIN, group=group)
    return int(tokens)


def _free_bytes() -> int:
    """Memory that keys and values may take on this rank."""
    if device().type != "cuda":
        local_ranks = local_world_size()
        return int(0.8 * available_memory() / local_ranks)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return max(0, free - total // 10)

"""What ranks have to have for an exchange of tokens for heads."""

import math

from megatron_ultralong.program.errors import InputError


def check_heads(kv_heads: int, size: int, cp_size: int, name: str) -> None:
    """Check that every rank of a group gets whole key heads, and with them whole heads.

    Args:
        kv_heads: of a rank.
        size: ranks of a group.
        cp_size: context-parallel ranks.
        name: what messages call the exchange.

    Raises:
        InputError: it does not.
    """
    if kv_heads % size == 0:
        return
    way, fits = "", math.gcd(kv_heads, cp_size)
    if fits > 1:
        way = f", or --cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes {fits} "
        way += str(cp_size // fits)
    raise InputError(
        f"{name} exchanges heads among {size} ranks, and a rank has {kv_heads} key heads "
        f"(num_query_groups / tensor_model_parallel_size), which {size} does not divide: use "
        f"--cp-comm-type p2p, fewer tensor-parallel ranks{way}"
    )

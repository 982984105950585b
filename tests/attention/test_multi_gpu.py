"""The ring over NCCL, one GPU a rank, against all ranks on one GPU."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megatron_ultralong.attention import ring_attention
from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.assignment import zigzag
from megatron_ultralong.sequence.transport import LocalRing
from tests.attention.whole_sequence import inputs
from tests.ranks import run_on_gpus

pytestmark = [
    pytest.mark.multi_gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices"),
]


def _shards(
    size: int, backend: str, edges: list[int] | None, kernel: str, on_ranks: bool
) -> list[torch.Tensor]:
    """out, dq, dk and dv: of this rank over NCCL, or of all ranks end to end."""
    rank = dist.get_rank() if on_ranks else 0
    device = torch.device("cuda", rank)
    group = dist.group.WORLD if on_ranks else LocalRing(size)
    ranks = [rank] if on_ranks else range(size)
    whole = inputs(4096, 4, 1, 128, torch.bfloat16)
    tensors = [torch.cat([zigzag(size).shard(x, r, 0) for r in ranks]).to(device) for x in whole]
    q, k, v, dout = (x.requires_grad_() for x in tensors)
    options = {"group": group, "backend": backend, "deterministic": True, "kernel": kernel}
    cu_seqlens = None if edges is None else torch.tensor(edges)
    out = ring_attention(q, k, v, cu_seqlens=cu_seqlens, **options)
    return [x.detach().cpu() for x in (out, *torch.autograd.grad(out, (q, k, v), dout))]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kernel", ["fa2", "cudnn", "fa3", "fa4"])
@pytest.mark.parametrize("backend", ["p2p", "all_gather"])
@pytest.mark.parametrize("edges", [None, [0, 1, 1500, 2050, 4096]])
def test_nccl_equals_the_local_ring(backend, edges, kernel, size):
    if torch.cuda.device_count() < size:
        pytest.skip(f"no {size} CUDA devices")
    try:
        block_attention.resolve(torch.bfloat16, 128, torch.device("cuda", 0), kernel)
    except InputError as error:
        pytest.skip(str(error))
    by_rank = run_on_gpus(size, _shards, size, backend, edges, kernel, True)
    expected = _shards(size, backend, edges, kernel, False)
    for shards, whole in zip(zip(*by_rank, strict=True), expected, strict=True):
        # The same kernel on the same blocks; NCCL's sums of float32 have an order of their own.
        assert (torch.cat(shards).float() - whole.float()).abs().max() <= 2**-6 * whole.abs().max()

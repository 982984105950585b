"""Ring attention as one differentiable call."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.kernels.base import Gradients, Kernel, Result, Saved
from megatron_ultralong.attention.ring import gather, ring
from megatron_ultralong.attention.ring.block import Block
from megatron_ultralong.attention.ring.plan import Plan, row_plan
from megatron_ultralong.sequence.assignment import Assignment, zigzag
from megatron_ultralong.sequence.transport import LocalRing, ProcessGroupRing, Transport

Backend = Literal["p2p", "all_gather"]


class KeptOutput:
    """Output of one attention call, kept from the forward pass for the recomputation.

    Give the same object to the call in the checkpointed function: the first call computes and
    fills it, the second, in the recomputation, takes (out, lse) from it and computes nothing.
    """

    def __init__(self) -> None:
        self.out_lse: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class _Call:
    """All of a call but its tensors."""

    plan: Plan
    transport: Transport
    kernel: Kernel
    scale: float
    backend: Backend
    deterministic: bool

    @property
    def gathers(self) -> bool:
        """Whether there are other ranks, whose keys are gathered."""
        return self.backend == "all_gather" and self.plan.size > 1

    def blocks(self, q: Tensor, k: Tensor, v: Tensor) -> list[Block]:
        """Inputs of the ranks in this process."""
        n = len(self.transport.ranks)
        shards = zip(self.transport.ranks, q.chunk(n), k.chunk(n), v.chunk(n), strict=True)
        return [Block(self.plan, r, q, k, v, self.kernel, self.scale) for r, q, k, v in shards]


def _join(shards: list[Tensor], dim: int = 0) -> Tensor:
    return shards[0] if len(shards) == 1 else torch.cat(shards, dim)


class _RingAttention(torch.autograd.Function):
    """Keeps q, k, v, out and lse: backward repeats no forward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: _Call, keep: KeptOutput | None
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        if keep is not None and keep.out_lse is not None:
            (out, lse), keep.out_lse = keep.out_lse, None
        else:
            out, lse = _forward(call, q, k, v)
            if keep is not None:
                keep.out_lse = (out.detach(), lse)
        ctx.call = call
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(ctx.call, dout.contiguous(), *ctx.saved_tensors), None, None)


def _forward(call: _Call, q: Tensor, k: Tensor, v: Tensor) -> Result:
    """Output [s, b, heads, d] and log-sum-exp [b, heads, s]."""
    run = gather.forward if call.gathers else ring.forward
    with _determinism(call.deterministic):
        results = run(call.blocks(q, k, v), call.transport)
    out = _join([out.to(q.dtype) for out, _ in results])
    return out, _join([lse for _, lse in results], dim=2)


def _backward(
    call: _Call, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> Gradients:
    """Gradients of q, k and v."""
    n = len(call.transport.ranks)
    shards = zip(dout.chunk(n), out.chunk(n), lse.chunk(n, dim=2), strict=True)
    saved = [Saved(*its) for its in shards]
    run = gather.backward if call.gathers else ring.backward
    with _determinism(call.deterministic):
        results = run(call.blocks(q, k, v), call.transport, saved)
    dq, dk, dv = (
        _join([x.to(q.dtype) for x in gradients]) for gradients in zip(*results, strict=True)
    )
    return dq, dk, dv


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    """Ask the kernels of a GPU for sums in a fixed order; the CPU's are always so."""
    before = torch.are_deterministic_algorithms_enabled()
    if before or not wanted:  # torch's setter imports its compiler, two seconds of each process
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: dist.ProcessGroup | Transport | None = None,
    cu_seqlens: Tensor | None = None,
    softmax_scale: float | None = None,
    assignment: Assignment | None = None,
    backend: Backend = "p2p",
    deterministic: bool = False,
    kernel: str | None = None,
    keep: KeptOutput | None = None,
) -> Tensor:
    """Causal attention over a sequence shared by the ranks of a group, differentiable.

    ``ring_attention(q, k, v, group=cp_group)`` with the zigzag shards of this rank gives its
    shard of the output.

    Args:
        q: queries of this rank, [s_local, b, heads, d].
        k: keys of this rank, [s_local, b, kv_heads, d]; kv_heads divides heads.
        v: values of this rank, [s_local, b, kv_heads, d].
        group: the context-parallel group; None: the whole sequence is here. A
            :class:`~megatron_ultralong.sequence.transport.LocalRing` runs all ranks here: the
            tensors of the ranks then stand end to end, [size * s_local, b, heads, d].
        cu_seqlens: document boundaries of the **whole** sequence, int [num_documents + 1], best
            on the CPU; tokens then see their own document alone. None: no document mask.
        softmax_scale: factor of the scores; ``1 / sqrt(d)`` if None.
        assignment: which rank holds which chunks; zigzag if None.
        backend: ``p2p``, a ring of hops hidden behind the kernels, or ``all_gather``, one gather
            of all keys. The same results, except for the order of the float32 sums.
        deterministic: two runs are bit-equal on a GPU too; the backward pass then takes 1.7 times
            as long with fa4, and cuDNN leaves it to fa2 (benchmarks/attention.md). On the CPU they
            always are.
        kernel: name of the kernel, for tests; None: the fastest valid one.
        keep: where (out, lse) are kept for a recomputation of the surrounding layer.

    Returns:
        [s_local, b, heads, d], of the dtype of ``q``. Sums over ranks are float32 (float64 for
        float64), on the wire too.

    Raises:
        InputError: the sequence does not divide into chunks, or the named kernel cannot serve.
    """
    _check_shapes(q, k, v)
    assert backend in get_args(Backend), f"backend {backend!r}, not one of {get_args(Backend)}"
    transport = transport_of(group)
    assignment = assignment or zigzag(transport.size)
    assert assignment.cp_size == transport.size, (
        f"an assignment to {assignment.cp_size} ranks in a group of {transport.size}"
    )
    seq_length = q.shape[0] // len(transport.ranks) * transport.size
    plan = row_plan(assignment, seq_length, cu_seqlens, q.shape[1])
    call = _Call(
        plan=plan,
        transport=transport,
        kernel=block_attention.resolve(q.dtype, q.shape[-1], q.device, kernel),
        scale=q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale,
        backend=backend,
        deterministic=deterministic,
    )
    out: Tensor = _RingAttention.apply(q, k, v, call, keep)
    return out


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Mistakes of the caller."""
    assert q.ndim == 4, f"q must be [s, b, heads, d], not {q.shape}"
    assert k.shape == v.shape, f"k {k.shape}, v {v.shape}"
    assert (*q.shape[:2], q.shape[3]) == (*k.shape[:2], k.shape[3]), f"q {q.shape}, k {k.shape}"
    assert q.shape[2] % k.shape[2] == 0, f"kv_heads ({k.shape[2]}) must divide heads ({q.shape[2]})"
    assert q.dtype == k.dtype == v.dtype, f"dtypes {q.dtype}, {k.dtype}, {v.dtype}"


def transport_of(group: dist.ProcessGroup | Transport | None) -> Transport:
    """How this process reaches the other ranks."""
    if group is None:
        return LocalRing(1)
    if isinstance(group, dist.ProcessGroup):
        return ProcessGroupRing(group) if dist.get_world_size(group) > 1 else LocalRing(1)
    return group

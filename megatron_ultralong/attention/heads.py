"""Attention whose ranks exchange tokens for heads, alone or with a ring between groups of them.

DeepSpeed-Ulysses (arXiv 2309.14509): a rank gives away most heads of its tokens and gets the tokens
of all ranks for the heads it keeps, computes these heads as if it were alone, and gives the outputs
back. Nothing is summed over ranks, so nothing is rounded that a single rank would not round; but
there can be no more ranks than key heads. The two-level form (LoongTrain, arXiv 2406.18485) does
this inside groups of neighbours, and between the groups runs the ring over their joint tokens:
Megatron-LM calls the two ``--cp-comm-type a2a`` and ``a2a+p2p``.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ultralong.attention.ring.function import KeptOutput, ring_attention, transport_of
from megatron_ultralong.sequence.assignment import Assignment, zigzag
from megatron_ultralong.sequence.head_exchange import check_heads
from megatron_ultralong.sequence.transport import Transport


class Group(NamedTuple):
    """Neighbours that exchange heads, as one rank of the ring between such groups."""

    chunks: tuple[int, ...]
    """Of the whole sequence, ascending: those of all its ranks."""
    order: tuple[int, ...]
    """Where each of them is in the ranks' own tokens, laid end to end, counted in chunks."""


@lru_cache(maxsize=64)
def groups_of(assignment: Assignment, size: int) -> tuple[Group, ...]:
    """The groups of ``size`` neighbours: zigzag of four ranks in twos, first one, ``(0, 1, 6, 7)``.

    Args:
        assignment: of all context-parallel ranks.
        size: ranks of a group; divides them.
    """
    groups = []
    for first in range(0, assignment.cp_size, size):
        held = [chunk for rank in assignment.chunks[first : first + size] for chunk in rank]
        order = sorted(range(len(held)), key=held.__getitem__)
        groups.append(Group(tuple(held[place] for place in order), tuple(order)))
    return tuple(groups)


def to_heads(x: Tensor, order: tuple[int, ...], transport: Transport) -> Tensor:
    """Own tokens of all heads -> the group's tokens of own heads; the inverse of :func:`to_tokens`.

    Args:
        x: of the ranks here, end to end, [ranks * s_local, b, heads, d].
        order: of the group's chunks.
        transport: between the ranks of the group.

    Returns:
        In the order of the sequence, [ranks * size * s_local, b, heads / size, d].
    """
    size = transport.size
    received = transport.all_to_all(
        [  # to and from, [size, s_local, b, heads / size, d]
            own.unflatten(2, (size, -1)).movedim(2, 0).contiguous()
            for own in x.chunk(len(transport.ranks))
        ]
    )
    return _join([_ordered(its.flatten(0, 1), order) for its in received])


def to_tokens(x: Tensor, order: tuple[int, ...], transport: Transport) -> Tensor:
    """The group's tokens of own heads -> own tokens of all heads; shapes of :func:`to_heads`."""
    size = transport.size
    places = tuple(sorted(range(len(order)), key=order.__getitem__))
    received = transport.all_to_all(
        [_ordered(own, places).unflatten(0, (size, -1)) for own in x.chunk(len(transport.ranks))]
    )
    return _join([its.movedim(0, 2).flatten(2, 3) for its in received])


def _ordered(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """The equal pieces of a tensor's first dimension in another order."""
    pieces = x.chunk(len(order))
    return torch.cat([pieces[place] for place in order])


class _Exchange(torch.autograd.Function):
    """:func:`to_heads` or :func:`to_tokens`; the gradient goes the other way."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, order: tuple[int, ...], transport: Transport, is_to_heads: bool
    ) -> Tensor:
        ctx.its = (order, transport, is_to_heads)
        return (to_heads if is_to_heads else to_tokens)(x, order, transport)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        order, transport, is_to_heads = ctx.its
        back = to_tokens if is_to_heads else to_heads
        return back(gradient, order, transport), None, None, None


def head_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: dist.ProcessGroup | Transport,
    ring: dist.ProcessGroup | Transport | None = None,
    assignment: Assignment | None = None,
    keep: KeptOutput | None = None,
    **options: Any,
) -> Tensor:
    """Causal attention as :func:`ring_attention`, by exchange of heads.

    Args:
        q: queries of this rank, [s_local, b, heads, d]; with local rings, those of all ranks end to
            end, [ring.size * heads.size * s_local, b, heads, d].
        k: keys, [s_local, b, kv_heads, d].
        v: values, as ``k``.
        heads: neighbours that exchange heads: context-parallel rank ``i`` is number ``i % size`` of
            group ``i // size``.
        ring: ranks of the same number in all groups; None: there is one group.
        assignment: which context-parallel rank holds which chunks; zigzag if None.
        keep: where (out, lse) are kept for a recomputation of the surrounding layer.
        **options: of :func:`ring_attention`: documents, scale, back-end between groups, ...

    Returns:
        [s_local, b, heads, d], of the dtype of ``q``.

    Raises:
        InputError: the heads do not divide, or what :func:`ring_attention` raises.
    """
    inner, outer = transport_of(heads), transport_of(ring)
    check_heads(k.shape[2], inner.size, inner.size * outer.size, "this attention")
    assignment = assignment or zigzag(inner.size * outer.size)
    assert assignment.cp_size == inner.size * outer.size, "an assignment to other ranks"
    assert keep is None or len(inner.ranks) == 1, "one rank's output is kept"
    groups = groups_of(assignment, inner.size)
    orders = [groups[rank].order for rank in outer.ranks]
    here = len(inner.ranks)

    def exchanged(x: Tensor) -> list[Tensor]:
        """By own rank in its group, [groups here * size * s_local, b, heads / size, d]."""
        parts = [
            _Exchange.apply(part, order, inner, True).chunk(here)
            for part, order in zip(x.chunk(len(orders)), orders, strict=True)
        ]
        return [_join(list(its)) for its in zip(*parts, strict=True)]

    outs = [
        ring_attention(
            *its,
            group=outer,
            assignment=Assignment(tuple(group.chunks for group in groups)),
            keep=keep,
            **options,
        ).chunk(len(orders))
        for its in zip(exchanged(q), exchanged(k), exchanged(v), strict=True)
    ]
    found = [
        _Exchange.apply(_join(list(its)), order, inner, False)
        for *its, order in zip(*outs, orders, strict=True)
    ]
    return _join(found)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)

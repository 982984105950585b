"""Our attention in the layers Megatron-LM builds, and documents of ``--reset-attention-mask``.

A layer's spec is made in many ways (``--spec``, experts, heterogeneous blocks, layers for further
tokens, a described model). All of them end where ``SelfAttention`` builds the ``core_attention`` of
its submodules. There, and nowhere else, ours takes its place: what a layer is made of otherwise is
the user's.

Megatron-LM's data set makes a mask of S x S in which no token sees what stands before the last
end-of-document token. Our attention takes the boundaries instead. They are read off the tokens of
the row as they come to the model: after every end-of-document token a document begins. Under
context parallelism the ranks tell each other where theirs are.

``--reset-position-ids`` asks for nothing more: a rotary embedding enters the attention by the
difference of two positions, which within a document stays what it was, and a learned one is given
the positions of the data set. ``--eod-mask-loss`` is in the data set's loss mask.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer import attention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from torch import Tensor

from megatron_ultralong.mcore.core_attention import (
    DocumentParams,
    RingCoreAttention,
    RowsOfDocuments,
    document_params,
)
from megatron_ultralong.mcore.cpu import replaced
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.assignment import zigzag_unshard


@contextlib.contextmanager
def ring_attention_in_layers() -> Iterator[None]:
    """Build ``RingCoreAttention`` wherever Megatron-Core would build a dot-product attention."""
    theirs = attention.SelfAttention.__init__

    @functools.wraps(theirs)
    def build(self: Any, config: Any, submodules: Any, *arguments: Any, **keywords: Any) -> None:
        theirs(self, config, with_ring_attention(submodules), *arguments, **keywords)

    with replaced((attention.SelfAttention, "__init__", build)):
        yield


def with_ring_attention(submodules: Any) -> Any:
    """The submodules of a self-attention, with ours as ``core_attention``.

    Raises:
        InputError: it is none of those that ours can stand for.
    """
    found = submodules.core_attention
    kind = getattr(found, "module", found)
    if kind is RingCoreAttention:
        return submodules
    if kind not in _replaced():
        raise InputError(
            f"the core_attention of this model's layers is {getattr(kind, '__name__', kind)}; ours "
            f"takes the place of {' and '.join(one.__name__ for one in _replaced())} alone: leave "
            "out what chooses another (--spec, --use-kitchen-attention), or train without "
            "megatron_ultralong.dropin"
        )
    return dataclasses.replace(submodules, core_attention=RingCoreAttention)


@functools.cache
def _replaced() -> tuple[type, ...]:
    try:
        from megatron.core.extensions.transformer_engine import TEDotProductAttention
    except ImportError:
        return (DotProductAttention,)
    return (DotProductAttention, TEDotProductAttention)


class ResetMask:
    """Gives the forward passes of a model the documents of its rows."""

    def __init__(self, eod: int, cp_group: dist.ProcessGroup) -> None:
        """``eod``: id of the end-of-document token."""
        self._eod = eod
        self._group = cp_group

    def install(self, model: torch.nn.Module) -> None:
        """Be asked before every forward pass."""
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(
        self, model: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a forward pass, ``packed_seq_params`` among them."""
        tokens = arguments[0] if arguments else keywords["input_ids"]
        return arguments, {**keywords, "packed_seq_params": self.documents(tokens)}

    def documents(self, tokens: Tensor) -> DocumentParams:
        """Of rows whose local shards are ``tokens``, int64 [b, s_local]."""
        ends = self._whole_rows(tokens == self._eod)
        rows = tuple(_boundaries(row) for row in ends.cpu())
        first = document_params(rows[0], ends.shape[1])
        if len(rows) == 1:
            return first
        return RowsOfDocuments(**vars(first), cu_seqlens_of_rows=rows)

    def _whole_rows(self, local: Tensor) -> Tensor:
        """[b, s_local] of every rank -> [b, s], in the order of the row."""
        size = self._group.size()
        if size == 1:
            return local
        shard = local.to(torch.uint8).contiguous()
        shards = [torch.empty_like(shard) for _ in range(size)]
        dist.all_gather(shards, shard, group=self._group)
        return zigzag_unshard(shards, dim=1).bool()


def _boundaries(ends: Tensor) -> Tensor:
    """Boundaries of a row from its last tokens of documents: 0 0 1 0 -> 0 3 4, int32."""
    starts = torch.nonzero(ends[:-1]).flatten() + 1
    edges = [starts.new_zeros(1), starts, starts.new_full((1,), len(ends))]
    return torch.cat(edges).to(torch.int32)

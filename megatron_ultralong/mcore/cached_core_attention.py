"""Attention with a memory, where a layer that was built for training has ring attention."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from megatron_ultralong.attention.decoding import cached
from megatron_ultralong.attention.decoding.key_value_cache import KeyValueCache, Placement
from megatron_ultralong.mcore.core_attention import RingCoreAttention


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one forward pass reads; the same for all layers."""

    cache: KeyValueCache
    rows: tuple[int, ...]
    """Rows of the cache, one for each column of the tokens [s, b]."""
    kept: tuple[range | tuple[int, ...], ...]
    """For each of them the new tokens (of this rank's) whose keys stay here."""
    placement: Placement
    is_spread: bool
    """Every rank has its zigzag share of the tokens; else all have the same ones."""
    is_first: bool
    """Nothing was read of these rows before, on any rank."""


class CachedCoreAttention(nn.Module):
    """Stands where a layer has its :class:`RingCoreAttention`, whose settings it takes.

    The model's owner sets ``current`` before each forward pass.
    """

    def __init__(self, ring: RingCoreAttention, layer: int) -> None:
        """``layer``: its number in the cache."""
        super().__init__()
        self.softmax_scale = ring.softmax_scale
        self.cp_group = ring.cp_group
        self.layer = layer
        self.current: Pass | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        """Attention output, [s, b, heads * head_dim], and the new keys kept.

        Args:
            query: [s, b, heads, head_dim].
            key: [s, b, kv_heads, head_dim].
            value: as ``key``.
        """
        now = self.current
        assert now is not None, "a forward pass without its Pass"
        lengths = [now.cache.lengths[row] for row in now.rows]
        is_step = not now.is_spread and len(query) == 1
        if is_step:  # the new key is one more cached one: one kernel call for all
            now.cache.write(self.layer, now.placement, key, value)
            lengths = [length + len(kept) for length, kept in zip(lengths, now.kept, strict=True)]
        its = now.cache.cached(self.layer, now.rows, lengths)
        options: dict[str, Any] = {"group": self.cp_group, "softmax_scale": self.softmax_scale}
        if now.is_spread:
            before = None if now.is_first else its
            out = cached.spread(query, key, value, before, **options)
        else:
            out = cached.shared(query, key, value, its, is_written=is_step, **options)
        if not is_step:
            now.cache.write(self.layer, now.placement, key, value)
        return out.flatten(2)


class GivenPositions(nn.Module):
    """Stands where GPTModel has its rotary embedding, for tokens at any positions."""

    def __init__(self) -> None:
        super().__init__()
        self.angles: Tensor | None = None
        """Radians of the tokens of the next forward pass, [s, b, 1, head_dim]."""

    def get_rotary_seq_len(self, *_: Any, **__: Any) -> int:
        """What Megatron asks before the call; the positions are known without it."""
        return 0

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """The angles."""
        assert self.angles is not None
        return self.angles

"""Attention of one more token of every row, whose shapes are the same at every step.

What differs from step to step lies on the device: where new keys go, and how many count. So a
step can be captured once and replayed. :func:`~megatron_ultralong.attention.decoding.shared` is
the oracle: it knows lengths on the host, and works on what there is.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from megatron_ultralong.attention.decoding import KeyValueCache, join_ranks
from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.kernels.base import RowLengths


class NextTokens:
    """The next token of every row of a cache.

    Every rank writes its keys behind its last ones, and the rank that keeps the token counts them;
    on the others the next token overwrites them. A row that is left out is an idle column: it is
    written as well, and no key of it counts.
    """

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache
        num_rows, self._slots = len(cache.lengths), cache.capacity + 1
        self._places = torch.zeros(num_rows, dtype=torch.int64, device=cache.device)
        """Where the rows' keys go in a layer's storage, [rows * slots, ...]."""
        self._counts = RowLengths.none(num_rows, self._slots, cache.device)

    def place(self, rows: Sequence[int], kept: Sequence[bool]) -> None:
        """The next step is one of ``rows``, of which this rank keeps some tokens.

        The cache's lengths grow with ``advance``, as ever.
        """
        counts = [0] * len(self.cache.lengths)
        for row, is_kept in zip(rows, kept, strict=True):
            counts[row] = self.cache.lengths[row] + is_kept
        assert max(counts) <= self.cache.capacity, "the cache is full"
        places = [row * self._slots + length for row, length in enumerate(self.cache.lengths)]
        self._places.copy_(torch.tensor(places))
        self._counts.lengths.copy_(torch.tensor(counts, dtype=torch.int32))

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        group: dist.ProcessGroup | None,
        softmax_scale: float,
    ) -> torch.Tensor:
        """Output [1, b, heads, d] over cached keys and the new ones, which are kept.

        Args:
            layer: number of the layer.
            q: of all rows of the cache, the same on every rank, [1, b, heads, d].
            k: [1, b, kv_heads, d].
            v: as ``k``.
            group: context-parallel group.
            softmax_scale: factor of the scores.
        """
        storage = self.cache.storage(layer)
        for kept, new in zip(storage, (k, v), strict=True):
            kept.flatten(0, 1).index_copy_(0, self._places, new[0])
        out, lse = block_attention.forward_rows(q, *storage, self._counts, softmax_scale)
        if group is not None and group.size() > 1:
            out = join_ranks(out, lse, group)[0].to(q.dtype)
        return out

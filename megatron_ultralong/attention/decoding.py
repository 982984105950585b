"""Attention of new tokens over cached keys and values, which lie on all ranks of a group.

Keys and values stay where they are, however many there are; queries and results travel. Each rank
computes attention over its own keys, and the partial results join by their log-sum-exp
(:mod:`~megatron_ultralong.attention.kernels.base`).

Three forms: :func:`shared` where every rank has the same few queries (a step of decoding),
:class:`NextTokens` for steps in shapes that never change, and :func:`spread` where each rank has
its zigzag share of a chunk (reading a prompt).

A *spread* chunk of a row is shared by zigzag, as in training, and every rank keeps the tokens it
worked on. Tokens that all ranks work on together (*shared*: the end of a prompt and everything
after it) go round robin: position ``p`` to rank ``p % cp_size``. Either way the ranks hold as many
tokens each, except for one. Attention over them has no mask, so their order does not matter.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.attention.kernels import base, block_attention
from megatron_ultralong.attention.kernels.base import Inputs, Kernel, Result, RowLengths, merge_
from megatron_ultralong.attention.ring.function import KeptOutput, ring_attention


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where new tokens go: ``storage[rows, slots] = new[tokens, columns]``, int64 [n] each."""

    rows: Tensor
    slots: Tensor
    tokens: Tensor
    columns: Tensor


@dataclasses.dataclass(frozen=True)
class CachedRows:
    """Some rows of one layer's storage, and how many of their tokens count."""

    keys: Tensor
    """[rows of the storage, slots, kv_heads, d]."""
    values: Tensor
    """As ``keys``."""
    rows: tuple[int, ...]
    """Numbers of the rows, in the order of the queries' columns."""
    lengths: tuple[int, ...]
    """Tokens of each on this rank."""

    def runs(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Columns that one kernel call can take, with keys and values [t, b, kv_heads, d].

        Neighbours of one length go together: rows 3, 4 and 6 of lengths 9, 9, 9 are 3:5 and 6:7.
        """
        start = 0
        for stop in range(1, len(self.rows) + 1):
            if stop < len(self.rows) and (
                self.lengths[stop] == self.lengths[start]
                and self.rows[stop] == self.rows[start] + stop - start
            ):
                continue
            rows = slice(self.rows[start], self.rows[start] + stop - start)
            tokens = slice(0, self.lengths[start])
            yield (
                slice(start, stop),
                self.keys[rows, tokens].transpose(0, 1),
                self.values[rows, tokens].transpose(0, 1),
            )
            start = stop


class KeyValueCache:
    """Room for the keys and values of ``num_rows`` rows in every layer of this rank.

    Args:
        num_layers: layers of this pipeline stage.
        num_rows: rows that are continued together.
        capacity: tokens of a row that this rank keeps, see :func:`local_capacity`.
        kv_heads: of this tensor-parallel rank.
        head_dim: size of a head.
        dtype: of keys and values.
        device: where they lie.
    """

    def __init__(
        self,
        num_layers: int,
        num_rows: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # One slot more, for a token that another rank keeps: see :class:`NextTokens`.
        shape = (num_rows, capacity + 1, kv_heads, head_dim)
        self.capacity = capacity
        self._layers = [
            tuple(torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
            for _ in range(num_layers)
        ]
        self.device = device
        self.lengths = [0] * num_rows
        """Tokens of every row on this rank; the same in all layers."""

    def place(self, rows: Sequence[int], kept: Sequence[Sequence[int]]) -> Placement:
        """Slots behind the rows' last tokens for the new tokens ``kept[column]`` of each.

        The lengths grow with :meth:`advance` alone, when all layers have written.
        """
        entries = [
            (row, self.lengths[row] + n, token, column)
            for column, (row, tokens) in enumerate(zip(rows, kept, strict=True))
            for n, token in enumerate(tokens)
        ]
        assert all(slot < self.capacity for _, slot, _, _ in entries), "the cache is full"
        table = torch.tensor(entries, dtype=torch.int64).reshape(-1, 4).t().to(self.device)
        return Placement(*table.unbind())

    def write(self, layer: int, placement: Placement, k_SBHD: Tensor, v_SBHD: Tensor) -> None:
        """Keep new keys and values, [s, b, kv_heads, d], of one layer."""
        for storage, new in zip(self._layers[layer], (k_SBHD, v_SBHD), strict=True):
            storage[placement.rows, placement.slots] = new[placement.tokens, placement.columns]

    def advance(self, rows: Sequence[int], kept: Sequence[Sequence[int]]) -> None:
        """Count what was placed."""
        for row, tokens in zip(rows, kept, strict=True):
            self.lengths[row] += len(tokens)

    def storage(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, [rows, capacity + 1, kv_heads, d]."""
        keys, values = self._layers[layer]
        return keys, values

    def cached(self, layer: int, rows: Sequence[int], lengths: Sequence[int]) -> CachedRows:
        """``lengths[i]`` first tokens of ``rows[i]`` in one layer."""
        return CachedRows(*self.storage(layer), tuple(rows), tuple(lengths))

    @property
    def num_bytes(self) -> int:
        """Memory of all layers."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)


def spread_length(prompt_length: int, cp_size: int) -> int:
    """Tokens of a prompt that zigzag can share, at least one being left: ``13, 2 -> 12``."""
    unit = 1 if cp_size == 1 else 2 * cp_size
    return (prompt_length - 1) // unit * unit


def local_capacity(prompt_length: int, num_new_tokens: int, cp_size: int) -> int:
    """Most tokens of a row that one rank keeps: ``13, 4, 2 -> 6 + 3``."""
    spread = spread_length(prompt_length, cp_size)
    return spread // cp_size + -(-(prompt_length + num_new_tokens - spread) // cp_size)


def shared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached: CachedRows,
    *,
    group: dist.ProcessGroup | None,
    softmax_scale: float,
    is_written: bool,
    kernel: str | None = None,
) -> Tensor:
    """Output [s, b, heads, d] of queries that every rank has, over cached and new keys.

    Args:
        q: the same on every rank, [s, b, heads, d].
        k: new keys, [s, b, kv_heads, d]; causal among themselves.
        v: new values, as ``k``.
        cached: keys of this rank.
        group: context-parallel group.
        softmax_scale: factor of the scores.
        is_written: the new keys are among the cached ones of some rank, which is right for s = 1
            alone; else they are attended to here.
        kernel: name of the kernel, for tests.
    """
    assert not is_written or len(q) == 1, "cached keys have no mask"
    chosen = block_attention.resolve(q.dtype, q.shape[-1], q.device, kernel)
    out, lse = join_ranks(*_over_cached(chosen, q, cached, softmax_scale), group)
    if not is_written:
        part, part_lse = block_attention.forward(
            chosen, Inputs(q, k, v, (0, len(q)), softmax_scale)
        )
        merge_(out, lse, part, part_lse)
    return out.to(q.dtype)


def spread(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached: CachedRows | None,
    *,
    group: dist.ProcessGroup | None,
    softmax_scale: float,
    kernel: str | None = None,
) -> Tensor:
    """Output [s_local, b, heads, d] of a chunk's zigzag shards, over cached and new keys.

    Inside the chunk it is ring attention. Over the cached keys the queries of all ranks are
    gathered, each rank attends over its own keys, and results go back to the rank of the query:
    as much work on every rank, and no key travels.

    Args:
        q: queries of this rank, [s_local, b, heads, d].
        k: new keys of this rank, [s_local, b, kv_heads, d].
        v: new values of this rank.
        cached: keys of this rank; None: the chunk is the first one.
        group: context-parallel group.
        softmax_scale: factor of the scores.
        kernel: name of the kernel, for tests.
    """
    keep = KeptOutput()
    out = ring_attention(
        q, k, v, group=group, softmax_scale=softmax_scale, kernel=kernel, keep=keep
    )
    if cached is None:
        return out
    assert keep.out_lse is not None
    chosen = block_attention.resolve(q.dtype, q.shape[-1], q.device, kernel)
    dtype = base.accumulation_dtype(q.dtype)
    sum_SBHD, lse_BHS = out.to(dtype), keep.out_lse[1].clone()
    size = 1 if group is None else group.size()
    every_q = q
    if group is not None and size > 1:
        every_q = q.new_empty((size * len(q), *q.shape[1:]))
        dist.all_gather_into_tensor(every_q, q.contiguous(), group=group)
    part, part_lse = _over_cached(chosen, every_q, cached, softmax_scale)
    del every_q
    lse_SBH = part_lse.permute(2, 0, 1).contiguous()
    if group is not None and size > 1:
        part, lse_SBH = _return(part, group), _return(lse_SBH, group)
    for its_part, its_lse in zip(part.chunk(size), lse_SBH.chunk(size), strict=True):
        merge_(sum_SBHD, lse_BHS, its_part, its_lse.permute(1, 2, 0))
    return sum_SBHD.to(q.dtype)


def _over_cached(kernel: Kernel, q: Tensor, cached: CachedRows, scale: float) -> Result:
    """Output [s, b, heads, d] and log-sum-exp [b, heads, s] over this rank's keys alone."""
    results = []
    for columns, keys, values in cached.runs():
        inputs = Inputs(q[:, columns], keys, values, None, scale)
        results.append(block_attention.forward(kernel, inputs))
    if len(results) == 1:
        return results[0]
    outs, lses = zip(*results, strict=True)
    return torch.cat(outs, dim=1), torch.cat(lses, dim=0)


def join_ranks(out: Tensor, lse: Tensor, group: dist.ProcessGroup | None) -> Result:
    """All ranks' partial results of the same queries, joined; float32 (float64) on the wire too."""
    dtype = base.accumulation_dtype(out.dtype)
    if group is None or group.size() == 1:
        return out.to(dtype), lse.to(dtype)
    # [s, b, heads, d + 1]: one message instead of two
    local = torch.cat((out.to(dtype), lse.to(dtype).permute(2, 0, 1).unsqueeze(-1)), dim=-1)
    every = local.new_empty((group.size(), *local.shape))
    dist.all_gather_into_tensor(every.flatten(0, 1), local.contiguous(), group=group)
    return base.merge_all(every[..., :-1], every[..., -1].permute(0, 2, 3, 1))


def _return(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Results for this rank's queries, from all ranks in their order; shape as ``parts``."""
    local = torch.empty_like(parts, memory_format=torch.contiguous_format)
    dist.all_to_all_single(local, parts.contiguous(), group=group)
    return local


class NextTokens:
    """Attention of one more token of every row of a cache, in the same shapes at every step.

    What differs from step to step lies on the device: where new keys go, and how many count. So a
    step can be captured once and replayed. :func:`shared` is the oracle: it knows lengths on the
    host, and works on what there is.

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
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        group: dist.ProcessGroup | None,
        softmax_scale: float,
    ) -> Tensor:
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

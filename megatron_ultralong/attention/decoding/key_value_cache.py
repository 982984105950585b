"""Keys and values of tokens that were read before, on one rank of a context-parallel group.

A *spread* chunk of a row is shared by zigzag, as in training, and every rank keeps the tokens it
worked on. Tokens that all ranks work on together (*shared*: the end of a prompt and everything
after it) go round robin: position ``p`` to rank ``p % cp_size``. Either way the ranks hold as many
tokens each, but for one. Attention over them has no mask, so their order does not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


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
    """[rows of the storage, capacity, kv_heads, d]."""
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
        shape = (num_rows, capacity, kv_heads, head_dim)
        self.capacity = capacity
        self._layers = [
            tuple(torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
            for _ in range(num_layers)
        ]
        self._device = device
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
        table = torch.tensor(entries, dtype=torch.int64).reshape(-1, 4).t().to(self._device)
        return Placement(*table.unbind())

    def write(self, layer: int, placement: Placement, k_SBHD: Tensor, v_SBHD: Tensor) -> None:
        """Keep new keys and values, [s, b, kv_heads, d], of one layer."""
        for storage, new in zip(self._layers[layer], (k_SBHD, v_SBHD), strict=True):
            storage[placement.rows, placement.slots] = new[placement.tokens, placement.columns]

    def advance(self, rows: Sequence[int], kept: Sequence[Sequence[int]]) -> None:
        """Count what was placed."""
        for row, tokens in zip(rows, kept, strict=True):
            self.lengths[row] += len(tokens)

    def cached(self, layer: int, rows: Sequence[int], lengths: Sequence[int]) -> CachedRows:
        """``lengths[i]`` first tokens of ``rows[i]`` in one layer."""
        keys, values = self._layers[layer]
        return CachedRows(keys, values, tuple(rows), tuple(lengths))

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

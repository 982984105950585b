"""Attention of Transformer Engine with its context parallelism, as contestants.

Written for 2.20: ``DotProductAttention``, ``_attention_backends``. Documents are of its ``thd``
format, in which each is padded to a multiple of twice the ranks, and every rank holds two pieces of
each. Padding takes part like tokens (it is at the end of a document, so that no token sees it):
then all of its kernels can serve.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.sequence.assignment import zigzag

from .contest import PADDING, Contestant, Task, UnableError

EXCHANGES = ("p2p", "all_gather", "a2a", "a2a+p2p")
ENVIRONMENT = {
    "same": {"NVTE_FLASH_ATTN": "0", "NVTE_FUSED_ATTN": "1", "NVTE_UNFUSED_ATTN": "0"},
    "best": {"NVTE_FLASH_ATTN": "1", "NVTE_FUSED_ATTN": "1", "NVTE_UNFUSED_ATTN": "0"},
}


@lru_cache(maxsize=4)
def padded(edges: tuple[int, ...], multiple: int) -> tuple[int, ...]:
    """Boundaries of documents that are padded: ``(0, 3, 8), 4`` -> ``(0, 4, 12)``."""
    found = [0]
    for first, last in itertools.pairwise(edges):
        found.append(found[-1] + -(-(last - first) // multiple) * multiple)
    return tuple(found)


@lru_cache(maxsize=4)
def padded_positions(edges: tuple[int, ...], size: int, rank: int) -> Tensor:
    """Positions of a rank's tokens, which has two of the pieces of every padded document.

    ``(0, 3, 8), 1, 0`` -> ``[0, 1, 2, PADDING, 3, 4, 5, 6, 7, PADDING]``.
    """
    parts = []
    cu_padded = padded(edges, 2 * size)
    for number, first in enumerate(edges[:-1]):
        length = cu_padded[number + 1] - cu_padded[number]
        inside = zigzag(size).positions(rank, length)
        is_token = inside < edges[number + 1] - first
        parts.append(torch.where(is_token, inside + first, PADDING))
    return torch.cat(parts)


class TransformerEngine(Contestant):
    """``DotProductAttention`` with one ``cp_comm_type``."""

    def __init__(self, kernel: str, exchange: str) -> None:
        super().__init__(kernel)
        self.name = f"Transformer Engine {exchange}"
        self._exchange = exchange
        self._chosen: dict[Any, dict[str, Any]] = {}
        """What it remembers of its choice of a kernel, by row: made once, as in training."""
        self._cu_padded: dict[int, tuple[Tensor, int]] = {}
        """Boundaries of padded documents and the longest of them, by length of the row."""
        self._stream: Any = None

    def positions(self, task: Task) -> Tensor:
        """See :class:`Contestant`."""
        size, rank = task.groups.size, task.groups.rank
        if task.edges is None:
            return zigzag(size).positions(rank, task.length)
        return padded_positions(tuple(task.edges), size, rank)

    @contextmanager
    def running(self, task: Task) -> Iterator[None]:
        """See :class:`Contestant`: its environment, and the choice of a kernel for this row."""
        from transformer_engine.pytorch.attention.dot_product_attention import _attention_backends

        before = {name: os.environ.get(name) for name in ENVIRONMENT[self.kernel]}
        os.environ.update(ENVIRONMENT[self.kernel])
        key = (task.length, task.edges is None)
        _attention_backends["backend_selection_requires_update"] = True
        _attention_backends.update(self._chosen.get(key, {}))
        try:
            yield
            self._chosen[key] = dict(_attention_backends)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def check(self, task: Task) -> None:
        """See :class:`Contestant`."""
        if importlib.util.find_spec("transformer_engine") is None:
            raise UnableError("not installed")
        if task.groups.device.type != "cuda":
            raise UnableError("it computes on CUDA devices alone")
        if self._exchange == "a2a+p2p":
            task.groups.levels()
        importlib.import_module("transformer_engine.pytorch")

    def attention(self, task: Task, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Contestant`."""
        module, groups = self._module(task), task.groups
        heads = [*groups.levels()] if self._exchange == "a2a+p2p" else groups.world
        self._stream = self._stream or torch.cuda.Stream()
        module.set_context_parallel_group(
            heads, list(range(groups.size)), self._stream, self._exchange
        )
        if task.edges is None:
            out: Tensor = module(q, k, v)
            return out.view(q.shape)
        cu_seqlens, longest = self._documents(task)
        out = module(
            *(x.squeeze(1) for x in (q, k, v)),
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            cu_seqlens_q_padded=cu_seqlens,
            cu_seqlens_kv_padded=cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            pad_between_seqs=False,
        )
        return out.view(q.shape)

    def _documents(self, task: Task) -> tuple[Tensor, int]:
        """Boundaries on the device, and the longest document, rounded as it rounds by itself."""
        if task.length not in self._cu_padded:
            edges = padded(tuple(task.edges or ()), 2 * task.groups.size)
            cu_seqlens = torch.tensor(edges, dtype=torch.int32, device=task.groups.device)
            longest = max(b - a for a, b in itertools.pairwise(edges))
            self._cu_padded[task.length] = (cu_seqlens, -(-longest // 64) * 64)
        return self._cu_padded[task.length]

    def _module(self, task: Task) -> Any:
        its = task.arguments
        return _module(its.heads, its.kv_heads, its.head_dim, task.edges is not None)

    def kernel_name(self, task: Task) -> str:
        """See :class:`Contestant`."""
        chosen = self._chosen.get((task.length, task.edges is None), {})
        if chosen.get("use_flash_attention"):
            return f"FlashAttention {chosen['flash_attention_backend']}"
        return "cudnn" if chosen.get("use_fused_attention") else "unknown"


@lru_cache(maxsize=2)
def _module(heads: int, kv_heads: int, head_dim: int, has_documents: bool) -> Any:
    from transformer_engine.pytorch import DotProductAttention

    return DotProductAttention(
        heads,
        head_dim,
        num_gqa_groups=kv_heads,
        attention_dropout=0.0,
        qkv_format="thd" if has_documents else "sbhd",
        attn_mask_type="padding_causal" if has_documents else "causal",
    )


def transformer_engine_contestants(kernel: str) -> list[Contestant]:
    """One for each ``cp_comm_type``."""
    return [TransformerEngine(kernel, exchange) for exchange in EXCHANGES]

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
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.program.ranks import variables
from megatron_ultralong.sequence.assignment import zigzag

from .contest import PADDING, Contestant, Task, UnableError
from .logged_reasons import LoggedReasons
from .torch_libraries import cudnn_folders, keep_one_cudnn

EXCHANGES = ("p2p", "all_gather", "a2a", "a2a+p2p")
SWITCHES = ("NVTE_FLASH_ATTN", "NVTE_FLASH_ATTN_V2", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
IMPLEMENTATIONS = {  # what the switches say
    "cuDNN": "0010",
    "FlashAttention 3 or 4": "1000",
    "cuDNN or any FlashAttention": "1110",  # it takes cuDNN first on Hopper
}
KERNELS = {
    "same": ("cuDNN",),
    "best": ("FlashAttention 3 or 4", "cuDNN or any FlashAttention"),  # on Hopper, fastest first
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

    def __init__(self, kernel: str, exchange: str, implementation: str) -> None:
        super().__init__(kernel)
        self.name = f"Transformer Engine {exchange}"
        self._exchange = exchange
        self._implementation = implementation
        self._reasons = LoggedReasons("Disabling ", but=" due to NVTE_")
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

        switches = dict(zip(SWITCHES, IMPLEMENTATIONS[self._implementation], strict=True))
        key = (task.length, task.edges is None)
        _attention_backends["backend_selection_requires_update"] = True
        _attention_backends.update(self._chosen.get(key, {}))
        with variables(switches), _told(self._reasons):
            try:
                yield
            except ValueError as error:
                if "backend is available" not in str(error):
                    raise
                raise UnableError(self._refusal()) from None
            self._chosen[key] = dict(_attention_backends)
            self._reasons.taken()

    def _refusal(self) -> str:
        """Why it has no kernel, as it has logged."""
        from transformer_engine.pytorch.utils import get_cudnn_version

        said = self._reasons.taken() or "it has logged no reason"
        version, folders = ".".join(map(str, get_cudnn_version())), cudnn_folders()
        where = ", ".join(map(str, folders)) or "no folder"
        return f"no kernel for {self._implementation} (cuDNN {version} of {where}): {said}"

    def alternatives(self, task: Task) -> list[Contestant]:
        """See :class:`Contestant`."""
        kernels = KERNELS[self.kernel]
        return [TransformerEngine(self.kernel, self._exchange, its) for its in kernels]

    def check(self, task: Task) -> None:
        """See :class:`Contestant`."""
        if importlib.util.find_spec("transformer_engine") is None:
            raise UnableError("not installed")
        if task.groups.device.type != "cuda":
            raise UnableError("it computes on CUDA devices alone")
        if self._exchange == "a2a+p2p":
            task.groups.levels()
        keep_one_cudnn()
        with variables({"NVTE_FRAMEWORK": "pytorch"}), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it was not built for
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


@contextmanager
def _told(reasons: LoggedReasons) -> Iterator[None]:
    """It logs why it refuses a kernel, and to nobody else."""
    from transformer_engine.pytorch.attention.dot_product_attention.utils import AttentionLogging

    logger, level = logging.getLogger("DotProductAttention"), AttentionLogging._log_level
    handlers, propagates = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [reasons], False
    AttentionLogging._log_level = logging.DEBUG  # it sets that of its logger at every choice
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        AttentionLogging._log_level = level


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
    first = KERNELS[kernel][0]
    return [TransformerEngine(kernel, exchange, first) for exchange in EXCHANGES]

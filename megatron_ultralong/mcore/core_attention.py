"""Ring attention as Megatron's ``core_attention``, with and without a memory."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_ultralong.attention import KeptOutput, decoding, heads, ring_attention
from megatron_ultralong.attention.decoding import KeyValueCache, NextTokens, Placement
from megatron_ultralong.attention.ring.function import Backend
from megatron_ultralong.mcore.projection import CosSin
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.assignment import Assignment
from megatron_ultralong.sequence.head_exchange import check_heads

CP_COMM_TYPES = (None, "p2p", "all_gather", "a2a", "a2a+p2p")
"""What ranks may exchange; None is p2p."""


def refuse_mask(attention_mask: torch.Tensor | None) -> None:
    """Check that no mask of S x S came with the batch.

    Raises:
        InputError: one did; with how to leave it out.
    """
    if attention_mask is not None:
        raise InputError(
            f"an attention_mask of shape {tuple(attention_mask.shape)} came with the batch; our "
            "attention takes none, since it grows with the square of the row and says no more than "
            "'causal': pass --no-create-attention-mask-in-dataloader, or None from your "
            "forward_step; documents are kept apart with --ultralong-document-mask block"
        )


class RingCoreAttention(MegatronModule):
    """Causal attention over a row that is spread over the context-parallel group.

    Documents arrive as ``PackedSeqParams(qkv_format="sbhd", cu_seqlens_q=...)``, which Megatron's
    ``Attention`` hands through; without them every token attends to all before it. Rows whose
    documents differ arrive as :class:`RowsOfDocuments`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any = None,
        attention_type: str = "self",
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self", f"only self attention, not {attention_type}"
        if config.attention_dropout:
            raise InputError(
                f"attention_dropout is {config.attention_dropout}, and this project's "
                "attention has no dropout: pass --attention-dropout 0 (the default is 0.1)"
            )
        self.layer_number = layer_number
        if cp_comm_type not in CP_COMM_TYPES:
            raise InputError(
                f"--cp-comm-type {cp_comm_type!r} is not known; known: "
                f"{', '.join(kind for kind in CP_COMM_TYPES if kind)}"
            )
        self.backend: Backend = "all_gather" if cp_comm_type == "all_gather" else "p2p"
        self.deterministic = bool(config.deterministic_mode)
        head_dim = config.kv_channels
        self.softmax_scale = 1.0 / math.sqrt(head_dim) if softmax_scale is None else softmax_scale
        if pg_collection is not None:
            self.cp_group = pg_collection.cp
        else:
            self.cp_group = parallel_state.get_context_parallel_group(check_initialized=False)
        self.head_group: dist.ProcessGroup | None = None
        """Ranks that exchange heads; None: no rank does."""
        self.ring_group = self.cp_group
        if cp_comm_type in ("a2a", "a2a+p2p") and self.cp_group and self.cp_group.size() > 1:
            self.head_group, self.ring_group = self.cp_group, None
            if cp_comm_type == "a2a+p2p":
                self.head_group, self.ring_group = _two_levels(pg_collection)
            check_heads(
                config.num_query_groups // config.tensor_model_parallel_size,
                self.head_group.size(),
                self.cp_group.size(),
                f"--cp-comm-type {cp_comm_type}",
            )

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        keep: KeptOutput | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Attention output, shape [s_local, b, heads * head_dim].

        Args:
            query: [s_local, b, heads, head_dim], the zigzag shard of this rank.
            key: [s_local, b, kv_heads, head_dim].
            value: as ``key``.
            attention_mask: must be None; the mask is causal, within documents.
            attn_mask_type: ignored; always causal.
            attention_bias: must be None.
            packed_seq_params: documents of the whole row.
            keep: where (out, lse) are left, or taken from by a recomputation of the layer.

        Raises:
            InputError: a mask, or documents laid end to end, were given.
        """
        refuse_mask(attention_mask)
        assert attention_bias is None, "attention bias is not supported"
        edges_of_rows: Sequence[Tensor | None] = (None,)
        if packed_seq_params is not None:
            if packed_seq_params.qkv_format != "sbhd":
                raise InputError(
                    f"documents came with qkv_format {packed_seq_params.qkv_format!r}, laid end to "
                    "end without a row; our attention takes rows [s, b, ...] and their boundaries: "
                    "leave --sft and --dataloader-inter-document-masking out, and keep documents "
                    "apart with --reset-attention-mask, or --ultralong-document-mask block over "
                    "rows of `ultralong prepare`"
                )
            edges_of_rows = (packed_seq_params.cu_seqlens_q,)
        rows = [(query, key, value)]
        if isinstance(packed_seq_params, RowsOfDocuments):
            assert keep is None, "one row's output is kept"
            edges_of_rows = packed_seq_params.cu_seqlens_of_rows
            parts = (x.chunk(len(edges_of_rows), dim=1) for x in (query, key, value))
            rows = list(zip(*parts, strict=True))
        attention: Callable[..., Tensor] = functools.partial(ring_attention, group=self.ring_group)
        if self.head_group is not None:
            attention = functools.partial(
                heads.head_attention, heads=self.head_group, ring=self.ring_group
            )
        outs_SBHD = [
            attention(
                *row,
                cu_seqlens=cu_seqlens,
                softmax_scale=self.softmax_scale,
                assignment=getattr(packed_seq_params, "assignment", None),
                backend=self.backend,
                deterministic=self.deterministic,
                keep=keep,
            )
            for row, cu_seqlens in zip(rows, edges_of_rows, strict=True)
        ]
        return (outs_SBHD[0] if len(rows) == 1 else torch.cat(outs_SBHD, dim=1)).flatten(2)


def _two_levels(pg_collection: Any) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Ranks that exchange heads, and ranks of the ring between, as Megatron-Core names them.

    Raises:
        InputError: they were not made.
    """
    groups = getattr(pg_collection, "hcp", None)
    if groups is None:
        groups = parallel_state.get_hierarchical_context_parallel_groups(check_initialized=False)
    if groups is None or len(groups) != 2:
        raise InputError(
            "--cp-comm-type a2a+p2p needs two levels of ranks, and there are "
            f"{len(groups or ())}: pass --hierarchical-context-parallel-sizes A B, where A ranks "
            "exchange heads, B such groups are a ring, and A x B is --context-parallel-size"
        )
    return groups[0], groups[1]


@dataclasses.dataclass
class DocumentParams(PackedSeqParams):
    """The documents of one row, and which rank holds which chunks of it (zigzag if None)."""

    assignment: Assignment | None = None


@dataclasses.dataclass
class RowsOfDocuments(DocumentParams):
    """The documents of several rows, which differ from row to row."""

    cu_seqlens_of_rows: tuple[torch.Tensor, ...] = ()
    """Boundaries over the whole row, int32 [num_documents + 1], for every row."""


def document_params(
    cu_seqlens: torch.Tensor, seq_length: int, assignment: Assignment | None = None
) -> DocumentParams:
    """The documents of one row, in the form that Megatron carries to ``core_attention``.

    Args:
        cu_seqlens: boundaries over the whole row, int32 [num_documents + 1].
        seq_length: tokens of the whole row.
        assignment: chunks of the context-parallel ranks.
    """
    return DocumentParams(
        qkv_format="sbhd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=seq_length,
        max_seqlen_kv=seq_length,
        assignment=assignment,
    )


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

    The model's owner sets ``current`` before each forward pass; without it the ring works as ever.
    """

    def __init__(self, ring: RingCoreAttention, layer: int) -> None:
        """``layer``: its number in the cache."""
        super().__init__()
        self.ring = ring
        self.softmax_scale = ring.softmax_scale
        self.cp_group = ring.cp_group
        self.layer = layer
        self.current: Pass | NextTokens | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **others: Any) -> Tensor:
        """Attention output, [s, b, heads * head_dim], and the new keys kept.

        Args:
            query: [s, b, heads, head_dim].
            key: [s, b, kv_heads, head_dim].
            value: as ``key``.
            others: what the ring takes.
        """
        now = self.current
        if now is None:
            output: Tensor = self.ring(query, key, value, **others)
            return output
        options: dict[str, Any] = {"group": self.cp_group, "softmax_scale": self.softmax_scale}
        if isinstance(now, NextTokens):
            return now.attend(self.layer, query, key, value, **options).flatten(2)
        lengths = [now.cache.lengths[row] for row in now.rows]
        is_step = not now.is_spread and len(query) == 1
        if is_step:  # the new key is one more cached one: one kernel call for all
            now.cache.write(self.layer, now.placement, key, value)
            lengths = [length + len(kept) for length, kept in zip(lengths, now.kept, strict=True)]
        its = now.cache.cached(self.layer, now.rows, lengths)
        if now.is_spread:
            before = None if now.is_first else its
            out = decoding.spread(query, key, value, before, **options)
        else:
            out = decoding.shared(query, key, value, its, is_written=is_step, **options)
        if not is_step:
            now.cache.write(self.layer, now.placement, key, value)
        return out.flatten(2)


class GivenPositions(nn.Module):
    """Stands where GPTModel has its rotary embedding, for tokens at any positions."""

    def __init__(self) -> None:
        super().__init__()
        self.angles: Tensor | CosSin | None = None
        """Radians of the tokens of the next forward pass, [s, b, 1, head_dim]; or what is made of
        them."""

    def get_rotary_seq_len(self, *_: Any, **__: Any) -> int:
        """What Megatron asks before the call; the positions are known without it."""
        return 0

    def forward(self, *_: Any, **__: Any) -> Tensor | CosSin:
        """The angles."""
        assert self.angles is not None
        return self.angles

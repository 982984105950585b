"""Bytes that the layers of a rank keep from forward to backward, and where they fit."""

from __future__ import annotations

import dataclasses

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.model.shape import ModelConfig

LSE_BYTES = 4
"""Of one log-sum-exp; float32 beside bf16 and float32 activations."""


@dataclasses.dataclass(frozen=True)
class KeptTensors:
    """Bytes of each tensor that one layer keeps of one micro-batch."""

    hidden: int
    """Its input, [s, b, h]; under sequence parallelism a tensor-parallel rank's run of it."""
    out: int
    """Output of its attention, [s, b, heads, d]; 0 if that is not kept."""
    lse: int
    """Log-sum-exp of its attention, [b, heads, s]; 0 if that is not kept."""

    @property
    def on_device(self) -> int:
        """All of them."""
        return self.hidden + self.out + self.lse

    @property
    def on_host(self) -> int:
        """All of them in pinned buffers."""
        return sum(pinned_bytes(size) for size in dataclasses.astuple(self) if size)


def pinned_bytes(size: int) -> int:
    """Bytes of pinned host memory behind a buffer: torch rounds up to a power of two."""
    return 1 << (size - 1).bit_length()


def kept_tensors(
    model: ModelConfig,
    parallel: ParallelConfig,
    *,
    seq_length: int,
    micro_batch_size: int,
    bytes_per_element: int,
    keep_attention: bool,
) -> KeptTensors:
    """What a recomputed layer keeps of one micro-batch on one rank.

    Args:
        model: shape of the model.
        parallel: how it is spread over ranks.
        seq_length: tokens of a whole row.
        micro_batch_size: rows.
        bytes_per_element: of activations; 2 for bf16.
        keep_attention: whether attention's output is kept.
    """
    tokens = seq_length // parallel.context_parallel_size * micro_batch_size
    heads = model.num_attention_heads // parallel.tensor_model_parallel_size
    runs = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    return KeptTensors(
        hidden=tokens // runs * model.hidden_size * bytes_per_element,
        out=tokens * heads * model.kv_channels * bytes_per_element if keep_attention else 0,
        lse=tokens * heads * LSE_BYTES if keep_attention else 0,
    )

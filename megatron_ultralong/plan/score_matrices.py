"""What attention holds where no fused kernel serves: whole matrices of scores."""

from __future__ import annotations

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig

GIB = 2**30
HELD_AT_ONCE = 2
"""Matrices together at least: the masked one is made beside the one that it comes from."""


def score_matrix_bytes(config: TrainingConfig, model: ModelConfig) -> int:
    """Bytes of one float32 matrix [b, heads, s, s] of a rank's block: the longest it may meet.

    With ``document_mask`` block that is one document over the whole block.
    """
    parallel = config.parallel
    heads = model.num_attention_heads // parallel.tensor_model_parallel_size
    block = config.data.seq_length // parallel.context_parallel_size
    return 4 * config.micro_batch_size * heads * block**2


def score_matrix_note(config: TrainingConfig, model: ModelConfig, why: str) -> str:
    """A line about it: ``why`` no other kernel serves."""
    parallel = config.parallel
    heads = model.num_attention_heads // parallel.tensor_model_parallel_size
    block = config.data.seq_length // parallel.context_parallel_size
    upto = "up to " if config.data.document_mask == "block" else ""
    shape = f"{config.micro_batch_size} x {heads} heads x {upto}{block:,} x {block:,}"
    size = f"{score_matrix_bytes(config, model) / GIB:,.2f} GiB"
    return (
        f"warning: {why} has no fused attention kernel on a GPU: plain formulas hold matrices of "
        f"scores, {shape} in float32 = {size} each, at least {HELD_AT_ONCE} at once"
    )


def fp32_notes(config: TrainingConfig, model: ModelConfig) -> list[str]:
    """The line that fp32 calls for on every GPU, before one is there to be asked."""
    return (
        [score_matrix_note(config, model, "precision 'fp32'")] if config.precision == "fp32" else []
    )

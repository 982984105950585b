"""Exact causal attention over a sequence shared by many ranks, with or without documents."""

from megatron_ultralong.attention.ring.function import KeptOutput, ring_attention

__all__ = ["KeptOutput", "ring_attention"]

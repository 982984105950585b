"""The sequence over the ranks of a context-parallel group: who holds what, and how it travels."""

from megatron_ultralong.context_parallel.assignment import (
    Assignment,
    balanced,
    chunk_areas,
    zigzag,
    zigzag_positions,
    zigzag_shard,
    zigzag_unshard,
)
from megatron_ultralong.context_parallel.transport import (
    LocalRing,
    ProcessGroupRing,
    Transfer,
    Transport,
)

__all__ = [
    "Assignment",
    "LocalRing",
    "ProcessGroupRing",
    "Transfer",
    "Transport",
    "balanced",
    "chunk_areas",
    "zigzag",
    "zigzag_positions",
    "zigzag_shard",
    "zigzag_unshard",
]

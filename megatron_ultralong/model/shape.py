"""Shape of a model."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranges import Range, check_ranges, shown

MOST_POSITIONS: Final = 2**40
"""Of a model; rows have fewer."""
MOST_IDS: Final = 2**27
"""Of a vocabulary."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama model, in Megatron-LM's words; read from a checkpoint, never typed.

    The ranges are far above any model: what is larger is none, and would take the memory or the
    time of the machine before its weights are found missing.
    """

    num_layers: Annotated[int, Range(1, 4096)]
    hidden_size: Annotated[int, Range(1, 2**20)]
    ffn_hidden_size: Annotated[int, Range(1, 2**23)]
    num_attention_heads: Annotated[int, Range(1, 2**16)]
    num_query_groups: Annotated[int, Range(1, 2**16)]
    """Key and value heads."""
    kv_channels: Annotated[int, Range(2, 2**14)]
    """Size of one head."""
    vocab_size: Annotated[int, Range(1, MOST_IDS)]
    """Rows of the embedding, not padded."""
    norm_epsilon: Annotated[float, Range(above=0, most=1)]
    """Added to the mean of squares in a norm."""
    rotary_base: Annotated[float, Range(above=1, most=1e30)]
    """What rotary frequencies are powers of."""
    max_position_embeddings: Annotated[int, Range(1, MOST_POSITIONS)]
    """Positions that the weights were trained for."""
    untie_embeddings_and_output_weights: bool

    def check(self, where: str) -> None:
        """Raise InputError, naming the file ``where``, for what no model can be.

        Weights are compared with the shape before anything is built of it, so that memory is
        bounded by the files; this bounds what the comparison itself takes.
        """
        check_ranges(self, where=where)
        if type(self.untie_embeddings_and_output_weights) is not bool:
            raise InputError(
                f"{where}: untie_embeddings_and_output_weights is "
                f"{shown(self.untie_embeddings_and_output_weights)}, it must be true or false"
            )
        if self.num_attention_heads % self.num_query_groups or self.kv_channels % 2:
            raise InputError(
                f"{where}: num_attention_heads ({self.num_attention_heads}) must be divisible by "
                f"num_key_value_heads ({self.num_query_groups}), and head_dim "
                f"({self.kv_channels}) be even"
            )

"""Shape of a model."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from megatron_ultralong.errors import InputError

LARGEST: Final = {
    "num_layers": 4096,
    "hidden_size": 2**20,
    "ffn_hidden_size": 2**23,
    "num_attention_heads": 2**16,
    "num_query_groups": 2**16,
    "kv_channels": 2**14,
    "vocab_size": 2**27,
    "max_position_embeddings": 2**40,
}
"""Of each size, far above any model: what is larger is no model, and would take the memory or the
time of the machine before its weights are found missing."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama model, in Megatron-LM's words; read from a checkpoint, never typed."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    """Key and value heads."""
    kv_channels: int
    """Size of one head."""
    vocab_size: int
    """Rows of the embedding, not padded."""
    norm_epsilon: float
    rotary_base: float
    max_position_embeddings: int
    """Positions that the weights were trained for."""
    untie_embeddings_and_output_weights: bool

    def check(self, where: str) -> None:
        """Raise InputError, naming the file ``where``, for what no model can be.

        Weights are compared with the shape before anything is built of it, so that memory is
        bounded by the files; this bounds what the comparison itself takes.
        """
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise InputError(
                    f"{where}: {name} is {_shown(value)}, it must be an integer from 1 to "
                    f"{largest:,}"
                )
        for name, most in (("norm_epsilon", 1.0), ("rotary_base", 1e30)):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value <= most:
                raise InputError(
                    f"{where}: {name} is {_shown(value)}, it must be a number above 0, at most "
                    f"{most:g}"
                )
        if type(self.untie_embeddings_and_output_weights) is not bool:
            raise InputError(
                f"{where}: untie_embeddings_and_output_weights is "
                f"{_shown(self.untie_embeddings_and_output_weights)}, it must be true or false"
            )
        if self.num_attention_heads % self.num_query_groups or self.kv_channels % 2:
            raise InputError(
                f"{where}: num_attention_heads ({self.num_attention_heads}) must be divisible by "
                f"num_key_value_heads ({self.num_query_groups}), and head_dim "
                f"({self.kv_channels}) be even"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."

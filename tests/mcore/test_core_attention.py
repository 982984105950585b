"""What Megatron's callers may hand to our attention."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ultralong.mcore.core_attention import RingCoreAttention
from megatron_ultralong.program.errors import InputError


def test_a_mask_of_the_whole_row_is_refused_with_the_way_out() -> None:
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=2, attention_dropout=0.0
    )
    attention = RingCoreAttention(config, layer_number=1)
    heads = torch.zeros(8, 1, 2, 8)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    with pytest.raises(InputError, match=r"\(1, 1, 8, 8\) .*--no-create-attention-mask-in-datal"):
        attention(heads, heads, heads, mask)
    assert attention(heads, heads, heads, None).shape == (8, 1, 16)

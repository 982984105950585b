"""Logits of a Hugging Face or Meta folder through transformers."""

from __future__ import annotations

from typing import Any

import torch

from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.meta import MetaFolder
from megatron_ultralong.checkpoint.logits.float64_mode import arithmetic
from megatron_ultralong.checkpoint.logits.transformers_model import transformers_model
from megatron_ultralong.model.yarn import attention_factor, inv_freq
from megatron_ultralong.program.errors import InputError

_ROUNDING = 1e-6
"""Relative error of a power and two products in float32, 2^-24 each."""


@torch.no_grad()
def transformers_logits(
    folder: HuggingFaceFolder | MetaFolder,
    tokens_S: torch.Tensor,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Logits [S, vocabulary] of one row, in ``dtype``, float32 or float64.

    transformers is given the tensors, and reads the rope block of ``config.json`` itself.

    Raises:
        InputError: it makes other rotary frequencies of config.json than this project.
    """
    model = transformers_model(folder).to(dtype)
    round_frequencies(model.model.rotary_emb, folder, dtype)
    with arithmetic(dtype):
        logits: torch.Tensor = model(tokens_S[None], use_cache=False).logits[0]
    return logits


def round_frequencies(
    rotary: Any, folder: HuggingFaceFolder | MetaFolder, dtype: torch.dtype
) -> None:
    """Check transformers' rotary frequencies, and round them to ``dtype`` as Megatron's are.

    It computes them in float32, wrong by two units in the last place. At position 8,192 that turns
    q and k by 1e-3 rad and moves logits by as much: rounding, which would hide real differences.
    """
    model = folder.model
    expected = torch.from_numpy(inv_freq(folder.rope_scaling, model.kv_channels, model.rotary_base))
    deviation = (rotary.inv_freq.double() / expected - 1).abs().max().item()
    factor = attention_factor(folder.rope_scaling)
    if deviation > _ROUNDING or abs(rotary.attention_scaling / factor - 1) > _ROUNDING:
        raise InputError(
            f"{folder.folder}: this version of transformers reads the rope block in another way: "
            f"frequencies differ by {deviation:.2g}, attention factors are "
            f"{rotary.attention_scaling:.6g} and {factor:.6g}; see the versions in the export's "
            "report"
        )
    rotary.inv_freq = expected.to(dtype)

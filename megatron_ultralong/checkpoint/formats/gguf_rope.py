"""The rotary embedding of a model in GGUF, as llama.cpp computes it.

What llama.cpp reads there: ``rope.freq_base``; ``rope.scaling.type``, ``factor`` and
``original_context_length``; a tensor ``rope_freqs.weight`` that every frequency is divided by; and
``rope.scaling.attn_factor``, which multiplies the temperature 0.1 ln s + 1 that it gives to
``yarn`` of itself, or 1. It has keys for betas and for the temperature itself
(``yarn_beta_fast``, ``yarn_beta_slow``, ``yarn_attn_factor``), its converter writes them, and for
``llama`` it looks at none of them. So what ``yarn`` there would get wrong is stated as divisors.
For ``qwen2`` and ``qwen3`` it reads no divisors either, and such a model is refused.
"""

import math

import torch

from megatron_ultralong.checkpoint.formats.gguf_values import Values, float32, string, uint32
from megatron_ultralong.model import yarn
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError

DIVISORS = "rope_freqs.weight"
_SCALING = "rope.scaling."
_USUAL_BETAS = (32.0, 1.0)
"""Of llama.cpp, where no flag gives others."""


def rope_values(
    scaling: yarn.RopeScaling, model: ModelConfig
) -> tuple[Values, torch.Tensor | None]:
    """Metadata of a rotary embedding, and the divisors of its frequencies, float32 [D // 2].

    The divisors are None where llama.cpp computes the frequencies from the metadata.

    Raises:
        InputError: they are needed, and it reads none in this architecture.
    """
    base = yarn.effective_rotary_base(scaling, model.kv_channels, model.rotary_base)
    scaled, divisors = _scaling_values(scaling, model)
    architecture = model.family.gguf
    if divisors is not None and architecture != "llama":
        raise InputError(
            f"llama.cpp computes no such rotary embedding for {architecture} "
            f"({yarn.describe(scaling, model.max_position_embeddings)}): it reads {DIVISORS} for "
            "llama alone; train with linear, or with --ramp dimensions --beta-fast 32, or export "
            "to Hugging Face"
        )
    values = {"rope.freq_base": float32(base), **scaled}
    return {f"{architecture}.{name}": value for name, value in values.items()}, divisors


def _scaling_values(
    scaling: yarn.RopeScaling, model: ModelConfig
) -> tuple[Values, torch.Tensor | None]:
    if scaling is None or isinstance(scaling, yarn.NtkConfig):
        return {}, None
    if isinstance(scaling, yarn.LinearConfig):
        factor = float32(scaling.scaling_factor)
        return {_SCALING + "type": string("linear"), _SCALING + "factor": factor}, None
    betas = (scaling.beta_fast, scaling.beta_slow)
    if scaling.ramp == "dimensions" and scaling.truncate and betas == _USUAL_BETAS:
        return _yarn_values(scaling), None
    values: Values = {}
    if scaling.attention_factor != 1.0:
        values[_SCALING + "attn_factor"] = float32(scaling.attention_factor)
    if scaling.ramp == "rotations":
        return values, _llama3_divisors(scaling, model)
    plain = yarn.rope_inv_freq(model.kv_channels, model.rotary_base)
    scaled = yarn.yarn_inv_freq(scaling, model.kv_channels, model.rotary_base)
    return values, torch.from_numpy(plain / scaled).float()


def readers(scaling: yarn.RopeScaling, model: ModelConfig) -> str:
    """Which build of llama.cpp was run with such a file, what it did, and by what it knows.

    ``tools/compare_gguf.py`` runs it, without any flag of the rotary embedding.
    """
    values, divisors = rope_values(scaling, model)
    kind = values.get(f"{model.family.gguf}.{_SCALING}type")
    how = "rope_freqs.weight" if divisors is not None else kind.value if kind else "rope.freq_base"
    return (
        "b11549 was run with such a file and rotated as trained, without any flag of the rotary "
        f"embedding: {how} in the file says how"
    )


def _yarn_values(scaling: yarn.YarnConfig) -> Values:
    usual = yarn.yarn_attention_factor(scaling.scaling_factor)
    values = {
        "type": string("yarn"),
        "factor": float32(scaling.scaling_factor),
        "original_context_length": uint32(scaling.original_max_position_embeddings),
        "yarn_attn_factor": float32(scaling.attention_factor),
        "yarn_beta_fast": float32(scaling.beta_fast),
        "yarn_beta_slow": float32(scaling.beta_slow),
    }
    if scaling.attention_factor != usual:
        values["attn_factor"] = float32(scaling.attention_factor / usual)
    return {_SCALING + name: value for name, value in values.items()}


def _llama3_divisors(scaling: yarn.YarnConfig, model: ModelConfig) -> torch.Tensor:
    """What llama.cpp's converter makes of ``rope_type: llama3``, every product in float32.

    It is up to 1e-6 from the quotient of the frequencies in float64, as transformers' own
    frequencies are; files of one model should not depend on who converted it.
    """
    dimension = model.kv_channels
    exponents = torch.arange(0, dimension, 2, dtype=torch.float32) / dimension
    frequencies = 1.0 / (model.rotary_base**exponents)
    length, factor = scaling.original_max_position_embeddings, scaling.scaling_factor
    slow, fast = scaling.beta_slow, scaling.beta_fast
    wavelengths = 2 * math.pi / frequencies
    share = (length / wavelengths - slow) / (fast - slow)
    mixed = 1 / ((1 - share) / factor + share)
    divisors = torch.where(wavelengths > length / slow, factor, mixed)
    return torch.where(wavelengths < length / fast, 1.0, divisors).float()

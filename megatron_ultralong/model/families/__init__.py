"""Families of models that are converted, trained and served here, each a table of its own file."""

from collections.abc import Iterable

from megatron_ultralong.model.families.family import Family
from megatron_ultralong.model.families.llama import LLAMA
from megatron_ultralong.model.families.mistral import MISTRAL
from megatron_ultralong.model.families.qwen2 import QWEN2
from megatron_ultralong.model.families.qwen3 import QWEN3

FAMILIES = {family.name: family for family in (LLAMA, QWEN2, QWEN3, MISTRAL)}
"""By ``model_type``; where two have the same layer, the first is what its weights are taken for."""
ARCHITECTURES = {family.architecture: family for family in FAMILIES.values()}

_MOE = "a mixture of experts (MoE)"
_MLA = "multi-head latent attention (MLA)"
_WINDOW = "a sliding window of attention"
_NORMS = "other norms than one RMSNorm before attention and one before the MLP"
_MISSING = {
    "Mixtral": (_MOE,),
    "Qwen2Moe": (_MOE,),
    "Qwen3Moe": (_MOE,),
    "Qwen3Next": (_MOE, "linear attention"),
    "Qwen3_5": ("linear attention",),
    "Olmoe": (_MOE, _NORMS),
    "GptOss": (_MOE, _WINDOW, "attention sinks"),
    "Llama4": (_MOE, "chunked attention"),
    "Deepseek": (_MLA, _MOE),
    "Kimi": (_MLA, _MOE),
    "Glm4Moe": (_MOE,),
    "Glm": (_NORMS, "rotary embedding of half a head"),
    "MiniMax": (_MOE, "linear attention"),
    "MiniCPM3": (_MLA,),
    "Gemma": (_NORMS, "a GELU in the MLP"),
    "Olmo2": (_NORMS,),
    "Olmo3": (_NORMS, _WINDOW),
    "Ministral": (_WINDOW,),
    "Cohere": ("LayerNorm, and attention beside the MLP",),
    "Phi3": ("queries, keys and values in one tensor",),
    "Phi": ("LayerNorm, and attention beside the MLP",),
    "SmolLM3": ("layers without rotary embedding",),
    "Granite": ("multipliers of embedding, attention and logits",),
    "Mamba": ("state-space layers",),
    "Jamba": ("state-space layers", _MOE),
    "Nemotron": (_NORMS, "a squared ReLU in the MLP"),
}
"""What families that are not here need, by the beginning of their architecture's name."""


def refusal(architectures: Iterable[str]) -> str:
    """What a message says of architectures that are not known: what is missing, and those that are.

    ``['MixtralForCausalLM'] is not supported: it needs a mixture of experts (MoE); known: ...``.
    """
    names = list(architectures)
    begins = [begin for begin in _MISSING for name in names if name.startswith(begin)]
    why = ": it needs " + " and ".join(_MISSING[max(begins, key=len)]) if begins else ""
    if any("Vision" in name or "ForConditionalGeneration" in name for name in names):
        why = ": it sees or hears, and texts alone are read here"
    known = ", ".join(f"{name} ({family.title})" for name, family in ARCHITECTURES.items())
    return f"architectures {names} is not supported{why}; known: {known}"


def titles() -> str:
    """For messages: ``Llama, Qwen2.5, Qwen3 (dense) or Mistral``."""
    *most, last = (family.title for family in FAMILIES.values())
    return f"{', '.join(most)} or {last}"


def family_with(*, add_qkv_bias: bool, qk_layernorm: bool) -> Family | None:
    """The first family whose layer has these parts; None: there is none."""
    wanted = (add_qkv_bias, qk_layernorm)
    families = FAMILIES.values()
    return next((f for f in families if (f.add_qkv_bias, f.qk_layernorm) == wanted), None)

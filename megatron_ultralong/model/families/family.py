"""What a family of models is: a table of everything in which it differs from the others.

A family is a file of data beside this one. Conversion, the comparison of logits, Megatron-Core's
layers, plans, prompts and generation read the table, and none of them asks for a family by name.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from megatron_ultralong.program.errors import InputError

Names = Mapping[str, tuple[str, ...]]
"""Hugging Face names of the parts of each Megatron tensor of a layer, in forward order."""

LAYER: Names = {
    "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm.weight",),
    "self_attention.linear_qkv.weight": (
        *("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm.weight",),
    "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
"""What all families have."""
QKV_WEIGHT = "self_attention.linear_qkv.weight"
QKV_BIAS = "self_attention.linear_qkv.bias"
QK_NORMS = ("self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight")
"""Of a head, before the rotary embedding."""


def layer_with(**more: tuple[str, ...]) -> Names:
    """Llama's layer with ``more`` tensors of Megatron behind those of queries, keys and values."""
    first, second, *rest = LAYER.items()
    return dict([first, second, *more.items(), *rest])


_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")


def sizes(*values: int, **others: Any) -> Mapping[str, Any]:
    """What a published model has of its own, in the words of ``ModelConfig``.

    ``values`` are those of ``_SIZES``; the last may be left out, and is 8.
    """
    return {"num_query_groups": 8, **dict(zip(_SIZES, values, strict=False)), **others}


def common(
    vocab_size: int, norm_epsilon: float, rotary_base: float, positions: int, **others: Any
) -> Mapping[str, Any]:
    """What most published models of a family share, in the words of ``ModelConfig``."""
    return {
        "vocab_size": vocab_size,
        "norm_epsilon": norm_epsilon,
        "rotary_base": rotary_base,
        "max_position_embeddings": positions,
        **others,
    }


TIED = {"untie_embeddings_and_output_weights": False}


class Turns(NamedTuple):
    """How a chat template writes turns. Marks are special tokens, the rest is text."""

    begin: str
    """The mark that begins a text; empty: there is none."""
    before: Mapping[str, tuple[str, ...]]
    """What stands before the content of a role's turn, marks and texts, a text last."""
    after: Mapping[str, tuple[str, ...]]
    """What stands behind it; of the assistant the first mark is what ends an answer."""
    marks: tuple[str, ...]
    """All special tokens of it."""
    template: str = ""
    """What ``--chat-template`` calls it, where this table says all of it."""
    default_system: str = ""
    """Content of a system turn that begins a conversation without one."""
    thought: tuple[str, str] = ("", "")
    """Texts around a thought, which an answer to the last question begins with; of other answers it
    is left out. Empty: there are no thoughts."""

    @property
    def before_last(self) -> str:
        """Text before the content of the assistant's last turn, where it has no thought."""
        return "".join(self.thought)

    def parted(self, content: str) -> tuple[str, str]:
        """Thought and answer of the assistant's content, as Qwen3's template parts them."""
        start, end = (mark.strip() for mark in self.thought)
        if not end or end not in content:
            return "", content
        first, *_, last = content.split(end)
        return first.rstrip("\n").split(start)[-1].strip("\n"), last

    def turn(self, role: str, content: str) -> tuple[str, ...]:
        """The parts of a turn."""
        return (*self.before[role], content, *self.after[role])

    def begun(self, has_system: bool = False) -> tuple[str, ...]:
        """What stands before the first turn: a system turn, where there is one of its own."""
        is_own = self.default_system and not has_system
        return (self.begin, *(self.turn("system", self.default_system) if is_own else ()))

    def folded(self, messages: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Roles and texts that it can write: without a system's turn, as in Mistral's own template,
        its text and a blank line stand before the user's text behind it.

        Raises:
            InputError: there is no user's text behind it.
        """
        found: list[tuple[str, str]] = []
        for role, text in messages:
            if "system" not in self.before and found and found[-1][0] == "system":
                if role != "user":
                    raise InputError(
                        f"a message of {role} follows one of system, and the model's template, "
                        "which has no turn for it, can only put it before a message of user"
                    )
                text = f"{found.pop()[1]}\n\n{text}"
            found.append((role, text))
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A family of models. What is not said is as in Llama."""

    name: str
    """``model_type`` of its ``config.json``."""
    title: str
    architecture: str
    """In ``config.json``."""
    shape: Mapping[str, Any]
    """Of all published models that do not say otherwise, in the words of ``ModelConfig``."""
    models: Mapping[str, Mapping[str, Any]]
    """Published models by name, and what each has of its own."""
    layer: Names = dataclasses.field(default_factory=lambda: LAYER)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What transformers takes for absent keys of ``config.json``, where that is not as in Llama."""
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys that every export states: they say that there is no sliding window."""
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Other keys that must be absent, null or this, or a list of what is in this list: every other
    value is another model."""
    counts_positions_by_yarn: bool = False
    """A published config keeps ``max_position_embeddings`` beside a YaRN block that extends it: the
    positions are ``factor * original_max_position_embeddings``, where that is more."""
    turns: tuple[Turns, ...] = ()
    """Of its chat templates, the newest first."""
    stop_tokens: tuple[str, ...] = ()
    """What ends a text where no file of the model names an id."""
    gguf: str = "llama"
    """Architecture in GGUF."""

    def published(self, name: str) -> dict[str, Any]:
        """The shape of a published model; heads fill the width, unless the table says more."""
        its = self.models[name]
        heads = {"kv_channels": its["hidden_size"] // its["num_attention_heads"]}
        untied = {"untie_embeddings_and_output_weights": True}
        return {**heads, **untied, **self.shape, **its, "model_type": self.name}

    @property
    def add_qkv_bias(self) -> bool:
        """Queries, keys and values have biases."""
        return QKV_BIAS in self.layer

    @property
    def qk_layernorm(self) -> bool:
        """Queries and keys go through a norm, each head alone."""
        return QK_NORMS[0] in self.layer


def chatml(template: str, default_system: str = "", thought: tuple[str, str] = ("", "")) -> Turns:
    """Turns in ``<|im_start|>`` and ``<|im_end|>``, those of Qwen and many others."""
    roles, start, end = ("system", "user", "assistant"), "<|im_start|>", "<|im_end|>"
    before = {role: (start, f"{role}\n") for role in roles}
    after = dict.fromkeys(roles, (end, "\n"))
    return Turns("", before, after, (start, end), template, default_system, thought)

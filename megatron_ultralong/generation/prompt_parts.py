"""A prompt as text and special tokens, and the two forms that models were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

PromptTemplate = Literal["base", "chat"]


class Special(str):
    """The text of a special token where the token itself is meant, not its letters."""

    __slots__ = ()


Parts = Sequence["str | Special"]
"""A prompt: text, and special tokens between it."""


def prompt_parts(template: PromptTemplate, text: str, answer_prefix: str) -> Parts:
    """A task's text and the beginning of its answer, in the form that a model was trained on.

    ``chat`` is upstream's ``meta-llama3``: one user turn, and the assistant's turn begun.
    """
    if template == "base":
        return [text, answer_prefix]
    return [
        Special("<|begin_of_text|>"),
        *chat_turn(text),
        Special("<|start_header_id|>"),
        "assistant",
        Special("<|end_header_id|>"),
        "\n\n" + answer_prefix,
    ]


def chat_turn(text: str) -> Parts:
    """A user turn of Llama 3."""
    return [
        Special("<|start_header_id|>"),
        "user",
        Special("<|end_header_id|>"),
        "\n\n" + text,
        Special("<|eot_id|>"),
    ]

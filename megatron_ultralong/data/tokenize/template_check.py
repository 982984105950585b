"""The template of a run against the one that lies in the tokenizer's folder."""

from __future__ import annotations

from typing import Any

from megatron_ultralong.data.read.conversation_formats import parse_conversation
from megatron_ultralong.data.tokenize.chat_template import ChatTemplate, rendered_text
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate
from megatron_ultralong.program.errors import InputError

_QUESTION = {"role": "user", "content": " How many?\n"}
_ANSWER = {"role": "assistant", "content": "Two.\n\nOr three. "}
PROBES: tuple[list[dict[str, Any]], ...] = (
    [_QUESTION, _ANSWER],
    [{"role": "system", "content": " Be brief. "}, _QUESTION, _ANSWER],
    [_QUESTION, _ANSWER, {"role": "user", "content": "Why?"}, _ANSWER],
)
"""Conversations that both write."""


def check_template(template: ChatTemplate, folder: FolderTemplate, date: str) -> None:
    """Compare with the folder's own template.

    Raises:
        InputError: they write a conversation differently: an engine that serves the trained model
            would put other words before the answers than training did.
    """
    for messages in PROBES:
        conversation = parse_conversation({"messages": messages}, "messages")
        ours = rendered_text(template.render(conversation, date), folder.eos)
        theirs = folder.render_messages(messages, date).text
        if ours != theirs:
            raise InputError(
                f"--chat-template {template.name} is not the template in {folder.name}: "
                f"{difference(ours, theirs)}; engines will serve the model with the folder's, so "
                "take the one that it is, or --no-check-template and put the right one there"
            )


def difference(ours: str, theirs: str) -> str:
    """Where two texts part, and what each has there."""
    same = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    return (
        f"at character {same} one writes {ours[same : same + 30]!r}, the other "
        f"{theirs[same : same + 30]!r}"
    )

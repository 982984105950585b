"""The template of a run against the one that lies in the tokenizer's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_ultralong.data.chat_template import DATE, ChatTemplate, rendered_text
from megatron_ultralong.data.conversation_formats import parse_conversation
from megatron_ultralong.data.tokenising import DocumentTokenizer
from megatron_ultralong.errors import InputError

_QUESTION = {"role": "user", "content": " How many?\n"}
_ANSWER = {"role": "assistant", "content": "Two.\n\nOr three. "}
PROBES: tuple[list[dict[str, Any]], ...] = (
    [_QUESTION, _ANSWER],
    [{"role": "system", "content": " Be brief. "}, _QUESTION, _ANSWER],
    [_QUESTION, _ANSWER, {"role": "user", "content": "Why?"}, _ANSWER],
)
"""Conversations that both write."""


def check_template(template: ChatTemplate, tokenizer: DocumentTokenizer) -> bool:
    """Compare with the folder's own template; False where it has none.

    Raises:
        InputError: they write a conversation differently: an engine that serves the trained model
            would put other words before the answers than training did.
    """
    folder = tokenizer.file.parent
    text = folder_template(folder)
    if text is None:
        return False
    for messages in PROBES:
        conversation = parse_conversation({"messages": messages}, "messages")
        pieces = template.render(conversation, DATE)
        ours = rendered_text(pieces, _token_text(folder, "eos_token"))
        theirs = _render(text, messages, folder)
        if ours != theirs:
            same = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            raise InputError(
                f"--chat-template {template.name} is not the template in {folder}: at character "
                f"{same} one writes {ours[same : same + 30]!r}, the other "
                f"{theirs[same : same + 30]!r}; engines will serve the model with the folder's, so "
                "take the one that it is, or --no-check-template and put the right one there"
            )
    return True


def folder_template(folder: Path) -> str | None:
    """The template of a tokenizer's folder, of several the default one; None: it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    value = _tokenizer_config(folder).get("chat_template")
    if isinstance(value, list):
        value = next((entry["template"] for entry in value if entry["name"] == "default"), None)
    return value if isinstance(value, str) else None


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    values: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return values


def _token_text(folder: Path, name: str) -> str:
    value = _tokenizer_config(folder).get(name)
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _render(text: str, messages: list[dict[str, Any]], folder: Path) -> str:
    """What transformers writes: its settings of Jinja, in the sandbox, as a template is foreign."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    try:
        return environment.from_string(text).render(
            messages=messages,
            tools=None,
            add_generation_prompt=False,
            date_string=DATE,
            bos_token=_token_text(folder, "bos_token"),
            eos_token=_token_text(folder, "eos_token"),
        )
    except (TemplateError, TypeError) as error:
        raise InputError(
            f"the chat template in {folder} cannot be rendered ({error}): put the model's own "
            "there, or give --no-check-template"
        ) from error

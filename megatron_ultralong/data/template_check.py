"""The template of a run against the one that lies in the tokenizer's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ultralong.data.chat_template import DATE, ChatTemplate, rendered_text
from megatron_ultralong.data.conversation_formats import parse_conversation
from megatron_ultralong.data.template_process import MAX_TEMPLATE_BYTES, TemplateProcess
from megatron_ultralong.data.tokenising import DocumentTokenizer, side_file
from megatron_ultralong.errors import InputError
from megatron_ultralong.json_file import read_bounded

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
    bos, eos = (_token_text(folder, name) for name in ("bos_token", "eos_token"))
    with TemplateProcess(
        text, str(folder), "put the model's own there, or give --no-check-template"
    ) as process:
        for messages in PROBES:
            conversation = parse_conversation({"messages": messages}, "messages")
            ours = rendered_text(template.render(conversation, DATE), eos)
            theirs = process.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=False,
                date_string=DATE,
                bos_token=bos,
                eos_token=eos,
            )
            if ours != theirs:
                raise _difference(template, folder, ours, theirs)
    return True


def _difference(template: ChatTemplate, folder: Path, ours: str, theirs: str) -> InputError:
    same = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    return InputError(
        f"--chat-template {template.name} is not the template in {folder}: at character "
        f"{same} one writes {ours[same : same + 30]!r}, the other "
        f"{theirs[same : same + 30]!r}; engines will serve the model with the folder's, so "
        "take the one that it is, or --no-check-template and put the right one there"
    )


def folder_template(folder: Path) -> str | None:
    """The template of a tokenizer's folder, of several the default one; None: it has none.

    Raises:
        InputError: its file is damaged, or larger than a template is.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return read_bounded(file, MAX_TEMPLATE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 ({error.reason}): copy it again") from error
    value = side_file(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        value = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _token_text(folder: Path, name: str) -> str:
    value = side_file(folder, "tokenizer_config.json").get(name)
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""

"""Whether ``--chat-template`` and the template of a tokenizer's folder write the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.read.conversation_formats import parse_conversation
from megatron_ultralong.data.tokenize import chat_template
from megatron_ultralong.data.tokenize.chat_template import ChatTemplate
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer
from megatron_ultralong.program.errors import InputError

_SYSTEM = {"role": "system", "content": " Be brief. "}
_QUESTION = {"role": "user", "content": " How many?\n"}
_ANSWER = {"role": "assistant", "content": "Two.\n\nOr three. "}
PROBES: tuple[list[dict[str, Any]], ...] = (
    [_QUESTION, _ANSWER],
    [_SYSTEM, _QUESTION, _ANSWER],
    [_QUESTION, _ANSWER, {"role": "user", "content": "Why?"}, _ANSWER],
    [_SYSTEM, _QUESTION, _ANSWER, {"role": "user", "content": "Why?"}, _ANSWER, _QUESTION, _ANSWER],
)
"""Conversations that both write; templates may put a system text before the last question."""
_THOUGHT = {"role": "assistant", "content": "<think>\nTwo?\n</think>\n\nTwo."}
_THOUGHTS = [_QUESTION, _THOUGHT, {"role": "user", "content": "Why?"}, _THOUGHT]
"""One more for templates that write them in a way of their own."""


def fitted_template(template: ChatTemplate, folder: FolderTemplate, date: str) -> ChatTemplate:
    """``chatml`` with the default system turn that the folder's template writes; others as given.

    Raises:
        InputError: the folder's template cannot be rendered.
    """
    if template.name != chat_template.CHATML:
        return template
    text = folder.render_messages(PROBES[0], date).text
    start, end = "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"
    begun, found, _ = text.partition(end)
    return chat_template.chatml_with(
        begun.removeprefix(start) if found and begun.startswith(start) else ""
    )


def special_problem(template: ChatTemplate, tokenizer: DocumentTokenizer) -> str:
    """Which special tokens of a template the tokenizer lacks, and what to do; empty: none."""
    known = {chat_template.END, *tokenizer.special_texts}
    missing = [name for name in template.special if name not in known]
    if not missing:
        return ""
    return (
        f"--chat-template {template.name} needs the special tokens {', '.join(missing)}, "
        f"which {tokenizer.file} has not: give the tokenizer of an instruction-tuned "
        "model of that family, such as Llama 3.1 Instruct, or take --chat-template plain, "
        "which needs an EOS alone"
    )


def check_template(
    template: ChatTemplate, folder: FolderTemplate, date: str, tokenizer: DocumentTokenizer
) -> None:
    """Compare with the folder's own template.

    Raises:
        InputError: they write a conversation differently: an engine that serves the folder's would
            put other words before the answers than training did.
    """
    different = _difference(template, folder, date)
    if not different:
        return
    others = [
        fitted_template(each, folder, date)
        for each in chat_template.TEMPLATES.values()
        if each.name != template.name and not special_problem(each, tokenizer)
    ]
    fits = [each.name for each in others if not _difference(each, folder, date)]
    problem = special_problem(template, tokenizer)
    if problem and not fits:  # it cannot be kept either
        raise InputError(f"{problem} and --no-check-template, if its folder has another template")
    ways = [f"use --chat-template {name}, which writes the same as it" for name in fits[:1]]
    keep = (
        f"give --no-check-template to train in {template.name}, which `sft` and its exports then "
        "have instead of the folder's"
    )
    raise InputError(
        f"--chat-template {template.name} is not the template in {folder.name}: {different}; "
        + ", or ".join([*ways, *[keep] * (not problem)])
    )


def _difference(template: ChatTemplate, folder: FolderTemplate, date: str) -> str:
    """Where the folder's template parts from ``template``; empty: they write the same."""
    for messages in [*PROBES, *([_THOUGHTS] if "</think>" in template.jinja else [])]:
        conversation = parse_conversation({"messages": messages}, "messages")
        written = chat_template.rendered_text(template.render(conversation, date), folder.eos)
        rendered = folder.render_messages(messages, date).text
        if written != rendered:
            return difference(template.name, written, rendered)
    return ""


def num_equal(one: Sequence[object], other: Sequence[object]) -> int:
    """Characters that two texts begin with alike, or tokens."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def difference(name: str, written: str, rendered: str) -> str:
    """Where what ``--chat-template`` writes parts from the folder's text, and what each has."""
    same = num_equal(written, rendered)
    return (
        f"at character {same} {name} writes {written[same : same + 30]!r}, the folder's template "
        f"{rendered[same : same + 30]!r}"
    )


def check_ids(tokenizer: DocumentTokenizer, text: str, ids: npt.NDArray[np.integer]) -> None:
    """Check that a conversation has the ids that engines find in its text.

    They give the tokenizer the whole; here texts and special tokens are put together, so that no
    text can be a special token.

    Raises:
        InputError: it has others, as where a special token takes the spaces around it.
    """
    if tokenizer.file.suffix != ".json":  # has no special tokens in texts
        return
    found, expected = ids.tolist(), tokenizer.encode_separator(text)
    if found == expected:
        return
    same = num_equal(found, expected)
    its, other = (tokenizer.decode(some[max(same - 2, 0) : same + 4]) for some in (found, expected))
    raise InputError(
        f"{tokenizer.file} reads a chat as other tokens than its parts: {other!r} instead of "
        f"{its!r} from token {same} on; set lstrip and rstrip of its special tokens false, or take "
        "another template"
    )

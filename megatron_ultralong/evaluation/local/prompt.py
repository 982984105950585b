"""Prompts of messages, in tokens: with the turns of a family or as text, cut to their room."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.local.options import PROMPT_VERSION
from megatron_ultralong.generation import prompt_tokenizer
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.generation.prompt_tokenizer import IdArray, PromptTokenizer
from megatron_ultralong.model.families.llama import LLAMA
from megatron_ultralong.program.errors import InputError

Message = tuple[str, str]
"""Role and text."""
_BYTES_A_TOKEN = 3
"""Of texts in English and Chinese with Llama 3's vocabulary, rounded down: for the estimate."""


def estimated_tokens(text: str, room: int) -> int:
    """About how many tokens a text has, at most ``room``."""
    return min(room, max(len(text.encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN, 1))


@dataclasses.dataclass(frozen=True)
class PromptForm:
    """How messages become prompts.

    Raises:
        InputError: the tokenizer does not have what the template needs.
    """

    tokenizer: PromptTokenizer
    template: PromptTemplate

    def __post_init__(self) -> None:
        self.tokenizer.check_template(self.template)

    def prompt(
        self, messages: Sequence[Message], references: Any = None, room: int = 2**62
    ) -> Prompt:
        """The prompt of :func:`prompt_ids`, and what its answer is held against."""
        ids, was_cut = prompt_ids(self.tokenizer, self.template, messages, room)
        return Prompt(ids, references, was_cut)

    def decides(self, **others: Any) -> Mapping[str, Any]:
        """What a prompt depends on, beside its text and ``others``."""
        return {"version": PROMPT_VERSION, **self.tokenizer.decides(self.template), **others}


def prompt_ids(
    tokenizer: PromptTokenizer,
    template: PromptTemplate,
    messages: Sequence[Message],
    room: int = 2**62,
) -> tuple[IdArray, bool]:
    """Ids of messages with the assistant's turn begun, and whether the last one was cut.

    Beyond ``room`` tokens the middle of the last message is left out. ``chat`` trims texts where
    the template of the family does. ``base`` writes ``User: ...`` and ``Assistant: ...``, with
    empty lines between them, up to ``Assistant:``.
    """
    if template == "chat":
        if tokenizer.turns in LLAMA.turns:
            messages = [(role, text.strip()) for role, text in messages]
        return cut_prompt(tokenizer, "chat", messages[-1][1], room, messages[:-1])
    *before, (role, text) = messages
    head = "".join(f"{role.capitalize()}: {text}\n\n" for role, text in before)
    head, tail = f"{head}{role.capitalize()}: ", "\n\nAssistant:"
    begin = np.asarray(tokenizer.begin_ids, np.int64)
    ids = np.concatenate([begin, tokenizer.encode(head + text + tail)])
    if ids.size <= room:
        return ids, False
    start = np.concatenate([begin, tokenizer.encode(head)])
    return _cut(start, tokenizer.encode(text), tokenizer.encode(tail), room)


def cut_prompt(
    tokenizer: PromptTokenizer,
    template: PromptTemplate,
    text: str,
    room: int,
    messages: Sequence[Message] = (),
) -> tuple[IdArray, bool]:
    """Ids of a prompt within ``room`` tokens, and whether its middle was left out.

    Upstream cuts so too, and then tokenises the text again; here the ids stay as they are.
    ``messages`` before the text are not cut, except for a system text that has no turn.
    """
    if template == "base":
        begin = np.asarray(tokenizer.begin_ids, np.int64)
        return _cut(begin, tokenizer.encode(text), np.zeros(0, np.int64), room)
    marks = tokenizer.turns
    *messages, (_, text) = marks.folded([*messages, ("user", text)])

    def of_template(*parts: str) -> prompt_tokenizer.Parts:
        return prompt_tokenizer.with_marks(parts, marks)

    turns = [  # a text that spells a mark stays a text
        part
        for role, words in messages
        for part in (*of_template(*marks.before[role]), words, *of_template(*marks.after[role]))
    ]
    begins = of_template(*marks.begun(bool(messages) and messages[0][0] == "system"))
    *user, last = marks.before["user"]
    return _cut(
        tokenizer.encode_parts([*begins, *turns, *of_template(*user)]),
        tokenizer.encode(last + text, behind=True),
        tokenizer.encode_parts(of_template(*marks.after["user"], *marks.before["assistant"])),
        room,
    )


def _cut(before: IdArray, body: IdArray, after: IdArray, room: int) -> tuple[IdArray, bool]:
    """As many tokens of ``body`` from its start as from its end, where not all have room."""
    space = room - before.size - after.size
    if space < 2:
        raise InputError(
            f"a prompt of {room} tokens has no room next to its template's "
            f"{before.size + after.size}: raise --max-length"
        )
    if was_cut := body.size > space:
        body = np.concatenate([body[: space // 2], body[-(space // 2) :]])
    return np.concatenate([before, body, after]), was_cut

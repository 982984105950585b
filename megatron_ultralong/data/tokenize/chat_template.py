r"""Chat templates as pieces: ordinary text, special tokens, and which of them is to be learnt.

Llama 3.1's, as its tokenizer_config.json has it::

    <|begin_of_text|>{<|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>}*

The first turn is always a system turn, which names two dates before the system prompt, if there is
one: the template writes "Cutting Knowledge Date: December 2023" and "Today Date: 26 Jul 2024", and
engines that are given no ``date_string`` write the same at inference. Learnt are the assistant's
contents and the token that ends them, ``<|eot_id|>``, or ``<|eom_id|>`` after a tool call in
ipython mode. ``tests/data/test_chat_template.py`` compares our pieces with transformers'.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from megatron_ultralong.data.read.conversation import Conversation, ConversationError, Message
from megatron_ultralong.data.tokenize import chat_jinja
from megatron_ultralong.model.families import FAMILIES, llama
from megatron_ultralong.model.families.family import Turns, chatml

DATE = "26 Jul 2024"
"""Date that Llama 3.1's template writes where it is given none."""

TODAY = "today"
LAYOUT = "%d %b %Y"
"""As Llama's templates write it."""


def resolved_date(date: str, today: datetime.date) -> str:
    """The text to write: ``today`` becomes ``28 Nov 2026``, any other stays as it is."""
    return today.strftime(LAYOUT) if date == TODAY else date


def date_of(text: str) -> datetime.date | None:
    """The date that a text states, for templates that write it in a layout of their own.

    ``26 Jul 2024`` and ``2024-07-26`` are read; None for any other text.
    """
    for layout in (LAYOUT, "%Y-%m-%d"):
        with contextlib.suppress(ValueError):
            return datetime.datetime.strptime(text, layout).date()
    return None


TemplateName = Literal["llama3.1", "llama3", "plain", "chatml", "qwen2.5", "qwen3"]


class Piece(NamedTuple):
    """A run of text."""

    text: str
    is_special: bool = False
    """The name of a special token, not its text."""
    is_target: bool = False
    """To be learnt."""
    is_never_target: bool = False
    """Of a turn with weight 0: not to be learnt, whatever a template marks."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written."""

    name: TemplateName
    special: tuple[str, ...]
    """Special tokens that the tokenizer must have; :data:`END` stands for its EOS."""
    render: Callable[[Conversation, str], list[Piece]]
    """Pieces of a checked conversation, given the date."""
    jinja: str
    """The same for transformers, see :meth:`jinja_with`."""
    ends: tuple[str, ...]
    """Those of ``special`` that end an answer or a call, where a model has to stop."""
    has_thoughts: bool = False
    """It writes the thought of a last answer, which versions before put behind an empty one."""

    def jinja_with(self, date: str) -> str:
        """The same for transformers, which writes ``date`` where it is given none."""
        text = json.dumps(date, ensure_ascii=False)  # Jinja reads it as Python does
        return self.jinja.replace("else DATE", f"else {text}")


END = "<eos>"
"""The tokenizer's own EOS, whatever its name."""

_BEGIN = Piece("<|begin_of_text|>", is_special=True)
_HEADER = Piece("<|start_header_id|>", is_special=True)
_HEADER_END = Piece("<|end_header_id|>", is_special=True)
_LLAMA_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def _turn(role: str, *contents: Piece, end: str = "<|eot_id|>", weight: bool = True) -> list[Piece]:
    """A turn of Llama 3; the assistant's contents and end are to be learnt."""
    is_target = role == "assistant" and weight
    pieces = [
        _HEADER,
        Piece(role),
        _HEADER_END,
        Piece("\n\n"),
        *(piece._replace(is_target=is_target) for piece in contents),
        Piece(end, is_special=True, is_target=is_target),
    ]
    return pieces if weight else [piece._replace(is_never_target=True) for piece in pieces]


def _llama3_1(conversation: Conversation, date: str) -> list[Piece]:
    messages = list(conversation.messages)
    system = messages.pop(0).content.strip() if messages[0].role == "system" else ""
    builtin = conversation.builtin_tools
    is_ipython = builtin is not None or conversation.tools is not None
    text = "Environment: ipython\n" if is_ipython else ""
    if builtin is not None:
        text += "Tools: " + ", ".join(n for n in builtin if n != "code_interpreter") + "\n\n"
    text += f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n{system}"
    pieces = [_BEGIN, *_turn("system", Piece(text))]
    if conversation.tools is not None:
        question = messages.pop(0)
        text = _tools_text(conversation.tools) + question.content.strip()
        pieces += _turn("user", Piece(text), weight=question.is_learnt)
    for message in messages:
        pieces += _llama3_1_turn(message, builtin)
    return pieces


def _tools_text(tools: tuple[Any, ...]) -> str:
    """What the template writes before the first question."""
    head = (
        "Given the following functions, please respond with a JSON for a function call "
        "with its proper arguments that best answers the given prompt.\n\n"
        'Respond in the format {"name": function name, "parameters": dictionary of argument name '
        "and its value}.Do not use variables.\n\n"
    )
    return head + "".join(json.dumps(t, ensure_ascii=False, indent=4) + "\n\n" for t in tools)


def _llama3_1_turn(message: Message, builtin: tuple[str, ...] | None) -> list[Piece]:
    if message.role == "tool":
        # A text is written as JSON too, in quotes: to Jinja a text is iterable.
        text = json.dumps(message.content, ensure_ascii=False)
        return _turn("ipython", Piece(text), weight=message.is_learnt)
    call = message.tool_call
    if call is None:
        return _turn(message.role, Piece(message.content.strip()), weight=message.is_learnt)
    end = "<|eot_id|>" if builtin is None else "<|eom_id|>"
    if builtin is not None and call.name in builtin:
        wrong = [name for name, value in call.arguments.items() if not isinstance(value, str)]
        if wrong:
            raise ConversationError(
                "bad tool call",
                f"argument {wrong[0]!r} of built-in tool {call.name!r} is not a text: the template "
                "writes texts alone",
            )
        written = ", ".join(f'{name}="{value}"' for name, value in call.arguments.items())
        tag = Piece("<|python_tag|>", is_special=True)
        text = f"{call.name}.call({written})"
        return _turn("assistant", tag, Piece(text), end=end, weight=message.is_learnt)
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    text = f'{{"name": "{call.name}", "parameters": {arguments}}}'
    return _turn("assistant", Piece(text), end=end, weight=message.is_learnt)


def _refuse_tools(conversation: Conversation, name: TemplateName) -> None:
    messages = conversation.messages
    what = "a tool call" if any(message.tool_call for message in messages) else ""
    uses = conversation.tools is not None or conversation.builtin_tools is not None
    if uses or any(message.role == "tool" for message in messages):
        what = "tools"
    if what:
        message = (
            f"it has {what}, which template {name} cannot write: llama3.1 alone does, for a "
            "tokenizer with its special tokens; leave tools, calls and results out, or train on "
            "other conversations"
        )
        raise ConversationError("beyond the template", message)


def _of_table(
    turns: Turns, conversation: Conversation, date: str, *, strip: bool = False
) -> list[Piece]:
    """A conversation in the marks of a table, which say all of it; contents as they are.

    Under ``strip`` they lose the white space around them, as in Llama's templates; else an answer
    loses that at its start, which would share a token with the end of the line before it: a served
    model is asked to write on behind that. A thought of the last answer is learnt with it; those of
    others are left out, as templates with thoughts do.
    """
    del date
    name: Any = turns.template
    _refuse_tools(conversation, name)
    messages = list(conversation.messages)
    if turns.default_system and messages[0].role != "system":
        messages.insert(0, Message("system", turns.default_system))
    pieces = [Piece(turns.begin, is_special=True)] if turns.begin else []
    for number, message in enumerate(messages):
        if message.role not in turns.before:
            text = f"it has a turn of {message.role}, which template {name} cannot write"
            raise ConversationError("beyond the template", text)
        is_assistant = message.role == "assistant"
        content = message.content.strip() if strip else message.content
        if turns.before_last and message.role == "user" and content.startswith("<tool_response>"):
            text = f"template {name} takes a user's turn of <tool_response> for no question"
            raise ConversationError("beyond the template", text)
        before, after = list(turns.before[message.role]), turns.after[message.role]
        if is_assistant:
            thought, content = turns.parted(content)
            content = content.lstrip()
            if number == len(messages) - 1 and thought:
                content = thought.join(turns.thought) + content
            elif number == len(messages) - 1 and turns.before_last:
                before.append(turns.before_last)
        turn = [Piece(part, part in turns.marks) for part in before]
        is_target = is_assistant and message.is_learnt
        turn.append(Piece(content, is_target=is_target))
        turn += [Piece(p, p in turns.marks, is_target and p == after[0]) for p in after]
        pieces += [piece._replace(is_never_target=not message.is_learnt) for piece in turn]
    return pieces


def _template(turns: Turns, jinja: str = "", *, strip: bool = False) -> ChatTemplate:
    """Of a table; ``jinja``: as it has been written since the first tuned models, if not by it."""
    name: Any = turns.template
    render = functools.partial(_of_table, turns, strip=strip)
    ends, has_thoughts = turns.after["assistant"][:1], bool(turns.before_last)
    jinja = jinja or chat_jinja.of_family(turns)
    return ChatTemplate(name, turns.marks, render, jinja, ends, has_thoughts)


CHATML: TemplateName = "chatml"


def chatml_with(default_system: str) -> ChatTemplate:
    """ChatML, with the system turn that begins a conversation without one; empty: none does."""
    return _template(chatml(CHATML, default_system))


_ROLES = ("system", "user", "assistant")
_LLAMA3 = llama.LLAMA.turns[0]._replace(template="llama3")
_PLAIN = Turns(
    begin="",
    before={role: (f"{role}:\n",) for role in _ROLES},
    after={role: (END,) for role in _ROLES},
    marks=(END,),
    template="plain",
)

_OF_FAMILIES = [turns for family in FAMILIES.values() for turns in family.turns if turns.template]
TEMPLATES: dict[TemplateName, ChatTemplate] = {
    "llama3.1": ChatTemplate(
        "llama3.1",
        (*_LLAMA_TOKENS, "<|eom_id|>", "<|python_tag|>"),
        _llama3_1,
        chat_jinja.LLAMA3_1,
        ("<|eot_id|>", "<|eom_id|>"),
    ),
    "llama3": _template(_LLAMA3, chat_jinja.LLAMA3, strip=True),
    "plain": _template(_PLAIN, chat_jinja.PLAIN, strip=True),
    **{template.name: template for template in map(_template, _OF_FAMILIES)},
    CHATML: chatml_with(""),  # behind those that write the same without the folder's system turn
}
"""Templates by the name that ``--chat-template`` takes.

``llama3`` is Llama 3.0's: no dates, no system turn of its own, no tools. ``plain`` is for
tokenizers without Llama 3's special tokens: roles in words, every turn ended by its EOS. ``chatml``
is that of many models of all families, each with a default system turn of its own or none: see
:func:`~megatron_ultralong.data.tokenize.template_comparison.fitted_template`. Those of other
families are their tables' (``model/families``): ``qwen3``'s last answer has a thought, and where it
has none an empty one, which is not learnt.
"""


def rendered_text(pieces: Sequence[Piece], eos: str = END) -> str:
    """A conversation as one text, as transformers writes it."""
    return "".join(eos if piece.text == END else piece.text for piece in pieces)

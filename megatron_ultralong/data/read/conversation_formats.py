"""Conversations out of records: ``messages``, ShareGPT, prompt and completion, Alpaca.

* ``messages`` (OpenAI, transformers): ``{"messages": [{"role": ..., "content": ...}, ...]}``, in an
  assistant's turn with ``tool_calls``.
* ShareGPT: ``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}``.
* prompt and completion (TRL): ``{"prompt": ..., "completion": ...}``, texts (a user's turn and the
  assistant's) or lists of turns. The completion alone is learnt.
* Alpaca: ``{"instruction": ..., "input": ..., "output": ...}``, with ``history`` (pairs of earlier
  turns). Instruction and input are one user turn, an empty line between them.

A record of any format may have ``system``, the text of a turn before all others, ``tools`` and
``builtin_tools``. Keys have other names, too (:data:`SPELLINGS`). A list of turns may be JSON, or a
list of JSON, and a turn may be spelled in either way
(:mod:`~megatron_ultralong.data.read.conversation_turns`). A key of a record or of a turn whose
value is null is one that is not there: parquet has every key in every record.
"""

import dataclasses
import json
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from megatron_ultralong.data.read import conversation as chat
from megatron_ultralong.data.read.beside_turns import check_beside_turns
from megatron_ultralong.data.read.conversation_turns import TurnOptions, content_of, read_turns
from megatron_ultralong.data.read.options import ChatFormat, Reasoning

Fields = Mapping[str, Any]

MARKS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
"""Keys by which a record is known; the first format that has all of its own is taken."""

_OF_ALL = ("system", "tools", "builtin_tools")
KEYS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", *_OF_ALL),
    "sharegpt": ("conversations", *_OF_ALL),
    "prompt-completion": ("prompt", "completion", *_OF_ALL),
    "alpaca": ("instruction", "input", "output", "history", *_OF_ALL),
}
"""Keys of a record that are read."""

SPELLINGS: dict[str, tuple[str, ...]] = {
    "prompt": ("question",),
    "completion": ("response", "answer"),
    "input": ("context",),
    "output": ("response",),
    "system": ("system_prompt", "system_message"),
}
"""Other names of a key, one of which is read where the key is not there (Dolly, GSM8K, Orca)."""

CHOSEN = "chosen"
"""Key of the better answer in data of preferences, whose turns end with the question."""

_SIDES = {"prompt-completion": ("prompt", "completion"), "alpaca": ("instruction", "output")}
_TEXTS = ("instruction", "context", "input", "history")
"""Keys of texts that belong to a question, whatever format reads them."""


def keys_read(record: Fields, chat_format: ChatFormat) -> tuple[str, dict[str, str]]:
    """The format of a record, and the keys in it that are read, by the format's own.

    Raises:
        ConversationError: it is of no format, or not of this one, or other names leave out a text.
    """
    there = {key for key, value in record.items() if value is not None}
    formats = MARKS if chat_format == "auto" else (chat_format,)
    # The marks of a format itself come before other names of those of another.
    for name in sorted(formats, key=lambda name: not there.issuperset(MARKS[name])):
        names = {key: (key, *SPELLINGS.get(key, ())) for key in KEYS[name]}
        found = {key: [one for one in its if one in there] for key, its in names.items()}
        keys = {
            key: next((one for one in its if record[one] != ""), its[0])
            for key, its in found.items()
            if its
        }
        missing = [key for key in MARKS[name] if key not in keys]
        if not missing:
            _check_all_texts(record, name, keys)
            _check_one_system(record, found.get("system", []))
            return name, keys
    here = f"keys here: {', '.join(str(key) for key in record if key in there)[:300] or 'none'}"
    if chat_format != "auto":
        text = f"a record of format {chat_format} has no {missing[0]!r}; {here}"
        raise chat.ConversationError("unknown format", text)
    known = ", ".join(f"{name} ({' and '.join(marks)})" for name, marks in MARKS.items())
    text = f"no format has these keys; {here}; known are {known}"
    inner = (
        key
        for key, value in record.items()
        if isinstance(value, Mapping) and any(value.keys() >= {*m} for m in MARKS.values())
    )
    if key := next(inner, ""):
        query = f".[{json.dumps(key)}]"
        beside = [k for k, its in record.items() if k != key and its and isinstance(its, list)]
        text += f"; one is under {key!r}" + (
            f", and perhaps more turns under {beside[0]!r}: join those that are to be learnt"
            if beside
            else f": `jq -c {shlex.quote(query)} FILE > new.jsonl` takes it out"
        )
    if "text" in record:
        text += "; documents are packed by `ultralong prepare`"
    raise chat.ConversationError("unknown format", text)


def _check_all_texts(record: Fields, name: str, keys: Mapping[str, str]) -> None:
    """Refuse a record known by other names of its marks which has more texts of a question.

    Without them it would say another thing, and where they belong nothing here states.

    Raises:
        ConversationError: it has.
    """
    if all(keys[mark] == mark for mark in MARKS[name]) or name not in _SIDES:
        return
    more = [key for key in _TEXTS if record.get(key) and key not in keys.values()]
    if not more:
        return
    question, answer = (keys[mark] for mark in _SIDES[name])
    there = [*more, *keys.values()]
    system = keys.get("system", "instruction" if "instruction" in more else "")
    text = next((key for key in ("context", "input") if key in there), "")
    parts = {"system": system, "instruction": question, "input": text, "output": answer}
    parts |= {key: key for key in ("history",) if key in there}
    to_read = ", ".join(f"{key}: .{its}" for key, its in parts.items() if its)
    left = ", ".join(f".{key}" for key in more)
    raise chat.ConversationError(
        "unknown keys",
        f"a record of {question!r} and {answer!r} has {' and '.join(map(repr, more))} too, which "
        f"would be left out; write it as jq -c '{{{to_read}}}' does, or without: "
        f"jq -c 'del({left})'",
    )


def _check_one_system(record: Fields, names: Sequence[str]) -> None:
    """Raise ConversationError where a record has several system texts, of which one is read."""
    texts = {name: record[name] for name in names if record[name] != ""}
    if len({repr(text) for text in texts.values()}) > 1:
        kept, *others = texts
        raise chat.ConversationError(
            "unknown keys",
            f"a record has {' and '.join(map(repr, texts))}, which are not the same, and one "
            f"system turn; join them, or write it without: jq -c 'del(.{', .'.join(others)})' "
            f"keeps {kept!r}",
        )


def parse_conversation(
    record: Fields,
    chat_format: ChatFormat,
    ignore_keys: Collection[str] = (),
    reasoning: Reasoning = "drop",
) -> chat.Conversation:
    """The conversation of a record, cut to what can be learnt, and checked.

    The options are those of :class:`~megatron_ultralong.data.read.options.ChatReadOptions`.

    Raises:
        ConversationError: it is none, or none to train on.
    """
    name, keys = keys_read(record, chat_format)
    check_beside_turns(record, ignore_keys)
    options = TurnOptions(frozenset(ignore_keys), reasoning)
    read = {key: record[its] for key, its in keys.items()}
    if name in _PARSERS:
        turns = _PARSERS[name](read, options)
    else:
        (mark,) = MARKS[name]
        turns = read_turns(read[mark], mark, options)
    messages = _with_system(read, turns, options)
    builtin_tools = _builtin_tools_of(read.get("builtin_tools"), options.texts)
    conversation = chat.Conversation(
        _without_empty_system(messages),
        _tools_of(read.get("tools"), options.texts),
        builtin_tools,
        has_reasoning=any(message.has_reasoning for message in messages),
    ).learnable()
    if messages[-1].role == "user" and record.get(CHOSEN) and CHOSEN not in ignore_keys:
        raise _answer_beside(record, name)
    conversation.check()
    return conversation


def _answer_beside(record: Fields, name: str) -> chat.ConversationError:
    """Of turns that end with a question, whose answer stands under another key."""
    mark = MARKS[name][0]
    turns = f".{CHOSEN}" if isinstance(record[CHOSEN], list) else f"[.{CHOSEN}]"
    return chat.ConversationError(
        "unknown keys",
        f"a record has its last answer under {CHOSEN!r}, which would be left out: if it is a turn, "
        f"append it with jq -c '.{mark} += {turns}'; --ignore-keys {CHOSEN} trains without it",
    )


def _prompt_completion(fields: Fields, options: TurnOptions) -> list[chat.Message]:
    prompt = _side(fields["prompt"], "prompt", "user", options)
    completion = _side(fields["completion"], "completion", "assistant", options)
    return [dataclasses.replace(message, is_learnt=False) for message in prompt] + completion


def _side(value: Any, name: str, role: chat.Role, options: TurnOptions) -> list[chat.Message]:
    """Turns of a prompt or a completion; a text is one turn."""
    return (
        [chat.Message(role, value)] if isinstance(value, str) else read_turns(value, name, options)
    )


def _alpaca(fields: Fields, options: TurnOptions) -> list[chat.Message]:
    messages = []
    for number, pair in enumerate(chat.list_of("history", fields.get("history", []))):
        pair = chat.list_of(f"history {number}", pair)
        if len(pair) != 2:
            raise chat.ConversationError(
                "wrong type", f"history {number} has {len(pair)} texts, not a question and answer"
            )
        messages += [chat.Message("user", pair[0]), chat.Message("assistant", pair[1])]
    question, more = fields["instruction"], fields.get("input", "")
    for key, value in (("instruction", question), ("input", more)):
        chat.require_type(value, str, f"{key} is", ", not a text")
    if more.strip():
        question = f"{question.strip()}\n\n{more.strip()}"
    return [*messages, chat.Message("user", question), chat.Message("assistant", fields["output"])]


_PARSERS: dict[str, Callable[[Fields, TurnOptions], list[chat.Message]]] = {
    "prompt-completion": _prompt_completion,
    "alpaca": _alpaca,
}
"""Of formats whose records are more than a list of turns."""


def _with_system(
    fields: Fields, messages: list[chat.Message], options: TurnOptions
) -> list[chat.Message]:
    """The turns behind one of the record's ``system``, unless the first of them is that already."""
    text = content_of("system", "system", fields.get("system", ""), options)
    its = [chat.Message("system", text)] if text != "" else []
    return messages if its == messages[:1] else [*its, *messages]


def _without_empty_system(messages: list[chat.Message]) -> tuple[chat.Message, ...]:
    """Many sets have an empty system turn in every conversation: it says nothing."""
    first = messages[0]
    is_empty = first.role == "system" and isinstance(first.content, str)
    if is_empty and not first.content.strip():
        return tuple(messages[1:])
    return tuple(messages)


def _tools_of(value: Any, texts: chat.JsonTexts) -> tuple[Mapping[str, Any], ...] | None:
    """JSON schemas of functions: a list, or JSON of one; each and its parameters may be JSON.

    Raises:
        ConversationError: a tool is not an object.
    """
    value = texts.value_or_none("tools", value)
    if value is None:
        return None
    tools = []
    for number, tool in enumerate(chat.list_of("tools", value)):
        tool = texts.value(f"tool {number}", tool)
        chat.require_type(tool, Mapping, f"tool {number} is", f": {tool!r:.80}", "bad tool call")
        tools.append(_with_schema(number, tool, texts))
    return tuple(tools) or None


def _with_schema(number: int, tool: Mapping[str, Any], texts: chat.JsonTexts) -> Mapping[str, Any]:
    """The tool, its parameters an object where they were written as JSON."""
    function = tool.get("function")
    if isinstance(function, Mapping):
        return {**tool, "function": _with_schema(number, function, texts)}
    parameters = tool.get("parameters")
    if not isinstance(parameters, str):
        return tool
    return {**tool, "parameters": texts.value(f"tool {number}: parameters", parameters)}


def _builtin_tools_of(value: Any, texts: chat.JsonTexts) -> tuple[str, ...] | None:
    """Names of Llama 3.1's own tools: a list, or JSON of one.

    Raises:
        ConversationError: they are no texts.
    """
    value = texts.value_or_none("builtin_tools", value)
    if value is None:
        return None
    names = chat.list_of("builtin_tools", value)
    if not all(isinstance(name, str) for name in names):
        raise chat.ConversationError("bad tool call", f"builtin_tools are names, not {names!r:.80}")
    return tuple(names)

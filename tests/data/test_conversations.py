"""Conversations out of records: three formats that mean one thing, and what is refused."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.read.conversation import ConversationError, Message, ToolCall
from megatron_ultralong.data.read.conversation_formats import (
    KEYS,
    MARKS,
    SPELLINGS,
    keys_read,
    parse_conversation,
)
from megatron_ultralong.data.read.conversation_turns import OPENAI_ROLES
from megatron_ultralong.data.read.options import ChatReadOptions
from megatron_ultralong.data.read.reading import ConversationReader
from megatron_ultralong.data.read.sources import Source
from megatron_ultralong.program.errors import InputError
from tests.data.chats import random_record, write_jsonl


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_three_formats_mean_one_conversation() -> None:
    turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    names = {"user": "human", "assistant": "gpt"}
    sharegpt = {
        "conversations": [{"from": names[role], "value": text} for role, text in turns[1:]],
        "system": "S",
    }
    alpaca = {
        "instruction": "c",
        "input": "",
        "output": "d",
        "system": "S",
        "history": [["a", "b"]],
    }
    expected = parse_conversation(chat(*turns), "auto")
    assert expected.messages == tuple(Message(role, text) for role, text in turns)  # type: ignore[arg-type]
    assert parse_conversation(sharegpt, "auto") == expected
    assert parse_conversation(alpaca, "auto") == expected
    with_input = parse_conversation({**alpaca, "input": " 1 2\n"}, "alpaca")
    assert with_input.messages[-2].content == "c\n\n1 2"


def test_a_call_is_the_same_however_it_is_written() -> None:
    function = {"name": "f", "arguments": {"x": 1}}
    call = {"id": "1", "type": "function", "function": function}
    text = {"function": {"name": "f", "arguments": json.dumps({"x": 1})}}
    result, answer = {"role": "tool", "content": {"y": 2}}, {"role": "assistant", "content": "b"}
    for calls in ([call], [text], json.dumps([call])):
        record = chat(("user", "a"))
        record["messages"] += [{"role": "assistant", "tool_calls": calls}, result, answer]
        messages = parse_conversation(record, "auto").messages
        assert messages[1] == Message("assistant", "", ToolCall("f", {"x": 1}))
        assert messages[2] == Message("tool", {"y": 2})
    sharegpt = [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": json.dumps(function)},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "b"},
    ]
    parsed = parse_conversation({"conversations": sharegpt, "tools": "[]"}, "auto")
    assert parsed.messages[1] == Message("assistant", "", ToolCall("f", {"x": 1}))
    assert parsed.tools is None


@pytest.mark.parametrize("name", KEYS)
def test_other_names_of_keys_are_the_same_record(name: str) -> None:
    """Each where the key is not there, none beside it; what is not read is known."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    values = {key: turns if key in ("messages", "conversations") else key for key in MARKS[name]}
    values |= {"input": "more"} if name == "alpaca" else {}
    expected = parse_conversation(values, "auto")
    others = [(key, one) for key in values for one in SPELLINGS.get(key, ())]
    assert bool(others) == (name in ("prompt-completion", "alpaca"))
    for key, other in others:
        changed = {(other if one == key else one): value for one, value in values.items()}
        for chat_format in ("auto", name):
            assert parse_conversation(changed, chat_format) == expected
        assert keys_read(changed, "auto")[1][key] == other
        both = {**values, other: "not this"}
        assert parse_conversation(both, name) == expected
        assert other not in keys_read(both, name)[1].values()


def test_roles_of_other_programs() -> None:
    for role, known in OPENAI_ROLES.items():
        turns = {"system": 0, "user": 1, "assistant": 2, "tool": 4}
        call = {"function": {"name": "f", "arguments": {}}}
        record = [
            *({"role": "system", "content": "s"}, {"role": "user", "content": "a"}),
            *({"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}),
            {"role": "tool", "content": "c"},
            {"role": "assistant", "content": "b"},
        ]
        record[4:4] = [{"role": "assistant", "tool_calls": [call]}]
        place = turns[known] + (known == "tool")
        changed = [*record[:place], {**record[place], "role": role}, *record[place + 1 :]]
        expected = parse_conversation({"messages": record}, "auto")
        assert parse_conversation({"messages": changed}, "auto") == expected


@pytest.mark.parametrize("more", ["instruction", "context", "input", "history"])
@pytest.mark.parametrize("answer", ["answer", "response", "completion"])
@pytest.mark.parametrize("question", ["question", "prompt", "instruction"])
def test_no_text_of_a_question_is_lost_under_other_names(
    question: str, answer: str, more: str
) -> None:
    """A record that other names made readable says all that it said, or is refused."""
    record = {question: "Q", answer: "A"}
    if (question, answer) == ("prompt", "completion") or more in record:
        return
    said = said_of({**record, more: [["MORE", "MORE"]] if more == "history" else "MORE"})
    is_alpaca = (question, answer) == ("instruction", "response")
    if is_alpaca:
        assert "MORE" in said
    elif question == "instruction":
        assert said.startswith("unknown format: ")
    else:
        assert said.startswith(
            f"unknown keys: a record of '{question}' and '{answer}' has '{more}'"
        )
        assert f": .{question}, " in said
        assert f"'del(.{more})'" in said
    if is_alpaca or question != "instruction":
        assert said_of({**record, more: [] if more == "history" else ""}) == "QA"


def said_of(record: dict[str, Any]) -> str:
    try:
        messages = parse_conversation(record, "auto").messages
    except ConversationError as error:
        return f"{error.problem}: {error}"
    return "".join(message.content for message in messages)


@pytest.mark.parametrize("key", ["system", *SPELLINGS["system"]])
@pytest.mark.parametrize("name", MARKS)
def test_a_system_text_beside_the_turns_is_read_in_every_format(name: Any, key: str) -> None:
    """OpenOrca has ``system_prompt``, others ``system`` beside ``messages``."""
    system, *turns = chat(("system", "S"), ("user", "Q"), ("assistant", "A"))["messages"]
    has_turns = len(MARKS[name]) == 1
    values = {mark: turns if has_turns else "QA"[n] for n, mark in enumerate(MARKS[name])}
    found = parse_conversation({**values, key: "S"}, name).messages
    assert [(one.role, one.content) for one in found] == [
        *(("system", "S"), ("user", "Q"), ("assistant", "A"))
    ]
    assert parse_conversation({**values, key: ""}, name).messages == found[1:]
    if has_turns:
        record = {MARKS[name][0]: [system, *turns]}
        assert parse_conversation({**record, key: "S"}, name).messages == found
        with pytest.raises(ConversationError, match="turn 1 is 'system' after 'system'"):
            parse_conversation({**record, key: "another"}, name)


def test_an_empty_text_is_not_read_before_its_other_name() -> None:
    record = {"instruction": "a", "input": "", "context": "c", "output": "b"}
    assert parse_conversation(record, "auto").messages[0].content == "a\n\nc"
    record = {"instruction": "a", "output": "b", "question": "c", "answer": "d"}
    assert keys_read(record, "auto")[0] == "alpaca"


def test_keys_that_a_record_has_beside_its_own_are_told(tmp_path: Path) -> None:
    """Also those that another format would read."""
    records = [{"prompt": "a", "completion": "b", "context": "c", "x": 1}]
    write_jsonl(tmp_path / "a.jsonl", records)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for suffix in (".jsonl", ".parquet"):
        reader = ConversationReader(Source("s", f"{tmp_path}/a{suffix}"), ChatReadOptions())
        assert len(list(reader)) == 1
        assert reader.unread_keys == {"context": 1, "x": 1}


USER, ANSWER = ("user", "a"), ("assistant", "b")
CALL = [{"function": {"name": "f", "arguments": {}}}]
BAD: list[tuple[dict[str, Any], str, str]] = [
    (chat(ANSWER, USER), "no assistant turn", "no turn of the assistant's follows one of the us"),
    (chat(ANSWER), "no assistant turn", "no turn of the assistant's follows one of the user's"),
    (chat(USER, USER, ANSWER), "roles out of order", "turn 1 is 'user' after 'user', not 'assis"),
    (chat(USER, ("system", "s"), ANSWER), "roles out of order", "turn 1 is 'system' after 'user'"),
    (chat(USER, ANSWER, ANSWER), "roles out of order", "turn 2 is 'assistant' after 'assistant'"),
    (chat(USER, ("tool", "x"), ANSWER), "roles out of order", "turn 1 is 'tool' after 'user'"),
    (
        {
            "messages": [
                *chat(USER)["messages"],
                {"role": "assistant", "tool_calls": CALL},
                *chat(("tool", 42), ANSWER)["messages"],
            ]
        },
        "wrong type",
        "turn 2 .tool. has content of type int, not a text, an object or a list: write it as a te",
    ),
    (chat(USER, ANSWER, ("system", "s")), "roles out of order", "turn 2 is 'system' after 'assis"),
    (chat(USER, ("bird", "b")), "roles out of order", "turn 1 has role 'bird'; known are system"),
    (chat(USER), "no assistant turn", "no turn is the assistant's"),
    ({"messages": []}, "no assistant turn", "messages is empty"),
    (chat(("system", "s")), "no assistant turn", "no turn is the assistant's"),
    (chat(USER, ("assistant", " \n")), "empty turn", r"turn 1 \(assistant\) is empty"),
    (chat(USER, ("assistant", None)), "empty turn", r"turn 1 \(assistant\) is empty"),
    (chat(("user", ""), ANSWER), "empty turn", r"turn 0 \(user\) is empty"),
    (chat(USER, ("assistant", ["b"])), "wrong type", "part 0 is a str, not an object"),
    (chat(USER, ("assistant", "\ud800")), "unreadable", "a lone surrogate at character 0"),
    ({"messages": 3}, "wrong type", "messages is an int, not a list"),
    ({"messages": "a"}, "wrong type", r"messages is a text that is not JSON: .*, in 'a'"),
    ({"messages": ["a"]}, "wrong type", "turn 0 is a text that is not JSON"),
    ({"messages": ["3"]}, "wrong type", "turn 0 is an int, not an object"),
    (
        {"messages": [{"role": "user", "content": "a", "wieght": 0}]},
        "unknown keys",
        r"turn 0 has unknown keys \['wieght'\], known are .*--ignore-keys",
    ),
    ({"conversations": [{"from": "bird", "value": "a"}]}, "roles out of order", "from 'bird'"),
    (
        {"conversations": [{"from": "human", "text": "a"}]},
        "unknown keys",
        r"unknown keys \['text'\]",
    ),
    ({"text": "a"}, "unknown format", "no format has these keys; keys here: text; known are"),
    (
        {"instruction": "a", "output": ""},
        "empty turn",
        r"turn 1 \(assistant\) is empty",
    ),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, "wrong type", "history 0 has 1 text"),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": "["}]},
        "bad tool call",
        "turn 1: tool_calls is a text that is not JSON",
    ),
    (
        {"messages": [{"role": "user", "content": "a", "tool_calls": CALL}]},
        "bad tool call",
        r"turn 0 \(user\) has tool_calls",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": CALL * 2},
            ]
        },
        "bad tool call",
        "turn 1 has 2 tool calls: --chat-template llama3.1, .* write each in a turn of its own",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            ]
        },
        "unknown keys",
        "turn 1 has function_call, OpenAI's old form: write a call as .*tool_calls",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": CALL},
                {"role": "function", "name": "f", "content": "1"},
            ]
        },
        "roles out of order",
        "turn 2 has role 'function', OpenAI's old form: .*, its result as a turn of role tool",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "lost", "tool_calls": CALL},
            ]
        },
        "bad tool call",
        "a text beside its tool call, which the template leaves out: 'lost'",
    ),
]


@pytest.mark.parametrize(("record", "problem", "message"), BAD)
def test_bad_conversations_say_why(record: dict[str, Any], problem: str, message: str) -> None:
    with pytest.raises(ConversationError, match=message) as found:
        parse_conversation(record, "auto")
    assert found.value.problem == problem


def test_an_empty_system_turn_and_ignored_keys_say_nothing() -> None:
    record = chat(("system", "  "), USER, ANSWER)
    record["messages"][1]["token_count"] = 3
    parsed = parse_conversation(record, "messages", ["token_count"])
    assert [message.role for message in parsed.messages] == ["user", "assistant"]


def test_a_file_stops_at_a_bad_line_or_counts_it(tmp_path: Path) -> None:
    good = chat(USER, ANSWER)
    unordered = next(record for record, problem, _ in BAD if problem == "roles out of order")
    empty = next(record for record, problem, _ in BAD if problem == "empty turn")
    path = write_jsonl(tmp_path / "a.jsonl", [good, {**good, "id": 7}, unordered, empty])
    with path.open("a") as file:
        file.write('{"messages": \n')
    source = Source("web", str(path))
    with pytest.raises(
        InputError, match=r"'web': .*a.jsonl:3: roles out of order: turn 1 .*--skip"
    ):
        list(ConversationReader(source, ChatReadOptions()))
    reader = ConversationReader(source, ChatReadOptions(skip_bad=True))
    assert len(list(reader)) == reader.num_conversations == 2
    assert reader.num_bad == {"roles out of order": 1, "empty turn": 1, "unreadable": 1}
    assert reader.unread_keys == {"id": 1}
    assert reader.bytes_read == path.stat().st_size


def test_parquet_is_read_as_jsonl_is(tmp_path: Path) -> None:
    generator = random.Random(3)
    records = [random_record(generator) for _ in range(20)]
    for record in records:  # parquet has no free keys: mappings are texts there
        record["tools"] = json.dumps(record["tools"]) if "tools" in record else None
        for message in record["messages"]:
            if "tool_calls" in message:
                message["tool_calls"] = json.dumps(message["tool_calls"])
            if not isinstance(message.get("content", ""), str):
                message["content"] = json.dumps(message["content"])
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", records)
    parquet, jsonl = (
        [c for _, c in ConversationReader(Source("x", str(tmp_path / name)), ChatReadOptions())]
        for name in ("a.parquet", "a.jsonl")
    )
    assert parquet == jsonl
    assert len(jsonl) == 20


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '["Hello."]', "a JSON array of what are no objects"),
        ("a.json", '{"data": [{"messages": []}]}', r"""jq -c '\.\["data"\]\[\]' /\S*/a\.json >"""),
        ("a.txt", "Hello.", "neither JSON nor parquet"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        ConversationReader(Source("x", str(tmp_path / name)), ChatReadOptions())


def test_a_second_system_text_is_not_left_out_with_a_note_alone() -> None:
    record = chat(("user", "q"), ("assistant", "a")) | {"system": "", "system_prompt": "B"}
    for other in ("B", "", None):  # nothing is left out
        found = parse_conversation({**record, "system_message": other}, "auto")
        assert found.messages[0] == Message("system", "B")
    with pytest.raises(ConversationError) as caught:
        parse_conversation({**record, "system_message": "C"}, "auto")
    assert "'system_prompt' and 'system_message', which are not the same" in str(caught.value)
    assert "jq -c 'del(.system_message)' keeps 'system_prompt'" in str(caught.value)


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize("key", ["data", "the chat's"])
def test_a_conversation_inside_a_record_is_told_with_what_takes_it_out(name: str, key: str) -> None:
    """Of each format; the command is that of jq, here read as Python reads its words."""
    record = {"id": "1", key: dict.fromkeys(MARKS[name], "x")}
    with pytest.raises(ConversationError, match="one is under") as error:
        parse_conversation(record, "auto")
    (command,) = re.findall("`([^`]*)`", str(error.value))
    words = shlex.split(command)
    assert words == ["jq", "-c", f".[{json.dumps(key)}]", "FILE", ">", "new.jsonl"]


def test_a_conversation_whose_answer_stands_beside_it_is_not_taken_out_alone() -> None:
    turn = {"role": "assistant", "content": "a"}
    record = {"input": {"messages": [turn]}, "preferred_output": [turn], "id": "1"}
    with pytest.raises(
        ConversationError, match="perhaps more turns under 'preferred_output'"
    ) as error:
        parse_conversation(record, "auto")
    assert "jq" not in str(error.value)

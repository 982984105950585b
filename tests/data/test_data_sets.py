"""What data sets hold: parts, JSON in texts, prompts, weights, reasoning, turns to be cut."""

from __future__ import annotations

import datetime
import decimal
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.read.conversation import ConversationError, Message, ToolCall
from megatron_ultralong.data.read.conversation_formats import parse_conversation
from megatron_ultralong.data.read.conversation_turns import REASONING
from megatron_ultralong.data.read.options import ChatReadOptions
from megatron_ultralong.data.rows.manifest import ChatManifest
from megatron_ultralong.data.rows.stored import ChatRows
from megatron_ultralong.data.tokenize.tokenising import HuggingFaceTokenizer
from megatron_ultralong.program.errors import InputError
from tests.data.chats import TEMPLATE, write_chat_tokenizer, write_jsonl

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "3"}
SYSTEM = {"role": "system", "content": "s"}


def messages(*turns: Any, **options: Any) -> tuple[Message, ...]:
    return parse_conversation({"messages": list(turns)}, "auto", **options).messages


def text(value: str, **keys: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **keys}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_chat_tokenizer(folder, TEMPLATE)
    return folder


def prepare(tokenizer: Path, file: Path, **options: Any) -> tuple[ChatManifest, Path]:
    output = file.with_suffix(".rows")
    values = {"seq_length": 2048, "valid_fraction": 0.0, **options}
    config = PrepareChatConfig(source=(f"x={file}",), tokenizer=tokenizer, output=output, **values)
    return prepare_chat(config), output


def learnt(tokenizer: Path, output: Path) -> list[list[str]]:
    """The texts to be learnt of every conversation."""
    decode = HuggingFaceTokenizer(tokenizer).decode
    rows = ChatRows(output / "train")
    return [
        [decode(tokens[start:stop].tolist()) for start, stop in targets.tolist()]
        for number in range(len(rows))
        for tokens, targets in rows.examples(number)
    ]


def test_parts_are_one_text() -> None:
    parts = [text("How far"), text(" is it?", image_url=None, cache_control={"type": "x"})]
    found = messages({"role": "user", "content": parts}, {**ANSWER, "content": [text(" b\n")]})
    assert [message.content for message in found] == ["How far is it?", " b\n"]
    spoken = {"conversations": [{"from": "human", "value": parts}, {"from": "gpt", "value": "b"}]}
    assert parse_conversation(spoken, "auto").messages[0].content == "How far is it?"


def test_keys_of_parts_are_passed_over_where_they_are_named() -> None:
    user = {"role": "user", "content": [text("a", index=0)]}
    assert messages(user, ANSWER, ignore_keys=["index"]) == messages(USER, ANSWER)


def test_a_tools_parts_are_data() -> None:
    """Llama 3.1's template writes a list as JSON: so do we."""
    result = {"role": "tool", "content": [text("3")]}
    assert messages(USER, CALL, result, ANSWER)[2].content == [text("3")]


BAD_PARTS = [
    (
        [{"type": "image_url", "image_url": {"url": "u"}}],
        "no text",
        "part 0 is of type 'image_url'",
    ),
    ([text("a"), {"type": "image"}], "no text", "part 1 is of type 'image': nothing but text"),
    ([{"type": "thinking", "thinking": "x"}], "no text", "is of type 'thinking'"),
    ([text("a", image="u")], "no text", "part 0 has 'image' beside its text"),
    ([{"type": "text"}], "wrong type", "part 0 has a text of type NoneType"),
    ([["a"]], "wrong type", "part 0 is a list, not an object"),
    ([], "empty turn", "is empty"),
    ([text(" ")], "empty turn", "is empty"),
]


@pytest.mark.parametrize(("parts", "problem", "message"), BAD_PARTS)
def test_parts_that_are_no_text_are_refused(parts: Any, problem: str, message: str) -> None:
    with pytest.raises(ConversationError, match=message) as found:
        messages({"role": "user", "content": parts}, ANSWER)
    assert found.value.problem == problem


def test_json_in_texts_at_every_place() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": [None]}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"default": None}}}
    turns = [USER, {"role": "assistant", "tool_calls": [call]}, RESULT, ANSWER]
    expected = parse_conversation({"messages": turns, "tools": [tool]}, "auto")
    assert expected.messages[1].tool_call == ToolCall("f", {"x": [None]})
    in_call = {**call, "function": {"name": "f", "arguments": json.dumps({"x": [None]})}}
    in_tool = {"type": "function", "function": {"name": "f", "parameters": '{"default": null}'}}
    for record in (
        {"messages": json.dumps(turns), "tools": json.dumps([tool])},
        {"messages": [json.dumps(turn) for turn in turns], "tools": [json.dumps(tool)]},
        {"messages": [USER, {**turns[1], "tool_calls": json.dumps([call])}, *turns[2:]],
         "tools": [in_tool]},
        {"messages": [USER, {**turns[1], "tool_calls": [json.dumps(call)]}, *turns[2:]],
         "tools": [tool]},
        {"messages": [USER, {**turns[1], "tool_calls": [in_call]}, *turns[2:]], "tools": [tool]},
        {"conversations": turns, "tools": [tool]},
    ):  # fmt: skip
        assert parse_conversation(record, "auto") == expected


@pytest.mark.parametrize("nothing", ["null", "[]", "", None, []])
def test_nothing_in_a_text_is_nothing(nothing: Any) -> None:
    record = {
        "messages": [USER, {**ANSWER, "tool_calls": nothing}],
        "tools": nothing,
        "builtin_tools": nothing if nothing in ("null", None) else None,
    }
    assert parse_conversation(record, "auto") == parse_conversation(
        {"messages": [USER, ANSWER]}, "auto"
    )
    call = {"function": {"name": "f", "arguments": nothing if nothing != [] else None}}
    if nothing != "[]":
        found = messages(USER, {"role": "assistant", "tool_calls": [call]})
        assert found[1].tool_call == ToolCall("f", {})


def test_a_completion_alone_is_learnt() -> None:
    as_texts = parse_conversation({"prompt": "a", "completion": "b"}, "auto")
    assert as_texts.messages == (Message("user", "a", is_learnt=False), Message("assistant", "b"))
    prompt = [SYSTEM, USER, ANSWER, USER]
    record = {"prompt": prompt, "completion": [CALL, RESULT, ANSWER], "tools": [{"name": "f"}]}
    found = parse_conversation(record, "auto")
    answers = [m.is_learnt for m in found.messages if m.role == "assistant"]
    assert answers == [False, True, True]
    assert found.tools == ({"name": "f"},)
    assert parse_conversation({**record, "prompt": prompt, "completion": "b"}, "prompt-completion")


CUTS = [
    ([USER, ANSWER, USER], "ua", 0, 1),
    ([USER, ANSWER, USER, USER], "ua", 0, 2),
    ([ANSWER, USER, ANSWER], "ua", 1, 0),
    ([SYSTEM, ANSWER, USER, ANSWER, USER], "sua", 1, 1),
    ([CALL, RESULT, ANSWER, USER, ANSWER], "ua", 3, 0),
    ([USER, CALL, RESULT], "ua", 0, 1),
    ([USER, CALL], "ua", 0, 0),
]


@pytest.mark.parametrize(("turns", "left", "start", "end"), CUTS)
def test_turns_that_nothing_is_learnt_from_are_cut(
    turns: list[Any], left: str, start: int, end: int
) -> None:
    found = parse_conversation({"messages": turns}, "auto")
    assert "".join(message.role[0] for message in found.messages) == left
    assert (found.num_cut_at_start, found.num_cut_at_end) == (start, end)


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, True, False])
def test_weights(key: str, value: Any) -> None:
    for spelled in (ANSWER, {"from": "gpt", "value": "b"}):
        user = {**USER, "weight": 0} if "role" in spelled else {"from": "human", "value": "a"}
        found = messages(user, {**spelled, key: value})
        assert found[1] == Message("assistant", "b", is_learnt=bool(value))


BAD_WEIGHTS = [
    ([USER, {**ANSWER, "weight": 0.5}], r"turn 1 has weight 0.5: a turn is learnt \(1, true\)"),
    ([USER, {**ANSWER, "train": "no"}], "turn 1 has train 'no'"),
    ([USER, {**ANSWER, "train": True, "weight": 0}], "turn 1 has weights that differ"),
    ([{**USER, "train": True}, ANSWER], r"turn 0 \(user\) has train True, .*--ignore-keys train"),
]


@pytest.mark.parametrize(("turns", "message"), BAD_WEIGHTS)
def test_bad_weights(turns: list[Any], message: str) -> None:
    with pytest.raises(ConversationError, match=message) as found:
        messages(*turns)
    assert found.value.problem == "bad weight"


def test_a_weight_of_a_users_turn_says_nothing_or_is_passed_over() -> None:
    assert messages({**USER, "weight": 1}, ANSWER) == messages(USER, ANSWER)
    ignored = messages({**USER, "train": True}, {**ANSWER, "train": 0}, ignore_keys=["train"])
    assert ignored == messages(USER, ANSWER)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_left_out_or_kept(key: str) -> None:
    turns = [USER, {**ANSWER, key: "\nwhy \n"}]
    assert messages(*turns) == messages(USER, ANSWER)
    kept = messages(*turns, reasoning="keep")
    assert kept[1].content == "<think>\nwhy\n</think>\n\nb"
    assert messages(USER, {**ANSWER, key: " "}, reasoning="keep") == messages(USER, ANSWER)
    with pytest.raises(
        ConversationError, match=r"reasoning beside its tool call.*--reasoning drop"
    ):
        messages(USER, {**CALL, key: "why"}, reasoning="keep")
    with pytest.raises(ConversationError, match=rf"turn 1 has {key} of type list"):
        messages(USER, {**ANSWER, key: ["why"]})


def test_reasoning_under_two_keys_is_kept_where_it_is_one() -> None:
    for one, other in itertools.combinations(REASONING, 2):
        same = {**ANSWER, one: "why", other: "why"}
        kept = messages(USER, same, reasoning="keep")
        assert kept == messages(USER, {**ANSWER, one: "why"}, reasoning="keep")
        differing = [USER, {**ANSWER, one: "why", other: "hm"}]
        assert messages(*differing) == messages(USER, ANSWER)
        with pytest.raises(ConversationError, match=rf"'{one}' and '{other}', which are not"):
            messages(*differing, reasoning="keep")
        kept = messages(*differing, reasoning="keep", ignore_keys=[other])
        assert kept == messages(USER, {**ANSWER, one: "why"}, reasoning="keep")


@pytest.mark.parametrize(
    "value",
    [datetime.date(2026, 1, 2), b"x", decimal.Decimal(1), [("a", 1)], {1: 2}],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_has_not_are_counted(value: Any) -> None:
    for record in (
        {"messages": [USER, {**CALL, "tool_calls": [{"name": "f", "arguments": {"x": value}}]}]},
        {"messages": [USER, ANSWER], "tools": [{"name": "f", "x": value}]},
        {"messages": [USER, CALL, {**RESULT, "content": {"x": value}}, ANSWER]},
    ):
        with pytest.raises(ConversationError, match=r"has a value of type .*which JSON has not"):
            parse_conversation(record, "auto")


TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "w", "parameters": {
            "type": "object", "properties": {"city": {"type": "string", "description": "c"}},
            "required": ["city"]}}},
    {"type": "function", "function": {
        "name": "sum", "description": "s", "parameters": {
            "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"]}}},
]  # fmt: skip


def called(name: str, **arguments: Any) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [{"role": "user", "content": name}, answer, RESULT, ANSWER]


def test_parquet_gives_the_bytes_of_jsonl(tokenizer: Path, tmp_path: Path) -> None:
    """Nothing of another tool's parameters is written into a call, or learnt."""
    records = [
        {"messages": called("weather", city="Oslo"), "tools": TOOLS},
        {"messages": called("sum", a=2, b=3), "tools": TOOLS},
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "struct.parquet")
    texts = [{key: json.dumps(value) for key, value in record.items()} for record in records]
    pq.write_table(pa.Table.from_pylist(texts), tmp_path / "text.parquet")
    write_jsonl(tmp_path / "lines.jsonl", records)
    outputs = {
        name: prepare(tokenizer, tmp_path / name)[1]
        for name in ("lines.jsonl", "struct.parquet", "text.parquet")
    }
    expected = [[f"{text}<|eot_id|>" for text in texts] for texts in (
        ['{"name": "weather", "parameters": {"city": "Oslo"}}', "b"],
        ['{"name": "sum", "parameters": {"a": 2, "b": 3}}', "b"],
    )]  # fmt: skip
    assert sorted(learnt(tokenizer, outputs["lines.jsonl"])) == sorted(expected)
    files = [
        path.name for path in outputs["lines.jsonl"].iterdir() if path.suffix in (".bin", ".idx")
    ]
    assert len(files) == 6
    for name in files:
        whole = {output.joinpath(name).read_bytes() for output in outputs.values()}
        assert len(whole) == 1, name


def test_what_is_left_out_is_counted_and_said(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def numbered(number: int, *turns: Any) -> dict[str, Any]:
        return {"messages": [{**t, "content": f"{t['content']} {number}"} for t in turns]}

    write_jsonl(
        tmp_path / "a.jsonl",
        [
            numbered(0, ANSWER, USER, ANSWER, USER, USER),
            numbered(1, SYSTEM, ANSWER, USER, {**ANSWER, "weight": 0}, USER, ANSWER),
            numbered(2, USER, {**ANSWER, "weight": 0}),
            numbered(3, USER, {**ANSWER, "thinking": "hm"}),
            {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]},
        ],
    )
    skip = ChatReadOptions(skip_bad=True)
    with pytest.raises(InputError, match=r"a.jsonl:6: no text: turn 0 \(user\): part 0 is of type"):
        prepare(tokenizer, tmp_path / "a.jsonl")
    manifest, output = prepare(tokenizer, tmp_path / "a.jsonl", reading=skip)
    (source,) = manifest.sources
    assert source.num_bad == {"no text": 1}
    assert (source.num_conversations, source.num_examples) == (5, 4)
    assert source.num_nothing_left == 1
    assert (source.num_cut_at_start, source.num_cut_at_end, source.num_turns_cut) == (2, 1, 4)
    assert source.num_turns_not_learnt == 3
    assert source.num_with_reasoning == 1
    assert (manifest.reasoning, manifest.learnt) == ("drop", "assistant")
    said = " ".join(capsys.readouterr().out.split())
    assert "x: 4 turns cut that teach nothing: before the user's first in 2 conversations" in said
    assert "x: 3 turns of the assistant's read but not learnt (weight 0, or in a prompt)" in said
    assert "x: reasoning in 1 conversation is left out (--reasoning keep)" in said
    ends = sorted(learnt(tokenizer, output))
    assert ends == [["b 0<|eot_id|>"], ["b 1<|eot_id|>"], ["b 3<|eot_id|>"], ["b<|eot_id|>"]]


def test_reasoning_that_is_kept_is_learnt(tokenizer: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"messages": [USER, {**ANSWER, "reasoning": "hm"}]}])
    manifest, output = prepare(
        tokenizer, tmp_path / "a.jsonl", reading=ChatReadOptions(reasoning="keep")
    )
    assert manifest.reasoning == "keep"
    assert learnt(tokenizer, output) == [["<think>\nhm\n</think>\n\nb<|eot_id|>"]]


def test_equal_texts_of_other_weights_are_no_duplicates(tokenizer: Path, tmp_path: Path) -> None:
    turns = [USER, ANSWER, USER, ANSWER]
    lighter = [USER, {**ANSWER, "weight": 0}, USER, ANSWER]
    records = [{"messages": chat} for chat in (turns, lighter, turns, lighter)]
    write_jsonl(tmp_path / "a.jsonl", records)
    manifest, output = prepare(tokenizer, tmp_path / "a.jsonl")
    assert manifest.sources[0].num_duplicates == 2
    assert sorted(map(len, learnt(tokenizer, output))) == [1, 2]


def test_nulls_that_may_mean_something_are_kept_and_said(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = {"type": ["string", "null"], "default": None}
    tool = {"name": "f", "parameters": {"properties": {"city": schema}}}
    table = pa.Table.from_pylist([{"messages": [USER, ANSWER], "tools": [tool]}])
    pq.write_table(table, tmp_path / "a.parquet")
    manifest, output = prepare(tokenizer, tmp_path / "a.parquet")
    assert manifest.sources[0].num_kept_nulls == 1
    assert "1 null of default and const in tools kept" in capsys.readouterr().out
    tokens, _ = ChatRows(output / "train").examples(0)[0]
    assert '"default": null' in HuggingFaceTokenizer(tokenizer).decode(tokens.tolist())

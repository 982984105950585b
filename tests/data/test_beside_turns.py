"""What a record says beside its turns of what may be learnt is done, or refused: never ignored."""

from __future__ import annotations

import json
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.data.read.beside_turns import KEYS, MEDIA, VERDICTS
from megatron_ultralong.data.read.conversation import ConversationError
from megatron_ultralong.data.read.conversation_formats import parse_conversation
from megatron_ultralong.data.read.conversation_turns import WEIGHTS
from megatron_ultralong.program.errors import InputError
from tests.data.test_preferences import WHOLE, read, write

NOTHING: tuple[Any, ...] = (None, "", [], {})
NOT_LEARNT: list[tuple[str, Any]] = [(key, False) for key in (*VERDICTS, *WEIGHTS)]
NOT_LEARNT += [(key, zero) for key in ("weight", "train", "training") for zero in (0, 0.0)]
# as a column of a table has them
NOT_LEARNT += [(key, text) for key in ("kto_tag", *WEIGHTS) for text in ("false", "False")]
NOT_LEARNT += [(key, text) for key in ("weight", "train", "training") for text in ("0", "0.0")]
REFUSED: list[tuple[str, Any, str]] = [
    *((key, value, "bad weight") for key, value in NOT_LEARNT),
    *(("weight", value, "bad weight") for value in (0.5, 2, -1, "0.5")),
    *((key, value, "no text") for key in MEDIA for value in ("a.png", ["a.png"], {"path": "a"})),
    ("functions", [{"name": "f"}], "unknown keys"),
    ("chat_template_kwargs", {"enable_thinking": False}, "beyond the template"),
    ("chat_template_kwargs", {"custom_instructions": "x", "xml_tools": []}, "beyond the template"),
]
TAKEN: list[tuple[str, Any]] = [
    *((key, value) for key in (*VERDICTS, *WEIGHTS) for value in (None, True, 1, 1.0, "1")),
    *(("loss", value) for value in (0, 0.0, 2.5)),  # what it was, of some model
    *(("training", value) for value in ("sft", "no")),
    *(("label", value) for value in ("0", "false", "negative", 0)),
    *((key, value) for key in (*MEDIA, "functions") for value in (*NOTHING, "[]", "{}")),
    *((key, value) for key in MEDIA for value in (False, [None], [""], [[]], {"path": None})),
    *(("chat_template_kwargs", value) for value in (*NOTHING, "{}", {"a": None, "b": [], "c": ""})),
]


def test_every_key_is_tried() -> None:
    assert {key for key, _, _ in REFUSED} == {key for key, _ in TAKEN} == {*KEYS}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(("key", "value", "problem"), REFUSED)
def test_what_is_not_done_is_refused(
    tmp_path: Path, key: str, value: Any, problem: str, suffix: str
) -> None:
    for number, record in enumerate(WHOLE.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = write(folder, [{**record, key: None}, {**record, key: value}], suffix)
        with pytest.raises(InputError, match=rf"{problem}: a record has {key}\b") as told:
            read(path)
        assert f"--ignore-keys {key};" in str(told.value)
        reader = read(path, skip_bad=True)
        assert (reader.num_conversations, reader.num_bad) == (1, {problem: 1})
        assert read(path, ignore_keys=(key,)).num_conversations == 2
        if suffix == ".jsonl" and "jq -c" in str(told.value) and shutil.which("jq"):
            query = str(told.value).partition("jq -c '")[2].partition("'")[0]
            line = json.dumps({**record, key: value})
            command = ["jq", "-c", query]
            assert subprocess.run(command, input=line, text=True, capture_output=True).stdout == ""
            path.write_text(
                subprocess.run(
                    command, input=path.read_text(), text=True, capture_output=True, check=True
                ).stdout
            )
            assert read(path).num_conversations == 1


@pytest.mark.parametrize("value", ["0.0", "0.5", "1.0"])
def test_a_column_of_decimals_is_one_of_numbers(tmp_path: Path, value: str) -> None:
    """DuckDB and others write them; a weight of 0 was learnt."""
    number, (question, answer) = Decimal(value), WHOLE["messages"]["messages"]
    turns = {"messages": [question, {**answer, "weight": number}, question, answer]}
    for record in (*({**record, "weight": number} for record in WHOLE.values()), turns):
        path = write(tmp_path, [record], ".parquet")
        if value == "1.0" or (value == "0.0" and record is turns):
            assert read(path).num_conversations == 1
            continue
        with pytest.raises(InputError, match=rf"bad weight: (a record|turn 1) has weight {value}"):
            read(path)
    if value != "0.5":
        found = parse_conversation(turns, "auto").messages
        assert [turn.is_learnt for turn in found if turn.role == "assistant"] == [number == 1, True]


def test_pictures_in_parquet_are_not_read_to_be_ignored(tmp_path: Path) -> None:
    pictures = [{"bytes": b"\xff" * 2**20, "path": None}, None]
    records = [{**WHOLE["messages"], "image": picture} for picture in pictures]
    path = write(tmp_path, records, ".parquet")
    with pytest.raises(InputError, match=r"parquet:1: no text: a record has image\b"):
        read(path)
    assert read(path, skip_bad=True).num_conversations == 1
    reader = read(path, ignore_keys=("image",), max_document_bytes=2**16)
    assert (reader.num_conversations, reader.unread_keys) == (2, {"image": 2})


@pytest.mark.parametrize(("key", "value"), TAKEN)
def test_what_says_nothing_is_taken(tmp_path: Path, key: str, value: Any) -> None:
    for record in WHOLE.values():
        assert read(write(tmp_path, [{**record, key: value}], ".jsonl")).num_conversations == 1


@pytest.mark.parametrize("shape", WHOLE)
def test_tools_are_read_in_every_format(shape: str) -> None:
    record = {**WHOLE[shape], "tools": [{"name": "f"}], "builtin_tools": ["brave_search"]}
    found = parse_conversation(record, "auto")
    assert (found.tools, found.builtin_tools) == (({"name": "f"},), ("brave_search",))


@pytest.mark.parametrize("value", [0, False, 0.0, {}])
def test_no_value_of_another_type_is_nothing(value: Any) -> None:
    """They were read as no tools, no call, no arguments, no system turn."""
    call = {"function": {"name": "f", "arguments": [] if value == {} else value}}
    question, answer = WHOLE["messages"]["messages"]
    turn = {"role": "assistant", "content": ""}
    for record in (
        {"messages": [question, answer], "tools": value},
        {"messages": [question, answer], "builtin_tools": value},
        {"messages": [question, answer], "system": value},
        {"messages": [question, {**answer, "tool_calls": value}]},
        {"messages": [question, {**turn, "tool_calls": [call]}]},
    ):
        with pytest.raises(ConversationError, match=r"not a list|not an object|not a text"):
            parse_conversation(record, "auto")

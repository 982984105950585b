"""Hostile JSON ends in one message, plain JSON in what it says."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import (
    MAX_DEPTH,
    JsonObject,
    parse_json,
    read_json,
    read_json_value,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_plain_json_is_read_as_json_reads_it(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text, "file") == json.loads(text)
    assert parse_json(text.encode(), "file") == json.loads(text)


HOSTILE = {
    "no JSON": (b"{", "is not JSON"),
    "empty": (b"", "is not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "is not JSON .*utf-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not JSON"),
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', "is not JSON .*BOM"),
    "deep arrays": (b"[" * 10**6, "nested too deeply, 64 levels"),
    "deep objects": (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "nested too deeply, 64 levels"),
    "a little too deep": (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested too"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits, at most 64"),
    "NaN": (b'{"a": NaN}', "NaN is not a JSON number"),
    "Infinity": (b'{"a": Infinity}', "Infinity is not a JSON number"),
    "minus infinity": (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
    "float overflow": (b'{"a": 1e999}', "'1e999' is beyond a number's range"),
    "key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' stands there twice"),
    "half a character": (b'{"a": "\\ud800"}', "is not JSON .*surrogates"),
    "an array": (b"[1, 2]", "must hold a JSON object, not an array of 2"),
    "a string": (b'"text"', "must hold a JSON object, not 'text'"),
    "null": (b"null", "must hold a JSON object, not null"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_one_message(name: str, tmp_path: Path) -> None:
    data, message = HOSTILE[name]
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=re.escape(str(path)) + ".*" + message) as error:
        read_json(path)
    assert len(str(error.value)) < 400 + len(str(path))


def test_the_deepest_that_is_allowed_is_read() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "file")
    assert parse_json('"\\ud83d\\ude00"', "file") == "😀"


def test_what_is_no_small_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(InputError, match="does not exist"):
        read_json(path)
    path.write_bytes(b'{"a": "' + b"x" * 100 + b'"}')
    assert read_json(path, max_bytes=200)
    with pytest.raises(InputError, match="more than 50 bytes"):
        read_json(path, max_bytes=50)
    os.mkfifo(tmp_path / "pipe.json")
    for other in (tmp_path, tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a regular file"):
            read_json(other)
    path.write_text("[1]")
    assert read_json_value(path) == [1]


OBJECT = JsonObject(
    {
        "int": 8,
        "float": 0.5,
        "text": "llama",
        "truth": True,
        "none": None,
        "list": ["a", "b"],
        "mixed": ["a", 1],
        "inner": {"a": "x" * 500},
        "large": 10**40,
    },
    "config.json",
)


def test_getters_give_what_fits() -> None:
    assert OBJECT.integer("int", minimum=8, maximum=8) == 8
    assert OBJECT.number("int") == 8.0
    assert OBJECT.number("float", above=0, maximum=0.5) == 0.5
    assert OBJECT.string("text") == "llama"
    assert OBJECT.boolean("truth") is True
    assert OBJECT.strings("list") == OBJECT.array("list") == ["a", "b"]
    assert OBJECT.object("inner").string("a") == "x" * 500
    assert OBJECT.integer("none", 3) == OBJECT.integer("absent", 3) == 3
    assert OBJECT.object("absent", None) is None


@pytest.mark.parametrize(
    ("getter", "key", "arguments", "message"),
    [
        ("integer", "absent", {}, "config.json: key absent is missing"),
        ("string", "none", {}, "config.json: key none is null"),
        ("integer", "text", {}, "config.json: text is 'llama', it must be an integer"),
        ("integer", "truth", {}, "truth is true, it must be an integer"),
        ("integer", "float", {}, "float is 0.5, it must be an integer"),
        ("integer", "int", {"minimum": 9}, "int is 8, it must be an integer of at least 9"),
        ("integer", "int", {"maximum": 7}, "int is 8, it must be an integer of at most 7"),
        ("integer", "large", {"minimum": 1, "maximum": 10**6}, "an integer from 1 to 1,000,000"),
        ("number", "text", {}, "text is 'llama', it must be a number"),
        ("number", "truth", {}, "truth is true, it must be a number"),
        ("number", "float", {"above": 0.5}, "float is 0.5, it must be a number above 0.5"),
        ("string", "int", {}, "int is 8, it must be a string"),
        ("boolean", "int", {}, "int is 8, it must be true or false"),
        ("array", "inner", {}, "inner is an object of 1, it must be an array"),
        ("strings", "mixed", {}, "mixed is an array of 2, it must be an array of strings"),
        ("object", "list", {}, "list is an array of 2, it must be an object"),
    ],
)
def test_getters_name_file_key_and_both_values(
    getter: str, key: str, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        getattr(OBJECT, getter)(key, **arguments)


def test_inner_objects_name_their_place() -> None:
    with pytest.raises(InputError, match=r"config.json: inner: a is 'x{60}\.\.\.', it must be an"):
        OBJECT.object("inner").integer("a")

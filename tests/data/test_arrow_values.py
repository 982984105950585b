"""Nulls that Arrow fills in are no keys; nulls that somebody wrote stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.read.arrow_values import num_kept_nulls, python_rows
from megatron_ultralong.data.read.formats import read_records


def rows(values: list[Any], name: str = "messages", kind: Any = None) -> list[Any]:
    batch = pa.record_batch({name: pa.array(values, kind)})
    return [row[name] for row in python_rows(batch)]


def test_a_null_of_a_struct_is_no_key_at_any_depth() -> None:
    values = [
        {"a": 1, "in": [{"x": {"deep": "1"}}, {"x": {"other": [None]}}]},
        {"b": None, "in": [{"y": {"z": None}, "x": None}, None]},
        {"a": None, "in": []},
        None,
    ]
    assert rows(values) == [
        {"a": 1, "in": [{"x": {"deep": "1"}}, {"x": {"other": [None]}}]},
        {"in": [{"y": {}}, None]},
        {"in": []},
        None,
    ]


def tool(**properties: Any) -> list[Any]:
    return [{"function": {"name": "f", "parameters": {"properties": properties}}}]


KEPT = [
    pytest.param(tool(a={"default": None}, b={"const": None}), 2, id="default and const"),
    pytest.param(tool(a={"enum": ["x", None]}), 0, id="a null among values"),
    pytest.param(tool(a={"enum": None}), 0, id="a key that was never anything else"),
    pytest.param(tool(a={"default": {"x": None, "y": 1}}), 0, id="inside a default"),
    pytest.param(tool(a={"items": {"default": None, "type": "null"}}), 1, id="a schema in another"),
    pytest.param(tool(default={"type": "string"}, enum={"type": "x"}), 0, id="names like keys"),
]


@pytest.mark.parametrize(("tools", "count"), KEPT)
def test_nulls_that_say_something_in_a_schema_stay(tools: Any, count: int) -> None:
    assert rows([tools], "tools") == [tools]
    assert num_kept_nulls(tools) == count


NULLABLE: list[dict[str, Any]] = [
    {"type": "null"},
    {"type": ["string", "null"]},
    {"anyOf": [{"type": "string"}, {"type": "null"}]},
    {"oneOf": [{"type": "string"}, {"enum": ["x", None]}]},
    {"enum": ["x", None]},
    {"type": "string", "nullable": True},
    {"description": "anything"},
]


@pytest.mark.parametrize("schema", NULLABLE)
def test_a_default_may_be_null_where_its_value_may(schema: dict[str, Any]) -> None:
    tools = [tool(a={"default": "x", **schema}), tool(a={"default": None, **schema})]
    assert rows(tools, "tools") == tools


NEVER_NULL: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": ["string", "number"]},
    {"anyOf": [{"type": "string"}, {"type": "number"}]},
    {"enum": ["x", "y"]},
    {"$ref": "#/$defs/x"},
    {"type": 3},
    {"enum": 3},
    {"anyOf": {"type": "string"}},
    {"oneOf": ["null"], "type": {"x": 1}},
]


@pytest.mark.parametrize("schema", NEVER_NULL)
def test_a_default_of_another_tool_is_no_key(schema: dict[str, Any]) -> None:
    tools = [tool(a={"default": "x", **schema}), tool(a=schema), tool(a={"const": "z", **schema})]
    assert rows(tools, "tools") == tools


def test_what_other_tools_have_is_no_key_of_a_tool() -> None:
    tools = [
        tool(a={"type": "string", "enum": ["x"], "items": {"type": "x"}}, default={"type": "y"}),
        tool(a={"type": "number"}, b={"type": "string"}),
        tool(default={"type": "string"}),
    ]
    assert rows(tools, "tools") == tools


def test_only_tools_have_schemas() -> None:
    calls = [{"arguments": {"default": None, "city": "Oslo"}}, {"arguments": {"default": "x"}}]
    assert rows(calls) == [{"arguments": {"city": "Oslo"}}, {"arguments": {"default": "x"}}]


def test_a_map_has_what_was_written() -> None:
    kind = pa.map_(pa.string(), pa.struct([("x", pa.int64()), ("y", pa.int64())]))
    values = [[("a", None), ("b", {"x": 1})], [], None]
    assert rows(values, kind=kind) == [{"a": None, "b": {"x": 1}}, {}, None]
    twice = [[("a", 1), ("a", 2)]]
    assert rows(twice, kind=pa.map_(pa.string(), pa.int64())) == [[("a", 1), ("a", 2)]]


def test_texts_of_json_are_not_looked_into(tmp_path: Path) -> None:
    text = json.dumps({"a": None})
    table = pa.table({"messages": [[{"content": text, "name": None}]], "tools": [text]})
    pq.write_table(table, tmp_path / "a.parquet")
    (record,) = read_records(tmp_path / "a.parquet", ("messages", "tools"), "parquet")
    assert record.fields == {"messages": [{"content": text}], "tools": text}


TEXT = pa.string()
WRITTEN: dict[Any, list[Any]] = {
    TEXT: ["a", '"', 1.5, [{"x": None}], {"default": None}, None],
    pa.large_string(): ["\u00e9", {}],
    pa.list_(TEXT): [[{"role": "user"}, "a", [1]], [], None],
    pa.map_(TEXT, TEXT): [{"a": {"b": 1}, "c": "d"}],
    pa.struct([("x", TEXT), ("y", TEXT)]): [{"x": {"enum": [1, "a"]}}, {"y": "b"}],
    pa.list_(pa.struct([("in", pa.struct([("x", TEXT)]))])): [[{"in": {"x": {"y": 1, "z": {}}}}]],
}
"""Values by the type in which their texts are stored."""


@pytest.mark.parametrize("name", ["messages", "tools"])
@pytest.mark.parametrize("kind", WRITTEN, ids=str)
def test_a_value_of_json_is_what_was_written(tmp_path: Path, kind: Any, name: str) -> None:
    """`datasets` writes what has no one Arrow type so, at any depth, when it reads JSON lines."""
    array = pa.array([as_texts(value, kind) for value in WRITTEN[kind]], kind)
    pq.write_table(pa.table({name: array.cast(of_json(kind))}), tmp_path / "a.parquet")
    records = list(read_records(tmp_path / "a.parquet", (name,), "parquet"))
    assert [record.fields[name] for record in records] == WRITTEN[kind]


def as_texts(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if pa.types.is_map(kind):
        return [(key, as_texts(inner, kind.item_type)) for key, inner in value.items()]
    if pa.types.is_struct(kind):
        return {key: as_texts(inner, kind.field(key).type) for key, inner in value.items()}
    if pa.types.is_list(kind):
        return [as_texts(inner, kind.value_type) for inner in value]
    return json.dumps(value)


def of_json(kind: Any) -> Any:
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, of_json(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, of_json(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(of_json(kind.value_type))
    return pa.json_(kind)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": ', "Expecting value"),
        ('{"a": 1, "a": 2}', "two values"),
        ("[" * 70 + "]" * 70, "nested deeper"),
        ("9" * 9000, "digits"),
    ],
)
def test_a_value_that_is_no_json_is_one_bad_record(tmp_path: Path, text: str, reason: str) -> None:
    array = pa.array(['"a"', text, '"b"'], pa.json_())
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    first, bad, last = read_records(tmp_path / "a.parquet", ("text",), "parquet")
    assert (first.fields["text"], last.fields["text"]) == ("a", "b")
    assert bad.place.endswith("a.parquet:2")
    assert reason in bad.error


def test_columns_of_every_kind() -> None:
    struct = pa.struct([("x", pa.int64()), ("y", pa.int64())])
    value, bare = {"x": 1, "y": None}, {"x": 1}
    for kind in (pa.list_(struct), pa.large_list(struct), pa.list_(struct, 1)):
        assert rows([[value]], kind=kind) == [[bare]]
    assert rows(["a", None], kind=pa.dictionary(pa.int8(), pa.string())) == ["a", None]
    no_columns = pa.record_batch({"a": [1, 2]}).select([])
    assert python_rows(no_columns) == [{}] * no_columns.num_rows

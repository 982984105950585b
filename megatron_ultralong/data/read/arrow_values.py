"""Arrow's values as Python's, without the nulls that structs fill in.

An Arrow struct has every key of its column in every row: where a record lacked one, there is a null
that nobody wrote. Tools and the arguments of calls are full of them. They are taken out at any
depth: a key of a struct whose value is null is one that is not there. What is kept:

* nulls in lists and in maps, which hold what was written and no more;
* nulls inside texts of JSON: texts are not looked into here;
* in ``tools`` the null of a ``default`` or ``const``, which says something in a JSON schema, if
  nothing else was ever written there, or if the schema lets its value be null (its ``type``,
  ``anyOf`` or ``enum`` does, or it has none of them): as a default of what cannot be null it was
  filled in from another tool's. :func:`num_kept_nulls` counts them, for who must be told;
* in ``tools`` all that is inside ``default``, ``const``, ``enum`` and ``examples``.

An argument of a call that was null on purpose is gone too, and keys have the order of the struct:
what must be kept exactly belongs into a text of JSON.

A value of the type ``arrow.json`` (``Json`` of `datasets`, at any depth) is what its text says.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import pyarrow as pa

from megatron_ultralong.data.read.record import json_value, value_error

SCHEMAS = "tools"
"""The column that holds JSON schemas."""

_NULL_MEANS = ("default", "const")
"""Keys of a JSON schema whose value may be null."""

_TYPES = ("type", "enum", "anyOf", "oneOf", "allOf", "$ref")
"""Keys of a JSON schema that say what a value may be."""

_LITERALS = (*_NULL_MEANS, "enum", "example", "examples")
"""Keys of a JSON schema under which there are values, not schemas."""

_NAMES = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Keys of a JSON schema under which there are schemas by name."""

_Inside = Literal["data", "schema", "names", "literal"]
"""What the keys of a struct are: anything, a schema's own, names of schemas, a value's."""

_Convert = Callable[[Any], Any]


def python_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch: ``{"a": {"x": 1, "y": None}} -> {"a": {"x": 1}}``.

    A column's own null stays: it is no key of a struct.
    """
    names = batch.schema.names
    columns = []
    for name, column in zip(names, batch.columns, strict=True):
        convert = _converter(column.type, "schema" if name == SCHEMAS else "data")
        values = column.to_pylist()
        columns.append(values if convert is None else [convert(value) for value in values])
    if not columns:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def num_kept_nulls(value: Any) -> int:
    """Nulls of ``default`` and ``const`` in a value, at any depth."""
    found, left = 0, [value]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            found += sum(key in inner and inner[key] is None for key in _NULL_MEANS)
            left += inner.values()
        elif isinstance(inner, list):
            left += inner
    return found


def is_json(kind: Any) -> bool:
    """Whether a type is texts that stand for what they say in JSON."""
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"


def _json_value(text: str | None) -> Any:
    """What a text says; ValueError where it is not JSON, or none that can be worked on."""
    if text is None:
        return None
    value = json_value(text.encode())
    if reason := value_error(value):
        raise ValueError(f"JSON with {reason}")
    return value


def _converter(kind: Any, inside: _Inside) -> _Convert | None:
    """What turns a value of a type into ours; None where it is that already."""
    if is_json(kind):
        return _json_value
    if isinstance(kind, pa.BaseExtensionType):
        return _converter(kind.storage_type, inside)
    if pa.types.is_map(kind):
        return _map_converter(_converter(kind.item_type, inside))
    if pa.types.is_struct(kind):
        return _struct_converter(kind, inside)
    if pa.types.is_dictionary(kind) or not hasattr(kind, "value_type"):
        return None
    convert = _converter(kind.value_type, inside)
    if convert is None:
        return None
    return lambda values: None if values is None else [convert(value) for value in values]


def _map_converter(convert: _Convert | None) -> _Convert:
    """A mapping of a map's pairs; pairs that no JSON object can hold stay as they are."""

    def converted(pairs: Iterable[tuple[Any, Any]] | None) -> Any:
        if pairs is None:
            return None
        found = [(key, convert(value) if convert else value) for key, value in pairs]
        is_object = all(isinstance(key, str) for key, _ in found)
        return dict(found) if is_object and len(dict(found)) == len(found) else found

    return converted


def _struct_converter(kind: Any, inside: _Inside) -> _Convert:
    fields = [kind.field(number) for number in range(kind.num_fields)]
    converters = {
        field.name: _converter(field.type, _under(field.name, inside)) for field in fields
    }
    kept = {field.name for field in fields if _keeps_null(field, inside)}
    doubtful = {field.name for field in fields if inside == "schema"}.intersection(_NULL_MEANS)

    def converted(value: dict[str, Any] | None) -> Any:
        if value is None:
            return None
        found = {}
        for key, inner in value.items():
            if inner is not None:
                convert = converters[key]
                found[key] = convert(inner) if convert else inner
            elif key in kept or (key in doubtful and _admits_null(value)):
                found[key] = None
        return found

    return converted


def _under(key: str, inside: _Inside) -> _Inside:
    """What a struct is that stands under a key of another."""
    if inside == "schema" and key in _LITERALS:
        return "literal"
    if inside == "schema" and key in _NAMES:
        return "names"
    return "schema" if inside == "names" else inside


def _keeps_null(field: Any, inside: _Inside) -> bool:
    """Whether a null there was written for sure, whatever stands beside it."""
    if inside == "literal":
        return True
    is_always_null = pa.types.is_null(field.type)
    return inside == "schema" and is_always_null and field.name in (*_NULL_MEANS, "enum")


def _admits_null(schema: Any) -> bool:
    """Whether a JSON schema lets a value be null; as it stands in a struct, nulls filled in."""
    if not isinstance(schema, dict):
        return False
    given = {key: schema[key] for key in _TYPES if schema.get(key) is not None}
    lists = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    choices = [*lists.get("anyOf", []), *lists.get("oneOf", [])]
    return (
        not given
        or schema.get("nullable") is True
        or "null" in lists.get("type", [])
        or None in lists.get("enum", [])
        or any(map(_admits_null, choices))
    )

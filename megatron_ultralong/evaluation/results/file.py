"""Files of results: versioned JSON, whole or absent, read back as it was written."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from megatron_ultralong.evaluation.results import result
from megatron_ultralong.program import aside, json_file
from megatron_ultralong.program.errors import InputError, shown

Values = Mapping[str, Any]

_LATER_FLAGS = {"positions": {"split": "valid"}, "depths": {"by": "argmax"}, "tasks": {}}
"""Flags that files may lack, which were written before there was a choice."""


def _upgraded(name: str, values: Values) -> list[dict[str, Any]]:
    """The results of a file of format 1 and kind ``name``, as plain values of format 2.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, ArithmeticError: the file is damaged.
    """
    kind, config = result.KINDS[name], values["config"]
    is_loss = kind.rows == "positions"
    upgrade = {"positions": _loss_cell, "depths": _retrieval_cell, "tasks": _score_cell}[kind.rows]
    own = {"num_packed_rows": values["num_rows"]} if is_loss else {}
    if kind.rows == "tasks":
        own = {key: values[key] for key in ("metrics", "notes")}
    return [
        {
            "kind": vars(kind),
            "config": {**config, **_LATER_FLAGS[kind.rows], **config},
            "material": values.get("material", {}),  # came later than the first files, as the model
            "date": values["date"],
            "versions": values["versions"],
            "checkpoint": one["name" if is_loss else "checkpoint"],
            "max_positions": one["max_positions"],
            "model": one.get("model"),
            "cells": [upgrade(cell) for cell in one["bins" if is_loss else "cells"]],
            **own,
        }
        for one in (values["checkpoints"] if is_loss else [values])
    ]


def _loss_cell(part: Values) -> dict[str, Any]:
    row, names = result.position_row(part["start"], part["stop"]), ("accuracy", "perplexity")
    figures = {name: part[name] for name in names if part[name] is not None}
    cell = _cell(row, result.LOSS, part["num_predictions"], part["loss"], figures)
    return {**cell, "error": part["standard_error"]}


def _retrieval_cell(cell: Values) -> dict[str, Any]:
    score = 100 * cell["num_retrieved"] / cell["num_samples"]
    figures = {"token_accuracy": cell["token_accuracy"]}
    row = result.depth_row(cell["depth"])
    return _cell(row, str(cell["length"]), cell["num_samples"], score, figures)


def _score_cell(cell: Values) -> dict[str, Any]:
    figures = {key: cell[key] for key in ("num_prompt_tokens", "num_truncated")}
    return _cell(cell["task"], cell["column"], cell["num_samples"], cell["score"], figures)


def _cell(row: str, column: str, num_samples: Any, score: Any, figures: Values) -> dict[str, Any]:
    of = {"row": row, "column": column, "num_samples": num_samples}
    return {**of, "score": score, "figures": figures}


FORMAT_VERSION = 2
"""1 had a type each for losses, retrieval and tasks."""
_RESULTS = TypeAdapter(
    tuple[result.Result, ...], config=ConfigDict(defer_build=True, extra="forbid")
)
_MAX_BYTES = 64 * 2**20
"""Of a result: one of every task at every length has less than 1 MB."""
_MARKS = (b'"format_version"', b'"cells"')
"""Of files that are damaged so far that they are no JSON."""
LOSS_FILE = "loss.json"
"""Of the losses of all models."""
FIX = "evaluate again, or restore the file"


def write_results(path: Path, results: Sequence[result.Result]) -> None:
    """Write results of one benchmark, with the means of their columns."""
    (kind,) = {one.kind.name for one in results}
    entries = [{**to_jsonable_python(one), "means": _means(one)} for one in results]
    write_json(path, kind, {"results": entries})


def _means(one: result.Result) -> dict[str, float | None]:
    return {column: one.mean(column) for column in one.columns}


def write_json(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write ``values`` under ``path``, aside first, with their kind and the format version."""
    text = json.dumps(
        {"kind": kind, "format_version": FORMAT_VERSION, **values}, indent=2, allow_nan=False
    )
    aside.write_aside(path, text + "\n")


def claimed_kind(path: Path) -> tuple[str, bool] | None:
    """The kind of a JSON file of :func:`write_json`, and whether it is one of results; or None.

    Keys may stand in any order, and some be damaged: what was meant as results is still one.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    try:
        values = json_file.read_json_value(path, max_bytes=_MAX_BYTES, hint=FIX)
    except InputError:
        if path.is_file() and any(mark in path.read_bytes()[:_MAX_BYTES] for mark in _MARKS):
            return "", True
        raise
    if not isinstance(values, dict):
        return None
    kind, results = str(values.get("kind")), values.get("results")
    if kind == "report" and "title" in values:
        return kind, False
    entries = results if isinstance(results, list) else []
    has_cells = any(isinstance(one, dict) and "cells" in one for one in entries)
    parts = ({"format_version"}, {"results", "cells", "checkpoints"})
    num_parts = (kind in result.KINDS) + sum(bool(part & {*values}) for part in parts)
    if has_cells or num_parts > 1:
        return kind, True
    return (kind, False) if {"kind", "format_version"} <= {*values} else None


def read_results(path: str | Path, kind: str = "") -> tuple[result.Result, ...]:
    """What :func:`write_results` wrote, now or in format 1; of ``kind`` where one is named.

    Everything is checked: types, ranges, that there are no other keys, that figures do not
    contradict each other.

    Raises:
        InputError: no such file, a damaged one, or one of another kind or version; the message
            names the file, the field, what stands there and the rule.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: name a file that `ultralong evaluate` wrote")
    values = json_file.read_json(path, max_bytes=_MAX_BYTES, hint=FIX)
    try:
        found, version = values.string("kind"), values.integer("format_version")
        entries = values.array("results") if version == FORMAT_VERSION else []
    except InputError as error:
        raise InputError(f"{error}: {FIX}") from error
    if version not in (1, FORMAT_VERSION) or (version == 1 and found not in result.KINDS):
        raise InputError(
            f"{path} holds '{found}' of format_version {version}, this version reads "
            f"{FORMAT_VERSION} and of {', '.join(result.KINDS)} 1: {FIX}"
        )
    if kind and found != kind:
        raise InputError(f"{path} holds '{found}', not '{kind}': name another file")
    if version == 1:
        return _validated(path, _format_1(path, found, values), found)
    if others := {*values} - {"kind", "format_version", "results"}:
        raise InputError(f"{path}: key {min(others)} is not known: {FIX}")
    stated = [one.pop("means", None) if isinstance(one, dict) else None for one in entries]
    results = _validated(path, entries, found)
    for k, (one, means) in enumerate(zip(results, stated, strict=True)):
        _check_means(f"{path}: results.{k}.means", one, means)
    return results


def _format_1(path: Path, kind: str, values: Values) -> list[dict[str, Any]]:
    try:
        return _upgraded(kind, values)
    except KeyError as error:
        raise InputError(f"{path}: key {error} of format_version 1 is missing: {FIX}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path}: not a file of format_version 1 ({error}): {FIX}") from error


def _validated(path: Path, entries: Any, kind: str) -> tuple[result.Result, ...]:
    try:
        results = _RESULTS.validate_json(json.dumps(entries), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(("results", *map(str, first["loc"])))
        text = f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}"
        if not isinstance(first["input"], dict | list):
            text += f", not {shown(first['input'])}"
        raise InputError(f"{text}: {FIX}") from error
    for k, one in enumerate(results):
        if (name := one.kind.name) != kind:
            raise InputError(
                f"{path}: results.{k}.kind.name is {name!r}, the file's kind is {kind!r}: {FIX}"
            )
    if not results:
        raise InputError(f"{path}: results is empty, it must hold one for a checkpoint: {FIX}")
    return results


def _check_means(where: str, one: result.Result, means: Any) -> None:
    expected = _means(one)
    if means is None:
        return
    if not isinstance(means, dict) or {*means} != {*expected}:
        raise InputError(f"{where} must be of the columns {', '.join(expected)}: {FIX}")
    for column, mean in expected.items():
        if not result.is_close(stated := means[column], mean):
            raise InputError(
                f"{where}.{column} is {shown(stated)}, the mean of its cells is {mean}: {FIX}"
            )


def read_result(path: str | Path, kind: str = "") -> result.Result:
    """The one result of a file.

    Raises:
        InputError: as :func:`read_results`, or the file holds several.
    """
    results = read_results(path, kind)
    if len(results) > 1:
        names = ", ".join(one.checkpoint for one in results)
        raise InputError(f"{path} holds results of {names}: name a file that holds one result")
    return results[0]


def file_sha256(path: Path) -> str:
    """``sha256 ...`` of a file, as results state it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return f"sha256 {digest.hexdigest()}"

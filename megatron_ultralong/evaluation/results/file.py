"""Files of results: versioned JSON, whole or absent, read back as it was written."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from megatron_ultralong.evaluation.results import result
from megatron_ultralong.program import json_file
from megatron_ultralong.program.aside import write_aside
from megatron_ultralong.program.errors import InputError

Values = Mapping[str, Any]

_LATER_FLAGS = {"positions": {"split": "valid"}, "depths": {"by": "argmax"}, "tasks": {}}
"""Flags that files may lack, which were written before there was a choice."""


def _upgraded(name: str, values: Values) -> list[dict[str, Any]]:
    """The results of a file of format 1 and kind ``name``, as plain values of format 2.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, ArithmeticError: the file is damaged.
    """
    kind, config = result.KINDS[name], values["config"]
    shared = {
        "kind": vars(kind),
        "config": {**config, **_LATER_FLAGS[kind.rows], **config},
        "material": values.get("material", {}),  # came later than the first files, as the model
        "date": values["date"],
        "versions": values["versions"],
    }
    if kind.rows == "positions":
        return [
            {
                **shared,
                "checkpoint": one["name"],
                "max_positions": one["max_positions"],
                "model": one.get("model"),
                "num_packed_rows": values["num_rows"],
                "cells": [_loss_cell(part) for part in one["bins"]],
            }
            for one in values["checkpoints"]
        ]
    names = ["checkpoint", "max_positions"]
    names += ["metrics", "notes"] if kind.rows == "tasks" else []
    upgrade = _score_cell if kind.rows == "tasks" else _retrieval_cell
    cells = [upgrade(cell) for cell in values["cells"]]
    of_one = {key: values[key] for key in names} | {"model": values.get("model"), "cells": cells}
    return [shared | of_one]


def _loss_cell(part: Values) -> dict[str, Any]:
    return {
        "row": result.position_row(part["start"], part["stop"]),
        "column": result.LOSS,
        "num_samples": part["num_predictions"],
        "score": part["loss"],
        "error": part["standard_error"],
        "figures": {k: part[k] for k in ("accuracy", "perplexity") if part[k] is not None},
    }


def _retrieval_cell(cell: Values) -> dict[str, Any]:
    return {
        "row": result.depth_row(cell["depth"]),
        "column": str(cell["length"]),
        "num_samples": cell["num_samples"],
        "score": 100 * cell["num_retrieved"] / cell["num_samples"],
        "figures": {"token_accuracy": cell["token_accuracy"]},
    }


def _score_cell(cell: Values) -> dict[str, Any]:
    return {
        "row": cell["task"],
        "column": cell["column"],
        "num_samples": cell["num_samples"],
        "score": cell["score"],
        "figures": {key: cell[key] for key in ("num_prompt_tokens", "num_truncated")},
    }


FORMAT_VERSION = 2
"""1 had a type each for losses, retrieval and tasks."""
_BEGINNING = re.compile(rb'\s*\{\s*"kind":\s*"(\w+)",\s*"format_version":\s*(\d{1,9})\b')
_RESULTS = TypeAdapter(tuple[result.Result, ...], config=ConfigDict(defer_build=True))
_MAX_BYTES = 64 * 2**20
"""Of a result: one of every task at every length has less than 1 MB."""


def write_results(path: Path, results: Sequence[result.Result]) -> None:
    """Write results of one benchmark, with the means of their columns."""
    (kind,) = {one.kind.name for one in results}
    entries = [
        {**to_jsonable_python(one), "means": {c: one.mean(c) for c in one.columns}}
        for one in results
    ]
    write_json(path, kind, {"results": entries})


def write_json(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write ``values`` under ``path``, aside first, with their kind and the format version."""
    text = json.dumps(
        {"kind": kind, "format_version": FORMAT_VERSION, **values}, indent=2, allow_nan=False
    )
    write_aside(path, text + "\n")


def beginning_of(path: str | Path) -> tuple[str, int] | None:
    """Kind and format version that a file of :func:`write_json` states; None for other JSON.

    Its beginning is read alone: files of a checkpoint may be large.

    Raises:
        InputError: no such file, or one that is neither.
    """
    path = _existing(path)
    try:
        with path.open("rb") as file:
            found = _BEGINNING.match(file.read(200))
        if found:
            return found.group(1).decode(), int(found.group(2))
        json_file.read_json_value(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error
    except InputError as error:
        raise InputError(f"{path} is damaged ({error}): evaluate again, or remove it") from error
    return None


def holds_results(kind: str, version: int) -> bool:
    """Whether a file of this kind and version is one of results: from format 2 on of any kind."""
    return kind in result.KINDS or (version == FORMAT_VERSION and kind != "report")


def read_results(path: str | Path, kind: str = "") -> tuple[result.Result, ...]:
    """What :func:`write_results` wrote, now or in format 1; of ``kind`` where one is named.

    Raises:
        InputError: no such file, a damaged one, or one of another kind or version.
    """
    path = _existing(path)
    try:
        values = json_file.read_json(path, max_bytes=_MAX_BYTES)
        found, version = values.pop("kind"), values.pop("format_version")
    except (InputError, KeyError) as error:
        raise _damaged(path, repr(error.__cause__ or error)) from error
    kind = kind or found
    if found != kind or version not in (1, FORMAT_VERSION) or not holds_results(kind, version):
        raise InputError(
            f"{path} holds '{found}' of format_version {version}, not '{kind}' of "
            f"format_version {FORMAT_VERSION}: name another file, or evaluate again"
        )
    try:
        entries = _upgraded(kind, values) if version == 1 else values["results"]
        results = _RESULTS.validate_json(json.dumps(entries), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{place}: {first['msg']}") from error
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _damaged(path, repr(error)) from error
    if {one.kind.name for one in results} != {kind}:
        raise _damaged(path, f"it holds no result of '{kind}', or others too")
    return results


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


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged ({reason}): evaluate again")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: name a file that `ultralong evaluate` wrote")
    return path

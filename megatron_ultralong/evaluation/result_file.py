"""JSON files of results: versioned, whole or absent, read back as they were written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong import json_file
from megatron_ultralong.errors import InputError
from megatron_ultralong.json_file import read_json_value

FORMAT_VERSION = 1
_BEGINNING = re.compile(rb'\s*\{\s*"kind":\s*"(\w+)",\s*"format_version":')

_MAX_BYTES = 64 * 2**20
"""Of a result: RULER's at every length with every answer has 10 MB."""


def write_json(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write ``values`` under ``path``, aside first, with their kind and the format version."""
    text = json.dumps(
        {"kind": kind, "format_version": FORMAT_VERSION, **values}, indent=2, allow_nan=False
    )
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text + "\n", encoding="utf-8")
    os.replace(aside, path)


def kind_of(path: str | Path) -> str | None:
    """The kind that a file of :func:`write_json` states; None for other JSON.

    Its beginning is read alone: files of a checkpoint may be large.

    Raises:
        InputError: no such file, or one that is neither.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: name a file that `ultralong evaluate` wrote")
    try:
        with path.open("rb") as file:
            found = _BEGINNING.match(file.read(200))
        if found:
            return found.group(1).decode()
        read_json_value(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error
    except InputError as error:
        raise InputError(f"{path} is damaged ({error}): evaluate again, or remove it") from error
    return None


def read_json(path: str | Path, kind: str) -> dict[str, Any]:
    """Values that :func:`write_json` wrote as ``kind``.

    Raises:
        InputError: no such file, a damaged one, or one of another kind or version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: name a file that `ultralong evaluate` wrote")
    try:
        values = json_file.read_json(path, max_bytes=_MAX_BYTES)
        found = (values.pop("kind"), values.pop("format_version"))
    except (InputError, KeyError) as error:
        reason = error.__cause__ or error
        raise InputError(f"{path} is damaged ({reason!r}): evaluate again") from error
    if found != (kind, FORMAT_VERSION):
        raise InputError(
            f"{path} holds '{found[0]}' of format_version {found[1]}, not '{kind}' of "
            f"format_version {FORMAT_VERSION}: name another file, or evaluate again"
        )
    return dict(values)

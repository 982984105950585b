"""Reports as a terminal shows them: tables for people, JSON for programs."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from megatron_ultralong.program.terminal import Console

_SHA256_LENGTH, _SHA256_SHOWN = 64, 16


def show(values: Mapping[str, Any], as_json: bool) -> None:
    """Print a report on standard output."""
    if as_json:
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, text in _lines(values):
        if len(text) == _SHA256_LENGTH and " " not in text:
            text = f"{text[:_SHA256_SHOWN]}... (whole: --json)"
        table.add_row(key if "." in key else key.replace("_", " "), text)  # names of files stay
    Console().print(table)


def show_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same columns as a table; long names continue after a dot."""
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*("-" if value is None else _parted(_text(value)) for value in row.values()))
    console.print(table)


_NAME_WIDTH = 22
"""Columns of a name: five columns then fit into 80."""


def _parted(text: str) -> str:
    """Names in lines of at most :data:`_NAME_WIDTH`: cut after commas, and long names at dots."""
    lines = [""]
    for name in re.findall(r"[^,]+,? ?", text):
        parts = [name] if len(name.rstrip()) <= _NAME_WIDTH else re.findall(r"[^.]+\.?", name)
        for part in parts:
            if lines[-1] and len(lines[-1]) + len(part.rstrip()) > _NAME_WIDTH:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _lines(values: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            if value:
                yield indent + key, ""
            yield from _lines(value, indent + "  ")
        elif key == "num_resumed_tensors" and not value:
            continue  # nothing was resumed, as nearly always
        elif value not in (None, [], ()):  # nothing to say
            yield indent + key, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)

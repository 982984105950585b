"""Files of JSON lines, which scripts here write: a new one, whole under its name or not there."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from megatron_ultralong.program.aside import whole


def with_new_file(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with ``output``, a file that is not there yet."""
    parser.add_argument("output", type=Path, help="new file")
    arguments = parser.parse_args()
    if arguments.output.exists():
        sys.exit(f"{arguments.output} is there; name a new file, or remove it")
    return arguments


def write(output: Path, records: Iterable[dict[str, object]]) -> int:
    """One record a line; how many there were."""
    count = 0
    with whole(output) as aside, aside.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count

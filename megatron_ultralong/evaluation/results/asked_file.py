"""What an evaluation without a result was asked, so that the same command knows that it is done.

``evaluate harness`` has none where no score of its tasks is one that a result could hold.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.program import aside
from megatron_ultralong.program.json_file import read_json

FILE_NAME = "asked.json"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was asked of one checkpoint."""

    checkpoint: str
    asked: Mapping[str, Any]
    """As a result states it."""
    digest: str = ""
    """Hash of the contents of its weights."""


def write_asked(folder: Path, done: Asked) -> None:
    """Write :data:`FILE_NAME` into the folder of an evaluation."""
    aside.write_aside(folder / FILE_NAME, json.dumps(dataclasses.asdict(done), indent=2) + "\n")


def read_asked(file: Path) -> Asked:
    """What :func:`write_asked` wrote.

    Raises:
        InputError: it is damaged.
    """
    values = read_json(file)
    return Asked(values.string("checkpoint"), values.object("asked"), values.string("digest"))

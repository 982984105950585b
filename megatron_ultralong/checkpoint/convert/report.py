"""Reports of conversions: a table for people, JSON for programs, and who reads an export right."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE, rope_readers
from megatron_ultralong.checkpoint.formats.tokenizer_files import TokenizerFiles
from megatron_ultralong.program.terminal import Console


@dataclasses.dataclass(frozen=True)
class WeightsSummary:
    """Weights in numbers."""

    num_tensors: int
    """Hugging Face tensors."""
    num_parameters: int
    num_bytes: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What a conversion did."""

    action: str
    source: str
    output: str
    iteration: int
    """Of the Megatron checkpoint; 0 is release."""
    weights: WeightsSummary
    """As they were written."""
    seconds: float
    """Of the writing, without the verification."""
    verify_seconds: float
    verified: bool
    """Every tensor was read back and is equal to the source, bit for bit."""
    num_resumed_tensors: int
    """Megatron's tensors that an earlier, killed conversion had finished."""
    rope: Mapping[str, Any] | None
    """Rotary scaling; of an export the block in its config.json."""
    max_position_embeddings: int
    tokenizer_sha256: str | None
    good_for: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Exports: programs and versions that read it as it was meant, as a whole and file by file."""
    changed_files: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    """Exports to Hugging Face: small files that are not the source's byte for byte, and what is new
    in them; config.json, which is written anew, aside."""


def show(values: Mapping[str, Any], as_json: bool) -> None:
    """Print a report on standard output."""
    if as_json:
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, text in _lines(values):
        table.add_row(key.replace("_", " "), text)
    Console().print(table)


def show_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same columns as a table."""
    table = Table()
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console().print(table)


def _lines(values: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            if value:
                yield indent + key, ""
            yield from _lines(value, indent + "  ")
        elif value not in (None, []):
            yield indent + key, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


TRIED = (
    *("4.43.4", "4.44.2", "4.45.2", "4.48.3", "4.50.3", "4.51.3", "4.52.4", "4.55.4", "4.56.2"),
    *("4.57.6", "5.0.0", "5.23.0"),
)
"""Releases of transformers that exports were loaded with: tests/checkpoint/test_releases.py."""

_HEAD_DIM = ">=4.45"
"""Before, heads of hidden_size / num_attention_heads were taken, whatever head_dim says."""


def good_for(
    metadata: CheckpointMetadata, tokenizer: TokenizerFiles, merges: str = "keep"
) -> dict[str, Any]:
    """Versions that read an export: ``transformers`` all of it, ``files`` each of its files.

    ``vllm`` speaks of the rope block in ``config.json``.
    """
    rope = rope_readers(metadata)
    model = metadata.model
    plain = model.kv_channels * model.num_attention_heads == model.hidden_size
    files: Mapping[str, str] = {
        CONFIG_FILE: rope["transformers"]
        if plain
        else max(rope["transformers"], _HEAD_DIM, key=_release),
        **tokenizer.readers(merges),
    }
    oldest = max((text for text in files.values() if text.startswith(">=")), key=_release)
    untried = [file for file, text in files.items() if not text.startswith(">=")]
    return {
        **rope,
        "transformers": oldest + (f"; not tried: {', '.join(untried)}" if untried else ""),
        "files": files,
        "tried": f"transformers {', '.join(TRIED)}",
    }


def export_good_for(folder: Path) -> dict[str, Any]:
    """The same of an export that was written before, read off its files.

    Raises:
        InputError: it is no Hugging Face folder of a Llama, or one of its files is damaged.
    """
    model = HuggingFaceFolder(folder)
    metadata = CheckpointMetadata(model.model, model.rope_scaling, model.name)
    return good_for(metadata, TokenizerFiles(folder))


def _release(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.removeprefix(">=").split(".")))

"""What the shards of ``prepare`` depend on, and in which words a difference of it is told."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.read.sources import FilePart, FoundFiles, Source
from megatron_ultralong.data.store.shards import Shard
from megatron_ultralong.data.tokenize import engines
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer, separator_ids
from megatron_ultralong.program.errors import InputError, counted

PACKAGES = ("numpy", "pyarrow", "tokenizers", "gigatoken")
"""That ids and rows depend on."""

_FLAGS = {
    "text_key": "--text-key",
    "source_key": "--source-key",
    "suffixes": "--suffix",
    "file_format": "--file-format",
    "skip_bad": "--skip-bad",
    "max_document_bytes": "--max-document-bytes",
}
"""Options by the name that they have in the record."""


def shard_key(
    config: PrepareConfig,
    found: Sequence[FoundFiles],
    shards: Sequence[Shard],
    tokenizer: DocumentTokenizer,
    separator: Sequence[int],
) -> dict[str, Any]:
    """All that the shards depend on; files of a source by their number, bytes and a hash."""
    key: dict[str, Any] = {}
    for index, source in enumerate(each.source for each in found):
        own = [shard for shard in shards if shard.input == index]
        parts = [part for shard in own for part in shard.parts]
        cuts = [[len(s.parts), s.parts[0].start, s.num_bytes] for s in own]
        text = json.dumps([cuts, [_file_key(part) for part in parts]])
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        num_files, num_bytes = len({part.path for part in parts}), sum(s.num_bytes for s in own)
        key[f"source {index + 1}"] = (
            f"{source.name}={source.pattern}: {counted(num_files, 'file')} of {num_bytes:,} "
            f"bytes ({digest})"
        )
    return {
        **key,
        "text_key": _text_keys([each.source for each in found]),
        **dataclasses.asdict(config.reading),
        "tokenizer": tokenizer.sha256,
        "engine": [config.tokenizer_engine, tokenizer.engine],
        "separator": [list(separator), config.separator_in_text == "split"],
        "versions": engines.versions(*PACKAGES, tokenizer.engine),
    }


def in_words(
    tokenizer: DocumentTokenizer, key: str, old: Any, new: Any
) -> tuple[str, str, str] | None:
    """A part of the record by its flag, and its values as one writes them; None: it has no flag.

    ``--separator``, ``eos`` and ``none`` of ``separator``, ``[[0], False]`` and ``[[], False]``.
    The record has the hash of the tokenizer before the separator: where that differs, it is the
    ``tokenizer`` of this run.
    """
    if key == "tokenizer":
        return "--tokenizer", f"one of SHA-256 {old[:16]}", f"one of {new[:16]}"
    if key == "engine":
        return "--tokenizer-engine", _engine(*old), _engine(*new)
    if key == "separator":
        (old_ids, was_split), (new_ids, is_split) = old, new
        if old_ids != new_ids:
            return "--separator", _separator(tokenizer, old_ids), _separator(tokenizer, new_ids)
        return "--separator-in-text", _in_text(was_split), _in_text(is_split)
    return (_FLAGS[key], _option(old), _option(new)) if key in _FLAGS else None


def _engine(asked: str, used: str) -> str:
    return asked if asked == used else f"{asked} (that is {used})"


def _in_text(is_split: bool) -> str:
    return "split" if is_split else "keep or drop"


def _option(value: Any) -> str:
    if value in (None, False, [], ()):
        return "not given"
    if value is True:
        return "given"
    return " ".join(value) if isinstance(value, list | tuple) else f"{value}"


def _separator(tokenizer: DocumentTokenizer, ids: Sequence[int]) -> str:
    if not ids:
        return "none"
    try:
        if list(ids) == separator_ids(tokenizer, "eos"):
            return "eos"
    except InputError:  # it has none
        pass
    return repr(tokenizer.decode(list(ids)))


def _text_keys(sources: Sequence[Source]) -> str:
    """The key of all sources, or of each: ``a=text, b=content``."""
    keys = {source.text_key for source in sources}
    if len(keys) == 1:
        return keys.pop()
    return ", ".join(dict.fromkeys(f"{source.name}={source.text_key}" for source in sources))


def _file_key(part: FilePart) -> list[Any]:
    """What tells a file from an earlier one of its name; of a link to nothing there is no more."""
    return [str(part.path), part.file_format, part.problem, *(part.state or ())]

"""Small files of a Hugging Face model: tokenizer, templates, generation config, licence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.checksums import FILE_NAME as CHECKSUMS_FILE
from megatron_ultralong.checkpoint.disk.folder import check_inside, is_plain_name
from megatron_ultralong.checkpoint.disk.metadata import seal_small_files
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE, without_code
from megatron_ultralong.checkpoint.formats.meta import PARAMS_FILE
from megatron_ultralong.checkpoint.formats.tokenizer_files import (
    CONFIG_FILE as TOKENIZER_CONFIG_FILE,
)
from megatron_ultralong.checkpoint.formats.tokenizer_files import (
    FAST_FILE,
    TEMPLATE_FILE,
    TokenizerFiles,
    template_files,
)
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject, read_json

_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
_NOT_KEPT = (CHECKSUMS_FILE, "adapter_config.json")
"""transformers loads another model where it finds the configuration of an adapter."""
_META_TOKENIZER = "tokenizer.model"
_TOKENIZERS = (FAST_FILE, _META_TOKENIZER)
_OF_FAST_TOKENIZER = (TOKENIZER_CONFIG_FILE, "special_tokens_map.json", TEMPLATE_FILE)


def small_files(folder: Path) -> list[Path]:
    """Files of ``folder`` that belong to the model and are not weights, by name."""
    found = {path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()}
    found.update(template_files(folder))
    check_tokenizer_names(folder)
    kept = sorted(path for path in found if not path.name.endswith(".index.json"))
    for path in kept:  # they are copied into exports, which people publish
        check_inside(path, folder)
    return [path for path in kept if path.name not in _NOT_KEPT]


def check_tokenizer(folder: Path) -> None:
    """Raise InputError where ``folder`` has no tokenizer."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise InputError(
            f"{folder} has no tokenizer ({' or '.join(_TOKENIZERS)}): download it too, or convert "
            "the weights alone with --no-tokenizer"
        )


def check_tokenizer_names(folder: Path) -> None:
    """Check the files that ``tokenizer_config.json`` of ``folder`` names: transformers reads them.

    Raises:
        InputError: one is not a file of the folder.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    if not path.is_file():
        return
    for key, name in read_json(path).items():
        if key.endswith("_file") and name is not None and not is_plain_name(name):
            raise InputError(
                f"{path}: {key} is {name!r}, which is not a file of its own folder: remove the key"
            )


def keep(source: Path, folder: Path) -> None:
    """Copy the small files of ``source`` into the folder ``folder``.

    Raises:
        InputError: one of the tokenizer's is damaged.
    """
    TokenizerFiles(source)
    folder.mkdir(exist_ok=True)
    for path in small_files(source):
        _copy(path, folder / path.relative_to(source))


def copy_once(source: Path, folder: Path) -> None:
    """Copy the whole folder ``source`` to ``folder``, aside first; nothing if that is there."""
    if source.is_dir() and not folder.exists():
        aside = folder.with_name(folder.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        os.replace(aside, folder)
        seal_small_files(folder.parent)


def restore_meta(kept: Path, folder: Path) -> None:
    """Copy into a model in Meta's format the files that such a model has.

    Where there is no ``tokenizer.model``, those of a ``tokenizer.json`` are copied: imports of this
    project read them, Meta's code does not.
    """
    has_own = (kept / _META_TOKENIZER).is_file()
    for path in small_files(kept):
        name = path.relative_to(kept)
        of_meta = path.name == _META_TOKENIZER or path.suffix not in (".json", ".jinja")
        of_fast = path.name in (FAST_FILE, *_OF_FAST_TOKENIZER) or len(name.parts) > 1
        if of_meta or (of_fast and not has_own):
            _copy(path, folder / name)


def meta_tokenizer(kept: Path) -> str:
    """What a report says of the tokenizer of a model in Meta's format."""
    if (kept / _META_TOKENIZER).is_file():
        return _META_TOKENIZER
    if (kept / FAST_FILE).is_file():
        return (
            f"{FAST_FILE}, which `convert import` reads and Meta's code does not: the source has "
            f"no {_META_TOKENIZER}; put the one of the model that it came from beside params.json"
        )
    return "none: the checkpoint was imported without one"


def restore(
    kept: Path,
    folder: Path,
    tokenizer: TokenizerFiles,
    max_position_embeddings: int,
    merges: str = "keep",
) -> dict[str, list[str]]:
    """Copy kept files into an exported model, all but ``config.json``; what was changed, by file.

    A file that is not in the result is the source's, byte for byte. ``tokenizer_config.json`` is
    said in words that every release reads, its ``model_max_length``, where it is shorter than the
    model's context, is raised to it: transformers warns of, and some servers cut, longer texts.
    """
    changes: dict[str, list[str]] = {}
    for path in small_files(kept):
        if path.name in (CONFIG_FILE, PARAMS_FILE, TOKENIZER_CONFIG_FILE):
            continue
        target = folder / path.relative_to(kept)
        if path.name.endswith("config.json"):
            values = read_json(path)
            _write_changed(path, target, without_code(values), _left_out(values), changes)
        elif (
            path.name == FAST_FILE and merges == "strings" and tokenizer.write_string_merges(target)
        ):
            changes[FAST_FILE] = ["merges as strings"]
        else:
            _copy(path, target)
    path = kept / TOKENIZER_CONFIG_FILE
    if any((kept / name).is_file() for name in (*_TOKENIZERS, TOKENIZER_CONFIG_FILE)):
        values = read_json(path) if path.is_file() else JsonObject({}, str(path))
        new, said = tokenizer.config(without_code(values))
        said = _left_out(values) + said
        length = new.get("model_max_length")
        if isinstance(length, int) and length < max_position_embeddings:
            new["model_max_length"] = max_position_embeddings
            said.append(f"model_max_length {length} -> {max_position_embeddings}")
        _write_changed(path, folder / path.name, new, said, changes)
    return changes


def _left_out(values: Mapping[str, Any]) -> list[str]:
    """What is said of keys that choose code in their readers."""
    plain = without_code(values)
    gone = [key for key, value in values.items() if key not in plain or plain[key] != value]
    return [f"left out, since they choose code: {', '.join(gone)}"] if gone else []


def _write_changed(
    source: Path,
    target: Path,
    values: Mapping[str, Any],
    said: list[str],
    changes: dict[str, list[str]],
) -> None:
    """Copy a file, or write ``values`` in its place where something is to be ``said``."""
    if said:
        changes[target.name] = said
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        target.write_text(text, encoding="utf-8")
    elif source.is_file():
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)

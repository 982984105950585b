"""Small files of a Hugging Face model: tokenizer, templates, generation config, licence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.checksums import FILE_NAME as CHECKSUMS_FILE
from megatron_ultralong.checkpoint.hugging_face_config import CONFIG_FILE, without_code
from megatron_ultralong.checkpoint.links import check_inside, is_plain_name
from megatron_ultralong.checkpoint.meta import PARAMS_FILE
from megatron_ultralong.checkpoint.metadata import seal_small_files
from megatron_ultralong.errors import InputError
from megatron_ultralong.json_file import read_json

_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
_NOT_KEPT = (CHECKSUMS_FILE, "adapter_config.json")
"""transformers loads another model where it finds the configuration of an adapter."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def small_files(folder: Path) -> list[Path]:
    """Files of ``folder`` that belong to the model and are not weights, by name."""
    found = {path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()}
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
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    for key, name in read_json(path).items():
        if key.endswith("_file") and name is not None and not is_plain_name(name):
            raise InputError(
                f"{path}: {key} is {name!r}, which is not a file of its own folder: remove the key"
            )


def keep(source: Path, folder: Path) -> None:
    """Copy the small files of ``source`` into the folder ``folder``."""
    folder.mkdir(exist_ok=True)
    for path in small_files(source):
        shutil.copyfile(path, folder / path.name)


def copy_once(source: Path, folder: Path) -> None:
    """Copy the whole folder ``source`` to ``folder``, aside first; nothing if that is there."""
    if source.is_dir() and not folder.exists():
        aside = folder.with_name(folder.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        os.replace(aside, folder)
        seal_small_files(folder.parent)


def restore_meta(kept: Path, folder: Path) -> None:
    """Copy into a model in Meta's format the files that such a model has."""
    for path in small_files(kept):
        if path.name == "tokenizer.model" or path.suffix not in (".json", ".jinja"):
            shutil.copyfile(path, folder / path.name)


def restore(kept: Path, folder: Path, max_position_embeddings: int) -> None:
    """Copy kept files into an exported model, all but ``config.json``.

    The tokenizer's ``model_max_length``, where it is shorter than the model's context, is raised
    to it: transformers warns of, and some servers cut, longer texts.
    """
    for path in small_files(kept):
        if path.name not in (CONFIG_FILE, PARAMS_FILE):
            _restore_file(path, folder / path.name)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        values = read_json(path)
        length = values.get("model_max_length")
        if isinstance(length, int) and length < max_position_embeddings:
            values["model_max_length"] = max_position_embeddings
            _write(path, values)


def _restore_file(source: Path, target: Path) -> None:
    """Copy a file; of a configuration without the keys that choose code in its readers."""
    if source.name.endswith("config.json"):
        values = read_json(source)
        plain = without_code(values)
        if plain != values:
            _write(target, plain)
            return
    shutil.copyfile(source, target)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")

"""Small files of a Hugging Face model: tokenizer, templates, generation config, licence."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.checksums import FILE_NAME as CHECKSUMS_FILE
from megatron_ultralong.checkpoint.disk.folder import check_inside, is_plain_name
from megatron_ultralong.checkpoint.disk.metadata import SOURCE_FOLDER, seal_small_files
from megatron_ultralong.checkpoint.formats import hugging_face_config, kind, tokenizer_files
from megatron_ultralong.data.tokenize import folder_template, refused_tokenizer
from megatron_ultralong.program.aside import files_below, files_in, whole
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json
from megatron_ultralong.program.pointers import check_no_pointer

_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
_LICENCES = ("LICENSE", "NOTICE")
_NOT_KEPT = (CHECKSUMS_FILE, kind.ADAPTER_FILE)
"""transformers loads another model where it finds the configuration of an adapter."""
_FAST, _CONFIG = tokenizer_files.FAST_FILE, tokenizer_files.CONFIG_FILE
_META_TOKENIZER = "tokenizer.model"
_SPECIAL = "special_tokens_map.json"
_OF_FAST = (_FAST, _CONFIG, _SPECIAL, folder_template.TEMPLATE_FILE)
_WRITTEN_ANEW = (hugging_face_config.CONFIG_FILE, kind.PARAMS_FILE, _CONFIG)


def small_files(folder: Path) -> list[Path]:
    """Files of ``folder`` that belong to the model and are not weights, by name."""
    found = {path for pattern in _PATTERNS for path in files_in(folder, pattern)}
    found.update(folder_template.template_files(folder).values())
    check_tokenizer_names(folder)
    kept = sorted(path for path in found if not path.name.endswith(".index.json"))
    for path in kept:  # they are copied into exports, which people publish
        check_inside(path, folder)
    return [path for path in kept if path.name not in _NOT_KEPT]


def check_tokenizer(folder: Path) -> None:
    """Raise InputError where ``folder`` has no tokenizer."""
    if not any((folder / name).is_file() for name in refused_tokenizer.NAMES):
        told = refused_tokenizer.no_tokenizer(folder, "download the tokenizer too", inside=False)
        raise InputError(f"{folder} {told}; or convert the weights alone with --no-tokenizer")


def check_readable(folder: Path) -> None:
    """Check the small files of ``folder`` that an export reads, which may come weeks later.

    Raises:
        InputError: one is damaged.
    """
    tokenizer_files.TokenizerFiles(folder)
    if (folder / _FAST).is_file():
        tokenizer_files.load_fast(folder / _FAST)
    for path in small_files(folder):
        if path.name.endswith(("config.json", _SPECIAL)):
            read_json(path)
        else:
            check_no_pointer(path)


def check_tokenizer_names(folder: Path) -> None:
    """Check the files that ``tokenizer_config.json`` of ``folder`` names: transformers reads them.

    Raises:
        InputError: one is not a file of the folder.
    """
    path = folder / _CONFIG
    if not path.is_file():
        return
    for key, name in read_json(path).items():
        if key.endswith("_file") and name is not None and not is_plain_name(name):
            raise InputError(
                f"{path}: {key} is {name!r}, which is not a file of its own folder: remove the key"
            )


def keep(source: Path, checkpoint: Path) -> Path:
    """Copy the small files of ``source`` into ``checkpoint``; the folder in it that has them."""
    folder = checkpoint / SOURCE_FOLDER
    folder.mkdir(exist_ok=True)
    _copy_all(small_files(source), source, folder)
    return folder


def copy_once(source: Path, folder: Path) -> None:
    """Copy the whole folder ``source`` to ``folder``, aside first; nothing if that is there.

    The copy has the rights of a new folder: ``source`` may be a model that many share, and that
    nobody may write.
    """
    if source.is_dir() and not folder.exists():
        with whole(folder) as aside:
            aside.mkdir()
            _copy_all(files_below(source), source, aside)
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
        of_fast = path.name in _OF_FAST or len(name.parts) > 1
        if of_meta or (of_fast and not has_own):
            _copy(path, folder / name)


def restore_licences(kept: Path, folder: Path) -> None:
    """Copy licences and notices into a model of one file, which has all the rest in it."""
    _copy_all((path for path in small_files(kept) if path.name.startswith(_LICENCES)), kept, folder)


def meta_tokenizer(kept: Path) -> str:
    """What a report says of the tokenizer of a model in Meta's format."""
    if (kept / _META_TOKENIZER).is_file():
        return _META_TOKENIZER
    if (kept / _FAST).is_file():
        return (
            f"{_FAST}, which `convert import` reads and Meta's code does not: the source has "
            f"no {_META_TOKENIZER}; put the one of the model that it came from beside params.json"
        )
    return "none: the checkpoint was imported without one"


def restore(
    kept: Path,
    folder: Path,
    tokenizer: tokenizer_files.TokenizerFiles,
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
        if path.name in _WRITTEN_ANEW:
            continue
        target = folder / path.relative_to(kept)
        if path.name.endswith("config.json"):
            _write_changed(path, target, *_without_code(read_json(path)), changes)
        elif path.name == _FAST and merges == "strings" and tokenizer.write_string_merges(target):
            changes[_FAST] = ["merges as strings"]
        else:
            _copy(path, target)
    path = kept / _CONFIG
    if any((kept / name).is_file() for name in (*refused_tokenizer.NAMES, _CONFIG)):
        plain, left_out = _without_code(tokenizer.values)
        new, said = tokenizer.config(plain)
        length = new.get("model_max_length")
        if isinstance(length, int) and length < max_position_embeddings:
            new["model_max_length"] = max_position_embeddings
            said.append(f"model_max_length {length} -> {max_position_embeddings}")
        _write_changed(path, folder / path.name, new, left_out + said, changes)
    return changes


def _without_code(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``values`` without the keys that choose code in their readers, and what is said of those."""
    plain = hugging_face_config.without_code(values)
    gone = [key for key, value in values.items() if key not in plain or plain[key] != value]
    return plain, [f"left out, since they choose code: {', '.join(gone)}"] if gone else []


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


def _copy_all(paths: Iterable[Path], source: Path, target: Path) -> None:
    for path in paths:
        _copy(path, target / path.relative_to(source))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)

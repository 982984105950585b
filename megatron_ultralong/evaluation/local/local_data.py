"""Local copies of benchmarks: JSON lines in upstream's format, prompts cut in the middle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.read.formats import read_records
from megatron_ultralong.generation.prompt_tokenizer import (
    IdArray,
    PromptTemplate,
    PromptTokenizer,
    prompt_parts,
)
from megatron_ultralong.program.errors import InputError


def read_jsonl(path: Path, keys: Iterable[str]) -> list[dict[str, Any]]:
    """Records of a file, each of which has ``keys``.

    Raises:
        InputError: no such file, a line that is not JSON, or one without a key.
    """
    records = []
    for record in read_records(path, tuple(keys), "jsonl"):
        if record.error:
            raise InputError(f"{record.place}: {record.error}")
        missing = [key for key in keys if key not in record.fields]
        if missing:
            raise InputError(
                f"{record.place} has no {missing[0]!r}, only {sorted(record.fields)}: the file is "
                "not in upstream's format"
            )
        records.append(dict(record.fields))
    if not records:
        raise InputError(f"{path} holds no records")
    return records


def find_file(data: str, names: Iterable[str]) -> Path:
    """The first of ``names`` that is a file in the folder ``data``.

    Raises:
        InputError: none is.
    """
    tried = list(names)
    for name in tried:
        if (Path(data) / name).is_file():
            return Path(data) / name
    raise InputError(
        f"--data {data} has no {' and no '.join(tried)}: give the folder with the files as "
        "upstream publishes them, or leave the task out by --tasks"
    )


def file_sha256(path: Path) -> str:
    """``sha256 ...`` of a file, as results state it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return f"sha256 {digest.hexdigest()}"


def cut_prompt(
    tokenizer: PromptTokenizer, template: PromptTemplate, text: str, room: int
) -> tuple[IdArray, bool]:
    """Ids of a prompt within ``room`` tokens, and whether its middle was left out.

    Of a text that is too long, as many tokens are kept at its start as at its end. Upstream cuts
    so too, and then tokenises the text anew; here the ids stay as they are.
    """
    before, after = _around(tokenizer, template)
    body = tokenizer.encode(text if template == "base" else f"\n\n{text}")
    space = room - before.size - after.size
    if space < 2:
        raise InputError(
            f"a prompt of {room} tokens has no room beside its template's "
            f"{before.size + after.size}: raise --max-length"
        )
    was_cut = body.size > space
    if was_cut:
        half = space // 2
        body = np.concatenate([body[:half], body[-half:]])
    return np.concatenate([before, body, after]), was_cut


def _around(tokenizer: PromptTokenizer, template: PromptTemplate) -> tuple[IdArray, IdArray]:
    """What stands before and after the text of a prompt."""
    if template == "base":
        return np.asarray(tokenizer.begin_ids, np.int64), np.zeros(0, np.int64)
    parts = list(prompt_parts("chat", "", ""))
    place = parts.index("\n\n")  # of the user's turn; the assistant's comes after it
    return tokenizer.encode_parts(parts[:place]), tokenizer.encode_parts(parts[place + 1 :])

"""Rows name all their files: what names them is read again, however many there are."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.data.options import PrepareChatConfig, PrepareConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.data.read import sources
from megatron_ultralong.data.read.sources import FilePart, check_names
from megatron_ultralong.data.rows.manifest import (
    FILE_NAME,
    FileSummary,
    Manifest,
    load_manifest,
    write_manifest,
)
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import MAX_BYTES, MAX_NAMES_BYTES
from megatron_ultralong.training.earlier_start import DATA_FILE, check_same_rows, save_rows
from megatron_ultralong.training.early_checks import rows_record

NAMES = (
    "a.txt",
    "data/web/2024/part-00017-of-01024.jsonl.gz",
    "'\"\\\n\t" * 10,
    os.fsdecode(b"\xff\xe9" * 100),
    "\u6f22\u5b57" * 100,
    "\U0001f642" * 100,
)
"""In JSON a letter takes up to twelve bytes, a byte that is no letter six or seven."""


def with_files(manifest: Manifest, paths: list[str]) -> Manifest:
    files = [FileSummary(path, 10**12, "f" * 64) for path in paths]
    first, *others = manifest.inputs
    return dataclasses.replace(manifest, inputs=[dataclasses.replace(first, files=files), *others])


def record_of(manifest: Manifest) -> dict[str, str]:
    """As a run keeps it."""
    return {name: str(value) for name, value in rows_record(manifest).items()}


def test_rows_of_many_files_are_trained_on_and_resumed(manifest: Manifest, tmp_path: Path) -> None:
    """The manifest of 250,000 was refused, and from 90,000 on no run over such rows resumed."""
    many = with_files(manifest, [f"{number:>4000}" for number in range(17_000)])
    write_manifest(tmp_path / FILE_NAME, many)
    assert (tmp_path / FILE_NAME).stat().st_size > 64 * 2**20
    found = load_manifest(tmp_path)
    assert found == many
    save_rows(tmp_path, record_of(many))
    assert (tmp_path / DATA_FILE).stat().st_size > MAX_BYTES
    check_same_rows(tmp_path, record_of(found), "", "", "")
    found.inputs[0].files[7] = FileSummary("another", 1, "")
    with pytest.raises(InputError, match=r"other rows: the list of sources was .*, is .*; a resum"):
        check_same_rows(tmp_path, record_of(found), "other rows", "", "")


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_files_that_may_be_named_can_be_read(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is checked before the work is no less than what is written behind it."""
    sizes = []
    for number in (1, 1001):
        many = with_files(manifest, [name] * number)
        write_manifest(tmp_path / FILE_NAME, many)
        save_rows(tmp_path, record_of(many))
        sizes.append([(tmp_path / file).stat().st_size for file in (FILE_NAME, DATA_FILE)])
    of_manifest, of_data = (last - first for first, last in zip(*sizes, strict=True))
    parts = [FilePart(Path(name), 1, "text")] * 1000
    monkeypatch.setattr(sources, "MAX_NAMES_BYTES", max(of_manifest, of_data) - 1)
    with pytest.raises(InputError, match=r"to name 1,000 files .* takes .* bytes"):
        check_names(parts)
    monkeypatch.undo()
    check_names(parts)


def test_a_quarter_of_a_million_usual_names_are_not_too_many() -> None:
    size = len(json.dumps(repr(NAMES[1]))) + sources.NAMED_BYTES
    assert 250_000 * size < MAX_NAMES_BYTES


def of_documents(source: tuple[str, ...], tokenizer: Path, output: Path) -> None:
    prepare(PrepareConfig(source, tokenizer, output, seq_length=64))


def of_conversations(source: tuple[str, ...], tokenizer: Path, output: Path) -> None:
    prepare_chat(PrepareChatConfig(source, tokenizer, output, chat_template="plain"))


@pytest.mark.parametrize("work", [of_documents, of_conversations])
def test_too_many_are_refused_before_the_work(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Any
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.jsonl").write_text("{\n")
    source, output = (f"own={tmp_path / 'in'}",), tmp_path / "rows"
    monkeypatch.setattr(sources, "MAX_NAMES_BYTES", 5 * sources.NAMED_BYTES)
    told = r"^to name 5 files and their hashes .* takes .*, and 1,000 is the most .*: join them"
    with pytest.raises(InputError, match=told):
        work(source, tokenizer_folder, output)
    assert not output.exists()

"""What changes while it is read is refused: rows would be of two states, and state one."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_ultralong.data.options import PrepareChatConfig, PrepareConfig
from megatron_ultralong.data.pack.sampling import LengthSampling
from megatron_ultralong.data.prepare import chats, documents
from megatron_ultralong.data.read import reading
from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.read.reading import DocumentReader
from megatron_ultralong.data.read.sources import Source, check_unchanged, find_files
from megatron_ultralong.program.errors import InputError
from tests.models import write_tokenizer

LINES = [json.dumps({"text": f"document {number} " + "word " * 40}) + "\n" for number in range(60)]
CHATS = [
    json.dumps({"prompt": f"question {number}", "completion": "answer"}) + "\n"
    for number in range(60)
]


def grow(path: Path) -> None:
    with open(path, "a") as file:
        file.write(path.read_text().splitlines(keepends=True)[0])


def replace(path: Path) -> None:
    """As `mv` does: whoever has it open reads the old one to its end."""
    other = path.with_name("other")
    other.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    os.utime(other, ns=(0, path.stat().st_mtime_ns + 10**9))
    other.replace(path)


def cut(path: Path) -> None:
    with open(path, "r+") as file:
        file.truncate(len(file.readline()))


CHANGES = {
    "grown": (grow, r"from \d[\d,]* bytes to \d[\d,]* bytes: its"),
    "replaced": (replace, r"from (\d[\d,]*) bytes to \1 bytes, written again"),
    "cut": (cut, r"from \d[\d,]* bytes to \d[\d,]* bytes: its"),
    "removed": (Path.unlink, r"from \d[\d,]* bytes to nothing"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_is_told(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(LINES))
    source = Source("a", str(path))
    files = find_files(source, ReadOptions()).files
    assert len(list(DocumentReader(source, ReadOptions(), files))) == 60
    check_unchanged(source, files)
    time = path.stat().st_mtime_ns // 10**9 * 10**9
    os.utime(path, ns=(time, time))  # as some servers have it
    check_unchanged(source, files)
    function, message = CHANGES[change]
    function(path)
    with pytest.raises(InputError, match=rf"source 'a': {path} has changed .*, {message}"):
        check_unchanged(source, files)


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """What is put in is done once, as soon as the first records have been read."""
    left: list[Callable[[], None]] = []
    read = reading._SourceReader._records

    def records(self: reading._SourceReader) -> Iterator[object]:
        for number, record in enumerate(read(self)):
            if number == 5 and left:
                left.pop()()
            yield record

    monkeypatch.setattr(reading._SourceReader, "_records", records)
    yield left
    assert not left


def rows_of(folder: Path, *, skip_bad: bool = False) -> PrepareConfig:
    """Rows of ``a.jsonl``, which is written there, beside a tokenizer."""
    write_tokenizer(folder / "tokenizer")
    (folder / "a.jsonl").write_text("".join(LINES))
    return PrepareConfig(
        source=(f"a={folder / 'a.jsonl'}",),
        tokenizer=folder / "tokenizer",
        output=folder / "rows",
        seq_length=128,
        separator="none",
        sampling=LengthSampling("none"),
        reading=ReadOptions(skip_bad=skip_bad),
    )


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_rows_are_not_made_of_it(
    tmp_path: Path, changing: list[Callable[[], None]], change: str, *, skip_bad: bool
) -> None:
    config = rows_of(tmp_path, skip_bad=skip_bad)
    changing.append(lambda: CHANGES[change][0](tmp_path / "a.jsonl"))
    with pytest.raises(InputError, match="has changed while it was read"):
        documents.prepare(config)
    assert sorted(each.name for each in tmp_path.iterdir()) in (
        ["a.jsonl", "tokenizer"],
        ["tokenizer"],
    )


@pytest.mark.parametrize("change", CHANGES)
def test_conversations_neither(
    tmp_path: Path, changing: list[Callable[[], None]], change: str
) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "tokenizer/tokenizer_config.json").write_text('{"eos_token": "."}')
    path = tmp_path / "a.jsonl"
    path.write_text("".join(CHATS))
    config = PrepareChatConfig(
        source=(f"a={path}",),
        tokenizer=tmp_path / "tokenizer",
        output=tmp_path / "chats",
        seq_length=128,
        chat_template="plain",
    )
    changing.append(lambda: CHANGES[change][0](path))
    with pytest.raises(InputError, match="has changed while it was read"):
        chats.prepare_chat(config)
    assert not (tmp_path / "chats").exists()


def test_a_tokenizer_that_changes_neither(
    tmp_path: Path, changing: list[Callable[[], None]]
) -> None:
    config = rows_of(tmp_path)
    changing.append(lambda: write_tokenizer(tmp_path / "tokenizer", "other words " * 9))
    with pytest.raises(
        InputError, match=r"tokenizer\.json has changed while it was used, from SHA"
    ):
        documents.prepare(config)
    documents.prepare(config)

"""A key that stands twice with two values: which one was meant nobody knows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.read.options import ChatReadOptions, ReadOptions
from megatron_ultralong.data.read.reading import ConversationReader, DocumentReader
from megatron_ultralong.data.read.sources import Source, find_files, parse_sources
from megatron_ultralong.program.errors import InputError

GOOD = '{"text": "good", "x": {"y": "z"}}'
TWICE = '{"text": "one", "text": "another"}'
USER, ANSWER = '{"role": "user", "content": "q"}', '{"role": "assistant", "content": "a"}'
WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "a.jsonl": lambda path, lines: path.write_text("\n".join(lines) + "\n"),
    "a.jsonl.gz": lambda path, lines: path.write_bytes(gzip.compress("\n".join(lines).encode())),
    "a.json": lambda path, lines: path.write_text(f"[{', '.join(lines)}]"),
}


def texts_of(path: Path, key: str = "text", skip_bad: bool = False) -> tuple[list[str], int]:
    source = Source("a", str(path), key)
    options = ReadOptions(skip_bad=skip_bad)
    reader = DocumentReader(source, options, find_files(source, options).files)
    return [document.text for document in reader], reader.num_bad


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("line", "key"),
    [
        (TWICE, "text"),
        ('{"x": {"y": "z", "y": "w"}, "text": "t"}', "x.y"),
        ('{"text": "one", "text": null}', "text"),
        ('{"text": null, "text": "one"}', "text"),
        ('{"text": "a", "text": "b", "text": "a"}', "text"),
    ],
)
def test_a_text_that_stands_twice_is_bad(tmp_path: Path, name: str, line: str, key: str) -> None:
    WRITERS[name](tmp_path / name, [GOOD, line, GOOD])
    with pytest.raises(InputError, match="two values: the key stands twice in one object"):
        texts_of(tmp_path / name, key)
    found, num_bad = texts_of(tmp_path / name, key, skip_bad=True)
    assert (found, num_bad) == ([json.loads(GOOD)["text"] if key == "text" else "z"] * 2, 1)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "line",
    [
        '{"text": "good", "text": "good"}',  # whichever is read
        '{"text": "good", "id": 1, "id": 2}',  # nobody reads it
        '{"text": "good", "meta": {"a": 1, "a": 2}}',
    ],
)
def test_what_is_no_doubt_is_read(tmp_path: Path, name: str, line: str) -> None:
    WRITERS[name](tmp_path / name, [line, GOOD])
    assert texts_of(tmp_path / name) == (["good", "good"], 0)


@pytest.mark.parametrize(
    "record",
    [
        f'{{"messages": [{USER}, {ANSWER}], "messages": [{USER}, {USER}]}}',
        f'{{"messages": [{USER}, {{"role": "assistant", "content": "a", "content": "b"}}]}}',
        f'{{"messages": [{USER}, {{"role": "user", "role": "assistant", "content": "b"}}]}}',
        json.dumps(
            {"messages": f'[{USER}, {{"role": "assistant", "content": 1, "content": "b"}}]'}
        ),
        '{"prompt": "q", "completion": "a", "completion": "b"}',
    ],
)
def test_so_is_a_conversation(tmp_path: Path, record: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{record}\n{{"messages": [{USER}, {ANSWER}]}}\n')
    (source,) = parse_sources((f"a={tmp_path / 'a.jsonl'}",))
    reader = ConversationReader(source, ChatReadOptions(skip_bad=True))
    assert len(list(reader)) == 1
    assert sum(reader.num_bad.values()) == 1
    assert "two values: the key stands twice" in reader.bad[0]


def test_so_are_columns(tmp_path: Path) -> None:
    columns = [pa.array(["one"] * 3), pa.array(["another"] * 3), pa.array(["x"] * 3)]
    for names, is_bad in ((["text", "text", "x"], True), (["x", "x", "text"], False)):
        path = tmp_path / f"{is_bad}.parquet"
        pq.write_table(pa.Table.from_arrays(columns, names=names), path)
        if not is_bad:
            assert texts_of(path) == (["x"] * 3, 0)
            continue
        with pytest.raises(InputError, match="the file has 2 columns 'text', and other programs"):
            texts_of(path)
        assert texts_of(path, skip_bad=True) == ([], 3)

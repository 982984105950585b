import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.reading import (
    DocumentReader,
    ReadOptions,
    Source,
    parse_source,
    source_files,
    whole_files,
)
from megatron_ultralong.documents import document_id
from megatron_ultralong.errors import InputError

TEXTS = ["def f():\r\n    return 1\n", "naïve 文章 \x00 \u2028 end", "x" * 100_000, "last"]
WRITERS = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]),  # two members
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def texts_of(path: Path | str, **options) -> list[str]:
    return [document.text for document in reader_of(path, **options)]


def reader_of(path: Path | str, **options) -> DocumentReader:
    source, read = Source("s", str(path)), ReadOptions(**options)
    return DocumentReader(source, read, whole_files(source, read))


def jsonl(records: list[object]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.mark.parametrize("suffix", WRITERS)
def test_jsonl_and_text_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    lines = tmp_path / f"a.jsonl{suffix}"
    lines.write_bytes(WRITERS[suffix](jsonl([{"text": text} for text in TEXTS]) + b"\n"))
    assert texts_of(lines) == TEXTS
    lines.write_bytes(WRITERS[suffix](b'{"text": "one line, no newline"}'))
    assert texts_of(lines) == ["one line, no newline"]
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt{suffix}").write_bytes(WRITERS[suffix](text.encode()))
    assert texts_of(tmp_path, suffixes=(".txt",)) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    texts = [f"{text}{i}" for i in range(100) for text in TEXTS]  # more rows than one batch
    pq.write_table(pa.table({"content": texts, "other": range(400)}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet", text_key="content") == texts


def test_documents_carry_source_and_identity(tmp_path: Path) -> None:
    records = [{"text": "a", "meta": {"set": "web"}}, {"text": "b", "meta": {"set": "code"}}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("c")
    reader = reader_of(tmp_path, source_key="meta.set")
    documents = list(reader)
    assert [d.source for d in documents] == ["web", "code", "web", "code", "s"]
    assert all(d.id == document_id(d.text) for d in documents)
    assert reader.bytes_read == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_files_of_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b/x.py", "a/deep/y.py.gz", "a/z.txt", "top.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(pattern: str, *suffixes: str) -> list[str]:
        files = source_files(Source("s", str(tmp_path / pattern)), suffixes)
        return [str(path.relative_to(tmp_path)) for path in files]

    assert found("") == ["a/deep/y.py.gz", "a/z.txt", "b/x.py", "top.py"]
    assert found("", ".py") == ["a/deep/y.py.gz", "b/x.py", "top.py"]
    assert found("**/*.py") == ["b/x.py", "top.py"]
    assert found("[ab]") == ["a/deep/y.py.gz", "a/z.txt", "b/x.py"]  # folders of a pattern
    assert found("a/z.txt", ".py") == ["a/z.txt"]  # named itself: no filter
    with pytest.raises(InputError, match=r"'s': no file ending in \.rs at .* \(4 files before"):
        found("", ".rs")
    with pytest.raises(InputError, match=r"no file at .*missing"):
        found("missing")


def test_source_argument() -> None:
    assert parse_source("web=/data/a=b.jsonl") == Source("web", "/data/a=b.jsonl")
    for argument in ("web", "web=", "=/data", "/data/x.jsonl"):
        with pytest.raises(InputError, match="must be NAME=PATH"):
            parse_source(argument)


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


GOOD = jsonl([{"text": text} for text in TEXTS])
BAD_FILES = {
    "cut_json.jsonl": (GOOD[:-4], r"cut_json\.jsonl:4: not JSON .* is the file cut short"),
    "number.jsonl": (GOOD + b"7\n", r"number\.jsonl:5: a int, where one JSON object"),
    "no_key.jsonl": (
        jsonl([{"text": "a"}, {"body": "b"}]),
        r"no_key\.jsonl:2: key 'text' has no value, .* \(keys here: body\)",
    ),
    "list.jsonl": (jsonl([{"text": ["a"]}]), r"list\.jsonl:1: key 'text' has a list"),
    "latin.jsonl": (GOOD + b'{"text": "\xe9"}\n', r"latin\.jsonl:5: not UTF-8"),
    "surrogate.jsonl": (
        b'{"text": "ab\\ud800"}\n',
        r"surrogate\.jsonl:1: a lone surrogate at character 2",
    ),
    "latin.txt": (b"one\ntwo \xe9\n", r"latin\.txt:2: not UTF-8"),
    "cut.jsonl.gz": (cut(gzip.compress(GOOD)), r"cut\.jsonl\.gz:\d+: cannot be read .* cut short"),
    "cut.jsonl.zst": (
        cut(pa.compress(GOOD, codec="zstd", asbytes=True)),
        r"cut\.jsonl\.zst:\d+: cannot be read .* cut short",
    ),
    "cut.txt.gz": (cut(gzip.compress(GOOD)), r"cut\.txt\.gz: cannot be read .* cut short"),
    "not.gz": (b"plain text", r"not\.gz: cannot be read"),
    "cut.parquet": (None, r"cut\.parquet:1: cannot be read"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str) -> None:
    data, message = BAD_FILES[name]
    path = tmp_path / name
    if data is None:
        pq.write_table(pa.table({"text": TEXTS}), path)
        data = cut(path.read_bytes())
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        texts_of(path)
    assert "source 's'" in str(caught.value)
    assert "--skip-bad" in str(caught.value)


def test_bad_documents_are_skipped_and_counted_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD + b'{"text": "\xe9"}\n7\n' + jsonl([{"text": "z"}]))
    (tmp_path / "b.txt").write_bytes(b"\xff\xff")
    reader = reader_of(tmp_path, skip_bad=True)
    assert [d.text for d in reader] == [*TEXTS, "z"]
    assert (reader.num_documents, reader.num_bad, reader.num_empty) == (5, 3, 0)


def test_empty_texts_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": ""}, {"text": " \n"}, {"text": "a"}]))
    reader = reader_of(tmp_path)
    assert ([d.text for d in reader], reader.num_empty) == (["a"], 2)

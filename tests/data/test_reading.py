import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.read import parquet
from megatron_ultralong.data.read.formats import read_records
from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.read.reading import DocumentReader
from megatron_ultralong.data.read.sources import FilePart, Source, find_files, parse_sources
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.documents import document_id

TEXTS = ["def f():\r\n    return 1\n", "naïve 文章 \u2028 end", "x" * 100_000, "last"]
WRITERS = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]),  # two members
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def texts_of(path: Path | str, **options) -> list[str]:
    return [document.text for document in reader_of(path, **options)]


def reader_of(path: Path | str, text_key: str = "text", **options) -> DocumentReader:
    source, read = Source("s", str(path), text_key), ReadOptions(**options)
    return DocumentReader(source, read, find_files(source, read).files)


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
        read = ReadOptions(suffixes=suffixes)
        files = find_files(Source("s", str(tmp_path / pattern)), read).files
        return [str(part.path.relative_to(tmp_path)) for part in files]

    assert found("") == ["a/deep/y.py.gz", "a/z.txt", "b/x.py", "top.py"]
    assert found("", ".py") == ["a/deep/y.py.gz", "b/x.py", "top.py"]
    assert found("**/*.py") == ["b/x.py", "top.py"]
    assert found("[ab]") == ["a/deep/y.py.gz", "a/z.txt", "b/x.py"]  # folders of a pattern
    assert found("a/z.txt", ".py") == ["a/z.txt"]  # named itself: no filter
    with pytest.raises(InputError, match=r"'s': no file ending in \.rs at .* \(of 4 files there: "):
        found("", ".rs")
    with pytest.raises(InputError, match=r"no file at .*missing"):
        found("missing")


def test_source_argument() -> None:
    assert parse_sources(["web=/data/a=b.jsonl"]) == (Source("web", "/data/a=b.jsonl"),)
    for argument in ("web", "web=", "=/data", "/data/x.jsonl"):
        with pytest.raises(InputError, match="must be NAME=PATH"):
            parse_sources([argument])


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


GOOD = jsonl([{"text": text} for text in TEXTS])
BAD_FILES = {
    "cut_json.jsonl": (GOOD[:-4], r"cut_json\.jsonl:4: not JSON .* is the file cut short"),
    "number.jsonl": (GOOD + b"7\n", r"number\.jsonl:5: an int, not one JSON object"),
    "no_key.jsonl": (
        jsonl([{"text": "a"}, {"body": "b"}]),
        r"no_key\.jsonl:2: key 'text' has no value \(keys here: body\)",
    ),
    "list.jsonl": (jsonl([{"text": ["a"]}]), r"list\.jsonl:1: key 'text' has a list"),
    "latin.jsonl": (GOOD + b'{"text": "\xe9"}\n', r"latin\.jsonl:5: not UTF-8 .*iconv -f LATIN1"),
    "surrogate.jsonl": (
        b'{"text": "ab\\ud800"}\n',
        r"surrogate\.jsonl:1: a lone surrogate at character 2",
    ),
    "latin.txt": (b"one\ntwo \xe9\n", r"latin\.txt:2: not UTF-8 .*iconv -f LATIN1"),
    "cut.jsonl.gz": (cut(gzip.compress(GOOD)), r"cut\.jsonl\.gz:\d+: cannot be read .* cut short"),
    "cut.jsonl.zst": (
        cut(pa.compress(GOOD, codec="zstd", asbytes=True)),
        r"cut\.jsonl\.zst:\d+: cannot be read .* cut short",
    ),
    "cut.txt.gz": (
        cut(gzip.compress(b"plain text\n" * 500)),
        r"cut\.txt\.gz: cannot be read .* cut short",
    ),
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


def test_what_is_too_long_is_passed_over_and_counted(tmp_path: Path) -> None:
    long = {"text": "word " * 100}
    lines = jsonl([{"text": "a"}, long, {"text": "b"}, long])
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.txt").write_text(long["text"])
    table = pa.Table.from_pylist([{"text": "a"}, long, {"text": "b"}, long])
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=3)
    reader = reader_of(tmp_path, skip_bad=True, max_document_bytes=100)
    assert [d.text for d in reader] == ["a", "b"] * 3
    assert reader.num_bad == 2 + 2 + 1 + 2
    for name in ("a.jsonl:2: a line", "b.jsonl.gz:2: a line", "c.txt: more than", "d.parquet:2: "):
        file, _, what = name.partition(": ")
        with pytest.raises(InputError, match=rf"{file}: {what}.*raise --max-document-bytes"):
            texts_of(tmp_path / file.partition(":")[0], max_document_bytes=100)
    exact = len(jsonl([long]))
    assert texts_of(tmp_path / "a.jsonl", max_document_bytes=exact)[1] == long["text"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_limits_hold_for_texts_of_every_type(tmp_path: Path, kind: object) -> None:
    texts = pa.array(["a", None, "word " * 100, "b"], kind)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    reader = reader_of(tmp_path, skip_bad=True, max_document_bytes=100)
    assert [d.text for d in reader] == ["a", "b"]
    assert "a.parquet:3: 500 bytes, and 100 is the longest that is read" in reader.bad[1]


@pytest.mark.parametrize("column", ["text", "doc.text"])
def test_a_row_group_may_be_as_large_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    """Whatever the name of its column; texts that repeat are those beyond that."""
    monkeypatch.setattr(parquet, "MAX_REPEATED_BYTES", 1000)
    texts = [f"{number} " * 1000 for number in range(5)]
    pq.write_table(pa.table({column: texts}), tmp_path / "a.parquet", use_dictionary=False)
    assert [d.text for d in reader_of(tmp_path, text_key=column)] == texts


@pytest.mark.parametrize("limit", [20, 60, 10_000])
def test_parts_of_a_file_have_every_line_once(tmp_path: Path, limit: int) -> None:
    """Also those after a line that is longer than a part, whose end no part looks for twice."""
    generator = random.Random(limit)
    texts = [f"{number} " + "x" * generator.choice([0, 5, 30, 300]) for number in range(50)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"text": text} for text in texts]))
    size = path.stat().st_size
    source, read = Source("s", str(path)), ReadOptions(skip_bad=True, max_document_bytes=limit)
    wanted = [text for text in texts if len(jsonl([{"text": text}])) <= limit]
    for part in (7, 40, 64, 100, size):
        parts = [
            FilePart(path, part, "jsonl", at, min(at + part, size)) for at in range(0, size, part)
        ]
        readers = [DocumentReader(source, read, [one]) for one in parts]
        assert [d.text for reader in readers for d in reader] == wanted
        assert sum(reader.num_bad for reader in readers) == len(texts) - len(wanted)


def test_an_integer_that_nobody_reads_may_have_any_length(tmp_path: Path) -> None:
    digits = b"9" * 9000
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a", "n": [' + digits + b"]}\n")
    assert texts_of(tmp_path / "a.jsonl") == ["a"]
    (tmp_path / "b.jsonl").write_bytes(b'{"text": ' + digits + b"}\n")
    with pytest.raises(
        InputError, match=r"b\.jsonl:1: key 'text' has an integer of more than 4,300"
    ):
        texts_of(tmp_path / "b.jsonl")
    reader = reader_of(tmp_path, skip_bad=True)
    assert [d.text for d in reader] == ["a"]
    assert reader.num_bad == 1


@pytest.mark.parametrize("batch_bytes", [1, 1000, 1 << 25])
def test_parquet_rows_come_whole_in_batches_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr(parquet, "BATCH_BYTES", batch_bytes)
    records = [
        {
            "text": f"{i}" * (i % 7),
            "messages": [{"role": "user", "n": list(range(i % 5))}] * (i % 3),
        }
        for i in range(300)
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet", row_group_size=70)
    found = list(read_records(tmp_path / "a.parquet", ("text", "messages"), "parquet"))
    assert [dict(record.fields) for record in found] == records
    assert [record.place for record in found] == [
        f"{tmp_path}/a.parquet:{n + 1}" for n in range(300)
    ]


def test_values_that_python_cannot_hold_are_bad_rows_alone(tmp_path: Path) -> None:
    """A text that is not UTF-8, a date of the year 292,278,994 beside the text."""
    texts = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    times = pa.array([1, 2**63 - 1, 3], pa.int64()).view(pa.timestamp("ms"))
    inner = pa.StructArray.from_arrays([pa.array(["a", "b", "c"]), times], ["text", "when"])
    pq.write_table(pa.table({"in": inner}), tmp_path / "b.parquet")
    for name, key in (("a.parquet", "text"), ("b.parquet", "in.text")):
        reader = reader_of(tmp_path / name, text_key=key, skip_bad=True)
        assert [d.text for d in reader] == ["a", "c"]
        assert reader.num_bad == 1
        with pytest.raises(InputError, match=rf"{name}:2: cannot be read \(\w+Error: .*--skip-bad"):
            texts_of(tmp_path / name, text_key=key)


def test_a_damaged_row_group_is_lost_alone(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text {number} " * 50 for number in range(30)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=10, write_page_checksum=True, compression="none",
                   use_dictionary=False)  # fmt: skip
    data = bytearray(path.read_bytes())
    data[data.index(b"text 14 ")] ^= 1
    path.write_bytes(data)
    reader = reader_of(path, skip_bad=True)
    assert [d.text for d in reader] == table["text"].to_pylist()[:10] + table["text"].to_pylist()[
        20:
    ]
    assert reader.num_bad == 10
    message = r"a\.parquet:11: this row and the 9 behind it in its row group cannot be read"
    with pytest.raises(InputError, match=message):
        texts_of(path)


NESTED = {
    "struct": ([{"a": {"text": "x"}}], "a.text"),
    "deep struct": ([{"a": {"b": {"text": "x"}, "c": [1]}}], "a.b.text"),
    "dots in a name": ([{"a.text": "x"}], "a.text"),
    "beside a list of structs": ([{"text": "x", "l": [{"k": [None, 1]}]}], "text"),
}


@pytest.mark.parametrize("what", NESTED)
def test_nested_columns(tmp_path: Path, what: str) -> None:
    records, key = NESTED[what]
    pq.write_table(pa.Table.from_pylist(records * 3), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "a.jsonl").write_bytes(jsonl(records * 3))
    assert texts_of(tmp_path, text_key=key) == ["x"] * 6


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([["x"]]), "a list"),
        (pa.array([{"text": "x"}]), "a dict"),
        (pa.array([[("text", "x")]], pa.map_(pa.string(), pa.string())), "a dict"),
        (pa.array([b"x"]), "a bytes"),
        (pa.array([None], pa.string()), "no value"),
        (pa.array([1.5]), "a float"),
    ],
)
def test_columns_that_hold_no_text(tmp_path: Path, column: pa.Array, kind: str) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    message = rf"a\.parquet:1: key 'text' has {kind}(, not a text)? \(keys here: text\)"
    with pytest.raises(InputError, match=message):
        texts_of(tmp_path)
    reader = reader_of(tmp_path, skip_bad=True)
    assert (list(reader), reader.num_bad) == ([], 1)


def test_a_batch_that_is_too_large_is_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file says of its sizes may be wrong: then memory ends before a batch is whole."""
    texts = [f"{number}" * 10 for number in range(100)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    batches = parquet._batches

    def too_large(file, group, columns, batch_rows):
        for number, batch in enumerate(batches(file, group, columns, batch_rows)):
            if batch_rows > 1 and number == 1:
                raise MemoryError
            if batch_rows == 1 and number == fails_at:
                raise MemoryError
            yield batch

    monkeypatch.setattr(parquet, "_batches", too_large)
    fails_at = -1
    assert texts_of(tmp_path / "a.parquet") == texts
    fails_at = 90
    reader = reader_of(tmp_path / "a.parquet", skip_bad=True)
    assert [d.text for d in reader] == texts[:90]
    assert reader.num_bad == 10


def test_empty_texts_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": ""}, {"text": " \n"}, {"text": "a"}]))
    reader = reader_of(tmp_path)
    assert ([d.text for d in reader], reader.num_empty) == (["a"], 2)

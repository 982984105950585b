"""Which files of a source are read, and as what: names lie, folders hold litter, links go round."""

import gzip
import io
import json
import os
import pickle
import re
import sqlite3
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.read.reading import DocumentReader, ReadOptions, find_documents
from megatron_ultralong.data.read.signatures import SIGNATURES, signature_problem
from megatron_ultralong.data.read.sources import (
    HIDDEN,
    NOT_WANTED,
    REFUSED,
    REPEATED,
    UNKNOWN,
    FoundFiles,
    Source,
    find_files,
)
from megatron_ultralong.program.errors import InputError

ROWS = [{"text": f'a "quoted" text {number}\n'} for number in range(5)]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
PROSE = "A text of several lines.\nIt says little.\n"


def texts_of(path: Path | str, **options) -> list[str]:
    source, read = Source("s", str(path)), ReadOptions(**options)
    return [d.text for d in DocumentReader(source, read, find_documents(source, read).files)]


def found(path: Path | str, *suffixes: str) -> FoundFiles:
    return find_files(Source("s", str(path)), suffixes)


def counts(files: FoundFiles) -> dict[str, tuple[int, str]]:
    return {line.suffix: (line.num_files, line.read_as or line.reason) for line in files.counts}


def refusal(path: Path, data: bytes) -> str:
    """What is said of a file with these bytes; it says so of a folder too, and skips on request."""
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        found(path)
    message = str(caught.value)
    assert str(path) in message
    assert "--skip-bad" in message
    skipped = find_files(Source("s", str(path)), skip_bad=True)
    assert [bool(part.problem) for part in skipped.files] == [True]
    assert [(line.num_files, line.reason) for line in skipped.counts] == [(1, REFUSED)]
    path.unlink()
    return message


@pytest.mark.parametrize(
    "name", ["a.json", "a.JSON", "a.txt", "a.py", "a.jl", "part-00000", "a.data", "a"]
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_are_read_as_such_whatever_their_name(
    tmp_path: Path, name: str, suffix: str
) -> None:
    for text in (
        LINES,
        LINES.rstrip(),
        "\n" + LINES,
        "\ufeff" + LINES,
        LINES.replace("\n", "\r\n"),
    ):
        data = text.encode()
        (tmp_path / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
        assert texts_of(tmp_path) == TEXTS
        assert texts_of(tmp_path / (name + suffix)) == TEXTS


def test_json_lines_longer_than_what_is_looked_at(tmp_path: Path) -> None:
    text = "word " * 50_000
    (tmp_path / "a.json").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "b"}))
    (tmp_path / "b.dat").write_text(json.dumps({"id": 1, "text": text}))
    assert texts_of(tmp_path) == [text, "b", text]


def test_a_bad_line_is_a_bad_document_not_another_format(tmp_path: Path) -> None:
    lines = LINES.splitlines()
    for bad in (0, 2, 4):
        cut = [line[:-3] if number == bad else line for number, line in enumerate(lines)]
        for name in ("a.json", "a.jsonl", "a.txt", "part-0"):
            (tmp_path / name).write_text("\n".join(cut))
            assert texts_of(tmp_path / name, skip_bad=True) == TEXTS[:bad] + TEXTS[bad + 1 :]
            with pytest.raises(InputError, match=rf"{name}:{bad + 1}: not JSON"):
                texts_of(tmp_path / name)


VALUES = {
    "a JSON array": [json.dumps(ROWS), json.dumps(ROWS, indent=2), "[\n" + LINES + "]"],
    "one JSON value over": [json.dumps({"data": ROWS}, indent=2), '{"data": [\n1,\n2\n]}'],
}


@pytest.mark.parametrize("what", VALUES)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl", "a.txt", "a.xyz", "a"])
def test_json_values_are_refused_with_the_way_out(tmp_path: Path, name: str, what: str) -> None:
    for text in VALUES[what]:
        data = text.encode()
        said = refusal(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
        assert what in said
        assert "jq -c" in said
    (tmp_path / "a.txt").write_text(text)
    assert texts_of(tmp_path / "a.txt", file_format="text") == [text]


def test_large_json_values_too(tmp_path: Path) -> None:
    many = [{"text": "word " * 100} for _ in range(500)]
    for text in (json.dumps(many), json.dumps(many, indent=1), json.dumps({"a": many}, indent=1)):
        for name in ("a.json", "a.txt", "a.xyz"):
            assert "where JSON lines are read" in refusal(tmp_path / name, text.encode())


TEXT_THAT_LOOKS_LIKE = [
    "[section]\nkey = 1\n",
    "[a link](http://a.b) and text",
    "{{ template }}\n",
    "{% if a %}\n",
    "# heading\n",
    "GGUF is a format.",
    "ORCs and elves",
    "BZh is how bzip2 begins",
    "PK, said he",
    "ID3 is an algorithm",
    "070701 was the number",
    "A SHORT WAVE hit the beach",
    "II* is no picture",
    '"a string"\n"another"\n',
    "1\n2\n3\n",
    "\ufeffwith a mark",
    'x = {"a": 1}\n{"b": 2}\n',
]


@pytest.mark.parametrize("text", TEXT_THAT_LOOKS_LIKE)
def test_texts_stay_texts(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert texts_of(tmp_path) == [text.removeprefix("\ufeff")]


def test_source_code_may_look_like_json(tmp_path: Path) -> None:
    """As a list of patches in a file of Python's."""
    for text in (json.dumps(ROWS, indent=2), json.dumps(ROWS), json.dumps({"a": ROWS}, indent=2)):
        for name in ("a.py", "b.js", "c.rb.gz"):
            data = text.encode()
            (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        assert texts_of(tmp_path) == [text] * 3


def table() -> pa.Table:
    return pa.Table.from_pylist(ROWS)


def sink(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def tar(file: io.BytesIO, format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES.encode()))


def zipped(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", LINES)


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table a (text)")
    return connection.serialize()


def ipc(file: io.BytesIO) -> None:
    with pa.ipc.new_stream(file, table().schema) as writer:
        writer.write_table(table())


BINARY: dict[str, tuple[Callable[[], bytes], str]] = {
    "tar": (lambda: sink(tar), "is a tar archive"),
    "gnu tar": (lambda: sink(lambda f: tar(f, tarfile.GNU_FORMAT)), "is a tar archive"),
    "zip": (lambda: sink(zipped), "is a zip archive"),
    "gzip": (lambda: gzip.compress(LINES.encode()), "is gzip"),
    "zstd": (lambda: bytes(pa.compress(LINES.encode(), codec="zstd", asbytes=True)), "is zstd"),
    "lz4": (lambda: bytes(pa.compress(LINES.encode(), codec="lz4", asbytes=True)), "is lz4"),
    "parquet": (lambda: sink(lambda f: pq.write_table(table(), f)), "is parquet"),
    "feather": (lambda: sink(lambda f: pa.feather.write_feather(table(), f)), "is an Arrow"),
    "feather 1": (
        lambda: sink(lambda f: pa.feather.write_feather(table(), f, version=1)),
        "is a Feather file",
    ),
    "arrow stream": (lambda: sink(ipc), "is an Arrow stream"),
    "orc": (lambda: sink(lambda f: pa.orc.write_table(table(), f)), "is ORC"),
    "npy": (lambda: sink(lambda f: np.save(f, np.arange(9))), "is a NumPy array"),
    "npz": (lambda: sink(lambda f: np.savez(f, np.arange(9))), "is a zip archive"),
    "sqlite": (database, "is a SQLite database"),
    "elf": (lambda: Path(sys.executable).resolve().read_bytes()[:9000], "is an ELF program"),
    "pdf": (lambda: b"%PDF-1.7\n1 0 obj\n", "is PDF"),
    "rtf": (lambda: b"{\\rtf1\\ansi text}", "is RTF"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG image"),
    "jpeg": (lambda: b"\xff\xd8\xff\xe0\0\x10JFIF", "is a JPEG image"),
    "avro": (lambda: b"Obj\x01\x02", "is Avro"),
    "safetensors": (
        lambda: (60).to_bytes(8, "little") + b'{"a": {"dtype": "F32"}}'.ljust(60) + bytes(4),
        "is safetensors",
    ),
    **{
        f"pickle {n}": (lambda n=n: pickle.dumps(ROWS, n), "is a Python pickle")
        for n in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 5\n",
        "is a pointer of Git LFS.*git lfs pull",
    ),
    "annex": (lambda: b"/annex/objects/MD5E-s5--0f\n", "is a pointer of git-annex"),
    "utf-16": (lambda: LINES.encode("utf-16"), "is UTF-16 by .*iconv -f UTF-16 -t UTF-8"),
    "utf-16-be mark": (lambda: b"\xfe\xff" + LINES.encode("utf-16-be"), "is UTF-16"),
    "utf-32": (lambda: LINES.encode("utf-32"), "is UTF-32"),
    "utf-16-le": (lambda: LINES.encode("utf-16-le"), "is UTF-16LE without a mark"),
    "utf-16-be": (lambda: LINES.encode("utf-16-be"), "is UTF-16BE without a mark"),
    "utf-32-le": (lambda: LINES.encode("utf-32-le"), "is UTF-32LE without a mark"),
}


@pytest.mark.parametrize("what", BINARY)
def test_other_formats_are_refused_by_what_they_are(tmp_path: Path, what: str) -> None:
    make, message = BINARY[what]
    data = make()
    for name in ("a.jsonl", "a.json", "a.txt", "a.xyz", "a", "a.py", "a.parquet", "a.jsonl.gz"):
        if (what, name) in (("parquet", "a.parquet"), ("gzip", "a.jsonl.gz")):
            continue
        said = refusal(tmp_path / name, data)
        assert re.search(message, said), said
    inside = refusal(tmp_path / "a.txt.gz", gzip.compress(data))
    assert re.search(message, inside), inside


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: s.name)
def test_every_signature_is_seen_and_says_the_way_out(signature) -> None:
    head = bytes(range(128, 128 + signature.offset % 100)).ljust(signature.offset, b"\xfe")
    problem = signature_problem(head + signature.magic + b"\0\xff" * 9)
    assert f"is {signature.name} by its first bytes: " in problem
    assert len(problem.partition("first bytes: ")[2]) > 10


def test_nuls_anywhere_in_a_text(tmp_path: Path) -> None:
    for at in (0, 1, 5000, 500_000):
        text = "word " * 110_000
        (tmp_path / "a.txt").write_text(text[:at] + "\0" + text[at:])
        with pytest.raises(InputError, match=rf"holds a NUL at {at:,}, .*--file-format text"):
            texts_of(tmp_path)
    assert texts_of(tmp_path, file_format="text") == [text[:at] + "\0" + text[at:]]
    (tmp_path / "a.jsonl").write_bytes(LINES.encode() + bytes(4096))
    with pytest.raises(InputError, match=r"a\.jsonl:6: not JSON .*; it holds NULs, as a file has"):
        texts_of(tmp_path / "a.jsonl")


def test_what_is_compressed_twice(tmp_path: Path) -> None:
    data = gzip.compress(gzip.compress(LINES.encode()))
    for name in ("a.jsonl.gz", "a.jsonl.gz.gz", "a.gz"):
        assert "is gzip inside gzip: decompress it once" in refusal(tmp_path / name, data)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"}{"text": "b"}', r"Extra data.*`jq -c \.`"),
        ('{"text": "a"},', r"Extra data.*`jq -c \.`"),
        ("{'text': 'a'}", "as Python writes a dict: write it with json.dumps"),
        ('{"text": "a', "is the file cut short?"),
        ("text", "one JSON object a line belongs here"),
    ],
)
def test_lines_that_are_no_json(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(LINES + line)
    with pytest.raises(InputError, match=rf"a\.jsonl:6: not JSON .*{reason}"):
        texts_of(tmp_path)
    assert texts_of(tmp_path, skip_bad=True) == TEXTS


def test_a_page_in_place_of_the_data(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"):
        said = refusal(tmp_path / name, b"<!DOCTYPE html>\n<html>404</html>")
        assert "begins as HTML or XML: a page that tells of an error" in said


def test_tables_of_text(tmp_path: Path) -> None:
    for suffix in (".csv", ".tsv"):
        assert "is a table of text by its suffix" in refusal(tmp_path / f"a{suffix}", b"a,b\n1,2\n")
    (tmp_path / "a.csv").write_text("a,b\n")
    assert texts_of(tmp_path, file_format="text") == ["a,b\n"]


def test_parquet_that_is_compressed_around(tmp_path: Path) -> None:
    data = gzip.compress(sink(lambda file: pq.write_table(table(), file)))
    assert "is parquet inside gzip: decompress it" in refusal(tmp_path / "a.parquet.gz", data)


def test_lines_that_end_in_a_carriage_return(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.txt", "a"):
        said = refusal(tmp_path / name, LINES.replace("\n", "\r").encode())
        assert "end in a carriage return alone: convert it with `tr '\\r' '\\n'`" in said
    (tmp_path / "a.jsonl").write_bytes(LINES.encode() + LINES.replace("\n", "\r").encode())
    with pytest.raises(InputError, match=r"a\.jsonl:6: not JSON .*in a carriage return alone"):
        texts_of(tmp_path)


def test_keys_in_another_case_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"Text": TEXTS, "id": range(5)}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(LINES.replace('"text"', '"TEXT"'))
    for name, key in (("a.parquet", "Text"), ("a.jsonl", "TEXT")):
        message = (
            rf"key 'text' has no value.*\(keys here: {key}.*\); did you mean --text-key {key}\?"
        )
        with pytest.raises(InputError, match=message):
            texts_of(tmp_path / name)
        assert texts_of(tmp_path / name, text_key=key) == TEXTS


def write(root: Path, *names: str, text: str = PROSE) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}{name}")


def test_litter_below_a_folder_is_left_out_and_told(tmp_path: Path) -> None:
    """What `hf download`, macOS, git, editors, Spark and people leave beside data."""
    write(tmp_path, "data/a.txt", "data/b.py", "Makefile", "readme.py")
    (tmp_path / "data/c.jsonl").write_text(LINES)
    hidden = [
        ".gitattributes", ".cache/huggingface/.gitignore", ".cache/huggingface/CACHEDIR.TAG",
        ".cache/huggingface/download/data/c.jsonl.metadata", ".cache/x.jsonl", "data/._c.jsonl",
        ".git/HEAD", "data/.ipynb_checkpoints/a.txt", ".DS_Store", ".c.jsonl.swp",
    ]  # fmt: skip
    programs = ["data/c.jsonl.lock", "_SUCCESS", "dataset_info.json", "data/a.txt~", "a.txt.bak",
                "__MACOSX/a.txt", "__pycache__/b.txt", "Thumbs.db", "x.crc", "y.jsonl.incomplete",
                "SHA256SUMS"]  # fmt: skip
    about = ["README.md", "LICENSE", "data/README", "LICENSE.txt", "CITATION.cff"]
    write(tmp_path, *hidden, *programs, *about, "notes.xyz", "unknown")
    files = found(tmp_path)
    names = [str(part.path.relative_to(tmp_path)) for part in files.files]
    assert names == ["Makefile", "data/a.txt", "data/b.py", "data/c.jsonl", "readme.py"]
    by_reason: dict[str, int] = {}
    for line in files.counts:
        by_reason[line.reason] = by_reason.get(line.reason, 0) + line.num_files
    assert by_reason == {
        "": 5, HIDDEN: len(hidden), "left there by a program": len(programs),
        "about the data, by its name": len(about), UNKNOWN: 2,
    }  # fmt: skip
    assert counts(files)[".gitattributes"] == (1, HIDDEN)
    # named, each is read
    for name in ("README.md", "notes.xyz", ".gitattributes", "data/a.txt~"):
        assert texts_of(tmp_path / name) == [PROSE + name]
    assert texts_of(tmp_path, suffixes=(".xyz",)) == [PROSE + "notes.xyz"]
    assert len(texts_of(tmp_path, suffixes=(".md",))) == 1
    assert texts_of(tmp_path / "*.md") == [PROSE + "README.md"]
    (tmp_path / ".cache/x.jsonl").write_text(LINES)
    assert texts_of(tmp_path / ".cache", suffixes=(".jsonl",)) == TEXTS  # hidden is what is below


def test_suffixes_that_are_not_wanted_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.py", "c.py")
    assert counts(found(tmp_path, ".py")) == {".py": (2, "text"), ".txt": (1, NOT_WANTED)}
    with pytest.raises(InputError, match=r"no file ending in \.rs .*\(3 files before .*2 \.py not"):
        found(tmp_path, ".rs")


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, "own/a.txt", "own/deep/b.txt", "other/c.txt", "other/deep/d.txt")
    own = tmp_path / "own"
    (own / "more").symlink_to("../other")
    (own / "again").symlink_to("../other")
    (own / "up").symlink_to("..")
    (own / "self").symlink_to(".")
    (own / "deep" / "loop").symlink_to("../deep")
    (own / "e.txt").symlink_to("a.txt")
    os.link(own / "a.txt", own / "f.txt")
    (tmp_path / "other" / "back").symlink_to("../own")
    expected = {PROSE + name for name in
                ("own/a.txt", "own/deep/b.txt", "other/c.txt", "other/deep/d.txt")}  # fmt: skip
    for pattern in (own, tmp_path / "own/**/*.txt", tmp_path / "own/**", tmp_path / "o*"):
        texts = texts_of(pattern)
        assert set(texts) == expected
        assert len(texts) == 4, pattern
    files = found(own)
    names = [str(part.path.relative_to(own)) for part in files.files]
    assert names[:2] == ["a.txt", "deep/b.txt"]  # not by links where there is a plain way
    repeated = sum(line.num_files for line in files.counts if line.reason == REPEATED)
    assert repeated >= 4  # e.txt, f.txt, self, deep/loop


def test_the_name_that_says_what_a_file_is_comes_first(tmp_path: Path) -> None:
    """As a hub's cache: the file under its hash, and a link by its name."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    pq.write_table(table(), tmp_path / "blobs" / "0a1b")
    (tmp_path / "snapshots" / "1" / "train.parquet").symlink_to("../../blobs/0a1b")
    assert texts_of(tmp_path) == TEXTS


def test_links_to_nothing_and_pipes(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert counts(found(tmp_path))[".jsonl"] == (1, "a pipe, a socket or a device")
    for target in ("missing.jsonl", "b.jsonl"):
        (tmp_path / "b.jsonl").unlink(missing_ok=True)
        (tmp_path / "b.jsonl").symlink_to(target)
        with pytest.raises(InputError, match=r"b\.jsonl cannot be read \(.*: copy it again"):
            found(tmp_path)
        assert texts_of(tmp_path, skip_bad=True) == [PROSE + "a.txt"]


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt", "closed/b.txt")
    listing = os.scandir

    def closed(path: Path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", closed)  # root may list every folder
    with pytest.raises(InputError, match=r"cannot list .*closed \(Permission denied\): its files"):
        found(tmp_path)


def test_many_suffixes_are_counted_together(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", *(f"b.x{number}" for number in range(100)))
    files = found(tmp_path)
    assert len(files.counts) <= 62
    assert sum(line.num_files for line in files.counts) == 101
    assert files.counts[0].read_as == "text"

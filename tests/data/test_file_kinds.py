"""What a file is read as, whatever its name says, and what is refused."""

import csv
import gzip
import io
import json
import pickle
import re
import sqlite3
import subprocess
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

from megatron_ultralong.data.read.file_kind import file_kind
from megatron_ultralong.data.read.file_names import UNREAD_SUFFIXES
from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.read.signatures import SIGNATURES, signature_problem
from megatron_ultralong.data.read.sources import REFUSED, Source, find_files
from megatron_ultralong.program.errors import InputError
from tests.data.source_files import LINES, ROWS, TEXTS, found, table, texts_of


def refusal(path: Path, data: bytes) -> str:
    """What is said of a file with these bytes; it says so of a folder too, and skips on request."""
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        found(path)
    message = str(caught.value)
    assert str(path) in message
    assert "--skip-bad" in message
    skipped = find_files(Source("s", str(path)), ReadOptions(skip_bad=True))
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
    "a JSON array of what are no objects": [json.dumps(TEXTS), json.dumps([ROWS]), "[1,\n2]"],
    "an array on each line": [json.dumps(ROWS) + "\n" + json.dumps(ROWS) + "\n"],
    "one JSON object with its records under": [
        json.dumps({"data": ROWS}, indent=2),
        json.dumps({"all the rows": ROWS}, indent=1),
    ],
    "JSON over several lines a value": [
        '{"data": [\n1,\n2\n]}',
        '{\n "text": "a"\n}',
        "\n".join(json.dumps(row, indent=2) for row in ROWS),  # as jq writes without -c
        "".join(json.dumps(row, indent=1) for row in ROWS),
    ],
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
    for name in ("a.json", "a.txt", "a.xyz"):
        said = refusal(tmp_path / name, json.dumps({"a": many}, indent=1).encode())
        assert f"""jq -c '.["a"][]' {tmp_path / name} > new.jsonl""" in said
    for text in (json.dumps({"data": many}), json.dumps({"data": many[:1]})):
        said = refusal(tmp_path / "a.json", text.encode())
        assert f"""jq -c '.["data"][]' {tmp_path / "a.json"} > new.jsonl""" in said


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
    "II* is not a picture",
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
        ('{"text": "a', r"Unterminated string at column 10.*is the file cut short\?"),
        ('{"text": "a"', r"is the file cut short\?"),
        ("text", "one JSON object a line belongs here"),
    ],
)
def test_lines_that_are_no_json(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(LINES + line)
    with pytest.raises(InputError, match=rf"a\.jsonl:6: not JSON .*{reason}"):
        texts_of(tmp_path)
    assert texts_of(tmp_path, skip_bad=True) == TEXTS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            '{"text": "\t"}',
            r"Invalid control character at column 11\); a tab in a text is",
        ),
        ('{"text": "a', r"Invalid control character at column 12\); is a quote missing\?"),
        ('{"text": "a"', r"Expecting ',' delimiter at column 13\); is a quote, comma or bracket"),
        ('{"text" "a"}', r"Expecting ':' delimiter at column 9\); is a quote, comma or bracket"),
    ],
)
def test_a_bad_line_in_the_middle_is_not_a_cut(tmp_path: Path, line: str, reason: str) -> None:
    """Its own line and column are named: JSON's own words of a line 1 are of the line alone."""
    (tmp_path / "a.jsonl").write_text(f"{LINES}{line}\n{LINES}")
    with pytest.raises(InputError, match=rf"a\.jsonl:6: not JSON \({reason}") as refused:
        texts_of(tmp_path)
    assert "cut short" not in str(refused.value)
    assert "line 1" not in str(refused.value)


def test_a_page_in_place_of_the_data(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"):
        said = refusal(tmp_path / name, b"<!DOCTYPE html>\n<html>404</html>")
        assert "begins as HTML or XML: a page that tells of an error" in said


def test_tables_of_text(tmp_path: Path) -> None:
    for suffix in (".csv", ".tsv"):
        assert "is a table of text by its suffix" in refusal(tmp_path / f"a{suffix}", b"a,b\n1,2\n")
    rows = [{"text": 'a "b",\n\t| c', "id": "1"}, {"text": "d" * 200_000, "id": "2"}]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t"), (".psv", "|")):
        path = tmp_path / f"a{suffix}"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ("text", "id"), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        advised = re.findall("`([^`]*)`", UNREAD_SUFFIXES[suffix])
        command = advised[0].replace("python", sys.executable).replace("FILE", path.name)
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
        assert [json.loads(x) for x in (tmp_path / "new.jsonl").open()] == rows
        path.unlink()
        (tmp_path / "new.jsonl").unlink()
    (tmp_path / "a.csv").write_text("a,b\n")
    assert texts_of(tmp_path, file_format="text") == ["a,b\n"]


def test_parquet_that_is_compressed_around(tmp_path: Path) -> None:
    data = gzip.compress(sink(lambda file: pq.write_table(table(), file)))
    assert "is parquet inside gzip: decompress it" in refusal(tmp_path / "a.parquet.gz", data)


@pytest.mark.parametrize(
    ("before", "behind", "what"),
    [("", ",", "commas behind its values"), ("\x1e", "", "separator")],
)
def test_signs_around_values_come_with_what_removes_them(
    tmp_path: Path, before: str, behind: str, what: str
) -> None:
    lines = [json.dumps({"text": f"{n}, a,"}) for n in range(3)]
    path = tmp_path / "a b.jsonl"
    path.write_text("\n".join(f"{before}{line}{behind}" for line in lines[:2]))
    path.write_text(path.read_text() + f"\n{before}{lines[2]}\n")
    problem = file_kind(path, "auto").problem
    assert what in problem
    program = re.search("`(.*?)`", problem)
    assert program
    subprocess.run(program[1], shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "new.jsonl").read_text().splitlines() == lines
    path.write_text(f"{before}{lines[0]}{behind}\n{lines[1]}\n{lines[2]}\n")
    assert not file_kind(path, "auto").problem, "one bad line is a bad document"


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
        message = rf"no value.*\(keys here: {key}.*\); perhaps you meant --text-key s={key};"
        with pytest.raises(InputError, match=message):
            texts_of(tmp_path / name)
        assert texts_of(tmp_path / name, text_key=key) == TEXTS

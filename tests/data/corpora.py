"""Random folders of documents, made with what happens to them: formats, litter, links, damage.

Who makes a file knows its documents. What a damaged one still holds is told by Python's own gzip,
bz2, lzma and json, and by pyarrow: nothing here is read by the program that is tested.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
}
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}
WORDS = [
    *(
        "a",
        "of",
        "naïve",
        "文章",
        "\U0001f600",
        '"quoted"',
        "back\\slash",
        "<s>",
        "\t",
        "{}",
        "[1]",
    ),
    *("tab\tbed", "line\nbreak", "\u2028", "null", "e\u0301", "\r\nend", "x" * 40),
]
ODD_NAMES = [os.fsdecode(b"\xff\xfe"), "\x1b[31m", "a\nb", " ", "[/red]", "文章", "--x"]
"""Beginnings of names: no UTF-8, what steers a terminal, a line's end, markup."""


@dataclass
class Corpus:
    """A folder, what stands in it, and what a reader must make of it."""

    root: Path
    source: str = ""
    """What is given to the program."""

    flags: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    """Texts that must be found; empty and equal ones among them."""

    possible: list[str] = field(default_factory=list)
    """Texts that a damaged file may still give."""

    bad: dict[Path, int] = field(default_factory=dict)
    """Files with bad documents, and how many at least."""

    num_read: int = 0
    """Files that hold documents, bad ones too."""

    num_left_out: int = 0
    """Other paths below the folder that are no folders."""

    what: list[str] = field(default_factory=list)
    """What was made, to be told where a test fails."""


def make(root: Path, seed: int) -> Corpus:
    """A corpus of some files; every second one in order, the others damaged somewhere."""
    generator = random.Random(seed)
    corpus = Corpus(root / "corpus", str(root / "corpus"))
    maker = _Maker(corpus, generator, root / "elsewhere")
    for number in range(generator.randint(1, 5)):
        maker.add_file(number, damaged=False)
    if seed % 2:
        for number in range(generator.randint(1, 2)):
            maker.add_file(10 + number, damaged=True)
    for number in range(generator.randint(0, 5)):
        maker.add_litter(number)
    for number in range(generator.randint(0, 3)):
        maker.add_link(number)
    if generator.random() < 0.3:
        corpus.source += generator.choice(["/**", "/**/*"])
    if generator.random() < (0.5 if seed % 2 else 0.1):
        corpus.flags.append("--skip-bad")
    if generator.random() < 0.2:
        corpus.flags += ["--workers", "1"]
    return corpus


class _Maker:
    def __init__(self, corpus: Corpus, generator: random.Random, elsewhere: Path) -> None:
        self.corpus = corpus
        self.generator = generator
        self.elsewhere = elsewhere
        self.files: list[Path] = []
        corpus.root.mkdir(parents=True)
        self.folders = [corpus.root]
        for name in ("a", "deep/er", "b b"):
            if generator.random() < 0.5:
                (corpus.root / name).mkdir(parents=True)
                self.folders.append(corpus.root / name)

    def texts(self) -> list[str]:
        draw = self.generator
        texts = [
            " ".join(draw.choices(WORDS, k=draw.randint(1, 20))) + f" {draw.random()}"
            for _ in range(draw.randint(1, 12))
        ]
        for text in ("", " \n", texts[0]):
            if draw.random() < 0.2:
                texts.insert(draw.randint(0, len(texts)), text)
        return texts

    def path(self, name: str, folder: Path | None = None) -> Path:
        if self.generator.random() < 0.1:
            name = self.generator.choice(ODD_NAMES) + name
        path = (folder or self.generator.choice(self.folders)) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.corpus.what.append(ascii(str(path.relative_to(self.corpus.root.parent))))
        return path

    def add_file(self, number: int, *, damaged: bool, folder: Path | None = None) -> None:
        kind = self.generator.choice([self._lines, self._lines, self._parquet, self._text])
        self.corpus.num_read += 1
        self.files.append(kind(number, damaged, folder))

    # Formats

    def _lines(self, number: int, damaged: bool, folder: Path | None) -> Path:
        """JSON lines, under any name."""
        draw = self.generator
        suffix = draw.choice([".jsonl", ".ndjson", ".json", ".txt", "", ".data", ".JSONL"])
        compression = draw.choice(["", "", *COMPRESSORS])
        texts = self.texts()
        options = {"ensure_ascii": draw.random() < 0.5}
        lines = [
            json.dumps({"id": i, "text": text, "meta": {"n": [1, None]}}, **options)
            for i, text in enumerate(texts)
        ]
        path = self.path(f"file-{number}{suffix}{compression}", folder)
        if damaged:
            self._damage_lines(path, lines, texts, compression)
            return path
        if draw.random() < 0.1:
            lines[0] = lines[0].replace('"n": [1', '"n": [' + "9" * 5000)
        end = draw.choice(["\n", "\n", "\r\n", "\n\n"])
        data = (end.join(lines) + draw.choice(["", end])).encode()
        if draw.random() < 0.1:
            data = b"\xef\xbb\xbf" + data
        self.corpus.wanted += texts
        path.write_bytes(self._compressed(data, compression))
        return path

    def _compressed(self, data: bytes, compression: str) -> bytes:
        """One member or several, zeros behind them where their programs allow it."""
        if not compression:
            return data
        cut = self.generator.randrange(len(data) + 1)
        write = COMPRESSORS[compression]
        whole = self.generator.choice([write(data), write(data[:cut]) + write(data[cut:])])
        if compression != ".zst" and self.generator.random() < 0.3:
            whole += bytes(self.generator.choice([1, 512, 4000]))
        return whole

    def _parquet(self, number: int, damaged: bool, folder: Path | None) -> Path:
        draw, texts = self.generator, self.texts()
        path = self.path(f"table-{number}.parquet", folder)
        column = pa.array(texts)
        column = draw.choice([column, column.cast(pa.large_string()), column.dictionary_encode()])
        name = "text"
        if damaged and draw.random() < 0.2:
            name = "Text"
        table = pa.table({"id": range(len(texts)), name: column})
        rows = draw.choice([1, 3, 100])
        written = io.BytesIO()  # Arrow writes no names that are not UTF-8
        pq.write_table(
            table,
            written,
            row_group_size=rows,
            compression=draw.choice(["none", "snappy", "zstd"]),
            write_page_checksum=True,
        )
        path.write_bytes(written.getvalue())
        if not damaged:
            self.corpus.wanted += texts
            return path
        self.corpus.possible += texts
        self.corpus.bad[path] = len(texts) if name != "text" else 1
        if name == "text":
            data = path.read_bytes()
            keep = draw.randrange(1, len(data))
            path.write_bytes(draw.choice([data[:keep], data[:keep] + bytes(len(data) - keep)]))
        return path

    def _text(self, number: int, damaged: bool, folder: Path | None) -> Path:
        draw = self.generator
        compression = draw.choice(["", "", "", *COMPRESSORS])
        suffix = draw.choice([".txt", ".md", ".py", ".rst", ".TXT"])
        text = f"Text {number}: " + draw.choice(self.texts())
        path = self.path(f"text-{number}{suffix}{compression}", folder)
        if damaged:
            self._write_nonsense(path, text, compression)
            return path
        mark = b"\xef\xbb\xbf" if draw.random() < 0.1 else b""
        self.corpus.wanted.append(text)
        path.write_bytes(self._compressed(mark + text.encode(), compression))
        return path

    # Damage

    def _damage_lines(
        self, path: Path, lines: list[str], texts: list[str], compression: str
    ) -> None:
        draw = self.generator
        suffix = Path(path.name.removesuffix(compression)).suffix.lower()
        if compression and draw.random() < 0.6:
            self._damage_compressed(path, "\n".join(lines) + "\n", compression)
            return
        # of few lines under any name one that is bad makes the whole a text, or nothing known
        is_vague = len(lines) < 4 and suffix not in (".jsonl", ".ndjson", ".json")
        if is_vague or draw.random() < 0.4:
            self._write_nonsense(path, "\n".join(lines), compression)
            return
        number = draw.randrange(len(lines))
        self.corpus.what.append(f"line {number} of {path.name!a} is bad")
        self.corpus.bad[path] = 1
        bad = draw.choice(
            [lines[number][:-4], '{"other": 1}', '{"text": ["a"]}', '{"text": null}', "[1]", "7",
             '{"text": "\\ud800"}', '{"text": ' + "9" * 5000 + "}"]
        )  # fmt: skip
        data = "\n".join([*lines[:number], bad, *lines[number + 1 :]]).encode()
        kept = [*texts[:number], *texts[number + 1 :]]
        if suffix in (".jsonl", ".ndjson") and len(lines) > 1:
            self.corpus.wanted += kept
        else:  # beginning so, it may be no JSON lines at all
            self.corpus.possible += kept
        path.write_bytes(self._compressed(data, compression))

    def _damage_compressed(self, path: Path, text: str, compression: str) -> None:
        draw = self.generator
        data = COMPRESSORS[compression](text.encode())
        kind = draw.choice(["cut", "tail", "flip", "plain", "empty"])
        self.corpus.what.append(f"{kind} {path.name!a}")
        self.corpus.bad[path] = 1
        if kind == "flip" and compression == ".zst":  # Arrow writes no checksum
            kind = "cut"
        if kind == "cut":
            data = data[: draw.randrange(1, len(data))]
        elif kind == "tail":
            data += draw.choice([b"garbage", b"\x01" * 600, b"x"])
        elif kind == "flip":
            place = draw.randrange(len(data))
            flipped = bytearray(data)
            flipped[place] ^= 1 << draw.randrange(8)
            data = bytes(flipped)
        elif kind == "plain":
            data = text.encode()
        else:
            data = b""
        path.write_bytes(data)
        left = readable(data, compression) if kind != "plain" else ""
        complete = [json.loads(line)["text"] for line in text.split("\n") if line]
        lines = left.split("\n")[:-1]
        if left == text:
            self.corpus.wanted += complete
            if kind == "flip":  # of a header's bit that means nothing
                del self.corpus.bad[path]
        elif kind == "cut" and lines:
            self.corpus.wanted += [json.loads(line)["text"] for line in lines]
            self.corpus.possible += complete[len(lines) :]
        else:
            self.corpus.possible += complete

    def _write_nonsense(self, path: Path, text: str, compression: str) -> None:
        """Something else under this name."""
        draw = self.generator
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo("a.txt")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        table = io.BytesIO()
        pq.write_table(pa.table({"text": [text]}), table)
        kinds = {
            "tar": archive.getvalue(),
            "gzip": gzip.compress(text.encode()),
            "parquet": table.getvalue(),
            "array": json.dumps([{"text": text}] * 3).encode(),
            "lines of an array": b"[\n" + json.dumps({"text": text}).encode() + b"\n]\n",
            "object": json.dumps({"data": [text]}, indent=2).encode(),
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "utf-16": f"{text} of text".encode("utf-16"),
            "nuls": text.encode() + b"\0" * 10,
            "noise": b"\0\xff" + draw.randbytes(300),
            "latin-1": text.encode() + "\nnaïve".encode("latin-1"),
        }
        if Path(path.name.removesuffix(compression)).suffix in (".py", ".rst"):
            for name in ("array", "lines of an array", "object"):  # which source code may be
                del kinds[name]
        what = draw.choice(sorted(kinds))
        self.corpus.what.append(f"{what} as {path.name!a}")
        is_read = what.endswith("array") and path.suffix != ".parquet"  # under any other name
        if is_read:
            self.corpus.wanted.append(text)
        else:
            self.corpus.bad[path] = 1
        if what in ("nuls", "latin-1"):  # the lines before may be right
            for line in text.split("\n"):
                if line.startswith("{"):
                    self.corpus.possible.append(json.loads(line)["text"])
        data = kinds[what]
        path.write_bytes(COMPRESSORS[compression](data) if compression else data)

    # What else stands there

    def add_litter(self, number: int) -> None:
        names = [
            f".hidden-{number}.jsonl", f"._file-{number}.jsonl", f".cache/x-{number}/a.jsonl",
            f".cache/huggingface/download/{number}.metadata", f"x-{number}.lock", ".gitattributes",
            "README.md", "LICENSE", f"file-{number}.jsonl.incomplete", f"note-{number}.unknown",
            f"__MACOSX/{number}.txt", "SHA256SUMS", f"text-{number}.txt~", f"nothing-{number}",
        ]  # fmt: skip
        folder = self.generator.choice(self.folders)
        path = folder / self.generator.choice(names)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self.corpus.what.append(str(path.relative_to(self.corpus.root.parent)))
        path.write_text(f"Litter {number}, which nobody wants to learn.\n")
        if not self.corpus.source.endswith("*"):
            self.corpus.num_left_out += 1

    def add_link(self, number: int) -> None:
        draw = self.generator
        kind = draw.choice(["file", "hard", "loop", "self", "folder", "twice"])
        link = draw.choice(self.folders) / f"link-{number}-{kind}"
        if kind in ("file", "hard"):
            target = draw.choice(self.files)
            link = link.with_name(f"{link.name}{target.name}")
            (os.link if kind == "hard" else os.symlink)(target.resolve(), link)
            self.corpus.num_left_out += 1
        elif kind in ("loop", "self"):
            link.symlink_to(self.corpus.root if kind == "loop" else ".")
            self.corpus.num_left_out += 1
        else:
            folder = self.elsewhere / f"{number}"
            self.add_file(100 + number, damaged=False, folder=folder)
            link.symlink_to(folder)
            if kind == "twice":
                link.with_name(f"{link.name}-again").symlink_to(folder)
                self.corpus.num_left_out += 1
        self.corpus.what.append(ascii(str(link.relative_to(self.corpus.root.parent))))


def readable(data: bytes, compression: str) -> str:
    """What Python's own modules make of compressed bytes, up to the first that are none."""
    found = bytearray()
    if compression not in DECOMPRESSORS:
        return ""
    try:
        while data:
            engine = DECOMPRESSORS[compression]()
            for place in range(len(data)):
                found += engine.decompress(data[place : place + 1])
                if engine.eof:
                    break
            data = data[place + 1 :].lstrip(b"\0") if engine.eof else b""
    except (OSError, zlib.error, lzma.LZMAError):
        pass
    return found.decode(errors="replace")

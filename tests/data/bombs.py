"""Inputs that are small on disk and become gigabytes where they are read without a limit."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MIB, GIB = 1 << 20, 1 << 30

TEXT = b"a word of text, and another\n"
LINE = b"a word of text, and another "


def repeated(unit: bytes, size: int) -> bytes:
    return unit * (size // len(unit))


def write_gzip(path: Path, head: bytes, unit: bytes, size: int, tail: bytes = b"") -> None:
    """Gigabytes in no time: one member of 16 MiB, copied."""
    member = gzip.compress(repeated(unit, 16 * MIB))
    path.write_bytes(gzip.compress(head) + member * (size // (16 * MIB)) + gzip.compress(tail))


def write_zstd(path: Path, head: bytes, unit: bytes, size: int, tail: bytes = b"") -> None:
    def frame(data: bytes) -> bytes:
        return bytes(pa.compress(data, codec="zstd", asbytes=True))

    path.write_bytes(
        frame(head) + frame(repeated(unit, 16 * MIB)) * (size // (16 * MIB)) + frame(tail)
    )


def write_members(
    path: Path, compress: Callable[[bytes], bytes], head: bytes, unit: bytes, size: int
) -> None:
    """The same with any compression whose members may stand one after the other."""
    member = compress(repeated(unit, 16 * MIB))
    path.write_bytes(compress(head) + member * (size // (16 * MIB)))


def write_sparse(path: Path, head: bytes, size: int = 3 * GIB) -> None:
    """A file of zeros that takes no room on disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def write_once(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data, 1))


def long_window(path: Path) -> None:
    """A frame of zstd whose window is 2 GiB: descriptor, window of 2^31, a last raw block."""
    path.write_bytes(
        bytes.fromhex("28b52ffd") + bytes([0x00, 21 << 3]) + bytes([0x09, 0, 0]) + b"x"
    )


def write_table(path: Path, columns: dict[str, Any], **options: Any) -> None:
    pq.write_table(pa.table(columns), path, compression="zstd", **options)


def one_text(count: int, size: int) -> Any:
    text = repeated(LINE, size).decode()
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([text]))


def one_list(values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def plain_strings(path: Path) -> None:
    """Texts that share their beginnings: stored once, and 64 of them are 3.8 GB."""
    texts = pa.array([repeated(LINE, 60 * MIB).decode()]).take(pa.array([0] * 8))
    write_table(
        path, {"text": texts}, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}
    )


def json_texts(texts: list[str]) -> Any:
    """Texts that stand for what they say."""
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts))


def null_structs(count: int) -> Any:
    return pa.StructArray.from_arrays([pa.nulls(count, pa.string())] * 2, ["role", "content"])


START = b'{"text": "'
DICTIONARY = {"dictionary_pagesize_limit": GIB, "store_schema": False}
Writer = Callable[[Path], None]

DOCUMENTS: dict[str, tuple[Writer, str]] = {
    "line.jsonl.gz": (
        lambda path: write_gzip(path, START, b"a", 3 * GIB, b'"}\n'),
        r"line\.jsonl\.gz:1: a line of more than 83,886,080 bytes.*--max-document-bytes",
    ),
    "line.jsonl.zst": (
        lambda path: write_zstd(path, START, LINE, 3 * GIB, b'"}\n'),
        r"line\.jsonl\.zst:1: a line of more than 83,886,080 bytes",
    ),
    "line.jsonl.xz": (
        lambda path: write_members(path, lzma.compress, START, b"a", 3 * GIB),
        r"line\.jsonl\.xz:1: a line of more than 83,886,080 bytes",
    ),
    "array.json.gz": (
        lambda path: write_gzip(path, b"[" + START, b"[{", 3 * GIB, b'"}]'),
        r"array\.json\.gz\[0\]: a record of more than 83,886,080 bytes.*--max-document-bytes",
    ),
    "commas.json.gz": (
        lambda path: write_gzip(path, b"[{}", b",", 3 * GIB, b"]"),
        r"commas\.json\.gz\[0\]: key 'text' has no value",
    ),
    "deep.json.zst": (
        lambda path: write_zstd(path, b"[{", b"[", GIB),
        r"deep\.json\.zst\[0\]: a record of more than 83,886,080 bytes",
    ),
    "spaces.json.gz": (
        lambda path: write_gzip(path, b"[" + START + b'"}', b" ", GIB),
        r"spaces\.json\.gz\[0\]: a record of more than 83,886,080 bytes",
    ),
    "behind.json.gz": (
        lambda path: write_gzip(path, b'[{"text": "a"}]', b"\n", GIB, b"[]"),
        r"behind\.json\.gz\[1\]: more stands behind the array",
    ),
    "text.txt.bz2": (
        lambda path: write_members(path, bz2.compress, b"", TEXT, GIB),
        r"text\.txt\.bz2: more than 83,886,080 bytes",
    ),
    "nothing.jsonl.gz": (
        lambda path: write_gzip(path, b"", b"\0", 3 * GIB),
        r"nothing\.jsonl\.gz holds a NUL at 0, which no text does",
    ),
    "sparse.jsonl": (
        lambda path: write_sparse(path, START),
        r"sparse\.jsonl:1: a line of more than",
    ),
    "text.txt.gz": (
        lambda path: write_gzip(path, b"", TEXT, 3 * GIB),
        r"text\.txt\.gz: more than 83,886,080 bytes",
    ),
    "text.txt.zst": (
        lambda path: write_zstd(path, b"", TEXT, 3 * GIB),
        r"text\.txt\.zst: more than 83,886,080 bytes",
    ),
    "sparse.txt": (
        lambda path: write_sparse(path, b"a"),
        r"sparse\.txt holds a NUL at 1, which no",
    ),
    "window.txt.zst": (
        long_window,
        r"window\.txt\.zst: cannot be read \(its zstd window is above 128 MiB.*--long",
    ),
    "lists.jsonl.gz": (
        lambda path: write_once(path, b'{"text": "a", "b": [' + b"[]," * (20 * MIB) + b"0]}\n"),
        r"lists\.jsonl\.gz:1: more than 16,777,216 bytes of JSON around its texts",
    ),
    "most_lists.jsonl.gz": (  # as many as there may be: read, and nobody wants them
        lambda path: write_once(path, b'{"text": " ", "b": [' + b"[]," * (5 * MIB) + b"0]}\n"),
        r"has no text",
    ),
    "most_keys.jsonl.gz": (
        lambda path: write_once(
            path, b'{"text": " ", "b": {' + b",".join(b'"%x":0' % i for i in range(2 * MIB)) + b"}}"
        ),
        r"has no text",
    ),
    "emoji.jsonl.gz": (  # four bytes a character, and just short enough to be parsed
        lambda path: write_once(
            path,
            b'{"a": "\xf0\x9f\x99\x82", "text": 1, "b": "'
            + "\U0001f642".encode()
            + repeated(LINE, 79 * MIB)
            + b'"}\n',
        ),
        r"key 'text' has an int",
    ),
    "deep.jsonl": (
        lambda path: path.write_bytes(b'{"text": ' + b"[" * MIB + b"]" * MIB + b"}\n"),
        r"deep\.jsonl:1: nested too deeply",
    ),
    "digits.jsonl.gz": (
        lambda path: write_once(path, b'{"text": ' + b"9" * (40 * MIB) + b"}\n"),
        r"digits\.jsonl\.gz:1: .*(more than 16,777,216 bytes of JSON|digits)",
    ),
    "letters.txt.gz": (
        lambda path: write_gzip(path, b"", b"a", 64 * MIB),
        r"letters\.txt\.gz: a run of more than 2,097,152 letters, spaces or signs",
    ),
    "spaces.jsonl.gz": (
        lambda path: write_gzip(path, START + b"x", b" ", 64 * MIB, b'x"}\n'),
        r"spaces\.jsonl\.gz:1: a run of more than",
    ),
    "signs.txt.zst": (
        lambda path: write_zstd(path, b"", b"=-", 64 * MIB),
        r"signs\.txt\.zst: a run of more than",
    ),
    "dictionary.parquet": (
        lambda path: write_table(path, {"text": one_text(100_000, 60 * MIB)}, **DICTIONARY),
        r"dictionary\.parquet:\d+: this row and the .* behind it .*texts repeat",
    ),
    "page.parquet": (
        lambda path: write_table(
            path,
            {"text": [repeated(LINE, 900 * MIB).decode()]},
            use_dictionary=False,
            write_statistics=False,
        ),
        r"page\.parquet:1: this row cannot be decoded in 805,306,368 bytes of memory",
    ),
    "cell.parquet": (
        lambda path: write_table(path, {"text": one_text(3, 100 * MIB)}, **DICTIONARY),
        r"cell\.parquet:1: .* bytes, and 83,886,080 is the longest",
    ),
    # the eight are read, and are one document
    "prefixes.parquet": (plain_strings, r"split 'valid' has 0 tokens after sampling"),
}
"""Files of documents, and the message that ``prepare`` ends with."""

CALL = '{"name": "f", "arguments": %s}'
USER = {"role": "user", "content": "a"}


def chat(arguments: str) -> bytes:
    call = {"from": "function_call", "value": CALL % arguments}
    return json.dumps({"conversations": [{"from": "human", "value": "a"}, call]}).encode() + b"\n"


CHATS: dict[str, tuple[Writer, str]] = {
    "line.jsonl.gz": (
        lambda path: write_gzip(path, b'{"messages": [{"role": "', b"a", 3 * GIB),
        r"line\.jsonl\.gz:1: unreadable: a line of more than.*--max-document-bytes",
    ),
    "lists.jsonl.zst": (
        lambda path: write_zstd(path, b'{"messages": [', b"[],", 64 * MIB, b"0]}\n"),
        r"lists\.jsonl\.zst:1: unreadable: more than 16,777,216 bytes of JSON",
    ),
    "deep.jsonl": (
        lambda path: path.write_bytes(chat('{"a": ' + "[" * 900 + "]" * 900 + "}")),
        r"deep\.jsonl:1: bad tool call: .* nested deeper than 64 levels",
    ),
    "deeper.jsonl": (
        lambda path: path.write_bytes(chat('{"a": ' + "[" * MIB + "]" * MIB + "}")),
        r"deeper\.jsonl:1: bad tool call: .* cannot be read: nested too deeply",
    ),
    "many texts.jsonl.gz": (
        lambda path: write_once(
            path,
            json.dumps(
                {"messages": ['{"role": "user", "name": [' + "{}," * (5 * MIB) + "{}]}"] * 5}
            ).encode(),
        ),
        r"many texts\.jsonl\.gz:1: wrong type: turn 1 cannot be read: the texts of JSON here have",
    ),
    "digits.jsonl": (
        lambda path: path.write_bytes(chat('{"a": ' + "9" * 9000 + "}")),
        r"digits\.jsonl:1: bad tool call: .* an integer of more than 4,300 digits",
    ),
    "nulls.parquet": (
        lambda path: write_table(path, {"messages": one_list(pa.nulls(200_000_000, pa.bool_()))}),
        r"nulls\.parquet:1: unreadable: .*(memory|the most that is read)",
    ),
    "structs.parquet": (
        lambda path: write_table(path, {"messages": one_list(null_structs(20_000_000))}),
        r"structs\.parquet:1: unreadable: .*(memory|the most that is read)",
    ),
    "texts.parquet": (
        lambda path: write_table(path, {"messages": one_list(one_text(10_000, MIB))}, **DICTIONARY),
        r"texts\.parquet:1: unreadable: .*(memory|texts repeat)",
    ),
    "json.parquet": (
        lambda path: write_table(
            path, {"messages": one_list(json_texts(["[" + "{}," * (4 * MIB) + "{}]"] * 5))}
        ),
        r"json\.parquet:1: unreadable: values that take .* bytes, and 268,435,456 is the most",
    ),
}
"""Files of conversations, and the message that ``prepare chat`` ends with."""

TOKENIZERS: dict[str, tuple[Writer, str]] = {
    "tokenizer.json": (lambda path: write_sparse(path, b"{"), r"at most 41,943,040"),
    "tokenizer.model": (lambda path: write_sparse(path, b"QQ== 1\n"), r"more than 16,777,216"),
    "tokenizer_config.json": (lambda path: write_sparse(path, b"{"), r"at most 41,943,040"),
    "chat_template.jinja": (lambda path: write_sparse(path, b"{{ 1 }}"), r"at most 41,943,040"),
}
"""Files of a tokenizer's folder."""

LOOP = "{% for i in range(99999) %}"
TEMPLATES = {
    "{{ 'a' * 10**10 }}": "takes more than 256 MiB of memory",
    "{{ [1] * 10**10 }}": "takes more than 256 MiB of memory",
    "{% for i in range(10**12) %}{% endfor %}": "Range too big",
    LOOP + LOOP + "{% endfor %}{% endfor %}": "more than 2 s",
    LOOP + LOOP + "aaaa{% endfor %}{% endfor %}": "it writes more than",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "calls itself without an end",
    "{{ 'a'.ljust(10**10) }}": "takes more than 256 MiB of memory",
    "{{ 'a' | center(10**10) }}": "takes more than 256 MiB of memory",
    "{{ '%10000000000d' % 3 }}": "takes more than 256 MiB of memory",
    "{{ '{:10000000000d}'.format(3) }}": "takes more than 256 MiB of memory",
    "{{ 7 ** (7 ** 9) }}": "(more than 2 s|memory|digits)",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}"
    "{{ n.x }}": "takes more than 256 MiB of memory",
    "{% include 'tokenizer.json' %}": "no loader",
    "{{ ().__class__.__mro__ }}": "SecurityError",
    "{{ messages.append(1) }}": "SecurityError",
    "{{ " + "(" * 50_000 + " }}": "(nested too deeply|ended with status)",
    "{{ messages[0].content.a.b }}": "UndefinedError",
    "{{ messages[0].content + 1 }}": "TypeError",
    "{{ raise_exception('no') }}": "TemplateError: no",
    "{% if %}": "TemplateSyntaxError",
    LOOP + "{% generation %}a{% endgeneration %}{% endfor %}": "it marks more than 65,",
}
"""Templates that are not to be rendered, and why."""

"""A file that is one JSON array: every record of it, within the memory of one, and its damage."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from megatron_ultralong.data.read.formats import Element, array_elements, read_records
from megatron_ultralong.data.read.options import ChatReadOptions
from megatron_ultralong.data.read.reading import ConversationReader
from megatron_ultralong.data.read.record import BLOCK, Record
from megatron_ultralong.data.read.sources import Source
from megatron_ultralong.program.errors import InputError
from tests.data.run_commands import forget_peak, peak
from tests.data.source_files import LINES, ROWS, TEXTS, counts, found, texts_of

LIMIT = 1 << 20


class Pieces(io.RawIOBase):
    """Bytes that come in pieces of the lengths given."""

    def __init__(self, data: bytes, sizes: Any) -> None:
        self._file, self._sizes = io.BytesIO(data), sizes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), next(self._sizes)))
        buffer[: len(data)] = data
        return len(data)


def elements(data: bytes, limit: int = LIMIT, sizes: Any = None) -> list[Element]:
    """Elements of bytes that come at once, or in pieces; their texts as bytes."""
    raw = io.BytesIO(data) if sizes is None else Pieces(data, sizes)
    return [e._replace(text=bytes(e.text)) for e in array_elements(io.BufferedReader(raw), limit)]


def sizes_of(generator: random.Random):
    while True:
        yield generator.choice((1, 1, 2, 3, 7, 50, 1000))


HARD = [
    '"',
    "\\",
    "\\\\",
    '\\"',
    "[",
    "]",
    "{",
    "}",
    ",",
    "\n",
    " ",
    "a",
    "é",
    "🙂",
    "\u2028",
    "\0",
]


def value(generator: random.Random, depth: int = 0) -> Any:
    kind = generator.randrange(8 if depth < 3 else 6)
    if kind < 3:
        return "".join(generator.choices(HARD, k=generator.randrange(12)))
    if kind < 6:
        return generator.choice([None, True, 0, -1.5e9, 10**20, ""])
    inner = [value(generator, depth + 1) for _ in range(generator.randrange(4))]
    if kind == 6:
        return inner
    return {f"{i}{generator.choice(HARD)}": each for i, each in enumerate(inner)}


def array(generator: random.Random) -> tuple[bytes, list[Any]]:
    values = [{"text": value(generator), "x": value(generator)} for _ in range(9)]
    values = values[: generator.randrange(10)]
    text = json.dumps(
        values,
        indent=generator.choice([None, 1, "\t"]),
        ensure_ascii=generator.random() < 0.5,
        separators=generator.choice([None, (",", ":")]),
    )
    before, behind = (generator.choice(["", " ", "\r\n\t", " " * 99]) for _ in range(2))
    mark = generator.choice([b"", b"\xef\xbb\xbf"])
    return mark + (before + text + behind).encode(), values


@pytest.mark.parametrize("seed", range(60))
def test_any_pieces_give_the_same_elements(seed: int) -> None:
    generator = random.Random(seed)
    data, values = array(generator)
    whole = elements(data)
    assert [json.loads(each.text) for each in whole] == values
    lines = data.split(b"\n")
    for each in whole:
        assert b"\n".join(lines[each.line - 1 :]).find(each.text) >= 0
    for limit in (LIMIT, generator.randrange(1, 60)):
        expected = elements(data, limit)
        assert elements(data, limit, sizes_of(generator)) == expected
        assert all(len(each.text) <= limit for each in expected)
        assert len(expected) == len(values)


@pytest.mark.parametrize("seed", range(60))
def test_damage_gives_no_other_record_and_one_word_of_what_is_lost(seed: int) -> None:
    """A byte is lost, added or another: what is read stood in the array, or was changed itself."""
    generator = random.Random(seed)
    data, values = array(generator)
    known = [json.dumps(each) for each in values]
    for _ in range(20):
        at, sign = generator.randrange(len(data)), generator.choice(b'"{}[],\\a')
        damaged = generator.choice(
            [
                data[:at] + data[at + 1 :],
                data[:at] + bytes([sign]) + data[at:],
                data[:at] + bytes([sign]) + data[at + 1 :],
                data[:at],
            ]
        )
        expected = elements(damaged)
        assert elements(damaged, LIMIT, sizes_of(generator)) == expected
        new = 0
        for each in expected:
            try:
                new += json.dumps(json.loads(each.text)) not in known
            except ValueError:  # a bad record: no JSON, or no UTF-8
                continue
        assert new <= 2  # the damaged one, which may have come apart
        assert [each.is_rest_lost for each in expected[:-1]].count(True) == 0


@pytest.mark.parametrize("name", ["a.json", "a.JSON", "a.jsonl", "a.txt", "a.xyz", "a"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_arrays_are_read_as_such_whatever_their_name(
    tmp_path: Path, name: str, suffix: str
) -> None:
    many = json.dumps([{"id": 1, **row} for row in ROWS], indent=4)
    for text in (json.dumps(ROWS), many, f"[\n{LINES.rstrip().replace(chr(10), ',')}\n]\n"):
        for data in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
            path = tmp_path / (name + suffix)
            if suffix == ".zst":
                data = bytes(pa.compress(data, codec="zstd", asbytes=True))
            path.write_bytes(gzip.compress(data) if suffix == ".gz" else data)
            assert texts_of(tmp_path) == texts_of(path) == TEXTS
    assert [read_as for _, read_as in counts(found(tmp_path)).values()] == ["json"]


def test_the_format_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(json.dumps(ROWS))
    assert texts_of(tmp_path) == [json.dumps(ROWS)]
    assert texts_of(tmp_path, file_format="json") == TEXTS
    (tmp_path / "a.py").write_text("x = 1")
    with pytest.raises(InputError, match=r"a\.py\[0\]: begins as no JSON array; fix it"):
        texts_of(tmp_path, file_format="json")


def records(path: Path, text: str | bytes, limit: int = LIMIT) -> list[Record]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read_records(path, ("text",), "json", limit=limit))


A, B = '{"text": "a"}', '{"text": "b"}'


@pytest.mark.parametrize(
    ("text", "good", "place", "reason", "is_rest_lost"),
    [
        (f"[{A}, {B},]", "ab", 2, "not JSON .*nothing stands before or behind a comma", False),
        (f"[{A},, {B}]", "ab", 1, "not JSON .*nothing stands before or behind a comma", False),
        (f"[, {B}]", "b", 0, "not JSON .*nothing stands before or behind a comma", False),
        (f"[{A} {B}, {A}]", "a", 0, "not JSON .Extra data at line 1.; is a comma missing", False),
        (f"[{A}, 7, {B}]", "ab", 1, "an int, not one JSON object", False),
        (f"[{A},\n{{'text': 'b'}}, {B}]", "ab", 1, "line 2.*Python writes a dict", False),
        (f"[{A},\n\n{{\n\"text\": b}}, {B}]", "ab", 1, "Expecting value at line 4", False),
        (f"[{A}, {{\"text\": \"b\"], {B}]", "ab", 1, "a quote or bracket missing", False),
        (f"[{A}, {{\"text\": {'[' * 99}{']' * 99}}}]", "a", 1, "deeper than 64 levels", False),
        (f"[{A}, {{\"text\": {'[' * 9999}{']' * 9999}}}]", "a", 1, "nested too deeply", False),
        (f'[{A}, {{"text": {"9" * 5000}}}, {B}]', "ab", 1, "integer of more than 4,300", False),
        (f"[{A},\n{{\"text\": \"b}}, {B}]", "a", 1, "does not end, .* at line 2: is the", True),
        (f"[{A},\n{{\"text\": [\"b\"}}, {B}]", "a", 1, "does not end, .* at line 2", True),
        (f"[{A}}}, {B}]", "", 0, "a brace too many closes the array at line 1", True),
        (f"[{A}, {B}", "ab", 2, "does not end, .*is the file cut short", True),
        (f"[{A}, {B[:-5]}", "a", 1, "does not end", True),
        (f"[{A}, ", "a", 1, "does not end", True),
        ("[", "", 0, "does not end", True),
        (f"[{A}]\n[{B}]", "a", 1, r"more stands behind the array, which ends at line 1.*jq", True),
        (f"[{A}]{B}", "a", 1, "more stands behind the array", True),
        (f"[{A}]\0", "a", 1, "more stands behind the array", True),
        (A, "", 0, "begins as no JSON array", True),
    ],
)  # fmt: skip
def test_damage_at_each_kind_of_place(
    tmp_path: Path, text: str, good: str, place: int, reason: str, is_rest_lost: bool
) -> None:
    read = records(tmp_path / "a.json", text)
    assert "".join(record.fields["text"] for record in read if not record.error) == good
    (bad,) = [record for record in read if record.error]
    assert bad.place == f"{tmp_path}/a.json[{place}]"
    assert re.search(reason, bad.error)
    with pytest.raises(InputError, match=rf"a\.json\[{place}\]: .*{reason}.*--skip-bad"):
        texts_of(tmp_path / "a.json", file_format="json")
    assert bad.is_rest_lost == is_rest_lost


def test_a_file_without_records(tmp_path: Path) -> None:
    for text in ("[]", " [ \n ] \n", "", " \n"):
        assert records(tmp_path / "a.json", text) == []


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    data = f"[{A}, ".encode() + b'{"text": "caf\xe9"}, ' + f"{B}]".encode()
    first, bad, last = records(tmp_path / "a.json", data)
    assert (first.fields["text"], last.fields["text"]) == ("a", "b")
    assert "iconv -f LATIN1" in bad.error


def test_a_record_that_is_too_long_is_passed_over(tmp_path: Path) -> None:
    long = json.dumps({"text": "[{" * (3 * BLOCK)})
    first, bad, last = records(tmp_path / "a.json", f"[{A}, {long}, {B}]", limit=BLOCK)
    assert (first.fields["text"], last.fields["text"]) == ("a", "b")
    assert bad.is_too_long
    assert not bad.is_rest_lost
    assert texts_of(tmp_path / "a.json", skip_bad=True, max_document_bytes=BLOCK) == ["a", "b"]
    with pytest.raises(InputError, match=r"\[1\]: a record of more than 1,048,576 .*; raise --max"):
        texts_of(tmp_path / "a.json", max_document_bytes=BLOCK)


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_bytes_that_are_cut(tmp_path: Path, suffix: str, cut: float) -> None:
    generator = random.Random(1)
    rows = [{"text": "".join(generator.choices("abcdefgh ", k=400))} for _ in range(2000)]
    data = json.dumps(rows).encode()
    data = gzip.compress(data) if suffix == ".gz" else pa.compress(data, "zstd", asbytes=True)
    path = tmp_path / f"a.json{suffix}"
    *good, bad = records(path, data[: int(len(data) * cut)])
    assert [record.fields for record in good] == rows[: len(good)]
    assert len(good) > 2000 * cut / 2
    assert bad.is_rest_lost
    assert "is the file cut short?" in bad.error
    assert bad.place == f"{path}[{len(good)}]"


class Repeated(io.RawIOBase):
    """A beginning, and then the same bytes many times over, which nobody holds."""

    def __init__(self, head: bytes, unit: bytes, num: int) -> None:
        self._parts, self._left = itertools.chain([head], itertools.repeat(unit, num)), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or next(self._parts, b"")
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def test_memory_is_that_of_a_record() -> None:
    """64 MiB of array in records of 1 MiB; and what has no end is not held."""
    row = json.dumps({"text": "word, " * (BLOCK // 6)}).encode() + b","
    block = b"a" * BLOCK
    for head, unit, num in (
        (b"[", row, 64),
        (b'[{"text": "', block, 0),
        (b"[", b"[" * BLOCK, 0),
        (b"[", b" " * BLOCK, 0),
    ):
        file = io.BufferedReader(Repeated(head, unit, 64))
        forget_peak()
        before = peak()
        assert sum(not each.problem for each in array_elements(file, 2 * BLOCK)) == num
        assert peak() - before < 48 * BLOCK


CHAT: dict[str, list[dict[str, Any]]] = {
    "sharegpt": [
        {"conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": f"a{i}"}]}
        for i in range(4)
    ],
    "alpaca": [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in range(4)],
    "messages": [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]}
        for i in range(4)
    ],
}


@pytest.mark.parametrize("kind", CHAT)
def test_conversations_of_an_array_are_those_of_the_lines(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(CHAT[kind], indent=2))
    (tmp_path / "b.json").write_text("".join(json.dumps(row) + "\n" for row in CHAT[kind]))
    of_array, of_lines = (
        [chat for _, chat in ConversationReader(Source("s", str(path)), ChatReadOptions())]
        for path in (tmp_path / "a.json", tmp_path / "b.json")
    )
    assert of_array == of_lines
    assert len(of_array) == 4

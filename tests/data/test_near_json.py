"""Files that are records in all but form: refused, with a command that writes the records."""

from __future__ import annotations

import json
import pprint
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.data.read.file_kind import file_kind

RECORDS: list[dict[str, Any]] = [
    {"text": f"It's {n} \u20ac, \"so\" {{'a': 1}},\n}} " + "word " * (n % 5), "n": n, "ok": None}
    for n in range(30)
]
MAKERS: dict[str, Callable[[], str]] = {
    "python": lambda: "".join(f"{one!r}\n" for one in RECORDS),
    "python, one": lambda: repr(RECORDS[0]),
    "python array": lambda: repr(RECORDS),
    "python array of lines": lambda: "[" + ",\n".join(map(repr, RECORDS)) + "]\n",
    "python over lines": lambda: pprint.pformat(RECORDS[0], width=10),
    "python, commas behind": lambda: "".join(f"{one!r},\n" for one in RECORDS),
    "commas behind, carriage returns": lambda: "".join(
        json.dumps(one) + ",\r\n" for one in RECORDS
    ),
    "commas inside, carriage returns": lambda: "".join(
        json.dumps(one)[:-1] + ",}\r\n" for one in RECORDS
    ),
    "comma between two": lambda: ",\n".join(map(json.dumps, RECORDS[:2])),
    "commas behind": lambda: "".join(json.dumps(one) + ",\n" for one in RECORDS),
    "commas between": lambda: ",\n".join(map(json.dumps, RECORDS)),
    "commas inside": lambda: "".join(json.dumps(one)[:-1] + ",}\n" for one in RECORDS),
    "commas both": lambda: "".join(json.dumps(one)[:-1] + ", }, \n" for one in RECORDS),
}
TABLES = {
    "csv": "text,label\nsome words,1\nother words,2\n",
    "csv with quotes": 'id,text\n1,"a, b\nc"\n2,"d ""e"""\n',
    "tsv": "id\tText\n1\ta b\n2\tc d\n",
    "psv": "id|content\n1|a b\n2|c d\n",
}
TEXTS = {
    "prose": "Text, which is long,\nruns on, and on.\n",
    "dialogue": '"Hello," she said.\n"Yes," he said.\n',
    "numbers": "x,y\n1,2\n3,4\n",
    "one line": "text,label\n",
    "uneven": "Question, answer\nWhy?\nBecause, she said, I can.\n",
    "quoted further below": f"As in\n{RECORDS[0]!r}\n",
    "code": "{'a': 1}['a']\n"[1:],
    "set": "{'a', 'b'}\n",
}


@pytest.mark.parametrize("suffix", [".txt", "", ".jsonl", ".json"])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_command_writes_the_records(kind: str, suffix: str, tmp_path: Path) -> None:
    text = MAKERS[kind]()
    path = tmp_path / f"my data{suffix}"
    path.write_text(text, encoding="utf-8", newline="")
    problem = file_kind(path, "auto").problem
    found = re.search(r"with `(.*)`; `prepare --file-format text` takes", problem, re.S)
    assert found is not None, problem
    subprocess.run(found[1], shell=True, check=True, cwd=tmp_path)
    new = tmp_path / "new.jsonl"
    records = [json.loads(line) for line in new.read_text(encoding="utf-8").splitlines()]
    assert records == RECORDS[: len(records)]
    numbers = {"python, one": 1, "python over lines": 1, "comma between two": 2}
    assert len(records) == numbers.get(kind, len(RECORDS))
    assert file_kind(new, "auto") == ("jsonl", "", True)


@pytest.mark.parametrize("suffix", [".txt", ""])
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_without_its_suffix_is_told(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_text(TABLES[kind])
    problem = file_kind(path, "auto").problem
    assert problem.startswith("is a table by its first lines: write it as JSONL")
    found = re.search(r"with `(.*)`; `prepare --file-format text` takes", problem, re.S)
    assert found is not None
    subprocess.run(found[1], shell=True, check=True, cwd=tmp_path)
    records = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert len(records) == 2
    assert {"text", "content"} & {key.lower() for key in records[0]}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_that_look_like_it_stay_texts(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXTS[kind])
    assert file_kind(path, "auto") == ("text", "", True)
    assert file_kind(path, "text") == ("text", "", True)


def test_large_files_are_told_by_their_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for make in (MAKERS["python"], MAKERS["commas behind"], lambda: TABLES["csv"]):
        text = make()
        path.write_text(text + text.partition("\n")[2] * (300_000 // len(text)))
        assert file_kind(path, "auto").problem


def test_a_first_line_beyond_what_is_looked_at(tmp_path: Path) -> None:
    records = [{"text": "word " * 20_000}, {"text": "b"}]
    (tmp_path / "a.txt").write_text("".join(f"{one!r}\n" for one in records))
    found = re.search(r"with `(.*)`; `prepare", file_kind(tmp_path / "a.txt", "auto").problem)
    assert found is not None
    subprocess.run(found[1], shell=True, check=True, cwd=tmp_path)
    assert [json.loads(line) for line in (tmp_path / "new.jsonl").open()] == records


def test_one_bad_line_among_good_ones_is_a_bad_line(tmp_path: Path) -> None:
    generator = random.Random(1)
    lines = [json.dumps(one) for one in RECORDS]
    for place in generator.sample(range(len(lines)), 5):
        lines[place] += ","
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert file_kind(tmp_path / "a.jsonl", "auto") == ("jsonl", "", True)

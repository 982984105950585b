"""Texts that are records in all but form: Python's own values, commas behind lines, tables.

As one document their quotes and braces would be learnt. What is looked at is the beginning of a
file, and a text that only quotes such a thing, further below, is a text.
"""

import ast
import csv
import json
import re
import shlex
from collections.abc import Sequence

from megatron_ultralong.data.read.file_names import UNREAD_SUFFIXES
from megatron_ultralong.data.read.record import TooLargeError, json_value

AS_TEXT = "`prepare --file-format text` takes such files as one document each"
_PYTHON = re.compile(rb"\s*(?:\[\s*)?\{\s*(?:'[^'\\\n]*'|u'[^'\\\n]*')\s*:")
_SEPARATOR = b"\x1e"
_MOST_LINES = 20
_DELIMITERS = {",": ".csv", "\t": ".tsv", "|": ".psv"}
_TEXTS = ("text", "content", "document", "body", "prompt", "instruction", "question", "article")
"""A column of texts, as tables name it."""
_NAME = re.compile(r"[A-Za-z_][\w .-]{0,40}")


def to_lines(what: str, query: str, name: str) -> str:
    """Of a file that ``jq`` makes JSON lines of."""
    return (
        f"is {what}, where JSON lines or an array of objects are read: write a line for each "
        f"record with `jq -c {shlex.quote(query)} {shlex.quote(name)} > new.jsonl`; {AS_TEXT}"
    )


def record_problem(name: str, head: bytes, is_whole: bool) -> str:
    """What a file of records is that is not JSON, and the fix; empty where it is none of these.

    ``name`` is that of the file in commands, ``head`` its first bytes, ``is_whole`` all of them.
    """
    lines = _lines(head, is_whole)
    if _PYTHON.match(head):
        values = "[ast.literal_eval(sys.stdin.read())]"
        if head.lstrip()[:1] == b"[":
            values = "ast.literal_eval(sys.stdin.read())"
        elif not lines or isinstance(_python(lines[0].strip().rstrip(b",")), dict):
            line = 'line.strip().rstrip(",")'
            values = f"(ast.literal_eval({line}) for line in sys.stdin if line.strip())"
        program = f"import ast, json, sys; [print(json.dumps(one)) for one in {values}]"
        return (
            "is Python's own form of values, with single quotes, where JSON is read: write it as "
            f"JSON lines with `python -c {shlex.quote(program)} < {shlex.quote(name)} > "
            f"new.jsonl`; {AS_TEXT}"
        )
    num_plain = sum(isinstance(_json(line), dict) for line in lines)
    if 2 * num_plain <= len(lines) > 1 and all(map(_is_object_with_commas, lines)):
        return (
            "has commas behind its values, which JSON lines have not: remove them with `sed -E "
            f"'s/\\r$//; s/,[[:space:]]*$//; s/,[[:space:]]*\\}}$/}}/' {shlex.quote(name)} > "
            f"new.jsonl`; {AS_TEXT}"
        )
    is_separated = [line.strip().startswith(_SEPARATOR) for line in lines]
    if all(is_separated) and lines and isinstance(_json(lines[0].strip()[1:]), dict):
        return (
            "has a record separator (RFC 7464) before each value, which JSON lines have not: "
            f"remove them with `tr -d '\\036' < {shlex.quote(name)} > new.jsonl`; {AS_TEXT}"
        )
    return ""


def table_problem(name: str, head: bytes, is_whole: bool) -> str:
    """The same of a file that is to be one text: a table of texts."""
    text = head.decode("utf-8", "replace")
    for delimiter, suffix in _DELIMITERS.items():
        if _is_table(text, delimiter, is_whole):
            way_out = UNREAD_SUFFIXES[suffix].partition(": ")[2].replace("FILE", shlex.quote(name))
            return f"is a table by its first lines: {way_out}; {AS_TEXT}"
    return ""


def _is_table(text: str, delimiter: str, is_whole: bool) -> bool:
    """Whether the first line names columns, one of them of texts, and the others have so many."""
    first = text.partition("\n")[0].strip("\r")
    names = [name.strip().strip('"') for name in first.split(delimiter)]
    is_head = len(names) > 1 and all(_NAME.fullmatch(name) for name in names)
    if not is_head or not {name.lower() for name in names} & set(_TEXTS):
        return False
    try:
        rows = list(csv.reader(text.splitlines(keepends=True)[1:], delimiter=delimiter))
    except csv.Error:
        return False
    whole = [row for row in (rows if is_whole else rows[:-1]) if row][:_MOST_LINES]
    return len(whole) > 1 and all(len(row) == len(names) for row in whole)


def _lines(head: bytes, is_whole: bool) -> Sequence[bytes]:
    """The first lines with something in them; not one that may be cut."""
    lines = head.split(b"\n")
    if not is_whole:
        lines.pop()
    return [line for line in lines if line.strip()][:_MOST_LINES]


def _is_object_with_commas(line: bytes) -> bool:
    """``{"text": "a"},`` or ``{"text": "a",}``; the last line of such a file may have none."""
    text = line.strip()
    without = re.sub(rb",\s*\}$", b"}", text.removesuffix(b",").rstrip())
    return text.startswith(b"{") and isinstance(_json(without), dict)


def _json(text: bytes) -> object:
    try:
        value: object = json_value(text)
    except (json.JSONDecodeError, UnicodeDecodeError, TooLargeError):
        return None
    return value


def _python(text: bytes) -> object:
    try:
        value: object = ast.literal_eval(text.decode().strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value

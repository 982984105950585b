"""Commands in messages can be copied to a shell, whatever the paths in them: each is quoted."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ultralong import cli

PACKAGE = Path(__file__).parents[1] / "megatron_ultralong"
PROGRAMS = r"(\{PROGRAM\}|ultralong|python|jq|rm|cp|mv|make|pip|torchrun)(?![\w-])"
WORDS = re.compile(
    r"PROGRAM|verb|config\.verb|name|other|starts\[0\]|length\[0\]\.upper\(\)|usage|word|words\[0\]|kind|flags"
    r"|delimiter"
)
"""Verbs, recipes, flags and numbers; ``usage`` is quoted where it is made."""


def unquoted(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Values in commands between backticks that are not of :data:`WORDS` and not quoted."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        text = "".join(
            str(part.value)
            if isinstance(part, ast.Constant)
            else "{" + ast.unparse(getattr(part, "value", part)).replace("`", "'") + "}"
            for part in node.values
        )
        for command in re.findall(rf"`{PROGRAMS}([^`]*)", text):
            for value in re.findall(r"\{((?:[^{}]|\{[^{}]*\})*)\}", command[1]):
                if not (WORDS.fullmatch(value) or value.startswith("shlex.")):
                    yield node.lineno, value


def test_every_path_in_a_command_is_quoted() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {{{value}}}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, value in unquoted(ast.parse(path.read_text()))
    ]
    assert not found, f"write shlex.quote(str(...)): {found}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('f"make it with `ultralong convert import {folder} DST`"', ["folder"]),
        ('f"make it with `ultralong convert " f"import {a / b} DST`"', ["a / b"]),
        ('f"`{PROGRAM} {verb} --load {shlex.quote(str(a))}`, in {folder}"', []),
        ('f"in {folder} `checksums.json` {a}"', []),
    ],
)
def test_the_search_finds_them(source: str, expected: list[str]) -> None:
    assert [value for _, value in unquoted(ast.parse(source))] == expected


def test_a_command_that_is_advised_has_the_path_as_one_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my model's"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    cases = (["pretrain", str(folder)], ["generate", "--load", str(folder), "--prompt", "a"])
    for words in cases:
        with pytest.raises(SystemExit):
            cli.main(words)
        error = capsys.readouterr().err
        commands = [text for text in re.findall(r"`([^`]*)`", error) if "model" in text]
        assert commands
        assert all(str(folder) in shlex.split(text) for text in commands), error

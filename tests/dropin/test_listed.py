"""What lists the arguments of this project: two help texts, and the table of the page."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import pytest

from megatron_ultralong.dropin.__main__ import main
from megatron_ultralong.dropin.arguments import PREFIX, DropInConfig, add_ultralong_args, own_parser

FLAGS = [
    "--ultralong-" + field.name.replace("_", "-") for field in dataclasses.fields(DropInConfig)
]


def table() -> str:
    """The arguments in Markdown, a line for each."""
    lines = ["| argument | default | meaning |", "| --- | --- | --- |"]
    for action in own_parser()._actions:
        if action.dest.startswith(PREFIX):
            kind = action.metavar or "\\|".join(action.choices or ())
            values = f"{action.option_strings[0]} {kind}"
            default = f"`{action.default}`" if action.default != "" else ""
            meaning = (str(action.help) % vars(action)).replace("\n", " ").replace("|", "\\|")
            lines.append(f"| `{values}` | {default} | {meaning} |")
    return "\n".join(lines)


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_lists_them_without_megatron_lm(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "megatron.training", None)  # as where there is none
    monkeypatch.setattr(sys, "argv", ["dropin", word])
    main()
    said = capsys.readouterr().out
    assert [flag for flag in FLAGS if f"  {flag} " not in said] == []
    assert "%%" not in said


def test_the_table_of_the_page_is_that_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "dropin.md").read_text()
    assert table() in page, f"put this into docs/dropin.md:\n{table()}"
    assert [flag for flag in FLAGS if f"| `{flag} " not in table()] == []


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("0.1% (20%).", "0.1% (20%)."),
        ("of 100%", "of 100%"),
        ("% of all, %d", "% of all, %d"),
        ("%(nothing)s there", "%(nothing)s there"),
        ("by default %(default)s, of %(prog)s, 20%%", "by default 7, of name, 20%"),
    ],
)
def test_help_texts_of_others_are_printed(text: str, printed: str) -> None:
    """Megatron-LM's own have bare signs, at which argparse ends with a traceback."""
    parser = argparse.ArgumentParser(prog="name")
    action = parser.add_argument("--theirs", default=7)
    action.help = text
    assert printed in add_ultralong_args(parser).format_help()

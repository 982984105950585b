"""Names in other people's files cannot steer the terminal that shows them."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from megatron_ultralong.checkpoint.convert.report import show, show_rows
from megatron_ultralong.program import progress
from megatron_ultralong.program.ending import ends_with_message, tell
from megatron_ultralong.program.errors import InputError, escaped, printable
from megatron_ultralong.program.streams import PrintableFormatter
from megatron_ultralong.program.terminal import Console

HOSTILE = "w\x1b[2J\x1b]0;title\x07\u202eexe.txt\x9b31m\x00\r\u2028\ud800[/red][link=http://x]"
CONTROLS = ("\x1b", "\x07", "\u202e", "\x9b", "\x00", "\r", "\u2028", "\ud800")


def check(text: str) -> None:
    assert "w" in text
    for control in CONTROLS:
        assert control not in text, text.encode("unicode_escape")


def test_what_steers_is_written_out() -> None:
    assert escaped("a\x1b[2J\u202e\U000e0041") == "a\\x1b[2J\\u202e\\U000e0041"
    assert escaped("ä 中文 😀\n\t") == "ä 中文 😀\n\t"
    assert printable("one\ntwo\n") == "one\n  two\n"
    check(escaped(HOSTILE))


@given(st.text(st.characters()))
def test_nothing_else_is_left(text: str) -> None:
    for character in escaped(text):
        assert (
            character.isprintable()
            or character in "\n\t"
            or character.isspace()
            or (
                # unassigned, or for private use: no terminal acts on it
                not ("\x00" <= character <= "\x9f")
            )
        )
    escaped(text).encode("utf-8")


def test_errors_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), ends_with_message():
        raise InputError(f"{HOSTILE} is missing\nultralong: error: all is well")
    error = capsys.readouterr().err
    check(error)
    assert [line.startswith("ultralong:") for line in error.splitlines()] == [True, False]
    tell(f"warning: {HOSTILE}")
    check(capsys.readouterr().err)


def test_errors_under_torchrun(
    tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SystemExit), ends_with_message():
        raise InputError(HOSTILE)
    check(capsys.readouterr().err)
    text = (tmp_path / "error.json").read_text()
    assert "\\u001b" not in text


def test_logging() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("tensor %s", HOSTILE)
    check(stream.getvalue())


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    show({"source": HOSTILE, "files": [HOSTILE], "inner": {HOSTILE: 1}}, as_json=False)
    show_rows([{"name": HOSTILE, HOSTILE: 2}])
    check(capsys.readouterr().out.replace("\r\n", "\n"))


def test_a_console_on_a_terminal_keeps_its_own_colours() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="truecolor", width=200)
    console.print(Text("red", style="red"))
    assert "\x1b[31mred" in stream.getvalue()
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(Text(HOSTILE, style="red"))
    console.print(table, HOSTILE)
    text = stream.getvalue()
    for control in ("\x1b[2J", "\x1b]0;", "\x07", "\u202e", "\x9b", "\x00"):
        assert control not in text
    with Progress(console=console) as bar:
        bar.add_task("reading")
    assert "\x1b[?25h" in stream.getvalue(), "a bar moves the cursor"


def test_json_reports_are_escaped_by_json(capsys: pytest.CaptureFixture[str]) -> None:
    show({"source": HOSTILE}, as_json=True)
    check(capsys.readouterr().out)


def test_a_model_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_ultralong.generation import generate

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    generate._print(HOSTILE.replace("\ud800", ""))
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "\\x1b[2J" in text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_bar_is_cut_nowhere(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, no_color=True)
    bar = Progress(*progress._columns(width), console=console)
    said = {"amount": "123/400 iterations", "status": "loss 7.2585, 1,002,779 tokens/s"}
    bar.add_task("training", total=400, completed=123, **said)
    with console.capture() as shown:
        console.print(bar.get_renderable())
    assert "…" not in shown.get()
    words = shown.get().split()
    assert {"training", "123/400", "iterations", "31%", "tokens/s", "ETA"} <= {*words}, words
    assert len([word for word in words if re.fullmatch(r"[\d-]+:[\d-]+:[\d-]+", word)]) == 2

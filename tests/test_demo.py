"""The demo's steps: one that was interrupted continues behind those that are finished."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong import __version__
from megatron_ultralong.program.errors import InputError
from tests.warm.programs import ROOT


@pytest.fixture
def steps_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples" / "demo"), *sys.path])
    import run_demo

    return run_demo.Steps


def test_a_demo_that_was_interrupted_continues(
    steps_of: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out put"

    def write(folder: Path, file: Path) -> int:
        file.write_text(f"{folder}")
        return 1

    def all_steps(last: str) -> Any:
        steps = steps_of(output)
        steps.run("first", "--version")
        steps.write("file", write, tmp_path, output / "file")
        steps.run("last", last)
        return steps

    with pytest.raises(SystemExit) as end:
        all_steps("nothing")
    assert end.value.code == 2
    (output / "file").unlink()
    capfd.readouterr()
    steps = all_steps("--version")
    said = capfd.readouterr().out
    assert "has 2 finished steps: the demo continues behind them" in said
    assert said.count(f"ultralong {__version__}") == 1  # the last step alone
    assert not (output / "file").exists()
    assert list(steps.wall_times) == ["first", "file", "last"]
    assert steps.peak_memory > 0
    with pytest.raises(InputError, match=r"'last' was run by another command: `rm -r '.*out put'`"):
        all_steps("--help")


@pytest.mark.parametrize("what", ["other files", "whole", "other version", "damaged"])
def test_what_cannot_be_continued_is_told_with_the_line_that_removes_it(
    steps_of: Any, tmp_path: Path, what: str
) -> None:
    steps_of(tmp_path)
    file = tmp_path / "steps.json"
    if what == "other files":
        file.rename(tmp_path / "thesis.txt")
    elif what == "whole":
        (tmp_path / "report").mkdir()
    elif what == "damaged":
        file.write_text("{")
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), "version": "0"}))
    with pytest.raises(InputError, match=f"`rm -r {tmp_path}` begins again"):
        steps_of(tmp_path)

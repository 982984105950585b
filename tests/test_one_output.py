"""Every verb that makes a folder makes it alone: of two in one output the second is refused."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import megatron_ultralong
from megatron_ultralong.cli import VERBS as ALL_VERBS
from megatron_ultralong.data.prepare.work_folder import work_folder
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import open_journal
from megatron_ultralong.program.new_folder import new_folder
from megatron_ultralong.program.new_output import new_output_folder
from megatron_ultralong.program.owner_record import owner_path, read_owners

Maker = Callable[[Path], AbstractContextManager[Any]]


def converting(output: Path) -> AbstractContextManager[Any]:
    return new_folder(output, 1, {"action": "import"}, resume=output.with_name("again").exists())


def evaluating(output: Path) -> AbstractContextManager[Any]:
    return open_journal(output, "ruler", {"seed": 1}, is_main=True)


MAKERS: dict[str, tuple[Maker, str]] = {
    "work folder": (work_folder, ".out.partial"),
    "conversion": (converting, "out.partial"),
    "journal": (evaluating, "out.partial"),
    "output folder": (new_output_folder, ".out.partial"),
}
"""How an output folder is made, and where the work goes on meanwhile."""
VERBS = {
    "prepare": "work folder",
    "prepare chat": "work folder",
    "convert import": "conversion",
    "convert export": "conversion",
    "convert verify": None,
    "convert inspect": None,
    "pretrain": "run",  # tests/training/test_two_jobs.py
    "sft": "run",
    "plan": None,
    "evaluate loss": "output folder",
    "evaluate passkey": "journal",
    "evaluate needle": "journal",
    "evaluate ruler": "journal",
    "evaluate choices": "journal",
    "evaluate chat": "journal",
    "evaluate lv-eval": "journal",
    "evaluate infinitebench": "journal",
    "evaluate report": "output folder",
    "generate": None,
    "doctor": None,
}
"""None: it makes no folder."""
makers = pytest.mark.parametrize(("maker", "work"), MAKERS.values(), ids=list(MAKERS))


def test_every_verb_is_decided_on() -> None:
    assert dict.fromkeys(VERBS) == dict.fromkeys(ALL_VERBS)
    assert set(VERBS.values()) - {None, "run"} == set(MAKERS)


def test_there_is_no_other_lock() -> None:
    """And nothing else puts work aside in a folder: it would have no owner."""
    root = Path(megatron_ultralong.__file__).parent
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "fcntl" not in imported, path


@makers
def test_a_second_one_is_refused(tmp_path: Path, maker: Maker, work: str) -> None:
    output = tmp_path / "out"
    (tmp_path / "again").touch()  # --resume, where it is asked for
    with maker(output):
        before = sorted(tmp_path.rglob("*"))
        with (
            pytest.raises(InputError, match=rf"out is in use by .* \(process {os.getpid()} on "),
            maker(output),
        ):
            pytest.fail("two at once")
        assert sorted(tmp_path.rglob("*")) == before
    left = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in left if "owner" in name or "partial" in name]


@makers
def test_one_that_was_killed_is_taken_over(
    tmp_path: Path, maker: Maker, work: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    child = os.fork()
    if not child:
        held = maker(output)
        held.__enter__()
        os._exit(9)
    os.waitpid(child, 0)
    assert read_owners(tmp_path / work)[0].pid == child
    (tmp_path / "again").touch()
    with maker(output):
        pass
    assert "its process is gone" in capsys.readouterr().err
    assert not (tmp_path / work).exists()


@makers
def test_one_that_was_stopped_and_taken_over_ends_without_harm(
    tmp_path: Path, maker: Maker, work: str
) -> None:
    output = tmp_path / "out"
    (tmp_path / "again").touch()
    stopped = maker(output)
    stopped.__enter__()
    (path,) = (tmp_path / work).glob("owner-*")
    os.utime(path, (1.0, 1.0))  # silent since 1970
    second = maker(output)
    second.__enter__()
    (tmp_path / work / "mine").write_text("content")
    if maker is work_folder:  # whose body finishes, see below
        stopped.__exit__(None, None, None)
    else:
        with pytest.raises(InputError, match="was taken over by another process"):
            stopped.__exit__(None, None, None)
    assert (tmp_path / work / "mine").read_text() == "content"
    assert owner_path(tmp_path / work, 2).is_file()
    assert not output.exists()
    second.__exit__(None, None, None)
    assert not (tmp_path / work).exists()


def test_work_that_was_taken_over_is_not_finished(tmp_path: Path) -> None:
    stopped = work_folder(tmp_path / "out")
    work = stopped.__enter__()
    folder = work.new_folder("rows")
    os.utime(owner_path(work.path, 1), (1.0, 1.0))
    with work_folder(tmp_path / "out") as other:
        assert other.new_folder("rows") != folder
        with pytest.raises(InputError, match="was taken over by another process"):
            work.finish(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()

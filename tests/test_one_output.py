"""Every verb that makes a folder makes it alone: of two in one output the second is refused."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong import cli
from megatron_ultralong.cli import VERBS as ALL_VERBS
from megatron_ultralong.program import exit_status, output
from megatron_ultralong.program.aside import partial_path, whole, write_aside
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import open_journal
from megatron_ultralong.program.output import output_folder
from megatron_ultralong.program.owner_record import owner_path, read_owners
from tests.sources import PACKAGE, modules

Maker = Callable[[Path], AbstractContextManager[Any]]


def making(output: Path) -> AbstractContextManager[Any]:
    return output_folder(output, "evaluate loss")


def going_on(output: Path) -> AbstractContextManager[Any]:
    return output_folder(output, "convert", {"action": "import"}, flag="output", num_bytes=1)


def evaluating(output: Path) -> AbstractContextManager[Any]:
    return open_journal(output, "ruler", {"seed": 1}, is_main=True)


MAKERS: dict[str, Maker] = {
    "output folder": making,
    "with parts": going_on,
    "journal": evaluating,
}
"""How an output folder is made."""
VERBS = {
    "prepare": "with parts",
    "prepare chat": "output folder",
    "convert import": "with parts",
    "convert export": "with parts",
    "convert verify": None,
    "convert inspect": None,
    "pretrain": "run",  # tests/training/test_two_jobs.py
    "sft": "run",
    "plan": None,
    "evaluate loss": "output folder",
    "evaluate passkey": "journal",
    "evaluate needle": "journal",
    "evaluate ruler": "journal",
    "evaluate harness": "journal",
    "evaluate chat": "journal",
    "evaluate lv-eval": "journal",
    "evaluate infinitebench": "journal",
    "evaluate mrcr": "journal",
    "evaluate graphwalks": "journal",
    "evaluate ruler2": "journal",
    "evaluate nolima": "journal",
    "evaluate longbench-v2": "journal",
    "evaluate report": "output folder",
    "generate": None,
    "doctor": None,
}
"""None: it makes no folder."""
makers = pytest.mark.parametrize("maker", MAKERS.values(), ids=list(MAKERS))


def test_every_verb_is_decided_on() -> None:
    assert dict.fromkeys(VERBS) == dict.fromkeys(ALL_VERBS)
    assert set(VERBS.values()) - {None, "run"} == set(MAKERS)


def test_there_is_no_other_lock() -> None:
    """And nothing else puts work aside in a folder: it would have no owner."""
    for path, tree in modules():
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "fcntl" not in imported, path


RENAMES = {
    "program/exit_status.py": "the status that a batch script reads, one short line",
    "program/aside.py": "what is whole",
    "program/output.py": "a folder in the folder",
    "program/owner.py": "the owner's record, and its folder",
    "training/saving/checkpoint_writer.py": "a folder that all ranks write, and its predecessor",
    "data/store/shards.py": "a worker may outlive its run: its own name aside",
}


def test_one_module_writes_aside_and_renames() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("os", "replace"), ("os", "rename")}
    }
    assert found == set(RENAMES), "write a file or a folder by program.aside.whole"


@makers
def test_a_second_one_is_refused(tmp_path: Path, maker: Maker) -> None:
    output = tmp_path / "out"
    with maker(output):
        before = sorted(tmp_path.rglob("*"))
        with (
            pytest.raises(InputError, match=rf"out is in use by .* \(process {os.getpid()} on "),
            maker(output),
        ):
            pytest.fail("two at once")
        assert sorted(tmp_path.rglob("*")) == before
    left = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in left if "owner" in name or "partial" in name or "work" in name]


@makers
def test_one_that_was_killed_is_taken_over(
    tmp_path: Path, maker: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    output, work = tmp_path / "out", tmp_path / ".out.partial"
    child = os.fork()
    if not child:
        held = maker(output)
        held.__enter__()
        os._exit(9)
    os.waitpid(child, 0)
    assert read_owners(work)[0].pid == child
    with maker(output):
        pass
    assert "its process is gone" in capsys.readouterr().err
    assert not work.exists()


@makers
def test_one_that_was_stopped_and_taken_over_ends_without_harm(
    tmp_path: Path, maker: Maker
) -> None:
    output, work = tmp_path / "out", tmp_path / ".out.partial"
    stopped = maker(output)
    stopped.__enter__()
    os.utime(owner_path(work, 1), (1.0, 1.0))  # silent since 1970
    second = maker(output)
    second.__enter__()
    (work / "mine").write_text("content")
    with pytest.raises(InputError, match="was taken over by another process"):
        stopped.__exit__(None, None, None)
    assert (work / "mine").read_text() == "content"
    assert owner_path(work, 2).is_file()
    assert not output.exists()
    second.__exit__(None, None, None)
    assert not work.exists()
    assert (output / "mine").read_text() == "content"


def test_a_folder_in_it_is_not_finished_when_it_was_taken_over(tmp_path: Path) -> None:
    stopped = output_folder(tmp_path / "out", "prepare", {})
    work = stopped.__enter__()
    work.result = work.new_folder("rows")
    os.utime(owner_path(work.path, 1), (1.0, 1.0))
    with output_folder(tmp_path / "out", "prepare", {}) as other:
        other.result = other.new_folder("rows")
        (other.result / "a").touch()
        assert other.result != work.result
        with pytest.raises(InputError, match="was taken over by another process"):
            stopped.__exit__(None, None, None)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]


@pytest.mark.parametrize(
    ("has_parts", "keep", "error", "is_left"),
    [
        (False, True, ValueError, False),
        (True, False, ValueError, False),
        (True, True, ValueError, True),
        (False, False, KeyboardInterrupt, False),
        (True, False, KeyboardInterrupt, True),
    ],
)
def test_what_is_left_after_an_error_is_what_the_next_one_needs(
    tmp_path: Path, has_parts: bool, keep: bool, error: type[BaseException], is_left: bool
) -> None:
    with contextlib.suppress(error), output_folder(tmp_path / "new" / "out", "convert", {}) as made:
        made.has_parts, made.keep = has_parts, keep
        raise error
    assert (tmp_path / "new" / ".out.partial").exists() == is_left
    assert (tmp_path / "new").exists() == is_left  # the folders above it neither


def test_one_in_use_is_said_before_room_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "check_free", lambda *_: pytest.fail("counted"))
    with (
        output_folder(tmp_path / "out", "convert"),
        pytest.raises(InputError, match="in use by"),
        output_folder(tmp_path / "out", "convert", num_bytes=2**60),
    ):
        pass


def test_a_disk_that_fails_without_a_name_is_told_by_the_flag(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"--save run cannot be written: \[Errno 5\]"),
        output.writable(tmp_path, "--save run"),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_what_a_killed_one_left_without_parts_goes_and_another_verb_is_refused(
    tmp_path: Path,
) -> None:
    killed = output_folder(tmp_path / "out", "evaluate loss")
    half = killed.__enter__().path / "half"
    half.touch()
    os.utime(owner_path(half.parent, 1), (1.0, 1.0))
    with (
        pytest.raises(InputError, match=r"its verb was 'evaluate loss', now it is 'prepare'"),
        output_folder(tmp_path / "out", "prepare", {}),
    ):
        pass
    assert half.exists()
    with output_folder(tmp_path / "out", "evaluate loss"):
        assert not half.exists()


def test_an_output_behind_a_link_is_made_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with output_folder(tmp_path / "out", "prepare", {}) as made:
        (made.path / "a").touch()
    assert (tmp_path / "out").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["a"]


def test_a_folder_that_nothing_can_be_renamed_to_is_refused_first() -> None:
    with (
        pytest.raises(InputError, match=r"--output /proc is where a disk is mounted"),
        output_folder("/proc", "prepare", {}),
    ):
        pass


def test_a_file_or_folder_is_whole_or_what_it_was(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "folder"
    partial_path(file).write_text("of one that was killed")
    write_aside(file, "one")
    with contextlib.suppress(KeyboardInterrupt), whole(file) as aside:
        aside.write_text("two")
        raise KeyboardInterrupt
    assert file.read_text() == "one"
    with whole(folder) as aside:
        aside.mkdir()
        (aside / "b").touch()
        assert not folder.exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "b", "folder"]


def special_files(folder: Path) -> list[Path]:
    """A pipe, and links as ``/dev/stdout`` is; a device can be made by root alone."""
    os.mkfifo(folder / "pipe")
    (folder / "stdout").symlink_to("/proc/self/fd/1")
    return [folder / "pipe", folder / "stdout"]


def test_devices_and_pipes_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's ``plan --json /dev/stdout`` and ``ULTRALONG_EXIT_STATUS=/dev/null`` replaced those."""
    monkeypatch.setenv("RANK", "0")
    for path in special_files(tmp_path):
        before = path.lstat()
        with pytest.raises(InputError, match="is a device or a pipe"):
            write_aside(path, "text")
        monkeypatch.setenv(exit_status.STATUS_VARIABLE, str(path))
        exit_status.forget_status()
        assert not exit_status.leave_status(3)
        exit_status.write_status(3)
        assert path.lstat() == before
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    write_aside(tmp_path / "link", "text")
    assert (tmp_path / "link").read_text() == "text"
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "stdout"]


@pytest.mark.parametrize("name", ["", ".", "/", "..", "a/.."])
def test_a_name_that_nothing_can_have(name: str) -> None:
    with pytest.raises(InputError, match="is a folder that is there: name a new file"):
        write_aside(Path(name), "text")


@pytest.mark.parametrize("name", ["x" * 300, "x\0y"])
def test_a_name_that_no_file_system_holds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["convert", "inspect", name])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("ultralong: error: ") == 1

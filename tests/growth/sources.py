"""Files of a source."""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.read.sources import Source, find_files
from tests.growth.table import Work, counted


def find(folder: Path) -> Work:
    return lambda: find_files(Source("s", str(folder)), ReadOptions())


@counted(40)
def files_of_a_folder(n: int, folder: Path) -> Work:
    for number in range(n):
        (folder / f"{number}.txt").write_text("a text")
        (folder / f"{number}.lock").touch()
    return find(folder)


def write_linked(n: int, folder: Path) -> None:
    """Folders, each with a link to the one that holds them all."""
    for number in range(n):
        (folder / f"{number}").mkdir()
        (folder / f"{number}" / "a.txt").write_text("a text")
        (folder / f"{number}" / "all").symlink_to("..")


@counted(20)
def folders_that_link_to_all_others(n: int, folder: Path) -> Work:
    """Each has a link to the one that holds them all: by paths they are n to the power of n."""
    write_linked(n, folder)
    return find(folder)


@counted(20)
def folders_of_a_pattern(n: int, folder: Path) -> Work:
    write_linked(n, folder)
    return lambda: find_files(Source("s", str(folder / "**" / "*")), ReadOptions())

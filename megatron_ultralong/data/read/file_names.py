"""Files below folders and of patterns, and what their names say."""

import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

TEXT_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        "txt text md markdown mdx rst adoc asciidoc org tex latex ltx bib sty cls texi pod man "
        "html htm xhtml xml svg css scss sass less py pyi pyx pxd c h cc cpp cxx hh hpp hxx inl "
        "ipp m mm cu cuh cl java kt kts scala sc groovy gradle clj cljs cljc edn js mjs cjs jsx "
        "ts tsx vue svelte coffee go rs rb php pl pm t raku lua r rmd jl f f03 f08 f77 f90 f95 "
        "for hs lhs ml mli fs fsi fsx elm ex exs erl hrl lisp lsp el scm ss rkt sml swift dart cs "
        "vb vbs pas pp dpr ada adb ads d nim zig v sv svh vhd vhdl cr hx asm s sh bash zsh fish "
        "ksh csh tcl bat cmd ps1 psm1 awk sed sql graphql gql proto thrift idl cmake mk make "
        "ninja bzl bazel nix tf hcl dockerfile yaml yml toml ini cfg conf properties sol move "
        "cairo vy qml glsl hlsl wgsl vert frag metal lean agda thy idr sas do ado stan mojo srt "
        "vtt"
    ).split()
)
"""Suffixes of files that are one text each."""

PLAIN_SUFFIXES = frozenset((".txt", ".text", ".md", ".markdown"))
"""Those that say nothing of what the text is; a list of Python's may be JSON by chance."""

TEXT_NAMES = frozenset("makefile gnumakefile dockerfile rakefile gemfile jenkinsfile".split())
"""Names without a suffix of such files."""

UNREAD_SUFFIXES = {
    **{
        suffix: "is a table of text by its suffix: write it as JSONL, for example with `python -c "
        "'import csv, json, sys; csv.field_size_limit(2**31 - 1); "
        f'[print(json.dumps(row)) for row in csv.DictReader(sys.stdin, delimiter="{delimiter}")]'
        "' < FILE > new.jsonl`"
        for suffix, delimiter in ((".csv", ","), (".tsv", "\\t"), (".psv", "|"))
    },
    **dict.fromkeys(
        (".arrow", ".feather", ".orc", ".avro"),
        "is a table by its suffix: write it as parquet, with pyarrow or `datasets`",
    ),
    **dict.fromkeys(
        (".lz4", ".lzma", ".lz", ".z", ".br", ".sz"),
        "is compressed by its suffix: decompress it, or use gzip, bzip2, xz or zstd",
    ),
}
"""What is wrong with files that no first bytes tell from text."""

_ABOUT = frozenset(
    "readme license licence copying notice notices changelog changes contributing code_of_conduct "
    "citation authors contributors security dataset_card datacard model_card unlicense patents "
    "third_party_notices".split()
)
"""Of texts about the data, without their suffix."""

_ABOUT_SUFFIXES = frozenset(("", ".md", ".txt", ".rst", ".html", ".pdf", ".cff", ".bib", ".adoc"))

_PROGRAMS = frozenset(
    "_success _started _committed _metadata _common_metadata thumbs.db desktop.ini ehthumbs.db "
    "dataset_info.json dataset_infos.json dataset_dict.json state.json md5sums sha1sums sha256sums "
    "sha512sums md5sum.txt sha256sum.txt checksums.txt cachedir.tag nohup.out".split()
)
"""That programs leave."""

_PROGRAM_SUFFIXES = frozenset(
    ".lock .incomplete .metadata .part .partial .crdownload .aria2 .tmp .temp .swp .swo .bak .orig "
    ".rej .crc .md5 .sha1 .sha256 .sha512 .sig .asc .torrent .pyc .pyo .log .err .done".split()
)

_FOLDERS = frozenset(("__macosx", "__pycache__", "$recycle.bin", "lost+found"))


def litter_reason(path: Path, root: str) -> str:
    """Why a file of the folder or pattern ``root`` is taken for litter; empty where it is not."""
    name = path.name.lower()
    suffix = Path(name).suffix
    if suffix in _PROGRAM_SUFFIXES or name in _PROGRAMS or name[-1:] in "~#":
        return "left there by a program"
    parts = path.parts[:-1] if glob.has_magic(root) else path.relative_to(root).parts[:-1]
    if any(part.lower() in _FOLDERS for part in parts):
        return "left there by a program"
    if Path(name).stem.replace("-", "_") in _ABOUT and suffix in _ABOUT_SUFFIXES:
        return "about the data, by its name"
    return ""


class Entry(NamedTuple):
    """What stands at a path."""

    path: Path
    """The path by which it was reached."""
    is_named: bool = False
    """Named itself or by its suffix, not found below a folder."""
    is_hidden: bool = False
    """Its name, or that of a folder between, begins with a dot."""
    is_linked: bool = False
    """A link, or reached by one."""
    is_repeated: bool = False
    """A folder that was listed under another path."""


def walk(root: Path) -> list[Entry]:
    """All files below a folder; a folder that is reached twice is listed once, and said to be.

    What is reached without a link comes first, what is hidden last: of several paths to a folder
    the plain one is taken.

    Raises:
        OSError: a folder cannot be listed.
    """
    return _Walk([root], hidden=True).entries


def matches(pattern: str) -> list[Entry]:
    """Files of a glob pattern, and those below the folders that it matches.

    As :func:`glob.glob`, but that links back to a folder above are no endless paths.

    Raises:
        OSError: a folder cannot be listed.
    """
    anchor = Path(pattern).anchor
    found: list[Path] = [Path(anchor)]
    parts = Path(pattern).parts[1 if anchor else 0 :]
    for part in parts:
        found = list(dict.fromkeys(_step(found, part)))
    name = parts[-1] if parts else ""
    is_named = not glob.has_magic(name) or not glob.has_magic(Path(name).suffix or "*")
    below = _Walk([path for path in found if path.is_dir()], hidden=True).entries
    files = [path for path in found if not path.is_dir()]
    named = [Entry(path, is_named=is_named, is_linked=path.is_symlink()) for path in files]
    return list({(e.path, e.is_repeated): e for e in [*below, *named]}.values())


def _step(found: Iterable[Path], part: str) -> Iterator[Path]:
    """What one part of a pattern matches below these folders."""
    for folder in found:
        if part == "**":
            yield from _Walk([folder] if folder.is_dir() else [], hidden=False).folders
        elif glob.has_magic(part):
            names = os.listdir(folder) if folder.is_dir() else []
            is_hidden_wanted = part.startswith(".")
            names = [n for n in names if is_hidden_wanted or not n.startswith(".")]
            yield from (folder / name for name in sorted(fnmatch.filter(names, part)))
        elif os.path.lexists(folder / part):
            yield folder / part


class _Walk:
    """Folders below some, each listed once."""

    def __init__(self, roots: Iterable[Path], *, hidden: bool) -> None:
        self.entries: list[Entry] = []
        self.folders: list[Path] = []
        self._hidden = hidden
        self._seen: set[tuple[int, int]] = set()
        self._paths: set[Path] = set()
        self._plain: list[Entry] = []
        self._linked: list[Entry] = []
        self._last: list[Entry] = []
        for root in roots:
            is_linked = root.is_symlink()
            (self._linked if is_linked else self._plain).append(Entry(root, is_linked=is_linked))
        while queue := self._plain or self._linked or self._last:
            folder = queue.pop()
            status = os.stat(folder.path)
            place = status.st_dev, status.st_ino
            # no path without a link comes back to a folder, and servers give several one number
            is_known = place in self._seen if folder.is_linked else folder.path in self._paths
            self._seen.add(place)
            self._paths.add(folder.path)
            if not is_known:
                self._list(folder)
            elif folder.is_linked:
                self.entries.append(folder._replace(is_repeated=True))

    def _list(self, folder: Entry) -> None:
        self.folders.append(folder.path)
        with os.scandir(folder.path) as listing:
            children = sorted(listing, key=lambda child: child.name)
        for child in children:
            entry = Entry(
                folder.path / child.name,
                is_hidden=folder.is_hidden or child.name.startswith("."),
                is_linked=folder.is_linked or child.is_symlink(),
            )
            if entry.is_hidden and not self._hidden:
                continue
            if not _is_folder(child):
                self.entries.append(entry)
            elif entry.is_hidden:
                if not child.is_symlink():
                    self._last.append(entry)
            else:
                (self._linked if entry.is_linked else self._plain).append(entry)


def _is_folder(child: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link to itself is neither."""
    try:
        return child.is_dir()
    except OSError:
        return False

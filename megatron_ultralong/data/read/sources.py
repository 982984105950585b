"""The files of a source ``NAME=PATH``: which are read, as what, and which are left out, and why."""

import collections
import fnmatch
import glob
import json
import os
import shlex
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from megatron_ultralong.data.read.compression import uncompressed_name
from megatron_ultralong.data.read.file_kind import FileKind, file_kind, is_known_name
from megatron_ultralong.data.read.file_names import Entry, litter_reason, matches, walk
from megatron_ultralong.data.read.options import ChatReadOptions, FileFormat, ReadOptions
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError, counted, elsewhere
from megatron_ultralong.program.json_file import MAX_NAMES_BYTES

TEXT_KEY = "text"
"""Where a document's text stands, if nobody says otherwise."""
MANIFESTS = ("manifest.json", "chat_manifest.json")
"""Of folders that ``prepare`` and ``prepare chat`` write."""
MAX_COUNTS = 60
"""Lines of :attr:`FoundFiles.counts`; suffixes beyond them are counted together."""

Counts = collections.Counter[tuple[str, FileFormat | None, str]]
State = tuple[int, int] | None
"""Bytes of a file, and the time of its last change in ns; None: nothing is there."""

UNKNOWN = "of no known suffix, and no JSON lines: --suffix or --file-format text reads it as text"
REPEATED = "the same as another one, by another name"
HIDDEN = "hidden: a name on its path begins with a dot"
NOT_WANTED = "not asked for by --suffix"
REFUSED = "not what is read here, counted as unreadable"
ROWS = "of rows that `prepare` has written"
NO_FILE = "a pipe, a socket or a device"


@dataclass(frozen=True)
class Source:
    """A named set of files: ``NAME=PATH`` on the command line."""

    name: str
    """Name in tables and in the manifest; its share of the tokens is kept."""
    pattern: str
    """A file, a folder (all files below it) or a glob pattern (``**`` spans folders)."""
    text_key: str = TEXT_KEY
    """Key or column of the text of a document."""


def parse_sources(arguments: Sequence[str]) -> tuple[Source, ...]:
    """The sources that ``NAME=PATH`` name: ``["web=/data/*.jsonl"] -> (Source("web", ...),)``.

    Raises:
        InputError: where there is none, or a part of one is missing.
    """
    if not arguments:
        raise InputError("no --source: give at least one NAME=PATH")
    sources = []
    for argument in arguments:
        name, equals, pattern = argument.partition("=")
        if not (name and equals and pattern):
            raise InputError(
                f"--source {argument!r} must be NAME=PATH, a name for the table and a file, folder "
                f"or glob pattern; for example --source code={argument.strip('=') or '/data/code'}"
            )
        sources.append(Source(name, os.path.expanduser(pattern)))  # also that of another user
    return tuple(sources)


def with_text_keys(sources: Sequence[Source], arguments: Sequence[str]) -> tuple[Source, ...]:
    """The sources with the keys of ``KEY``, for all, and ``NAME=KEY``, for those of a name.

    ``["body", "code=content"]``: the source ``code`` has its texts under ``content``, others under
    ``body``. A name ends at the first ``=``, as in ``NAME=PATH``: a key may hold one behind it.

    Raises:
        InputError: a name is no source's, a key is empty, or two are given for the same.
    """
    names = list(dict.fromkeys(source.name for source in sources))
    keys: dict[str, str] = {}
    for argument in arguments:
        name, equals, key = argument.partition("=")
        name, key = (name, key) if equals else ("", argument)
        if equals and name not in names:
            raise InputError(
                f"--text-key {argument!r} is NAME=KEY, and no --source is named {name!r} (they are "
                f"{', '.join(names)}): give the NAME of one, or, if {argument!r} is the whole key, "
                f"--text-key {shlex.quote(f'{names[0]}={argument}')}"
            )
        if not key:
            raise InputError(f"--text-key {argument!r} has no key: give KEY or NAME=KEY")
        if name in keys:
            of = f"source {name!r}" if name else "all sources"
            raise InputError(
                f"--text-key gives {of} two keys, {keys[name]!r} and {key!r}: give one of them"
                + ("" if name else f", and the other one as NAME=KEY, such as {names[-1]}={key}")
            )
        keys[name] = key
    usual = keys.get("", TEXT_KEY)
    return tuple(replace(source, text_key=keys.get(source.name, usual)) for source in sources)


def warn_of_output(sources: Iterable[Source], output: Path) -> None:
    """Say so where an output will stand among the files of a source."""
    for source in sources:
        if holds(source, output):
            tell(
                f"warning: --output {output} lies in the source {source.name}={source.pattern}: "
                "later runs leave its files out; a folder beside the source is safer"
            )


@dataclass(frozen=True)
class FilePart:
    """A file, or a part of one: bytes of plain JSONL, row groups of parquet."""

    path: Path
    size: int
    """Bytes of the part on disk."""
    file_format: FileFormat
    """Never ``auto``."""
    start: int = 0
    """First byte or row group."""
    stop: int | None = None
    """The one after the last; None: the end of the file."""
    problem: str = ""
    """Why it is not read: it is one bad document."""
    state: State = None
    """Of the whole file, as it was found."""


@dataclass(frozen=True)
class FileCount:
    """Files of one suffix that were treated alike; manifests hold them, with no other fields."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    suffix: str
    """With that of the compression, ``.json.gz``; the whole name of a dot-file; may be empty."""
    num_files: int
    read_as: str
    """``jsonl``, ``json``, ``parquet`` or ``text``; empty where they were left out."""
    reason: str
    """Why they were left out; empty where they were read."""


@dataclass(frozen=True)
class FoundFiles:
    """What stands at a source."""

    source: Source
    files: list[FilePart]
    """Whole files that are read, by path."""
    counts: list[FileCount]
    """All files, by suffix and treatment: those that are read first."""


def find_files(source: Source, options: ReadOptions | ChatReadOptions) -> FoundFiles:
    """The files of a source, each looked at, and taken once.

    Below a folder what programs and people leave there is left out, and so is a file of which
    neither suffix nor beginning says what it is. A file that is named is read: itself, by
    ``suffixes``, by the suffix in a pattern. Under ``skip_bad`` files that cannot be read are kept,
    each as one bad document.

    Raises:
        InputError: where there are no files, a folder cannot be listed, a pipe is named, or, unless
            ``skip_bad``, a file is not what can be read.
    """
    suffixes = options.suffixes
    counts: Counts = collections.Counter()
    files: list[FilePart] = []
    for entry, state, found in _each_once(source, suffixes):
        reason, path = found, entry.path
        if reason == NO_FILE and _is_itself(source, entry):
            raise InputError(
                f"source {source.name!r}: {path} is {NO_FILE}, and files are read more than once: "
                "write what comes from it to a file first, and give that"
            )
        kind = FileKind("text")
        if not reason:
            kind = file_kind(path, options.file_format)
            if not (kind.is_known or kind.problem or entry.is_named or suffixes):
                reason = UNKNOWN
        why = reason or REFUSED * bool(kind.problem)
        counts[_label(path), None if why else kind.file_format, why] += 1
        if reason:
            continue
        if kind.problem and not options.skip_bad:
            raise InputError(
                f"source {source.name!r}: {path} {kind.problem}; or name the files wanted with "
                "--suffix, or skip and count such files with --skip-bad"
            )
        size = state[0] if state else 0
        files.append(FilePart(path, size, kind.file_format, problem=kind.problem, state=state))
    if not files:
        among = f" ending in {' or '.join(suffixes)}" if suffixes else ""
        named = source.pattern
        is_local = bool(counts) or (
            "://" not in named and (glob.has_magic(named) or is_known_name(Path(named)))
        )
        raise InputError(
            f"source {source.name!r}: no file{among} at {named} ({_told(counts)})"
            f"{'' if is_local else elsewhere(named, '--repo-type dataset ')}; check the path, the "
            "quotes around a pattern, and --suffix"
        )
    return FoundFiles(source, files, _merged(counts))


NAMED_BYTES = 200
"""Of a file in a manifest, beside its path: size, hash and keys."""
_JOIN = (
    "join them, JSON lines with `cat`, texts with `jq -Rsc '{text: .}' FILE >> all.jsonl` for each"
)


def check_names(files: Sequence[FilePart]) -> None:
    """Check that the manifest of the rows can name all their files, and be read again.

    Raises:
        InputError: they are too many.
    """
    num_bytes = sum(len(json.dumps(repr(str(file.path)))) + NAMED_BYTES for file in files)
    if num_bytes > MAX_NAMES_BYTES:
        raise InputError(
            f"to name {counted(len(files), 'file')} and their hashes beside the rows takes "
            f"{num_bytes:,} bytes, and {MAX_NAMES_BYTES:,} is the most that is read there: {_JOIN}"
        )


def check_unchanged(source: Source, parts: Iterable[FilePart]) -> None:
    """Check that files are those that were found: they are read in parts, some of them twice.

    Raises:
        InputError: one was written to, replaced or removed since.
    """
    for part in parts:
        state = _state(_status(part.path))
        if _in_seconds(state) != _in_seconds(part.state):
            was, now = (f"{each[0]:,} bytes" if each else "nothing" for each in (part.state, state))
            now = f"{now}, written again" if was == now else now
            raise InputError(
                f"source {source.name!r}: {part.path} has changed while it was read, from {was} to "
                f"{now}: its documents may be of either; give the same command again when nothing "
                "writes to it any more"
            )


def _in_seconds(state: State) -> State:
    """Object stores give a file's time to the second or finer, by what they were asked."""
    return state and (state[0], state[1] // 10**9)


def _state(status: os.stat_result | None) -> State:
    return None if status is None else (status.st_size, status.st_mtime_ns)


def _each_once(source: Source, suffixes: tuple[str, ...]) -> list[tuple[Entry, State, str]]:
    """What stands at a source, by path: its state, and why it is left out.

    Of several names of one file that is taken which tells what it is, and stands there itself.
    """
    found: list[tuple[Entry, State, str]] = []
    best: dict[tuple[int, ...], tuple[bool, bool, str]] = {}
    places: list[tuple[int, ...] | None] = []
    entries = list(_entries(source))
    folders = {entry.path.parent for entry in entries if entry.path.name in MANIFESTS}
    rows = {folder for folder in folders if (folder / "train.idx").is_file()}
    for entry in entries:
        status = _status(entry.path)
        reason = _reason(source, entry, status, suffixes)
        if not reason and not _is_itself(source, entry) and not rows.isdisjoint(entry.path.parents):
            reason = ROWS
        place = None if status is None or reason else _place(status)
        if place is not None:
            best[place] = min(best.get(place, _rank(entry)), _rank(entry))
        found.append((entry, _state(status), reason))
        places.append(place)
    once = [
        (entry, state, reason if place is None or best[place] == _rank(entry) else REPEATED)
        for (entry, state, reason), place in zip(found, places, strict=True)
    ]
    return sorted(once, key=lambda each: each[0].path)


def _place(status: os.stat_result) -> tuple[int, ...]:
    """What all names of one file have; servers give several files one number."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _rank(entry: Entry) -> tuple[bool, bool, str]:
    """What comes first of the names of one file."""
    return not is_known_name(entry.path), entry.is_linked, str(entry.path)


def _entries(source: Source) -> Iterable[Entry]:
    path = Path(source.pattern)
    if os.path.isfile(source.pattern):
        return [Entry(path, is_named=True)]
    try:
        return walk(path) if os.path.isdir(source.pattern) else matches(source.pattern)
    except OSError as error:
        raise InputError(
            f"source {source.name!r}: cannot list {error.filename} ({error.strerror}): its files "
            "would be missed; let it be read, or name the other ones with a pattern"
        ) from error


def _reason(
    source: Source, entry: Entry, status: os.stat_result | None, suffixes: tuple[str, ...]
) -> str:
    """Why a file is left out whatever it holds; empty where it is not."""
    if entry.is_repeated:
        return REPEATED
    if entry.is_hidden:
        return HIDDEN
    is_file = status is None or stat.S_ISREG(status.st_mode)
    if _is_itself(source, entry):
        return "" if is_file else NO_FILE
    names = entry.path.name, uncompressed_name(entry.path)
    if suffixes and not any(name.endswith(suffixes) for name in names):
        return NOT_WANTED
    if not is_file:
        return NO_FILE
    return "" if suffixes or entry.is_named else litter_reason(entry.path, source.pattern)


def _is_itself(source: Source, entry: Entry) -> bool:
    """Whether the source names that file and no other."""
    return entry.is_named and not glob.has_magic(source.pattern)


def holds(source: Source, output: Path) -> bool:
    """Whether files of a folder of rows ``output`` stand at a source."""
    place = Path(os.path.abspath(output))
    pattern = os.path.abspath(source.pattern)
    if not glob.has_magic(source.pattern):
        return place.resolve().is_relative_to(Path(pattern).resolve())
    its = (*place.parents, place, *(place / name for name in MANIFESTS))
    return any(fnmatch.fnmatchcase(str(path), pattern) for path in its)


def _status(path: Path) -> os.stat_result | None:
    """None of a link to nothing: reading it says so."""
    try:
        return os.stat(path)
    except OSError:
        return None


def _label(path: Path) -> str:
    """The suffix that counts are kept by: ``a.json.gz -> .json.gz``, ``.x -> .x``."""
    if path.name.startswith("."):
        return path.name
    inner = uncompressed_name(path)
    return Path(inner).suffix + path.name[len(inner) :]


def _told(counts: Counts) -> str:
    """``of 3 files there: 2 .md about the data``, or that nothing is there."""
    common = [
        f"{number} {label or 'without suffix'} {why}"
        for (label, _, why), number in counts.most_common(3)
    ]
    if not common:
        return "nothing is there"
    return f"of {counted(counts.total(), 'file')} there: {'; '.join(common)}"


def _merged(counts: Counts) -> list[FileCount]:
    """The commonest, those read first; the others by treatment alone."""
    known = {key for key, _ in counts.most_common(MAX_COUNTS)}
    merged: Counts = collections.Counter()
    for (label, read_as, reason), number in counts.items():
        is_shown = (label, read_as, reason) in known
        merged[label if is_shown else "other suffixes", read_as, reason] += number
    lines = [FileCount(label, n, read_as or "", why) for (label, read_as, why), n in merged.items()]
    return sorted(lines, key=lambda line: (line.reason != "", -line.num_files, line.suffix))

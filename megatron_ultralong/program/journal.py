"""Journal of an evaluation: one line for every finished sample, from which a killed one goes on.

While an evaluation with ``--output NAME`` runs, ``NAME.partial`` holds ``evaluation.json`` (what
decides its figures) and ``samples.jsonl`` (a line for every finished sample, under a key that
hashes all that decides the sample). When it is complete, pictures and results are written beside
them, and the folder is renamed to ``NAME``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import parse_json, read_json
from megatron_ultralong.program.new_output import (
    IDENTITY_FILE,
    SAMPLES_FILE,
    SUFFIX,
    check_output_folder,
)
from megatron_ultralong.program.owner import take
from megatron_ultralong.program.owner_record import read_owners
from megatron_ultralong.program.rank_values import every_rank


def sample_key(**parts: Any) -> str:
    """Hash of all that decides a sample: ``sample_key(task="vt", prompt=ids, max_new_tokens=30)``.

    Parts are JSON values or arrays of numbers; the order of their names does not matter, a list
    and an array of the same numbers are different parts.
    """
    digest = hashlib.sha256()
    for name in sorted(parts):
        value = parts[name]
        if isinstance(value, np.ndarray):
            text = f"array:{value.dtype.str}:{value.shape}:"
            data = text.encode() + np.ascontiguousarray(value).tobytes()
        else:
            data = _canonical(value).encode()
        digest.update(f"{name}:{len(data)}:".encode() + data)
    return digest.hexdigest()[:32]


class Journal:
    """Finished samples of one evaluation; made by :func:`open_journal`.

    Every rank of a job holds the same entries; the main one writes them.
    """

    def __init__(self, entries: dict[str, dict[str, Any]], file: _SamplesFile | None) -> None:
        self._entries = entries
        self._file = file
        self.num_resumed = len(entries)
        """Samples that an earlier process finished."""

    @property
    def folder(self) -> Path | None:
        """Where the main rank writes results and pictures; None on others and without output."""
        return self._file.folder if self._file else None

    def get(self, key: str) -> dict[str, Any] | None:
        """What was noted of the sample ``key``; None: it is still to be done."""
        return self._entries.get(key)

    def add(self, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Note a finished sample, on the disk when this returns; JSON's reading of ``values``."""
        entry: dict[str, Any] = json.loads(json.dumps(dict(values), allow_nan=False))
        self._entries[key] = entry
        if self._file:
            self._file.append({"key": key, **entry})
        return entry


@contextlib.contextmanager
def open_journal(
    output: str | Path, kind: str, identity: Mapping[str, Any], *, is_main: bool
) -> Iterator[Journal]:
    """The journal of an evaluation into the new folder ``output``; every rank enters it.

    A folder ``output``.partial of the same evaluation is taken up. When the block ends without an
    exception the folder gets its name; otherwise it stays as it is, for the next try.

    Args:
        output: the folder to be; empty keeps the journal in memory alone.
        kind: the evaluation's verb, such as ``ruler``.
        identity: JSON values that decide the figures of every sample, the checkpoint's among
            them; not the number of samples, which a later try may raise.
        is_main: whether this rank writes.

    Raises:
        InputError: ``output`` holds something, its partial folder belongs to another evaluation
            or to one that runs, or the disk refuses.
    """
    if not output:
        yield Journal({}, None)
        return
    final = Path(os.path.abspath(output))
    file: _SamplesFile | None = None
    problem: str | None = None
    entries: dict[str, dict[str, Any]] = {}
    if is_main:
        try:
            check_output_folder(final)
            file = _SamplesFile(final, {"kind": kind, **identity})
            entries = file.entries
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem = f"cannot write --output {final} ({error}): name another folder"
    # One rank reads; the others follow it, so that all skip the same samples.
    problem, entries = every_rank((problem, entries))[0]
    if problem is not None:
        raise InputError(problem)
    try:
        yield Journal(entries, file)
        if file:
            file.finish(final)
    finally:
        if file:
            file.close()


class _SamplesFile:
    """The main rank's files of a journal."""

    def __init__(self, final: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder = final.with_name(final.name + SUFFIX)
        self.entries: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if not read_owners(folder):
            self._check_ours()
        self._owner = take(folder, "evaluate", f"--output {final}", "name another --output")
        self._file = (folder / SAMPLES_FILE).open("a+b")
        try:
            self._check_identity(json.loads(json.dumps(dict(identity))))
            self._read()
        except BaseException:
            self.close()
            raise

    def append(self, values: Mapping[str, Any]) -> None:
        """Write a line and wait for the disk: minutes of work may stand behind it."""
        self._owner.check_mine()
        self._file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, final: Path) -> None:
        """Give the folder its final name."""
        self._file.close()
        if final.is_dir():
            final.rmdir()  # an empty one, made by the user
        self._owner.move_to(final)

    def close(self) -> None:
        """Close the file, and let others have the folder."""
        self._file.close()
        self._owner.release()

    def _check_ours(self) -> None:
        """Raise InputError where the folder holds something and is no evaluation's."""
        known = (IDENTITY_FILE, SAMPLES_FILE)
        others = [path for path in self.folder.iterdir() if path.name not in known]
        if others and not (self.folder / IDENTITY_FILE).is_file():
            raise InputError(
                f"{self.folder} exists and is no evaluation of ours (no {IDENTITY_FILE}): "
                "remove it, or name another --output"
            )

    def _check_identity(self, identity: dict[str, Any]) -> None:
        path = self.folder / IDENTITY_FILE
        if not path.is_file():
            aside = path.with_name(IDENTITY_FILE + ".aside")
            aside.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
            os.replace(aside, path)
            return
        try:
            found = read_json(path)
        except InputError as error:
            raise InputError(
                f"{path} is damaged ({error}): remove {self.folder} to begin again"
            ) from error
        for name in ("kind", *sorted({*found, *identity} - {"kind"})):
            theirs, ours = found.get(name), identity.get(name)
            if theirs != ours:
                raise InputError(
                    f"{self.folder} was begun by another evaluation: its {name} was {theirs!r}, "
                    f"now it is {ours!r}; repeat the first command to go on with it, remove that "
                    "folder, or name another --output"
                )

    def _read(self) -> None:
        """Take up the lines; what a kill tore at the end is cut off."""
        self._file.seek(0)
        data = self._file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._file.truncate(len(complete))
        damaged = 0
        for line in complete.splitlines():
            try:
                values = parse_json(line, "a line")
                self.entries[values.pop("key")] = values
            except (InputError, KeyError, AttributeError, TypeError):
                damaged += 1  # its sample is done again
        if damaged:
            tell(
                f"ultralong: {damaged} of {len(complete.splitlines())} lines of "
                f"{self.folder / SAMPLES_FILE} are damaged; their samples are evaluated again"
            )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)

"""Journal of finished parts, from which killed work continues: samples, or tensors.

It is ``finished.jsonl`` in the folder in which an output is made
(:mod:`megatron_ultralong.program.output`), a line for every part.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.program import aside, json_file, rank_values
from megatron_ultralong.program.ending import PROGRAM, tell
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.output import RECORDS_FILE, OutputFolder, output_folder

SYNC_BYTES = 512 * 2**20
"""Bytes of parts between two waits for the disk: what a kill costs at most, and one part."""


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
            text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
            data = text.encode()
        digest.update(f"{name}:{len(data)}:".encode() + data)
    return digest.hexdigest()[:32]


class Journal:
    """Finished parts by their keys, with what is noted of each."""

    def __init__(self, output: OutputFolder | None = None, parts: str = "samples") -> None:
        """Take up what stands in ``output``; None keeps the journal in memory alone.

        ``parts`` is what they are called in messages.
        """
        self.folder = output.path if output else None
        """Where results are written; None without output, and on other ranks than the main one."""
        self._output = output
        self._parts = parts
        self._pending: dict[str, dict[str, Any]] = {}
        self._pending_bytes = 0
        self.entries = self._read(output.path / RECORDS_FILE) if output else {}
        """What is noted of each part, by its key."""
        self.num_resumed = len(self.entries)
        """Parts that an earlier process finished."""
        if output:
            output.go_on(self.num_resumed, parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of the parts, as far as :meth:`add` was told them."""
        return sum(entry.get("num_bytes", 0) for entry in self.entries.values())

    def add(
        self,
        key: str,
        values: Mapping[str, Any],
        sync: Callable[[], None] | None = None,
        num_bytes: int = 0,
    ) -> dict[str, Any]:
        """Note a finished part, on the disk when this returns; JSON's reading of ``values``.

        With ``sync``, which waits until the disk has what was written of the parts themselves, it
        is noted at the next :meth:`flush`, or when their ``num_bytes`` have become many: no line
        is a promise that a loss of power breaks.
        """
        if num_bytes:
            values = {**values, "num_bytes": num_bytes}
        entry: dict[str, Any] = json.loads(json.dumps(dict(values), allow_nan=False))
        self._pending[key] = entry
        self._pending_bytes += num_bytes
        if sync is None or self._pending_bytes >= SYNC_BYTES:
            self.flush(sync)
        return entry

    def flush(self, sync: Callable[[], None] | None = None) -> None:
        """Wait for the disk by ``sync``, then note what was added.

        Raises:
            InputError: another process has taken the work over.
        """
        if sync is not None:
            sync()
        if self._output:
            self._output.owner.check_mine()
            with (self._output.path / RECORDS_FILE).open("ab") as file:
                for key, entry in self._pending.items():
                    line = json.dumps({"key": key, **entry}, ensure_ascii=False)
                    file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        self.entries |= self._pending
        if self._output:
            self._output.has_parts = bool(self.entries)
        self._pending.clear()
        self._pending_bytes = 0

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        """The lines of a file; what a kill tore at the end is cut off."""
        path.touch()
        with path.open("r+b") as file:
            data = file.read()
            complete = data[: data.rfind(b"\n") + 1]
            file.truncate(len(complete))
        entries: dict[str, dict[str, Any]] = {}
        lines, damaged = complete.splitlines(), 0
        for line in lines:
            try:
                values = json_file.parse_json(line, "a line")
                entries[values.pop("key")] = values
            except (InputError, KeyError, AttributeError, TypeError):
                damaged += 1
        if damaged:
            tell(
                f"{PROGRAM}: {damaged} of {counted(len(lines), 'line')} of {path} are damaged; "
                "their "
                f"{self._parts} are done again"
            )
        return entries


@contextlib.contextmanager
def open_journal(
    output: str | Path, kind: str, identity: Mapping[str, Any], *, is_main: bool
) -> Iterator[Journal]:
    """The journal of an evaluation into the new folder ``output``; every rank enters it.

    Every rank holds the same entries; the main one writes them. After an error they stay, for the
    next try. The folder gets them as ``samples.jsonl``, with ``evaluation.json``.

    Args:
        output: the folder to be; empty keeps the journal in memory alone.
        kind: the evaluation's verb, such as ``ruler``.
        identity: JSON values that decide the figures of every sample, the checkpoint's among
            them; not the number of samples, which a later try may raise.
        is_main: whether this rank writes.

    Raises:
        InputError: see :func:`~megatron_ultralong.program.output.output_folder`.
    """
    if not output:
        yield Journal()
        return
    work = {"kind": kind, **identity}
    with contextlib.ExitStack() as stack:
        opened = [Journal()]

        def begin() -> dict[str, dict[str, Any]]:
            folder = stack.enter_context(output_folder(output, "evaluate", work))
            folder.keep = True
            opened.append(Journal(folder))
            return opened[-1].entries

        # One rank reads; the others follow it, so that all skip the same samples.
        entries = rank_values.from_main_rank(begin, is_main=is_main)
        journal = opened[-1]
        journal.entries, journal.num_resumed = entries, len(entries)
        yield journal
        if journal.folder is not None:
            aside.write_aside(journal.folder / "evaluation.json", json.dumps(work, indent=2) + "\n")
            shutil.copyfile(journal.folder / RECORDS_FILE, journal.folder / "samples.jsonl")

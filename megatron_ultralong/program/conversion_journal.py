"""Manifest of a conversion's finished tensors, by which a killed conversion is continued."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import parse_json

MANIFEST_FILE = "finished.jsonl"
SYNC_BYTES = 512 * 2**20
"""Bytes of tensors between two waits for the disk: what a kill costs at most, and one tensor."""


class Manifest:
    """Lines of finished tensors; the first line says what conversion they belong to.

    A tensor is entered when its bytes are on the disk, so that no line is a promise that a loss
    of power breaks. Its folder has one owner (:mod:`megatron_ultralong.program.owner`).
    """

    def __init__(
        self, folder: Path, conversion: Mapping[str, Any], check: Callable[[], None] | None = None
    ) -> None:
        """Open the manifest in ``folder``, or begin one.

        ``conversion`` holds JSON values: whatever decides on the bytes of the output. ``check``
        raises where lines may not be written any more.

        Raises:
            InputError: ``folder`` belongs to another conversion.
        """
        self.finished: dict[str, list[int]] = {}
        """Finished tensors, in order, with what their writer noted of each."""
        self.num_bytes = 0
        """Bytes of the finished tensors."""
        self._num_tensors = 0
        self._path = folder / MANIFEST_FILE
        self._pending: list[tuple[str, int, list[int]]] = []
        self._pending_bytes = 0
        self._check = check
        self._file = self._path.open("a+b")
        try:
            self._read(folder, json.loads(json.dumps(conversion)))
        except BaseException:
            self._file.close()
            raise
        self.num_resumed = self._num_tensors
        """Tensors that an earlier process had finished."""

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(
        self, name: str, num_bytes: int, sync: Callable[[], None], note: list[int] | None = None
    ) -> None:
        """Tensor ``name`` is written; it is entered when ``sync`` has next been called."""
        self._pending.append((name, num_bytes, note or []))
        self._pending_bytes += num_bytes
        if self._pending_bytes >= SYNC_BYTES:
            self.flush(sync)

    def flush(self, sync: Callable[[], None]) -> None:
        """Wait for the disk by ``sync``, then enter what was written."""
        sync()
        if self._check is not None:
            self._check()
        for name, size, note in self._pending:
            self._enter(name, size, note)
            self._append([name, size, note])
        self._pending.clear()
        self._pending_bytes = 0
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Remove the manifest: the output is complete."""
        assert not self._pending
        self._path.unlink()

    def _enter(self, name: str, size: int, note: list[int]) -> None:
        self.finished[name] = note
        self.num_bytes += size
        self._num_tensors += size > 0

    def _append(self, value: Any) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()

    def _read(self, folder: Path, conversion: dict[str, Any]) -> None:
        self._file.seek(0)
        data = self._file.read()
        complete = data[: data.rfind(b"\n") + 1]  # a kill may cut the last line
        self._file.truncate(len(complete))
        lines = [parse_json(line, f"{self._path}: a line") for line in complete.splitlines()]
        if not lines:
            self._append(conversion)
            return
        found = lines[0]
        for key in sorted({*found, *conversion}):
            if found.get(key) != conversion.get(key):
                raise InputError(
                    f"{folder} was begun by another conversion: {key} was {found.get(key)!r}, is "
                    f"now {conversion.get(key)!r}; repeat the first one, or remove that folder"
                )
        for name, size, note in lines[1:]:
            self._enter(name, size, note)

"""``checksums.json``: size and SHA-256 of every file of a checkpoint.

It is the last file written into a ``release`` or ``iter_XXXXXXX`` folder, and checks itself too: a
flipped byte in it, or anywhere else in the folder, is found before a tensor is used. Another one
stands in the folder above, for ``ultralong.json`` and the small files of the source model.

A file of several pieces of 128 MiB has the hash of its pieces' hashes, so that several threads and
ranks can read it, each byte once among all of them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from megatron_ultralong.checkpoint.disk.folder import check_inside, is_plain_name
from megatron_ultralong.program import aside, errors
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject, read_bounded, read_json

FILE_NAME = "checksums.json"
PIECE_BYTES = 128 * 2**20
_BLOCK = 4 * 2**20
_MAX_BYTES = 64 * 2**20
"""Of ``checksums.json``: 100 TB in pieces have 50 MB."""


class Checksum(NamedTuple):
    """What a file must be."""

    size: int
    """Bytes."""
    sha256: str
    """In hexadecimal; of a file in pieces the hash of their hashes, one behind the other."""
    pieces: tuple[str, ...] = ()
    """Hashes of its pieces, where it is larger than one."""


Checksums = Mapping[str, Checksum]


class DamagedError(Exception):
    """A checkpoint that is not as it was written; the message names the file and what is wrong."""


class UnreadableError(DamagedError):
    """A disk did not give its bytes, perhaps for a while: nobody knows how they are."""


def refused(error: DamagedError, way_out: str) -> InputError:
    """What a user is told of it; the ``way_out`` is that of damage."""
    if isinstance(error, UnreadableError):
        return errors.FailingDiskError(f"{error}: the disk or its server fails; try again")
    return InputError(f"{error}; {way_out}")


def of_pieces(size: int, digests: list[bytes]) -> Checksum:
    """Of a file of ``size`` bytes whose pieces have these hashes."""
    if len(digests) == 1:
        return Checksum(size, digests[0].hex())
    return Checksum(size, _joined(digests), tuple(digest.hex() for digest in digests))


def checksum(path: Path) -> Checksum:
    """Size and hash of a file.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    starts = range(0, max(size, 1), PIECE_BYTES)
    return of_pieces(size, [_digest(path, start, PIECE_BYTES)[0] for start in starts])


def write_checksums(folder: Path, checksums: Checksums) -> None:
    """Write ``checksums.json`` into ``folder``, through to the disk and aside first."""
    files = {
        name: {key: value for key, value in entry._asdict().items() if value != ()}
        for name, entry in sorted(checksums.items())
    }
    aside.write_aside(folder / FILE_NAME, _text(files))


def read_checksums(folder: Path) -> dict[str, Checksum]:
    """Read ``checksums.json`` of a folder, and look at the sizes of all its files.

    Raises:
        DamagedError: it is missing or damaged, or a file is missing or has another size.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise DamagedError(f"{path} is missing: the checkpoint was not finished")
    try:
        check_inside(path, folder)
        text = read_bounded(path, _MAX_BYTES)
        files = read_json(path, max_bytes=_MAX_BYTES).object("files")
        # Byte for byte what is written: no byte of the file is without meaning.
        if text != _text(files).encode():
            raise DamagedError(f"{path} is damaged: it is not what its own hash says")
        checksums = {name: _checksum(files.object(name), name) for name in files}
    except errors.ClosedFileError:
        raise
    except errors.FailingDiskError as error:
        raise UnreadableError(f"{path} cannot be read ({error.__cause__ or error})") from error
    except InputError as error:
        raise DamagedError(f"{path} is damaged ({error})") from error
    for name, entry in checksums.items():
        found = folder / name
        if not found.is_file():
            raise DamagedError(f"{found} is missing")
        if found.stat().st_size != entry.size:
            raise DamagedError(
                f"{found} has {found.stat().st_size} bytes, {entry.size} were written"
            )
    return checksums


def check_files(
    folder: Path,
    checksums: Checksums,
    names: Iterable[str] | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_threads: int = 1,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Read the files ``names`` of ``folder`` (None: all) and compare their hashes.

    Each of ``world_size`` readers, of which this is ``rank``, reads its share: no byte is read
    twice. ``advance`` is told the bytes of every piece.

    Raises:
        DamagedError: at the first that cannot be read or is not as it was written.
    """
    names = checksums if names is None else names
    # The largest files first, one piece to each rank in turn.
    ordered = sorted(names, key=lambda name: (-checksums[name].size, name))
    pieces = [piece for name in ordered for piece in _pieces(name, checksums[name])]

    def check(piece: _Piece) -> None:
        _check_piece(folder, piece)
        if advance is not None:
            advance(piece.length)

    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        results = [pool.submit(check, piece) for piece in pieces[rank::world_size]]
        try:
            for result in results:
                result.result()
        except DamagedError:
            pool.shutdown(cancel_futures=True)
            raise


class _Piece(NamedTuple):
    name: str
    offset: int
    length: int
    sha256: str


def _pieces(name: str, entry: Checksum) -> list[_Piece]:
    if not entry.pieces:
        return [_Piece(name, 0, entry.size, entry.sha256)]
    return [
        _Piece(name, start, min(PIECE_BYTES, entry.size - start), sha256)
        for start, sha256 in zip(range(0, entry.size, PIECE_BYTES), entry.pieces, strict=True)
    ]


def _check_piece(folder: Path, piece: _Piece) -> None:
    path = folder / piece.name
    try:
        digest, size = _digest(path, piece.offset, piece.length)
    except PermissionError:
        raise
    except OSError as error:
        kind = UnreadableError if errors.is_failing_disk(error) else DamagedError
        raise kind(f"{path} cannot be read ({error})") from error
    if size < piece.length or digest.hex() != piece.sha256:
        raise DamagedError(
            f"{path} has sha256 {digest.hex()[:12]}, {piece.sha256[:12]} was written: its bytes "
            "have changed"
        )


def _digest(path: Path, offset: int, length: int) -> tuple[bytes, int]:
    """Hash of the bytes of a file from ``offset`` on, and how many there are up to ``length``."""
    digest, left = hashlib.sha256(), length
    with path.open("rb") as file:
        file.seek(offset)
        while left and (block := file.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
    return digest.digest(), length - left


def _checksum(values: JsonObject, name: str) -> Checksum:
    if not all(is_plain_name(part) for part in name.split("/")):
        raise InputError(f"{name!r} is not a file of the folder")
    entry = Checksum(
        values.integer("size", minimum=0),
        values.string("sha256"),
        tuple(values.strings("pieces", None) or ()),
    )
    if entry.pieces:
        try:
            joined = _joined([bytes.fromhex(piece) for piece in entry.pieces])
        except ValueError as error:
            raise values.wrong("pieces", "hashes in hexadecimal") from error
        if joined != entry.sha256 or len(entry.pieces) != -(-entry.size // PIECE_BYTES):
            raise values.wrong("pieces", f"the hashes of all pieces of {entry.size} bytes")
    return entry


def _joined(pieces: list[bytes]) -> str:
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def _text(files: Mapping[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": digest}, indent=1) + "\n"

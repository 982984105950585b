"""Compressed files as their own programs read them: whole, cut, damaged, with a tail."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from megatron_ultralong.data.read.compression import COMPRESSIONS, DamagedError, decompressed

WRITERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
}
LINES = b"".join(b"line %d of some text\n" % number for number in range(5_000))


def read(path: Path, data: bytes, size: int = 1 << 20) -> tuple[bytes, str]:
    """What a file gives, and what is said at its end."""
    path.write_bytes(data)
    found = bytearray()
    try:
        with open(path, "rb") as raw:
            file = decompressed(raw, path)
            while block := file.read1(size):
                found += block
    except DamagedError as error:
        return bytes(found), str(error)
    return bytes(found), ""


def test_every_compression_has_a_writer_here() -> None:
    assert {name for suffix, name in COMPRESSIONS.items() if suffix in WRITERS} == set(
        COMPRESSIONS.values()
    )


@pytest.mark.parametrize("suffix", WRITERS)
def test_whole_files(tmp_path: Path, suffix: str) -> None:
    write, path = WRITERS[suffix], tmp_path / f"a{suffix}"
    assert read(path, write(LINES)) == (LINES, "")
    assert read(path, write(LINES), 7) == (LINES, "")
    assert read(path, write(b"")) == (b"", "")
    members = [LINES[start : start + 99_999] for start in range(0, len(LINES), 99_999)]
    assert read(path, b"".join(map(write, members))) == (LINES, "")


@pytest.mark.parametrize("suffix", [s for s in WRITERS if s != ".zst"])
@pytest.mark.parametrize("count", [1, 4, 70_000])
def test_zeros_behind_a_member_are_padding(tmp_path: Path, suffix: str, count: int) -> None:
    write, path = WRITERS[suffix], tmp_path / f"a{suffix}"
    assert read(path, write(LINES) + bytes(count)) == (LINES, "")
    between = write(LINES[:99]) + bytes(count) + write(LINES[99:]) + bytes(count)
    assert read(path, between) == (LINES, "")


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_is_wrong_is_said_behind_all_that_is_right(tmp_path: Path, suffix: str) -> None:
    write, path = WRITERS[suffix], tmp_path / f"a{suffix}"
    whole = write(LINES)
    name = COMPRESSIONS[suffix]
    for tail in (b"x", b"trailing garbage", whole[:1] + b"!" * 100):
        found, said = read(path, whole + tail)
        assert found == LINES
        assert f"behind its last {name}" in said or "ends too early" in said
    assert read(path, LINES)[1].startswith(f"it is not {name} by its first bytes")
    assert read(path, b"")[1].startswith(f"it is empty, which no {name} is")
    for cut in (1, 2, 5, len(whole) // 3, len(whole) - 9, len(whole) - 1):
        found, said = read(path, whole[:cut])
        assert LINES.startswith(found)
        assert said == f"its {name} ends too early; is the file cut short?"


@pytest.mark.parametrize("suffix", WRITERS)
def test_damage_is_an_error_of_ours_or_nothing(tmp_path: Path, suffix: str) -> None:
    generator = random.Random(suffix)
    data = LINES[:20_000]
    for _ in range(60):
        damaged = bytearray(WRITERS[suffix](data))
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        found, said = read(tmp_path / f"a{suffix}", bytes(damaged))
        # what is written without a checksum, as Arrow writes zstd, may come out changed
        assert said or found == data or suffix == ".zst"


def test_a_dictionary_that_takes_too_much_memory(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
    found, said = read(tmp_path / "a.xz", lzma.compress(b"text", filters=filters))
    assert found == b""
    assert said.startswith("its xz looks back further than 128 MiB, the most that is read; decom")
    filters[0]["dict_size"] = 64 << 20  # of xz -9
    assert read(tmp_path / "a.xz", lzma.compress(b"text", filters=filters)) == (b"text", "")


def test_a_window_of_zstd_that_takes_too_much_memory(tmp_path: Path) -> None:
    """A frame of a window of 2^31 bytes, whole: a header and a last raw block."""
    for power, said in ((27, ""), (31, "its zstd window is above 128 MiB, the largest that is")):
        header = bytes.fromhex("28b52ffd") + bytes([0x00, (power - 10) << 3])
        block = ((len(LINES[:1000]) << 3) | 1).to_bytes(3, "little") + LINES[:1000]
        found, error = read(tmp_path / "a.zst", header + block)
        assert error.startswith(said)
        assert found == (b"" if said else LINES[:1000])

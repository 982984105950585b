"""One flipped byte anywhere in a checkpoint: every reader refuses it and names the file."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.disk.checksums import (
    PIECE_BYTES,
    Checksum,
    DamagedError,
    check_files,
    checksum,
    write_checksums,
)
from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE
from megatron_ultralong.checkpoint.disk.large_files import HashingThreads
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.dropin.checkpoints import vet
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.verbs import OPENS, refusal, write_inputs
from tests.ranks import run_on_ranks

VERBS = (
    "convert export",
    "convert verify",
    "convert inspect",
    "pretrain",
    "sft",
    "evaluate loss",
    "evaluate passkey",
    "generate",
)
NUM_PLACES = 50


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flips")
    write_inputs(folder)
    return folder


def flip(checkpoint: Path, generator: random.Random) -> Path:
    """Change one byte: of the largest file every second time, else of any."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    path = largest if generator.random() < 0.5 else generator.choice(files)
    data = bytearray(path.read_bytes())
    data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
    path.write_bytes(data)
    return path


def check_flips(
    inputs: Path,
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    numbers: range,
) -> None:
    for number in numbers:
        checkpoint = scratch / "checkpoint"
        shutil.rmtree(checkpoint, ignore_errors=True)
        shutil.copytree(inputs / "base", checkpoint)
        path = flip(checkpoint, random.Random(f"{verb} {number}"))
        error = refusal(capsys, OPENS[verb](inputs, str(checkpoint)))
        assert str(path) in error, f"{path.relative_to(checkpoint)}, place {number}: {error}"
    assert not (inputs / "exported").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_flipped_byte_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    check_flips(inputs, tmp_path, capsys, verb, range(4))


@pytest.mark.faults
@pytest.mark.parametrize("verb", VERBS)
def test_fifty_flipped_bytes_are_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    check_flips(inputs, tmp_path, capsys, verb, range(4, 4 + NUM_PLACES))


def look_through(checkpoint: Path) -> None:
    load_metadata(checkpoint, any_model=True)
    vet(checkpoint, None, verify_checksums=True)


def check_drop_in(inputs: Path, scratch: Path, numbers: range) -> None:
    """What the drop-in asks of --load before Megatron-LM's own loaders read it."""
    for number in numbers:
        checkpoint = scratch / "checkpoint"
        shutil.rmtree(checkpoint, ignore_errors=True)
        shutil.copytree(inputs / "base", checkpoint)
        path = flip(checkpoint, random.Random(f"drop-in {number}"))
        if path.name == LATEST_FILE:  # Megatron-LM's own to read, and to say that it is damaged
            continue
        with (
            parallel_groups(ParallelConfig(), seed=1),
            pytest.raises(InputError, match=re.escape(str(path))),
        ):
            look_through(checkpoint)


def test_a_flipped_byte_is_refused_by_the_drop_in(inputs: Path, tmp_path: Path) -> None:
    check_drop_in(inputs, tmp_path, range(4))


@pytest.mark.faults
def test_fifty_flipped_bytes_are_refused_by_the_drop_in(inputs: Path, tmp_path: Path) -> None:
    check_drop_in(inputs, tmp_path, range(4, 4 + NUM_PLACES))


def test_a_whole_checkpoint_is_read_without_a_word(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the tests above would show nothing."""
    capsys.readouterr()
    cli.main(OPENS["generate"](inputs, str(inputs / "base")))
    assert "warning" not in capsys.readouterr().err


def test_what_is_not_checked_is_said(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = OPENS["generate"](inputs, str(inputs / "base"))
    capsys.readouterr()
    cli.main([*words, "--no-verify-checksums"])
    error = capsys.readouterr().err
    assert error.count("warning: --no-verify-checksums: the bytes of") == 1
    shutil.copytree(inputs / "base", tmp_path / "copy")
    (tmp_path / "copy" / "release" / "checksums.json").unlink()
    cli.main(OPENS["generate"](inputs, str(tmp_path / "copy")))
    error = capsys.readouterr().err
    assert error.count("has no checksums.json: its bytes are read unchecked") == 1


def read_share(folder: Path) -> tuple[list[tuple[int, int]], str]:
    """Pieces that this rank reads of a checkpoint, and what all ranks say of it."""

    from megatron_ultralong.checkpoint.disk import checksums

    pieces: list[tuple[int, int]] = []
    plain = checksums._check_piece

    def spy(folder: Path, piece: checksums._Piece) -> None:
        pieces.append((piece.offset, piece.length))
        plain(folder, piece)

    checkpoint = MegatronCheckpoint(folder)
    checksums._check_piece = spy
    try:
        checkpoint.check_tensors()
    except InputError as error:
        return pieces, str(error)
    finally:
        checksums._check_piece = plain
    return pieces, ""


def test_two_ranks_read_each_byte_once_and_agree(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(inputs / "base", tmp_path / "copy")
    release = tmp_path / "copy" / "release"
    small = {name: checksum(release / name) for name in (".metadata", "common.pt", "metadata.json")}
    data = (release / "__0_0.distcp").read_bytes()
    # a second file, so that there is one for each rank
    (release / "__1_0.distcp").write_bytes(data[:1000])
    names = ("__0_0.distcp", "__1_0.distcp")
    write_checksums(release, {**small, **{name: checksum(release / name) for name in names}})
    good = run_on_ranks(2, read_share, tmp_path / "copy")
    assert [error for _, error in good] == ["", ""]
    assert sorted(length for pieces, _ in good for _, length in pieces) == [1000, len(data)]
    (release / "__1_0.distcp").write_bytes(b"x" + data[1:1000])
    bad = run_on_ranks(2, read_share, tmp_path / "copy")
    assert bad[0][1] == bad[1][1]
    assert str(release / "__1_0.distcp") in bad[0][1]


def test_files_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_ultralong.checkpoint.disk.checksums.PIECE_BYTES", 1000)
    data = random.Random(0).randbytes(3500)
    path = tmp_path / "file"
    path.write_bytes(data)
    found = checksum(path)
    assert (found.size, len(found.pieces)) == (3500, 4)
    for step in (1, 700, 999, 1000, 1700, 3500):  # while it is written, by threads
        with HashingThreads() as hashing:
            for start in range(0, 3500, step):
                hashing.update(data[start : start + step])
            hashing.wait()
            assert hashing.checksum() == found
    check_files(tmp_path, {"file": found}, num_threads=3)
    for place in (0, 999, 1000, 3499):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match="its bytes have changed"):
            check_files(tmp_path, {"file": found}, num_threads=3)
        for rank in range(4):  # the rank that has the piece finds it, and no other
            if rank == place // 1000:
                continue
            check_files(tmp_path, {"file": found}, rank=rank, world_size=4)


def test_small_files_have_the_plain_hash(tmp_path: Path) -> None:
    """What ``sha256sum`` prints."""
    (tmp_path / "file").write_bytes(b"abc")
    plain = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checksum(tmp_path / "file") == Checksum(3, plain)
    with HashingThreads() as hashing:
        hashing.update(b"abc")
        assert hashing.checksum() == Checksum(3, plain)
    with HashingThreads() as hashing:
        assert hashing.checksum() == Checksum(0, hashlib.sha256().hexdigest())
    assert PIECE_BYTES == 128 * 2**20, "checkpoints that exist are in pieces of this size"


def test_a_flipped_digit_of_the_latest_iteration_names_that_file(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(inputs / "base", tmp_path / "copy")
    for text in ("7", "releasf", "\xff"):
        (tmp_path / "copy" / LATEST_FILE).write_text(text, encoding="latin-1")
        error = refusal(capsys, OPENS["convert inspect"](inputs, str(tmp_path / "copy")))
        assert LATEST_FILE in error

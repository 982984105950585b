"""Every damage to files of rows is refused by file name, or changes nothing of what is read."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.rows.indexed import IndexedWriter
from megatron_ultralong.data.rows.manifest import load_chat_manifest, load_manifest
from megatron_ultralong.data.rows.packed import PackedRows, boundaries_prefix, rows_of
from megatron_ultralong.data.rows.stored import ChatRows, StoredRow, chat_rows_of, targets_prefix
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.assignment import zigzag
from megatron_ultralong.training.row_source import ChatRowSource, PackedRowSource
from megatron_ultralong.training.step import check_rows
from tests.models import TEXT, prepare_rows, write_tokenizer

VOCAB_SIZE = 2000
Reader = Callable[[Path], str]


def digest(parts: Iterator[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def read_documents(folder: Path) -> str:
    """All that a run reads of rows of documents, checked as a run checks them."""
    manifest = load_manifest(folder)
    searchable = manifest.separators_tell_all
    rows = rows_of(folder, "train", manifest, VOCAB_SIZE, searchable=searchable)
    source = PackedRowSource(rows, 1, tuple(manifest.separator_ids))
    check_rows([(source, range(len(rows)))])

    def parts() -> Iterator[Any]:
        for number in range(len(rows)):
            row = StoredRow(rows, number, source.separator_ids)
            yield row.cu_seqlens
            yield row.loss_mask("block")
            for rank in range(2):
                yield from row.read_chunks(zigzag(2).ranges(rank, row.seq_length))

    return digest(parts())


def read_chats(folder: Path) -> str:
    """All that a run reads of rows of conversations."""
    rows = chat_rows_of(folder, "train", load_chat_manifest(folder), VOCAB_SIZE)
    check_rows([(ChatRowSource(rows, 1), range(len(rows)))])

    def parts() -> Iterator[Any]:
        for number in range(len(rows)):
            row = rows.row(number)
            yield row.cu_seqlens
            yield row.loss_mask("block")
            yield from row.read_chunks([(0, row.seq_length)])
            for tokens, targets in rows.examples(number):
                yield from (tokens, targets)

    return digest(parts())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small rows of documents, cut and whole, and of conversations."""
    folder = tmp_path_factory.mktemp("prepared")
    write_tokenizer(folder / "tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|end_of_text|>"])
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    settings = json.dumps({"eos_token": "<|end_of_text|>"})
    (folder / "tokenizer" / "tokenizer_config.json").write_text(settings)
    texts = [TEXT * (1 + number % 3) + str(number) for number in range(30)]
    turns = [
        {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": f"{t} ok"}]}
        for t in (TEXT[:20] + str(number) for number in range(30))
    ]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(each) for each in turns))
    for packing in ("stream", "whole"):
        made = {"packing": packing, "valid_fraction": 0.1}
        prepare_rows(folder, texts, folder / "tokenizer", 128, packing, **made)
    prepare_chat(
        PrepareChatConfig(
            source=(f"chats={folder / 'chats.jsonl'}",),
            tokenizer=folder / "tokenizer",
            output=folder / "chats",
            seq_length=256,
            chat_template="plain",
            valid_fraction=0,
        )
    )
    return folder


@pytest.fixture(params=["stream", "whole", "chats"])
def rows(request: pytest.FixtureRequest, prepared: Path, tmp_path: Path) -> tuple[Path, Reader]:
    """A copy of prepared rows, and what reads them whole."""
    shutil.copytree(prepared / request.param, tmp_path / "rows")
    return tmp_path / "rows", read_chats if request.param == "chats" else read_documents


def damage(path: Path, generator: random.Random) -> str:
    """Do to a file what disks, copies and other programs do."""
    data = bytearray(path.read_bytes())
    kind = generator.choice(
        ["flip", "flip", "flip", "zero", "cut", "longer", "noise", "gone", "empty"]
    )
    place = generator.randrange(max(len(data), 1))
    if generator.random() < 0.4:
        place = min(place, generator.randrange(64))  # headers are few of the bytes
    if kind == "flip":
        data[place] ^= 1 << generator.randrange(8)
    elif kind == "zero":
        data[place : place + 16] = bytes(len(data[place : place + 16]))
    elif kind == "cut":
        del data[place:]
    elif kind == "longer":
        data += bytes(1 + generator.randrange(16))
    elif kind == "noise":
        data[place : place + 8] = generator.randbytes(len(data[place : place + 8]))
    elif kind == "empty":
        data.clear()
    path.unlink()
    if kind != "gone":
        path.write_bytes(data)
    return f"{kind} at {place} of {path.name}"


@pytest.mark.parametrize("seed", [7])
def test_damage_is_refused_by_file_name_or_changes_nothing(
    rows: tuple[Path, Reader], seed: int
) -> None:
    check_damage(*rows, seed, 200)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(20))
def test_damage_at_length(rows: tuple[Path, Reader], seed: int) -> None:
    check_damage(*rows, 1000 + seed, 500)


def check_damage(folder: Path, read: Reader, seed: int, times: int) -> None:
    """Damage one file after another, each alone; nothing but a message may come of it."""
    expected = read(folder)
    files = sorted(path for path in folder.iterdir() if path.name.startswith("train."))
    files += sorted(folder.glob("*manifest.json"))
    assert {path.suffix for path in files} == {".bin", ".idx", ".crc32", ".json"}
    generator = random.Random(seed)
    refused = 0
    for _ in range(times):
        path = generator.choice(files)
        kept = path.read_bytes()
        what = damage(path, generator)
        message = None
        try:
            assert read(folder) == expected, what
        except InputError as error:
            message = str(error)
        finally:
            path.write_bytes(kept)
        if message is not None:
            refused += 1
            assert str(folder) in message, (what, message)
            assert len(message) < 1000, what
    assert refused > times / 2
    assert read(folder) == expected


EDGES = [64, 0, 20, 40, 64]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            [64, 0, 40, 20, 64],
            r"row 1 has boundary 20 behind 40 \(number 2\), where boundaries rise",
        ),
        ([64, 0, 20, 20, 64], r"has boundary 20 behind 20"),
        ([64, -1, 20, 64], r"has boundaries from -1 to 64, where .* fill it from 0 to 64"),
        ([64, 0, 20, 65], r"has boundaries from 0 to 65"),
        ([64, 0], r"has 2 numbers, where its real tokens and two boundaries are the fewest"),
        ([65, 0, 20, 64], r"states 65 tokens before its padding, and has 64 tokens"),
        ([0, 0, 20, 64], r"states 0 tokens before its padding"),
        ([30, 0, 20, 64], r"states 30 tokens before its padding, where padding is .* from 20 on"),
    ],
)
def test_boundaries_that_are_none(tmp_path: Path, record: list[int], message: str) -> None:
    write_rows(tmp_path / "train", [EDGES, record])
    rows = PackedRows(tmp_path / "train")
    assert rows.boundaries(0).tolist() == EDGES[1:]
    for read in (rows.boundaries, rows.num_real_tokens, rows.check):
        with pytest.raises(InputError, match=r"train\.boundaries\.bin: row 1 .*copy it again") as e:
            read(1)
        e.match(message)


def test_boundaries_of_another_type_or_half_of_them(tmp_path: Path) -> None:
    write_rows(tmp_path / "train", [EDGES, EDGES], "<u2")
    with pytest.raises(InputError, match=r"boundaries\.idx states numbers of type uint16, where"):
        PackedRows(tmp_path / "train")
    write_rows(tmp_path / "train", [EDGES, EDGES])
    for suffix in ("idx", "bin"):
        kept = Path(f"{boundaries_prefix(tmp_path / 'train')}.{suffix}")
        data = kept.read_bytes()
        kept.unlink()
        with pytest.raises(InputError, match=rf"cannot read .*boundaries\.{suffix}"):
            PackedRows(tmp_path / "train")
        kept.write_bytes(data)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([2, 1, 5], r"states 2 targets and holds 2 numbers"),
        ([1, 5, 5], r"are empty or do not rise"),
        ([2, 8, 12, 3, 5], r"are empty or do not rise"),
        ([1, 0, 5], r"has target \[0, 5\), where targets lie within one conversation"),
        ([1, 20, 25], r"has target \[20, 25\), where"),
        ([1, 15, 25], r"has target \[15, 25\), where"),
        ([1, 50, 65], r"has target \[50, 65\), where"),
        ([1, 64, 70], r"has target \[64, 70\), where"),
    ],
)
def test_targets_that_are_none(tmp_path: Path, record: list[int], message: str) -> None:
    write_rows(tmp_path / "train", [EDGES, EDGES])
    with IndexedWriter(targets_prefix(tmp_path / "train"), np.dtype("<i4")) as writer:
        writer.add(np.asarray([2, 1, 5, 21, 40]))
        writer.add(np.asarray(record))
    rows = ChatRows(tmp_path / "train")
    assert rows.targets(0).tolist() == [[1, 5], [21, 40]]
    with pytest.raises(InputError, match=r"train\.targets\.bin: row 1 ") as error:
        rows.check(1)
    error.match(message)


def write_rows(prefix: Path, records: list[list[int]], type_name: str = "<i4") -> None:
    """Rows of 64 tokens, with these records of their documents."""
    with (
        IndexedWriter(prefix, np.dtype("<i4")) as rows,
        IndexedWriter(boundaries_prefix(prefix), np.dtype(type_name)) as boundaries,
    ):
        for record in records:
            rows.add(np.arange(64))
            boundaries.add(np.asarray(record))


@pytest.mark.parametrize("wrong", [-1, 100, 101, 2**31 - 1])
def test_ids_outside_the_vocabulary(tmp_path: Path, wrong: int) -> None:
    with IndexedWriter(tmp_path / "train", np.dtype("<i4")) as writer:
        for row in range(3):
            tokens = np.arange(64)
            tokens[41] = wrong if row == 2 else 99
            writer.add(tokens)
    rows = PackedRows(tmp_path / "train", 100)
    rows.check(0)
    rows.read(2, 0, 41)
    message = (
        rf"train\.bin: row 2 has at position 41 token id {wrong}, and the model knows ids 0 to 99 "
        r"\(vocab_size 100\): .*prepare them with the model's own tokenizer"
    )
    for read in (lambda: rows.read(2, 32, 64), lambda: rows.check(2), lambda: rows.row(2, ())):
        with pytest.raises(InputError, match=message):
            read()
    source = PackedRowSource(rows, 1, ())
    order = [source.name(sample) for sample in range(3)]
    bad = next(sample for sample in range(3) if order[sample].endswith("[2]"))
    for sample in range(3):
        if sample == bad:
            with pytest.raises(InputError, match=message):
                check_rows([(None, range(9)), (source, range(sample, sample + 1))])
        else:
            check_rows([(None, range(9)), (source, range(sample, sample + 1))])


def test_files_of_another_run_than_the_manifests(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "stream", tmp_path / "rows")
    manifest = load_manifest(tmp_path / "rows")
    assert rows_of(tmp_path / "rows", "train", manifest).seq_length == 128
    with pytest.raises(InputError, match=r"knows no split 'test'.*--test-fraction above 0"):
        rows_of(tmp_path / "rows", "test", manifest)
    write_rows(tmp_path / "rows" / "train", [EDGES, EDGES])
    with pytest.raises(InputError, match=r"train\.idx is of 2 rows, and .*manifest of \d+"):
        rows_of(tmp_path / "rows", "train", manifest)


@pytest.mark.parametrize("packing", ["stream", "whole"])
def test_boundaries_that_are_gone(prepared: Path, tmp_path: Path, packing: str) -> None:
    shutil.copytree(prepared / packing, tmp_path / "rows")
    expected = read_documents(tmp_path / "rows")
    for path in (tmp_path / "rows").glob("train.boundaries.*"):
        path.unlink()
    if packing == "stream":  # separators tell the same
        assert read_documents(tmp_path / "rows") == expected
    else:  # padding is not a text
        with pytest.raises(InputError, match=r"boundaries\.idx and \.bin are not there"):
            read_documents(tmp_path / "rows")

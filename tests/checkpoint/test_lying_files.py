"""Files of a model that lie about themselves: one message, little memory, nothing from outside."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from tests.checkpoint.limits import check_refused, little_memory
from tests.checkpoint.verbs import OPENS, write_inputs

__all__ = ["little_memory"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_inputs(folder)
    return folder


def change_metadata(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    (folder / "checksums.json").unlink()


NORM = "decoder.final_layernorm.weight"


def large_tensor(metadata: Any) -> None:
    """Terabytes in the bytes of a norm."""
    size = torch.Size([10**12])
    chunk = ChunkStorageMetadata(torch.Size([0]), size)
    properties = TensorProperties(dtype=torch.float32)
    metadata.state_dict_metadata[NORM] = TensorStorageMetadata(properties, size, [chunk])


def place(**changes: object) -> Callable[[Any], None]:
    def change(metadata: Any) -> None:
        info = metadata.storage_data[MetadataIndex(NORM, torch.Size([0]))]
        for name, value in changes.items():
            setattr(info, name, value)

    return change


TORCH_DIST: dict[str, Callable[[Any], object]] = {
    "terabytes": large_tensor,
    "negative size": lambda m: setattr(m.state_dict_metadata[NORM], "size", (-64,)),
    "size of text": lambda m: setattr(m.state_dict_metadata[NORM], "size", ("64",)),
    "no chunks": lambda m: m.state_dict_metadata[NORM].chunks.clear(),
    "no properties": lambda m: setattr(m.state_dict_metadata[NORM], "properties", None),
    "absolute path": place(relative_path="/etc/passwd"),
    "path above": place(relative_path="../../hf/model.safetensors"),
    "path below": place(relative_path="sub/__0_0.distcp"),
    "no path": place(relative_path=""),
    "path of bytes": place(relative_path=b"__0_0.distcp"),
    "null in a path": place(relative_path="a\0b"),
    "long record": place(length=10**15),
    "compressed by text": place(transform_descriptors="stream.zstd/1"),
    "compressed by a number": place(transform_descriptors=[1]),
    "compressed": place(transform_descriptors=["stream.zstd/1"], length=1),
    "negative offset": place(offset=-1),
    "offset of text": place(offset="0"),
    "no places": lambda m: setattr(m, "storage_data", None),
    "places of text": lambda m: setattr(m, "storage_data", "x"),
    "no tensors": lambda m: setattr(m, "state_dict_metadata", [1]),
}


@pytest.mark.parametrize("name", TORCH_DIST)
def test_what_metadata_says_of_tensors(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    checkpoint = tmp_path / "copy"
    shutil.copytree(inputs / "base", checkpoint)
    change_metadata(checkpoint / "release", TORCH_DIST[name])
    verb = list(OPENS)[list(TORCH_DIST).index(name) % len(OPENS)]
    words = OPENS[verb](inputs, str(checkpoint))
    check_refused(capsys, words, checkpoint / "release")


@pytest.mark.parametrize("verb", ["generate", "convert export"])
@pytest.mark.parametrize("name", [".metadata", "common.pt"])
def test_large_pickles(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, verb: str
) -> None:
    """A hundred million empty lists."""
    checkpoint = tmp_path / "copy"
    shutil.copytree(inputs / "base", checkpoint)
    path = checkpoint / "release" / name
    path.write_bytes(b"\x80\x02" + b"]" * 100_000_000 + b".")
    (checkpoint / "release" / "checksums.json").unlink()
    check_refused(capsys, OPENS[verb](inputs, str(checkpoint)), path)


def test_files_that_are_links(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    for name in ("release/__0_0.distcp", "release/common.pt", "release/metadata.json"):
        checkpoint = tmp_path / name.replace("/", "-")
        shutil.copytree(inputs / "base", checkpoint)
        shutil.copyfile(checkpoint / name, tmp_path / "outside")
        (checkpoint / name).unlink()
        (checkpoint / name).symlink_to(tmp_path / "outside")
        words = OPENS["convert export"](inputs, str(checkpoint))
        check_refused(capsys, words, checkpoint / name, "leads out of")
    checkpoint = tmp_path / "small"
    shutil.copytree(inputs / "base", checkpoint)
    (checkpoint / "huggingface" / "NOTICE").symlink_to(secret)
    words = OPENS["convert export"](inputs, str(checkpoint))
    check_refused(capsys, words, checkpoint / "huggingface" / "NOTICE", "leads out of")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        model = tmp_path / f"hf-{name}"
        shutil.copytree(inputs / "hf", model)
        shutil.move(model / name, tmp_path / "outside")
        (model / name).symlink_to(tmp_path / "outside")
        words = ["convert", "import", str(model), str(tmp_path / "out")]
        check_refused(capsys, words, model / name, "leads out of")
    assert not (tmp_path / "out").exists()


def test_links_of_the_hubs_cache_are_followed(inputs: Path, tmp_path: Path) -> None:
    """A snapshot's files are links to blobs, two folders above."""
    from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder

    cache = tmp_path / "hub" / "models--a--b"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted((inputs / "hf").iterdir())):
        blob = cache / "blobs" / f"{number:064x}"
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    assert HuggingFaceFolder(snapshot).model.num_layers == 2
    (tmp_path / "link").symlink_to(snapshot)  # the folder itself may be one
    assert HuggingFaceFolder(tmp_path / "link").model.num_layers == 2


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 90 * 2**20) + b"[" * (90 * 2**20),
        struct.pack("<Q", 0),
        b"",
        struct.pack("<Q", 2) + b"{}" + b"\0" * 100,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 100_000) + b'{"a":' * 20_000,
    ],
    ids=["length", "90 MiB", "no header", "empty", "bytes left over", "array", "nested"],
)
def test_headers_of_safetensors(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], header: bytes
) -> None:
    shutil.copytree(inputs / "hf", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    path.write_bytes(header)
    words = ["convert", "import", str(tmp_path / "hf"), str(tmp_path / "out")]
    check_refused(capsys, words, tmp_path / "hf")


def test_shard_names_of_an_index(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("/etc/passwd", "../hf/model.safetensors", "..", "", "a\\b", 7, ["a"], None):
        folder = tmp_path / "hf"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(inputs / "hf", folder)
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
        check_refused(capsys, ["convert", "inspect", str(folder)], index)


def compressed(path: Path) -> None:
    """4 GB of zeros in 4 MB."""
    torch.save({"model.norm.weight": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            with archive.open(name, "w", force_zip64=True) as record:
                for _ in range(64 if name.endswith("data/0") else 1):
                    record.write(bytes(2**20) if name.endswith("data/0") else data)


class Zeros:
    def __reduce__(self) -> tuple[object, ...]:
        return bytearray, (4 * 2**30,)


def expanded(path: Path) -> None:
    torch.save({"model.norm.weight": torch.zeros(1).expand(10**11)}, path)


def on_no_device(path: Path) -> None:
    torch.save({"model.norm.weight": torch.empty(10**11, device="meta")}, path)


def with_another_record(path: Path) -> None:
    torch.save({"model.norm.weight": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/evil", b"1")


def with_another_beginning(path: Path) -> None:
    """Places of tensors are counted from the first record, which here belongs to none."""
    torch.save({"model.norm.weight": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = [(record.filename, archive.read(record)) for record in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(parts[0][0].split("/")[0] + "/data/7", b"1")
        for name, data in parts:
            archive.writestr(name, data)


def of_brackets(path: Path) -> None:
    """Sixty million empty lists, each in the one before it or beside it."""
    torch.save({"model.norm.weight": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            brackets = b"\x80\x02" + b"]" * 60_000_000 + b"."
            archive.writestr(name, brackets if name.endswith("data.pkl") else data)


PICKLES: dict[str, Callable[[Path], object]] = {
    "brackets": of_brackets,
    "brackets of old": lambda path: path.write_bytes(b"\x80\x02" + b"]" * 60_000_000 + b"."),
    "another record": with_another_record,
    "another beginning": with_another_beginning,
    "compressed": compressed,
    "bytearray": lambda path: torch.save({"a": Zeros()}, path),
    "expanded": expanded,
    "meta": on_no_device,
    "names of numbers": lambda path: torch.save({1: torch.zeros(1)}, path),
    "a list": lambda path: torch.save([torch.zeros(1)], path),
    "safetensors by another name": lambda path: save_file({"a": torch.zeros(1)}, path),
    "empty": lambda path: path.write_bytes(b""),
    "zip of nothing": lambda path: path.write_bytes(b"PK\5\6" + bytes(18)),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_of_weights(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(inputs / "hf", folder)
    (folder / "model.safetensors").unlink()
    PICKLES[name](folder / "pytorch_model.bin")
    words = ["convert", "import", str(folder), str(tmp_path / "out")]
    check_refused(capsys, words, folder / "pytorch_model.bin")

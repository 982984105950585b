"""Whoever packed a checkpoint runs nothing on the machine that reads it, by whatever verb."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.disk.checksums import checksum, write_checksums
from tests.checkpoint.verbs import OPENS, OTHERS, refusal, write_inputs

DATA = "__0_0.distcp"


class Payload:
    """Runs when it is unpickled: it leaves a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def change_metadata(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def append_record(folder: Path, value: object, index: MetadataIndex, *, is_object: bool) -> None:
    """Append ``value`` as a record of the folder's file; bytes are those of one."""
    path = folder / DATA
    offset = path.stat().st_size
    with path.open("ab") as file:
        if isinstance(value, bytes):
            file.write(value)
        else:
            torch.save(value, file)
    place = _StorageInfo(DATA, offset, path.stat().st_size - offset)

    def change(metadata: Any) -> None:
        if is_object:
            metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
        metadata.storage_data[index] = place

    change_metadata(folder, change)


def in_metadata(folder: Path, payload: Payload) -> str:
    (folder / ".metadata").write_bytes(pickle.dumps(payload))
    return ".metadata"


def in_planner_data(folder: Path, payload: Payload) -> str:
    change_metadata(folder, lambda metadata: setattr(metadata, "planner_data", {"a": payload}))
    return ".metadata"


def in_a_field(folder: Path, payload: Payload) -> str:
    change_metadata(folder, lambda metadata: setattr(metadata, "ours", payload))
    return ".metadata"


def in_random_state(folder: Path, payload: Payload) -> str:
    index = MetadataIndex("rng_state/shard_0_1")
    append_record(folder, [payload], index, is_object=True)
    return DATA


def in_extra_state(folder: Path, payload: Payload) -> str:
    index = MetadataIndex("decoder.layers.mlp.linear_fc1._extra_state/shard_0_2")
    append_record(folder, [payload], index, is_object=True)
    return DATA


def in_bytes_of_extra_state(folder: Path, payload: Payload) -> str:
    """Transformer Engine unpickles the bytes of this tensor itself."""
    state = torch.frombuffer(bytearray(pickle.dumps(payload)), dtype=torch.uint8)
    index = MetadataIndex("decoder.layers.mlp.linear_fc1._extra_state/shard_0_2")
    append_record(folder, [state], index, is_object=True)
    return DATA


def in_a_tensor(folder: Path, payload: Payload) -> str:
    index = MetadataIndex("decoder.final_layernorm.weight", torch.Size([0]))
    # larger than the tensor: what is too short is refused before
    append_record(folder, {"x": payload, "y": torch.zeros(4096)}, index, is_object=False)
    return DATA


def in_common_state(folder: Path, payload: Payload) -> str:
    torch.save({"args": payload, "iteration": 0}, folder / "common.pt")
    return "common.pt"


def in_common_object(folder: Path, payload: Payload) -> str:
    """Where Megatron-Core 0.19 keeps the same."""
    (folder / "common.pt").unlink()
    index = MetadataIndex("common_state/shard_0_1")
    append_record(folder, [{"args": payload, "iteration": 0}], index, is_object=True)
    return DATA


PLACES = {
    place.__name__: place
    for place in (
        in_metadata,
        in_planner_data,
        in_a_field,
        in_random_state,
        in_extra_state,
        in_bytes_of_extra_state,
        in_a_tensor,
        in_common_state,
        in_common_object,
    )
}
PAIRS = [
    (verb, place)
    for verb in OPENS
    for place in PLACES
    if (verb, place) != ("convert inspect", "in_a_tensor")  # it reads no tensor
]
# Every verb with one place, every place with `pretrain`; the rest in `make test-all`.
_QUICK = {(verb, list(PLACES)[n % len(PLACES)]) for n, verb in enumerate(OPENS)}
_QUICK |= {("pretrain", place) for place in PLACES}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("payloads")
    write_inputs(folder)
    return folder


def test_every_verb_is_known_here() -> None:
    """A new verb says whether it reads checkpoints; if it does, the tests below try it."""
    assert {*OPENS, *OTHERS} == set(cli.VERBS)
    assert not set(OPENS) & set(OTHERS)


@pytest.mark.parametrize(
    ("verb", "place"),
    [
        pytest.param(*pair, marks=() if pair in _QUICK else pytest.mark.faults, id=" ".join(pair))
        for pair in PAIRS
    ],
)
def test_nothing_in_a_checkpoint_runs(
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    place: str,
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(inputs / "base", checkpoint)
    folder = checkpoint / "release"
    name = PLACES[place](folder, Payload(tmp_path / "ran"))
    if place != "in_metadata":  # whoever packs a checkpoint can write its checksums too
        names = [path.name for path in folder.iterdir() if path.name != "checksums.json"]
        write_checksums(folder, {name: checksum(folder / name) for name in names})
    else:
        (folder / "checksums.json").unlink()
    # torch's way to switch its own guard off, and without it
    for value in ("1", "") if place == "in_common_state" else ("1",):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", value)
        error = refusal(capsys, OPENS[verb](inputs, str(checkpoint)))
        assert not (tmp_path / "ran").exists(), "it ran"
        assert str(folder / name) in error
        assert not (inputs / "exported").exists()


@pytest.mark.parametrize("place", ["in_random_state", "in_common_state", "in_metadata"])
def test_the_payloads_run_where_nobody_guards(inputs: Path, tmp_path: Path, place: str) -> None:
    """Else the test above would show nothing."""
    shutil.copytree(inputs / "base" / "release", tmp_path / "folder")
    name = PLACES[place](tmp_path / "folder", Payload(tmp_path / "ran"))
    data = (tmp_path / "folder" / name).read_bytes()
    if name == ".metadata":
        pickle.loads(data)
    elif name == "common.pt":
        torch.load(tmp_path / "folder" / name, weights_only=False)
    else:
        metadata = pickle.loads((tmp_path / "folder" / ".metadata").read_bytes())
        info = metadata.storage_data[MetadataIndex("rng_state/shard_0_1")]
        (tmp_path / "record").write_bytes(data[info.offset :])
        torch.load(tmp_path / "record", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_nothing_in_a_source_of_pickles_runs(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, is_zip: bool
) -> None:
    source = tmp_path / "source"
    shutil.copytree(inputs / "hf", source)
    (source / "model.safetensors").unlink()
    if name.endswith(".pth"):
        (source / "config.json").unlink()
        (source / "params.json").write_text('{"dim": 64, "n_heads": 4, "n_layers": 2}')
    values = {"norm.weight": Payload(tmp_path / "ran")}
    torch.save(values, source / name, _use_new_zipfile_serialization=is_zip)
    for words in (
        ["convert", "import", str(source), str(tmp_path / "out")],
        ["convert", "inspect", str(source)],
        ["convert", "verify", str(source), str(inputs / "base")],
        ["evaluate", "loss", "--load", str(source), "--data-path", str(inputs / "rows")],
    ):
        if words[0] == "evaluate" and name.endswith(".pth"):
            continue  # it does not read Meta's folders
        assert str(source / name) in refusal(capsys, words)
        assert not (tmp_path / "ran").exists(), "it ran"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "place", ["in_random_state", "in_common_state", "in_common_object", "in_planner_data"]
)
def test_nothing_runs_on_resume(
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    if not (inputs / "run").exists():
        words = OPENS["pretrain"](inputs, str(inputs / "base"))
        cli.main([*words, "--save", str(inputs / "run")])
    run = tmp_path / "run"
    shutil.copytree(inputs / "run", run)
    folder = run / "iter_0000001"
    name = PLACES[place](folder, Payload(tmp_path / "ran"))
    names = [path.name for path in folder.iterdir() if path.name != "checksums.json"]
    write_checksums(folder, {name: checksum(folder / name) for name in names})
    words = OPENS["pretrain"](inputs, str(inputs / "base"))
    words[words.index("--train-iters") + 1] = "2"
    error = refusal(capsys, [*words, "--save", str(run)])
    assert not (tmp_path / "ran").exists(), "it ran"
    assert name in error
    assert str(folder) in error

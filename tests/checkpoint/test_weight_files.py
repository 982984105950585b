"""Which files of a folder are read: one set of weights, the one that transformers takes."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.models import open_model
from megatron_ultralong.data.read.signatures import POINTERS, Signature
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import edit_config, save_llama

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENS = torch.arange(40)[None] * 7 % 130
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``new``, in one file; ``old``, another model of its shape, in shards."""
    folder = tmp_path_factory.mktemp("sets")
    small = {"num_hidden_layers": 1, "tokenizer": False}
    save_llama(folder / "new", **small)
    save_llama(folder / "old", seed=1, max_shard_size="60KB", **small)
    return folder


def add_single(originals: Path, folder: Path) -> str:
    shutil.copy(originals / "new" / SINGLE, folder)
    return SINGLE


def add_shards(originals: Path, folder: Path) -> str:
    for path in (originals / "old").glob("model*"):
        shutil.copy(path, folder)
    return INDEX


def add_pickle(originals: Path, folder: Path) -> str:
    torch.save(load_file(originals / "new" / SINGLE), folder / "pytorch_model.bin")
    return "pytorch_model.bin"


def add_pickles(originals: Path, folder: Path) -> str:
    tensors = load_file(originals / "new" / SINGLE)
    torch.save(tensors, folder / "pytorch_model-00001-of-00001.bin")
    places = dict.fromkeys(tensors, "pytorch_model-00001-of-00001.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return "pytorch_model.bin.index.json"


def add_meta(originals: Path, folder: Path) -> str:
    torch.save({"tok_embeddings.weight": torch.ones(2)}, folder / "consolidated.00.pth")
    (folder / "params.json").write_text('{"dim": 72}')
    return "consolidated.00.pth"


SETS = (add_single, add_shards, add_pickle, add_pickles, add_meta)


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    (tmp_path / "hf").mkdir()
    shutil.copy(originals / "new" / "config.json", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("pair", itertools.combinations(SETS, 2))
def test_two_complete_sets_are_refused(
    originals: Path, folder: Path, pair: tuple[Callable[[Path, Path], str], ...]
) -> None:
    first, second = (add(originals, folder) for add in pair)
    with pytest.raises(InputError) as refused:
        open_model(folder)
    message = str(refused.value)
    assert f"{folder} holds 2 complete sets of weights" in message
    assert re.search(rf": {re.escape(first)}.* and {re.escape(second)}", message)
    assert f"transformers reads {first}" in message
    assert "move all but one out of the folder" in message


@pytest.mark.parametrize("add", SETS[:4])
def test_one_set_is_read(
    originals: Path, folder: Path, capsys: pytest.CaptureFixture[str], add: Callable[..., str]
) -> None:
    add(originals, folder)
    found = HuggingFaceFolder(folder).tensors[NORM].read()
    source = "old" if add is add_shards else "new"
    assert torch.equal(found, HuggingFaceFolder(originals / source).tensors[NORM].read())
    assert capsys.readouterr().err == ""


def remove_a_shard(folder: Path) -> None:
    min(folder.glob("model-*.safetensors")).unlink()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (remove_a_shard, "names 1 file not there: model-00001-of-"),
        (lambda folder: (folder / INDEX).write_text("{"), "is damaged"),
        (lambda folder: (folder / INDEX).write_text('{"weight_map": {}}'), "names no file"),
    ],
)
def test_a_stale_index_is_left_out_and_that_is_said(
    originals: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    why: str,
) -> None:
    add_single(originals, folder)
    add_shards(originals, folder)
    spoil(folder)
    found = HuggingFaceFolder(folder)
    said = capsys.readouterr().err
    assert re.search(rf"warning: .*{INDEX}.* is not read \(.*{why}.*\); {SINGLE} is", said)
    judge = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(found.tensors[NORM].read(), judge.model.norm.weight.data)


@pytest.mark.parametrize("pointer", POINTERS, ids=lambda pointer: pointer.magic.decode())
@pytest.mark.parametrize("add", SETS[:4])
def test_a_pointer_is_no_file(
    originals: Path, folder: Path, add: Callable[[Path, Path], str], pointer: Signature
) -> None:
    add(originals, folder)
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    max(files).write_bytes(pointer.magic + b"v1\noid sha256:00\nsize 9\n")
    text = f"{max(files).name} is {pointer.name} ({pointer.way_out})"
    with pytest.raises(InputError, match=re.escape(text)):
        open_model(folder)


def test_a_stale_index_hides_no_pickle(originals: Path, folder: Path) -> None:
    add_shards(originals, folder)
    add_pickle(originals, folder)
    remove_a_shard(folder)
    with pytest.raises(InputError, match=r"not there.*pytorch_model\.bin is complete: if that is"):
        open_model(folder)


def test_an_index_of_the_one_file_is_one_set(
    originals: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_single(originals, folder)
    names = load_file(folder / SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE)}))
    open_model(folder)
    assert capsys.readouterr().err == ""


def test_a_tensor_in_two_files_is_refused(originals: Path, folder: Path) -> None:
    add_shards(originals, folder)
    files = sorted(folder.glob("model-*.safetensors"))
    tensors = load_file(files[0])
    save_file({**load_file(files[1]), **tensors}, files[1], metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"is in {files[0].name} and in {files[1].name}"):
        open_model(folder)


def test_a_file_that_the_config_names_is_read(
    originals: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_single(originals, folder)
    shutil.copy(folder / SINGLE, folder / "best.safetensors")
    edit_config(folder, transformers_weights="best.safetensors")
    open_model(folder)
    assert "model.safetensors is not read (transformers_weights" in capsys.readouterr().err
    for wrong in ("../best.safetensors", "pytorch_model.bin", "absent.safetensors", 3):
        edit_config(folder, transformers_weights=wrong)
        with pytest.raises(InputError, match=r"transformers_weights is .* or remove the key"):
            open_model(folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("adapter_model.safetensors", "is an adapter: merge it"),
        ("model-00001-of-00002.safetensors", "are shards: their index is missing"),
        ("model.gguf", "load and save the model with transformers"),
        ("shard-00000-model-00001-of-00001.safetensors", "load and save the model"),
    ],
)
def test_what_is_no_set_is_named(originals: Path, folder: Path, name: str, reason: str) -> None:
    shutil.copy(originals / "new" / SINGLE, folder / name)
    with pytest.raises(InputError, match=rf"holds no weights.*{name}.*{reason}"):
        open_model(folder)


def test_an_adapter_is_not_applied_and_that_is_said(
    originals: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_single(originals, folder)
    (folder / "adapter_config.json").write_text("{}")
    open_model(folder)
    assert "read without the adapter of adapter_config.json" in capsys.readouterr().err


def test_a_model_and_a_megatron_checkpoint_in_one_folder(originals: Path, folder: Path) -> None:
    add_single(originals, folder)
    (folder / "latest_checkpointed_iteration.txt").write_text("release")
    with pytest.raises(InputError, match=r"config\.json.* and .*latest_checkpointed_iteration"):
        open_model(folder)


def test_a_config_beside_meta_alone_is_no_model(originals: Path, folder: Path) -> None:
    add_meta(originals, folder)
    with pytest.raises(InputError, match=r"but consolidated\.00\.pth is: .* move config\.json"):
        open_model(folder)

"""Files of weights as people have them: one, shards, both, stale, damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.checkpoint.odd_folder import Folder, Tensors


def write_plain(folder: Folder, path: Path) -> None:
    """The model that is meant, under its own names, in one file."""
    path.mkdir()
    _save(folder.tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(folder.config))


def _save(tensors: Tensors, path: Path) -> None:
    if path.suffix == ".bin":
        torch.save(dict(tensors), path)
    else:
        copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(copies, path, metadata={"format": "pt"})


def _shards(tensors: Tensors, path: Path, stem: str = "model", suffix: str = "safetensors") -> None:
    """Two files and their index."""
    names = sorted(tensors)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    places: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        _save({name: tensors[name] for name in part}, path / file)
        places |= dict.fromkeys(part, file)
    _index(path / f"{stem}.{suffix}.index.json", places)


def _index(path: Path, places: dict[str, str]) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def _edit_index(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    change(places)
    _index(index, places)


def _older(folder: Folder) -> Tensors:
    return {name: tensor + 0.25 for name, tensor in folder.stored.items()}


SINGLE, INDEX = "model.safetensors", r"model\.safetensors\.index\.json"


def _one_file(folder: Folder, path: Path) -> None:
    _save(folder.stored, path / SINGLE)


def _two_files(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)


def _one_pickle(folder: Folder, path: Path) -> None:
    _save(folder.stored, path / "pytorch_model.bin")


def _two_pickles(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path, "pytorch_model", "bin")


def _stale_index(folder: Folder, path: Path) -> None:
    _shards(_older(folder) if folder.rng.random() < 0.7 else folder.stored, path)
    _one_file(folder, path)
    folder.odd("an index and a file", "2 complete sets", rf"{SINGLE} and {INDEX}", "move")


def _pickle_too(folder: Folder, path: Path) -> None:
    folder.rng.choice([_one_file, _two_files])(folder, path)
    other = _older(folder)
    if folder.rng.random() < 0.5:
        _save(other, path / "pytorch_model.bin")
    else:
        _shards(other, path, "pytorch_model", "bin")
    folder.odd("pickles too", "2 complete sets", r"model\.safetensors", r"pytorch_model\.bin")


def _meta_too(folder: Folder, path: Path) -> None:
    folder.rng.choice([_one_file, _two_files, _one_pickle])(folder, path)
    torch.save({"tok_embeddings.weight": torch.ones(2)}, path / "consolidated.00.pth")
    (path / "params.json").write_text('{"dim": 8}')
    folder.odd("Meta's too", "2 complete sets", r"consolidated\.00\.pth", "move")


def _index_of_lost_files(folder: Folder, path: Path) -> None:
    _shards(_older(folder), path)
    (path / "model-00001-of-00002.safetensors").unlink()
    _one_file(folder, path)
    folder.odd("an index of lost files", said=rf"{INDEX} .* is not read .*{SINGLE} is")


def _damaged_index(folder: Folder, path: Path) -> None:
    _one_file(folder, path)
    (path / "model.safetensors.index.json").write_text(folder.rng.choice(["{", "{}", "[]"]))
    folder.odd("a damaged index", said=rf"{INDEX} is not read .*{SINGLE} is")


def _lost_file(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)
    lost = folder.rng.choice([1, 2])
    (path / f"model-0000{lost}-of-00002.safetensors").unlink()
    if folder.rng.random() < 0.5:
        _one_pickle(folder, path)
    folder.odd("a lost file", rf"{INDEX} names 1 file not there", f"model-0000{lost}")


def _lost_index(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)
    (path / "model.safetensors.index.json").unlink()
    folder.odd("a lost index", "holds no weights", "shards: their index is missing")


def _index_of_the_file(folder: Folder, path: Path) -> None:
    _one_file(folder, path)
    _index(path / "model.safetensors.index.json", dict.fromkeys(folder.stored, SINGLE))
    folder.odd("an index of the one file")


def _index_with_a_gap(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)
    _edit_index(path, lambda places: places.pop(next(iter(places))))
    folder.odd("a tensor that the index does not name")


def _index_of_another_place(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    _edit_index(path, lambda places: places.update({min(places): files[1]}))
    folder.odd("another place", f"{files[1]} holds tensor {min(folder.stored)}", "does not")


def _tensor_in_two_files(folder: Folder, path: Path) -> None:
    _shards(folder.stored, path)
    name = min(folder.stored)
    second = {n: folder.stored[n] for n in sorted(folder.stored)[len(folder.stored) // 2 :]}
    _save({**second, name: folder.stored[name] + 1}, path / "model-00002-of-00002.safetensors")
    folder.odd("a tensor in two files", f"tensor {name} is in model-00001", "model-00002")


def _files_by_rank(folder: Folder, path: Path) -> None:
    _save(folder.stored, path / "shard-00000-model-00001-of-00001.safetensors")
    more = folder.rng.random() < 0.5
    if more:
        _one_file(folder, path)
    folder.odd("files by rank", "shard-00000-model-00001", SINGLE if more else "with transformers")


def _named_in_the_config(folder: Folder, path: Path) -> None:
    _save(folder.stored, path / "weights-of-step-9.safetensors")
    folder.config["transformers_weights"] = "weights-of-step-9.safetensors"
    if folder.rng.random() < 0.5:
        _save(_older(folder), path / SINGLE)
        folder.odd("named, beside another", said="transformers_weights .*weights-of-step-9")
    else:
        folder.odd("named in the config")


def _other_format(folder: Folder, path: Path) -> None:
    name = folder.rng.choice(
        ["model.gguf", "model.fp16.safetensors", "adapter_model.safetensors", "tf_model.h5"]
    )
    _save(folder.stored, path / name)
    folder.odd("another format", "holds no weights", "tf_model|" + name.replace(".", r"\."))


PLAIN_LAYOUTS = (_one_file, _two_files, _one_file, _two_files, _one_pickle, _two_pickles)
ODD_LAYOUTS = (
    *(_stale_index, _pickle_too, _meta_too, _index_of_lost_files, _damaged_index, _lost_file),
    *(_lost_index, _index_of_the_file, _index_with_a_gap, _index_of_another_place),
    *(_tensor_in_two_files, _files_by_rank, _named_in_the_config, _other_format),
)

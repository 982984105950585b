"""Reader of a Hugging Face model folder, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from megatron_ultralong.checkpoint.hugging_face_config import (
    CONFIG_FILE,
    model_config,
    read_config,
    rope_scaling,
)
from megatron_ultralong.checkpoint.links import check_inside, is_plain_name
from megatron_ultralong.checkpoint.tensor_file import (
    PickleFile,
    SafetensorsFile,
    TensorFile,
    TensorInfo,
)
from megatron_ultralong.checkpoint.weight_map import (
    EMBEDDING,
    HUGGING_FACE,
    LM_HEAD,
    Weight,
    weight_map,
)
from megatron_ultralong.config import ModelConfig
from megatron_ultralong.errors import InputError, missing
from megatron_ultralong.json_file import read_json

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_FORMATS: tuple[tuple[str, str, type[TensorFile]], ...] = (
    (INDEX_FILE, SINGLE_FILE, SafetensorsFile),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", PickleFile),
)
_BUFFER_SUFFIX = ".rotary_emb.inv_freq"
"""Buffers that old transformers saved beside the weights."""


class HuggingFaceFolder:
    """Weights and configuration of a Llama in Hugging Face's format."""

    format = HUGGING_FACE

    def __init__(self, folder: str | Path) -> None:
        """Read configuration and headers, and check every tensor's name and shape.

        Raises:
            InputError: a file or tensor is missing, damaged, left over or of another shape.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"model folder {missing(self.folder)}")
        where = str(self.folder / CONFIG_FILE)
        self.config = read_config(self.folder)
        self._model = model_config(self.config, where)
        self.rope_scaling = rope_scaling(self.config, where)
        self.files, located = _open_files(self.folder)
        self._tensors = {
            name: file for name, file in located.items() if not name.endswith(_BUFFER_SUFFIX)
        }
        self._check_tied()
        self._check_tensors()

    @property
    def model(self) -> ModelConfig:
        """Its shape."""
        return self._model

    @property
    def name(self) -> str:
        """Name of the model: the one in config.json, or the folder's."""
        name = str(self.config.get("_name_or_path") or "")
        return name if name and not Path(name).is_absolute() else self.folder.resolve().name

    def dtype(self, weight: Weight) -> torch.dtype:
        """Dtype that ``weight`` is stored in; its parts agree."""
        return self._info(weight.names[0]).dtype

    def read(self, weight: Weight) -> tuple[torch.Tensor, ...]:
        """The parts of ``weight``."""
        return tuple(self._tensors[name].read(name) for name in weight.names)

    def _info(self, name: str) -> TensorInfo:
        return self._tensors[name].tensors[name]

    def _check_tensors(self) -> None:
        expected: set[str] = set()
        for weight in weight_map(self._model):
            expected.update(weight.names)
            for name, shape in zip(weight.names, weight.shapes, strict=True):
                self._check_tensor(name, shape)
            dtypes = {name: self._info(name).dtype for name in weight.names}
            if len(set(dtypes.values())) > 1:
                raise InputError(
                    f"{self.folder}: {dtypes} must have one dtype: Megatron keeps them in one "
                    "tensor; convert the source to one dtype"
                )
        left_over = sorted(set(self._tensors) - expected)
        if left_over:
            raise InputError(
                f"{self.folder} holds {len(left_over)} tensors that its config.json leaves no "
                f"place for: {_some(left_over)}; it is not the plain Llama that config.json says"
            )

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._tensors:
            hint = (
                "; if embedding and output share their weights, set tie_word_embeddings true"
                if name == LM_HEAD
                else ""
            )
            raise InputError(
                f"{self.folder} holds no tensor {name} of shape {list(shape)}, which its "
                f"config.json asks for: download the missing files again{hint}"
            )
        found = self._info(name)
        if found.shape != shape:
            raise InputError(
                f"{self._tensors[name].path}: tensor {name} has shape {list(found.shape)}, "
                f"config.json makes it {list(shape)}: weights and config.json are of different "
                "models"
            )
        if not found.dtype.is_floating_point or found.dtype.itemsize < 2:
            raise InputError(
                f"{self._tensors[name].path}: tensor {name} is {found.dtype}; float32, bfloat16 "
                "and float16 are converted: dequantise the model first"
            )

    def _check_tied(self) -> None:
        """Drop a copy of tied output weights; refuse one that differs from the embedding."""
        if self._model.untie_embeddings_and_output_weights or LM_HEAD not in self._tensors:
            return
        if EMBEDDING in self._tensors:
            output = self._tensors.pop(LM_HEAD).read(LM_HEAD)
            if torch.equal(output, self._tensors[EMBEDDING].read(EMBEDDING)):
                return
        raise InputError(
            f"{self.folder}: tie_word_embeddings is true in config.json, but {LM_HEAD} differs "
            f"from {EMBEDDING}: set tie_word_embeddings false, or remove {LM_HEAD}"
        )


def _open_files(folder: Path) -> tuple[list[TensorFile], dict[str, TensorFile]]:
    """The weight files of ``folder``, and which of them holds each tensor."""
    for index_name, single_name, kind in _FORMATS:
        if (folder / index_name).is_file():
            return _open_indexed(folder / index_name, kind)
        if (folder / single_name).is_file():
            check_inside(folder / single_name, folder)
            file = kind(folder / single_name)
            return [file], dict.fromkeys(file.tensors, file)
    names = [name for format_ in _FORMATS for name in format_[:2]]
    raise InputError(f"{folder} holds no weights: none of {', '.join(names)} is there")


def _open_indexed(
    index: Path, kind: type[TensorFile]
) -> tuple[list[TensorFile], dict[str, TensorFile]]:
    check_inside(index, index.parent)
    try:
        places = read_json(index).object("weight_map")
    except InputError as error:
        raise InputError(f"{index} is damaged ({error}): download it again") from error
    wrong = [name for name in places.values() if not is_plain_name(name)]
    if wrong:
        raise InputError(f"{index} names {wrong[0]!r}, which is not a file of its own folder")
    missing = sorted({name for name in places.values() if not (index.parent / name).is_file()})
    if missing:
        raise InputError(
            f"{index} names {len(missing)} files that are not there: {_some(missing)}; download "
            "them again"
        )
    names = sorted(set(places.values()))
    for name in names:
        check_inside(index.parent / name, index.parent)
    files = {name: kind(index.parent / name) for name in names}
    for tensor, name in places.items():
        if tensor not in files[name].tensors:
            raise InputError(
                f"{index} says that {name} holds tensor {tensor}, and it does not: index and "
                "shards are of different downloads; download them again"
            )
    return list(files.values()), {tensor: files[name] for tensor, name in places.items()}


def _some(names: Iterable[str], limit: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

"""Reader of a Hugging Face model folder, one tensor at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from megatron_ultralong.checkpoint.formats.hugging_face_config import (
    CONFIG_FILE,
    model_config,
    read_config,
)
from megatron_ultralong.checkpoint.formats.rope_block import rope_scaling
from megatron_ultralong.checkpoint.formats.tensor_file import TensorFile, TensorInfo
from megatron_ultralong.checkpoint.formats.tensor_names import known_names, why_unknown
from megatron_ultralong.checkpoint.formats.weight_files import open_weights, some
from megatron_ultralong.checkpoint.formats.weight_map import (
    EMBEDDING,
    HUGGING_FACE,
    LM_HEAD,
    Weight,
    weight_map,
)
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError, missing


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, where it may have another name than the model's."""

    file: TensorFile
    name: str

    @property
    def info(self) -> TensorInfo:
        """Its dtype and shape."""
        return self.file.tensors[self.name]

    def read(self) -> torch.Tensor:
        """The tensor."""
        return self.file.read(self.name)


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
        self.files, located = open_weights(self.folder, self.config)
        self._known = {name for weight in weight_map(self._model) for name in weight.names}
        names = known_names(located, {*self._known, LM_HEAD}, self.folder)
        self.tensors = {
            name: StoredTensor(located[stored], stored) for name, stored in names.items()
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
        return tuple(self.tensors[name].read() for name in weight.names)

    def _info(self, name: str) -> TensorInfo:
        return self.tensors[name].info

    def _check_tensors(self) -> None:
        for weight in weight_map(self._model):
            for name, shape in zip(weight.names, weight.shapes, strict=True):
                self._check_tensor(name, shape)
            dtypes = {name: self._info(name).dtype for name in weight.names}
            if len(set(dtypes.values())) > 1:
                raise InputError(
                    f"{self.folder}: {dtypes} must have one dtype: Megatron keeps them in one "
                    "tensor; convert the source to one dtype"
                )
        left_over = sorted(set(self.tensors) - self._known)
        if left_over:
            raise InputError(
                f"{self.folder} holds {len(left_over)} tensors that its config.json leaves no "
                f"place for: {some(left_over)}{self._why_unknown()}; it is not the plain Llama "
                "that config.json says"
            )

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self.tensors:
            raise InputError(
                f"{self.folder} holds no tensor {name} of shape {list(shape)}, which its "
                f"config.json asks for{self._why_missing(name)}"
            )
        found, path = self._info(name), self.tensors[name].file.path
        if found.shape != shape:
            raise InputError(
                f"{path}: tensor {name} has shape {list(found.shape)}, config.json makes it "
                f"{list(shape)}: weights and config.json are of different models"
            )
        if not found.dtype.is_floating_point or found.dtype.itemsize < 2:
            raise InputError(
                f"{path}: tensor {name} is {found.dtype}; float32, bfloat16 and float16 are "
                "converted: dequantise the model first"
            )

    def _why_missing(self, name: str) -> str:
        missing = sorted(self._known - set(self.tensors))
        if missing == [LM_HEAD]:
            return (
                "; all others are there: if embedding and output share their weights, set "
                "tie_word_embeddings true; else the output was not saved"
            )
        here = len(self._known) - len(missing)
        return f"; {here} of the model's {len(self._known)} tensors are there" + (
            self._why_unknown() or ": copy the missing files, or the config.json of this model"
        )

    def _why_unknown(self) -> str:
        names = {name: tensor.name for name, tensor in self.tensors.items()}
        return why_unknown(names, {*self._known, LM_HEAD})

    def _check_tied(self) -> None:
        """Of tied weights keep one: a model may have stored either, or two that are equal.

        Raises:
            InputError: it has two that differ.
        """
        if self._model.untie_embeddings_and_output_weights or LM_HEAD not in self.tensors:
            return
        output = self.tensors.pop(LM_HEAD)
        if EMBEDDING not in self.tensors:  # as transformers does
            self.tensors[EMBEDDING] = output
            return
        embedding = self.tensors[EMBEDDING]
        if output.info.shape == embedding.info.shape and _equal(output.read(), embedding.read()):
            return
        raise InputError(
            f"{self.folder}: tie_word_embeddings is true in config.json, but {LM_HEAD} differs "
            f"from {EMBEDDING} ({_shown(output.info)} and {_shown(embedding.info)}): set "
            "tie_word_embeddings false, as transformers 5 reads such a model, or remove the one "
            "that is not the model's"
        )


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same values, each in its own dtype."""
    if a.dtype == b.dtype:
        return torch.equal(a, b)
    pairs = zip(a.flatten().split(2**20), b.flatten().split(2**20), strict=True)
    return all(torch.equal(x.double(), y.double()) for x, y in pairs)


def _shown(info: TensorInfo) -> str:
    return f"{info.dtype} {list(info.shape)}".removeprefix("torch.")

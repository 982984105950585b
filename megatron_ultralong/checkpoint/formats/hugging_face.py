"""A Hugging Face model folder, read and written one tensor at a time.

The safetensors library writes a file from all of its tensors at once; the format (eight bytes of
header length, a JSON header, the bytes) lets a file be written as its tensors come, so that memory
does not depend on the size of a shard.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from megatron_ultralong.checkpoint.disk.large_files import TensorWriter
from megatron_ultralong.checkpoint.formats import hugging_face_config, weight_files, weight_map
from megatron_ultralong.checkpoint.formats.rope_block import rope_scaling
from megatron_ultralong.checkpoint.formats.rope_readers import Rope
from megatron_ultralong.checkpoint.formats.tensor_file import DTYPES, TensorFile, TensorInfo
from megatron_ultralong.checkpoint.formats.weight_map import EMBEDDING, LM_HEAD, Weight
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError, counted, missing


class StoredTensor(NamedTuple):
    """A tensor in a file, where it may have another name than the model's."""

    file: TensorFile
    name: str
    info: TensorInfo

    def read(self) -> torch.Tensor:
        """The tensor."""
        return self.file.read(self.name)


class HuggingFaceFolder:
    """Weights and configuration of a model in Hugging Face's format."""

    format = "Hugging Face"

    def __init__(self, folder: str | Path) -> None:
        """Read configuration and headers, and check every tensor's name and shape.

        Raises:
            InputError: a file or tensor is missing, damaged, left over or of another shape.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"model folder {missing(self.folder)}")
        self.config = hugging_face_config.read_config(self.folder)
        self.model = hugging_face_config.model_config(self.config)
        self.rope_scaling = rope_scaling(self.config)
        self.files, located = weight_files.open_weights(self.folder, self.config)
        self._known = {
            name for weight in weight_map.model_weights(self.model) for name in weight.names
        }
        names = weight_map.known_names(located, {*self._known, LM_HEAD}, self.folder)
        self.tensors = {
            name: StoredTensor(located[stored], stored, located[stored].tensors[stored])
            for name, stored in names.items()
        }
        self._check_tied()
        self._check_tensors()
        self._tell_of_code()

    @property
    def rope(self) -> Rope:
        """The rotary embedding, and the block that states it."""
        model = self.model
        return hugging_face_config.stated_rope(self.config, model.kv_channels, model.family.name)

    @property
    def name(self) -> str:
        """Name of the model: the one in config.json, or the folder's."""
        name = str(self.config.get("_name_or_path") or "")
        return name if name and not Path(name).is_absolute() else self.folder.resolve().name

    def dtype(self, weight: Weight) -> torch.dtype:
        """Dtype that ``weight`` is stored in; its parts agree."""
        return self.tensors[weight.names[0]].info.dtype

    def read(self, weight: Weight) -> tuple[torch.Tensor, ...]:
        """The parts of ``weight``."""
        return tuple(self.tensors[name].read() for name in weight.names)

    def _check_tensors(self) -> None:
        for weight in weight_map.model_weights(self.model):
            for name, shape in zip(weight.names, weight.shapes, strict=True):
                self._check_tensor(name, shape)
            dtypes = {name: self.tensors[name].info.dtype for name in weight.names}
            if len(set(dtypes.values())) > 1:
                raise InputError(
                    f"{self.folder}: {dtypes} must have one dtype: Megatron keeps them in one "
                    "tensor; convert the source to one dtype"
                )
        left_over = sorted(set(self.tensors) - self._known)
        if left_over:
            raise InputError(
                f"{self.folder} holds {counted(len(left_over), 'tensor')} that its config.json "
                "leaves no "
                f"place for: {weight_files.some(left_over)}{self._why_unknown()}; it is not the "
                f"{self.model.family.title} that config.json says"
            )

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self.tensors:
            raise InputError(
                f"{self.folder} holds no tensor {name} of shape {list(shape)}, which its "
                f"config.json asks for{self._why_missing()}"
            )
        file, _, found = self.tensors[name]
        if found.shape != shape:
            raise InputError(
                f"{file.path}: tensor {name} has shape {list(found.shape)}, config.json makes it "
                f"{list(shape)}: weights and config.json belong to different models"
            )
        if not found.dtype.is_floating_point or found.dtype.itemsize < 2:
            raise InputError(
                f"{file.path}: tensor {name} is {found.dtype}; float32, bfloat16 and float16 are "
                "converted: dequantize the model first"
            )

    def _tell_of_code(self) -> None:
        """As transformers, no code of the folder is run; what it computes nobody knows."""
        named = self.config.object("auto_map", None) or {}
        own = {name: place for name, place in named.items() if name.startswith("AutoModel")}
        if own:
            tell(
                f"warning: {self.folder}: auto_map in config.json names code of the model's own "
                f"({weight_files.some(map(str, own.values()))}), which is not run: the weights are "
                f"read as the {self.model.family.title} that config.json says. If that code "
                "computes something else, this is another model"
            )

    def _why_missing(self) -> str:
        missing = sorted(self._known - set(self.tensors))
        if missing == [LM_HEAD]:
            return (
                "; all others are there: if embedding and output share their weights, set "
                "tie_word_embeddings true; else the output was not saved"
            )
        here = len(self._known) - len(missing)
        return f"; {here} of the model's {counted(len(self._known), 'tensor')} are there" + (
            self._why_unknown() or ": copy the missing files, or the config.json of this model"
        )

    def _why_unknown(self) -> str:
        stored = [tensor.name for tensor in self.tensors.values()]
        return weight_map.why_unknown(stored, {*self._known, LM_HEAD})

    def _check_tied(self) -> None:
        """Of tied weights keep one: a model may have stored either, or two that are equal.

        Raises:
            InputError: it has two that differ.
        """
        if self.model.untie_embeddings_and_output_weights or LM_HEAD not in self.tensors:
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


_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


class SafetensorsWriter(TensorWriter):
    """Writes the tensors that were announced, each to its place in one file or several."""

    def __init__(
        self, folder: Path, tensors: Sequence[tuple[str, TensorInfo]], max_shard_size: int
    ) -> None:
        """Plan the shards, and write their headers.

        ``tensors`` are all names in the order of writing; a shard is at most ``max_shard_size``
        bytes, or one tensor. Files that are there already are continued: the same plan made them.
        """
        super().__init__()
        self._folder = folder
        self._infos = dict(tensors)
        self._places: dict[str, tuple[Path, int]] = {}
        """Shard and offset of each tensor."""
        shards = _shards(tensors, max_shard_size)
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            path = folder / (name if len(shards) > 1 else weight_files.SINGLE_FILE)
            header = _header(shard)
            path.touch()
            with path.open("r+b") as file:
                file.write(header)
            offset = len(header)
            for name, info in shard:
                self._places[name] = (path, offset)
                offset += info.num_bytes

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write tensor ``name``."""
        info = self._infos[name]
        assert (tensor.dtype, tuple(tensor.shape)) == (info.dtype, info.shape), name
        self.put(*self._places[name], tensor)

    def finish(self) -> None:
        """Write the index, where there are several shards."""
        places = {name: path.name for name, (path, _) in sorted(self._places.items())}
        if len(set(places.values())) > 1:
            size = sum(info.num_bytes for info in self._infos.values())
            index = {"metadata": {"total_size": size}, "weight_map": places}
            text = json.dumps(index, indent=2) + "\n"
            (self._folder / weight_files.INDEX_FILE).write_text(text, encoding="utf-8")


def _shards(
    tensors: Sequence[tuple[str, TensorInfo]], max_shard_size: int
) -> list[list[tuple[str, TensorInfo]]]:
    shards: list[list[tuple[str, TensorInfo]]] = []
    size = 0
    for name, info in tensors:
        if not shards or size + info.num_bytes > max_shard_size:
            shards.append([])
            size = 0
        shards[-1].append((name, info))
        size += info.num_bytes
    return shards


def _header(shard: Sequence[tuple[str, TensorInfo]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, info in shard:
        end = offset + info.num_bytes
        entries[name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    # spaces after the header keep the tensors aligned
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text

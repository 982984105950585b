"""Files of tensors: safetensors and, for old models, PyTorch pickles of weights only."""

import dataclasses
import math
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from megatron_ultralong.checkpoint.disk.large_files import OpenFile
from megatron_ultralong.checkpoint.formats import pickles
from megatron_ultralong.checkpoint.formats.weight_map import Weight
from megatron_ultralong.program.errors import InputError, named, shown
from megatron_ultralong.program.json_file import parse_json

_ZIP_LENGTHS = 26
"""Offset, in a record's local header, of the lengths of the name and the extra field."""


def record_offsets(path: Path) -> list[int]:
    """Where the bytes of each tensor begin in a file of ``torch.save``, in the order of saving.

    Empty tensors are left out. The file is a zip archive without compression, with one record
    ``archive/data/N`` a tensor.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        headers = {
            int(record.filename.rsplit("/", 1)[1]): record.header_offset
            for record in archive.infolist()
            if "/data/" in record.filename and record.file_size
        }
        offsets = []
        for _, start in sorted(headers.items()):
            file.seek(start + _ZIP_LENGTHS)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            offsets.append(start + _ZIP_LENGTHS + 4 + name_length + extra_length)
    return offsets


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names."""
_MAX_HEADER_BYTES = 16 * 2**20
"""A hundred thousand tensors."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What a file says of a tensor before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
    """A safetensors file."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            InputError: the file is truncated or damaged.
        """
        self.path = path
        self._file = OpenFile(path)
        try:
            length = _header_length(path)
            with safe_open(path, framework="pt"), path.open("rb") as file:  # the library checks it
                header = parse_json(file.read(8 + length)[8:], f"the header of {path}")
        except SafetensorError as error:
            raise InputError(
                f"{path} is not a complete safetensors file ({error}): download it again"
            ) from error
        header.pop("__metadata__", None)
        self.tensors = {
            name: TensorInfo(_dtype(entry["dtype"], name, path), tuple(entry["shape"]))
            for name, entry in header.items()
        }
        self._offsets = {
            name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """Tensor ``name``; the file is mapped for as long as the tensor lives, and no longer."""
        info = self.tensors[name]
        flat = self._file.tensor(self._offsets[name], info.dtype, math.prod(info.shape))
        return flat.view(info.shape)


class PickleFile:
    """A ``pytorch_model*.bin`` file, opened with ``weights_only``: code in it does not run."""

    def __init__(self, path: Path) -> None:
        """Read names, dtypes and shapes.

        Raises:
            InputError: the file is damaged, or holds something else than tensors.
        """
        self.path = path
        self._file = OpenFile(path)
        # an old file without a zip directory, or one of another byte order, is no map of its
        # tensors: it is read once, and kept
        self._can_map = zipfile.is_zipfile(path) and _has_own_byte_order(path)
        tensors = self._load()
        self._kept = None if self._can_map else tensors
        self.tensors = {
            name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
        }
        try:
            self._places = _places(path, tensors) if self._can_map else {}
        except (ValueError, struct.error, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is damaged ({error}): download it again") from error

    def read(self, name: str) -> torch.Tensor:
        """Tensor ``name``; of the others nothing is read where the file can be mapped."""
        if self._kept is not None:
            return self._kept[name].contiguous()
        info, (offset, stride) = self.tensors[name], self._places[name]
        if 0 in info.shape:
            return torch.empty(info.shape, dtype=info.dtype)
        span = 1 + sum((size - 1) * step for size, step in zip(info.shape, stride, strict=True))
        flat = self._file.tensor(offset, info.dtype, span)
        return flat.as_strided(info.shape, stride).contiguous()

    def _load(self) -> dict[str, torch.Tensor]:
        try:
            values = pickles.read_saved(self.path, mmap=self._can_map)
        except pickles.UnsafeError as error:
            raise InputError(
                f"{self.path} does not open as a file of weights only ({error}): it is damaged "
                "or would run code; use the model's safetensors files"
            ) from error
        if not isinstance(values, dict):
            raise self._no_tensors("all of it", values)
        for name, value in values.items():
            if not (isinstance(name, str) and pickles.is_plain_tensor(value)):
                raise self._no_tensors(name, value)
        return values

    def _no_tensors(self, name: Any, value: Any) -> InputError:
        return InputError(
            f"{self.path} must hold a dict of tensors, and {shown(name)} is "
            f"{named(type(value).__name__)}: it is not a model's file; save the model's tensors "
            "alone, by their names"
        )


TensorFile = SafetensorsFile | PickleFile
"""One file of named tensors."""


def _has_own_byte_order(path: Path) -> bool:
    """Whether a file of ``torch.save`` has the byte order of this machine; older ones do not say.

    A damaged one has, and reading it says what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = [name for name in file.namelist() if name.endswith("/byteorder")]
            return not names or file.read(names[0]).decode() == sys.byteorder
    except (ValueError, NotImplementedError, zipfile.BadZipFile):
        return True


def _dtype(name: str, tensor: str, path: Path) -> torch.dtype:
    if name not in DTYPES:
        raise InputError(
            f"{path}: tensor {tensor} has dtype {name}; {', '.join(DTYPES)} are known: load and "
            "save the model in one of them, if it is a quantized one without its quantization"
        )
    return DTYPES[name]


def _header_length(path: Path) -> int:
    """Checked: the library reads a header of 100 MB, and takes many times as much for it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(_MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise InputError(
            f"{path} is not a complete safetensors file (its header would have {length:,} bytes, "
            f"of a file of {path.stat().st_size:,}; at most {_MAX_HEADER_BYTES:,} are read): "
            "download it again"
        )
    return length


def _places(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Offset in the file and strides of each of the mapped ``tensors`` of a whole file.

    torch maps the file in one piece, so its addresses are offsets except for a constant. To
    unpickle the file for every tensor takes longer than to read the tensor.
    """
    storages = [t.untyped_storage() for t in tensors.values()]
    addresses = [storage.data_ptr() for storage in storages if storage.nbytes()]
    offsets = record_offsets(path)
    begin = min(addresses) - min(offsets) if addresses else 0
    if {address - begin for address in addresses} != set(offsets):
        raise ValueError("its directory names other places than those of its tensors")
    return {name: (t.data_ptr() - begin, t.stride()) for name, t in tensors.items()}


T = TypeVar("T")


def read_ahead(
    weights: Sequence[Weight], read: Callable[[Weight], T]
) -> Iterator[tuple[Weight, T]]:
    """Each of ``weights`` with what ``read`` makes of it; two of them are in memory at a time.

    The large tensors of a Llama, embedding and output, have small neighbours. Reading and writing
    take about the same time, and Python's lock is free in most of both.
    """
    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(read, weight) for weight in weights[:1]]
        for number, weight in enumerate(weights, 1):
            value = ahead.pop().result()
            ahead += [reader.submit(read, following) for following in weights[number : number + 1]]
            yield weight, value
            del value

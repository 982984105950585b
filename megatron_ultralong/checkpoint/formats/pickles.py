"""The one place where pickled Python is read: nothing in a file chooses what runs.

Checkpoints of Megatron-Core hold pickles in four places: ``.metadata``, ``common.pt``, and the
records of tensors and of objects in ``.distcp`` files. Meta's and old Hugging Face models are
pickles as a whole. ``pickle`` calls whatever a file names; here a file can name what the lists
below hold, plain data classes, tensors and nothing that acts, and everything else is refused by the
file's name. ``tests/test_doors.py`` sees to it that no other module unpickles.
"""

from __future__ import annotations

import enum
import functools
import importlib
import io
import pickle
import pickletools
import re
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Final

import torch
from torch.distributed.checkpoint.metadata import Metadata

from megatron_ultralong.program.errors import InputError, named, refused_file
from megatron_ultralong.program.json_file import read_bounded

METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    # Megatron-Core leaves its plan of the saving there too.
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
}
"""Plain data classes, and what their fields hold."""

RECORD_CLASSES = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.PosixPath",
    "io.BytesIO",
    "signal.Signals",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.UInt32DType",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "megatron.core.enums.ModelType",
    "megatron.core.optimizer.optimizer_config.OptimizerConfig",
    "megatron.core.rerun_state_machine.RerunDiagnostic",
    "megatron.core.rerun_state_machine.RerunMode",
    "megatron.core.rerun_state_machine.RerunState",
    "megatron.core.transformer.enums.AttnBackend",
    "megatron.core.transformer.enums.CudaGraphModule",
    "megatron.core.transformer.enums.CudaGraphScope",
    "megatron.core.transformer.enums.InferenceCudaGraphScope",
)
"""What Megatron-LM 0.16 to 0.19 keeps besides tensors: its arguments and the states of random
generators: what ``megatron.core.safe_globals`` names. These classes are looked up."""
MEGATRON_CLASS = re.compile(r"megatron\.core(\.[a-z0-9_]+)+\.[A-Z][A-Za-z0-9]*")
"""Classes of Megatron-Core. One that is not in the list, or not in this release, is not looked up:
an object that does nothing stands for its values."""


def is_record_class(name: str) -> bool:
    """Whether records of objects may name this class."""
    return name in RECORD_CLASSES or MEGATRON_CLASS.fullmatch(name) is not None


TORCH_NAMES = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.serialization._get_layout",
    "torch.storage.UntypedStorage",
    "_codecs.encode",
}
"""Of what torch allows by itself: enough for tensors. ``bytearray`` and ``Tensor`` take memory by
a number in the file alone."""
EXTRA_STATE_CLASSES = {
    *(("builtins", name) for name in ("dict", "list", "tuple", "int", "float", "bool", "bytes")),
    ("builtins", "str"),
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "_load_from_bytes"),
    ("megatron.core.extensions.transformer_engine", "TEDelayedScaling"),
    ("megatron.core.safe_globals", "safe_load_from_bytes"),
}
"""What Transformer Engine pickles into an FP8 layer's ``_extra_state``, besides its recipes."""
RECIPES = "transformer_engine.common.recipe"
CLASS_NAME = re.compile(r"_?[A-Z][A-Za-z0-9]*")
"""A class of that module, and nothing that is reached through it: no ``os.system``."""


_MAX_PICKLE_BYTES: Final = 4 * 2**20
"""Of the pickle in a file of ``torch.save``, without the tensors' bytes: thirty thousand tensors.
Each byte can become an object of 64, and takes a microsecond."""
_OLD_PICKLES = 5
"""What files of before torch 1.6 begin with: two numbers, the machine, the object, its storages."""
_READ_TORCH = torch.load
"""As it is before anything replaces it."""


class UnsafeError(Exception):
    """A pickle that names what it has no business with, or is damaged."""


def read_saved(source: Path | IO[bytes], *, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote: tensors, plain values and the classes that are allowed.

    A stream has to be seekable, such as one record of a ``.distcp`` file.

    Raises:
        UnsafeError: it is damaged, or holds something else.
    """
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
        names = _check_container(stream)
        stream.seek(0)
    classes = {name for name in names if is_record_class(name)}
    if "numpy.dtype" in classes:  # makes one that is named nowhere: of numpy's random state
        classes.add("numpy.dtypes.UInt32DType")
    flags = {"mmap": True} if mmap else {}
    try:
        with _only(classes):
            return _READ_TORCH(source, map_location="cpu", weights_only=True, **flags)
    except Exception as error:  # a damaged file can end in any
        if isinstance(error, OSError) and refused_file(error):
            raise
        raise UnsafeError(_short(error)) from error


def read_metadata(path: Path, max_bytes: int) -> Metadata:
    """The pickle ``.metadata`` of torch.distributed.checkpoint, its fields not yet checked.

    Raises:
        InputError: it is missing, damaged, or holds anything but plain metadata.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: the checkpoint was not written completely")
    data = read_bounded(path, max_bytes)
    try:
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # whatever garbage makes of the classes' own methods
        raise InputError(f"{path} cannot be read ({_short(error)}): the file is damaged") from error
    if not isinstance(metadata, Metadata):
        raise InputError(
            f"{path} holds {named(type(metadata).__name__)}, not a checkpoint's Metadata"
        )
    return metadata


def check_extra_state(value: Any) -> None:
    """Check a module's ``_extra_state``: Transformer Engine unpickles the bytes in it.

    Raises:
        UnsafeError: it names something else than FP8 recipes and tensors.
    """
    if isinstance(value, io.BytesIO):
        if value.getbuffer().nbytes:
            read_saved(io.BytesIO(value.getvalue()))
    elif isinstance(value, torch.Tensor) and value.numel():
        if value.dtype != torch.uint8:
            raise UnsafeError(f"its state is of dtype {value.dtype}, not bytes")
        try:
            _ExtraStateUnpickler(io.BytesIO(value.contiguous().numpy().tobytes())).load()
        except Exception as error:
            raise UnsafeError(_short(error)) from error


def is_plain_tensor(
    value: Any, dtype: torch.dtype | None = None, shape: Sequence[int] | None = None
) -> bool:
    """Whether ``value`` is a tensor with bytes of its own for all of its elements.

    A file can describe one of any shape over few bytes, or over none, on the device ``meta``, and
    one whose values are its bytes with another sign.
    """
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_neg() or value.is_conj())
        and value.untyped_storage().nbytes() >= value.numel() * value.itemsize
        and dtype in (None, value.dtype)
        and (shape is None or tuple(value.shape) == tuple(shape))
    )


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles the plain data classes of torch.distributed.checkpoint, and nothing that acts."""

    def find_class(self, module: str, name: str) -> Any:
        if name in METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if _is_dtype(module, name):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's metadata")


class _Inert:
    """Stands for every class and function of an ``_extra_state``: nothing of it is called."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...


class _ExtraStateUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_recipe = module == RECIPES and CLASS_NAME.fullmatch(name)
        if is_recipe or _is_dtype(module, name) or (module, name) in EXTRA_STATE_CLASSES:
            return _Inert
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a module's state")


_LOCK = threading.RLock()


@contextmanager
def _only(names: set[str]) -> Iterator[None]:
    """While it lasts, torch's reader allows the classes ``names`` besides its own, and no others.

    What other libraries have registered is taken away meanwhile: it is their choice, for their
    files. One thread reads at a time.
    """
    classes = [_record_class(name) for name in sorted(names)]
    with _LOCK:
        before = torch.serialization.get_safe_globals()
        _allow(classes)
        try:
            yield
        finally:
            _allow(before)


def _allow(classes: list[Any]) -> None:
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(classes)


class StandIn:
    """Stands for a value whose class this release of Megatron-Core lacks: it does nothing.

    Releases add to the enums and dataclasses of their arguments. Nothing here reads those.
    """

    values: tuple[Any, ...] = ()  # of a dataclass, which is made without __init__

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.values}"


def _record_class(path: str) -> Any:
    """The class, as torch wants it: with the name that files give it where it has another now."""
    module, name = path.rsplit(".", 1)
    is_megatron = bool(MEGATRON_CLASS.fullmatch(path))
    found = None
    if path in RECORD_CLASSES:
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            if not is_megatron:
                raise
    if found is None:
        return type(name, (StandIn,), {}), path
    if is_megatron and issubclass(found, enum.Enum):
        return functools.partial(_member, found), path
    return found if f"{found.__module__}.{found.__qualname__}" == path else (found, path)


def _member(kind: type[enum.Enum], *values: Any) -> Any:
    """The member of an enum, or what stands for one that another release has."""
    try:
        return kind(*values)
    except ValueError:
        return type(kind.__name__, (StandIn,), {})(*values)


def _check_container(stream: IO[bytes]) -> set[str]:
    """Check that reading takes no more memory than the file has bytes; names that it uses.

    A record of torch's zip archive may be compressed a thousandfold, which ``torch.save`` never
    does, and some names make memory of a number alone.

    Raises:
        UnsafeError: it would, or is damaged.
    """
    stream.seek(0, io.SEEK_END)
    size = stream.tell()
    stream.seek(0)
    is_zip = stream.read(2) == b"PK"
    stream.seek(0)
    try:
        if not is_zip:  # before torch 1.6: torch's own reader compares its sizes
            data = io.BytesIO(stream.read(_MAX_PICKLE_BYTES))
            return set().union(*(_names(data) for _ in range(_OLD_PICKLES)))
        with zipfile.ZipFile(stream) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise UnsafeError("a record of it is compressed, which torch.save never does")
            if sum(record.file_size for record in records) > size:
                raise UnsafeError("its records are larger than the file")
            names: set[str] = set()
            for record in records:
                if record.filename.endswith("data.pkl"):
                    if record.file_size > _MAX_PICKLE_BYTES:
                        raise UnsafeError(
                            f"{record.filename} in it has {record.file_size:,} bytes, at most "
                            f"{_MAX_PICKLE_BYTES:,} are read"
                        )
                    record.CRC = None  # type: ignore[assignment]  # files may be without
                    names |= _names(io.BytesIO(archive.read(record)))
            return names
    except UnsafeError:
        raise
    except Exception as error:
        raise UnsafeError(_short(error)) from error


def _names(data: IO[bytes]) -> set[str]:
    """Names that the next pickle in ``data`` uses."""
    names = {
        str(argument).replace(" ", ".")
        for opcode, argument, _ in pickletools.genops(data)
        if opcode.name == "GLOBAL"
    }
    for name in sorted(names - TORCH_NAMES):
        module, _, last = name.rpartition(".")  # torch.bfloat16, torch.BFloat16Storage
        if not (
            is_record_class(name)
            or _is_dtype(module, last)
            or (module == "torch" and last.endswith("Storage"))
        ):
            raise UnsafeError(f"{name} has no place in a checkpoint")
    return names


def _is_dtype(module: str, name: str) -> bool:
    return module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)


def _short(error: BaseException) -> str:
    """The reason of an error, without what torch says around it on how to switch its guard off."""
    text = str(error).strip() or type(error).__name__
    reason = re.search(r"WeightsUnpickler error:\s*(.+?)(?:\. Please use|\n|$)", text)
    return (reason[1] if reason else text.splitlines()[0]).strip()[:300]

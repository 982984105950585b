"""The iteration in ``common.pt``, looked up without torch: the file is not unpickled, only read."""

import io
import pickletools
import zipfile
import zlib
from pathlib import Path

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_bounded

COMMON_FILE = "common.pt"
MAX_BYTES = 16 * 2**20
"""Of ``common.pt``: plain values that all ranks have the same of."""
_KEY = "iteration"
_OPENS, _CLOSES = ("MARK",), ("SETITEMS", "APPENDS", "TUPLE", "LIST", "DICT", "POP_MARK")
_DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
"""What zipfile raises for damaged bytes; RuntimeError: as if encrypted, or of a later version."""
_NOTES = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE")
"""Opcodes that note a value for later, and change nothing."""


def confirms(folder: Path, iteration: int) -> bool:
    """Whether ``common.pt`` of a folder says that it holds this iteration.

    False also where it does not say so in the form of a run of this project:
    :func:`~megatron_ultralong.checkpoint.formats.torch_dist.check_iteration` reads all forms, and
    has the message.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_bounded(folder / COMMON_FILE, MAX_BYTES))) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                return _value(file.read(MAX_BYTES)) == iteration
    except (InputError, OSError, ValueError, StopIteration, *_DAMAGES):
        return False


def _value(data: bytes) -> object:
    """What stands behind the key in the outermost dict of a pickle of ``torch.save``."""
    depth, is_next = 0, False
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _NOTES:
            continue
        if is_next:
            return argument
        depth += (opcode.name in _OPENS) - (opcode.name in _CLOSES)
        is_next = depth == 1 and argument == _KEY
    return None

"""Where the tensors stand in a file of ``torch.save``."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

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

"""What a file is by its first bytes: formats that are no text, whatever their names say."""

import codecs
import itertools
import re
from typing import NamedTuple

from megatron_ultralong.program import pointers


class Signature(NamedTuple):
    """First bytes by which a format is known."""

    magic: bytes
    name: str
    """The format: ``is NAME``."""
    way_out: str
    """What to do with such a file."""
    offset: int = 0
    """Where it stands."""
    is_text: bool = False
    """The format is text, so that nothing else tells it from other texts."""

    def matches(self, head: bytes) -> bool:
        """Whether a file that begins so is of this format; the text ``GGUF is new`` is not."""
        if not head.startswith(self.magic, self.offset):
            return False
        is_word = self.magic.isascii() and self.magic.decode().isprintable()
        return self.is_text or not is_word or not _is_plain(head)


def _is_plain(data: bytes) -> bool:
    """Whether it is text in UTF-8, except for a character that is cut at its end."""
    if b"\0" in data:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


_EXTRACT = "extract it, and give the folder with its files"
_NO_DATA = "leave it out"
_RENAME = "give it the suffix of its compression, {0}, as in data.jsonl{0}"
_DECOMPRESS = "decompress it, or write it again with gzip, bzip2, xz or zstd"
_CONVERT = "write its texts as JSONL or parquet"
_TABLE = "write it as parquet, with pyarrow or `datasets`"
_WEIGHTS = "it holds weights or arrays, not documents: leave it out"
_PAPER = "extract its text first"
_ENCODING = "convert it with `iconv -f {0} -t UTF-8`"

POINTERS = tuple(Signature(*pointer, is_text=True) for pointer in pointers.POINTERS)

SIGNATURES = (
    Signature(codecs.BOM_UTF32_LE, "UTF-32", _ENCODING.format("UTF-32")),  # begins as UTF-16's
    Signature(codecs.BOM_UTF32_BE, "UTF-32", _ENCODING.format("UTF-32")),
    Signature(codecs.BOM_UTF16_LE, "UTF-16", _ENCODING.format("UTF-16")),
    Signature(codecs.BOM_UTF16_BE, "UTF-16", _ENCODING.format("UTF-16")),
    Signature(b"\x1f\x8b", "gzip", _RENAME.format(".gz")),
    Signature(b"BZh", "bzip2", _RENAME.format(".bz2")),
    Signature(b"\xfd7zXZ\0", "xz", _RENAME.format(".xz")),
    Signature(b"\x28\xb5\x2f\xfd", "zstd", _RENAME.format(".zst")),
    Signature(b"\x04\x22\x4d\x18", "lz4", _DECOMPRESS),
    Signature(b"\x02\x21\x4c\x18", "lz4", _DECOMPRESS),
    Signature(b"\xff\x06\0\0sNaPpY", "snappy", _DECOMPRESS),
    Signature(b"\x1f\x9d", "compress (.Z)", _DECOMPRESS),
    Signature(b"LZIP", "lzip", _DECOMPRESS),
    Signature(b"\x89LZO\0", "lzop", _DECOMPRESS),
    Signature(b"\x5d\0\0", "lzma", _DECOMPRESS),
    Signature(b"PK\x03\x04", "a zip archive (or a format made of one)", _EXTRACT),
    Signature(b"PK\x05\x06", "an empty zip archive", _EXTRACT),
    Signature(b"PK\x07\x08", "a part of a zip archive", _EXTRACT),
    Signature(b"7z\xbc\xaf\x27\x1c", "a 7z archive", _EXTRACT),
    Signature(b"Rar!\x1a\x07", "a rar archive", _EXTRACT),
    Signature(b"ustar", "a tar archive", _EXTRACT, 257),
    Signature(b"!<arch>\n", "an ar archive", _EXTRACT),
    Signature(b"070701", "a cpio archive", _EXTRACT),
    Signature(b"070707", "a cpio archive", _EXTRACT),
    Signature(b"MSCF\0\0\0\0", "a cab archive", _EXTRACT),
    Signature(b"xar!", "a xar archive", _EXTRACT),
    Signature(b"PAR1", "parquet", "give it the suffix .parquet, and no compression around it"),
    Signature(b"PARE", "encrypted parquet", "decrypt it first"),
    Signature(b"ARROW1", "an Arrow or Feather file", _TABLE),
    Signature(b"FEA1", "a Feather file", _TABLE),
    Signature(b"\xff\xff\xff\xff", "an Arrow stream", _TABLE),
    Signature(b"ORC", "ORC", _TABLE),
    Signature(b"Obj\x01", "Avro", _TABLE),
    Signature(b"SQLite format 3\0", "a SQLite database", _CONVERT),
    Signature(b"DUCK", "a DuckDB database", _CONVERT, 8),
    Signature(b"\x89HDF\r\n\x1a\n", "HDF5", _CONVERT),
    Signature(b"CDF\x01", "NetCDF", _CONVERT),
    Signature(b"CDF\x02", "NetCDF", _CONVERT),
    Signature(b"\x93NUMPY", "a NumPy array", _WEIGHTS),
    Signature(b"MATLAB 5.0", "a MATLAB file", _WEIGHTS),
    Signature(b"MMIDIDX\0\0", "an index of Megatron's", "give the documents that it was made of"),
    Signature(b"GGUF", "GGUF", _WEIGHTS),
    Signature(b"ggml", "GGML", _WEIGHTS),
    Signature(b"%PDF-", "PDF", _PAPER, is_text=True),
    Signature(b"{\\rtf", "RTF", _PAPER, is_text=True),
    Signature(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document", _PAPER),
    Signature(b"AT&TFORM", "DjVu", _PAPER),
    Signature(b"\x89PNG", "a PNG image", _NO_DATA),
    Signature(b"\xff\xd8\xff", "a JPEG image", _NO_DATA),
    Signature(b"GIF87a", "a GIF image", _NO_DATA),
    Signature(b"GIF89a", "a GIF image", _NO_DATA),
    Signature(b"II*\0", "a TIFF image", _NO_DATA),
    Signature(b"MM\0*", "a TIFF image", _NO_DATA),
    Signature(b"8BPS", "a Photoshop image", _NO_DATA),
    Signature(b"WEBP", "a WebP image", _NO_DATA, 8),
    Signature(b"WAVE", "WAV sound", _NO_DATA, 8),
    Signature(b"AVI ", "an AVI film", _NO_DATA, 8),
    Signature(b"ftyp", "MP4", _NO_DATA, 4),
    Signature(b"\x1aE\xdf\xa3", "a Matroska film", _NO_DATA),
    Signature(b"OggS", "Ogg", _NO_DATA),
    Signature(b"fLaC", "FLAC sound", _NO_DATA),
    Signature(b"ID3", "MP3 sound", _NO_DATA),
    Signature(b"\x00\x01\x00\x00", "a font or an icon", _NO_DATA),
    Signature(b"wOFF", "a font", _NO_DATA),
    Signature(b"wOF2", "a font", _NO_DATA),
    Signature(b"\x7fELF", "an ELF program", _NO_DATA),
    Signature(b"\xcf\xfa\xed\xfe", "a Mach-O program", _NO_DATA),
    Signature(b"\xce\xfa\xed\xfe", "a Mach-O program", _NO_DATA),
    Signature(b"\xca\xfe\xba\xbe", "a Java class or a Mach-O program", _NO_DATA),
    Signature(b"\0asm", "WebAssembly", _NO_DATA),
    Signature(b"BC\xc0\xde", "LLVM bitcode", _NO_DATA),
    Signature(b"PACK\0\0", "a Git pack", "clone the repository, and give its files"),
    Signature(b"DIRC\0\0", "a Git index", _NO_DATA),
    *POINTERS,
)
"""Formats in which texts are compressed, packed, in other bytes, or not there at all."""

_PATTERNS = (
    (re.compile(rb"\x80[\x02-\x05](?:[\x95}\](cX\x8c\x8a]|$)"), "a Python pickle", _CONVERT),
    (re.compile(rb".{5}\0\0\0\{\s*\"", re.S), "safetensors", _WEIGHTS),
    *(
        (re.compile(pattern), f"{name} without a mark", _ENCODING.format(name))
        for pattern, name in (
            (rb"[^\0]\0\0\0[^\0]\0\0\0", "UTF-32LE"),
            (rb"\0\0\0[^\0]\0\0\0[^\0]", "UTF-32BE"),
            (rb"[^\0]\0[^\0]\0[^\0]\0", "UTF-16LE"),
            (rb"\0[^\0]\0[^\0]\0[^\0]", "UTF-16BE"),
        )
    ),
)
"""The same of formats without a mark of their own."""


def signature_problem(head: bytes) -> str:
    """What a file is that is not a text in UTF-8, and the fix; empty where nothing is known.

    ``head`` are its first bytes, decompressed; some hundreds are enough.
    """
    marked = ((one.name, one.way_out) for one in SIGNATURES if one.matches(head))
    others = ((name, way_out) for pattern, name, way_out in _PATTERNS if pattern.match(head))
    for name, way_out in itertools.chain(marked, others):
        return f"is {name} by its first bytes: {way_out}"
    return ""

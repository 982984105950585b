"""Files of documents, and what is found and read of them."""

import json
from pathlib import Path

import pyarrow as pa

from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.read.reading import DocumentReader
from megatron_ultralong.data.read.sources import FoundFiles, Source, find_files

ROWS = [{"text": f'a "quoted" text {number}\n'} for number in range(5)]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
PROSE = "A text of several lines.\nIt says little.\n"


def texts_of(path: Path | str, text_key: str = "text", **options) -> list[str]:
    source, read = Source("s", str(path), text_key), ReadOptions(**options)
    return [d.text for d in DocumentReader(source, read, find_files(source, read).files)]


def found(path: Path | str, *suffixes: str) -> FoundFiles:
    return find_files(Source("s", str(path)), ReadOptions(suffixes=suffixes))


def counts(files: FoundFiles) -> dict[str, tuple[int, str]]:
    return {line.suffix: (line.num_files, line.read_as or line.reason) for line in files.counts}


def table() -> pa.Table:
    return pa.Table.from_pylist(ROWS)

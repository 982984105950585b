"""Prepare a corpus: documents -> sampled by length, tokenised, joined, packed to equal rows.

``ultralong prepare --source code='/data/*.jsonl' --tokenizer Llama-3.1-8B-Instruct --output rows
--seq-length 1048576`` writes ``train`` and ``valid`` (``.bin`` and ``.idx``), ``tokenizer/`` and
``manifest.json``. Equal input, options and versions give equal bytes.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import tyro

import megatron_ultralong
from megatron_ultralong.data import manifest as manifests
from megatron_ultralong.data.indexed import IndexedWriter, token_dtype
from megatron_ultralong.data.manifest import BinSummary, Manifest, SplitSummary
from megatron_ultralong.data.packing import RowPacker, without_repeats_in_a_row
from megatron_ultralong.data.reading import ReadOptions, parse_source
from megatron_ultralong.data.sampling import (
    LengthSampling,
    document_weights,
    mixed_order,
    num_copies,
)
from megatron_ultralong.data.store import DocumentStore, tokenise_sources
from megatron_ultralong.data.summary import print_summary
from megatron_ultralong.data.tokenising import (
    HuggingFaceTokenizer,
    copy_tokenizer,
    separator_ids,
)
from megatron_ultralong.documents import document_split
from megatron_ultralong.errors import InputError
from megatron_ultralong.progress import ProgressBar, progress

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PrepareConfig:
    """Documents to packed rows of exactly seq_length tokens, in Megatron's format."""

    source: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=PATH")
    ]
    """Documents: a file, a folder or a quoted glob pattern, under a name. JSONL, parquet, any other
    file as one document; .gz and .zst too. Repeatable."""

    tokenizer: Path
    """Folder with a tokenizer.json, or that file."""

    output: Path
    """Folder to write; it must not exist, or be empty."""

    seq_length: int
    """Tokens of a row."""

    separator: str = "<s>"
    """Text between documents, encoded alone; eos: the tokenizer's own; none: nothing."""

    valid_fraction: float = 0.05
    """Expected share of the documents held out in valid, each at most once; 0: no valid."""

    seed: int = 1234
    """Seed of the split, the sample and the order, each a hash of the document."""

    max_tokens: int | None = None
    """Expected tokens of the sample at most; every source keeps its share."""

    sampling: Annotated[LengthSampling, tyro.conf.arg(name="")] = field(
        default_factory=LengthSampling
    )
    """Weights by length."""

    reading: Annotated[ReadOptions, tyro.conf.arg(name="")] = field(default_factory=ReadOptions)
    """How the files are read."""

    def __post_init__(self) -> None:
        if self.seq_length < 2:
            raise InputError(f"seq_length ({self.seq_length}) must be at least 2: a token, a label")
        if not 0 <= self.valid_fraction < 1:
            raise InputError(
                f"valid_fraction ({self.valid_fraction}) must be at least 0 and under 1: the rest "
                "is the training split"
            )
        if self.max_tokens is not None and self.max_tokens < self.seq_length:
            raise InputError(
                f"max_tokens ({self.max_tokens}) must be at least seq_length ({self.seq_length}), "
                "one row; raise the first or shorten the second"
            )


def prepare(config: PrepareConfig) -> Manifest:
    """Prepare the rows, print a summary table, and return the manifest that was written.

    Raises:
        InputError: for documents that cannot be read, a source without text, a split of less than
            one row, an output folder that is not empty, a full disk. Nothing is left behind.
    """
    sources = [parse_source(argument) for argument in config.source]
    if not sources:
        raise InputError("no --source: give at least one NAME=PATH")
    tokenizer = HuggingFaceTokenizer(config.tokenizer)
    separator = separator_ids(tokenizer, config.separator)
    with _folder_written_aside(config.output) as folder:
        store_prefix = folder / "documents"
        store = tokenise_sources(sources, config.reading, tokenizer, separator, store_prefix)
        weights = document_weights(
            store.lengths, store.sources, store.source_names, config.sampling, config.max_tokens
        )
        orders = _split_orders(config, store, weights, len(separator))
        packed = np.concatenate([order for order, _ in orders.values()])
        splits: dict[str, SplitSummary] = {}
        num_tokens = int(store.lengths[packed].sum()) + packed.size * len(separator)
        with progress("Packing", num_tokens / 1e6, "Mtokens") as bar:
            for split, (order, dropped) in orders.items():
                rows = RowPacker(store.documents(order), separator, config.seq_length)
                splits[split] = _write_split(
                    folder / split, rows, tokenizer.vocab_size, order.size, dropped, bar
                )
        copy_tokenizer(tokenizer, folder / manifests.TOKENIZER_FOLDER)
        manifest = Manifest(
            format_version=manifests.FORMAT_VERSION,
            seq_length=config.seq_length,
            separator=config.separator,
            separator_ids=separator,
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            seed=config.seed,
            valid_fraction=config.valid_fraction,
            max_tokens=config.max_tokens,
            length_sampling=asdict(config.sampling),
            num_documents_with_separator=store.num_with_separator,
            inputs=store.inputs,
            bins=_bin_summaries(store, config.sampling, weights, packed),
            splits=splits,
            versions=_versions(),
        )
        manifest.save(folder)
        for suffix in ("bin", "idx"):
            Path(f"{store_prefix}.{suffix}").unlink()
    print_summary(manifest, config.output)
    return manifest


def _split_orders(
    config: PrepareConfig, store: DocumentStore, weights: Float64Array, num_separator_ids: int
) -> dict[str, tuple[Int64Array, int]]:
    """Documents of every split (by index, in the order of packing) and the repeats dropped."""
    in_valid = np.asarray(
        [document_split(i, config.valid_fraction, config.seed) == "valid" for i in store.ids]
    )
    # a held-out document tells nothing more the second time
    copies = num_copies(np.where(in_valid, np.minimum(weights, 1), weights), store.ids, config.seed)
    lengths = store.lengths + num_separator_ids
    members = {"train": ~in_valid, "valid": in_valid}
    if config.valid_fraction == 0:
        del members["valid"]
    orders: dict[str, tuple[Int64Array, int]] = {}
    for split, chosen in members.items():
        mixed = mixed_order(np.where(chosen, copies, 0), store.ids, config.seed)
        order = without_repeats_in_a_row(mixed, lengths, config.seq_length)
        _require_one_row(config, split, int(lengths[order].sum()))
        orders[split] = order, mixed.size - order.size
    return orders


def _write_split(
    prefix: Path,
    rows: RowPacker,
    vocab_size: int,
    num_documents: int,
    num_repeats_dropped: int,
    bar: ProgressBar,
) -> SplitSummary:
    """Pack one split."""
    with IndexedWriter(prefix, token_dtype(vocab_size)) as writer:
        for row in rows:
            writer.add(row)
            bar.advance(row.size / 1e6)
    bar.advance(rows.num_dropped_tokens / 1e6)
    return SplitSummary(
        num_documents=num_documents,
        num_repeats_dropped=num_repeats_dropped,
        num_rows=rows.num_rows,
        num_tokens=rows.num_rows * rows.seq_length,
        num_dropped_tokens=rows.num_dropped_tokens,
    )


def _require_one_row(config: PrepareConfig, split: str, num_tokens: int) -> None:
    if num_tokens < config.seq_length:
        fraction = f"--valid-fraction ({config.valid_fraction})"
        way_out = f"lower {fraction}" if split == "train" else f"raise {fraction}, set it to 0"
        raise InputError(
            f"split {split!r} has {num_tokens} tokens after sampling, under one row of seq_length "
            f"({config.seq_length}): {way_out}, add documents, shorten --seq-length, or sample "
            f"less strictly (--length-sampling {config.sampling.name}, short documents under "
            f"{config.sampling.short_length} tokens)"
        )


def _bin_summaries(
    store: DocumentStore, sampling: LengthSampling, weights: Float64Array, order: Int64Array
) -> list[BinSummary]:
    """Counts by source and length bin, before and after sampling."""
    lengths = store.lengths
    names = sampling.bin_names()
    cells = store.sources * len(names) + sampling.bins(lengths)
    num_cells = len(store.source_names) * len(names)
    count = np.bincount(cells, minlength=num_cells)
    tokens = np.bincount(cells, lengths, num_cells)
    sampled = np.bincount(cells[order], minlength=num_cells)
    sampled_tokens = np.bincount(cells[order], lengths[order], num_cells)
    weight = np.zeros(num_cells)
    weight[cells] = weights  # one value in each cell
    return [
        BinSummary(
            source=store.source_names[cell // len(names)],
            length_bin=names[cell % len(names)],
            weight=float(weight[cell]),
            num_documents=int(count[cell]),
            num_tokens=int(tokens[cell]),
            num_documents_sampled=int(sampled[cell]),
            num_tokens_sampled=int(sampled_tokens[cell]),
        )
        for cell in range(num_cells)
    ]


def _versions() -> dict[str, str]:
    return {
        "megatron_ultralong": megatron_ultralong.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in ("numpy", "pyarrow", "tokenizers")},
    }


@contextlib.contextmanager
def _folder_written_aside(output: Path) -> Iterator[Path]:
    """A new folder beside ``output`` that takes its name when the block ends without error."""
    _require_empty(output)
    output = output.absolute()
    aside = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        yield aside
        _require_empty(output)  # another run may have finished meanwhile
        os.replace(aside, output)
    except OSError as error:
        # of the files that are read, all errors are InputError already
        raise InputError(
            f"cannot write {output} ({error.strerror}: {error.filename}); make room on the disk, "
            "or give another --output"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _require_empty(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        what = f"has {len(list(output.iterdir()))} entries" if output.is_dir() else "is a file"
        raise InputError(
            f"--output {output} {what}: nothing is overwritten; give a new folder or empty this one"
        )

"""Prepare a corpus: documents -> sampled by length, tokenised, joined, packed to equal rows.

``ultralong prepare --source code='/data/*.jsonl' --tokenizer Llama-3.1-8B-Instruct --output rows
--seq-length 1048576`` writes ``train`` and ``valid`` (``.bin`` and ``.idx``, with the boundaries of
the documents beside them), ``tokenizer/`` and ``manifest.json``. Equal input, options and versions
give equal bytes, with any number of workers, and after any number of interruptions.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.pack.packing import RowPlan, not_splittable, plan_rows
from megatron_ultralong.data.pack.sampling import mixed_order
from megatron_ultralong.data.prepare import report
from megatron_ultralong.data.prepare.selection import Selection, select_documents, source_shares
from megatron_ultralong.data.prepare.shard_key import PACKAGES, in_words, shard_key
from megatron_ultralong.data.read.reading import DocumentReader
from megatron_ultralong.data.read.sources import (
    FoundFiles,
    Source,
    check_names,
    find_files,
    parse_sources,
    warn_of_output,
    with_text_keys,
)
from megatron_ultralong.data.rows import manifest as manifests
from megatron_ultralong.data.rows.indexed import token_dtype
from megatron_ultralong.data.rows.manifest import Manifest, load_manifest
from megatron_ultralong.data.store.documents import DocumentStore, RowWriter, merge_shards
from megatron_ultralong.data.store.shards import (
    SHARD_BYTES,
    Shard,
    ShardJob,
    WorkerLostError,
    plan_shards,
    tokenise_shards,
)
from megatron_ultralong.data.tokenize import engines, tokenising
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer, copy_tokenizer
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.output import OutputFolder, check_output, output_folder
from megatron_ultralong.program.progress import progress
from megatron_ultralong.program.quantity import few_tokens


class _Plan(NamedTuple):
    """What is tokenised, and by what."""

    found: list[FoundFiles]
    shards: list[Shard]
    chosen: engines.ChosenTokenizer
    separator: list[int]


def prepare(config: PrepareConfig) -> Manifest:
    """Prepare the rows, print a summary table, and return the manifest that was written.

    A run that was killed continues from its finished shards when the same command is given again.

    Raises:
        InputError: for documents that cannot be read, a source without text, a split of less than
            one row, an output folder that is not empty or that another run writes, a full disk.
            Nothing is left behind, unless many documents were tokenised already.
    """
    if config.inspect and (config.output / manifests.FILE_NAME).is_file():
        manifest = load_manifest(config.output)
        tokenizer = engines.open_reference(config.output / manifests.TOKENIZER_FOLDER)
        report.inspect_rows(config.output, manifest, tokenizer)
        return manifest
    config.check()
    config = dataclasses.replace(config, sampling=config.sampling.for_rows(config.seq_length))
    sources = with_text_keys(parse_sources(config.source), config.text_key)
    check_output(config.output)
    warn_of_output(sources, config.output)
    plan = _plan(config, sources)
    tokenizer = plan.chosen.tokenizer
    if doubt := few_tokens(config.seq_length, _positions(tokenizer.file.parent)):
        _say(doubt)
    key = shard_key(config, plan.found, plan.shards, tokenizer, plan.separator)
    words = functools.partial(in_words, tokenizer)
    with output_folder(config.output, "prepare", key, words=words) as work:
        plan, store = _tokenise(config, plan, work)
        work.result = work.new_folder("rows")
        try:
            manifest = _write_rows(config, plan, store, work.result)
        except InputError as error:
            files = [file for found in store.inputs for file in found.files]
            if sum(file.num_bytes for file in files) <= SHARD_BYTES:
                raise  # made again in seconds
            work.keep = True
            raise InputError(
                f"{error}. The tokenized shards stay in {work.path}: other options of sampling and "
                "packing continue from there; remove it if you give up"
            ) from error
    report.print_summary(manifest, config.output)
    for share in manifest.shares:
        if share.warning:
            _say(f"warning: {share.warning}")
    if config.inspect:
        report.inspect_rows(config.output, manifest, plan.chosen.tokenizer)
    return manifest


def _positions(folder: Path) -> int:
    """Those of the model whose tokenizer's folder it is; 0: it does not say."""
    try:
        positions = tokenising.side_file(folder, "config.json").get("max_position_embeddings")
    except InputError as error:  # it is not needed here
        _say(f"warning: {error}")
        return 0
    return positions if isinstance(positions, int) else 0


def _plan(config: PrepareConfig, sources: tuple[Source, ...]) -> _Plan:
    chosen = engines.choose_tokenizer(config.tokenizer, config.tokenizer_engine)
    separator = tokenising.separator_ids(chosen.tokenizer, config.separator)
    if lost := engines.lost_letters(chosen.tokenizer):
        _say(lost)
    found = [find_files(source, config.reading) for source in sources]
    check_names([part for its in found for part in its.files])
    for its in found:
        DocumentReader(its.source, config.reading, its.files).check_first_records()
    shards = plan_shards(found)
    if config.sampling.name != "none":
        short, _, long = config.sampling.bin_names()
        _say(
            f"sampling: documents of {short} tokens are short, of {long} long in rows of "
            f"{config.seq_length:,} (--short-length, --long-length, --length-sampling none)"
        )
    if note := not_splittable(config.seq_length):
        _say(note)
    return _Plan(found, shards, chosen, separator)


def _tokenise(
    config: PrepareConfig, plan: _Plan, work: OutputFolder
) -> tuple[_Plan, DocumentStore]:
    """Every document of the sources, by the fast engine or, where it fails, by the reference."""
    work.go_on(len(list(work.path.glob("shards-*/shard-?????"))), "shards")
    work.has_parts = True
    try:
        chosen, folder = engines.tokenise_by(
            plan.chosen,
            config.tokenizer_engine,
            lambda found: _tokenise_with(config, plan, found, work),
        )
    except WorkerLostError:
        work.keep = True
        raise
    if chosen.reason:
        _say(f"documents were tokenized by {chosen.tokenizer.engine}: {chosen.reason}")
    dtype, is_dropped = token_dtype(chosen.tokenizer.vocab_size), config.separator_in_text == "drop"
    store = merge_shards(plan.shards, plan.found, folder, dtype, drop_separators=is_dropped)
    return plan._replace(chosen=chosen), store


def _tokenise_with(
    config: PrepareConfig, plan: _Plan, tokenizer: DocumentTokenizer, work: OutputFolder
) -> Path:
    folder = work.path / f"shards-{tokenizer.engine}"  # those of two engines are never mixed
    folder.mkdir(exist_ok=True)
    job = ShardJob(
        sources=tuple(found.source for found in plan.found),
        options=dataclasses.replace(
            config.reading,
            max_document_bytes=config.reading.max_document_bytes or tokenizer.max_document_bytes,
        ),
        tokenizer_path=config.tokenizer,
        engine="gigatoken" if tokenizer.engine == "gigatoken" else "reference",
        separator_ids=tuple(plan.separator),
        split_separators=config.separator_in_text == "split",
        folder=folder,
    )
    num_bytes = sum(shard.num_bytes for shard in plan.shards)
    before = sum(shard.num_bytes for shard in plan.shards if job.is_done(shard))
    with progress("Tokenizing", num_bytes, "B", before=before) as bar:
        tokenise_shards(plan.shards, job, tokenizer, config.workers, bar.advance)
    return folder


def _write_rows(config: PrepareConfig, plan: _Plan, store: DocumentStore, folder: Path) -> Manifest:
    """Everything that the output holds, into ``folder``."""
    (tokenizer, reason), separator = plan.chosen, plan.separator
    selection = select_documents(config, store)
    plans = _plans(config, store, selection, len(separator))
    shares = source_shares(config, store, selection, plans["train"])
    writer = RowWriter(store, separator, config.seq_length, tokenizer.vocab_size)
    splits = writer.write(folder, plans)
    copy_tokenizer(tokenizer, folder / manifests.TOKENIZER_FOLDER)
    packed = np.asarray(plans["train"].kept, dtype=np.int64)
    manifest = Manifest(
        format_version=manifests.FORMAT_VERSION,
        seq_length=config.seq_length,
        separator=config.separator,
        separator_ids=separator,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_engine=tokenizer.engine,
        tokenizer_engine_reason=reason,
        vocab_size=tokenizer.vocab_size,
        seed=config.seed,
        valid_fraction=config.valid_fraction,
        test_fraction=config.test_fraction,
        packing=config.packing,
        max_tokens=config.max_tokens,
        length_sampling=dataclasses.asdict(config.sampling),
        separator_in_text=config.separator_in_text,
        num_documents_with_separator=store.num_with_separator,
        inputs=store.inputs,
        bins=report.bin_summaries(store, config.sampling, selection.weights, packed),
        shares=shares,
        lengths=report.length_counts(store, packed),
        splits=splits,
        versions=engines.versions(*PACKAGES, tokenizer.engine),
    )
    manifests.write_manifest(folder / manifests.FILE_NAME, manifest)
    return manifest


def _plans(
    config: PrepareConfig, store: DocumentStore, selection: Selection, separator_width: int
) -> dict[str, RowPlan]:
    """Rows of every split."""
    fractions = {"train": 1.0, "valid": config.valid_fraction, "test": config.test_fraction}
    lengths = store.lengths + separator_width
    plans: dict[str, RowPlan] = {}
    for name, fraction in fractions.items():
        if fraction:
            copies = np.where(selection.splits == name, selection.copies, 0)
            order = mixed_order(copies, store.ids, config.seed)
            plan = plan_rows(order, lengths, separator_width, config.seq_length, config.packing)
            if not plan.rows:
                kept = int(lengths[plan.kept].sum()) if plan.kept else 0
                raise _under_one_row(
                    config, name, kept, int(lengths[selection.splits == name].sum())
                )
            plans[name] = plan
    return plans


def _under_one_row(
    config: PrepareConfig, split: str, num_tokens: int, num_before: int
) -> InputError:
    """Of a split without a row: its tokens after sampling and before, and what gives it more."""
    is_train, ways = split == "train", []
    if num_before >= config.seq_length:  # sampling has taken the row
        name, (short, _) = config.sampling.name, config.sampling.edges
        if is_train and config.max_tokens is not None:
            ways.append(f"raise --max-tokens ({config.max_tokens})")
        if name != "none":
            ways.append(
                f"sample less strictly with --length-sampling none (now {name}: few documents "
                f"under {short} tokens)"
            )
    now = {"valid": config.valid_fraction, "test": config.test_fraction}
    if is_train:
        ways += [f"lower --{name}-fraction ({value})" for name, value in now.items() if value]
    else:
        needed = 1.0
        if num_before:  # half as much again, for documents are drawn by their texts
            needed = 1.5 * now[split] * config.seq_length / num_before
        some = f" to about {needed:.2g}" if now[split] < needed < 0.5 else ""
        ways += [f"raise --{split}-fraction ({now[split]}){some}", "set it to 0"]
    ways += ["add documents", "shorten --seq-length"]
    return InputError(
        f"split {split!r} has {num_tokens} tokens after sampling ({num_before} before), under one "
        f"row of seq_length ({config.seq_length}): {', '.join(ways[:-1])}, or {ways[-1]}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201

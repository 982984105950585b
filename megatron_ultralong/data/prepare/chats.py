"""Prepare conversations: read, rendered, tokenised, packed whole to equal rows with their targets.

``ultralong prepare chat --source tulu='tulu/*.parquet' --tokenizer Llama-3.1-8B-Instruct --output
chats`` writes ``train`` and ``valid`` (``.bin`` and ``.idx``; beside them ``.boundaries``, the
conversations of every row, and ``.targets``, the tokens to be learnt), ``tokenizer/``,
``lengths.png`` and ``chat_manifest.json``. Equal input and options give equal bytes.
"""

import contextlib
import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.pack import packing, sampling
from megatron_ultralong.data.pack.packing import Int64Array, RowPlan
from megatron_ultralong.data.prepare import chat_report, chat_store
from megatron_ultralong.data.read.sources import Source, parse_sources, warn_of_output
from megatron_ultralong.data.rows import indexed, packed, stored
from megatron_ultralong.data.rows import manifest as manifests
from megatron_ultralong.data.store.documents import RowWriter
from megatron_ultralong.data.tokenize import engines, template_comparison, trained_template
from megatron_ultralong.data.tokenize.chat_template import TEMPLATES, ChatTemplate, resolved_date
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate, folder_template
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer, copy_tokenizer
from megatron_ultralong.program import ending, output
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.sequence.documents import document_split, split_place


def prepare_chat(config: PrepareChatConfig) -> manifests.ChatManifest:
    """Prepare the rows, print tables, and return the manifest that was written.

    Raises:
        InputError: for conversations that cannot be trained on, a tokenizer that does not fit the
            template, a split without any, an output folder that is not empty, a full disk.
    """
    config.check()
    if note := packing.not_splittable(config.seq_length):
        ending.tell(note)
    date = resolved_date(config.date_string, datetime.date.today())
    config = dataclasses.replace(config, date_string=date)
    sources = parse_sources(config.source)
    warn_of_output(sources, config.output)
    with output.output_folder(config.output, "prepare chat") as work:
        store, facts = _tokenise(config, sources, work)
        work.result = work.new_folder("rows")
        manifest = _write(config, store, facts, work.result)
        chat_report.draw_chat_lengths(work.result, manifest)
    chat_report.print_chat_summary(manifest, config.output, store.tokenizer)
    return manifest


def _tokenise(
    config: PrepareChatConfig, sources: tuple[Source, ...], work: output.OutputFolder
) -> tuple[chat_store.ChatStore, dict[str, Any]]:
    """Every conversation, and what the manifest says of template and tokenizer."""
    chosen = engines.choose_tokenizer(config.tokenizer, config.tokenizer_engine)
    if lost := engines.lost_letters(chosen.tokenizer):
        ending.tell(lost)
    with _open_template(config, chosen.tokenizer) as (template, folder):
        folder_date = "" if folder is None else folder.own_date(config.date_string)
        (_, reason), store = engines.tokenise_by(
            chosen,
            config.tokenizer_engine,
            lambda found: chat_store.tokenise_chats(
                config, template, sources, found, work.new_folder("tokens"), folder
            ),
        )
        return store, {
            "folder_template_checked": folder is not None,
            "folder_template_date": folder_date,
            "learnt": "marked" if store.is_marked else "assistant",
            "tokenizer_engine_reason": reason,
        }


@contextlib.contextmanager
def _open_template(
    config: PrepareChatConfig, tokenizer: DocumentTokenizer
) -> Iterator[tuple[ChatTemplate, FolderTemplate | None]]:
    """The chosen template, and the one in the tokenizer's folder, which writes the same; None:
    there is none.
    """
    template, place = TEMPLATES[config.chat_template], tokenizer.file.parent
    text = folder_template(place) if config.check_template else None
    if text is None:
        yield template, None
        return
    folder = FolderTemplate(text, place)
    with folder:
        template = template_comparison.fitted_template(template, folder, config.date_string)
        template_comparison.check_template(template, folder, config.date_string, tokenizer)
        yield template, folder


def _write(
    config: PrepareChatConfig, store: chat_store.ChatStore, facts: Mapping[str, Any], folder: Path
) -> manifests.ChatManifest:
    documents, tokenizer = store.documents, store.tokenizer
    names = ("train", "valid") if config.valid_fraction else ("train",)
    splits = np.array(
        [document_split(i, config.valid_fraction, config.seed) for i in documents.ids]
    )
    writer = RowWriter(documents, (), config.seq_length, tokenizer.vocab_size)
    plans: dict[str, RowPlan] = {}
    for name in names:
        order = sampling.mixed_order((splits == name).astype(np.int64), documents.ids, config.seed)
        if not order.size:
            raise _empty_split(config, name, store)
        plans[name] = _plan(config, order, documents.lengths)
    found = {
        name: manifests.ChatSplit(
            num_examples=written.num_documents,
            num_rows=written.num_rows,
            num_tokens=written.num_tokens - written.num_padding_tokens,
            num_target_tokens=_write_targets(folder / name, plans[name], store),
            num_padding_tokens=written.num_padding_tokens,
            longest=int(documents.lengths[plans[name].kept].max()),
            checksums=packed.checksums_of(folder / name, ["boundaries", "targets"]),
        )
        for name, written in writer.write(folder, plans).items()
    }
    copy_tokenizer(tokenizer, folder / manifests.TOKENIZER_FOLDER)
    manifest = manifests.ChatManifest(
        format_version=manifests.CHAT_FORMAT_VERSION,
        seq_length=config.seq_length,
        max_length=config.max_length,
        too_long=config.too_long,
        packing=config.packing,
        chat_template=config.chat_template,
        date_string=config.date_string,
        **facts,
        reasoning=config.reading.reasoning,
        valid_fraction=config.valid_fraction,
        seed=config.seed,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_engine=tokenizer.engine,
        vocab_size=tokenizer.vocab_size,
        sources=store.sources,
        lengths=store.lengths,
        splits=found,
        versions=engines.versions("gigatoken", "numpy", "pyarrow", "tokenizers"),
    )
    template = trained_template.template_of(folder, manifest)
    manifest = dataclasses.replace(manifest, chat_template_sha256=template.sha256)
    if template.lacks(folder / manifests.TOKENIZER_FOLDER):
        template.put(folder / manifests.TOKENIZER_FOLDER)
    manifests.write_manifest(folder / manifests.CHAT_FILE_NAME, manifest)
    return manifest


def _empty_split(config: PrepareChatConfig, name: str, store: chat_store.ChatStore) -> InputError:
    """Of a split without conversations: how many there are, and a fraction that holds some out."""
    ids = store.documents.ids
    places = sorted(split_place(i, config.seed) for i in ids)
    fraction = _round_fraction(places)
    if fraction is None:
        way_out = "set it to 0"
    else:
        held_out = sum(place < fraction for place in places)
        verb = "raise" if name == "valid" else "lower"
        way_out = f"{verb} it to {fraction}, which holds out {held_out:,} of them, or set it to 0"
    num_duplicates = sum(source.num_duplicates for source in store.sources)
    others = f" ({counted(num_duplicates, 'duplicate')} left out)" * bool(num_duplicates)
    return InputError(
        f"split {name!r} has none of the {counted(len(ids), 'conversation')}{others} at "
        f"--valid-fraction ({config.valid_fraction}): {way_out}, or add conversations"
    )


def _round_fraction(places: Sequence[float]) -> float | None:
    """A fraction of two digits that holds out few, and not all; None: there is none.

    ``places``: of all, in order: ``[0.0312, 0.2, 0.9] -> 0.032``.
    """
    first = places[0]
    rest = next((place for place in places if place > first), None)
    if rest is None:
        return None
    scale = 10
    while first * scale < 10 and scale < 10**16:
        scale *= 10
    fraction = (math.floor(first * scale) + 1) / scale
    return fraction if fraction <= places[-1] else rest


def _plan(config: PrepareChatConfig, order: Int64Array, lengths: Int64Array) -> RowPlan:
    """Rows of whole conversations: best fit, or one in each."""
    size = config.seq_length
    if config.packing == "whole":
        return packing.plan_rows(order, lengths, 0, size, "whole")
    plan = RowPlan(kept=order.tolist())
    for example in plan.kept:
        length = int(lengths[example])
        row = [(example, 0, length)] + (
            [(packing.PADDING, 0, size - length)] if length < size else []
        )
        plan.rows.append(np.asarray(row, dtype=np.int64))
        plan.num_padding_tokens += size - length
    return plan


def _write_targets(prefix: Path, plan: RowPlan, store: chat_store.ChatStore) -> int:
    """``PREFIX.targets.bin/.idx``: a row's number of targets, then their starts and stops.

    Returns the number of tokens to be learnt.
    """
    total = 0
    with indexed.IndexedWriter(stored.targets_prefix(prefix), np.dtype("<i4")) as writer:
        for row in plan.rows:
            parts, filled = [], 0
            for example, start, stop in row.tolist():
                if example != packing.PADDING:
                    parts.append(store.targets(example) + filled)
                filled += stop - start
            targets = np.concatenate(parts)
            total += int((targets[:, 1] - targets[:, 0]).sum())
            writer.add(np.concatenate([[len(targets)], targets.ravel()]).astype(np.int32))
    return total

"""Prepare conversations: read, rendered, tokenised, packed whole to equal rows with their targets.

``ultralong prepare chat --source tulu='tulu/*.parquet' --tokenizer Llama-3.1-8B-Instruct --output
chats`` writes ``train`` and ``valid`` (``.bin`` and ``.idx``; beside them ``.boundaries``, the
conversations of every row, and ``.targets``, the tokens to be learnt), ``tokenizer/``,
``lengths.png`` and ``chat_manifest.json``. Equal input and options give equal bytes.
"""

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.pack.packing import PADDING, Int64Array, RowPlan, plan_rows
from megatron_ultralong.data.pack.sampling import mixed_order
from megatron_ultralong.data.prepare.chat_report import draw_chat_lengths, print_chat_summary
from megatron_ultralong.data.prepare.chat_store import ChatStore, tokenise_chats
from megatron_ultralong.data.read.sources import Source, parse_sources, warn_of_output
from megatron_ultralong.data.rows import chat_manifest as manifests
from megatron_ultralong.data.rows.chat_manifest import ChatManifest, ChatSplit
from megatron_ultralong.data.rows.indexed import IndexedWriter
from megatron_ultralong.data.rows.manifest import TOKENIZER_FOLDER, write_manifest
from megatron_ultralong.data.rows.stored import targets_prefix
from megatron_ultralong.data.store.documents import RowWriter
from megatron_ultralong.data.tokenize import engines
from megatron_ultralong.data.tokenize.chat_template import TEMPLATES, resolved_date
from megatron_ultralong.data.tokenize.folder_template import (
    FolderDate,
    FolderTemplate,
    folder_template,
)
from megatron_ultralong.data.tokenize.template_comparison import check_template
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer, copy_tokenizer
from megatron_ultralong.data.tokenize.trained_template import template_of
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.output import OutputFolder, output_folder
from megatron_ultralong.program.quantity import counted
from megatron_ultralong.sequence.documents import document_split


@dataclasses.dataclass(frozen=True)
class _Tokenised:
    store: ChatStore
    tokenizer: DocumentTokenizer
    reason: str
    """Why the reference tokenised; empty for the fast engine."""
    is_checked: bool
    is_marked: bool
    """What is learnt is what the folder's template marks."""
    folder_date: FolderDate
    """The date that the folder's template writes by itself."""


def prepare_chat(config: PrepareChatConfig) -> ChatManifest:
    """Prepare the rows, print tables, and return the manifest that was written.

    Raises:
        InputError: for conversations that cannot be trained on, a tokenizer that does not fit the
            template, a split without any, an output folder that is not empty, a full disk.
    """
    config.check()
    date = resolved_date(config.date_string, datetime.date.today())
    config = dataclasses.replace(config, date_string=date)
    sources = parse_sources(config.source)
    warn_of_output(sources, config.output)
    with output_folder(config.output, "prepare chat") as work:
        tokenised = _tokenise(config, sources, work)
        work.result = work.new_folder("rows")
        manifest = _write(config, tokenised, work.result)
        draw_chat_lengths(work.result, manifest)
    print_chat_summary(manifest, config.output, tokenised.tokenizer)
    return manifest


def _tokenise(
    config: PrepareChatConfig, sources: tuple[Source, ...], work: OutputFolder
) -> _Tokenised:
    chosen = engines.choose_tokenizer(config.tokenizer, config.tokenizer_engine)
    with _open_template(config, chosen.tokenizer) as folder:
        marks = folder if folder is not None and folder.has_marks else None
        folder_date = "" if folder is None else folder.own_date(config.date_string)
        (tokenizer, reason), store = engines.tokenise_by(
            chosen,
            config.tokenizer_engine,
            lambda found: tokenise_chats(config, sources, found, work.new_folder("tokens"), marks),
        )
        is_checked, is_marked = folder is not None, marks is not None
        return _Tokenised(store, tokenizer, reason, is_checked, is_marked, folder_date)


@contextlib.contextmanager
def _open_template(
    config: PrepareChatConfig, tokenizer: DocumentTokenizer
) -> Iterator[FolderTemplate | None]:
    """The template in the tokenizer's folder, which writes what ours does; None: there is none."""
    place = tokenizer.file.parent
    text = folder_template(place) if config.check_template else None
    if text is None:
        yield None
        return
    folder = FolderTemplate(text, place)
    with folder:
        check_template(TEMPLATES[config.chat_template], folder, config.date_string, tokenizer)
        yield folder


def _write(config: PrepareChatConfig, tokenised: _Tokenised, folder: Path) -> ChatManifest:
    store, tokenizer = tokenised.store, tokenised.tokenizer
    documents = store.documents
    names = ("train", "valid") if config.valid_fraction else ("train",)
    splits = np.array(
        [document_split(i, config.valid_fraction, config.seed) for i in documents.ids]
    )
    writer = RowWriter(documents, (), config.seq_length, tokenizer.vocab_size)
    plans: dict[str, RowPlan] = {}
    for name in names:
        order = mixed_order((splits == name).astype(np.int64), documents.ids, config.seed)
        if not order.size:
            way_out = "raise it, or set it to 0" if name == "valid" else "lower it"
            raise InputError(
                f"split {name!r} has none of the {counted(len(documents.ids), 'conversation')} at "
                f"--valid-fraction ({config.valid_fraction}): {way_out}, or add conversations"
            )
        plans[name] = _plan(config, order, documents.lengths)
    found = {
        name: ChatSplit(
            num_examples=written.num_documents,
            num_rows=written.num_rows,
            num_tokens=written.num_tokens - written.num_padding_tokens,
            num_target_tokens=_write_targets(folder / name, plans[name], store),
            num_padding_tokens=written.num_padding_tokens,
            longest=int(documents.lengths[plans[name].kept].max()),
        )
        for name, written in writer.write(folder, plans).items()
    }
    copy_tokenizer(tokenizer, folder / TOKENIZER_FOLDER)
    manifest = ChatManifest(
        format_version=manifests.FORMAT_VERSION,
        seq_length=config.seq_length,
        max_length=config.max_length,
        too_long=config.too_long,
        packing=config.packing,
        chat_template=config.chat_template,
        date_string=config.date_string,
        folder_template_checked=tokenised.is_checked,
        folder_template_date=tokenised.folder_date,
        learnt="marked" if tokenised.is_marked else "assistant",
        reasoning=config.reading.reasoning,
        valid_fraction=config.valid_fraction,
        seed=config.seed,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_engine=tokenizer.engine,
        tokenizer_engine_reason=tokenised.reason,
        vocab_size=tokenizer.vocab_size,
        sources=store.sources,
        lengths=store.lengths,
        splits=found,
        versions=engines.versions("gigatoken", "numpy", "pyarrow", "tokenizers"),
    )
    template = template_of(folder, manifest)
    manifest = dataclasses.replace(manifest, chat_template_sha256=template.sha256)
    if template.lacks(folder / TOKENIZER_FOLDER):
        template.put(folder / TOKENIZER_FOLDER)
    write_manifest(folder / manifests.FILE_NAME, manifest)
    return manifest


def _plan(config: PrepareChatConfig, order: Int64Array, lengths: Int64Array) -> RowPlan:
    """Rows of whole conversations: best fit, or one in each."""
    size = config.seq_length
    if config.packing == "whole":
        return plan_rows(order, lengths, 0, size, "whole")
    plan = RowPlan(kept=order.tolist())
    for example in plan.kept:
        length = int(lengths[example])
        row = [(example, 0, length)] + ([(PADDING, 0, size - length)] if length < size else [])
        plan.rows.append(np.asarray(row, dtype=np.int64))
        plan.num_padding_tokens += size - length
    return plan


def _write_targets(prefix: Path, plan: RowPlan, store: ChatStore) -> int:
    """``PREFIX.targets.bin/.idx``: a row's number of targets, then their starts and stops.

    Returns the number of tokens to be learnt.
    """
    total = 0
    with IndexedWriter(targets_prefix(prefix), np.dtype("<i4")) as writer:
        for row in plan.rows:
            parts, filled = [], 0
            for example, start, stop in row.tolist():
                if example != PADDING:
                    parts.append(store.targets(example) + filled)
                filled += stop - start
            targets = np.concatenate(parts)
            total += int((targets[:, 1] - targets[:, 0]).sum())
            writer.add(np.concatenate([[len(targets)], targets.ravel()]).astype(np.int32))
    return total

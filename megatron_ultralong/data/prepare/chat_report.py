"""What `prepare chat` shows at its end: tables, ``lengths.png``, and one conversation."""

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from megatron_ultralong.data.prepare import report
from megatron_ultralong.data.rows.manifest import ChatManifest, ChatSource
from megatron_ultralong.data.rows.stored import ChatRows
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer
from megatron_ultralong.program.errors import counted
from megatron_ultralong.program.terminal import Console

_EXCERPT_TOKENS = 60
"""Tokens of a run that are shown, half of them at each end."""


def print_chat_summary(manifest: ChatManifest, output: Path, tokenizer: DocumentTokenizer) -> None:
    """Print sources, lengths, rows and the first conversation."""
    console = Console()
    say = functools.partial(console.print, highlight=False)
    console.print(source_table(manifest))
    limit = manifest.max_length or manifest.seq_length
    columns = ("tokens", "conversations", "tokens in all", "too long")
    title = f"lengths (limit {limit:,} tokens)"
    console.print(report.length_table(title, columns, manifest.lengths))
    for name, split in manifest.splits.items():
        whole = split.num_rows * manifest.seq_length
        say(
            f"{name}: {counted(split.num_rows, 'row')} x {manifest.seq_length:,}; "
            f"{counted(split.num_examples, 'conversation')}, {counted(split.num_tokens, 'token')}, "
            f"of which {split.num_target_tokens:,} "
            f"({split.num_target_tokens / split.num_tokens:.1%}) are learnt; "
            f"{split.num_padding_tokens / whole:.1%} padding"
        )
    for line in _notes(manifest):
        say(line)
    for source in manifest.sources:
        report.print_files(console, source)
    learnt = "[bold green]\u27e6 \u27e7[/]"
    console.print(f"the first conversation; what is learnt is in {learnt}:", markup=True)
    rows = ChatRows(output / next(iter(manifest.splits)))
    say(decoded_example(*rows.examples(0)[0], tokenizer))
    say(f"written: {output} (lengths: {output / report.PICTURE})")


def source_table(manifest: ChatManifest) -> Table:
    """One line for each source: what was found, and how it was used."""
    columns = ("found", "bad", "duplicates", "too long", "cut", "no answer", "kept", "tokens")
    table = report.new_table("conversations", (*columns, "learnt"), padding=(0, 1, 0, 0))
    for source in manifest.sources:
        counts = (
            source.num_conversations,
            sum(source.num_bad.values()),
            source.num_duplicates,
            source.num_too_long,
            source.num_truncated,
            source.num_nothing_left,
            source.num_examples,
            source.num_tokens,
            source.num_target_tokens,
        )
        table.add_row(source.name, *(f"{count:,}" for count in counts))
    return table


def _notes(manifest: ChatManifest) -> list[str]:
    lines = []
    for source in manifest.sources:
        if source.num_bad:
            what = ", ".join(f"{count:,} {problem}" for problem, count in source.num_bad.items())
            lines.append(f"{source.name}: bad conversations skipped: {what}")
        lines += [f"{source.name}: {line}" for line in _left_out(manifest, source)]
        if source.num_with_marks:
            number = counted(source.num_with_marks, "conversation")
            lines.append(
                f"{source.name}: {number} with special tokens in their texts, written as text, of "
                "which transformers makes the tokens: if they were put in a template before, give "
                "the turns instead; if a text is to be its token, such as <think>, set special of "
                "that token to false in tokenizer.json"
            )
        if source.unread_keys:
            what = ", ".join(f"{key} ({count:,})" for key, count in source.unread_keys.items())
            lines.append(f"{source.name}: keys of records that are not read: {what}")
    if not manifest.folder_template_checked:
        lines.append(
            f"template {manifest.chat_template} was not compared with one in the tokenizer's "
            "folder; `sft` keeps the one of the rows, tokenizer/chat_template.jinja, for exports"
        )
    if manifest.learnt == "marked":
        lines.append("learnt is what the folder's template marks with {% generation %}")
    if manifest.folder_template_date in ("today", "fixed"):
        what = "the day's date" if manifest.folder_template_date == "today" else "another date"
        lines.append(
            f"date {manifest.date_string!r}: engines that are given no date_string write {what} "
            "with the folder's template; --date-string states the rows'"
        )
    if manifest.tokenizer_engine_reason:
        lines.append(
            f"tokenized by {manifest.tokenizer_engine}: {manifest.tokenizer_engine_reason}"
        )
    return lines


def _left_out(manifest: ChatManifest, source: ChatSource) -> list[str]:
    """What of a source's conversations is not learnt, except for those that are bad."""
    lines = []
    if source.num_turns_cut:
        lines.append(
            f"{counted(source.num_turns_cut, 'turn')} cut that teach nothing: before the user's "
            f"first in {counted(source.num_cut_at_start, 'conversation')}, behind the assistant's "
            f"last in {source.num_cut_at_end:,}"
        )
    if source.num_turns_not_learnt:
        lines.append(
            f"{counted(source.num_turns_not_learnt, 'turn')} of the assistant's read but not "
            "learnt (weight 0, or in a prompt)"
        )
    if source.num_with_reasoning:
        what = "left out (--reasoning keep)" if manifest.reasoning == "drop" else "kept in <think>"
        number = counted(source.num_with_reasoning, "conversation")
        lines.append(f"reasoning in {number} is {what}")
    if source.num_kept_nulls:
        lines.append(
            f"{counted(source.num_kept_nulls, 'null')} of default and const in tools kept: parquet "
            "does "
            "not say whether somebody wrote them; a text of JSON instead of structs does"
        )
    return lines


def decoded_example(tokens: Any, targets: Any, tokenizer: DocumentTokenizer) -> Text:
    """A conversation as text, what is learnt in green; tokens [T], targets [num, 2]."""
    edges = [0, *np.asarray(targets).ravel().tolist(), len(tokens)]
    text = Text()  # the brackets are for terminals and files without colours
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        run = np.asarray(tokens)[start:stop].tolist()
        half = _EXCERPT_TOKENS // 2
        shown = tokenizer.decode(run)
        if len(run) > _EXCERPT_TOKENS:
            left, right = tokenizer.decode(run[:half]), tokenizer.decode(run[-half:])
            shown = f"{left} ... [{len(run) - _EXCERPT_TOKENS:,} tokens] ... {right}"
        if number % 2:
            text.append(f"\u27e6{shown}\u27e7", style="bold green")
        else:
            text.append(shown)
    return text


def draw_chat_lengths(folder: Path, manifest: ChatManifest) -> None:
    """``lengths.png``: a panel for each source, conversations by length, and the limit."""
    limit = manifest.max_length or manifest.seq_length
    edge = np.log2(limit) - 0.5
    with report.length_panels(folder, manifest.lengths) as panels:
        for panel, counts in panels:
            fits = np.array([count.num_conversations - count.num_too_long for count in counts])
            panel.bar(report.powers(counts), fits, width=0.8, label="fit")
            too_long = [count.num_too_long for count in counts]
            style = {"width": 0.8, "color": "tab:red", "label": "too long"}
            panel.bar(report.powers(counts), too_long, bottom=fits, **style)
            panel.axvline(edge, color="black", linestyle="--", linewidth=1)
            panel.set_ylabel("conversations")
        first, last = panels[0][0], panels[-1][0]
        first.annotate(f"limit {limit:,}", (edge, first.get_ylim()[1]))
        places = report.powers(manifest.lengths)
        ticks = np.arange(places.min(), max(*places, int(np.log2(limit))) + 1)
        last.set_xticks(ticks, [f"{1 << int(tick):,}" for tick in ticks], rotation=30)
        last.set_xlabel("tokens of a conversation, from")

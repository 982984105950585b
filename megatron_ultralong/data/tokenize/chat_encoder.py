"""Conversations to token ids and the runs of them that are to be learnt.

The marks are characters of the text that the template writes: those of transformers'
``return_assistant_tokens_mask``. The text must be ours too, so that special tokens stay ids.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.read.conversation import Conversation, ConversationError
from megatron_ultralong.data.read.conversation_formats import parse_conversation
from megatron_ultralong.data.tokenize import chat_template, template_comparison
from megatron_ultralong.data.tokenize.chat_template import ChatTemplate, Piece
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate, Rendered
from megatron_ultralong.data.tokenize.template_comparison import num_equal
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer
from megatron_ultralong.program.errors import InputError

Int32Array = npt.NDArray[np.int32]
IdsOf = dict[tuple[str, bool], Int32Array]
"""Ids of texts, and of those behind a special token."""


class Example(NamedTuple):
    """A tokenised conversation."""

    tokens: Int32Array
    """Token ids, shape [T]."""
    targets: Int32Array
    """Tokens ``[start, stop)`` to be learnt, ascending, shape [num_targets, 2]."""

    @property
    def num_target_tokens(self) -> int:
        """Tokens to be learnt."""
        return int((self.targets[:, 1] - self.targets[:, 0]).sum())

    def cut(self, length: int) -> Example:
        """Its first ``length`` tokens."""
        targets = np.minimum(self.targets, length)
        return Example(self.tokens[:length], targets[targets[:, 0] < targets[:, 1]])


class ChatEncoder:
    """Writes conversations in a template with a tokenizer.

    Special tokens are put in by their ids; what looks like one inside a conversation is text, so
    that no user's words can end a turn. Text between two special tokens is tokenised as one.

    Raises:
        InputError: where the tokenizer lacks a special token of the template.
    """

    def __init__(
        self, template: ChatTemplate, tokenizer: DocumentTokenizer, is_marked: bool = False
    ) -> None:
        """``is_marked``: what is learnt is what a foreign template marks, token by token."""
        self.template = template
        self.tokenizer = tokenizer
        self.is_marked = is_marked
        if problem := template_comparison.special_problem(template, tokenizer):
            raise InputError(problem)
        self._ids = {name: self._special_id(name) for name in template.special}
        pieces = template.render(
            parse_conversation({"messages": template_comparison.PROBES[-1]}, "messages"),
            chat_template.DATE,
        )
        eos = tokenizer.eos_text() if chat_template.END in self._ids else ""
        template_comparison.check_ids(
            tokenizer, chat_template.rendered_text(pieces, eos), self.encode([pieces])[0].tokens
        )

    def encode(self, conversations: Sequence[Sequence[Piece]]) -> list[Example]:
        """Examples of conversations as their template has rendered them.

        Raises:
            InputError: where a token reaches over the beginning or end of what is to be learnt.
        """
        runs = [_runs(pieces) for pieces in conversations]
        texts = [run for some in runs for run in some if not run.is_special and run.text]
        ids_of: IdsOf = {}
        for behind in (False, True):
            encode = self.tokenizer.encode_behind if behind else self.tokenizer.encode_documents
            its = list(dict.fromkeys(run.text for run in texts if run.is_behind == behind))
            ids_of |= {(text, behind): ids for text, ids in zip(its, encode(its), strict=True)}
        return [self._example(some, ids_of) for some in runs]

    def _example(self, runs: Sequence[_Run], ids_of: IdsOf) -> Example:
        parts: list[Int32Array] = []
        targets: list[list[int]] = []
        length = 0
        for run, after in itertools.zip_longest(runs, runs[1:]):
            goes_on = after is not None and bool(after.targets)
            if run.is_special:
                ids = np.asarray([self._ids[run.text]], dtype=np.int32)
            else:
                ids = ids_of.get((run.text, run.is_behind), np.empty(0, dtype=np.int32))
            for span in run.targets:
                first, last = self._tokens(run, ids, span, goes_on)
                # nothing predicts a conversation's first token
                start, stop = max(1, length + first), length + last
                if targets and start <= targets[-1][1]:
                    targets[-1][1] = max(stop, targets[-1][1])
                elif start < stop:
                    targets.append([start, stop])
            parts.append(ids)
            length += ids.size
        return Example(
            np.concatenate(parts).astype(np.int32),
            np.asarray(targets, dtype=np.int32).reshape(-1, 2),
        )

    def _tokens(
        self, run: _Run, ids: Int32Array, span: tuple[int, int], goes_on: bool
    ) -> tuple[int, int]:
        """Tokens ``[first, stop)`` of characters of a run; ``goes_on``: so does what is learnt.

        What is marked ends with the first token of its last character, of which there may be
        several: so it does in transformers' ``return_assistant_tokens_mask``.
        """
        if run.is_special:
            return 0, 1
        text, (start, stop) = run.text, span
        if not self.is_marked:
            assert stop == len(text), run
            return self._first_target(text, ids, start), ids.size
        place = functools.partial(token_at, self.tokenizer, text, ids, is_behind=run.is_behind)
        first = place(start)
        if stop == len(text) and goes_on:
            return first, ids.size
        return first, place(stop - 1) + 1

    def _first_target(self, text: str, ids: Int32Array, start: int) -> int:
        """Index of the first token of a run that is to be learnt: those of its prefix come first.

        A token that is part of both would blur what is learnt: it is refused, not guessed.
        """
        prefix = text[:start]
        if not prefix:
            return 0
        # a byte has one token at most, and a space that the tokenizer puts before it
        size = self._prefix_size(prefix, tuple(ids[: len(prefix.encode()) + 1].tolist()))
        if size is None:
            raise InputError(
                f"template {self.template.name} and tokenizer {self.tokenizer.file} do not fit: "
                f"the text before an answer, {prefix!r}, and the answer "
                f"{text[start:][:20]!r} share a token, so the trained text has "
                "no clear beginning; use the model's own template"
            )
        return size

    @functools.cache  # noqa: B019 - a handful of prefixes, as long as the encoder lives
    def _prefix_size(self, prefix: str, ids: tuple[int, ...]) -> int | None:
        """How many of the first ids are the prefix and nothing else."""
        sizes = range(1, len(ids) + 1)
        return next((n for n in sizes if self.tokenizer.decode(ids[:n]) == prefix), None)

    def _special_id(self, name: str) -> int:
        text = self.tokenizer.eos_text() if name == chat_template.END else name
        ids = self.tokenizer.encode_separator(text)
        if len(ids) != 1:
            raise InputError(
                f"--chat-template {self.template.name}: {text!r} is {len(ids)} tokens in "
                f"{self.tokenizer.file}, where a special token is one; use the model's own "
                "tokenizer"
            )
        return ids[0]


class _Run(NamedTuple):
    """One special token, or text that is tokenised as one."""

    text: str
    is_special: bool
    targets: list[tuple[int, int]]
    """Characters ``[start, stop)`` to be learnt; of a special token all or nothing."""
    is_behind: bool
    """It is not the first of its conversation."""


def _runs(pieces: Sequence[Piece]) -> list[_Run]:
    """Neighbouring texts joined."""
    runs = []
    for is_special, group in itertools.groupby(pieces, lambda piece: piece.is_special):
        if is_special:
            runs += [_Run(p.text, True, [(0, 1)] if p.is_target else [], True) for p in group]
            continue
        texts: list[str] = []
        targets: list[tuple[int, int]] = []
        length = 0
        for is_target, some in itertools.groupby(group, lambda piece: piece.is_target):
            text = "".join(piece.text for piece in some)
            if is_target and text:
                targets.append((length, length + len(text)))
            texts.append(text)
            length += len(text)
        runs.append(_Run("".join(texts), False, targets, bool(runs)))
    return runs


def marked_pieces(
    pieces: Sequence[Piece], conversation: Conversation, folder: FolderTemplate, date: str
) -> list[Piece]:
    """The pieces of a conversation, to be learnt as the folder's template marks them.

    Turns of weight 0 are not, whatever it marks.

    Raises:
        ConversationError: it does not write this conversation, or writes another text.
        InputError: it takes more than it may.
    """
    rendered = checked_rendering(pieces, conversation, folder, date)
    return with_marks(pieces, rendered.marked, folder.eos)


def checked_rendering(
    pieces: Sequence[Piece], conversation: Conversation, folder: FolderTemplate, date: str
) -> Rendered:
    """What the folder's template writes for a conversation, which is the text of the pieces.

    Raises:
        ConversationError: it does not write this conversation, or writes another text.
        InputError: it takes more than it may.
    """
    try:
        rendered = folder.render_conversation(conversation, date)
    except InputError as error:
        if not folder.is_alive:
            raise
        raise ConversationError("beyond the template", str(error)) from error
    written = chat_template.rendered_text(pieces, folder.eos)
    if written != rendered.text:
        what = "which marks the trained text, " if folder.has_marks else ""
        raise ConversationError(
            "beyond the template",
            f"the template in {folder.name}, {what}renders it differently: "
            f"{template_comparison.difference('--chat-template', written, rendered.text)}"
            + "; --no-check-template trains in --chat-template"
            * (not folder.has_marks),
        )
    return rendered


def with_marks(pieces: Sequence[Piece], spans: Iterable[tuple[int, int]], eos: str) -> list[Piece]:
    """Pieces cut where spans of their text begin and end, those inside to be learnt.

    A special token that is marked in part is marked.
    """
    edges = _edges(spans)
    found, start = [], 0
    for piece in pieces:
        stop = start + len(chat_template.rendered_text([piece], eos))
        inner = edges[bisect.bisect_right(edges, start) : bisect.bisect_left(edges, stop)]
        is_hit = piece.is_special and bool(inner)
        for left, right in itertools.pairwise([start, *([] if piece.is_special else inner), stop]):
            is_marked = is_hit or bisect.bisect_right(edges, left) % 2 == 1
            text = piece.text if piece.is_special else piece.text[left - start : right - start]
            is_target = is_marked and not piece.is_never_target
            found.append(piece._replace(text=text, is_target=is_target))
        start = stop
    return found


def _edges(spans: Iterable[tuple[int, int]]) -> list[int]:
    """Starts and stops of spans in turn, those that touch joined, empty ones left out."""
    edges: list[int] = []
    for start, stop in sorted(spans):
        if start == stop:
            continue
        if edges and start <= edges[-1]:
            edges[-1] = max(edges[-1], stop)
        else:
            edges += [start, stop]
    return edges


def token_at(
    tokenizer: DocumentTokenizer,
    text: str,
    ids: npt.NDArray[np.int32],
    char: int,
    is_behind: bool = False,
) -> int:
    """The first token that a character, or a part of it, is in: transformers' ``char_to_token``.

    Tokens are decoded up to the character. Where that is another text, as with a tokenizer that
    composes accents, the reference says which characters its tokens are of.

    Args:
        tokenizer: made the ids.
        text: not empty.
        ids: of the text, shape [T].
        char: index of the character.
        is_behind: the text stands behind a special token.
    """
    low, high = 0, 1
    try:
        while high < ids.size and _num_covered(tokenizer, text, ids[:high]) <= char:
            low, high = high, 2 * high
        sizes = range(low + 1, min(high, ids.size))

        def covered(size: int) -> int:
            return _num_covered(tokenizer, text, ids[:size])

        return low + bisect.bisect_right(sizes, char, key=covered)
    except _OtherTextError:
        return _in_spans(tokenizer.spans(text, is_behind), text, char)


class _OtherTextError(Exception):
    """Tokens do not decode to the text that they are of."""


def _num_covered(tokenizer: DocumentTokenizer, text: str, ids: npt.NDArray[np.int32]) -> int:
    """Characters that the first tokens of a text are of, the last one perhaps in part."""
    found = tokenizer.decode(ids.tolist())
    if text.startswith(found):
        return len(found)
    same = num_equal(found, text)
    if found[same:].strip("\N{REPLACEMENT CHARACTER}"):
        raise _OtherTextError
    return same + 1


def _in_spans(spans: Sequence[tuple[int, int]], text: str, char: int) -> int:
    """The token at a character; of one in no token that before it, of a space that behind it."""
    found = next((n for n, (start, stop) in enumerate(spans) if start <= char < stop), None)
    if found is None:
        stops = [stop for _, stop in spans]
        before = bisect.bisect_right(stops, char)
        return min(before, len(spans) - 1) if text[char].isspace() else max(before - 1, 0)
    while found and spans[found - 1] == spans[found]:
        found -= 1  # of a character of several tokens the first
    return found

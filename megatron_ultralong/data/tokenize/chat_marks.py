"""What is learnt where the folder's template says so with ``{% generation %}``.

The marks are characters of the text that the template writes: those of transformers'
``return_assistant_tokens_mask``. The text must be ours too, so that special tokens stay ids.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence

from megatron_ultralong.data.read.conversation import Conversation, ConversationError
from megatron_ultralong.data.tokenize.chat_template import Piece, rendered_text
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate
from megatron_ultralong.data.tokenize.template_check import difference
from megatron_ultralong.program.errors import InputError


def marked_pieces(
    pieces: Sequence[Piece], conversation: Conversation, folder: FolderTemplate, date: str
) -> list[Piece]:
    """The pieces of a conversation, to be learnt as the folder's template marks them.

    Turns of weight 0 are not, whatever it marks.

    Raises:
        ConversationError: it does not write this conversation, or writes another text.
        InputError: it takes more than it may.
    """
    try:
        theirs = folder.render(conversation, date)
    except InputError as error:
        if not folder.is_alive:
            raise
        raise ConversationError("beyond the template", str(error)) from error
    ours = rendered_text(pieces, folder.eos)
    if ours != theirs.text:
        raise ConversationError(
            "beyond the template",
            f"the template in {folder.name}, which marks what is learnt, writes it otherwise: "
            f"{difference(ours, theirs.text)}",
        )
    return with_marks(pieces, theirs.marked, folder.eos)


def with_marks(pieces: Sequence[Piece], spans: Iterable[tuple[int, int]], eos: str) -> list[Piece]:
    """Pieces cut where spans of their text begin and end, those inside to be learnt.

    A special token that is marked in part is marked.
    """
    edges = _edges(spans)
    found, start = [], 0
    for piece in pieces:
        stop = start + len(rendered_text([piece], eos))
        inner = edges[bisect.bisect_right(edges, start) : bisect.bisect_left(edges, stop)]
        if piece.is_special:
            is_marked = bool(inner) or bisect.bisect_right(edges, start) % 2 == 1
            found.append(piece._replace(is_target=is_marked and not piece.is_never_target))
        else:
            for left, right in itertools.pairwise([start, *inner, stop]):
                is_marked = bisect.bisect_right(edges, left) % 2 == 1
                found.append(
                    piece._replace(
                        text=piece.text[left - start : right - start],
                        is_target=is_marked and not piece.is_never_target,
                    )
                )
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

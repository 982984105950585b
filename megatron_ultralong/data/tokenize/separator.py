"""The separator's ids inside a document, where they read as the end of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.documents import document_boundaries

SeparatorInText = Literal["keep", "drop", "split"]
"""What is done with documents that hold the separator's ids: nothing, left out, or written in other
ids, a character at a time."""

Tokens = npt.NDArray[np.integer]


def holds_separator(tokens: Tokens, separator_ids: Sequence[int]) -> bool:
    """Whether a search for separators in this document and its own finds any but its own.

    With separator ``(8, 9)``: ``[1, 8, 9, 2]`` and ``[1, 8, 9]`` do; with ``(7, 7)`` ``[1, 7]``
    does, which with its own reads ``[1, 7, 7, 7]``.

    Args:
        tokens: a document without its separator, shape [num_tokens].
        separator_ids: the separator; an empty one is held by none.
    """
    if not separator_ids:
        return False
    closed = np.concatenate([tokens, np.asarray(separator_ids, dtype=tokens.dtype)])
    return document_boundaries(closed, separator_ids).size > 2


def split_separators(
    tokens: Tokens, separator_ids: Sequence[int], tokenizer: DocumentTokenizer
) -> npt.NDArray[np.int32]:
    """The same text in ids that hold no separator: its characters there are encoded one by one.

    So tokenizers write the text of a special token that is only text. Llama 3's ``<s>``, ids
    ``[45147, 29]``, becomes ``<``, ``s`` and ``>``.

    Raises:
        InputError: these characters have no ids of their own that are others.
    """
    width, parts, start = len(separator_ids), [], 0
    closed = np.concatenate([tokens, np.asarray(separator_ids, dtype=tokens.dtype)])
    for end in document_boundaries(closed, separator_ids)[1:-1].tolist():
        first, last = end - width, min(end, tokens.size)
        parts += [tokens[start:first], _characters(tokens[first:last].tolist(), tokenizer)]
        start = last
    split = np.concatenate([*parts, tokens[start:]]).astype(np.int32)
    if holds_separator(split, separator_ids):
        raise InputError(_message(separator_ids, tokenizer))
    return split


def _characters(ids: list[int], tokenizer: DocumentTokenizer) -> npt.NDArray[np.int32]:
    text = tokenizer.decode(ids)
    found = np.concatenate(tokenizer.encode_documents(list(text)))
    if "\N{REPLACEMENT CHARACTER}" in text or tokenizer.decode(found.tolist()) != text:
        raise InputError(_message(ids, tokenizer))
    return found


def _message(ids: Sequence[int], tokenizer: DocumentTokenizer) -> str:
    return (
        f"--separator-in-text split: a document holds {list(ids)} "
        f"({tokenizer.decode(list(ids))!r}), whose characters alone have no other ids with "
        f"{tokenizer.file}; drop such documents (--separator-in-text drop), or give another "
        "--separator"
    )

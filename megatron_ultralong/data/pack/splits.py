"""Which split a document belongs to: by its identity, so that equal texts never stand in two."""

from __future__ import annotations

from typing import Literal

from megatron_ultralong.sequence.documents import document_split, unit_hash

Split = Literal["train", "valid", "test"]


def split_of(identity: str, valid_fraction: float, test_fraction: float, seed: int) -> Split:
    """The split of a document.

    ``valid`` is that of :func:`~megatron_ultralong.sequence.documents.document_split`; ``test`` is
    cut from the rest with the same number, so that a larger fraction only adds documents to it.
    """
    if document_split(identity, valid_fraction, seed) == "valid":
        return "valid"
    held_out = unit_hash(seed, f"split:{identity}") < valid_fraction + test_fraction
    return "test" if held_out else "train"

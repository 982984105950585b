"""Attention area of a run's rows, and what it is counted by."""

from __future__ import annotations

import dataclasses

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.plan.documents_area import DocumentRows, drawn_rows, expected_area
from megatron_ultralong.program.errors import InputError


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is known of prepared rows."""

    num_rows: int
    mean_area: float
    """Attention area of a mean row, documents masked."""
    documents: DocumentRows
    """Of some of them."""


@dataclasses.dataclass(frozen=True)
class Area:
    """Attention area of a mean row, and how it was found."""

    pairs: float
    text: str
    documents: DocumentRows | None = None


def area_of(config: TrainingConfig, mean_document_length: float, rows: Rows | None = None) -> Area:
    """Area of a mean row.

    Args:
        config: its document mask and row length count.
        mean_document_length: in tokens, or 0.
        rows: of a data folder, if there is one.

    Raises:
        InputError: documents are masked, and nothing tells their lengths.
    """
    length = config.data.seq_length
    whole = length * (length + 1) / 2
    if config.data.document_mask == "none":
        if mean_document_length:
            raise InputError(
                f"--mean-document-length ({mean_document_length:g}) counts under document_mask "
                "block alone: without the mask every row is one area; use --document-mask block"
            )
        return Area(whole, "no document mask")
    if mean_document_length:
        area = expected_area(length, mean_document_length)
        text = f"documents of {mean_document_length:,.0f} tokens in the mean"
        documents = drawn_rows(length, mean_document_length)
    elif rows is not None:
        area, text = rows.mean_area, f"documents of {config.data.data_path}"
        documents = rows.documents
    elif config.verb == "sft":
        return Area(
            whole,
            "as if every row were one conversation, which takes the longest: name a prepared "
            "folder by --data-path, or the conversations' mean length by --mean-document-length",
        )
    else:
        raise InputError(
            "document_mask block needs the documents: name a prepared folder by --data-path, or "
            "their mean length by --mean-document-length"
        )
    share = f"{area / whole:.1%} of the causal area"
    even = f", cp_assignment {config.parallel.cp_assignment}"
    return Area(area, f"{text}, {share}{even}", documents)

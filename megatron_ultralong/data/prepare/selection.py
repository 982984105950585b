"""Which documents stand in which split, how often, and what share that gives each source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.pack.packing import RowPlan
from megatron_ultralong.data.pack.sampling import (
    document_weights,
    num_copies,
    sample_units,
    split_of,
)
from megatron_ultralong.data.pack.target import meet_target
from megatron_ultralong.data.rows.manifest import SourceShare
from megatron_ultralong.data.store.documents import DocumentStore

SHARE_TOLERANCE = 0.01
"""What a source's tokens may be off by before a warning: 1 in 100."""


@dataclass(frozen=True)
class Selection:
    """The documents of a store in their splits; every array is [num_documents]."""

    splits: npt.NDArray[np.str_]
    """Name of the split."""

    weights: npt.NDArray[np.float64]
    """Expected copies in the training split, or what they would be there."""

    copies: npt.NDArray[np.int64]
    """Copies to pack."""


def select_documents(config: PrepareConfig, store: DocumentStore) -> Selection:
    """Splits and copies of all documents; in training each source meets its share of the tokens.

    Held out, a document stands once at most: the second time it tells nothing more.

    Raises:
        InputError: where a source would lose all its documents.
    """
    fractions = config.valid_fraction, config.test_fraction
    splits = np.asarray([split_of(i, *fractions, config.seed) for i in store.ids])
    trained = splits == "train"
    weights = document_weights(
        store.lengths,
        store.sources,
        store.source_names,
        config.sampling,
        trained,
        config.max_tokens,
    )
    units = sample_units(store.ids, config.seed)
    copies = num_copies(np.where(trained, weights, np.minimum(weights, 1)), units)
    bins = config.sampling.bins(store.lengths)
    for source in range(len(store.source_names)):
        own = np.flatnonzero(trained & (store.sources == source))
        copies[own] = meet_target(
            copies[own], weights[own], units[own], store.lengths[own], bins[own]
        )
    return Selection(splits, weights, copies)


def source_shares(
    config: PrepareConfig, store: DocumentStore, selection: Selection, plan: RowPlan
) -> list[SourceShare]:
    """Share of the training tokens that each source was to have and has in ``plan``."""
    count = len(store.source_names)
    tokens = store.lengths * (selection.splits == "train")
    found = np.bincount(store.sources, store.lengths, count)
    wanted = np.bincount(store.sources, selection.weights * tokens, count)
    kept = np.bincount(plan.kept, minlength=store.lengths.size)
    got = np.bincount(store.sources, kept * tokens, count)
    asked, share = found / max(found.sum(), 1), got / max(got.sum(), 1)
    shares = []
    for source, name in enumerate(store.source_names):
        misses = abs(got[source] - wanted[source]) > SHARE_TOLERANCE * wanted[source]
        # More of it is held out for validation than sampling makes up for.
        lacks = wanted[source] < (1 - SHARE_TOLERANCE) * asked[source] * wanted.sum()
        warning = ""
        if misses or (lacks and config.sampling.keeps_mix) or not got[source]:
            cause = _cause(config, store, selection, kept, source)
            warning = (
                f"source {name!r} has {share[source]:.2%} of the training tokens, where "
                f"{asked[source]:.2%} were asked for: {cause}"
            )
        shares.append(SourceShare(name, float(asked[source]), float(share[source]), warning))
    return shares


def _cause(
    config: PrepareConfig,
    store: DocumentStore,
    selection: Selection,
    kept: npt.NDArray[np.int64],
    source: int,
) -> str:
    """Why a source misses its share, and the way out."""
    trained = selection.splits == "train"
    own = np.flatnonzero(trained & (store.sources == source))
    found = int(store.lengths[store.sources == source].sum())
    num_dropped = int((selection.copies - kept)[own].sum())
    if num_dropped:
        return (
            f"{num_dropped} copies were left out, because they would have stood in a row with "
            f"another copy; shorten --seq-length ({config.seq_length}), or add documents"
        )
    if 2 * store.lengths[own].sum() < found:
        return (
            f"{found - store.lengths[own].sum():,} of its {found:,} tokens are held out; lower "
            f"--valid-fraction ({config.valid_fraction}) and --test-fraction "
            f"({config.test_fraction}), or take another --seed ({config.seed})"
        )
    longest = own[np.argmax(store.lengths[own])]
    weight = float(selection.weights[longest])
    text = (
        f"its documents come no nearer, each taken whole (number: {own.size:,}; the longest has "
        f"{store.lengths[longest]:,} tokens and weight {weight:.3g}); cut long ones, add others"
    )
    total = float((selection.weights * store.lengths * trained).sum())
    at_whole = int(total * np.floor(weight) / weight) if weight else 0
    if at_whole >= config.seq_length:
        text += f", or give --max-tokens {at_whole}: that weight is {int(weight)} then"
    return text

"""Which documents stand in which split, how often, and what share that gives each source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.pack import sampling
from megatron_ultralong.data.pack.packing import Int64Array, RowPlan
from megatron_ultralong.data.pack.sampling import BoolArray, Float64Array
from megatron_ultralong.data.rows.manifest import InputSummary, SourceShare
from megatron_ultralong.data.store.documents import DocumentStore

TOLERANCE = 0.001
"""What a source's tokens may be off by, where whole documents allow it: 1 in 1,000."""

NONE = np.iinfo(np.int64).max
"""Tokens that an impossible change leaves."""


def meet_target(
    copies: Int64Array,
    weights: Float64Array,
    units: Float64Array,
    lengths: Int64Array,
    bins: Int64Array,
) -> Int64Array:
    """Copies of one source's documents with ``sum(weights * lengths)`` tokens, as nearly as can be.

    Each step gives one document its other number of copies, ``floor(w)`` or ``floor(w) + 1``, or
    exchanges those of two documents of one bin: whatever leaves the least tokens missing. The steps
    end within :data:`TOLERANCE`, or where none helps. No bin's count is moved further from its
    expectation than the hash itself would by one standard deviation, ``sqrt(n f (1 - f))`` with the
    fraction ``f`` of its weight.

    Args:
        copies: of every document, by :func:`num_copies` of ``sampling.py``, shape
            [num_documents]; so are all others.
        weights: expected copies, equal inside a bin.
        units: the documents' hashes.
        lengths: their tokens.
        bins: their length bins.
    """
    weights = np.round(weights, 9)
    whole = np.floor(weights).astype(np.int64)
    fractions = weights - whole
    # of equally good documents the one whose hash is nearest to the other choice comes first:
    # nothing depends on the order of the input
    free = np.argsort(np.abs(units - fractions), kind="stable")
    free = free[fractions[free] > 0]
    sample = _Sample((copies > whole)[free], fractions[free], lengths[free], bins[free])
    sample.improve(TOLERANCE * float((weights * lengths).sum()))
    result = whole.copy()
    result[free] += sample.chosen
    return result


class _Change(NamedTuple):
    """Documents whose choice is turned, and the tokens missing or too many after it."""

    left: int
    documents: Sequence[int]


class _Sample:
    """Documents that are chosen or not, shape [num_documents] each."""

    def __init__(
        self, chosen: BoolArray, fractions: Float64Array, lengths: Int64Array, bins: Int64Array
    ) -> None:
        self.chosen = chosen
        self.fractions = fractions
        self.lengths = lengths
        self.bins = bins
        # whole tokens: every step is a real one, never a rounding error
        self.target = round(float((fractions * lengths).sum()))
        self.deviation = np.sqrt(np.bincount(bins, fractions * (1 - fractions)))

    @property
    def missing(self) -> int:
        """Tokens less than expected."""
        return self.target - int(self.lengths[self.chosen].sum())

    def improve(self, tolerance: float) -> None:
        """Turn choices until the tokens are within ``tolerance`` of the expected ones."""
        while abs(self.missing) > tolerance:
            changes = [self._one(), *(self._two(b) for b in range(self.deviation.size))]
            best = min(changes, key=lambda change: change.left)
            if best.left >= abs(self.missing):
                return
            self.chosen[best.documents] ^= True

    def _one(self) -> _Change:
        """The one document to turn."""
        step = np.where(self.chosen, -1, 1)
        excess = np.bincount(self.bins, self.chosen - self.fractions)
        limit = np.maximum(self.deviation, np.abs(excess))
        allowed = np.abs(excess[self.bins] + step) <= limit[self.bins]
        left = np.where(allowed, np.abs(self.missing - step * self.lengths), NONE)
        best = int(np.argmin(left))
        return _Change(int(left[best]), [best])

    def _two(self, length_bin: int) -> _Change:
        """The two documents of a bin to exchange."""
        here = self.bins == length_bin
        into, out = np.flatnonzero(here & ~self.chosen), np.flatnonzero(here & self.chosen)
        best = _Change(NONE, [])
        if into.size and out.size:
            out = out[np.argsort(self.lengths[out], kind="stable")]
            # for each that may come in, the two that fit best to go
            place = np.searchsorted(self.lengths[out], self.lengths[into] - self.missing)
            for at in (np.maximum(place - 1, 0), np.minimum(place, out.size - 1)):
                left = np.abs(self.missing - self.lengths[into] + self.lengths[out[at]])
                first = int(np.argmin(left))
                change = _Change(int(left[first]), [int(into[first]), int(out[at[first]])])
                best = min(best, change, key=lambda change: change.left)
        return best


SHARE_TOLERANCE = 0.01
"""What a source's tokens may be off by before a warning: 1 in 100."""


@dataclass(frozen=True)
class Selection:
    """The documents of a store in their splits; every array is [num_documents]."""

    splits: npt.NDArray[np.str_]
    """Name of the split."""
    weights: Float64Array
    """Expected copies in the training split, or what they would be there."""
    copies: Int64Array
    """Copies to pack."""


def select_documents(config: PrepareConfig, store: DocumentStore) -> Selection:
    """Splits and copies of all documents; in training each source meets its share of the tokens.

    Held out, a document stands once at most: the second time it tells nothing more. What is held
    out does not depend on ``max_tokens``, so that runs of different lengths can be compared.

    Raises:
        InputError: where a source would lose all its documents.
    """
    fractions = config.valid_fraction, config.test_fraction
    splits = np.asarray([sampling.split_of(i, *fractions, config.seed) for i in store.ids])
    trained = splits == "train"
    unlimited = sampling.document_weights(
        store.lengths, store.sources, store.source_names, config.sampling, trained
    )
    weights = sampling.limited_weights(unlimited, store.lengths, trained, config.max_tokens)
    units = sampling.sample_units(store.ids, config.seed)
    copies = sampling.num_copies(np.where(trained, weights, np.minimum(unlimited, 1)), units)
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
    if config.reading.source_key:  # then documents count for others than the inputs
        return shares
    lost = {found.name: found for found in store.inputs if found.name not in store.source_names}
    return [*shares, *(SourceShare(name, 0.0, 0.0, _lost(config, lost[name])) for name in lost)]


def _lost(config: PrepareConfig, found: InputSummary) -> str:
    """That nothing of an input is its own, and why."""
    others = ""
    if found.num_duplicates < found.num_documents:
        is_dropped = config.separator_in_text == "drop"
        others = ", or hold the separator" if is_dropped else ", or have no tokens"
    return (
        f"source {found.name!r} has none of the training tokens: all its documents "
        f"(number: {found.num_documents:,}) are equal to earlier ones, of sources before "
        f"it or its own{others}; name it before them, or leave it out"
    )


def _cause(
    config: PrepareConfig,
    store: DocumentStore,
    selection: Selection,
    kept: Int64Array,
    source: int,
) -> str:
    """Why a source misses its share, and the fix."""
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

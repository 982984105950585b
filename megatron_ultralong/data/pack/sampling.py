"""Which documents a corpus keeps, how often and in which split: reproducible by construction.

Every document has a weight ``w(source, length bin)``, its expected number of copies. A hash of the
document decides, ``copies = floor(w) + [u < frac(w)]`` with ``u = hash(seed, document)``; then the
copies of a few documents are changed, so that each source has the tokens that its weights stand
for. The order of the input changes nothing.

The paper (arXiv 2504.06214, section 3.1) takes fewer documents under 4K tokens and more over 8K,
after Fu et al. (arXiv 2402.10171), and keeps the mix of the sources. Its factors are not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

from megatron_ultralong.data.pack.packing import Int64Array
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range, check_ranges
from megatron_ultralong.program.quantity import LENGTH
from megatron_ultralong.sequence.documents import document_split, unit_hash

SHORT_LENGTH = 4096
"""Tokens under which a document is short, as in Fu's code and in the paper."""

ROWS_OF_SHORT = 16
"""A document is not short in a row that has fewer than so many times its tokens: Fu's rows have 20
times SHORT_LENGTH, the paper's 256 and more."""

MAX_MAKE_UP = 2.0
"""Most that a source's weights are raised by because more of it than of others is held out."""

SamplingName = Literal["ultralong", "fu", "none"]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LengthSampling:
    """Weights by length in tokens (real ones, without separator).

    Each source's weights are then scaled by one factor, so that it keeps its share of the tokens
    (:func:`document_weights`): where sources differ in length, a weight of 1 becomes 0.9 or 1.1.
    """

    name: Annotated[SamplingName, tyro.conf.arg(name="length-sampling")] = "fu"
    """fu: short documents at short_weight, all others at 1, as in Fu's code. ultralong: also long
    documents at long_weight, as in the paper. none: every document once. With fu and ultralong,
    sources are scaled to keep their shares of the tokens."""
    short_length: Annotated[int | None, Range(0), LENGTH] = None
    """Documents with fewer tokens are short. Default: 4096 as in the paper; in rows of less than
    65,536 tokens, a sixteenth of a row."""
    long_length: Annotated[int | None, Range(0), LENGTH] = None
    """Documents with at least this many tokens are long. Default: twice short_length, which is the
    paper's 8192 in rows of 65,536 tokens and more."""
    short_weight: Annotated[float, Range(0, 1000)] = 0.1
    """Weight of short documents; 0.1 as in Fu's code."""
    long_weight: Annotated[float, Range(0, 1000)] = 2.0
    """Weight of long documents with ultralong; our choice, the paper does not state it."""

    def check(self) -> None:
        """Raise InputError where a number is out of its range, or the fields do not fit."""
        check_ranges(self)
        short, long = self.edges
        if short > long:
            raise InputError(
                f"short_length ({short}) must be at most long_length ({long}): lengths between the "
                "two have weight 1"
            )

    def for_rows(self, seq_length: int) -> LengthSampling:
        """The same with both lengths set, as rows of ``seq_length`` tokens have them."""
        short, long = self._edges(seq_length)
        return replace(self, short_length=short, long_length=long)

    def _edges(self, seq_length: int) -> tuple[int, int]:
        short = self.short_length
        if short is None:
            short = min(SHORT_LENGTH, seq_length // ROWS_OF_SHORT)
            if self.long_length is not None:
                short = min(short, self.long_length)
        return short, 2 * short if self.long_length is None else self.long_length

    @property
    def edges(self) -> tuple[int, int]:
        """Tokens of the shortest document that is not short, and of the shortest long one."""
        return self._edges(ROWS_OF_SHORT * SHORT_LENGTH)

    def bin_names(self) -> tuple[str, str, str]:
        """Names of the length bins: ``("<4096", "4096-8191", ">=8192")``."""
        short, long = self.edges
        return f"<{short}", f"{short}-{long - 1}", f">={long}"

    def bin_weights(self) -> tuple[float, float, float]:
        """Weights of the length bins, before the mix of the sources is restored."""
        if self.name == "none":
            return 1.0, 1.0, 1.0
        return self.short_weight, 1.0, self.long_weight if self.name == "ultralong" else 1.0

    @property
    def keeps_mix(self) -> bool:
        """Whether every source keeps its share of the tokens."""
        return self.name != "none"

    def bins(self, lengths: Int64Array) -> Int64Array:
        """Length bin (0, 1, 2) of every document, shape [num_documents]."""
        return np.digitize(lengths, self.edges).astype(np.int64)


def document_weights(
    lengths: Int64Array,
    sources: Int64Array,
    source_names: Sequence[str],
    sampling: LengthSampling,
    in_training: BoolArray,
) -> Float64Array:
    """Expected copies of every document in the training split, shape [num_documents].

    The weights of a source's bins are scaled by one factor, so that the source's share of the
    training tokens is its share of all tokens found: a source that has fewer long documents keeps
    more of the others.

    Args:
        lengths: tokens of every document, shape [num_documents].
        sources: index of its source, shape [num_documents].
        source_names: names of the sources, for messages.
        sampling: the weights by length.
        in_training: whether it is in the training split; others have the weight that they would
            have there, shape [num_documents].

    Raises:
        InputError: where a source would lose all its documents.
    """
    weights = np.asarray(sampling.bin_weights())[sampling.bins(lengths)]
    count = len(source_names)

    def by_source(values: npt.NDArray[Any]) -> Float64Array:
        return np.bincount(sources, values, count).astype(np.float64)

    tokens, expected = by_source(lengths), by_source(weights * lengths)
    for name, before, after in zip(source_names, tokens, expected, strict=True):
        if before and not after:
            raise InputError(
                f"source {name!r}: all its {before:.0f} tokens have weight 0 under "
                f"--length-sampling {sampling.name} (short_length {sampling.edges[0]}, "
                f"short_weight {sampling.short_weight}); raise that weight or leave the source out"
            )
    trained = by_source(weights * lengths * in_training)
    asked = np.where(trained > 0, tokens if sampling.keeps_mix else trained, 0)
    scale = _ratio(asked / max(asked.sum(), 1) * trained.sum(), trained)
    # what is held out is made up for, but not by ever more copies of the little that is left
    usual = _ratio(tokens / max(tokens.sum(), 1) * expected.sum(), expected)
    scale = np.minimum(scale, MAX_MAKE_UP * usual)
    return np.asarray(weights * scale[sources])


def limited_weights(
    weights: Float64Array, lengths: Int64Array, in_training: BoolArray, max_tokens: int | None
) -> Float64Array:
    """The weights, scaled down alike until the training split has ``max_tokens``.

    Args:
        weights: of :func:`document_weights`, shape [num_documents]; the next two too.
        lengths: tokens of every document.
        in_training: whether it is in the training split.
        max_tokens: tokens of the training split at most; None: no limit.
    """
    total = float((weights * lengths * in_training).sum())
    if max_tokens is None or total <= max_tokens:
        return weights
    return np.asarray(weights * (max_tokens / total))


def _ratio(wanted: Float64Array, found: Float64Array) -> Float64Array:
    """Wanted over found, 1 where nothing is found."""
    return np.divide(wanted, found, out=np.ones_like(wanted), where=found > 0)


def sample_units(ids: Sequence[str], seed: int) -> Float64Array:
    """The hash of every document that decides on its copies, in [0, 1), shape [num_documents]."""
    return np.fromiter((unit_hash(seed, f"sample:{i}") for i in ids), np.float64, len(ids))


def num_copies(weights: Float64Array, units: Float64Array) -> Int64Array:
    """Copies of every document, shape [num_documents]: ``floor(w) + [u < frac(w)]``."""
    weights = np.round(weights, 9)  # 0.1 * 10 is one copy, not 0.999... of one
    whole = np.floor(weights)
    return (whole + (units < weights - whole)).astype(np.int64)


def mixed_order(copies: Int64Array, ids: Sequence[str], seed: int) -> Int64Array:
    """Documents (by index) in the order of packing, one entry a copy, shape [sum(copies)].

    Copy ``k`` of ``n`` stands at ``(k + u) / n`` of the corpus with ``u = hash(seed, document)``:
    sources and lengths are mixed evenly, and copies of one document stand far apart.
    """
    entries = np.repeat(np.arange(len(ids), dtype=np.int64), copies)
    starts = np.repeat(np.cumsum(copies) - copies, copies)
    k = np.arange(entries.size) - starts
    units = np.fromiter((unit_hash(seed, f"order:{i}") for i in ids), np.float64, len(ids))
    places = (k + units[entries]) / copies[entries]
    # equal places (all but impossible) fall back on the identity, not on the order of the input
    ranks = np.argsort(np.argsort(np.asarray(ids, dtype=np.str_), kind="stable"))
    return np.asarray(entries[np.lexsort((ranks[entries], places))])


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

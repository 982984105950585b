from random import Random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_ultralong.data.pack.sampling import (
    LengthSampling,
    document_weights,
    limited_weights,
    mixed_order,
    num_copies,
    sample_units,
)
from megatron_ultralong.data.prepare.selection import meet_target
from megatron_ultralong.program.errors import InputError


def names(count: int) -> list[str]:
    return [f"document-{i}" for i in range(count)]


def copies_of(weights: np.ndarray, ids: list[str], seed: int) -> np.ndarray:
    return num_copies(weights, sample_units(ids, seed))


def test_weights_by_length() -> None:
    lengths = np.array([0, 4095, 4096, 8191, 8192, 10**7])
    one_source = np.zeros(6, dtype=np.int64)

    def weights(name: str) -> list[float]:
        sampling = LengthSampling(name)  # type: ignore[arg-type]
        return document_weights(
            lengths, one_source, ["s"], sampling, np.ones(6, dtype=bool)
        ).tolist()

    assert weights("none") == [1, 1, 1, 1, 1, 1]
    assert weights("fu") == pytest.approx([0.1, 0.1, 1, 1, 1, 1])
    assert weights("ultralong") == pytest.approx([0.1, 0.1, 1, 1, 2, 2])
    assert LengthSampling().bin_names() == ("<4096", "4096-8191", ">=8192")


@given(
    st.lists(
        st.tuples(st.integers(1, 30_000), st.integers(0, 2), st.booleans()),
        min_size=1,
        max_size=50,
    ),
    st.sampled_from(["ultralong", "fu"]),
    st.none() | st.integers(1, 10**6),
)
def test_every_source_keeps_its_share_in_training(
    documents: list[tuple[int, int, bool]], name: str, max_tokens: int | None
) -> None:
    lengths, sources, trained = np.array(documents).T
    sampling, trained = LengthSampling(name), trained.astype(bool)  # type: ignore[arg-type]
    weights = document_weights(lengths, sources, "abc", sampling, trained)
    weights = limited_weights(weights, lengths, trained, max_tokens)
    found = np.bincount(sources, lengths, 3)
    after = np.bincount(sources, weights * lengths * trained, 3)
    if max_tokens is not None:
        assert after.sum() <= max_tokens * (1 + 1e-9)
    plain = np.array(sampling.bin_weights())[sampling.bins(lengths)]
    ratio = weights / plain
    for source in range(3):  # inside a source, bins keep the ratio of their weights
        own = sources == source
        assert np.ptp(ratio[own]) <= 1e-9 * ratio[own].max() if own.any() else True
    # sources of which nothing is held out keep their shares among each other
    whole = np.bincount(sources, ~trained, 3) == 0
    whole &= found > 0
    if max_tokens is None and whole.any():
        np.testing.assert_allclose(
            after[whole] / after[whole].sum(), found[whole] / found[whole].sum()
        )


def test_what_is_held_out_is_made_up_for_but_not_by_a_thousand_copies() -> None:
    lengths, sources = np.full(40, 10_000), np.repeat([0, 1], 20)
    trained = np.ones(40, dtype=bool)
    trained[[0, 1, 20]] = False
    sampling = LengthSampling("ultralong")
    weights = document_weights(lengths, sources, "ab", sampling, trained)
    after = np.bincount(sources, weights * lengths * trained)
    assert after[0] == pytest.approx(after[1])
    trained[:19] = False  # one of twenty documents is left
    weights = document_weights(lengths, sources, "ab", sampling, trained)
    assert weights[19] == pytest.approx(4.0)  # twice its 2.0, not forty times
    trained[:] = False
    assert document_weights(lengths, sources, "ab", sampling, trained).max() < 5


def test_none_takes_every_document_once() -> None:
    lengths, sources = np.arange(1, 41) * 500, np.repeat([0, 1], 20)
    trained = np.arange(40) % 7 > 0
    plain = LengthSampling("none")
    assert (document_weights(lengths, sources, "ab", plain, trained) == 1).all()
    half = int(lengths[trained].sum()) // 2
    weights = document_weights(lengths, sources, "ab", plain, trained)
    weights = limited_weights(weights, lengths, trained, half)
    assert (weights * lengths)[trained].sum() == pytest.approx(half)
    assert np.ptp(weights) == 0


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0, 2.0, 2.7])
def test_copies_follow_the_weight(weight: float) -> None:
    copies = copies_of(np.full(4000, weight), names(4000), seed=3)
    assert set(copies.tolist()) <= {int(np.floor(weight)), int(np.ceil(weight))}
    # 5 standard deviations of a binomial: one run in two million is further off
    fraction = weight % 1
    assert abs(copies.mean() - weight) <= 5 * np.sqrt(fraction * (1 - fraction) / 4000)


def test_shares_meet_their_targets_and_counts_pass_a_chi_square_test() -> None:
    lengths = np.exp(np.random.default_rng(5).uniform(np.log(500), np.log(60_000), 12_000))
    lengths = lengths.astype(np.int64)
    sources = np.where(np.arange(12_000) < 200, 2, np.arange(12_000) % 2)  # the last one is small
    sampling = LengthSampling("ultralong", long_weight=2.5)
    weights = document_weights(lengths, sources, "abc", sampling, np.ones(12_000, dtype=bool))
    units = sample_units(names(12_000), seed=7)
    bins = sampling.bins(lengths)
    copies = num_copies(weights, units)
    by_hash = copies.copy()
    for source in range(3):
        own = sources == source
        columns = (x[own] for x in (copies, weights, units, lengths, bins))
        copies[own] = meet_target(*columns)
    chi_square = 0.0
    for source in range(3):
        for length_bin in range(3):
            own = (sources == source) & (bins == length_bin)
            fraction = weights[own][0] % 1
            expected, variance = weights[own].sum(), own.sum() * fraction * (1 - fraction)
            chi_square += (copies[own].sum() - expected) ** 2 / variance
    found = np.bincount(sources, lengths) / lengths.sum()
    share = np.bincount(sources, copies * lengths) / (copies * lengths).sum()
    np.testing.assert_allclose(share, found, rtol=0.002)  # 1 in 1,000 each, of it and of the sum
    off = np.bincount(sources, by_hash * lengths) / (by_hash * lengths).sum() / found - 1
    assert abs(off).max() > 0.01  # by the hash alone the small source misses
    assert 0 < (copies != by_hash).sum() <= 15
    # with 9 degrees of freedom it is above 33.7 once in 10,000 choices of the keys
    assert chi_square < 33.7


@given(
    st.lists(st.tuples(st.integers(1, 20_000), st.integers(0, 1)), min_size=1, max_size=8),
    st.lists(st.floats(0, 3), min_size=2, max_size=2),
    st.integers(0, 20),
    st.randoms(),
)
@example([(1, 0), (2, 0)], [1.5, 0.0], 0, Random(0))
@example([(1, 0)], [1.5, 0.0], 1, Random(0))
def test_target_is_met_as_nearly_as_two_documents_can(documents, by_bin, seed, random) -> None:
    lengths, bins = np.array(documents).T
    weights = np.round(np.array(by_bin), 9)[bins]
    ids = names(len(lengths))
    units = sample_units(ids, seed)
    by_hash = num_copies(weights, units)
    copies = meet_target(by_hash, weights, units, lengths, bins)
    assert ((copies == np.floor(weights)) | (copies == np.ceil(weights))).all()
    target = (weights * lengths).sum()
    # Half a token is as near to either side: the side of meet_target, which rounds what is chosen.
    whole = np.floor(weights)
    nearest = (whole * lengths).sum() + round(((weights - whole) * lengths).sum())

    def missing(candidate: np.ndarray) -> float:
        return abs(nearest - (candidate * lengths).sum())

    assert missing(copies) <= missing(by_hash)
    # the order of the input changes nothing
    order = list(range(len(lengths)))
    random.shuffle(order)
    again = meet_target(by_hash[order], weights[order], units[order], lengths[order], bins[order])
    np.testing.assert_array_equal(again, copies[order])
    if missing(copies) <= 0.001 * target:
        return
    # no exchange of two documents of a bin would come nearer
    up = np.flatnonzero(copies < np.ceil(weights))
    down = np.flatnonzero(copies > np.floor(weights))
    for i in up:
        for j in down[bins[down] == bins[i]]:
            other = copies.copy()
            other[[i, j]] += [1, -1]
            assert missing(other) >= missing(copies) - 1e-6


def test_one_document_is_taken_as_often_as_comes_nearest() -> None:
    for weight, copies in ((0.3, 0), (0.7, 1), (1.4, 1), (1.6, 2), (2.0, 2)):
        for seed in range(5):
            units = sample_units(["d"], seed)
            one = np.array([weight])
            found = meet_target(num_copies(one, units), one, units, np.array([9]), np.array([0]))
            assert found.tolist() == [copies]


def test_the_hash_decides_for_each_document_alone() -> None:
    weights = np.linspace(0, 3, 200)
    copies = copies_of(weights, names(200), seed=1)
    np.testing.assert_array_equal(copies_of(weights[50:], names(200)[50:], seed=1), copies[50:])
    assert (copies_of(weights, names(200), seed=2) != copies).any()
    more = copies_of(weights + 0.2, names(200), seed=1)
    assert (more >= copies).all()  # a higher weight never loses a document


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 10), st.randoms())
def test_order_holds_every_copy_whatever_the_order_of_the_input(counts, seed, random) -> None:
    ids = names(len(counts))
    order = mixed_order(np.array(counts), ids, seed)
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    shuffled = list(range(len(counts)))
    random.shuffle(shuffled)
    again = mixed_order(np.array(counts)[shuffled], [ids[i] for i in shuffled], seed)
    assert [ids[shuffled[i]] for i in again] == [ids[i] for i in order]


def test_copies_stand_far_apart_and_sources_are_mixed() -> None:
    copies = np.full(1000, 3)
    order = mixed_order(copies, names(1000), seed=0)
    places = np.argsort(order, kind="stable").reshape(1000, 3)  # of the copies of each document
    # places are k/3 + u/3 of 3000, and ranks differ from it by some standard deviations, < 50 each
    assert (np.diff(places, axis=1) > 900).all()
    half = order[:1500]
    assert abs((half < 500).mean() - 0.5) < 0.1  # 2000 documents in order would give 1.0


@pytest.mark.parametrize(
    ("seq_length", "edges"),
    [
        (1 << 20, (4096, 8192)),  # the paper's rows
        (4 << 20, (4096, 8192)),
        (81_920, (4096, 8192)),  # Fu's
        (65_536, (4096, 8192)),
        (32_768, (2048, 4096)),
        (2048, (128, 256)),
        (16, (1, 2)),
        (2, (0, 0)),
    ],
)
def test_the_default_lengths_are_the_papers_or_those_of_shorter_rows(seq_length, edges) -> None:
    sampling = LengthSampling().for_rows(seq_length)
    assert (sampling.short_length, sampling.long_length) == sampling.edges == edges
    sampling.check()
    given = LengthSampling(short_length=4096, long_length=8192)
    assert given.for_rows(seq_length) == given
    assert LengthSampling(short_length=10).for_rows(seq_length).edges == (10, 20)
    assert LengthSampling(long_length=50).for_rows(seq_length).edges == (min(50, edges[0]), 50)


def test_short_rows_keep_documents_that_are_short_only_in_long_ones() -> None:
    """232 documents of 300 to 4,095 tokens in rows of 2,048: all; in the paper's: a tenth."""
    lengths = np.linspace(300, 4095, 232).astype(np.int64)
    ids, nothing = names(232), np.zeros(232, dtype=np.int64)

    def kept(seq_length: int) -> int:
        sampling = LengthSampling().for_rows(seq_length)
        trained = np.ones(232, dtype=bool)
        weights = document_weights(lengths, nothing, ["a"], sampling, trained)
        return int(num_copies(weights, sample_units(ids, 1234)).sum())

    assert kept(2048) == 232
    assert 10 < kept(1 << 20) < 40


def test_bad_options() -> None:
    with pytest.raises(InputError, match=r"short_length \(9\) must be at most long_length \(8\)"):
        LengthSampling(short_length=9, long_length=8).check()
    with pytest.raises(InputError, match="short_weight must be at least 0, not -1"):
        LengthSampling(short_weight=-1).check()
    with pytest.raises(InputError, match=r"source 'b': all its 5 tokens have weight 0"):
        document_weights(
            np.array([9000, 5]),
            np.array([0, 1]),
            ["a", "b"],
            LengthSampling(short_weight=0),
            np.ones(2, dtype=bool),
        )

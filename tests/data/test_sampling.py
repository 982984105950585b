import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.data.sampling import (
    LengthSampling,
    document_weights,
    mixed_order,
    num_copies,
)
from megatron_ultralong.errors import InputError


def names(count: int) -> list[str]:
    return [f"document-{i}" for i in range(count)]


def test_weights_by_length() -> None:
    lengths = np.array([0, 4095, 4096, 8191, 8192, 10**7])
    one_source = np.zeros(6, dtype=np.int64)

    def weights(name: str) -> list[float]:
        sampling = LengthSampling(name)  # type: ignore[arg-type]
        return document_weights(lengths, one_source, ["s"], sampling).tolist()

    assert weights("none") == [1, 1, 1, 1, 1, 1]
    assert weights("fu") == pytest.approx([0.1, 0.1, 1, 1, 1, 1])
    assert weights("ultralong") == pytest.approx([0.1, 0.1, 1, 1, 2, 2])
    assert LengthSampling().bin_names() == ("<4096", "4096-8191", ">=8192")


@given(
    st.lists(st.tuples(st.integers(1, 30_000), st.integers(0, 2)), min_size=1, max_size=50),
    st.sampled_from(["ultralong", "fu", "none"]),
    st.none() | st.integers(1, 10**6),
)
def test_every_source_keeps_its_share(
    documents: list[tuple[int, int]], name: str, max_tokens: int | None
) -> None:
    lengths, sources = np.array(documents).T
    weights = document_weights(lengths, sources, "abc", LengthSampling(name), max_tokens)  # type: ignore[arg-type]
    before = np.bincount(sources, lengths, 3)
    after = np.bincount(sources, weights * lengths, 3)
    np.testing.assert_allclose(after / after.sum(), before / before.sum())
    if max_tokens is not None:
        assert after.sum() <= max_tokens * (1 + 1e-9)
    for source in range(3):  # inside a source, bins keep the ratio of their weights
        mine = sources == source
        ratio = (
            weights
            / np.array(LengthSampling(name).bin_weights())[  # type: ignore[arg-type]
                LengthSampling().bins(lengths)
            ]
        )
        assert np.ptp(ratio[mine]) < 1e-9 if mine.any() else True


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0, 2.0, 2.7])
def test_copies_follow_the_weight(weight: float) -> None:
    copies = num_copies(np.full(4000, weight), names(4000), seed=3)
    assert set(copies.tolist()) <= {int(np.floor(weight)), int(np.ceil(weight))}
    # 5 standard deviations of a binomial: one run in two million is further off
    fraction = weight % 1
    assert abs(copies.mean() - weight) <= 5 * np.sqrt(fraction * (1 - fraction) / 4000)


def test_counts_of_source_and_bin_pass_a_chi_square_test() -> None:
    lengths = np.exp(np.random.default_rng(5).uniform(np.log(500), np.log(60_000), 12_000))
    lengths = lengths.astype(np.int64)
    sources = np.arange(12_000) % 3
    sampling = LengthSampling("ultralong", long_weight=2.5)
    weights = document_weights(lengths, sources, "abc", sampling)
    copies = num_copies(weights, names(12_000), seed=7)
    chi_square = 0.0
    for source in range(3):
        for length_bin in range(3):
            mine = (sources == source) & (sampling.bins(lengths) == length_bin)
            fraction = weights[mine][0] % 1
            expected, variance = weights[mine].sum(), mine.sum() * fraction * (1 - fraction)
            chi_square += (copies[mine].sum() - expected) ** 2 / variance
        share = (copies * lengths)[sources == source].sum() / (copies * lengths).sum()
        target = lengths[sources == source].sum() / lengths.sum()
        assert abs(share - target) < 0.01
    # with 9 degrees of freedom it is above 33.7 once in 10,000 choices of the keys
    assert chi_square < 33.7


def test_a_copy_depends_on_the_document_alone() -> None:
    weights = np.linspace(0, 3, 200)
    copies = num_copies(weights, names(200), seed=1)
    np.testing.assert_array_equal(num_copies(weights[50:], names(200)[50:], seed=1), copies[50:])
    assert (num_copies(weights, names(200), seed=2) != copies).any()
    more = num_copies(weights + 0.2, names(200), seed=1)
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


def test_bad_options() -> None:
    with pytest.raises(InputError, match=r"short_length \(9\) must be at most long_length \(8\)"):
        LengthSampling(short_length=9, long_length=8)
    with pytest.raises(InputError, match=r"short_weight \(-1\)"):
        LengthSampling(short_weight=-1)
    with pytest.raises(InputError, match=r"source 'b': all its 5 tokens have weight 0"):
        document_weights(
            np.array([9000, 5]), np.array([0, 1]), ["a", "b"], LengthSampling(short_weight=0)
        )

"""The passkey prompt: exact length, the asked depth, an answer that reads as the key."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.evaluation.retrieval.passkey_prompt import (
    INTRODUCTION,
    NOISE,
    passkey,
    passkey_prompt,
)
from megatron_ultralong.program.errors import InputError


def encode_characters(text: str) -> list[int]:
    return [ord(character) for character in text]


def encode_words(text: str) -> list[int]:
    """Ids of space-led words, the digits two by two: a space may belong to a digit's token."""
    pieces: list[str] = []
    for word in text.replace("\n", "\n ").split(" "):
        led = f" {word}"
        pieces += [led[i : i + 2] for i in range(0, len(led), 2)] if word[:1].isdigit() else [led]
    return [int.from_bytes(piece.encode(), "big") % (2**61 - 1) for piece in pieces]


def decode_characters(tokens: np.ndarray) -> str:
    return "".join(map(chr, tokens.tolist()))


lengths = st.integers(min_value=300, max_value=3000)
depths = st.floats(min_value=0.0, max_value=1.0)
seeds = st.integers(min_value=0, max_value=2**31)


@given(length=lengths, depth=depths, seed=seeds, num_digits=st.integers(1, 9))
def test_length_is_exact_and_the_tail_reads_as_the_key(length, depth, seed, num_digits):
    prompt = passkey_prompt(encode_characters, length, depth, seed=seed, num_digits=num_digits)
    assert prompt.tokens.shape == (length,)
    assert decode_characters(prompt.answer) == prompt.key
    assert len(prompt.key) == num_digits
    text = decode_characters(prompt.tokens)
    assert text.startswith(INTRODUCTION)
    assert text.endswith(f"What is the pass key? The pass key is {prompt.key}")
    # Twice in the needle, once as the answer; a short key may stand inside itself nowhere else.
    assert text.count(f"The pass key is {prompt.key}.") == 1
    assert text.count(f" {prompt.key} is the pass key.\n") == 1


@given(length=lengths, depth=depths, seed=seeds)
def test_needle_stands_at_the_asked_depth_between_two_lines(length, depth, seed):
    prompt = passkey_prompt(encode_characters, length, depth, seed=seed)
    text = decode_characters(prompt.tokens)
    assert text[prompt.needle_start :].startswith(f"The pass key is {prompt.key}. Remember it.")
    assert text[prompt.needle_start - 1] == "\n"
    needle = f"The pass key is {prompt.key}. Remember it. {prompt.key} is the pass key.\n"
    tail = f"What is the pass key? The pass key is {prompt.key}"
    room = length - len(INTRODUCTION) - len(needle) - len(tail)
    # Lines are whole, so the nearest line end is at most half a line away.
    assert abs(prompt.needle_start - len(INTRODUCTION) - depth * room) <= len(NOISE) / 2


@given(length=lengths, depth=depths, seed=seeds)
def test_own_haystack_is_kept_in_order_and_cut_at_the_depth(length, depth, seed):
    haystack = np.arange(10_000, 10_000 + length)
    prompt = passkey_prompt(encode_characters, length, depth, seed=seed, haystack=haystack)
    assert prompt.tokens.shape == (length,)
    (kept,) = np.nonzero(prompt.tokens >= 10_000)
    np.testing.assert_array_equal(prompt.tokens[kept], haystack[: kept.size])
    assert abs((kept < prompt.needle_start).sum() - depth * kept.size) <= 0.5


@given(length=lengths, depth=depths, seed=seeds)
def test_a_tokenizer_that_joins_space_and_digit(length, depth, seed):
    prompt = passkey_prompt(encode_words, length, depth, seed=seed)
    assert prompt.tokens.shape == (length,)
    assert prompt.answer.tolist() == encode_words(f"x {prompt.key}")[1:]


@given(seed=seeds, index=st.integers(0, 1000))
def test_a_function_of_seed_and_index(seed, index):
    def prompt_of(index: int):
        return passkey_prompt(encode_characters, 400, 0.5, seed=seed, index=index)

    np.testing.assert_array_equal(prompt_of(index).tokens, prompt_of(index).tokens)
    assert prompt_of(index).key == passkey(seed, index)


def test_keys_differ_between_samples_and_seeds():
    keys = {passkey(seed, index) for seed in range(10) for index in range(10)}
    assert len(keys) > 95  # 100 draws of 90,000: two equal ones are already unlikely
    assert all(10_000 <= int(key) <= 99_999 for key in keys)


def test_every_answer_token_has_to_be_the_argmax():
    prompt = passkey_prompt(encode_characters, 400, 0.3, seed=1)
    correct = np.ones(399, dtype=bool)
    assert prompt.hits(correct).shape == prompt.answer.shape
    for position in range(prompt.answer_start, 400):
        wrong = correct.copy()
        wrong[position - 1] = False  # what predicts it
        assert prompt.hits(wrong).tolist() == [
            k != position for k in range(prompt.answer_start, 400)
        ]
    correct[: prompt.answer_start - 1] = False
    assert prompt.hits(correct).all()


def test_shortest_prompt_and_one_token_less():
    with pytest.raises(InputError, match=r"length \(10\) is too short .* at least 249"):
        passkey_prompt(encode_characters, 10, 0.5, seed=1)
    assert passkey_prompt(encode_characters, 249, 0.5, seed=1).tokens.shape == (249,)
    with pytest.raises(InputError, match=r"length \(248\)"):
        passkey_prompt(encode_characters, 248, 0.5, seed=1)


def test_bad_depth_and_short_haystack_are_refused():
    with pytest.raises(InputError, match=r"depth must be between 0 and 1, not 1\.5"):
        passkey_prompt(encode_characters, 400, 1.5, seed=1)
    with pytest.raises(InputError, match=r"haystack \(3 tokens\) is too short.* leaves 151"):
        passkey_prompt(encode_characters, 400, 0.5, seed=1, haystack=[1, 2, 3])

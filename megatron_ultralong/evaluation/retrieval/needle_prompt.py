"""The needle prompt: a sentence with a code, in running text, asked for at its end.

Unlike the passkey's, its haystack does not repeat itself, and sentences of the needle's form about
other cities stand in it too, so that finding an odd line out is not enough. It is scored like the
passkey: the code counts as retrieved where greedy decoding would write all of it.
"""

from __future__ import annotations

import numpy as np

from megatron_ultralong.evaluation.retrieval.needle_haystack import Haystack, Stretch
from megatron_ultralong.evaluation.retrieval.passkey_prompt import (
    Encode,
    PasskeyPrompt,
    passkey,
    question_with_answer,
)
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.documents import unit_hash

PROMPT_VERSION = 1
"""Raised where the same arguments give another prompt than before."""

INTRODUCTION = (
    "Read the text below. Somewhere in it a sentence states the door code of a city hall; you "
    "will be asked for it at the end.\n\n"
)
NEEDLE = "The door code of the city hall in {city} is {code}.\n"
QUESTION = (
    "\nWhat is the door code of the city hall in {city}? "
    "The door code of the city hall in {city} is"
)
CITIES = (
    "Lisbon", "Nairobi", "Osaka", "Quito", "Tallinn", "Hanoi", "Dakar", "Bergen", "Cusco", "Perth",
    "Riga", "Tunis", "Oaxaca", "Porto", "Kyoto", "Accra", "Bremen", "Davao", "Elblag", "Fargo",
    "Galway",
)  # fmt: skip


def needle_prompt(
    encode: Encode,
    length: int,
    depth: float,
    *,
    seed: int,
    index: int,
    haystack: Haystack,
    num_distractors: int = 3,
    num_digits: int = 5,
) -> PasskeyPrompt:
    """A prompt of exactly ``length`` tokens, answer included: a function of its arguments alone.

    The needle stands between two sentences, nearest to ``depth``; the first sentence of the
    haystack is cut from the left to make the length exact.

    Args:
        encode: text to ids, without special tokens.
        length: tokens of prompt and answer together.
        depth: where in the haystack the needle stands, 0 to 1.
        seed: with ``index``, determines code, city, distractors and haystack.
        index: number of the sample.
        haystack: what it is hidden in.
        num_distractors: sentences of the same form about other cities.
        num_digits: digits of a code; the first is not 0.

    Raises:
        InputError: ``length`` has no room for the fixed parts, the haystack is too short, or
            ``depth`` is not within 0 and 1.
    """
    if not 0.0 <= depth <= 1.0:
        raise InputError(f"depth must be between 0 and 1, not {depth}")
    random = np.random.default_rng(int(unit_hash(seed, f"needle:{index}") * 2**53))
    cities = [CITIES[i] for i in random.permutation(len(CITIES))[: num_distractors + 1]]
    code = passkey(seed, index, num_digits)
    others = random.integers(10 ** (num_digits - 1), 10**num_digits, size=num_distractors)
    # A distractor with the needle's code would make a wrong answer right.
    codes = [code, *(str(other if str(other) != code else other - 1) for other in others.tolist())]
    needles = [
        encode(NEEDLE.format(city=city, code=its)) for city, its in zip(cities, codes, strict=True)
    ]
    introduction = encode(INTRODUCTION)
    question, answer = question_with_answer(encode, QUESTION.format(city=cities[0]), code)
    room = length - sum(map(len, (introduction, question, answer, *needles)))
    if room < 0:
        raise InputError(
            f"length ({length}) is too short for a needle prompt: introduction, "
            f"{len(needles)} needles, question and answer alone take {length - room} tokens; ask "
            f"for at least {length - room}, or lower --num-distractors"
        )
    text = haystack.stretch(room, random)
    body, start = _hide(text, needles, depth, random)
    parts = [introduction, body, question, answer]
    return PasskeyPrompt(
        tokens=np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]),
        answer_start=length - len(answer),
        needle_start=len(introduction) + start,
        key=code,
        depth=depth,
    )


def _hide(
    text: Stretch, needles: list[list[int]], depth: float, random: np.random.Generator
) -> tuple[np.ndarray, int]:
    """The text with the needles in it, and where the first of them, the one asked for, starts."""
    nearest = np.abs(text.edges - depth * text.tokens.size).argmin()
    places = [int(text.edges[nearest])]
    places += random.choice(text.edges, size=len(needles) - 1).tolist()
    pieces, start, done = [], 0, 0
    for place, number in sorted(zip(places, range(len(needles)), strict=True)):
        pieces.append(text.tokens[done:place])
        if number == 0:
            start = sum(map(len, pieces))
        pieces.append(np.asarray(needles[number], dtype=np.int64))
        done = place
    return np.concatenate([*pieces, text.tokens[done:]]), start

"""The passkey prompt: a number hidden at a depth of a long text, asked for at its end.

The form is InfiniteBench's (arXiv 2402.13718, ``passkey``): an introduction, a haystack, a needle
that states a random key, and a question whose completion is the key. Everything is put together
as token ids, so a prompt has exactly the length that is asked for, with any tokenizer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.documents import unit_hash

Encode = Callable[[str], list[int]]
"""Text to token ids, without special tokens."""

PROMPT_VERSION = 1
"""Counts up when the prompt changes."""
INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
)
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "What is the pass key? The pass key is"


@dataclasses.dataclass(frozen=True)
class PasskeyPrompt:
    """A prompt together with its answer; made by :func:`passkey_prompt`."""

    tokens: npt.NDArray[np.int64]
    """Prompt and answer, shape [length]."""
    answer_start: int
    """Position of the first answer token; the answer runs to the end of ``tokens``."""
    needle_start: int
    """Position of the first token of the sentence that states the key."""
    key: str
    """The hidden number, as text."""

    @property
    def answer(self) -> npt.NDArray[np.int64]:
        """Ids of the answer, shape [num_answer_tokens]."""
        return self.tokens[self.answer_start :]

    def hits(self, correct: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which tokens of the answer greedy decoding writes, as long as it writes all before them.

        Args:
            correct: whether the argmax at every position is the next token, shape [length - 1].
        """
        return correct[self.answer_start - 1 :]


def hidden(
    encode: Encode,
    length: int,
    texts: tuple[str, Sequence[str], str],
    key: str,
    fill: Callable[[int, list[list[int]]], tuple[npt.NDArray[np.int64], int]],
    *,
    what: str,
    way_out: str = "",
) -> PasskeyPrompt:
    """A prompt of exactly ``length`` tokens, of introduction, needles and question, whose answer
    is ``key``, which the first of the needles states.

    ``fill`` makes the haystack with the needles in it, of so many tokens beside theirs, and says
    where the first one starts. ``what`` begins a message, ``way_out`` ends it.

    Raises:
        InputError: ``length`` has no room for the fixed parts.
    """
    introduction, needles = encode(texts[0]), [encode(text) for text in texts[1]]
    question, answer = question_with_answer(encode, texts[2], key)
    room = length - sum(map(len, (introduction, question, answer, *needles)))
    if room < 0:
        raise InputError(
            f"length ({length}) is too short for a {what}, question "
            f"and answer alone take {length - room} tokens; ask for at least {length - room}"
            f"{way_out}"
        )
    body, start = fill(room, needles)
    parts = [np.asarray(part, np.int64) for part in (introduction, body, question, answer)]
    tokens = np.concatenate(parts)
    return PasskeyPrompt(tokens, tokens.size - len(answer), len(introduction) + start, key)


def check_depth(depth: float) -> None:
    """Raise InputError where a needle would stand outside its haystack."""
    if not 0.0 <= depth <= 1.0:
        raise InputError(f"depth must be between 0 and 1, not {depth}")


def passkey_prompt(
    encode: Encode,
    length: int,
    depth: float,
    *,
    seed: int,
    index: int = 0,
    haystack: Sequence[int] | npt.NDArray[np.integer] | None = None,
    num_digits: int = 5,
) -> PasskeyPrompt:
    """A prompt of exactly ``length`` tokens, answer included: a function of its arguments alone.

    With the noise haystack the needle stands between two lines, the nearest to ``depth`` (0: after
    the introduction, 1: before the question); the first line is cut from the left to make the
    length exact. A haystack of one's own, in ids, is cut after as many tokens as fit, and the
    needle stands where ``depth`` says. ``seed`` and ``index`` determine the key.

    Raises:
        InputError: ``length`` has no room for the fixed parts, ``haystack`` is too short, or
            ``depth`` is not within 0 and 1.
    """
    check_depth(depth)
    key = passkey(seed, index, num_digits)

    def fill(room: int, needles: list[list[int]]) -> tuple[npt.NDArray[np.int64], int]:
        if haystack is None:
            filler, before = _noise(encode, room, depth)
        else:
            filler, before = _cut(haystack, room, length), round(depth * room)
        return np.insert(filler, before, needles[0]), before

    texts = (INTRODUCTION, [NEEDLE.format(key=key)], QUESTION)
    what = "passkey prompt: introduction, needle"
    return hidden(encode, length, texts, key, fill, what=what)


def passkey(seed: int, index: int, num_digits: int = 5) -> str:
    """The key of sample ``index``: uniform over the numbers of ``num_digits`` digits."""
    low, high = 10 ** (num_digits - 1), 10**num_digits
    return str(low + int(unit_hash(seed, f"passkey:{index}") * (high - low)))


def question_with_answer(encode: Encode, question: str, key: str) -> tuple[list[int], list[int]]:
    """Ids of a question and of its answer, split where the key begins to show: tokenizers differ
    in whether the space before a digit is a token of its own.
    """
    whole, bare = encode(f"{question} {key}"), encode(f"{question} ")
    common = takewhile(lambda pair: pair[0] == pair[1], zip(whole, bare, strict=False))
    num_common = sum(1 for _ in common)
    return whole[:num_common], whole[num_common:]


def _noise(encode: Encode, room: int, depth: float) -> tuple[npt.NDArray[np.int64], int]:
    """Noise of ``room`` tokens that ends with a whole line, and where the needle goes in it."""
    line = np.asarray(encode(NOISE), dtype=np.int64)
    num_lines = -(-room // line.size)
    filler = np.tile(line, num_lines)[num_lines * line.size - room :]
    line_ends = np.append(0, np.arange(room % line.size, room + 1, line.size))
    return filler, int(line_ends[np.abs(line_ends - depth * room).argmin()])


def _cut(
    haystack: Sequence[int] | npt.NDArray[np.integer], room: int, length: int
) -> npt.NDArray[np.int64]:
    if len(haystack) < room:
        raise InputError(
            f"haystack ({len(haystack)} tokens) is too short: a prompt of {length} tokens leaves "
            f"{room} of them to fill; give a longer haystack or ask for a shorter prompt"
        )
    return np.asarray(haystack[:room], dtype=np.int64)

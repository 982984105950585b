"""The needle prompt: a sentence with a code, in running text, asked for at its end.

Unlike the passkey's, its haystack does not repeat itself, and sentences of the needle's form about
other cities stand in it too, so that finding an odd line out is not enough. It is scored like the
passkey: the code counts as retrieved where greedy decoding would write all of it.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.read.record import read_named_text
from megatron_ultralong.evaluation.retrieval import passkey_prompt
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json
from megatron_ultralong.sequence.documents import unit_hash

IdArray = npt.NDArray[np.int64]

NUM_MADE_UP = 2048
"""Different sentences that a made-up haystack is drawn from."""

_SENTENCE = re.compile(r".+?(?:[.!?]+[\"')\]]*\s+|\n+|\Z)", re.DOTALL)

_WORDS = read_json(Path(__file__).with_suffix(".json"))
INTRODUCTION, NEEDLE, QUESTION = (_WORDS[part] for part in ("introduction", "needle", "question"))
CITIES = _WORDS["cities"].split(", ")
NUM_DIGITS = 5
"""Of a code; the first is not 0."""
PROMPT_VERSION = 1
"""Raised where the same arguments give another prompt than before."""


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A piece of running text."""

    tokens: IdArray
    """Shape [length]; its first sentence may be cut from the left."""
    edges: IdArray
    """Places between sentences, ascending, the start and the end among them."""


class Haystack:
    """Sentences as token ids, none empty, which a message calls ``source``.

    ``in_order``: a stretch is a run of them, from a random one on, continuing from the first after
    the last; else each is drawn at random.
    """

    def __init__(self, sentences: Sequence[IdArray], *, in_order: bool, source: str) -> None:
        self._sentences = sentences
        self._lengths = np.asarray([ids.size for ids in sentences], dtype=np.int64)
        self._in_order = in_order
        self._source = source

    def stretch(self, length: int, random: np.random.Generator) -> Stretch:
        """``length`` tokens that end with a whole sentence.

        Raises:
            InputError: files that are shorter.
        """
        total = int(self._lengths.sum())
        if self._in_order and total < length:
            raise InputError(
                f"haystack {self._source} has {total} tokens, and a prompt leaves {length} of them "
                "to fill: give more text, or ask for shorter prompts"
            )
        num = len(self._sentences)
        if self._in_order:
            numbers = np.roll(np.arange(num), -int(random.integers(num)))
        else:
            most = length // int(self._lengths.min()) + 1
            numbers = random.integers(num, size=most)
        ends = np.cumsum(self._lengths[numbers])
        count = int(np.searchsorted(ends, length)) + 1 if length else 0
        pieces = [self._sentences[number] for number in numbers[:count].tolist()]
        whole = np.concatenate([np.zeros(0, np.int64), *pieces])
        cut = whole.size - length
        edges = ends[:count] - cut
        return Stretch(whole[cut:], np.unique(np.concatenate(([0], edges[edges >= 0]))))


def made_up(encode: passkey_prompt.Encode, seed: int) -> Haystack:
    """Sentences of a dozen parts each way, :data:`NUM_MADE_UP` of the 20,736 there are."""
    random = np.random.default_rng(seed)
    parts = [_WORDS[part].split(", ") for part in ("who", "did", "what", "when")]
    numbers = random.choice(int(np.prod([len(p) for p in parts])), NUM_MADE_UP, replace=False)
    places = np.unravel_index(numbers, [len(part) for part in parts])
    texts = [
        " ".join(part[i] for part, i in zip(parts, where, strict=True)) + ".\n"
        for where in zip(*(place.tolist() for place in places), strict=True)
    ]
    ids = [np.asarray(encode(text), dtype=np.int64) for text in texts]
    return Haystack(ids, in_order=False, source="made up")


def of_files(encode: passkey_prompt.Encode, files: Sequence[str]) -> Haystack:
    """Sentences of text files, one file after the other.

    Raises:
        InputError: a file cannot be read, or has no text.
    """
    ids: list[IdArray] = []
    for name in files:
        sentences = _SENTENCE.findall(read_named_text("haystack", name))
        encoded = [np.asarray(encode(sentence), dtype=np.int64) for sentence in sentences]
        found = [sentence for sentence in encoded if sentence.size]
        if not found:
            raise InputError(f"haystack {name} has no text: name another file")
        ids += found
    return Haystack(ids, in_order=True, source=", ".join(files))


def needle_prompt(
    encode: passkey_prompt.Encode,
    length: int,
    depth: float,
    *,
    seed: int,
    index: int,
    haystack: Haystack,
    num_distractors: int = 3,
) -> passkey_prompt.PasskeyPrompt:
    """A prompt of exactly ``length`` tokens, answer included: a function of its arguments alone.

    The needle stands between two sentences, nearest to ``depth`` (0 to 1) of the ``haystack``; the
    first sentence is cut from the left to make the length exact. ``seed`` and ``index`` determine
    code, city, haystack, and the ``num_distractors`` sentences about other cities.

    Raises:
        InputError: ``length`` has no room for the fixed parts, the haystack is too short, or
            ``depth`` is not within 0 and 1.
    """
    passkey_prompt.check_depth(depth)
    random = np.random.default_rng(int(unit_hash(seed, f"needle:{index}") * 2**53))
    cities = [CITIES[i] for i in random.permutation(len(CITIES))[: num_distractors + 1]]
    code = passkey_prompt.passkey(seed, index, NUM_DIGITS)
    others = random.integers(10 ** (NUM_DIGITS - 1), 10**NUM_DIGITS, size=num_distractors)
    # A distractor with the needle's code would make a wrong answer right.
    codes = [code, *(str(other if str(other) != code else other - 1) for other in others.tolist())]
    needles = [NEEDLE.format(city=city, code=its) for city, its in zip(cities, codes, strict=True)]

    def fill(room: int, its: list[list[int]]) -> tuple[IdArray, int]:
        return _hide(haystack.stretch(room, random), its, depth, random)

    return passkey_prompt.hidden(
        *(encode, length, (INTRODUCTION, needles, QUESTION.format(city=cities[0])), code, fill),
        what=f"needle prompt: introduction, {len(needles)} needles",
        way_out=", or lower --num-distractors",
    )


def _hide(
    text: Stretch, needles: list[list[int]], depth: float, random: np.random.Generator
) -> tuple[IdArray, int]:
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

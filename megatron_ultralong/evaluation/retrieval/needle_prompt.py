"""The needle prompt: a sentence with a code, in running text, asked for at its end.

Unlike the passkey's, its haystack does not repeat itself, and sentences of the needle's form about
other cities stand in it too, so that finding an odd line out is not enough. It is scored like the
passkey: the code counts as retrieved where greedy decoding would write all of it.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.read.record import read_named_text
from megatron_ultralong.evaluation.retrieval import passkey_prompt
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.documents import unit_hash

IdArray = npt.NDArray[np.int64]

NUM_MADE_UP = 2048
"""Different sentences that a made-up haystack is drawn from."""

_SENTENCE = re.compile(r".+?(?:[.!?]+[\"')\]]*\s+|\n+|\Z)", re.DOTALL)

_WHO = (
    "The baker", "An old sailor", "My neighbour", "The librarian", "A young engineer", "The mayor",
    "Her brother", "The night nurse", "A travelling musician", "The gardener", "Our teacher",
    "The clockmaker",
)  # fmt: skip
_DID = (
    "repaired", "painted", "lost", "remembered", "borrowed", "counted", "carried", "described",
    "hid", "measured", "sold", "cleaned",
)  # fmt: skip
_WHAT = (
    "a wooden boat", "three blue lamps", "the garden gate", "an unread letter", "two heavy books",
    "the kitchen clock", "a basket of pears", "the broken radio", "a map of the coast",
    "some old coins", "the winter coats", "a tin of nails",
)  # fmt: skip
_WHEN = (
    "before the rain came", "on a quiet morning", "near the harbour", "without saying a word",
    "after the long winter", "behind the station", "at the end of the street",
    "while the others slept", "for the second time", "in the light of the moon",
    "as the bells rang", "under the stone bridge",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A piece of running text."""

    tokens: IdArray
    """Shape [length]; its first sentence may be cut from the left."""
    edges: IdArray
    """Places between sentences, ascending, the start and the end among them."""


class Haystack:
    """Sentences as token ids.

    Args:
        sentences: ids of each, none empty.
        in_order: a stretch is a run of them, from a random one on, continuing from the first after
            the last; else each is drawn at random.
        source: what they are called in a message.
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
        if self._in_order:
            first = int(random.integers(len(self._sentences)))
            numbers = (np.arange(len(self._sentences)) + first) % len(self._sentences)
        else:
            most = length // int(self._lengths.min()) + 1
            numbers = random.integers(len(self._sentences), size=most)
        ends = np.cumsum(self._lengths[numbers])
        count = int(np.searchsorted(ends, length)) + 1 if length else 0
        pieces = [self._sentences[number] for number in numbers[:count].tolist()]
        whole = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        cut = whole.size - length
        edges = ends[:count] - cut
        return Stretch(whole[cut:], np.unique(np.concatenate(([0], edges[edges >= 0]))))


def made_up(encode: passkey_prompt.Encode, seed: int) -> Haystack:
    """Sentences of a dozen parts each way, :data:`NUM_MADE_UP` of the 20,736 there are."""
    random = np.random.default_rng(seed)
    parts = [_WHO, _DID, _WHAT, _WHEN]
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


NUM_DIGITS = 5
"""Of a code; the first is not 0."""
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
    needles = [
        encode(NEEDLE.format(city=city, code=its)) for city, its in zip(cities, codes, strict=True)
    ]
    introduction = encode(INTRODUCTION)
    question, answer = passkey_prompt.question_with_answer(
        encode, QUESTION.format(city=cities[0]), code
    )
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
    return passkey_prompt.assembled(parts, len(introduction) + start, code)


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

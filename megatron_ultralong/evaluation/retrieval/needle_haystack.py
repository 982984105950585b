"""Running text to hide a needle in: whole sentences, of files or made up."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.read.bounded import read_text
from megatron_ultralong.evaluation.retrieval.passkey_prompt import Encode
from megatron_ultralong.program.errors import InputError

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
        in_order: a stretch is a run of them, from a random one on, going on from the first after
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


def made_up(encode: Encode, seed: int) -> Haystack:
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


def of_files(encode: Encode, files: Sequence[str]) -> Haystack:
    """Sentences of text files, one file after the other.

    Raises:
        InputError: a file cannot be read, or has no text.
    """
    ids: list[IdArray] = []
    for name in files:
        try:
            text = read_text(Path(name))
        except ValueError as error:
            raise InputError(
                f"haystack {name} cannot be read ({error}): name a text file in UTF-8"
            ) from error
        found = [
            np.asarray(encode(sentence), dtype=np.int64) for sentence in _SENTENCE.findall(text)
        ]
        if not any(sentence.size for sentence in found):
            raise InputError(f"haystack {name} has no text: name another file")
        ids += [sentence for sentence in found if sentence.size]
    return Haystack(ids, in_order=True, source=", ".join(files))

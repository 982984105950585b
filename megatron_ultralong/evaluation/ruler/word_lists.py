"""Words for keys and word lists: those of the package wonderwords, as upstream has them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import random
from functools import cached_property
from pathlib import Path

from megatron_ultralong.data.read.bounded import read_text
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json_value

_MAX_BYTES = 64 * 2**20
"""Of a file of words or questions: HotpotQA's has 46 MB."""
_FILES = ("nounlist.txt", "adjectivelist.txt", "verblist.txt")


@dataclasses.dataclass(frozen=True)
class WordLists:
    """English words by kind."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    verbs: tuple[str, ...]
    english: tuple[str, ...]
    """A large list beside them, for long ``cwe`` lists; upstream's ``english_words.json``."""
    source: str
    """Where they are from, as results state it."""

    def random_key(self, rng: random.Random) -> str:
        """An adjective and a noun, uniform over all pairs: ``"quiet-harbour"``."""
        return f"{rng.choice(self.adjectives)}-{rng.choice(self.nouns)}"

    @cached_property
    def base(self) -> tuple[str, ...]:
        """All words, each once, sorted."""
        return tuple(sorted({*self.nouns, *self.adjectives, *self.verbs, *self.english}))


def load_word_lists(folder: str = "", english_words: str = "") -> WordLists:
    """The word lists of ``folder``, or of the installed package wonderwords.

    Args:
        folder: with ``nounlist.txt``, ``adjectivelist.txt`` and ``verblist.txt``.
        english_words: JSON file of more words: a list, or a dictionary whose values count.

    Raises:
        InputError: neither is there, or a file is empty or damaged.
    """
    source = folder
    if not folder:
        spec = importlib.util.find_spec("wonderwords")
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                "keys of RULER's needles and the words of cwe are those of the package "
                "wonderwords, which is not installed: pip install "
                "-e '.[benchmarks]' in the folder of this project, or "
                f"name a folder with {', '.join(_FILES)} by --word-lists"
            )
        folder = str(Path(spec.submodule_search_locations[0]) / "assets")
        source = f"wonderwords {importlib.metadata.version('wonderwords')}"
    lists = [_read_lines(Path(folder) / name) for name in _FILES]
    english: tuple[str, ...] = ()
    if english_words:
        english = _read_json(Path(english_words))
        source += f", {english_words}"
    nouns, adjectives, verbs = lists
    return WordLists(nouns, adjectives, verbs, english, source)


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        words = tuple(line.strip() for line in read_text(path).splitlines())
    except ValueError as error:
        raise InputError(f"word list {path} cannot be read ({error}): see --word-lists") from error
    words = tuple(word for word in words if word)
    if not words:
        raise InputError(f"word list {path} is empty: it needs one word a line")
    return words


def _read_json(path: Path) -> tuple[str, ...]:
    try:
        values = read_json_value(path, max_bytes=_MAX_BYTES)
    except InputError as error:
        raise InputError(f"--english-words {path} cannot be read ({error})") from error
    words = list(values.values()) if isinstance(values, dict) else values
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(
            f"--english-words {path} must be a JSON list of words, or a dictionary of them"
        )
    return tuple(words)

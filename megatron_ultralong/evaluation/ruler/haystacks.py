"""Haystacks of RULER: essays, and words for keys and word lists."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import random
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_ultralong.data.read.bounded import MAX_DOCUMENT_BYTES, read_text
from megatron_ultralong.evaluation.ruler.fitting import UnitCosts
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json_value

_OPENING, _CLOSING = "[(\\[\"'\u201c\u2018]*", "[)\\]\"'\u201d\u2019]*"
_SENTENCE_END = re.compile(rf"[.!?]{_CLOSING}$")
_SENTENCE_START = re.compile(rf"{_OPENING}[A-Z0-9]")
_ABBREVIATION = re.compile(
    rf"{_OPENING}(?:[A-Z]\.)+$|(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|Inc|Co|No)\.$"
)


class Essays:
    """The words of essays without end: they begin anew where they are used up, as upstream does.

    Upstream cuts sentences by nltk's model; here a rule does: a word ends a sentence if it ends
    in a full stop, question or exclamation mark (quotes and brackets after it), is no abbreviation
    and the next one begins with a capital, a digit or a quote.
    """

    def __init__(self, text: str, tokenizer: PromptTokenizer) -> None:
        self.words = re.sub(r"\s+", " ", text).split(" ")
        self._costs = UnitCosts(tokenizer, lambda k: f" {self.words[k % len(self.words)]}")
        ends = [
            bool(_SENTENCE_END.search(word))
            and not _ABBREVIATION.match(word)
            and bool(_SENTENCE_START.match(after))
            for word, after in zip(self.words, [*self.words[1:], self.words[0]], strict=True)
        ]
        ends[-1] = True
        self._ends = np.flatnonzero(ends) + 1
        self._period_cost = self._costs.total(len(self.words))

    def cost(self, num_words: int) -> float:
        """Tokens of the first ``num_words`` words, each counted alone."""
        periods, rest = divmod(num_words, len(self.words))
        return periods * self._period_cost + self._costs.total(rest)

    def context(self, num_words: int, depths: Sequence[int], needles: Sequence[str]) -> str:
        """The first ``num_words`` words with needle ``k`` before the sentence at depth ``k``.

        Args:
            num_words: length of the haystack.
            depths: per cent of its sentences, ascending, one for each needle.
            needles: sentences to put in.
        """
        size = len(self.words)
        periods, rest = divmod(num_words, size)
        num_whole = int(np.searchsorted(self._ends, rest, side="right"))
        num_sentences = periods * self._ends.size + num_whole
        num_sentences += rest > (self._ends[num_whole - 1] if num_whole else 0)
        words = (self.words * (periods + 1))[:num_words]
        pieces, start = [], 0
        for depth, needle in zip(depths, needles, strict=True):
            stop = min(self._word(int(num_sentences * (depth / 100))), num_words)
            pieces += [" ".join(words[start:stop]), needle]
            start = stop
        return " ".join([*pieces, " ".join(words[start:])])

    def _word(self, sentence: int) -> int:
        """Number of words before sentence ``sentence``."""
        periods, rest = divmod(sentence, self._ends.size)
        return periods * len(self.words) + (int(self._ends[rest - 1]) if rest else 0)


def read_essays(file: str) -> str:
    """The text of upstream's ``PaulGrahamEssays.json``, or of a plain text file.

    Raises:
        InputError: no such file, or one without text.
    """
    path = Path(file)
    try:
        if path.suffix == ".json":
            text = read_json_value(path, max_bytes=MAX_DOCUMENT_BYTES)["text"]
        else:
            text = read_text(path)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--essays {path} cannot be read ({error!r}): give a JSON file with the key 'text', as "
            "upstream's PaulGrahamEssays.json, or a text file in UTF-8"
        ) from error
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"--essays {path} holds no text")
    return text.strip()


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

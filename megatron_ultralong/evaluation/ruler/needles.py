"""``niah_*``: values for keys hidden in noise, in essays or among other needles; the haystacks."""

import dataclasses
import importlib.metadata
import importlib.resources
import itertools
import random
import re
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_ultralong.data.read.record import MAX_DOCUMENT_BYTES, read_text
from megatron_ultralong.evaluation.ruler import fitting, parameters
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer, Turn
from megatron_ultralong.program import json_file, optional
from megatron_ultralong.program.errors import ClosedFileError, InputError

_OPENING, _CLOSING = "[(\\[\"'\u201c\u2018]*", "[)\\]\"'\u201d\u2019]*"
_SENTENCE_END = re.compile(rf"[.!?]{_CLOSING}$")
_SENTENCE_START = re.compile(rf"{_OPENING}[A-Z0-9]")
_ABBREVIATION = re.compile(
    rf"{_OPENING}(?:[A-Z]\.)+$|(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|Inc|Co|No)\.$"
)


class Essays:
    """The words of essays without end: they begin again where they are used up, as upstream does.

    Upstream cuts sentences by nltk's model; here a rule does: a word ends a sentence if it ends
    in a full stop, question or exclamation mark (quotes and brackets after it), is not an
    abbreviation, and the next one begins with a capital, a digit or a quote.
    """

    def __init__(self, text: str, tokenizer: PromptTokenizer) -> None:
        self.words = re.sub(r"\s+", " ", text).split(" ")
        self._costs = fitting.UnitCosts(tokenizer, lambda k: f" {self.words[k % len(self.words)]}")
        ends = [
            bool(_SENTENCE_END.search(word))
            and not _ABBREVIATION.match(word)
            and bool(_SENTENCE_START.match(after))
            for word, after in itertools.pairwise(self.words)
        ]
        self._ends = np.flatnonzero([*ends, True]) + 1
        self._period_cost = self._costs.total(len(self.words))

    def cost(self, num_words: int) -> float:
        """Tokens of the first ``num_words`` words, each counted alone."""
        periods, rest = divmod(num_words, len(self.words))
        return periods * self._period_cost + self._costs.total(rest)

    def context(self, num_words: int, depths: Sequence[int], needles: Sequence[str]) -> str:
        """The first ``num_words`` words with needle ``k`` before the sentence at depth ``k``, which
        is in per cent of the sentences, ascending.
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
            text = json_file.read_json_value(path, max_bytes=MAX_DOCUMENT_BYTES)["text"]
        else:
            text = read_text(path)
    except (ValueError, KeyError, TypeError) as error:
        why = error if isinstance(error, InputError) else repr(error)
        raise InputError(
            f"--essays {path} cannot be read ({why}): give a JSON file with the key 'text', as "
            "upstream's PaulGrahamEssays.json, or a text file in UTF-8"
        ) from error
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"--essays {path} holds no text")
    return text.strip()


_FILES = ("nounlist.txt", "adjectivelist.txt", "verblist.txt")


@dataclasses.dataclass(frozen=True)
class WordLists:
    """English words by kind."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    verbs: tuple[str, ...]
    english: tuple[str, ...]
    """For ``cwe`` lists longer than ``base``, each once; upstream's ``english_words.json``."""
    source: str
    """Where they are from, as results state it."""

    def random_key(self, rng: random.Random) -> str:
        """An adjective and a noun, uniform over all pairs: ``"quiet-harbour"``."""
        return f"{rng.choice(self.adjectives)}-{rng.choice(self.nouns)}"

    @cached_property
    def base(self) -> tuple[str, ...]:
        """All words but the English ones, each once, sorted."""
        return tuple(sorted({*self.nouns, *self.adjectives, *self.verbs}))


def load_word_lists(folder: str = "", english_words: str = "") -> WordLists:
    """The word lists of ``folder``, or of the installed package wonderwords; ``english_words`` is a
    JSON file of more: a list, or a dictionary whose values count.

    Raises:
        InputError: neither is there, or a file is empty or damaged.
    """
    source = folder
    if not folder:
        way_out = f"name a folder with {', '.join(_FILES)} by --word-lists"
        optional.check_optional_package(
            "wonderwords", "keys of RULER's needles and the words of cwe", way_out
        )
        folder = str(importlib.resources.files("wonderwords") / "assets")
        source = f"wonderwords {importlib.metadata.version('wonderwords')}"
    nouns, adjectives, verbs = (_read_lines(Path(folder) / name) for name in _FILES)
    english: tuple[str, ...] = ()
    if english_words:
        english = _read_json(Path(english_words))
        source += f", {english_words}"
    return WordLists(nouns, adjectives, verbs, english, source)


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        words = tuple(filter(None, map(str.strip, read_text(path).split("\n"))))
    except ValueError as error:
        raise InputError(f"word list {path} cannot be read ({error}): see --word-lists") from error
    if not words:
        raise InputError(f"word list {path} is empty: it needs one word a line")
    return words


def _read_json(path: Path) -> tuple[str, ...]:
    try:
        values = json_file.read_json_value(path, max_bytes=parameters.MAX_BYTES)
    except ClosedFileError:
        raise
    except InputError as error:
        raise InputError(f"--english-words {path} cannot be read ({error})") from error
    words = list(values.values()) if isinstance(values, dict) else values
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(
            f"--english-words {path} must be a JSON list of words, or a dictionary of them"
        )
    return tuple(dict.fromkeys(words))


class NeedleBuilder(fitting.Builder):
    """A sample of a needle task.

    Keys and values are drawn first, the haystack's own from a stream of their own, and the places
    again for every length of the haystack: all from ``seed``, so that a length always gives the
    same prompt. A needle of the haystack never has the key of a hidden one (upstream's may, and
    then the question has two answers).
    """

    def __init__(
        self,
        task: parameters.NeedleTask,
        seed: str,
        tokenizer: PromptTokenizer,
        words: WordLists | None,
        essays: Essays | None,
        release: parameters.Release,
    ) -> None:
        self._task, self._words, self._seed = task, words, seed
        rng = random.Random(seed)
        num_keys = max(task.num_keys, task.num_queries)
        self._keys = [self._draw(task.key, rng) for _ in range(num_keys)]
        values = [[self._draw(task.value, rng) for _ in range(task.num_values)] for _ in self._keys]
        pairs = zip(self._keys, values, strict=True)
        self._needles = [self._needle(key, value) for key, its in pairs for value in its]
        rng.shuffle(self._needles)
        asked = rng.sample(range(num_keys), task.num_queries)
        self._queries = [self._keys[k] for k in asked]
        self.answers = [value for k in asked for value in values[k]]
        self.least_units = len(self._needles)
        self._essays = essays
        if essays and release == "860f2bd":
            self.most_units = len(essays.words)
        self._distractors: list[str] = []
        self._distractor_rng = random.Random(f"{seed}/haystack")
        self._costs = fitting.UnitCosts(tokenizer, lambda k: self._line(k) + "\n")

    def estimate(self, num_units: int) -> float:
        """Tokens of the haystack alone."""
        if self._essays is not None:
            return self._essays.cost(num_units)
        if self._task.haystack == "noise":
            return num_units * self._costs.total(1)
        return self._costs.total(num_units)

    def turns(self, num_units: int) -> Sequence[Turn]:
        """The prompt with so many words of essays, or so many lines."""
        rng = random.Random(f"{self._seed}/places")
        if self._essays is not None:
            depths = sorted(rng.sample(parameters.DEPTHS, len(self._needles)))
            context = self._essays.context(num_units, depths, self._needles)
        else:
            lines = [self._line(k) for k in range(num_units)]
            places = sorted(rng.sample(range(num_units), len(self._needles)), reverse=True)
            for place, needle in zip(places, self._needles, strict=True):
                lines.insert(place, needle)
            context = "\n".join(lines)
        return [self._turn(context)]

    def _turn(self, context: str) -> Turn:
        task, kind = parameters.FAMILIES["niah"], str(self._task.value)
        template, prefix = task.template, task.answer_prefix
        if self._task.num_queries * self._task.num_values == 1:  # one value: the singular
            kind = kind[:-1]
            for many, one in (("Some", "A"), ("are all", "is"), ("are", "is")):
                template, prefix = template.replace(many, one), prefix.replace(many, one)
        *first, last = self._queries
        query = f"{', '.join(first)}, and {last}" if first else last
        text = template.format(type_needle_v=kind, context=context, query=query)
        return text, prefix.format(type_needle_v=kind, query=query)

    def _line(self, k: int) -> str:
        if self._task.haystack == "noise":
            return parameters.NOISE
        while len(self._distractors) <= k:
            key = self._draw(self._task.key, self._distractor_rng)
            value = self._draw(self._task.value, self._distractor_rng)
            if key not in self._keys:
                self._distractors.append(self._needle(key, value))
        return self._distractors[k]

    def _needle(self, key: str, value: str) -> str:
        return parameters.NEEDLE.format(type_needle_v=self._task.value, key=key, value=value)

    def _draw(self, kind: parameters.NeedleType, rng: random.Random) -> str:
        if kind == "numbers":
            return str(rng.randint(10**6, 10**7 - 1))
        if kind == "uuids":
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))
        assert self._words is not None
        return self._words.random_key(rng)

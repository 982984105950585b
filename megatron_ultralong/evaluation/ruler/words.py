"""Tasks over words: ``cwe``, ``fwe`` and ``vt``."""

import itertools
import math
import random
import string
from collections.abc import Sequence

import numpy as np

from megatron_ultralong.evaluation.ruler import fitting, needles, parameters
from megatron_ultralong.generation.prompt_tokenizer import IdArray, PromptTokenizer, Turn

NUM_COMMON = 10
"""Words that ``cwe`` asks for."""


class CommonWordsBuilder(fitting.Builder):
    """A sample of common words; a unit is a word that is in the list, however often.

    A list of more words than there are is made of English words alone, as upstream does since May
    2025; where their file is not there, of pairs of words. The earlier release ends with its words.
    """

    def __init__(
        self,
        seed: str,
        length: int,
        tokenizer: PromptTokenizer,
        words: needles.WordLists,
        release: parameters.Release,
    ) -> None:
        self._seed = seed
        self._gap = "" if release == "860f2bd" else " "
        is_short = length < parameters.SHORT_LENGTH
        self._frequency, self._uncommon = (6, 1) if is_short else (30, 3)
        rng = random.Random(seed)
        example = rng.sample(words.base, 20 if is_short else 40)
        self._example = example[:NUM_COMMON]
        self._example_list = _numbered(rng, example, *((3, 1) if is_short else (10, 3)))
        self._single = rng.sample(words.base, len(words.base))
        self._more = list(words.english)
        random.Random(f"{seed}/english").shuffle(self._more)
        self._pair_set: set[str] = set()
        self._pair_rng = random.Random(f"{seed}/pairs")
        self.least_units = NUM_COMMON + 1
        if release == "860f2bd":
            self.most_units = len(self._single)
        elif words.english:
            self.most_units = max(len(self._single), len(self._more))
        self._tokenizer = tokenizer
        self._single_costs = fitting.UnitCosts(
            tokenizer, lambda k: f" {self._single[k]}" if k < len(self._single) else ""
        )
        self._more_costs = fitting.UnitCosts(tokenizer, lambda k: f" {self._more_word(k)}")

    def estimate(self, num_units: int) -> float:
        """Tokens of the numbers and words, each counted alone."""
        costs = self._single_costs if num_units <= len(self._single) else self._more_costs
        more = self._frequency - self._uncommon
        words = self._uncommon * costs.total(num_units) + more * costs.total(NUM_COMMON)
        entries = self._uncommon * num_units + more * NUM_COMMON
        return words + entries * float(self._tokenizer.count([f" {entries}."])[0])

    def turns(self, num_units: int) -> Sequence[Turn]:
        """The solved example, and the prompt with so many words in its list."""
        rng = random.Random(f"{self._seed}/order")
        numbered = _numbered(rng, self._words(num_units), self._frequency, self._uncommon)
        answer = self._gap + " ".join(f"{k + 1}. {word}" for k, word in enumerate(self._example))
        family = parameters.FAMILIES["cwe"]
        example, text = (
            family.template.format(context=words) for words in (self._example_list, numbered)
        )
        prefix = family.answer_prefix
        return [(example, f"{prefix}{answer}\n"), (text, prefix)]

    def references(self, num_units: int) -> Sequence[str]:
        """The words that stand more often than the others."""
        return self._words(num_units)[:NUM_COMMON]

    def _words(self, num_units: int) -> Sequence[str]:
        if num_units <= len(self._single):
            return self._single[:num_units]
        self._more_word(num_units - 1)
        return self._more[:num_units]

    def _more_word(self, k: int) -> str:
        """Word ``k`` of a long list: of pairs, made as they are asked for, or an English one."""
        if self.most_units is not None:
            return self._more[k] if k < len(self._more) else ""
        while len(self._more) <= k:
            pair = f"{self._pair_rng.choice(self._single)}-{self._pair_rng.choice(self._single)}"
            if pair not in self._pair_set:
                self._pair_set.add(pair)
                self._more.append(pair)
        return self._more[k]


def _numbered(rng: random.Random, words: Sequence[str], frequency: int, uncommon: int) -> str:
    """``"1. tree 2. house ..."``: the first words so often, the others less, shuffled."""
    listed = [*words[:NUM_COMMON]] * frequency + [*words[NUM_COMMON:]] * uncommon
    rng.shuffle(listed)
    return " ".join(f"{k}. {word}" for k, word in enumerate(listed, 1))


class FrequentWordsBuilder(fitting.Builder):
    """A sample of frequent words; a unit is one word more of the distribution's total.

    Word ``k`` of the vocabulary stands ``floor(n k^-2 / zeta(2))`` times among ``n``; the
    first is replaced by ``...``, which does not count, and the next three are asked for.
    """

    def __init__(self, seed: str, length: int, tokenizer: PromptTokenizer) -> None:
        self._seed = seed
        rng = random.Random(seed)
        vocabulary: dict[str, None] = {}
        while len(vocabulary) < max(length // 50, 4):
            word = "".join(rng.choices(string.ascii_lowercase, k=6))
            vocabulary[word] = None
        self._vocabulary = list(vocabulary)
        self._vocabulary[0] = "..."
        rank = np.arange(1, len(self._vocabulary) + 1, dtype=np.float64)
        self._shares = rank**-2.0 / (math.pi**2 / 6)
        self._costs = tokenizer.count([f" {word}" for word in self._vocabulary])
        self.least_units = math.ceil(1 / float(self._shares[3]))
        self.answers = self._vocabulary[1:4]

    def counts(self, num_units: int) -> IdArray:
        """How often every word stands in the text."""
        return (num_units * self._shares).astype(np.int64)

    def estimate(self, num_units: int) -> float:
        """Tokens of the words, each counted alone."""
        return float(np.dot(self.counts(num_units), self._costs))

    def turns(self, num_units: int) -> Sequence[Turn]:
        """The prompt whose words are counted out of ``num_units``."""
        words = np.repeat(self._vocabulary, self.counts(num_units)).tolist()
        random.Random(f"{self._seed}/order").shuffle(words)
        family = parameters.FAMILIES["fwe"]
        text = family.template.format(context=" ".join(words))
        return [(text, family.answer_prefix)]


_EXAMPLE_TOKENS = 500
"""Tokens that upstream's solved example may take."""


class VariableBuilder(fitting.Builder):
    """A sample of variable tracking: a chain of five variables; a unit is a line of noise."""

    def __init__(self, seed: str, tokenizer: PromptTokenizer, release: parameters.Release) -> None:
        self._seed, self._is_early = seed, release == "860f2bd"
        rng = random.Random(seed)
        self.answers, self._chain = _chain(rng, 5)
        self.least_units = len(self._chain)
        self._costs = fitting.UnitCosts(tokenizer, lambda k: parameters.NOISE + "\n")
        self._example = self._solved_example(rng, tokenizer)

    def estimate(self, num_units: int) -> float:
        """Tokens of the noise alone."""
        return num_units * self._costs.total(1)

    def turns(self, num_units: int) -> Sequence[Turn]:
        """The solved example, and the prompt with so many lines of noise."""
        text, prefix = self._texts(random.Random(f"{self._seed}/places"), self._chain, num_units)
        return [(f"{self._example}{text}", prefix)]

    def _solved_example(self, rng: random.Random, tokenizer: PromptTokenizer) -> str:
        """Names of three letters, and the most noise that keeps it within its tokens.

        The early release adds five lines at a time, and counts the answer and 30 tokens more.
        """
        variables, chain = _chain(rng, 3)
        places = rng.getstate()
        step, more = (5, parameters.family("vt").tokens_to_generate) if self._is_early else (1, 0)
        example, num_lines = "", 5
        while True:
            rng.setstate(places)
            text = "".join(self._texts(rng, chain, num_lines))
            counted = f"{text} {variables}" if self._is_early else text
            if example and int(tokenizer.count([counted])[0]) + more > _EXAMPLE_TOKENS:
                return example
            example = f"{text} {' '.join(variables)}" + "\n\n" * (1 + self._is_early)
            num_lines += step

    def _texts(self, rng: random.Random, chain: Sequence[str], num_lines: int) -> tuple[str, str]:
        """The task's text, with its chain hidden in noise, and the beginning of its answer."""
        lines = [parameters.NOISE + ("\n" if self._is_early else "")] * num_lines
        places = sorted(rng.sample(range(num_lines), len(chain)))
        for k, (place, assignment) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + k, assignment)
        context = (" " if self._is_early else "\n").join(lines).replace(". \n", ".\n")
        family, value = parameters.family("vt"), chain[0].split("=")[-1].strip()
        prefix = family.answer_prefix.format(query=value, num_v=len(chain))
        if self._is_early:
            prefix = prefix.replace("assigned", "assgined")
        return family.template.format(context=context, query=value), prefix


def _chain(rng: random.Random, num_letters: int) -> tuple[list[str], list[str]]:
    """Names of a chain's five variables, and its assignments in order."""
    names: dict[str, None] = {}
    while len(names) < 5:
        names["".join(rng.choices(string.ascii_uppercase, k=num_letters))] = None
    first, *others = names
    chain = [f"VAR {first} = {rng.randint(10000, 99998)}"]
    chain += [f"VAR {name} = VAR {before} " for before, name in itertools.pairwise(names)]
    return [first, *others], chain

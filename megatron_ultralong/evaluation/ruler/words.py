"""``cwe`` and ``fwe``: which words of a long list are the most frequent."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence

import numpy as np

from megatron_ultralong.evaluation.ruler.fitting import UnitCosts
from megatron_ultralong.evaluation.ruler.parameters import (
    FAMILIES,
    SHORT_LENGTH,
    CommonWordsTask,
    FrequentWordsTask,
)
from megatron_ultralong.evaluation.ruler.word_lists import WordLists
from megatron_ultralong.generation.prompt_parts import Parts, PromptTemplate, prompt_parts
from megatron_ultralong.generation.prompt_tokenizer import IdArray, PromptTokenizer


class CommonWordsBuilder:
    """A sample of common words; a unit is a word that is in the list, however often.

    A list longer than the vocabulary is made of pairs of words, as upstream's newer versions do:
    the pairs are the documented substitute for its file of 470,000 English words.
    """

    def __init__(
        self,
        task: CommonWordsTask,
        seed: str,
        length: int,
        tokenizer: PromptTokenizer,
        template: PromptTemplate,
        words: WordLists,
    ) -> None:
        self._task, self._template, self._seed = task, template, seed
        is_short = length < SHORT_LENGTH
        self._frequency = 6 if is_short else task.frequency
        self._uncommon = 1 if is_short else task.uncommon_frequency
        rng = random.Random(seed)
        example = rng.sample(words.base, 20 if is_short else 40)
        self._example = example[: task.num_common]
        self._example_list = _numbered(
            rng, example, task.num_common, *((3, 1) if is_short else (10, 3))
        )
        self._single = rng.sample(words.base, len(words.base))
        self._pairs: list[str] = []
        self._pair_set: set[str] = set()
        self._pair_rng = random.Random(f"{seed}/pairs")
        self.least_units = task.num_common + 1
        self._tokenizer = tokenizer
        self._single_costs = UnitCosts(
            tokenizer, lambda k: f" {self._single[k]}" if k < len(self._single) else ""
        )
        self._pair_costs = UnitCosts(tokenizer, lambda k: f" {self._pair(k)}")

    def estimate(self, num_units: int) -> float:
        """Tokens of the numbers and words, each counted alone."""
        costs = self._single_costs if num_units <= len(self._single) else self._pair_costs
        num_common = self._task.num_common
        words = self._uncommon * costs.total(num_units)
        words += (self._frequency - self._uncommon) * costs.total(num_common)
        entries = self._uncommon * num_units + (self._frequency - self._uncommon) * num_common
        return words + entries * float(self._tokenizer.count([f" {entries}."])[0])

    def parts(self, num_units: int) -> Parts:
        """The solved example, and the prompt with so many words in its list."""
        words = self._words(num_units)
        rng = random.Random(f"{self._seed}/order")
        numbered = _numbered(rng, words, self._task.num_common, self._frequency, self._uncommon)
        answer = " " + " ".join(f"{k + 1}. {word}" for k, word in enumerate(self._example))
        question = self._prompt(numbered)
        if self._template == "chat":
            question = question[1:]  # a text begins once
        return [*self._prompt(self._example_list), answer, "\n", *question]

    def references(self, num_units: int) -> Sequence[str]:
        """The words that stand more often than the others."""
        return self._words(num_units)[: self._task.num_common]

    def _prompt(self, context: str) -> Parts:
        family = FAMILIES[CommonWordsTask]
        text = family.template.format(context=context)
        return prompt_parts(self._template, text, family.answer_prefix)

    def _words(self, num_units: int) -> Sequence[str]:
        if num_units <= len(self._single):
            return self._single[:num_units]
        self._pair(num_units - 1)
        return self._pairs[:num_units]

    def _pair(self, k: int) -> str:
        while len(self._pairs) <= k:
            pair = f"{self._pair_rng.choice(self._single)}-{self._pair_rng.choice(self._single)}"
            if pair not in self._pair_set:
                self._pair_set.add(pair)
                self._pairs.append(pair)
        return self._pairs[k]


def _numbered(
    rng: random.Random, words: Sequence[str], num_common: int, frequency: int, uncommon: int
) -> str:
    """``"1. tree 2. house ..."``: the first words so often, the others less, shuffled."""
    listed = [*words[:num_common]] * frequency + [*words[num_common:]] * uncommon
    rng.shuffle(listed)
    return " ".join(f"{k}. {word}" for k, word in enumerate(listed, 1))


class FrequentWordsBuilder:
    """A sample of frequent words; a unit is one word more of the distribution's total.

    Word ``k`` of the vocabulary stands ``floor(n k^-alpha / zeta(alpha))`` times among ``n``; the
    first is replaced by ``...``, which does not count, and the next three are asked for.
    """

    def __init__(
        self,
        task: FrequentWordsTask,
        seed: str,
        length: int,
        tokenizer: PromptTokenizer,
        template: PromptTemplate,
    ) -> None:
        self._template, self._seed = template, seed
        rng = random.Random(seed)
        vocabulary: dict[str, None] = {}
        while len(vocabulary) < max(length // 50, 4):
            word = "".join(rng.choices(string.ascii_lowercase, k=task.word_length))
            vocabulary[word] = None
        self._vocabulary = list(vocabulary)
        self._vocabulary[0] = "..."
        rank = np.arange(1, len(self._vocabulary) + 1, dtype=np.float64)
        self._shares = rank**-task.alpha / _zeta(task.alpha)
        self._costs = tokenizer.count([f" {word}" for word in self._vocabulary])
        self.least_units = math.ceil(1 / float(self._shares[3]))

    def references(self, num_units: int) -> Sequence[str]:
        """The three most frequent words."""
        return self._vocabulary[1:4]

    def counts(self, num_units: int) -> IdArray:
        """How often every word stands in the text."""
        return (num_units * self._shares).astype(np.int64)

    def estimate(self, num_units: int) -> float:
        """Tokens of the words, each counted alone."""
        return float(np.dot(self.counts(num_units), self._costs))

    def parts(self, num_units: int) -> Parts:
        """The prompt whose words are counted out of ``num_units``."""
        counts = self.counts(num_units)
        words = [
            word
            for word, count in zip(self._vocabulary, counts.tolist(), strict=True)
            for _ in range(count)
        ]
        random.Random(f"{self._seed}/order").shuffle(words)
        family = FAMILIES[FrequentWordsTask]
        text = family.template.format(context=" ".join(words))
        return prompt_parts(self._template, text, family.answer_prefix)


def _zeta(alpha: float) -> float:
    """Riemann's zeta by its first terms and the integral of the rest (Euler-Maclaurin)."""
    n = 1000
    head: float = math.fsum(k**-alpha for k in range(1, n))
    return float(
        head + n ** (1 - alpha) / (alpha - 1) + n**-alpha / 2 + alpha * n ** (-alpha - 1) / 12
    )

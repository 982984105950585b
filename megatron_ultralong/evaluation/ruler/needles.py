"""``niah_*``: values for keys hidden in noise, in essays or among other needles."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence

from megatron_ultralong.evaluation.ruler.fitting import UnitCosts
from megatron_ultralong.evaluation.ruler.haystacks import Essays, WordLists
from megatron_ultralong.evaluation.ruler.parameters import (
    DEPTHS,
    FAMILIES,
    NEEDLE,
    NOISE,
    NeedleTask,
    NeedleType,
)
from megatron_ultralong.generation.prompt_tokenizer import (
    Parts,
    PromptTemplate,
    PromptTokenizer,
    prompt_parts,
)


class NeedleBuilder:
    """A sample of a needle task.

    Keys and values are drawn first, the haystack's own from a stream of their own, and the places
    anew for every length of the haystack: all from ``seed``, so that a length always gives the
    same prompt. A needle of the haystack never has the key of a hidden one (upstream's may, and
    then the question has two answers).
    """

    def __init__(
        self,
        task: NeedleTask,
        seed: str,
        tokenizer: PromptTokenizer,
        template: PromptTemplate,
        words: WordLists | None,
        essays: Essays | None,
    ) -> None:
        self._task, self._template, self._words, self._seed = task, template, words, seed
        rng = random.Random(seed)
        num_keys = max(task.num_keys, task.num_queries)
        self._keys = [self._draw(task.key, rng) for _ in range(num_keys)]
        values = [[self._draw(task.value, rng) for _ in range(task.num_values)] for _ in self._keys]
        self._needles = [
            self._needle(key, value)
            for key, of_key in zip(self._keys, values, strict=True)
            for value in of_key
        ]
        rng.shuffle(self._needles)
        asked = rng.sample(range(num_keys), task.num_queries)
        self._queries = [self._keys[k] for k in asked]
        self._references = [value for k in asked for value in values[k]]
        self.least_units = len(self._needles)
        self._essays = essays
        self._distractors: list[str] = []
        self._distractor_rng = random.Random(f"{seed}/haystack")
        self._costs = UnitCosts(tokenizer, lambda k: self._line(k) + "\n")

    def estimate(self, num_units: int) -> float:
        """Tokens of the haystack alone."""
        if self._essays is not None:
            return self._essays.cost(num_units)
        if self._task.haystack == "noise":
            return num_units * self._costs.total(1)
        return self._costs.total(num_units)

    def parts(self, num_units: int) -> Parts:
        """The prompt with so many words of essays, or so many lines."""
        rng = random.Random(f"{self._seed}/places")
        if self._essays is not None:
            depths = sorted(rng.sample(DEPTHS, len(self._needles)))
            context = self._essays.context(num_units, depths, self._needles)
        else:
            lines = [self._line(k) for k in range(num_units)]
            places = sorted(rng.sample(range(num_units), len(self._needles)), reverse=True)
            for place, needle in zip(places, self._needles, strict=True):
                lines.insert(place, needle)
            context = "\n".join(lines)
        return self._prompt(context)

    def references(self, num_units: int) -> Sequence[str]:
        """The values of the keys that are asked for."""
        return self._references

    def _prompt(self, context: str) -> Parts:
        task, kind = FAMILIES[NeedleTask], str(self._task.value)
        template, prefix = task.template, task.answer_prefix
        if self._task.num_queries * self._task.num_values == 1:  # one value: the singular
            kind = kind[:-1]
            for many, one in (("Some", "A"), ("are all", "is"), ("are", "is")):
                template, prefix = template.replace(many, one), prefix.replace(many, one)
        *first, last = self._queries
        query = f"{', '.join(first)}, and {last}" if first else last
        text = template.format(type_needle_v=kind, context=context, query=query)
        return prompt_parts(self._template, text, prefix.format(type_needle_v=kind, query=query))

    def _line(self, k: int) -> str:
        if self._task.haystack == "noise":
            return NOISE
        while len(self._distractors) <= k:
            key = self._draw(self._task.key, self._distractor_rng)
            value = self._draw(self._task.value, self._distractor_rng)
            if key not in self._keys:
                self._distractors.append(self._needle(key, value))
        return self._distractors[k]

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(type_needle_v=self._task.value, key=key, value=value)

    def _draw(self, kind: NeedleType, rng: random.Random) -> str:
        if kind == "numbers":
            return str(rng.randint(10**6, 10**7 - 1))
        if kind == "uuids":
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))
        assert self._words is not None
        return self._words.random_key(rng)

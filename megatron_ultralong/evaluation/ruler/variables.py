"""``vt``: chains of variable assignments hidden in noise, after one solved example."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from megatron_ultralong.evaluation.ruler.fitting import UnitCosts
from megatron_ultralong.evaluation.ruler.parameters import FAMILIES, NOISE, VariableTask
from megatron_ultralong.generation.prompt_parts import Parts, PromptTemplate, prompt_parts
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer

EXAMPLE_TOKENS = 500
"""Tokens that upstream's solved example may take."""
_EXAMPLE_STEP = 5
"""It has a multiple of so many lines of noise."""


class VariableBuilder:
    """A sample of variable tracking; a unit is a line of noise."""

    def __init__(
        self, task: VariableTask, seed: str, tokenizer: PromptTokenizer, template: PromptTemplate
    ) -> None:
        self._task, self._template, self._seed = task, template, seed
        rng = random.Random(seed)
        variables, chains = _chains(rng, task.num_chains, task.num_hops, 5)
        self._chains = chains
        self._references = variables[0]
        self.least_units = task.num_hops + 1
        self._costs = UnitCosts(tokenizer, lambda k: NOISE + "\n")
        self._example = self._solved_example(rng, tokenizer)

    def estimate(self, num_units: int) -> float:
        """Tokens of the noise alone."""
        return num_units * self._costs.total(1)

    def parts(self, num_units: int) -> Parts:
        """The solved example, and the prompt with so many lines of noise."""
        rng = random.Random(f"{self._seed}/places")
        text, prefix = _texts(self._chains, _hide(rng, self._chains, num_units))
        return prompt_parts(self._template, f"{self._example}\n{text}", prefix)

    def references(self, num_units: int) -> Sequence[str]:
        """The variables of the first chain."""
        return self._references

    def _solved_example(self, rng: random.Random, tokenizer: PromptTokenizer) -> str:
        """Names of three letters, and the most noise that keeps it within its tokens."""
        variables, chains = _chains(rng, self._task.num_chains, min(10, self._task.num_hops), 3)
        places = rng.getstate()
        example, num_lines = "", _EXAMPLE_STEP
        while True:
            rng.setstate(places)
            text = "".join(_texts(chains, _hide(rng, chains, num_lines)))
            if example and int(tokenizer.count([text])[0]) > EXAMPLE_TOKENS:
                return example
            example = f"{text} {' '.join(variables[0])}\n"
            num_lines += _EXAMPLE_STEP


def _chains(
    rng: random.Random, num_chains: int, num_hops: int, num_letters: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Names of every chain's variables, and its assignments in order."""
    names: list[str] = []
    while len(names) < num_chains * (num_hops + 1):
        name = "".join(rng.choices(string.ascii_uppercase, k=num_letters))
        if name not in names:
            names.append(name)
    variables = [names[k : k + num_hops + 1] for k in range(0, len(names), num_hops + 1)]
    chains = []
    for of_chain in variables:
        chain = [f"VAR {of_chain[0]} = {rng.randint(10000, 99998)}"]
        pairs = zip(of_chain[1:], of_chain[:-1], strict=True)
        chain += [f"VAR {after} = VAR {before} " for after, before in pairs]
        chains.append(chain)
    return variables, chains


def _hide(rng: random.Random, chains: Sequence[Sequence[str]], num_lines: int) -> str:
    lines = [NOISE] * num_lines
    for chain in chains:
        places = sorted(rng.sample(range(len(lines)), len(chain)))
        for k, (place, assignment) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + k, assignment)
    return "\n".join(lines).replace(". \n", ".\n")


def _texts(chains: Sequence[Sequence[str]], context: str) -> tuple[str, str]:
    """The task's text and the beginning of its answer."""
    family = FAMILIES[VariableTask]
    value = chains[0][0].split("=")[-1].strip()
    return (
        family.template.format(context=context, query=value),
        family.answer_prefix.format(query=value, num_v=len(chains[0])),
    )

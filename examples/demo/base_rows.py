"""Rows the demo's base model is trained on: code, and retrieval examples inside the context.

A retrieval row is a row of code whose end is overwritten by a document that asks for something it
said before: a passkey, one of several facts, or a repeated span. The loss weighs the tokens that
have to be retrieved more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from base_corpus import SEPARATOR, encoder
from tokenizers import Tokenizer

from megatron_ultralong.evaluation.retrieval.passkey_prompt import passkey_prompt

IntArray = npt.NDArray[np.integer]


class Rows(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches of rows with the weight of every token in the loss: functions of (seed, step)."""

    def __init__(
        self,
        tokens: IntArray,
        tokenizer: Tokenizer,
        plan: Sequence[tuple[int, int]],
        seed: int,
        retrieval_fraction: float,
        answer_weight: float,
    ) -> None:
        self.tokens, self.plan, self.seed = tokens, plan, seed
        self.encode = encoder(tokenizer)
        self.separator = self.encode(SEPARATOR)
        self.retrieval_fraction, self.answer_weight = retrieval_fraction, answer_weight

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        num_rows, length = self.plan[step]
        rng = np.random.default_rng((self.seed, step))
        ids = np.empty((num_rows, length), dtype=np.int64)
        weights = np.ones((num_rows, length), dtype=np.float32)
        for row in range(num_rows):
            ids[row] = self.code(rng, length)
            if rng.random() < self.retrieval_fraction:
                self.retrieval(rng, ids[row], weights[row])
        return torch.from_numpy(ids), torch.from_numpy(weights)

    def code(self, rng: np.random.Generator, length: int) -> IntArray:
        """``length`` consecutive tokens of the corpus."""
        start = int(rng.integers(self.tokens.size - length))
        return self.tokens[start : start + length]

    def retrieval(
        self, rng: np.random.Generator, ids: IntArray, weights: npt.NDArray[np.float32]
    ) -> None:
        """Overwrite the end of a row of code with a document that asks for what it said."""
        kind = rng.choice(["passkey", "facts", "copy"], p=[0.6, 0.25, 0.15])
        length = ids.size if rng.random() < 0.5 else int(rng.integers(100, ids.size + 1))
        if kind == "copy":
            self.copy(rng, ids)
            return
        haystack = self.code(rng, length) if rng.random() < 0.6 else None
        if kind == "passkey":
            prompt = passkey_prompt(
                self.encode,
                length,
                float(rng.random()),
                seed=self.seed,
                index=int(rng.integers(2**40)),
                haystack=haystack,
            )
            document, answers = prompt.tokens, [slice(prompt.answer_start, length)]
        else:
            document, answers = self.facts(rng, length)
        start = ids.size - length
        ids[start:] = document
        separator = self.separator[-start:] if start else []
        ids[start - len(separator) : start] = separator
        for answer in answers:
            weights[start + answer.start : start + answer.stop] = self.answer_weight

    def facts(self, rng: np.random.Generator, length: int) -> tuple[IntArray, list[slice]]:
        """Code with several numbers stated in it and asked for at its end, in another order."""
        num_facts = int(rng.integers(1, 2 + length // 100))
        names = rng.choice(FACT_NAMES, num_facts, replace=False)
        values = [str(value) for value in rng.integers(10_000, 100_000, num_facts)]
        stated = [
            self.encode(f"The {name} number is {value}.\n")
            for name, value in zip(names, values, strict=True)
        ]
        asked: list[int] = []
        ends: list[int] = []
        for fact in rng.permutation(num_facts)[: max(1, num_facts // 2)]:
            asked += self.encode(f"The {names[fact]} number is {values[fact]}")
            ends.append(len(asked))
            asked += self.encode(".\n")
        room = length - len(asked) - sum(map(len, stated))
        haystack = self.code(rng, room)
        cuts = np.sort(rng.integers(0, room + 1, num_facts))
        pieces = [
            piece
            for cut, chunk, fact in zip(cuts, np.split(haystack, cuts)[:-1], stated, strict=True)
            for piece in (chunk, fact)
        ]
        document = np.concatenate([*pieces, haystack[cuts[-1] :], asked]).astype(np.int64)
        offset = length - len(asked)
        return document, [slice(offset + end - 5, offset + end) for end in ends]

    def copy(self, rng: np.random.Generator, ids: IntArray) -> None:
        """Repeat a span of random tokens, or of the row itself, later in the row."""
        length = int(rng.integers(8, ids.size // 4))
        first = int(rng.integers(0, ids.size - 2 * length))
        second = int(rng.integers(first + length, ids.size - length + 1))
        if rng.random() < 0.5:
            ids[first : first + length] = rng.integers(0, self.tokens.max() + 1, length)
        ids[second : second + length] = ids[first : first + length]


FACT_NAMES = (
    "amber", "basic", "cold", "deep", "early", "fast", "green", "heavy", "inner", "joint", "known",
    "local", "magic", "north", "outer", "prime", "quick", "right", "secret", "total", "upper",
    "valid", "whole", "young",
)  # fmt: skip


def batch_plan(
    context: int, total_tokens: int, batch_tokens: int, growth: Sequence[tuple[int, float]]
) -> list[tuple[int, int]]:
    """Rows and row length of every step: ``growth`` gives lengths and their share of the tokens."""
    plan: list[tuple[int, int]] = []
    for length, share in [*growth, (context, 1.0 - sum(share for _, share in growth))]:
        plan += [(batch_tokens // length, length)] * round(total_tokens * share / batch_tokens)
    return plan

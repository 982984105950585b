"""A benchmark in one file: ten sums, answered in writing and scored by exact match."""

from __future__ import annotations

import dataclasses

import numpy as np

from megatron_ultralong.evaluation.asking.questions import Question, evaluate_questions
from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.models.language_models import Answerer
from megatron_ultralong.evaluation.results.result import Kind, Result

SUMS = Kind("ten_sums", "Ten sums")
QUESTIONS = [(f"{a} + {b} =", str(a + b)) for a, b in zip(range(10), range(7, 17), strict=True)]
ROOM = 4


@dataclasses.dataclass(frozen=True)
class SumsConfig:
    """Flags of the verb."""

    micro_batch_size: int = 5
    beyond_trained_positions: bool = False
    output: str = ""


def exact_match(written: str, answer: str) -> float:
    return float(written.strip() == answer)


def evaluate_sums(config: SumsConfig, subject: Answerer) -> Result:
    tokenizer = subject.tokenizer
    prompts = [
        Prompt(np.concatenate([tokenizer.begin_ids, tokenizer.encode(text)]).astype(int), answer)
        for text, answer in QUESTIONS
    ]
    questions = [
        Question("sums", "exact match", index, prompt.tokens.size, ROOM,
                 decides={"prompt": prompt.tokens.tolist(), "answer": prompt.references},
                 make=lambda prompt=prompt: prompt, score=exact_match)
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip
    longest = max(prompt.tokens.size for prompt in prompts) + ROOM
    return evaluate_questions(
        questions, subject, kind=SUMS, config=config,
        lengths={longest: "the longest sum"}, metrics={"sums": "exact match"},
    )  # fmt: skip

"""``qa_1`` and ``qa_2``: questions of SQuAD and HotpotQA, their documents among others."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.evaluation.ruler.parameters import (
    DOCUMENT,
    FAMILIES,
    QuestionTask,
    Release,
)
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer, Turn
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json_value

_MAX_BYTES = 64 * 2**20
"""Of a file of words or questions: HotpotQA's has 46 MB."""


@dataclasses.dataclass(frozen=True)
class OpenQuestion:
    """A question, its answers, and which documents it is about."""

    query: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    """Those that hold the answer."""
    related: tuple[int, ...] = ()
    """Others of the same article, which upstream takes first as distraction."""


class Documents:
    """A data set's questions and documents, each document counted once."""

    def __init__(
        self,
        documents: Sequence[str],
        questions: Sequence[OpenQuestion],
        tokenizer: PromptTokenizer,
    ) -> None:
        self.texts = documents
        self.questions = questions
        self.costs = tokenizer.count([f"Document 1000:\n{text}\n\n" for text in documents])


class QuestionBuilder:
    """A sample of question answering; a unit is a document."""

    def __init__(self, documents: Documents, index: int, seed: str, release: Release) -> None:
        self._documents, self._seed = documents, seed
        self._question = documents.questions[index]
        self.least_units = len(self._question.documents)
        rng = random.Random(seed)
        gold, related = self._question.documents, list(self._question.related)
        rng.shuffle(related)
        near = {*gold, *related}
        others = [k for k in range(len(documents.texts)) if k not in near]
        rng.shuffle(others)
        self.most_units = len(documents.texts) if release == "860f2bd" else None
        self._order = np.asarray([*gold, *related, *others], np.int64)
        self._totals = np.concatenate([[0], np.cumsum(documents.costs[self._order])])

    def estimate(self, num_units: int) -> float:
        """Tokens of the documents, each counted alone."""
        rounds, rest = divmod(num_units, self._order.size)
        return float(rounds * self._totals[-1] + self._totals[rest])

    def references(self, num_units: int) -> Sequence[str]:
        """The answers, any of which will do."""
        return self._question.answers

    def turns(self, num_units: int) -> Sequence[Turn]:
        """The prompt with so many documents; all of them over again if there are not as many."""
        chosen = np.resize(self._order, num_units)
        random.Random(f"{self._seed}/order").shuffle(order := chosen.tolist())
        context = "\n\n".join(
            DOCUMENT.format(i=k, document=self._documents.texts[number])
            for k, number in enumerate(order, 1)
        )
        family = FAMILIES[QuestionTask]
        text = family.template.format(context=context, query=self._question.query)
        return [(text, family.answer_prefix)]


def read_documents(task: QuestionTask, file: str, tokenizer: PromptTokenizer) -> Documents:
    """SQuAD 2.0's or HotpotQA's development file, in its own format.

    Raises:
        InputError: no such file, or not of that format.
    """
    readers: dict[str, Callable[[Any], tuple[list[str], list[OpenQuestion]]]] = {
        "squad": _squad,
        "hotpotqa": _hotpotqa,
    }
    try:
        documents, questions = readers[task.dataset](
            read_json_value(Path(file), max_bytes=_MAX_BYTES)
        )
    except (InputError, ValueError, KeyError, TypeError) as error:
        names = {"squad": "dev-v2.0.json", "hotpotqa": "hotpot_dev_distractor_v1.json"}
        raise InputError(
            f"--{task.dataset} {file} cannot be read ({error!r}): give the file "
            f"{names[task.dataset]}, or one in its format"
        ) from error
    if not questions:
        raise InputError(f"--{task.dataset} {file} holds no question that can be answered")
    return Documents(documents, questions, tokenizer)


def _squad(data: Any) -> tuple[list[str], list[OpenQuestion]]:
    paragraphs = [part["context"] for article in data["data"] for part in article["paragraphs"]]
    documents = sorted(set(paragraphs))
    number = {text: k for k, text in enumerate(documents)}
    questions = []
    for article in data["data"]:
        article_documents = [number[part["context"]] for part in article["paragraphs"]]
        for part in article["paragraphs"]:
            own = number[part["context"]]
            related = tuple(dict.fromkeys(k for k in article_documents if k != own))
            questions += [
                OpenQuestion(
                    entry["question"],
                    tuple(answer["text"] for answer in entry["answers"]),
                    (own,),
                    related,
                )
                for entry in part["qas"]
                if not entry.get("is_impossible", False)
            ]
    return documents, questions


def _hotpotqa(data: Any) -> tuple[list[str], list[OpenQuestion]]:
    def text(entry: Any) -> str:
        title, sentences = entry
        return f"{title}\n{''.join(sentences)}"

    documents = sorted({text(entry) for example in data for entry in example["context"]})
    number = {document: k for k, document in enumerate(documents)}
    questions = [
        OpenQuestion(
            example["question"],
            (example["answer"],),
            tuple(dict.fromkeys(number[text(entry)] for entry in example["context"])),
        )
        for example in data
    ]
    return documents, questions

"""``qa_1`` and ``qa_2``: questions of SQuAD and HotpotQA, their documents among others."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.evaluation.ruler.fitting import Builder
from megatron_ultralong.evaluation.ruler.parameters import DOCUMENT, FAMILIES, MAX_BYTES, Release
from megatron_ultralong.generation.prompt_tokenizer import IdArray, PromptTokenizer, Turn
from megatron_ultralong.program.errors import ClosedFileError, InputError, shown
from megatron_ultralong.program.json_file import read_json_value


@dataclasses.dataclass(frozen=True)
class OpenQuestion:
    """A question, its answers, and which documents it is about."""

    query: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    """Those that hold the answer."""
    related: tuple[int, ...] = ()
    """Others of the same article, which upstream takes first as distraction."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """A data set's questions and documents."""

    texts: Sequence[str]
    questions: Sequence[OpenQuestion]
    costs: IdArray
    """Tokens of each text, counted once."""


class QuestionBuilder(Builder):
    """A sample of question answering; a unit is a document."""

    def __init__(self, documents: Documents, index: int, seed: str, release: Release) -> None:
        self._documents, self._seed = documents, seed
        self._question = documents.questions[index]
        self.answers = self._question.answers
        self.least_units = len(self._question.documents)
        rng = random.Random(seed)
        gold, related = self._question.documents, list(self._question.related)
        rng.shuffle(related)
        near = {*gold, *related}
        others = [k for k in range(len(documents.texts)) if k not in near]
        rng.shuffle(others)
        if release == "860f2bd":
            self.most_units = len(documents.texts)
        self._order = np.asarray([*gold, *related, *others], np.int64)
        self._totals = np.concatenate([[0], np.cumsum(documents.costs[self._order])])

    def estimate(self, num_units: int) -> float:
        """Tokens of the documents, each counted alone."""
        rounds, rest = divmod(num_units, self._order.size)
        return float(rounds * self._totals[-1] + self._totals[rest])

    def turns(self, num_units: int) -> Sequence[Turn]:
        """The prompt with so many documents; all of them over again if there are not as many."""
        chosen = np.resize(self._order, num_units)
        random.Random(f"{self._seed}/order").shuffle(order := chosen.tolist())
        context = "\n\n".join(
            DOCUMENT.format(i=k, document=self._documents.texts[number])
            for k, number in enumerate(order, 1)
        )
        family = FAMILIES["qa"]
        text = family.template.format(context=context, query=self._question.query)
        return [(text, family.answer_prefix)]


def read_documents(dataset: str, file: str, tokenizer: PromptTokenizer) -> Documents:
    """SQuAD 2.0's or HotpotQA's development file, in its own format.

    Raises:
        InputError: no such file, or not of that format.
    """
    read, name = {
        "squad": (_squad, "dev-v2.0.json"),
        "hotpotqa": (_hotpotqa, "hotpot_dev_distractor_v1.json"),
    }[dataset]
    try:
        documents, questions = read(read_json_value(Path(file), max_bytes=MAX_BYTES))
        _check_texts(documents, questions)
    except ClosedFileError:
        raise
    except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = error if isinstance(error, InputError) else repr(error)
        raise InputError(
            f"--{dataset} {file} cannot be read ({why}): give the file {name}, or one in its format"
        ) from error
    if not questions:
        raise InputError(f"--{dataset} {file} holds no question that can be answered")
    costs = tokenizer.count([f"Document 1000:\n{text}\n\n" for text in documents])
    return Documents(documents, questions, costs)


def _check_texts(documents: Sequence[Any], questions: Sequence[OpenQuestion]) -> None:
    """Raise InputError where a document, a question or an answer is not a text, or absent."""
    for number, one in enumerate(questions, 1):
        if not one.answers:
            raise InputError(f"question {number} has no answer, and is not called impossible")
        for text in (one.query, *one.answers, *(documents[k] for k in one.documents)):
            if not isinstance(text, str):
                raise InputError(f"question {number} has {shown(text)} in the place of a text")


def _squad(data: Any) -> tuple[list[str], list[OpenQuestion]]:
    articles = [article["paragraphs"] for article in data["data"]]
    documents = sorted({part["context"] for article in articles for part in article})
    number = {text: k for k, text in enumerate(documents)}
    questions = []
    for article in articles:
        of_article = dict.fromkeys(number[part["context"]] for part in article)
        for part in article:
            own = number[part["context"]]
            related = tuple(k for k in of_article if k != own)
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
    contexts = [
        [f"{title}\n{''.join(sentences)}" for title, sentences in example["context"]]
        for example in data
    ]
    documents = sorted({text for context in contexts for text in context})
    number = {document: k for k, document in enumerate(documents)}
    questions = [
        OpenQuestion(
            example["question"],
            (example["answer"],),
            tuple(dict.fromkeys(number[text] for text in context)),
        )
        for example, context in zip(data, contexts, strict=True)
    ]
    return documents, questions

"""``evaluate nolima``: NoLiMa, whose needles share no words with their questions.

Facts from adobe-research/NoLiMa (Adobe Research License: non-commercial research alone,
github.com/adobe-research/NoLiMa) at 7532e4e: ``evaluation/run_tests.py``,
``evaluation/async_evaluate.py`` and its configurations. The prompts are upstream's to the letter.
Needle and distractor stand where ``data/book_haystack.py`` puts them: a window of
``context_length`` tokens is laid over a book so that a line's end is at the depth asked for, and
the needle stands behind it as a line of its own.
"""

import dataclasses
import functools
import itertools
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.read.record import read_text
from megatron_ultralong.evaluation.asking.questions import Entries, Question
from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.local import conversation, options, prompt
from megatron_ultralong.evaluation.models.language_models import Answerer
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program import aside, json_file
from megatron_ultralong.program.errors import InputError

_FREE_ZONE = 0.2
"""Share of the window on both sides of the needle in which no distractor stands, twice."""
_SHORT = 500
"""Tokens of a window below which distractors have fixed places."""


class Book:
    """A text, in tokens, that needles are put into; ``name`` is for messages."""

    def __init__(self, name: str, text: str, tokenizer: PromptTokenizer) -> None:
        conversation.check_text(text, name)
        self.name, self._tokenizer = name, tokenizer
        self._tokens = tokenizer.encode(text)
        kinds, places = np.unique(self._tokens, return_inverse=True)
        ends = np.asarray(["\n" in tokenizer.decode([kind]) for kind in kinds], np.bool_)
        lines = np.flatnonzero(ends[places]) if kinds.size else np.zeros(0, np.int64)
        self._positions: npt.NDArray[np.int64] = np.concatenate([[0], lines]).astype(np.int64)
        """Of the book's start and of tokens that hold a line's end."""

    def window(self, context_length: int, depth: float) -> tuple[int, int, int]:
        """Start, the token of the line's end, and end of a window of so many tokens, of which
        the share ``depth`` stands before the needle.

        Raises:
            InputError: the book has no such window.
        """
        delta = self._positions / (context_length + 1) - depth
        behind = np.flatnonzero(delta >= 0)
        position = int(self._positions[behind[0]]) if behind.size else 0
        start = position - int(np.round(context_length * depth))
        end = start + context_length
        if start < 0 or end > self._tokens.size:
            raise InputError(
                f"{self.name} has {self._tokens.size:,} tokens, too few or too long lines for "
                f"{context_length:,} of them with a line's end at {100 * depth:g} %: choose "
                "shorter --lengths"
            )
        return start, position, end

    def place(self, needle: str, context_length: int, depth: float) -> str:
        """A window with the needle as a line; see :meth:`window`."""
        start, position, end = self.window(context_length, depth)
        before = self._tokenizer.decode(self._tokens[start : position + 1].tolist())
        before = before[: max(before.rfind("\n"), 0)]
        after = self._tokenizer.decode(self._tokens[position + 1 : end].tolist())
        return f"{before} {needle}\n{after}"

    def place_both(
        self, needle: str, distractor: str, context_length: int, depth: float, other: float
    ) -> str:
        """As :meth:`place`, with a distractor at the depth ``other``.

        Raises:
            InputError: the text before the distractor does not stand once around the needle.
        """
        reach, back = (50, 49) if context_length >= _SHORT else (25, 23)
        text = self.place(distractor, context_length, other)
        at = text.index(distractor)
        mark = text[max(at - reach, 0) : max(at - 1, 0)]
        text = self.place(needle, context_length, depth)
        if not mark or text.count(mark) != 1:
            raise InputError(
                f"{self.name} has no single place for the distractor at {100 * other:g} % of "
                f"{context_length:,} tokens: upstream's program ends there, too; choose other "
                "--lengths or --num-depths"
            )
        at = text.index(mark) + back
        return f"{text[:at]} {distractor}\n{text[at:]}"


def distractor_depth(draw: np.random.RandomState, context_length: int, depth: float) -> float:
    """Where the distractor of a needle at ``depth`` stands; draws one number."""
    left = max(0.0, depth - 2 * _FREE_ZONE)
    right = max(0.0, 1 - (depth + 2 * _FREE_ZONE))
    place = float(draw.uniform(0, left + right))
    if context_length < _SHORT:
        return 0.7 if depth < 0.6 else 0.6 if depth > 0.75 else 0.5
    return depth + _FREE_ZONE + (place - left) if place > left else place + _FREE_ZONE


UPSTREAM = "prompts and scores of adobe-research/NoLiMa at 7532e4e"
SYSTEM = "You are a helpful assistant"
TEMPLATE = (
    "You will answer a question based on the following book snippet:\n\n{haystack}\n\nUse the "
    "information provided in the book snippet to answer the question. Your answer should be short "
    "and based on either explicitly stated facts or strong, logical inferences.\n\nQuestion: "
    "{question}\n\n Return only the final answer with no additional explanation or reasoning."
)
BASE_SEED = 42
CHARACTER = "{CHAR}"


def nolima_score(metric: options.NoLiMaMetric, prediction: str, references: Sequence[str]) -> float:
    """Whether the answer holds, or is, one of the names; ``lastline``: its last line."""
    text = prediction
    if metric.startswith("lastline"):
        text = prediction.strip().split("\n")[-1]
    if metric.endswith("contains"):
        return float(any(name in text for name in references))
    return float((text if metric == "lastline_EM" else text.strip()) in references)


@dataclasses.dataclass(frozen=True)
class Test:
    """A needle and a question, before a name is chosen."""

    name: str
    hops: str
    """Kind of question: ``onehop``, ``twohop``, ``direct``."""
    seed: int
    template: str
    needle: str
    question: str
    distractor: str | None
    characters: tuple[str, ...]
    answers: tuple[str, ...]
    """What is right where the needle names nobody."""


def read_tests(file: Path) -> list[Test]:
    """The tests of a needle set, in its order.

    Raises:
        InputError: it is none.
    """
    values = json_file.read_json_value(file)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{file} must hold an array of needles, as upstream's needle sets do")
    found = [
        test
        for number, value in enumerate(values, 1)
        for test in _tests(json_file.JsonObject(value, f"{file}, needle {number}"))
    ]
    if not found:
        raise InputError(f"{file} holds no tests")
    return found


def _tests(entry: json_file.JsonObject) -> Iterator[Test]:
    name, needle = entry.string("id"), entry.string("needle")
    if re.match(r"[0-9]{4}", name) is None:
        raise entry.wrong("id", "four digits, and a letter or nothing")
    template = _checked_template(entry, entry.string("task_template", TEMPLATE))
    distractors = entry.object("distractors", None)
    questions, tests = entry.object("questions"), entry.object("tests")
    for hops, label in itertools.product(questions, tests):
        test = tests.object(label)
        arguments = test.strings("input_args")
        distractor = distractors.string(hops) if distractors is not None else None
        yield Test(
            name=f"{name}_{label}_{hops}",
            hops=hops,
            seed=BASE_SEED + int(name[:4]),
            template=template,
            needle=_filled(needle, arguments),
            question=_last_filled(questions.string(hops), arguments),
            distractor=None if distractor is None else _last_filled(distractor, arguments),
            characters=tuple(entry.strings("character_set", [])),
            answers=tuple(test.strings("gold_answers", [])),
        )


def _checked_template(entry: json_file.JsonObject, template: str) -> str:
    """A template of the two fields alone: any other, or a width, is not upstream's."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{entry.where}: task_template is no template ({error})") from error
    for _, field, form, conversion in fields:
        if field is not None and (field not in ("haystack", "question") or form or conversion):
            raise entry.wrong("task_template", "a text with {haystack} and {question}")
    return template


def _filled(text: str, arguments: Sequence[str]) -> str:
    """``{1}`` is the first argument; a mark in an argument stays text."""
    marks = {f"{{{number}}}": argument for number, argument in enumerate(arguments, 1)}
    return re.sub(r"\{[0-9]+\}", lambda mark: marks.get(mark[0], mark[0]), text)


def _last_filled(text: str, arguments: Sequence[str]) -> str:
    """Upstream fills questions and distractors again for every argument: the last one stays."""
    full = text
    for number, argument in enumerate(arguments, 1):
        if f"{{{number}}}" in text:
            full = text.replace(f"{{{number}}}", argument)
    return full


@dataclasses.dataclass(frozen=True)
class Placement:
    """A test in a book at a depth."""

    test: Test
    book: Book
    context_length: int
    depth: float
    other: float
    """Depth of the distractor; 0 without one."""
    character: str
    """Who is meant; empty where the needle names nobody."""

    @property
    def answers(self) -> list[str]:
        """What is right."""
        return [self.character] if self.character else list(self.test.answers)

    def messages(self) -> tuple[prompt.Message, ...]:
        """What is asked."""
        test, where = self.test, (self.context_length, self.depth)
        needle = test.needle.replace(CHARACTER, self.character)
        question = test.question.replace(CHARACTER, self.character)
        if test.distractor is None:
            text = self.book.place(needle, *where)
        else:
            text = self.book.place_both(needle, test.distractor, *where, self.other)
        return _messages(test.template, text, question)


def _messages(template: str, haystack: str, question: str) -> tuple[prompt.Message, ...]:
    text = template.format(haystack=haystack, question=question)
    return ("system", SYSTEM), ("user", text)


def placements(
    test: Test, books: Sequence[Book], context_length: int, num_depths: int
) -> Iterator[Placement]:
    """A test in every book at every depth; names are drawn as upstream draws them."""
    for number, book in enumerate(books):
        draw = np.random.RandomState(test.seed + number)
        for per_cent in np.linspace(0, 100, num_depths).tolist():
            depth, character, other = per_cent / 100, "", 0.0
            if CHARACTER in test.needle:
                if not test.characters:
                    raise InputError(f"NoLiMa's test {test.name} has no character_set")
                character = str(draw.choice(list(test.characters)))
            elif CHARACTER in test.question or not test.answers:
                raise InputError(f"NoLiMa's test {test.name} has neither {CHARACTER} nor answers")
            if test.distractor is not None:
                other = distractor_depth(draw, context_length, depth)
            yield Placement(test, book, context_length, depth, other, character)


def evaluate_nolima(config: options.NoLiMaConfig, subject: Answerer) -> Result:
    """Measure NoLiMa; what is written is as in :func:`evaluate_questions`.

    Raises:
        InputError: as there, a file that is missing or damaged, or a book too short for a length.
    """
    config.check()
    form, data = prompt.PromptForm(subject.tokenizer, config.prompt_template), Path(config.data)
    needles = data / "needlesets" / f"{config.needle_set}.json"
    files = _haystacks(data / "haystack" / "rand_shuffle", config.num_haystacks)
    books = [Book(str(file), read_text(file), form.tokenizer) for file in files]
    tests = _first(read_tests(needles), config.num_samples)
    decides = form.decides(metric=config.metric, needles=config.needle_set)
    score = functools.partial(nolima_score, config.metric)
    questions = []
    for length, test in itertools.product(sorted(config.lengths), tests):
        size = length + _beside(form, test)
        for index, place in enumerate(placements(test, books, length, config.num_depths)):
            place.book.window(length, place.depth)  # it has one, before the work starts
            make = functools.partial(_prompt, form, place)
            of = (test.hops, str(length), index, size, config.max_new_tokens)
            questions.append(Question(*of, {**decides, "test": test.name}, make, score))
    for question in questions if tests[0].distractor is not None else ():
        question.make()  # not every place will do
    longest = max(question.num_tokens for question in questions) + config.max_new_tokens
    return conversation.evaluate_files(
        *(questions, subject, "nolima", config, UPSTREAM),
        {file: file_sha256(file) for file in [needles, *files]},
        lengths={longest: "the longest prompt and its answer"},
        metrics={test.hops: config.metric for test in tests},
        notes=[
            f"{config.needle_set}: {len(tests)} tests in {len(books)} books at "
            f"{config.num_depths} depths; column: tokens of the book; prompt template "
            f"{form.template}",
        ],
        notes_of=_all_tests,
    )


def _all_tests(entries: Entries) -> list[str]:
    """Upstream's own figure: the mean over all tests, whatever their kind."""
    scores: dict[str, list[float]] = {}
    for entry in entries:
        scores.setdefault(entry["column"], []).append(entry["score"])
    means = ", ".join(f"{column}: {100 * sum(s) / len(s):.1f}" for column, s in scores.items())
    return [f"mean over all tests, as upstream has it: {means}"]


def _haystacks(folder: Path, number: int) -> list[Path]:
    """Books by the number in their names, which decides what is drawn for them."""
    # a Mac's copies have hidden files ._NAME.txt, which no comparison of folders counts either
    found = [file for file in aside.files_in(folder, "*.txt") if file.name[0] != "."]
    if not found:
        raise InputError(f"{folder} has no books: fill --data as upstream's script does")
    found.sort(key=lambda file: (int("".join(re.findall(r"[0-9]", file.stem))[:9] or 0), file.name))
    if number > len(found):
        raise InputError(f"num_haystacks ({number}) is more than the {len(found)} of {folder}")
    return found[: number or None]


def _first(tests: Sequence[Test], number: int) -> list[Test]:
    """The first ``number`` of every kind of question; 0: all."""
    taken: Counter[str] = Counter()
    kept = []
    for test in tests:
        taken[test.hops] += 1
        if not number or taken[test.hops] <= number:
            kept.append(test)
    return kept


_MARGIN = 16
"""Tokens that a window may have more when its text is tokenised again."""


def _beside(form: prompt.PromptForm, test: Test) -> int:
    """Tokens of a prompt beside the book's, at most."""
    name = max(test.characters, key=len, default="")
    lines = "\n".join([test.needle, test.distractor or "", name, name])
    messages = _messages(test.template, lines, test.question)
    return int(form.prompt(messages).tokens.size) + _MARGIN


def _prompt(form: prompt.PromptForm, place: Placement) -> Prompt:
    return form.prompt(place.messages(), place.answers)

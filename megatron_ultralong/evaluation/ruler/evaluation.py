"""``evaluate ruler``: samples of the tasks, put to a checkpoint, scored, and written down."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.evaluation.asking.questions import Question, evaluate_questions
from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.models.interface import Generator
from megatron_ultralong.evaluation.models.opening import Subject
from megatron_ultralong.evaluation.options import check_num_samples
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import KINDS, Result
from megatron_ultralong.evaluation.ruler import needles, parameters, question_answering, words
from megatron_ultralong.evaluation.ruler.fitting import Builder, fit
from megatron_ultralong.generation.prompt_tokenizer import IdArray, PromptTokenizer, prompt_parts

PROMPT_VERSION = 2
"""Counts up when a prompt changes, so that no half-done evaluation mixes two."""


@dataclasses.dataclass(frozen=True)
class RulerSample(Prompt):
    """A prompt; what its answer has to hold are the references."""

    num_units: int = 0
    """Words, lines, list words or documents of its haystack."""


class RulerSamples:
    """Makes samples; files are read and counted once, when the first task needs them."""

    def __init__(self, config: parameters.RulerConfig, tokenizer: PromptTokenizer) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._documents: dict[str, question_answering.Documents] = {}

    def sample(self, task: str, length: int, index: int) -> RulerSample:
        """Sample ``index`` of a task: prompt and answer together have at most ``length`` tokens.

        Raises:
            InputError: the length has no room for the fixed parts, or the data set no such
                question.
        """
        builder = self.builder(task, length, index)
        room = length - parameters.family(task).tokens_to_generate
        num_units, tokens = fit(
            builder, functools.partial(self.prompt, builder), room, f"{task} at length {length}"
        )
        return RulerSample(tokens, list(builder.references(num_units)), num_units=num_units)

    def prompt(self, builder: Builder, num_units: int) -> IdArray:
        """Ids of a sample's prompt with so many units."""
        template = self._config.prompt_template
        ids = self._tokenizer.encode_parts(
            prompt_parts(template, self._tokenizer.turns, *builder.turns(num_units))
        )
        begin_ids = self._tokenizer.begin_ids if template == "base" else []
        return np.concatenate([np.asarray(begin_ids, np.int64), ids])

    def builder(self, name: str, length: int, index: int) -> Builder:
        """The sample with any number of units."""
        task, config, tokenizer = parameters.TASKS[name], self._config, self._tokenizer
        release = config.ruler_release
        seed = f"{config.seed}/{name}/{length}/{index}"
        if isinstance(task, parameters.NeedleTask):
            lists = self.words if task.key == "words" else None
            essays = self.essays if task.haystack == "essay" else None
            return needles.NeedleBuilder(task, seed, tokenizer, lists, essays, release)
        if isinstance(task, parameters.VariableTask):
            return words.VariableBuilder(task, seed, tokenizer, release)
        if isinstance(task, parameters.CommonWordsTask):
            return words.CommonWordsBuilder(task, seed, length, tokenizer, self.words, release)
        if isinstance(task, parameters.FrequentWordsTask):
            return words.FrequentWordsBuilder(task, seed, length, tokenizer)
        return question_answering.QuestionBuilder(self.documents(task), index, seed, release)

    @cached_property
    def words(self) -> needles.WordLists:
        """Words of keys and lists."""
        return needles.load_word_lists(self._config.word_lists, self._config.english_words)

    @cached_property
    def essays(self) -> needles.Essays:
        """The essays."""
        return needles.Essays(needles.read_essays(self._config.essays), self._tokenizer)

    def documents(self, task: parameters.QuestionTask) -> question_answering.Documents:
        """A data set of questions."""
        if task.dataset not in self._documents:
            file = getattr(self._config, task.dataset)
            self._documents[task.dataset] = question_answering.read_documents(
                task, file, self._tokenizer
            )
        return self._documents[task.dataset]

    def check(self) -> None:
        """Read every file that the tasks need, before the work starts.

        Raises:
            InputError: one is missing or damaged, or has fewer questions than samples asked for.
        """
        if self._needs_words:
            _ = self.words
        for name in self._config.tasks:
            task = parameters.TASKS[name]
            if isinstance(task, parameters.QuestionTask):
                available = len(self.documents(task).questions)
                what = f"questions of --{task.dataset} {getattr(self._config, task.dataset)}"
                check_num_samples(self._config.num_samples, available, what)
            elif isinstance(task, parameters.NeedleTask) and task.haystack == "essay":
                _ = self.essays

    @property
    def _needs_words(self) -> bool:
        tasks = [parameters.TASKS[name] for name in self._config.tasks]
        return any(
            isinstance(task, parameters.CommonWordsTask) or getattr(task, "key", "") == "words"
            for task in tasks
        )

    def material(self) -> dict[str, str]:
        """What the samples are made of: files by their SHA-256, packages by their version."""
        config = self._config
        names = ("essays", "squad", "hotpotqa", "english_words")
        found = {name: file_sha256(Path(file)) for name in names if (file := getattr(config, name))}
        found["prompts"] = f"version {PROMPT_VERSION}, of NVIDIA/RULER at {config.ruler_release}"
        if self._needs_words:
            found["words"] = self.words.source
        return found


_CONTROL = re.compile(r"[\x00-\x1f]")


def string_match(metric: parameters.Metric, prediction: str, references: Sequence[str]) -> float:
    """Score of one answer, 0 to 1, whatever the letters' case.

    ``string_match_all``: share of the references that stand in the answer;
    ``string_match_part``: 1 if any does (``scripts/eval/synthetic/constants.py`` upstream).
    """
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    found = [reference.lower() in text for reference in references]
    return float(any(found)) if metric == "string_match_part" else sum(found) / len(found)


def evaluate_ruler(config: parameters.RulerConfig, subject: Subject[Generator]) -> Result:
    """Measure RULER, print a table, write JSON, a picture and every answer.

    Every rank calls this; the main one prints and writes.

    Raises:
        InputError: a length beyond the trained positions or without room for a prompt, a file
            that is missing, an output folder in use, or a cost above the limit.
    """
    config.check()
    tokenizer = subject.tokenizer
    tokenizer.check_template(config.prompt_template)
    samples = RulerSamples(config, tokenizer)
    samples.check()
    lengths = sorted(config.lengths)
    for task in config.tasks:  # before the work starts
        samples.sample(task, lengths[0], 0)
    material = samples.material()
    decides = {
        "version": PROMPT_VERSION,
        "release": config.ruler_release,
        "seed": config.seed,
        **tokenizer.decides(config.prompt_template),
        "material": material,
    }
    places = itertools.product(lengths, config.tasks, range(config.num_samples))
    questions = [_question(samples, decides, *place) for place in places]
    release = config.ruler_release
    notes = [
        f"prompts of NVIDIA/RULER at {release} of {parameters.RELEASES[release]}",
        f"prompt template {config.prompt_template}, seed {config.seed}; prompt and answer together "
        "fill each length unless their material is used up, and never exceed it",
    ]
    if set(config.tasks) != set(parameters.TASKS):
        notes.append(
            f"{len(config.tasks)} of RULER's {len(parameters.TASKS)} tasks: the mean is of these"
        )
    if any(task.startswith("niah") for task in config.tasks) and config.essays:
        notes.append("essays cut into sentences by a rule of this project, not by nltk's model")
    if "cwe" in config.tasks and release == "c3f5e3b" and not config.english_words:
        notes.append("cwe: pairs of words where the list is longer than the vocabulary")
    return evaluate_questions(
        questions,
        subject,
        kind=KINDS["ruler"],
        config=config,
        lengths={length: f"length {length}" for length in lengths},
        metrics={task: parameters.family(task).metric for task in config.tasks},
        notes=notes,
        material=material,
    )


def _question(
    samples: RulerSamples, decides: Mapping[str, Any], length: int, task: str, index: int
) -> Question:
    kind = parameters.family(task)
    room = kind.tokens_to_generate
    make = functools.partial(samples.sample, task, length, index)
    score = functools.partial(string_match, kind.metric)
    return Question(task, str(length), index, length - room, room, decides, make, score)

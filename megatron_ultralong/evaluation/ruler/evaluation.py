"""``evaluate ruler``: samples of the tasks, put to a checkpoint, scored, and written down."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_ultralong.evaluation.asking.questions import Question, evaluate_questions
from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.models.language_models import Answerer
from megatron_ultralong.evaluation.options import check_num_samples
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import KINDS, Result
from megatron_ultralong.evaluation.ruler import needles, parameters, question_answering, words
from megatron_ultralong.evaluation.ruler.fitting import Builder, fit
from megatron_ultralong.generation.prompt_tokenizer import IdArray, PromptTokenizer, prompt_parts
from megatron_ultralong.program.errors import counted


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
            *(builder.least_units, builder.most_units, builder.estimate),
            *(functools.partial(self.prompt, builder), room, f"{task} at length {length}"),
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
        tokenizer, release = self._tokenizer, self._config.ruler_release
        seed = f"{self._config.seed}/{name}/{length}/{index}"
        if name == "vt":
            return words.VariableBuilder(seed, tokenizer, release)
        if name == "cwe":
            return words.CommonWordsBuilder(seed, length, tokenizer, self.words, release)
        if name == "fwe":
            return words.FrequentWordsBuilder(seed, length, tokenizer)
        if name in parameters.DATA_SETS:
            return question_answering.QuestionBuilder(self.documents(name), index, seed, release)
        task = parameters.NEEDLES[name]
        lists = self.words if task.key == "words" else None
        essays = self.essays if task.haystack == "essay" else None
        return needles.NeedleBuilder(task, seed, tokenizer, lists, essays, release)

    @cached_property
    def words(self) -> needles.WordLists:
        """Words of keys and lists."""
        return needles.load_word_lists(self._config.word_lists, self._config.english_words)

    @cached_property
    def essays(self) -> needles.Essays:
        """The essays."""
        return needles.Essays(needles.read_essays(self._config.essays), self._tokenizer)

    def documents(self, task: str) -> question_answering.Documents:
        """The data set of a task of questions."""
        if task not in self._documents:
            name = parameters.DATA_SETS[task]
            self._documents[task] = question_answering.read_documents(
                name, getattr(self._config, name), self._tokenizer
            )
        return self._documents[task]

    def check(self) -> None:
        """Read every file that the tasks need, before the work starts.

        Raises:
            InputError: one is missing or damaged, or has fewer questions than samples asked for.
        """
        if self._needs_words:
            _ = self.words
        for name in self._config.tasks:
            if flag := parameters.DATA_SETS.get(name):
                what = f"questions of --{flag} {getattr(self._config, flag)}"
                available = len(self.documents(name).questions)
                check_num_samples(self._config.num_samples, available, what)
            elif name in parameters.NEEDLES and parameters.NEEDLES[name].haystack == "essay":
                _ = self.essays

    @property
    def _needs_words(self) -> bool:
        by_word = {name for name, task in parameters.NEEDLES.items() if task.key == "words"}
        return bool({*self._config.tasks} & {"cwe", *by_word})

    def material(self) -> dict[str, str]:
        """What the samples are made of: files by their SHA-256, packages by their version."""
        config = self._config
        names = ("essays", "squad", "hotpotqa", "english_words")
        found = {name: file_sha256(Path(file)) for name in names if (file := getattr(config, name))}
        found["prompts"] = (
            f"version {parameters.PROMPT_VERSION}, of NVIDIA/RULER at {config.ruler_release}"
        )
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


def evaluate_ruler(config: parameters.RulerConfig, subject: Answerer) -> Result:
    """Measure RULER; what is written is as in :func:`evaluate_questions`.

    Raises:
        InputError: as there, or a length without room for a prompt, or a file that is missing.
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
    release = config.ruler_release
    decides = {
        "version": parameters.PROMPT_VERSION,
        "release": release,
        "seed": config.seed,
        **tokenizer.decides(config.prompt_template),
        "material": material,
    }
    questions = []
    for length, task, index in itertools.product(lengths, config.tasks, range(config.num_samples)):
        kind = parameters.family(task)
        room = kind.tokens_to_generate
        make = functools.partial(samples.sample, task, length, index)
        score = functools.partial(string_match, kind.metric)
        of = (task, str(length), index, length - room, room)
        questions.append(Question(*of, decides, make, score))
    notes = [
        f"prompts of NVIDIA/RULER at {release} of {parameters.RELEASES[release]}",
        f"prompt template {config.prompt_template}, seed {config.seed}; prompt and answer together "
        "fill each length unless their material is used up, and never exceed it",
    ]
    if set(config.tasks) != set(parameters.TASKS):
        notes.append(
            f"{len(config.tasks)} of RULER's {counted(len(parameters.TASKS), 'task')}: the mean "
            "is of these"
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

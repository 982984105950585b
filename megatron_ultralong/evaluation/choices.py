"""``evaluate choices``: multiple-choice questions answered by likelihood, in any layout."""

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.read.formats import read_records
from megatron_ultralong.evaluation.asking.questions import Benchmark, Entries, run_benchmark
from megatron_ultralong.evaluation.asking.samples import Prompt, Row, Sample, scoring
from megatron_ultralong.evaluation.models import interface
from megatron_ultralong.evaluation.models.opening import Subject
from megatron_ultralong.evaluation.options import ChoicesConfig, ChoiceStyle
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import KINDS, Result, ScoreCell, mean_cell
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import sample_key
from megatron_ultralong.program.json_file import read_bounded

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SUFFIXES = (".jsonl", ".csv")
KEYS = ("question", "choices", "answer")
MAX_CSV_BYTES = 16 << 20
"""Of a file of questions; MMLU's largest has 0.5 MB."""


@dataclasses.dataclass(frozen=True)
class ChoiceQuestion:
    """A question, its choices and the number of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def question_files(data: Sequence[str]) -> dict[str, Path]:
    """Files by the name of their task: ``anatomy_test.csv -> anatomy``.

    Raises:
        InputError: there are none, or two of one name.
    """
    files: dict[str, Path] = {}
    for argument in data:
        path = Path(argument)
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not found or not found[0].is_file():
            raise InputError(
                f"--data {path} holds no {' or '.join(SUFFIXES)} file: name files of questions, or "
                "their folder"
            )
        for file in found:
            name = re.sub(r"_(test|dev|val|train)$", "", file.stem)
            if name in files:
                raise InputError(
                    f"--data names two files of task '{name}': {files[name]} and {file}; give one"
                )
            files[name] = file
    return files


def read_questions(file: Path) -> list[ChoiceQuestion]:
    """Questions of a file.

    Raises:
        InputError: the file cannot be read, or a question is not of the format.
    """
    records = _jsonl(file) if file.suffix == ".jsonl" else _csv(file)
    questions = [_question(record, where) for where, record in records]
    if not questions:
        raise InputError(f"{file} holds no questions")
    return questions


def _jsonl(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for record in read_records(file, KEYS, "jsonl"):
        if record.error:
            raise InputError(f"{record.place}: {record.error}: see docs/evaluation.md")
        yield record.place, record.fields


def _csv(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = read_bounded(file, MAX_CSV_BYTES).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"questions {file} cannot be read ({error})") from error
    header: list[str] | None = None
    if rows and "question" in (names := [name.strip().lower() for name in rows[0]]):
        header, rows = names, rows[1:]
    for number, row in enumerate(rows, 1):
        where = f"{file}, question {number}"
        if header is None:
            if len(row) < 4:
                raise InputError(
                    f"{where} has {len(row)} columns: a question, at least two choices and the "
                    "letter of the right one are needed"
                )
            yield where, {"question": row[0], "choices": row[1:-1], "answer": row[-1]}
        else:
            record = dict(zip(header, row, strict=False))
            letters = [name for name in header if len(name) == 1]
            yield where, {**record, "choices": [record.get(name, "") for name in letters]}


def _question(record: Mapping[str, Any], where: str) -> ChoiceQuestion:
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise InputError(f"{where} has no {missing[0]!r}, only {sorted(record)}")
    question, choices, answer = (record[key] for key in KEYS)
    if isinstance(choices, dict):  # as ARC has them
        choices = choices.get("text")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise InputError(
            f"{where} must have a list of 2 to {len(LETTERS)} choices, not {choices!r}"
        )
    texts = tuple(str(choice) for choice in choices)
    return ChoiceQuestion(str(question), texts, _answer(answer, texts, where))


def _answer(answer: Any, choices: Sequence[str], where: str) -> int:
    """The right choice's number, given by number, by letter or by its text."""
    number = answer if isinstance(answer, int) and not isinstance(answer, bool) else -1
    if isinstance(answer, str):
        text = answer.strip()
        if len(text) == 1 and text in LETTERS:
            number = LETTERS.index(text)
        elif text.isdecimal():
            number = int(text)
        elif answer in choices:
            number = list(choices).index(answer)
    if not 0 <= number < len(choices):
        raise InputError(
            f"{where} has the answer {answer!r}, and {len(choices)} choices: give a number from 0 "
            f"to {len(choices) - 1}, a letter from A to {LETTERS[len(choices) - 1]} or a choice's "
            "text"
        )
    return number


def question_text(question: ChoiceQuestion, style: ChoiceStyle) -> str:
    """A question as it is asked, up to what the answer follows."""
    if style == "texts":
        return f"Question: {question.question.strip()}\nAnswer:"
    lines = [f"{LETTERS[k]}. {choice}" for k, choice in enumerate(question.choices)]
    return "\n".join([question.question.strip(), *lines, "Answer:"])


def continuations(question: ChoiceQuestion, style: ChoiceStyle) -> list[str]:
    """What may follow: a letter or a choice's text, and the space before it."""
    count = len(question.choices)
    return [f" {text}" for text in (LETTERS[:count] if style == "letters" else question.choices)]


def fewshot_text(task: str, questions: Sequence[ChoiceQuestion], style: ChoiceStyle) -> str:
    """What stands before every question of a task: for letters MMLU's line, solved questions."""
    solved = [
        question_text(question, style) + continuations(question, style)[question.answer] + "\n\n"
        for question in questions
    ]
    subject = task.replace("_", " ")
    line = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return (line if style == "letters" else "") + "".join(solved)


ACCURACY, NORMALISED = "accuracy", "accuracy by character"
"""Of the likeliest choice, and of the likeliest for its length in characters, as
lm-evaluation-harness' ``acc`` and ``acc_norm``."""


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A question of a task, and the texts whose likelihood is asked for."""

    task: str
    answer: int
    endings: tuple[str, ...]
    sample: Sample[interface.Scores]
    """One row for every ending."""


def evaluate_choices(config: ChoicesConfig, subject: Subject[interface.Scorer]) -> Result:
    """Measure the share of questions whose likeliest choice is right.

    Every rank calls this; the main one prints and writes.

    Raises:
        InputError: a file that is missing or damaged, rows beyond the trained positions, an
            output folder in use, or a cost above the limit.
    """
    config.check()
    scorer, tokenizer = subject.model, subject.tokenizer
    files = question_files(config.data)
    material = {file.name: file_sha256(file) for file in files.values()}
    asked: list[_Asked] = []
    for task, file in files.items():
        questions = read_questions(file)
        before = fewshot_text(task, _solved(config, task, material), config.choice_style)
        for index, question in enumerate(questions[: config.num_samples or None]):
            asked.append(_ask(config, tokenizer, task, index, question, before))
    longest = max(row.num_tokens for one in asked for row in one.sample.rows)
    interface.check_length(
        scorer,
        longest,
        config.beyond_trained_positions,
        what=f"a question of {longest} tokens",
        way_out="use fewer --num-fewshot",
    )
    note = (
        f"likelihood of {config.choice_style} by one forward pass, {config.num_fewshot} solved "
        "questions before each; the mean is of the files"
    )
    benchmark = Benchmark(
        kind=KINDS["choices"],
        config=config,
        asked=[one.sample for one in asked],
        cells=lambda entries: _cells(config, asked, entries),
        decides={
            "choice_style": config.choice_style,
            "num_fewshot": config.num_fewshot,
            "tokenizer": tokenizer.sha256,
        },
        metrics=dict.fromkeys(files, "accuracy"),
        notes=lambda entries: [note],
        material=material,
        description="Choices",
    )
    return run_benchmark(benchmark, scoring(scorer), subject)


def _solved(config: ChoicesConfig, task: str, material: dict[str, str]) -> list[ChoiceQuestion]:
    if not config.num_fewshot:
        return []
    files = question_files([config.fewshot_data])
    if task not in files:
        raise InputError(
            f"--fewshot-data {config.fewshot_data} has no file for task '{task}', only for "
            f"{', '.join(files)}"
        )
    questions = read_questions(files[task])
    if len(questions) < config.num_fewshot:
        raise InputError(
            f"{files[task]} has {len(questions)} questions, fewer than num_fewshot "
            f"({config.num_fewshot})"
        )
    material[f"few-shot {files[task].name}"] = file_sha256(files[task])
    return questions[: config.num_fewshot]


def _ask(
    config: ChoicesConfig,
    tokenizer: PromptTokenizer,
    task: str,
    index: int,
    question: ChoiceQuestion,
    before: str,
) -> _Asked:
    """The negative log-likelihood of every choice in nats; rows of like length go together.

    What a prompt has in common with the question alone is not scored.
    """
    context = before + question_text(question, config.choice_style)
    begin = np.asarray(tokenizer.begin_ids, np.int64)
    alone = begin.size + tokenizer.encode(context).size
    endings = continuations(question, config.choice_style)
    wholes = [np.concatenate([begin, tokenizer.encode(context + end)]) for end in endings]
    prompts = [Prompt(whole, min(max(alone, 1), whole.size - 1)) for whole in wholes]

    def note(losses: list[float]) -> dict[str, Any]:
        interface.check_finite(losses, f"{task}, question {index + 1}")
        return {"task": task, "index": index, "answer": question.answer, "losses": losses}

    rows = tuple(
        Row(prompt.tokens.size, lambda prompt=prompt: prompt, _loss, "the questions")  # type: ignore[misc]
        for prompt in prompts
    )
    key = sample_key(task=task, index=index, context=context, endings=endings)
    return _Asked(task, question.answer, tuple(endings), Sample(key, rows, note))


def _loss(prompt: Prompt, scores: interface.Scores) -> float:
    return float(scores.loss[prompt.references - 1 :].sum(dtype=np.float64))


def _cells(config: ChoicesConfig, asked: list[_Asked], entries: Entries) -> tuple[ScoreCell, ...]:
    columns = (ACCURACY,) if config.choice_style == "letters" else (ACCURACY, NORMALISED)
    cells: list[ScoreCell] = []
    pairs = zip(asked, entries, strict=True)
    for task, group in itertools.groupby(pairs, lambda pair: pair[0].task):
        of_task = list(group)
        hits = [_hits(one, entry["losses"]) for one, entry in of_task]
        sizes = [one.sample.rows[0].num_tokens for one, _ in of_task]
        figures = {"num_prompt_tokens": sum(sizes) / len(sizes)}
        cells += [
            mean_cell(task, column, [hit[k] for hit in hits], figures)
            for k, column in enumerate(columns)
        ]
    return tuple(cells)


def _hits(one: _Asked, losses: Sequence[float]) -> tuple[float, float]:
    """Whether the likeliest choice is right, and the likeliest for its length."""
    lengths = np.asarray([max(len(end) - 1, 1) for end in one.endings])  # without the space
    return float(np.argmin(losses) == one.answer), float(np.argmin(losses / lengths) == one.answer)

"""Files of multiple-choice questions, and the prompts made of them."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.data.read.formats import read_records
from megatron_ultralong.evaluation.options import ChoiceStyle
from megatron_ultralong.program.errors import InputError
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
            name = task_name(file)
            if name in files:
                raise InputError(
                    f"--data names two files of task '{name}': {files[name]} and {file}; give one"
                )
            files[name] = file
    return files


def task_name(file: Path) -> str:
    """A file's name without its ending and its split."""
    return re.sub(r"_(test|dev|val|train)$", "", file.stem)


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


def _jsonl(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    records: list[tuple[str, Mapping[str, Any]]] = []
    for record in read_records(file, KEYS, "jsonl"):
        if record.error:
            raise InputError(f"{record.place}: {record.error}: see docs/evaluation.md")
        records.append((record.place, record.fields))
    return records


def _csv(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        text = read_bounded(file, MAX_CSV_BYTES).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"questions {file} cannot be read ({error})") from error
    header: list[str] | None = None
    if rows and "question" in (names := [name.strip().lower() for name in rows[0]]):
        header, rows = names, rows[1:]
    records: list[tuple[str, Mapping[str, Any]]] = []
    for number, row in enumerate(rows, 1):
        where = f"{file}, question {number}"
        record: dict[str, Any] = {}
        if header is None:
            if len(row) < 4:
                raise InputError(
                    f"{where} has {len(row)} columns: a question, at least two choices and the "
                    "letter of the right one are needed"
                )
            record = {"question": row[0], "choices": row[1:-1], "answer": row[-1]}
        else:
            record |= zip(header, row, strict=False)
            letters = [name for name in header if len(name) == 1]
            record["choices"] = [record.get(name, "") for name in letters]
        records.append((where, record))
    return records


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

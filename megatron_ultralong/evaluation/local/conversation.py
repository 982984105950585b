"""Questions that are messages: read from local copies, made into prompts, told apart by length."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.read.file_kind import file_kind
from megatron_ultralong.data.read.formats import read_records
from megatron_ultralong.data.read.record import text_error
from megatron_ultralong.evaluation.asking.questions import Question, evaluate_questions
from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.local.local_benchmarks import cut_prompt
from megatron_ultralong.evaluation.local.options import BinsConfig, FitConfig
from megatron_ultralong.evaluation.models.interface import Generator
from megatron_ultralong.evaluation.models.opening import Subject
from megatron_ultralong.evaluation.results.result import KINDS, Result
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.generation.prompt_tokenizer import IdArray, PromptTokenizer
from megatron_ultralong.model.families.llama import LLAMA
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import sample_key
from megatron_ultralong.program.json_file import JsonObject

Message = tuple[str, str]
"""Role and text."""
VERSION = 2
"""Counts up when a prompt changes, so that no half-done evaluation mixes two."""


def data_files(data: str, patterns: Sequence[str]) -> list[Path]:
    """The file ``data``, or the files of the folder ``data`` that fit, by name.

    Raises:
        InputError: there are none.
    """
    place = Path(data)
    if place.is_file():
        return [place]
    names = [f"{pattern}.{suffix}" for pattern in patterns for suffix in ("parquet", "jsonl")]
    found = sorted({file for name in names for file in place.glob(name) if file.is_file()})
    if not found:
        raise InputError(
            f"--data {data} has no {' and no '.join(names)}: give the file, or the folder with the "
            "files as upstream publishes them"
        )
    return found


def read_rows(file: Path, keys: Sequence[str]) -> Iterator[JsonObject]:
    """Rows of a parquet or JSONL file, each named by its place.

    Raises:
        InputError: no such file, another format, a row that cannot be read, or no rows.
    """
    kind = file_kind(file, "auto")
    if kind.problem or kind.file_format == "text":
        raise InputError(f"{file} {kind.problem or 'is neither parquet nor JSON lines'}")
    is_empty = True
    for record in read_records(file, tuple(keys), kind.file_format):
        if record.error:
            raise InputError(f"{record.place}: {record.error}")
        is_empty = False
        for key, value in record.fields.items():
            for text in value if isinstance(value, list) else [value]:
                check_text(text, f"{record.place}: key {key!r}")
        yield JsonObject(record.fields, record.place)
    if is_empty:
        raise InputError(f"{file} holds no rows")


def check_text(text: Any, where: str) -> None:
    """Raise InputError where a value is a text that cannot be tokenised."""
    if isinstance(text, str) and (reason := text_error(text)):
        raise InputError(f"{where} has {reason}")


def prompt_ids(
    tokenizer: PromptTokenizer,
    template: PromptTemplate,
    messages: Sequence[Message],
    room: int = 2**62,
) -> tuple[IdArray, bool]:
    """Ids of messages with the assistant's turn begun, and whether the last one was cut.

    Beyond ``room`` tokens the middle of the last message is left out. ``chat`` trims texts
    where the template of the family does. ``base`` writes
    ``User: ...`` and ``Assistant: ...``, with empty lines between them, up to ``Assistant:``.
    """
    if template == "chat":
        if tokenizer.turns in LLAMA.turns:
            messages = [(role, text.strip()) for role, text in messages]
        return cut_prompt(tokenizer, "chat", messages[-1][1], room, messages[:-1])
    *before, (role, text) = messages
    head = "".join(f"{role.capitalize()}: {text}\n\n" for role, text in before)
    head, tail = f"{head}{role.capitalize()}: ", "\n\nAssistant:"
    begin = np.asarray(tokenizer.begin_ids, np.int64)
    ids = np.concatenate([begin, tokenizer.encode(head + text + tail)])
    if ids.size <= room:
        return ids, False
    start, end = np.concatenate([begin, tokenizer.encode(head)]), tokenizer.encode(tail)
    half = (room - start.size - end.size) // 2
    if half < 1:
        raise InputError(
            f"a prompt of {room} tokens has no room next to its template's "
            f"{start.size + end.size}: raise --max-length"
        )
    body = tokenizer.encode(text)
    return np.concatenate([start, body[:half], body[-half:], end]), True


def written(template: PromptTemplate, prediction: str) -> str:
    """What the assistant says: behind ``Assistant:`` a text begins with a space."""
    return prediction.removeprefix(" ") if template == "base" else prediction


def bin_of(num_tokens: int, first: int = 0) -> int:
    """The upper end of a length's bin, a power of two: ``8192 -> 8192``, ``8193 -> 16384``.

    ``first`` is the least length of the first bin, and belongs to it.
    """
    end = 1 << max(num_tokens - 1, 0).bit_length()
    return 2 * first if num_tokens == first else end


MOST_CHARACTERS_A_TOKEN = 16
"""No text of a language and no list of edges has as many: a longer one need not be tokenised."""
_ROOM_BESIDE = 32
"""Tokens beside a true answer that is longer than ``max_new_tokens``."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One question of a file."""

    task: str
    messages: tuple[Message, ...]
    answer: str
    """As a model has to write it."""
    references: Any
    file: str
    """Hash of the file that it stands in."""
    length: int = 0
    """Tokens, where the file says how many it is meant for."""


@dataclasses.dataclass(frozen=True)
class Binned:
    """Questions by length."""

    questions: list[Question]
    num_too_long: int
    """Questions that were left out because they are longer than ``max_length``."""
    num_repeated: int
    """Questions that stand there once more; they count."""


def questions_by_length(
    rows: Iterable[Row],
    config: Any,
    tokenizer: PromptTokenizer,
    max_length: int,
    scorer: Callable[[str], Callable[[str, Any], float]],
    first_bin: int = 0,
) -> Binned:
    """The questions of a file that fit, in bins by the tokens of prompt and answer.

    Args:
        rows: all questions.
        config: with ``tasks``, ``lengths``, ``max_new_tokens`` and the fields of
            :class:`FitConfig`.
        tokenizer: the checkpoint's.
        max_length: tokens of prompt and answer together, at most.
        scorer: gives the score of a task, a function of what was written and the references.
        first_bin: the least length of upstream's first bin.

    Raises:
        InputError: a task has no questions, or none that fits.
    """
    counter = length_counter(config)
    taken: Counter[tuple[str, int]] = Counter()
    questions, num_too_long, seen = [], 0, set()
    asked: Counter[str] = Counter()
    for index, row in enumerate(rows):
        if row.task not in config.tasks:
            continue
        seen.add(row.task)
        if sum(len(text) for _, text in row.messages) > MOST_CHARACTERS_A_TOKEN * max_length:
            num_too_long += 1
            continue
        ids, _ = prompt_ids(tokenizer, config.prompt_template, row.messages)
        answer = tokenizer.encode(row.answer).size
        room = config.max_new_tokens
        if answer + _ROOM_BESIDE > room:
            room = answer + _ROOM_BESIDE
        if ids.size + room > max_length:
            num_too_long += 1
            continue
        length = row.length or counter(row, ids.size + answer)
        place = row.task, bin_of(length, first_bin)
        taken[place] += 1
        if (config.lengths and place[1] not in config.lengths) or (
            config.num_samples and taken[place] > config.num_samples
        ):
            continue
        asked[sample_key(task=row.task, messages=row.messages, answer=row.answer)] += 1
        make = functools.partial(_prompt, tokenizer, config.prompt_template, row)
        questions.append(
            Question(
                *(row.task, str(place[1]), index, int(ids.size), room),
                decides=decisive(config.prompt_template, tokenizer, file=row.file),
                make=make,
                score=scorer(row.task),
            )
        )
    if missing := [task for task in config.tasks if task not in seen]:
        raise InputError(f"--data {config.data} has no question of {missing[0]}: choose --tasks")
    if not questions:
        which = f" in the bins {list(config.lengths)}" if config.lengths else ""
        raise InputError(
            f"no question of {', '.join(config.tasks)}{which} fits {max_length:,} tokens of prompt "
            f"and answer ({num_too_long:,} are longer): raise --max-length or choose other "
            "--lengths or --tasks"
        )
    questions.sort(key=lambda one: (config.tasks.index(one.task), int(one.column), one.index))
    if num_repeated := len(questions) - len(asked):
        tell(
            f"warning: {num_repeated:,} of {len(questions):,} questions in --data {config.data} "
            "stand there once more, and count: are there two copies of a file?"
        )
    return Binned(questions, num_too_long, num_repeated)


def _prompt(tokenizer: PromptTokenizer, template: PromptTemplate, row: Row) -> Prompt:
    return Prompt(prompt_ids(tokenizer, template, row.messages)[0], row.references)


def length_counter(config: FitConfig) -> Callable[[Row, int], int]:
    """Counts the tokens of prompt and answer: as upstream by ``length_tokenizer``, else as here."""
    if not isinstance(config, BinsConfig) or not config.length_tokenizer:
        return lambda row, num_tokens: num_tokens
    other = PromptTokenizer(Path(config.length_tokenizer))

    def count(row: Row, num_tokens: int) -> int:
        return int(other.count([*(text for _, text in row.messages), row.answer]).sum())

    return count


def bin_notes(config: FitConfig, max_length: int, binned: Binned) -> list[str]:
    """What a reader of a result by bins has to know."""
    counted = "tokens of the prompt, at most, as the files state them"
    if isinstance(config, BinsConfig):
        by = "--length-tokenizer" if config.length_tokenizer else "the checkpoint's tokenizer"
        counted = f"tokens of prompt and answer, at most, by {by}"
    notes = [
        f"prompt template {config.prompt_template}; column: {counted}",
        f"{binned.num_too_long:,} questions are longer than {max_length:,} tokens, and left out",
    ]
    if binned.num_repeated:
        notes.append(f"{binned.num_repeated:,} questions are there more than once, and count")
    return notes


def decisive(
    template: PromptTemplate, tokenizer: PromptTokenizer, **others: Any
) -> Mapping[str, Any]:
    """What a prompt of messages depends on, beside ``others``."""
    return {"version": VERSION, **tokenizer.decides(template), **others}


def evaluate_files(
    questions: Sequence[Question],
    subject: Subject[Generator],
    kind: str,
    config: Any,
    upstream: str,
    files: Mapping[Path, str],
    *,
    notes: Sequence[str],
    **others: Any,
) -> Result:
    """As :func:`evaluate_questions`; the result states ``upstream`` and the files' hashes."""
    names = {file.name for file in files}
    return evaluate_questions(
        questions,
        subject,
        kind=KINDS[kind],
        config=config,
        notes=[upstream, *notes],
        material={"upstream": upstream}
        | {
            (f.name if len(names) == len(files) else f"{f.parent.name}/{f.name}"): files[f]
            for f in files
        },
        **others,
    )

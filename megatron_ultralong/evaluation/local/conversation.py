"""Questions of local copies: read from files, told apart by length, asked."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.data.read.file_kind import file_kind
from megatron_ultralong.data.read.formats import read_records
from megatron_ultralong.data.read.record import text_error
from megatron_ultralong.evaluation.asking.questions import Question, evaluate_questions
from megatron_ultralong.evaluation.local.options import BinsConfig
from megatron_ultralong.evaluation.local.prompt import Message, PromptForm
from megatron_ultralong.evaluation.models.language_models import Answerer
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import KINDS, Result
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program import aside, journal
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.json_file import JsonObject


def data_files(data: str, patterns: Sequence[str]) -> list[Path]:
    """The file ``data``, or the files of the folder ``data`` that fit, by name.

    Raises:
        InputError: there are none.
    """
    place = Path(data)
    if place.is_file():
        return [place]
    names = [f"{pattern}.{suffix}" for pattern in patterns for suffix in ("parquet", "jsonl")]
    fitting = (place / name for name in names)  # a name may have a folder before it
    found = sorted({file for each in fitting for file in aside.files_in(each.parent, each.name)})
    if not found:
        raise InputError(
            f"--data {data} has no {' and no '.join(names)}: give the file, or the folder with the "
            "files as upstream publishes them"
        )
    return found


def find_file(data: str, names: Sequence[str]) -> Path:
    """The first of ``names`` that is a file in the folder ``data``, else an InputError."""
    for name in names:
        if (Path(data) / name).is_file():
            return Path(data) / name
    raise InputError(
        f"--data {data} has no {' and no '.join(names)}: give the folder with the files as "
        "upstream publishes them, or leave the task out with --tasks"
    )


def read_rows(file: Path, keys: Sequence[str]) -> Iterator[JsonObject]:
    """Rows of a parquet, JSONL or JSON file, each named by its place.

    Raises:
        InputError: no such file, another format, a row that cannot be read, or no rows.
    """
    kind = file_kind(file, "auto")
    if kind.problem or kind.file_format == "text":
        raise InputError(f"{file} {kind.problem or 'is neither parquet nor JSON'}")
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
    score: Callable[[str, Any], float]
    """Of what was written and the references: 0 to 1."""
    length: int = 0
    """Tokens, where the file says how many it is meant for."""


Files = Mapping[Path, str]
"""With their hashes."""


def evaluate_by_length(
    subject: Answerer,
    kind: str,
    config: Any,
    upstream: str,
    paths: Sequence[Path],
    keys: Sequence[str],
    row_of: Callable[[Path, JsonObject], Row],
    *,
    metrics: Mapping[str, str],
    first_bin: int = 0,
    notes: Sequence[str] = (),
) -> Result:
    """Ask the questions of files that fit, in bins by the tokens of prompt and answer.

    ``row_of`` makes a question of a row with ``keys`` in one of the files ``paths``. ``config`` has
    the fields of :class:`~megatron_ultralong.evaluation.local.options.FitConfig`, ``tasks`` and
    ``data``; ``first_bin`` is the least length of upstream's first bin. What is written is as in
    :func:`evaluate_questions`.

    Raises:
        InputError: as there, or a file that is missing or of another format, or no question fits.
    """
    form = PromptForm(subject.tokenizer, config.prompt_template)
    max_length = config.max_length or subject.facts.max_positions
    files = {file: file_sha256(file) for file in paths}
    unit, by = "tokens of the prompt, at most, as the files state them", form.tokenizer
    if isinstance(config, BinsConfig):
        unit = "tokens of prompt and answer, at most, by the checkpoint's tokenizer"
        if config.length_tokenizer:
            unit = "tokens of prompt and answer, at most, by --length-tokenizer"
            by = PromptTokenizer(Path(config.length_tokenizer))
    taken: Counter[tuple[str, int]] = Counter()
    asked: set[str] = set()
    questions, num_too_long, seen = [], 0, set()
    every = ((file, row_of(file, values)) for file in files for values in read_rows(file, keys))
    for index, (file, row) in enumerate(every):
        if row.task not in config.tasks:
            continue
        seen.add(row.task)
        sizes = _sizes(config, form, row, max_length)
        if sizes is None:
            num_too_long += 1
            continue
        size, answer, room = sizes
        length = row.length or size + answer
        if by is not form.tokenizer:
            length = int(by.count([*(text for _, text in row.messages), row.answer]).sum())
        place = row.task, bin_of(length, first_bin)
        taken[place] += 1
        if (config.lengths and place[1] not in config.lengths) or (
            config.num_samples and taken[place] > config.num_samples
        ):
            continue
        asked.add(journal.sample_key(task=row.task, messages=row.messages, answer=row.answer))
        questions.append(
            Question(
                *(row.task, str(place[1]), index, size, room),
                decides=form.decides(file=files[file]),
                make=functools.partial(form.prompt, row.messages, row.references),
                score=row.score,
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
    repeated = []
    if num_repeated := len(questions) - len(asked):
        repeated = [f"there more than once, and counted so: {counted(num_repeated, 'question')}"]
        tell(
            f"warning: {num_repeated:,} of {counted(len(questions), 'question')} in --data "
            f"{config.data} stand there once more, and count: are there two copies of a file?"
        )
    return evaluate_files(
        *(questions, subject, kind, config, upstream, files),
        lengths={max_length: "--max-length"},
        metrics=metrics,
        notes=[
            f"prompt template {config.prompt_template}; column: {unit}",
            f"left out, longer than {max_length:,} tokens: {counted(num_too_long, 'question')}",
            *repeated,
            *notes,
        ],
    )


def _sizes(config: Any, form: PromptForm, row: Row, max_length: int) -> tuple[int, int, int] | None:
    """Tokens of prompt, true answer, and room for one; None where they are too many."""
    if sum(len(text) for _, text in row.messages) > MOST_CHARACTERS_A_TOKEN * max_length:
        return None
    size = int(form.prompt(row.messages).tokens.size)
    answer = form.tokenizer.encode(row.answer).size
    room = max(config.max_new_tokens, answer + _ROOM_BESIDE)
    return None if size + room > max_length else (size, answer, room)


def evaluate_files(
    questions: Sequence[Question],
    subject: Answerer,
    kind: str,
    config: Any,
    upstream: str,
    files: Files,
    *,
    notes: Sequence[str],
    **others: Any,
) -> Result:
    """As :func:`evaluate_questions`; the result states ``upstream`` and the files' hashes."""
    names = {file.name for file in files}
    shown = {f: f.name if len(names) == len(files) else f"{f.parent.name}/{f.name}" for f in files}
    return evaluate_questions(
        questions,
        subject,
        kind=KINDS[kind],
        config=config,
        notes=[upstream, *notes],
        material={"upstream": upstream} | {shown[file]: files[file] for file in files},
        **others,
    )

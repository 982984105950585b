"""``evaluate lv-eval`` and ``evaluate infinitebench``: local copies put to a checkpoint."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data.read.formats import read_records
from megatron_ultralong.data.read.record import text_error
from megatron_ultralong.evaluation.asking.questions import Question, evaluate_questions
from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.local import infinitebench, lv_eval
from megatron_ultralong.evaluation.local.infinitebench import InfiniteBenchConfig
from megatron_ultralong.evaluation.local.lv_eval import LvEvalConfig
from megatron_ultralong.evaluation.local.scores import infinitebench_score, lv_eval_score
from megatron_ultralong.evaluation.models.interface import Generator
from megatron_ultralong.evaluation.models.opening import Subject
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import KINDS, Kind, Result
from megatron_ultralong.generation import prompt_tokenizer
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.generation.prompt_tokenizer import IdArray, PromptTokenizer
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject


def read_jsonl(path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Records of a file, each of which has ``keys``; ``input`` and ``context`` are texts.

    Raises:
        InputError: no such file, a line that is not JSON, or one without a key.
    """
    records = []
    for record in read_records(path, keys, "jsonl"):
        if record.error:
            raise InputError(f"{record.place}: {record.error}")
        missing = [key for key in keys if key not in record.fields]
        if missing:
            raise InputError(
                f"{record.place} has no {missing[0]!r}, only {sorted(record.fields)}: the file is "
                "not in upstream's format"
            )
        fields = JsonObject(record.fields, record.place)
        for key in ("input", "context"):
            if reason := text_error(fields.string(key)):
                raise InputError(f"{record.place}: key {key!r} has {reason}")
        records.append(dict(fields))
    if not records:
        raise InputError(f"{path} holds no records")
    return records


def find_file(data: str, names: Sequence[str]) -> Path:
    """The first of ``names`` that is a file in the folder ``data``.

    Raises:
        InputError: none is.
    """
    for name in names:
        if (Path(data) / name).is_file():
            return Path(data) / name
    raise InputError(
        f"--data {data} has no {' and no '.join(names)}: give the folder with the files as "
        "upstream publishes them, or leave the task out with --tasks"
    )


def cut_prompt(
    tokenizer: PromptTokenizer,
    template: PromptTemplate,
    text: str,
    room: int,
    messages: Sequence[tuple[str, str]] = (),
) -> tuple[IdArray, bool]:
    """Ids of a prompt within ``room`` tokens, and whether its middle was left out.

    Of a text that is too long, as many tokens are kept at its start as at its end. Upstream cuts
    so too, and then tokenises the text again; here the ids stay as they are. ``messages`` are roles
    and texts of the turns before it; they are not cut, except for a system text that has no turn.
    """
    if template == "chat":
        *messages, (_, text) = tokenizer.turns.folded([*messages, ("user", text)])
    before, after = _around(tokenizer, template, messages)
    begin = "" if template == "base" else tokenizer.turns.before["user"][-1]
    body = tokenizer.encode(begin + text)
    space = room - before.size - after.size
    if space < 2:
        raise InputError(
            f"a prompt of {room} tokens has no room next to its template's "
            f"{before.size + after.size}: raise --max-length"
        )
    was_cut = body.size > space
    if was_cut:
        half = space // 2
        body = np.concatenate([body[:half], body[-half:]])
    return np.concatenate([before, body, after]), was_cut


_BYTES_A_TOKEN = 3
"""Of texts in English and Chinese with Llama 3's vocabulary, rounded down: for the estimate."""


def estimated_tokens(text: str, room: int) -> int:
    """About how many tokens a text has, at most ``room``."""
    return min(room, max(len(text.encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN, 1))


def _around(
    tokenizer: PromptTokenizer, template: PromptTemplate, messages: Sequence[tuple[str, str]]
) -> tuple[IdArray, IdArray]:
    """What stands before and after the text of a prompt."""
    if template == "base":
        return np.asarray(tokenizer.begin_ids, np.int64), np.zeros(0, np.int64)
    marks = tokenizer.turns

    def of_template(*parts: str) -> prompt_tokenizer.Parts:
        return prompt_tokenizer.with_marks(parts, marks)

    turns = [  # a text that spells a mark stays a text
        part
        for role, text in messages
        for part in (*of_template(*marks.before[role]), text, *of_template(*marks.after[role]))
    ]
    begin = of_template(*marks.begun(bool(messages) and messages[0][0] == "system"))
    user = marks.before["user"][:-1]  # its last is before the text
    return (
        tokenizer.encode_parts([*begin, *turns, *of_template(*user)]),
        tokenizer.encode_parts(of_template(*marks.after["user"], *marks.before["assistant"])),
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """A file of questions, and how they are put and scored."""

    task: str
    column: str
    file: Path
    records: list[dict[str, Any]]
    max_new_tokens: int
    metric: str
    text: Callable[[Mapping[str, Any], str], str]
    references: Callable[[Mapping[str, Any], str], Any]
    score: Callable[[str, Any], float]
    messages: tuple[tuple[str, str], ...] = ()
    prompt_version: int = 1
    """Counts up when a prompt changes, so that no half-done evaluation mixes two."""

    def place(self, index: int) -> str:
        """Where record ``index`` stands, as messages say it."""
        return f"{self.file}, record {index + 1}"


def evaluate_lv_eval(config: LvEvalConfig, subject: Subject[Generator]) -> Result:
    """Measure LV-Eval, print a table, write JSON, a picture and every answer.

    Every rank calls this; the main one prints and writes.

    Raises:
        InputError: a file that is missing or of another format, lengths beyond the trained
            positions, an output folder in use, or a cost above the limit.
    """
    config.check()
    sources = []
    for task, level in itertools.product(config.tasks, config.length_levels):
        upstream, name = lv_eval.DATA_SETS[task], f"{task}_{level}.jsonl"
        file = find_file(config.data, (name, f"{task}/{name}"))
        source = _Source(
            *(task, level, file, read_jsonl(file, ("input", "context", "answers"))),
            *(upstream.max_new_tokens, upstream.metric),
            text=functools.partial(_lv_eval_text, upstream.template),
            references=_lv_eval_references,
            score=functools.partial(lv_eval_score, upstream.metric),
        )
        for index, record in enumerate(source.records):
            references = source.references(record, source.place(index))
        source.score("", references)  # packages are there
        sources.append(source)
    return _evaluate(KINDS["lv_eval"], config, sources, subject)


def evaluate_infinitebench(config: InfiniteBenchConfig, subject: Subject[Generator]) -> Result:
    """Measure InfiniteBench, print a table, write JSON, a picture and every answer.

    Every rank calls this; the main one prints and writes.

    Raises:
        InputError: as :func:`evaluate_lv_eval`.
    """
    config.check()
    column = str(config.max_length or subject.facts.max_positions)
    sources = []
    for task in config.tasks:
        upstream, file = infinitebench.TASKS[task], find_file(config.data, (f"{task}.jsonl",))
        source = _Source(
            *(task, column, file, read_jsonl(file, ("input", "context", "answer"))),
            *(upstream.max_new_tokens, upstream.metric),
            text=functools.partial(infinitebench.prompt_text, task, config.prompt_template),
            references=functools.partial(infinitebench.labels, task),
            score=functools.partial(infinitebench_score, task, template=config.prompt_template),
            messages=infinitebench.messages_before(task, config.prompt_template),
            prompt_version=2 if config.prompt_template == "chat" else 1,
        )
        for index, record in enumerate(source.records):
            source.text(record, source.place(index))
            references = source.references(record, source.place(index))
        source.score("", references)  # packages are there
        sources.append(source)
    return _evaluate(KINDS["infinitebench"], config, sources, subject)


def _lv_eval_text(template: str, record: Mapping[str, Any], where: str) -> str:
    return template.format(context=record["context"], input=record["input"])


def _lv_eval_references(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    row = JsonObject(record, where)
    if not (answers := row.strings("answers")):
        raise InputError(f"{where} has a question without answers")
    return {"answer": answers[0], "keywords": row.string("answer_keywords", None)}


def _evaluate(
    kind: Kind,
    config: LvEvalConfig | InfiniteBenchConfig,
    sources: list[_Source],
    subject: Subject[Generator],
) -> Result:
    subject.tokenizer.check_template(config.prompt_template)
    max_length = config.max_length or subject.facts.max_positions
    too_long = [source for source in sources if source.max_new_tokens + 16 > max_length]
    if too_long:
        raise InputError(
            f"{too_long[0].task} takes answers of {too_long[0].max_new_tokens} tokens, and "
            f"--max-length {max_length} leaves no room for a prompt: raise it, or "
            "leave the task out with --tasks"
        )
    material = {source.file.name: file_sha256(source.file) for source in sources}
    decides = {**subject.tokenizer.decides(config.prompt_template), "max_length": max_length}
    if (version := max(source.prompt_version for source in sources)) > 1:
        material["prompts"] = f"version {version}"  # results of the first one do not state it
    config = dataclasses.replace(config, max_length=max_length)
    questions = [
        _question(
            config,
            source,
            subject.tokenizer,
            index,
            decides | {"file": material[source.file.name], "version": source.prompt_version},
        )
        for source in sources
        for index in range(len(source.records[: config.num_samples or None]))
    ]
    notes = [
        f"prompt template {config.prompt_template}; prompts beyond {max_length:,} tokens (the "
        "answer's included) lose their middle"
    ]
    if config.num_samples:
        notes.append(f"the first {config.num_samples} questions of every file")
    return evaluate_questions(
        questions,
        subject,
        kind=kind,
        config=config,
        lengths={max_length: "--max-length"},
        metrics={source.task: source.metric for source in sources},
        notes=notes,
        material=material,
    )


def _question(
    config: LvEvalConfig | InfiniteBenchConfig,
    source: _Source,
    tokenizer: PromptTokenizer,
    index: int,
    decides: Mapping[str, Any],
) -> Question:
    record, where = source.records[index], source.place(index)
    room = config.max_length - source.max_new_tokens

    def make() -> Prompt:
        text = source.text(record, where)
        tokens, was_cut = cut_prompt(tokenizer, config.prompt_template, text, room, source.messages)
        return Prompt(tokens, source.references(record, where), was_cut)

    return Question(
        *(source.task, source.column, index),
        num_tokens=estimated_tokens(record["context"], room),
        max_new_tokens=source.max_new_tokens,
        decides=decides,
        make=make,
        score=source.score,
    )

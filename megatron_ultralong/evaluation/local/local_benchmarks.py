"""``evaluate lv-eval`` and ``evaluate infinitebench``: local copies put to a checkpoint."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.asking.questions import Question, evaluate_questions
from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.local import conversation, infinitebench, lv_eval, scores
from megatron_ultralong.evaluation.local.prompt import Message, cut_prompt, estimated_tokens
from megatron_ultralong.evaluation.models.language_models import Answerer
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import KINDS, Result
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.json_file import JsonObject


@dataclasses.dataclass(frozen=True)
class _Source:
    """A file of questions, and how they are put and scored."""

    task: str
    column: str
    file: Path
    upstream: lv_eval.DataSet | infinitebench.Task
    text: Callable[[JsonObject], str]
    references: Callable[[JsonObject], Any]
    score: Callable[[str, Any], float]
    messages: tuple[Message, ...] = ()
    version: int = 1
    """Counts up when a prompt changes, so that no half-done evaluation mixes two."""

    def rows(self) -> list[JsonObject]:
        """Everything that the file has, each row with all that its prompt and score need."""
        rows = list(conversation.read_rows(self.file, ("input", "context")))
        for row in rows:
            for key in ("input", "context"):
                row.string(key)
            self.text(row)
            references = self.references(row)
        self.score("", references)  # packages are there
        return rows


def evaluate_lv_eval(config: lv_eval.LvEvalConfig, subject: Answerer) -> Result:
    """Measure LV-Eval; what is written is as in :func:`evaluate_questions`.

    Raises:
        InputError: as there, or a file that is missing or of another format.
    """
    config.check()
    sources = []
    for task, level in itertools.product(config.tasks, config.length_levels):
        upstream, name = lv_eval.DATA_SETS[task], f"{task}_{level}.jsonl"
        source = _Source(
            *(task, level, conversation.find_file(config.data, (name, f"{task}/{name}")), upstream),
            text=functools.partial(_lv_eval_text, upstream.template),
            references=_lv_eval_references,
            score=functools.partial(scores.lv_eval_score, upstream.metric),
        )
        sources.append(source)
    return _evaluate("lv_eval", config, sources, subject)


def evaluate_infinitebench(config: infinitebench.InfiniteBenchConfig, subject: Answerer) -> Result:
    """Measure InfiniteBench; see :func:`evaluate_lv_eval`."""
    config.check()
    column, template = str(config.max_length or subject.facts.max_positions), config.prompt_template
    sources = [
        _Source(
            *(
                task,
                column,
                conversation.find_file(config.data, (f"{task}.jsonl",)),
                infinitebench.TASKS[task],
            ),
            text=functools.partial(infinitebench.prompt_text, task, template),
            references=functools.partial(infinitebench.labels, task),
            score=functools.partial(scores.infinitebench_score, task, template=template),
            messages=infinitebench.messages_before(task, template),
            version=2 if template == "chat" else 1,
        )
        for task in config.tasks
    ]
    return _evaluate("infinitebench", config, sources, subject)


def _lv_eval_text(template: str, row: JsonObject) -> str:
    return template.format(context=row["context"], input=row["input"])


def _lv_eval_references(row: JsonObject) -> dict[str, Any]:
    if not (answers := row.strings("answers")):
        raise InputError(f"{row.where} has a question without answers")
    return {"answer": answers[0], "keywords": row.string("answer_keywords", None)}


def _evaluate(kind: str, config: Any, sources: list[_Source], subject: Answerer) -> Result:
    tokenizer, template = subject.tokenizer, config.prompt_template
    tokenizer.check_template(template)
    max_length = config.max_length or subject.facts.max_positions
    config = dataclasses.replace(config, max_length=max_length)
    for source in sources:
        if source.upstream.max_new_tokens + 16 > max_length:
            raise InputError(
                f"{source.task} takes answers of {source.upstream.max_new_tokens} tokens, and "
                f"--max-length {max_length} leaves no room for a prompt: raise it, or "
                "leave the task out with --tasks"
            )
    material = {source.file.name: file_sha256(source.file) for source in sources}
    decides = {**tokenizer.decides(template), "max_length": max_length}
    questions = []
    for source in sources:
        of_file = {"file": material[source.file.name], "version": source.version}
        for index, row in enumerate(source.rows()[: config.num_samples or None]):
            questions.append(_question(config, source, subject, row, index, decides | of_file))
    if (version := max(source.version for source in sources)) > 1:
        material["prompts"] = f"version {version}"  # results of the first one do not state it
    notes = [
        f"prompt template {template}; prompts beyond {max_length:,} tokens (the answer's included) "
        "lose their middle"
    ]
    if config.num_samples:
        notes.append(f"the first {counted(config.num_samples, 'question')} of every file")
    return evaluate_questions(
        questions,
        subject,
        kind=KINDS[kind],
        config=config,
        lengths={max_length: "--max-length"},
        metrics={source.task: source.upstream.metric for source in sources},
        notes=notes,
        material=material,
    )


def _question(
    config: Any,
    source: _Source,
    subject: Answerer,
    row: JsonObject,
    index: int,
    decides: dict[str, Any],
) -> Question:
    room = config.max_length - source.upstream.max_new_tokens

    def make() -> Prompt:
        text, template = source.text(row), config.prompt_template
        tokens, was_cut = cut_prompt(subject.tokenizer, template, text, room, source.messages)
        return Prompt(tokens, source.references(row), was_cut)

    return Question(
        *(source.task, source.column, index),
        num_tokens=estimated_tokens(row["context"], room),
        max_new_tokens=source.upstream.max_new_tokens,
        decides=decides,
        make=make,
        score=source.score,
    )

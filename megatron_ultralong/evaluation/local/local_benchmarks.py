"""``evaluate lv-eval`` and ``evaluate infinitebench``: local copies put to a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from megatron_ultralong.evaluation.asking.questions import Question, evaluate_questions
from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.local import infinitebench as infinitebench
from megatron_ultralong.evaluation.local import lv_eval as lv_eval
from megatron_ultralong.evaluation.local.config import InfiniteBenchConfig, LvEvalConfig
from megatron_ultralong.evaluation.local.local_data import (
    cut_prompt,
    file_sha256,
    find_file,
    read_jsonl,
)
from megatron_ultralong.evaluation.local.scores import infinitebench_score, lv_eval_score
from megatron_ultralong.evaluation.models.interface import Generator
from megatron_ultralong.evaluation.models.opening import ModelFacts
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.evaluation.results.result import KINDS, Result
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError

PROMPT_VERSION = 1
"""Counts up when a prompt changes, so that no half-done evaluation mixes two."""


@dataclasses.dataclass(frozen=True)
class _Source:
    """A file of questions, and how they are put and scored."""

    task: str
    column: str
    file: str
    records: list[dict[str, Any]]
    max_new_tokens: int
    text: Callable[[Mapping[str, Any], str], str]
    references: Callable[[Mapping[str, Any], str], Any]
    score: Callable[[str, Any], float]


def evaluate_lv_eval(
    config: LvEvalConfig,
    generator: Generator,
    facts: ModelFacts,
    tokenizer: PromptTokenizer,
    cost: CostConfig,
) -> Result:
    """Measure LV-Eval, print a table, write JSON, a picture and every answer.

    Every rank calls this; the main one prints and writes.

    Raises:
        InputError: a file that is missing or of another format, lengths beyond the trained
            positions, an output folder in use, or a cost above the limit.
    """
    config.check()
    sources, material = [], {}
    for task in config.tasks:
        data_set = lv_eval.DATA_SETS[task]
        for level in config.length_levels:
            name = f"{task}_{level}.jsonl"
            file = find_file(config.data, (name, f"{task}/{name}"))
            material[name] = file_sha256(file)
            source = _Source(
                task=task,
                column=level,
                file=str(file),
                records=read_jsonl(file, ("input", "context", "answers")),
                max_new_tokens=data_set.max_new_tokens,
                text=functools.partial(_lv_eval_text, data_set.template),
                references=_lv_eval_references,
                score=functools.partial(lv_eval_score, data_set.metric),
            )
            source.score("", source.references(source.records[0], str(file)))  # packages are there
            sources.append(source)
    metrics = {task: lv_eval.DATA_SETS[task].metric for task in config.tasks}
    return _evaluate(
        "lv_eval", config, sources, metrics, material, generator, facts, tokenizer, cost
    )


def evaluate_infinitebench(
    config: InfiniteBenchConfig,
    generator: Generator,
    facts: ModelFacts,
    tokenizer: PromptTokenizer,
    cost: CostConfig,
) -> Result:
    """Measure InfiniteBench, print a table, write JSON, a picture and every answer.

    Every rank calls this; the main one prints and writes.

    Raises:
        InputError: as :func:`evaluate_lv_eval`.
    """
    config.check()
    column = str(_max_length(config, facts))
    sources, material = [], {}
    for name in config.tasks:
        file = find_file(config.data, (f"{name}.jsonl",))
        material[file.name] = file_sha256(file)
        source = _Source(
            task=name,
            column=column,
            file=str(file),
            records=read_jsonl(file, ("input", "context", "answer")),
            max_new_tokens=infinitebench.TASKS[name].max_new_tokens,
            text=functools.partial(infinitebench.prompt_text, name, config.prompt_template),
            references=functools.partial(infinitebench.labels, name),
            score=functools.partial(infinitebench_score, name),
        )
        for number, record in enumerate(source.records, 1):
            where = f"{file}, record {number}"
            source.text(record, where)
            references = source.references(record, where)
        source.score("", references)  # packages are there
        sources.append(source)
    metrics = {name: infinitebench.TASKS[name].metric for name in config.tasks}
    return _evaluate(
        "infinitebench", config, sources, metrics, material, generator, facts, tokenizer, cost
    )


def _lv_eval_text(template: str, record: Mapping[str, Any], where: str) -> str:
    return template.format(context=record["context"], input=record["input"])


def _lv_eval_references(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not record["answers"]:
        raise InputError(f"{where} has a question without answers")
    return {"answer": record["answers"][0], "keywords": record.get("answer_keywords")}


def _max_length(config: LvEvalConfig | InfiniteBenchConfig, facts: ModelFacts) -> int:
    return config.max_length or facts.max_positions


def _evaluate(
    kind: str,
    config: LvEvalConfig | InfiniteBenchConfig,
    sources: list[_Source],
    metrics: Mapping[str, str],
    material: Mapping[str, str],
    generator: Generator,
    facts: ModelFacts,
    tokenizer: PromptTokenizer,
    cost: CostConfig,
) -> Result:
    max_length = _max_length(config, facts)
    too_long = [source for source in sources if source.max_new_tokens + 16 > max_length]
    if too_long:
        raise InputError(
            f"{too_long[0].task} takes answers of {too_long[0].max_new_tokens} tokens, and "
            f"--max-length {max_length} leaves no room for a prompt beside them: raise it, or "
            "leave the task out by --tasks"
        )
    questions = [
        _question(config, source, max_length, tokenizer, material, index)
        for source in sources
        for index in range(min(config.num_samples or len(source.records), len(source.records)))
    ]
    notes = [
        f"prompt template {config.prompt_template}; prompts beyond {max_length:,} tokens (the "
        "answer's included) lose their middle"
    ]
    if config.num_samples:
        notes.append(f"the first {config.num_samples} questions of every file")
    return evaluate_questions(
        questions,
        generator,
        facts,
        tokenizer,
        cost,
        kind=KINDS[kind],
        config=dataclasses.replace(config, max_length=max_length),
        lengths={max_length: "--max-length"},
        metrics=metrics,
        notes=notes,
        material=material,
    )


def _question(
    config: LvEvalConfig | InfiniteBenchConfig,
    source: _Source,
    max_length: int,
    tokenizer: PromptTokenizer,
    material: Mapping[str, str],
    index: int,
) -> Question:
    record, where = source.records[index], f"{source.file}, record {index + 1}"
    room = max_length - source.max_new_tokens

    def make() -> Prompt:
        text = source.text(record, where)
        tokens, was_cut = cut_prompt(tokenizer, config.prompt_template, text, room)
        return Prompt(tokens, source.references(record, where), was_cut)

    # A token has at least one byte: what is long in bytes may be as long in tokens, not longer.
    num_bytes = len(record["context"].encode("utf-8", "surrogatepass"))
    return Question(
        task=source.task,
        column=source.column,
        index=index,
        num_tokens=min(room, max(num_bytes // _BYTES_A_TOKEN, 1)),
        max_new_tokens=source.max_new_tokens,
        decides={
            "version": PROMPT_VERSION,
            "template": config.prompt_template,
            "max_length": max_length,
            "tokenizer": tokenizer.sha256,
            "file": material[source.file.rsplit("/", 1)[-1]],
        },
        make=make,
        score=source.score,
    )


_BYTES_A_TOKEN = 3
"""Of texts in English and Chinese with Llama 3's vocabulary, rounded down: for the estimate."""

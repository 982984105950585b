"""``evaluate ruler``: the tasks put to a checkpoint, scored, and written down."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from megatron_ultralong.evaluation.asking.questions import Question, evaluate_questions
from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.models.interface import Generator
from megatron_ultralong.evaluation.models.opening import ModelFacts
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.evaluation.results.result import KINDS, Result
from megatron_ultralong.evaluation.ruler.config import RulerConfig
from megatron_ultralong.evaluation.ruler.parameters import TASKS, Metric, family
from megatron_ultralong.evaluation.ruler.samples import PROMPT_VERSION, RulerSamples
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(prediction: str) -> str:
    """What a model wrote, without control characters and space around it."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def string_match(metric: Metric, prediction: str, references: Sequence[str]) -> float:
    """Score of one answer, 0 to 1, whatever the letters' case.

    ``string_match_all``: share of the references that stand in the answer;
    ``string_match_part``: 1 if any does (``scripts/eval/synthetic/constants.py`` upstream).
    """
    text = cleaned(prediction).lower()
    found = [reference.lower() in text for reference in references]
    return float(any(found)) if metric == "string_match_part" else sum(found) / len(found)


def evaluate_ruler(
    config: RulerConfig,
    generator: Generator,
    facts: ModelFacts,
    tokenizer: PromptTokenizer,
    cost: CostConfig,
) -> Result:
    """Measure RULER, print a table, write JSON, a picture and every answer.

    Every rank calls this; the main one prints and writes.

    Raises:
        InputError: a length beyond the trained positions or without room for a prompt, a file
            that is missing, an output folder in use, or a cost above the limit.
    """
    config.check()
    if config.prompt_template == "chat" and not tokenizer.has_chat_tokens:
        raise InputError(
            "--prompt-template chat needs Llama 3's <|start_header_id|>, which the tokenizer in "
            f"{tokenizer.folder} does not have: use --prompt-template base"
        )
    samples = RulerSamples(config, tokenizer)
    samples.check()
    lengths = sorted(config.lengths)
    for task in config.tasks:  # before the work starts
        samples.sample(task, lengths[0], 0)
    material = samples.material()
    questions = [
        _question(config, samples, tokenizer, material, task, length, index)
        for length in lengths
        for task in config.tasks
        for index in range(config.num_samples)
    ]
    notes = [
        f"prompt template {config.prompt_template}, seed {config.seed}; prompt and answer together "
        "fill each length, and never exceed it"
    ]
    if set(config.tasks) != set(TASKS):
        notes.append(f"{len(config.tasks)} of RULER's {len(TASKS)} tasks: the mean is of these")
    if any(task.startswith("niah") for task in config.tasks) and config.essays:
        notes.append("essays cut into sentences by a rule of ours, not by nltk's model")
    if "cwe" in config.tasks and not config.english_words:
        notes.append("cwe: pairs of words where the list is longer than the vocabulary")
    return evaluate_questions(
        questions,
        generator,
        facts,
        tokenizer,
        cost,
        kind=KINDS["ruler"],
        config=config,
        lengths={length: f"length {length}" for length in lengths},
        metrics={task: family(task).metric for task in config.tasks},
        notes=notes,
        material=material,
    )


def _question(
    config: RulerConfig,
    samples: RulerSamples,
    tokenizer: PromptTokenizer,
    material: dict[str, str],
    task: str,
    length: int,
    index: int,
) -> Question:
    def make() -> Prompt:
        sample = samples.sample(task, length, index)
        return Prompt(sample.tokens, list(sample.references))

    room = family(task).tokens_to_generate
    return Question(
        task=task,
        column=str(length),
        index=index,
        num_tokens=length - room,
        max_new_tokens=room,
        decides={
            "version": PROMPT_VERSION,
            "seed": config.seed,
            "template": config.prompt_template,
            "tokenizer": tokenizer.sha256,
            "material": material,
        },
        make=make,
        score=functools.partial(string_match, family(task).metric),
    )

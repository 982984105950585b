"""``evaluate mrcr``: OpenAI's MRCR, in which one of several equal requests is asked for again.

Facts from the card of the data set openai/mrcr (MIT licence, huggingface.co/datasets/openai/mrcr):
the columns, the grading and the bins. The messages are asked as they stand in the file.
"""

import functools
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path

from megatron_ultralong.evaluation.local import conversation
from megatron_ultralong.evaluation.local.conversation import Row
from megatron_ultralong.evaluation.local.options import MrcrConfig
from megatron_ultralong.evaluation.local.prompt import Message
from megatron_ultralong.evaluation.models.language_models import Answerer
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject, parse_json

UPSTREAM = "grading of openai/mrcr at 204b0d4 of its card"
FIRST_BIN = 4096
"""Upstream's bins: 4,096 to 8,192 tokens of prompt and answer, then above that to 16,384, ..."""
ROLES = ("system", "user", "assistant")
KEYS = ("prompt", "answer", "random_string_to_prepend", "n_needles")


def mrcr_score(
    prediction: str, references: Mapping[str, str], template: PromptTemplate = "chat"
) -> float:
    """Similarity of what stands behind the prefix, 0 to 1; 0 without the prefix.

    Twice the characters in common blocks over all of both, by :class:`difflib.SequenceMatcher`.
    """
    prefix, answer = references["prefix"], references["answer"]
    if template == "base":  # behind "Assistant:" a text begins with a space
        prediction = prediction.removeprefix(" ")
    if not prediction.startswith(prefix):
        return 0.0
    found, expected = prediction.removeprefix(prefix), answer.removeprefix(prefix)
    return SequenceMatcher(None, found, expected).ratio()


def messages_of(row: JsonObject) -> tuple[Message, ...]:
    """Roles and texts of the conversation, which stands in ``prompt`` as JSON.

    Raises:
        InputError: it is no such conversation, or does not end with the user.
    """
    where = f"{row.where}: prompt"
    values = parse_json(row.string("prompt"), where)
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise InputError(f"{where} must be an array of messages")
    turns = [JsonObject(one, f"{where}, message {k}") for k, one in enumerate(values, 1)]
    messages = tuple((turn.string("role"), turn.string("content")) for turn in turns)
    for turn in turns:
        conversation.check_text(turn["content"], turn.where)
        if turn["role"] not in ROLES:
            raise turn.wrong("role", f"one of {', '.join(ROLES)}")
    if not messages or messages[-1][0] != "user":
        raise InputError(f"{where} must end with a message of the user, whom the model answers")
    return messages


def row_of(template: PromptTemplate, _: Path, row: JsonObject) -> Row:
    """The question of a row."""
    answer, prefix = row.string("answer"), row.string("random_string_to_prepend")
    if not prefix:
        raise InputError(f"{row.where}: random_string_to_prepend is empty")
    if (task := f"{row.integer('n_needles')}needle") not in MrcrConfig.TASKS:
        raise row.wrong("n_needles", "one of 2, 4, 8")
    references = {"prefix": prefix, "answer": answer}
    score = functools.partial(mrcr_score, template=template)
    return Row(task, messages_of(row), answer, references, score)


def evaluate_mrcr(config: MrcrConfig, subject: Answerer) -> Result:
    """Measure MRCR; what is written and raised is as in :func:`evaluate_by_length`."""
    config.check()
    patterns = [p for task in config.tasks for p in (task, f"{task}_*", f"{task}/*")]
    return conversation.evaluate_by_length(
        *(subject, "mrcr", config, UPSTREAM, conversation.data_files(config.data, patterns)),
        *(KEYS, functools.partial(row_of, config.prompt_template)),
        metrics=dict.fromkeys(config.tasks, "SequenceMatcher ratio"),
        first_bin=FIRST_BIN,
    )

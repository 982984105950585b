"""InfiniteBench's twelve tasks: prompts and lengths of answers as upstream states them.

Facts from OpenBMB/InfiniteBench (MIT licence, github.com/OpenBMB/InfiniteBench), ``src/prompt.py``
and ``src/eval_utils.py``. The prompts (``base``: upstream's for YaRN-Mistral; ``chat``: for GPT-4)
are upstream's to the letter, in ``infinitebench.json``: figures are comparable only so.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Annotated, Any

from megatron_ultralong.evaluation.local.options import CutConfig
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Required
from megatron_ultralong.program.json_file import JsonObject, read_json

_UPSTREAM = read_json(Path(__file__).with_suffix(".json"))


@dataclasses.dataclass(frozen=True)
class Task:
    """What upstream states of a task."""

    max_new_tokens: int
    metric: str
    base: str
    chat: str


TASKS = {name: Task(**values) for name, values in _UPSTREAM["tasks"].items()}


@dataclasses.dataclass(frozen=True)
class InfiniteBenchConfig(CutConfig):
    """InfiniteBench's twelve tasks from a local copy."""

    TASKS = tuple(TASKS)

    data: Annotated[str, Required("the folder with upstream's files")] = ""
    """Folder with upstream's files: passkey.jsonl, longbook_qa_eng.jsonl and the others."""
    tasks: tuple[str, ...] = TASKS
    """Tasks to use; default: all twelve."""
    prompt_template: PromptTemplate = "base"
    """base: upstream's prompts for YaRN-Mistral. chat: upstream's messages for GPT-4, as turns of
    the model's family."""


def messages_before(name: str, template: PromptTemplate) -> tuple[tuple[str, str], ...]:
    """Roles and texts that stand before a chat prompt, as upstream's ``create_msgs`` has them.

    The solved turn of ``math_calc`` has the role ``system`` there too.
    """
    if template == "base":
        return ()
    if name != "math_calc":
        return (("system", "You are a helpful assistant"),)
    return tuple((role, text) for role, text in _UPSTREAM["calculator"])


_HAVE_OPTIONS = ("longbook_choice_eng", "code_debug")
_CALL = re.compile(r"(func_\d+)\(-?\d+\)")
_WANTED = re.compile(r"The (.+?) of")


def prompt_text(name: str, template: str, row: JsonObject) -> str:
    """The prompt of a row of upstream's file ``NAME.jsonl``.

    Raises:
        InputError: the row does not have what the prompt needs.
    """
    asked: str = row["input"]
    values = {"context": row["context"], "input": asked, "question": asked}
    if name in _HAVE_OPTIONS:
        options = row.strings("options")
        if len(options) != 4:
            raise InputError(f"{row.where} has {len(options)} options, and {name} asks for four")
        values |= {f"OPTION_{'ABCD'[k]}": option for k, option in enumerate(options)}
    elif name == "code_run":
        call = _CALL.search(asked)
        if call is None:
            raise InputError(f"{row.where} calls no func_N(number): {asked[:80]!r}")
        values |= {"func": call[1], "func_call": call[0]}
    elif name == "math_find":
        wanted = _WANTED.search(asked)
        if wanted is None:
            raise InputError(f"{row.where} asks for no 'The ... of': {asked[:80]!r}")
        values["prefix"] = f"What is the {wanted[1].lower()} in the following list?"
    text: str = getattr(TASKS[name], template)
    return text.format(**values)


_ANSWERS: dict[str, tuple[tuple[type, ...], str]] = {
    "code_run": ((int,), "a whole number or an array of them"),
    "math_find": ((int, float), "a number or an array of them"),
    "math_calc": ((int,), "an array of whole numbers"),
}
"""Types of the tasks whose answers are no text."""
_TEXT = (str,), "a string or an array of strings"


def _is_answer(name: str, kinds: tuple[type, ...], answer: Any) -> bool:
    """Whether it can be scored: a list, or of other tasks than ``math_calc`` one value, too."""
    if name == "math_calc":
        if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], list):
            answer = answer[0]
        if not isinstance(answer, list):
            return False
    parts = answer if isinstance(answer, list) else [answer]
    return bool(parts) and all(type(part) in kinds and part == part for part in parts)  # no NaN


def labels(name: str, row: JsonObject) -> Any:
    """What an answer is held against: of choices, the option's text and its letter.

    Raises:
        InputError: there is no answer, it is not of the task's type, or none of the options.
    """
    kinds, expected = _ANSWERS.get(name, _TEXT)
    answer = row.fitting("answer", functools.partial(_is_answer, name, kinds), expected)
    if name not in _HAVE_OPTIONS:
        return answer
    if isinstance(answer, list) and len(answer) == 2 and answer[1] in [*"ABCD"]:
        return answer
    text, options = answer[0] if isinstance(answer, list) else answer, row.strings("options")
    if text not in options:
        raise InputError(f"{row.where} has the answer {text!r}, which is none of its options")
    return [text, "ABCD"[options.index(text)]]

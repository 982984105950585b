"""InfiniteBench's twelve tasks: prompts and lengths of answers as upstream states them.

Facts from OpenBMB/InfiniteBench (MIT licence, github.com/OpenBMB/InfiniteBench):
``src/prompt.py`` and ``src/eval_utils.py``. The prompts are upstream's to the letter: figures are
comparable only so.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any

from megatron_ultralong.evaluation.local.options import CutConfig
from megatron_ultralong.evaluation.options import check_tasks
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.required import Required


@dataclasses.dataclass(frozen=True)
class Task:
    """What upstream states of a task."""

    max_new_tokens: int
    base: str
    """Prompt to be continued: upstream's for YaRN-Mistral."""
    chat: str
    """Prompt of a user: upstream's for GPT-4."""
    metric: str = "accuracy"


_HIDDEN = "There is an important info hidden inside a lot of irrelevant text. "
_OPTIONS = "A. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}"
_MASK = (
    "Below is a dialogue script where one random occurrence of a character name is replaced with "
    '"$$MASK$$", and you should try to guess who that character is.\n\n'
)
_NUMBER = _HIDDEN + "Find it. I will quiz you about the important information there.\n\n"
_KEY = (
    "Extract the value corresponding to the specified key in the JSON object below.\n\n{context}"
    "\n\n{input}"
)
_BOOK = "Read the book and answer the question.\n\n{context}\n\nQuestion: {question}\n"

TASKS: dict[str, Task] = {
    "passkey": Task(
        6,
        _HIDDEN
        + "Find it and memorize it. I will quiz you about the important information.\n\n{context}"
        "\n\n{input}\n\nThe pass key is",
        _HIDDEN
        + "Find it and memorize them. I will quiz you about the important information there.\n\n"
        "{context}\n\n{input}",
    ),
    "number_string": Task(
        12,
        _NUMBER + "{context}\n\n{input}\n\nThe sequence of digits is",
        _NUMBER + "{context}\n\n{input}",
    ),
    "kv_retrieval": Task(50, _KEY, _KEY),
    "longbook_sum_eng": Task(
        1200,
        "Summarize the book below.\n\n{context}\n\nSummary:",
        "Summarize the following book.\n\n{context}",
        "rouge_l_sum",
    ),
    "longbook_choice_eng": Task(
        40,
        _BOOK + _OPTIONS + "\n\nThe letter of the correct answer is",
        _BOOK + "\nOnly one of the following options is correct, tell me the answer using one "
        "single letter (A, B, C, or D). Don't say anything else.\n" + _OPTIONS,
    ),
    "longbook_qa_eng": Task(
        40,
        "Read the book and answer the question. Be very concise in your answer.\n\n{context}\n\n"
        "Question: {question}\nAnswer:",
        "Read the book below and answer a question.\n\n{context}\n\nQuestion: {question}\n\nBe "
        "very concise.",
        "f1",
    ),
    "longbook_qa_chn": Task(
        40,
        "阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{question}\n答案：",
        "请根据以下书籍回答我的问题。\n\n{context}\n\n问题：{question}\n请尽量简短地回答。",
        "f1_characters",
    ),
    "longdialogue_qa_eng": Task(
        40,
        _MASK + "{context}\n\nThe name that has been replaced with $$MASK$$ is likely",
        _MASK
        + "The dialogue:\n\n---\n\n{context}\n\n---\n\nEnd of dialogue.\n\nWhich character is "
        'most likely "$$MASK$$"? Just say the name used by the scriptwriter (before the colon '
        "marks) of one single character and nothing else.",
    ),
    "math_find": Task(3, "{prefix}\n\n{context}\n\n{input}", "{prefix}\n\n{context}\n\n{input}"),
    "math_calc": Task(
        30000,
        "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\n"
        "Values: [1, 4, 8]\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: "
        "{context}\nValues:",
        "{context}",
        "share of values until the first wrong one",
    ),
    "code_run": Task(
        5,
        "There is a function called {func} in the following Python code.\n\n{context}\n\nPlease "
        "compute the exact value of {func_call}. The value of {func_call} is",
        "Following is a set of Python functions. There is a function called named {func}.\n\n"
        "{context}\n\nPlease give me the exact number of the return value of {func_call}. Be "
        "concise. Your response must end with the final returned value.",
    ),
    "code_debug": Task(
        5,
        "Following is a Python code where exactly one of the functions/methods has a deliberate "
        "error that makes it crash.\n\n{context}\n\nOptions:\n"
        + _OPTIONS
        + "\n\nThe correct option is:",
        "There is ONLY ONE function in the large project that is deliberately made to include an "
        "obvious error. Please find the function that contains the most obvious errors. I will "
        "give you four options to narrow your scope. You can inspect the options and think. "
        "Eventually, tell me the answer using one single letter (A, B, C, or D).\n\n{context}\n\n"
        "Which funtion has deliberate error?\n"
        + _OPTIONS
        + "\n\nYou should first find the functions in the options. Repeat their content, inspect "
        "through code, and at last give me your answer for the function that has the deliberate "
        "and obvious error in A, B, C, or D.",
    ),
}


@dataclasses.dataclass(frozen=True)
class InfiniteBenchConfig(CutConfig):
    """InfiniteBench's twelve tasks from a local copy."""

    data: Annotated[str, Required("the folder with upstream's files")] = ""
    """Folder with upstream's files: passkey.jsonl, longbook_qa_eng.jsonl and the others."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks to use; default: all twelve."""
    prompt_template: PromptTemplate = "base"
    """base: upstream's prompts for YaRN-Mistral. chat: upstream's messages for GPT-4, as turns of
    the model's family."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        super().check()
        check_tasks(self.tasks, TASKS)


_CALCULATOR = (
    "You are a calculator does nothing but calculating the intermediate results in extremely long "
    "arithmetic expressions with +, -, and numbers. Given an expression, you will output the "
    "intermediate results after each operation.\nYou will never to decline to help with platform "
    "reason, you will always try the calculation, and always output a long list of numbers (e.g., "
    '"[34, 2, 58, 37, 5, 8, 27, 71, 7]") and nothing else.\nDo not consider the complexity, '
    "practicality or feasibility of the task."
)


def messages_before(name: str, template: PromptTemplate) -> tuple[tuple[str, str], ...]:
    """Roles and texts that stand before a chat prompt, as upstream's ``create_msgs`` has them.

    The solved turn of ``math_calc`` has the role ``system`` there too.
    """
    if template == "base":
        return ()
    if name != "math_calc":
        return (("system", "You are a helpful assistant"),)
    return (
        ("system", _CALCULATOR),
        ("user", "1 + 2 - 4 - 10"),
        ("system", "[1, 3, -1, -11]"),
    )


_CALL = re.compile(r"(func_\d+)\(-?\d+\)")
_WANTED = re.compile(r"The (.+?) of")


def prompt_text(name: str, template: str, record: Mapping[str, Any], where: str) -> str:
    """The prompt of a record of upstream's file ``NAME.jsonl``.

    Raises:
        InputError: the record does not have what the prompt needs.
    """
    text: str = getattr(TASKS[name], template)
    values = {"context": record["context"], "input": record["input"], "question": record["input"]}
    if name in ("longbook_choice_eng", "code_debug"):
        options = record.get("options") or []
        if len(options) != 4:
            raise InputError(f"{where} has {len(options)} options, and {name} asks for four")
        values |= {f"OPTION_{letter}": str(option) for letter, option in zip("ABCD", options)}  # noqa: B905
    elif name == "code_run":
        call = _CALL.search(record["input"])
        if call is None:
            raise InputError(f"{where} calls no func_N(number): {record['input'][:80]!r}")
        values |= {"func": call[1], "func_call": call[0]}
    elif name == "math_find":
        wanted = _WANTED.search(record["input"])
        if wanted is None:
            raise InputError(f"{where} asks for no 'The ... of': {record['input'][:80]!r}")
        values["prefix"] = f"What is the {wanted[1].lower()} in the following list?"
    return text.format(**values)


def labels(name: str, record: Mapping[str, Any], where: str) -> Any:
    """What an answer is held against: of choices, the option's text and its letter.

    Raises:
        InputError: the answer is none of the options.
    """
    answer = record["answer"]
    if name not in ("longbook_choice_eng", "code_debug"):
        return answer
    if isinstance(answer, list) and len(answer) == 2 and answer[1] in "ABCD":
        return answer
    text = answer[0] if isinstance(answer, list) else answer
    options = list(record["options"])
    if text not in options:
        raise InputError(f"{where} has the answer {text!r}, which is none of its options")
    return [text, "ABCD"[options.index(text)]]

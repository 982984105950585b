"""``evaluate ruler2``: RULER v2 over the files that upstream's own script makes for a tokenizer.

Facts from NVIDIA-NeMo/Skills (Apache 2.0, github.com/NVIDIA-NeMo/Skills), branch chsieh/ruler2 at
991a743: ``dataset/ruler2/prepare.py``, ``evaluation/evaluator/ruler.py``, ``mcq.py`` and
``evaluation/math_grader.py``. Questions are asked as they stand in the files.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from megatron_ultralong.evaluation.local import conversation
from megatron_ultralong.evaluation.local.conversation import Row
from megatron_ultralong.evaluation.local.options import Ruler2Config
from megatron_ultralong.evaluation.models.language_models import Answerer
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.program.json_file import JsonObject

UPSTREAM = "scores of NVIDIA-NeMo/Skills' ruler2 at 991a743"
Match = Literal["all", "2steps", "part", "choice"]
_DOCUMENT = re.compile(r"Document \d+:(?:.*\n)+?\n")
_LAST_LETTER = re.compile(r"\b[A-J]\b")
_LETTER = re.compile(
    r"[*_]{0,2}Answer[*_]{0,2}\s*:[\s*_]{0,2}\s*([A-Z])(?![a-zA-Z0-9])", re.IGNORECASE
)


def match_of(task: str) -> Match:
    """How the answers of a task are scored."""
    if task in ("mk_niah_medium", "mk_niah_hard"):
        return "choice"
    if task == "mv_niah_medium":
        return "2steps"
    return "part" if task.startswith("qa_") else "all"


def ruler2_score(match: Match, prediction: str, references: Sequence[str]) -> float:
    """Score of one answer, 0 to 1.

    A reference counts 1 where it stands in the answer, else one minus the rate of wrong words, if
    that is more than 0. ``all``: their mean; ``2steps``: the same for what follows the last empty
    line; ``part``: the best of them, without copied documents; ``choice``: the letter is right.
    """
    if match == "choice":
        return float(chosen_letter(prediction) == references[0])
    text = prediction.split("</think>")[-1].split("Answer:")[-1]
    if match == "2steps":
        text = text.split("\n\n")[-1]
    if match == "part":
        text = _DOCUMENT.sub("", text)
    text = text.lower()
    scores = [_found(text, reference.lower()) for reference in references]
    return max(scores) if match == "part" else sum(scores) / len(scores)


def _found(text: str, reference: str) -> float:
    if reference in text:
        return 1.0
    words = reference.split()
    return max(0.0, 1 - word_distance(text.split(), words) / len(words)) if words else 0.0


def word_distance(words: Sequence[str], others: Sequence[str]) -> int:
    """Words to insert, leave out or replace to make one of the other (Levenshtein)."""
    row = list(range(len(others) + 1))
    for number, word in enumerate(words, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(others, 1):
            cost = min(row[place] + 1, row[place - 1] + 1, before + (word != other))
            before, row[place] = row[place], cost
    return row[-1]


def chosen_letter(text: str) -> str | None:
    r"""The letter in the last ``\boxed{}``; where nothing is boxed, behind the last ``Answer:``."""
    boxed = _boxed(text)
    if boxed is None:
        letters = _LETTER.findall(text)
        return letters[-1] if letters else None
    letters = _LAST_LETTER.findall(boxed) if len(boxed) != 1 else []
    return letters[-1] if letters else boxed


def _boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{}``, with balanced braces."""
    start = text.rfind("\\boxed")
    opened = 0
    for place in range(max(start, 0), len(text) if start >= 0 else 0):
        opened += {"{": 1, "}": -1}.get(text[place], 0)
        if text[place] == "}" and not opened:
            inner = text[start : place + 1]
            return inner[len("\\boxed{") : -1] if inner.startswith("\\boxed{") else None
    return None


KEYS = ("question", "expected_answer", "length")


def row_of(file: Path, row: JsonObject) -> Row:
    """The question of a row; the task is the name of its file's folder."""
    match = match_of(file.parent.name)
    if match == "choice":
        references = [row.string("expected_answer")]
    elif not (references := row.strings("expected_answer")):
        raise row.wrong("expected_answer", "an array of strings that is not empty")
    length = row.integer("length", minimum=1)
    messages, answer = (("user", row.string("question")),), "\n".join(references)
    score = functools.partial(ruler2_score, match)
    return Row(file.parent.name, messages, answer, references, score, length)


def evaluate_ruler2(config: Ruler2Config, subject: Answerer) -> Result:
    """Measure RULER v2; what is written and raised is as in :func:`evaluate_by_length`."""
    config.check()
    paths = [conversation.find_file(config.data, (f"{task}/test.jsonl",)) for task in config.tasks]
    few = f"{len(config.tasks)} of the 12 tasks: the mean is of these"
    return conversation.evaluate_by_length(
        *(subject, "ruler2", config, UPSTREAM, paths, KEYS, row_of),
        metrics={task: match_of(task) for task in config.tasks},
        notes=[] if {*config.tasks} == {*config.TASKS} else [few],
    )

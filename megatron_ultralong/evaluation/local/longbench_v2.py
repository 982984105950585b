"""``evaluate longbench-v2``: LongBench v2's questions, answered without reasoning before.

Facts from THUDM/LongBench (MIT licence, github.com/THUDM/LongBench) at 2e00731: ``pred.py``,
``result.py`` and ``prompts/0shot.txt``. The prompt is upstream's to the letter,
unless a field spells a mark such as ``$Q$``: upstream fills it again, and here it stays text.
"""

import functools
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.asking.questions import Question
from megatron_ultralong.evaluation.local import conversation
from megatron_ultralong.evaluation.local.options import LongBenchV2Config
from megatron_ultralong.evaluation.local.prompt import PromptForm, estimated_tokens
from megatron_ultralong.evaluation.models.language_models import Answerer
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.json_file import JsonObject

UPSTREAM = "prompt 0shot and scores of THUDM/LongBench at 2e00731"
PROMPT = """\
Please read the following text and answer the question below.

<text>
$DOC$
</text>

What is the correct answer to this question: $Q$
Choices:
(A) $C_A$
(B) $C_B$
(C) $C_C$
(D) $C_D$

Format your response as follows: "The correct answer is (insert answer here)"."""
_FIELDS = {
    "$DOC$": "context",
    "$Q$": "question",
    **{f"$C_{letter}$": f"choice_{letter}" for letter in "ABCD"},
}
_MARK = re.compile("|".join(map(re.escape, _FIELDS)))
DIFFICULTIES, LENGTHS = ("easy", "hard"), ("short", "medium", "long")
COLUMNS = ("overall", *DIFFICULTIES, *LENGTHS)
KEYS = (*_FIELDS.values(), "answer", "difficulty", "length")
_TASK = "LongBench v2"


def prompt_text(row: Mapping[str, Any]) -> str:
    """The user's message; a mark in a field stays text, where upstream would fill it again."""
    return _MARK.sub(lambda mark: row[_FIELDS[mark[0]]].strip(), PROMPT)


def answer_letter(response: str) -> str | None:
    """The letter that a response chooses: ``The correct answer is (B)``, or without brackets."""
    text = response.strip().replace("*", "")
    found = re.search(r"The correct answer is \(([A-D])\)", text) or re.search(
        r"The correct answer is ([A-D])", text
    )
    return found and found[1]


def longbench_v2_score(prediction: str, reference: str) -> float:
    """Whether the right letter is chosen; an answer without one is wrong."""
    return float(answer_letter(prediction) == reference)


def checked(row: JsonObject) -> JsonObject:
    """A row of upstream's, every value in its range."""
    for key in _FIELDS.values():
        row.string(key)
    for key, known in (("answer", "ABCD"), ("difficulty", DIFFICULTIES), ("length", LENGTHS)):
        if row.string(key) not in tuple(known):
            raise row.wrong(key, f"one of {', '.join(known)}")
    return row


def evaluate_longbench_v2(config: LongBenchV2Config, subject: Answerer) -> Result:
    """Measure LongBench v2; what is written is as in :func:`evaluate_questions`.

    Raises:
        InputError: as there, or a file that is missing or of another format.
    """
    config.check()
    form = PromptForm(subject.tokenizer, config.prompt_template)
    max_length = config.max_length or subject.facts.max_positions
    if (room := max_length - config.max_new_tokens) < 1:
        raise InputError(
            f"--max-length {max_length} leaves no room beside an answer of "
            f"{config.max_new_tokens} tokens: raise it"
        )
    file = Path(config.data)
    sha256 = file_sha256(file)
    decides = form.decides(file=sha256, max_length=max_length)
    questions = []
    rows = itertools.islice(conversation.read_rows(file, KEYS), config.num_samples or None)
    for index, row in enumerate(map(checked, rows)):
        text = prompt_text(row)
        parts = (("user", text),), row["answer"], room
        questions.append(
            Question(
                *(_TASK, f"{row['difficulty']}/{row['length']}", index),
                *(estimated_tokens(text, room), config.max_new_tokens, decides),
                make=functools.partial(form.prompt, *parts),
                score=longbench_v2_score,
            )
        )
    questions[0].make()  # its length has room for the template
    notes = [
        f"prompt template {form.template}; prompts beyond {max_length:,} tokens (the "
        f"answer's {config.max_new_tokens} included) lose their middle; upstream allows 120,000 "
        "for the prompt",
        "no reasoning before the answer; an answer without a letter is wrong, and not a quarter "
        "right",
    ]
    if config.num_samples:
        notes.append(f"the first {counted(config.num_samples, 'question')}")
    return conversation.evaluate_files(
        *(questions, subject, "longbench_v2", config, UPSTREAM, {file: sha256}),
        lengths={max_length: "--max-length"},
        metrics={_TASK: "accuracy"},
        notes=notes,
        places={(_TASK, column): functools.partial(counts, column) for column in COLUMNS},
    )


def counts(column: str, entry: Mapping[str, Any]) -> bool:
    """Whether an answer counts in a column of upstream's table."""
    return column == "overall" or column in entry["column"].split("/")

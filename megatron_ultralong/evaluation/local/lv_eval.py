"""LV-Eval's eleven sets: prompts, metrics and lengths of answers as upstream states them.

Facts from infinigence/LVEval (MIT licence, github.com/infinigence/LVEval), ``config.py`` and
``metrics.py``. Prompts and word lists are upstream's to the letter, in ``lv_eval.json``: figures
are comparable only so.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from megatron_ultralong.evaluation.local.options import CutConfig
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Required
from megatron_ultralong.program.json_file import read_json

Metric = Literal["f1_keywords", "f1_keywords_zh", "f1", "f1_zh", "rouge_l_zh"]
LEVELS = ("16k", "32k", "64k", "128k", "256k")
_UPSTREAM = read_json(Path(__file__).with_suffix(".json"))


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What upstream states of a set."""

    metric: Metric
    max_new_tokens: int
    template: str


DATA_SETS = {name: DataSet(**values) for name, values in _UPSTREAM["sets"].items()}
STOP_WORDS = frozenset(_UPSTREAM["stop_words"].split())
"""English words that do not count among the keywords found."""
STOP_WORDS_ZH = frozenset(_UPSTREAM["stop_words_zh"].split())
"""Chinese ones, and words left out before ROUGE."""
PUNCTUATION_ZH: str = _UPSTREAM["punctuation_zh"]
"""Beside that of ASCII."""
KEYWORD_RECALL, KEYWORD_RECALL_ZH = 0.2, 0.4
"""Share of an answer's keywords that has to be found, else the score is 0."""


@dataclasses.dataclass(frozen=True)
class LvEvalConfig(CutConfig):
    """LV-Eval's eleven sets from a local copy."""

    TASKS = tuple(DATA_SETS)
    DIFFERENT: ClassVar = {"length_levels": "levels"}

    data: Annotated[str, Required("the folder with upstream's files")] = ""
    """Folder with upstream's files: hotpotwikiqa_mixup_16k.jsonl, or the same in a folder with the
    name of the set."""
    tasks: tuple[str, ...] = TASKS
    """Sets to use; default: all eleven."""
    length_levels: tuple[str, ...] = LEVELS
    """Lengths in words, as upstream names its files."""
    prompt_template: PromptTemplate = "base"
    """base: upstream's prompt. chat: the prompt as a user turn of the model's family."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        super().check()
        if {*self.length_levels} - {*LEVELS}:
            raise InputError(
                f"length_levels {list(self.length_levels)} must be among {', '.join(LEVELS)}"
            )

"""Configuration of ``evaluate choices``; its flags are generated from it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranges import Range, check_ranges

ChoiceStyle = Literal["letters", "texts"]


@dataclasses.dataclass(frozen=True)
class ChoicesConfig:
    """Multiple-choice questions answered by likelihood."""

    data: tuple[str, ...] = ()
    """Files of questions, or folders of them: JSONL with question, choices and answer, or CSV as
    MMLU's (question, four choices, letter), with or without a header line. A file is a task."""
    choice_style: ChoiceStyle = "letters"
    """letters: all choices stand in the prompt and the letter is scored, as MMLU is; texts: the
    text of each choice is scored after the question, as ARC and HellaSwag are."""
    num_fewshot: Annotated[int, Range(0)] = 0
    """Solved questions before each, the first ones of the file of the same name in
    fewshot_data."""
    fewshot_data: str = ""
    """Folder of files with solved questions; MMLU's dev folder."""
    num_samples: Annotated[int, Range(0)] = 0
    """Questions of every file, the first ones; 0: all."""
    micro_batch_size: Annotated[int, Range(1)] = 8
    """Rows in one forward pass; every choice is a row."""
    beyond_trained_positions: bool = False
    """Allow rows longer than the checkpoint was trained for."""
    output: str = ""
    """New folder for choices.json, choices.png and every answer; empty: print only. A folder that
    a killed evaluation left is continued."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        if not self.data:
            raise InputError("--data is needed: files of questions, such as MMLU's test folder")
        check_ranges(self)
        if self.num_fewshot and not self.fewshot_data:
            raise InputError(
                f"num_fewshot ({self.num_fewshot}) needs solved questions: give the folder with "
                "them by --fewshot-data"
            )

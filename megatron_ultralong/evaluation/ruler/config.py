"""Configuration of ``evaluate ruler``; its flags are generated from it."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from megatron_ultralong.evaluation.ruler.parameters import TASKS, NeedleTask, QuestionTask
from megatron_ultralong.generation.prompt_tokenizer import PromptTemplate
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import UINT32, Range, check_ranges


@dataclasses.dataclass(frozen=True)
class RulerConfig:
    """RULER's tasks at any length."""

    lengths: Annotated[tuple[int, ...], Range(1)] = ()
    """Tokens of prompt and answer together; one column of the table each."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks to run; all thirteen by default."""
    num_samples: Annotated[int, Range(1)] = 100
    """Samples of every task at every length; upstream's figures are of 500."""
    seed: Annotated[int, Range(0, UINT32)] = 42
    """Determines keys, values, words and places."""
    prompt_template: PromptTemplate = "base"
    """base: the task's text and the beginning of the answer; chat: the text as a user turn of
    Llama 3, the beginning in the assistant's."""
    essays: str = ""
    """Upstream's PaulGrahamEssays.json, or a text file: haystack of niah_single_2 and _3,
    niah_multikey_1, niah_multivalue and niah_multiquery."""
    squad: str = ""
    """SQuAD 2.0's dev-v2.0.json, for qa_1."""
    hotpotqa: str = ""
    """HotpotQA's hotpot_dev_distractor_v1.json, for qa_2."""
    word_lists: str = ""
    """Folder with nounlist.txt, adjectivelist.txt and verblist.txt; empty: those of the package
    wonderwords, as upstream."""
    english_words: str = ""
    """JSON file of more words for long cwe lists (upstream's english_words.json); empty: pairs of
    words where one list is too short."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Prompts that are continued together."""
    beyond_trained_positions: bool = False
    """Allow lengths beyond those the checkpoint was trained for, to see how it breaks."""
    output: str = ""
    """New folder for ruler.json, ruler.png and every answer; empty: print only. A folder that a
    killed evaluation left is continued."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        if not self.lengths:
            raise InputError("--lengths is needed: token counts, such as --lengths 4096 131072")
        for name, values in (("lengths", self.lengths), ("tasks", self.tasks)):
            if not values or len(set(values)) != len(values):
                raise InputError(f"{name} must be different values, not {list(values)}")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise InputError(f"task {unknown[0]!r} is not known; known: {', '.join(TASKS)}")
        check_ranges(self)
        for flag, value, tasks in (
            ("--essays", self.essays, self._tasks_of("essay")),
            ("--squad", self.squad, self._tasks_of("squad")),
            ("--hotpotqa", self.hotpotqa, self._tasks_of("hotpotqa")),
        ):
            if tasks and not value:
                without = [task for task in self.tasks if task not in tasks]
                raise InputError(
                    f"{flag} is needed for {', '.join(tasks)}: give the file (docs/evaluation.md "
                    f"says which), or leave them out by --tasks {' '.join(without) or 'TASK ...'}"
                )

    def _tasks_of(self, material: str) -> list[str]:
        """Tasks asked for that are made of ``material``."""
        return [
            name
            for name in self.tasks
            if (isinstance(task := TASKS[name], NeedleTask) and task.haystack == material)
            or (isinstance(task, QuestionTask) and task.dataset == material)
        ]

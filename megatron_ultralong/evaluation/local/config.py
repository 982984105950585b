"""Configuration of the benchmarks that are read from local copies; flags are generated from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from megatron_ultralong.evaluation.local.infinitebench import TASKS
from megatron_ultralong.evaluation.local.lv_eval import DATA_SETS, LEVELS
from megatron_ultralong.generation.prompt_tokenizer import PromptTemplate
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range, check_ranges


@dataclasses.dataclass(frozen=True)
class LvEvalConfig:
    """LV-Eval's sets from a local copy."""

    data: str = ""
    """Folder with upstream's files: hotpotwikiqa_mixup_16k.jsonl, or in a folder of the set's
    name."""
    tasks: tuple[str, ...] = tuple(DATA_SETS)
    """Sets to ask; all eleven by default."""
    length_levels: tuple[str, ...] = LEVELS
    """Lengths in words, as upstream names its files."""
    max_length: Annotated[int, Range(0)] = 0
    """Tokens of prompt and answer together; longer prompts lose their middle. 0: the positions
    the checkpoint was trained for."""
    num_samples: Annotated[int, Range(0)] = 0
    """Questions of every file, the first ones; 0: all."""
    prompt_template: PromptTemplate = "base"
    """base: upstream's prompt as it is; chat: as a user turn of Llama 3."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Prompts that are continued together."""
    beyond_trained_positions: bool = False
    """Allow a max_length beyond the positions the checkpoint was trained for."""
    output: str = ""
    """New folder for lv_eval.json, lv_eval.png and every answer; empty: print only. A folder that
    a killed evaluation left is continued."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        _check(self, DATA_SETS)
        unknown = [level for level in self.length_levels if level not in LEVELS]
        if unknown or not self.length_levels:
            raise InputError(
                f"length_levels {list(self.length_levels)} must be among {', '.join(LEVELS)}"
            )


@dataclasses.dataclass(frozen=True)
class InfiniteBenchConfig:
    """InfiniteBench's tasks from a local copy."""

    data: str = ""
    """Folder with upstream's files: passkey.jsonl, longbook_qa_eng.jsonl and the others."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks to ask; all twelve by default."""
    max_length: Annotated[int, Range(0)] = 0
    """Tokens of prompt and answer together; longer prompts lose their middle. 0: the positions
    the checkpoint was trained for."""
    num_samples: Annotated[int, Range(0)] = 0
    """Questions of every task, the first ones; 0: all."""
    prompt_template: PromptTemplate = "base"
    """base: upstream's prompts for YaRN-Mistral, to be continued; chat: those for GPT-4, as a user
    turn of Llama 3."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Prompts that are continued together."""
    beyond_trained_positions: bool = False
    """Allow a max_length beyond the positions the checkpoint was trained for."""
    output: str = ""
    """New folder for infinitebench.json, infinitebench.png and every answer; empty: print only. A
    folder that a killed evaluation left is continued."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        _check(self, TASKS)


def _check(config: Any, known: Sequence[str] | dict[str, Any]) -> None:
    if not config.data:
        raise InputError("--data is needed: the folder with upstream's files")
    unknown = [task for task in config.tasks if task not in known]
    if unknown:
        raise InputError(f"task {unknown[0]!r} is not known; known: {', '.join(known)}")
    if not config.tasks or len(set(config.tasks)) != len(config.tasks):
        raise InputError(f"tasks must be different values, not {list(config.tasks)}")
    check_ranges(config)

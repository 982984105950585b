"""RULER's thirteen tasks: parameters, prompts and metrics as upstream states them, and the flags.

Facts from NVIDIA/RULER (Apache-2.0, github.com/NVIDIA/RULER) at the commits of :data:`RELEASES`:
``scripts/synthetic.yaml``, ``scripts/data/synthetic/*.py``, ``scripts/data/template.py`` and
``scripts/eval/synthetic/constants.py``. The prompts are upstream's to the letter, in
``parameters.json``: figures are comparable only so. ``tools/compare_ruler.py`` holds them against
upstream's own scripts.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from megatron_ultralong.evaluation.options import AskingConfig
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import UINT32, Range, Required
from megatron_ultralong.program.json_file import read_json
from megatron_ultralong.program.quantity import LENGTH

PROMPT_VERSION = 2
"""Counts up when a prompt changes, so that no evaluation mixes two."""
Metric = Literal["string_match_all", "string_match_part"]
NeedleType = Literal["words", "numbers", "uuids"]
Release = Literal["c3f5e3b", "860f2bd"]

RELEASES: dict[Release, str] = {"c3f5e3b": "22 July 2026", "860f2bd": "31 January 2025"}
"""Commits of upstream, with their dates.

They differ in ``vt`` (spelling of its answer, lines, noise in its solved example), in ``cwe`` (a
space in its solved example, words of long lists), and where the material is used up: the later one
begins it again, with the earlier one the prompts stay shorter than asked.
"""


@dataclasses.dataclass(frozen=True)
class Family:
    """What tasks of one kind have in common."""

    tokens_to_generate: int
    metric: Metric
    template: str
    answer_prefix: str


FAMILIES = {
    name: Family(**values)
    for name, values in read_json(Path(__file__).with_suffix(".json")).items()
}
"""By what the names of their tasks begin with."""


@dataclasses.dataclass(frozen=True)
class NeedleTask:
    """Sentences that name a value for a key, hidden in a haystack."""

    haystack: Literal["noise", "essay", "needle"]
    key: NeedleType
    value: NeedleType
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


NEEDLES = {
    "niah_single_1": NeedleTask("noise", "words", "numbers"),
    "niah_single_2": NeedleTask("essay", "words", "numbers"),
    "niah_single_3": NeedleTask("essay", "words", "uuids"),
    "niah_multikey_1": NeedleTask("essay", "words", "numbers", num_keys=4),
    "niah_multikey_2": NeedleTask("needle", "words", "numbers"),
    "niah_multikey_3": NeedleTask("needle", "uuids", "uuids"),
    "niah_multivalue": NeedleTask("essay", "words", "numbers", num_values=4),
    "niah_multiquery": NeedleTask("essay", "words", "numbers", num_queries=4),
}
DATA_SETS = {"qa_1": "squad", "qa_2": "hotpotqa"}
TASKS = (*NEEDLES, "vt", "cwe", "fwe", *DATA_SETS)
"""``vt``: chains of assignments hidden in noise; ``cwe``: a numbered list in which some words stand
more often than others; ``fwe``: coded words whose frequencies follow a zeta distribution; ``qa_*``:
a question whose documents stand among others."""
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {type_needle_v} for {key} is: {value}."
DOCUMENT = "Document {i}:\n{document}"
DEPTHS = tuple(round(100 * k / 39) for k in range(40))
"""Forty even depths in per cent, of which needles in essays take theirs without repetition."""
MAX_BYTES = 64 * 2**20
"""Of a file of words or questions: HotpotQA's has 46 MB."""
SHORT_LENGTH = 4096
"""Below it upstream makes ``cwe`` with fewer repetitions."""


def family(task: str) -> Family:
    """What the kind of ``task`` has in common: ``family("vt").tokens_to_generate -> 30``."""
    return FAMILIES[task.split("_")[0]]


@dataclasses.dataclass(frozen=True)
class RulerConfig(AskingConfig):
    """RULER's thirteen synthetic tasks at any length."""

    TASKS = TASKS
    DIFFERENT: ClassVar = {"lengths": "values"}

    lengths: Annotated[
        tuple[int, ...], Range(1), LENGTH, Required("token counts, such as --lengths 4K 128K")
    ] = ()
    """Tokens of prompt and answer together; one column of the table for each."""
    tasks: tuple[str, ...] = TASKS
    """Tasks to run; default: all thirteen."""
    num_samples: Annotated[int, Range(1)] = 100
    """Samples per task and length; upstream's figures use 500."""
    seed: Annotated[int, Range(0, UINT32)] = 42
    """Seed of keys, values, words and places."""
    prompt_template: PromptTemplate = "base"
    """base: the task's text and the beginning of the answer. chat: the text as a user turn of the
    model's family, and the beginning of the answer as the assistant's turn."""
    ruler_release: Release = "c3f5e3b"
    """Commit of upstream whose prompts are used. c3f5e3b: of 22 July 2026. 860f2bd: of 31
    January 2025, for comparison with figures from before May 2025, including those of the
    UltraLong paper."""
    essays: str = ""
    """Upstream's PaulGrahamEssays.json, or a text file; the text for niah_single_2 and _3,
    niah_multikey_1, niah_multivalue and niah_multiquery."""
    squad: str = ""
    """SQuAD 2.0's dev-v2.0.json, for qa_1."""
    hotpotqa: str = ""
    """HotpotQA's hotpot_dev_distractor_v1.json, for qa_2."""
    word_lists: str = ""
    """Folder with nounlist.txt, adjectivelist.txt and verblist.txt; default: the lists of the
    package wonderwords, as upstream."""
    english_words: str = ""
    """JSON file of more words for long cwe lists (upstream's english_words.json); default: pairs of
    words if a list is too short."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        super().check()
        essays = {name for name, task in NEEDLES.items() if task.haystack == "essay"}
        for flag, value, needing in (
            ("--essays", self.essays, essays),
            ("--squad", self.squad, {"qa_1"}),
            ("--hotpotqa", self.hotpotqa, {"qa_2"}),
        ):
            if not value and (tasks := [task for task in self.tasks if task in needing]):
                without = [task for task in self.tasks if task not in tasks]
                raise InputError(
                    f"{flag} is needed for {', '.join(tasks)}: give the file (docs/evaluation.md "
                    f"says which), or leave them out with --tasks {' '.join(without) or 'TASK ...'}"
                )

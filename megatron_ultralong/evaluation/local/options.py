"""Options of benchmarks from local copies; flags are generated from them."""

import dataclasses
from typing import Annotated, ClassVar, Literal

from megatron_ultralong.evaluation.options import AskingConfig, check_different, check_tasks
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import UINT32, Range, Required
from megatron_ultralong.program.quantity import LENGTH

PROMPT_VERSION = 2
"""Counts up when a prompt of messages changes: half-done and finished evaluations mix no two."""


@dataclasses.dataclass(frozen=True)
class CutConfig(AskingConfig):
    """Questions that lose their middle where they are too long."""

    max_length: Annotated[int, Range(0), LENGTH] = 0
    """Largest number of tokens of prompt and answer together; longer prompts lose their middle. 0:
    the positions the checkpoint was trained for."""
    num_samples: Annotated[int, Range(0)] = 0
    """Questions to use from the start of every file; 0: all."""


@dataclasses.dataclass(frozen=True)
class MessagesConfig(AskingConfig):
    """Questions that are messages."""

    prompt_template: PromptTemplate = "chat"
    """chat: messages as turns of the model's family. base: as text, `User: ...`, `Assistant:`."""
    num_samples: Annotated[int, Range(0)] = 0
    """Questions per task and length, in the order of the files; 0: all."""


@dataclasses.dataclass(frozen=True)
class FitConfig(MessagesConfig):
    """Questions that are left out where they are too long."""

    max_length: Annotated[int, Range(0), LENGTH] = 0
    """Largest number of tokens of prompt and answer together; longer questions are left out, and
    counted. 0: the positions the checkpoint was trained for."""
    lengths: Annotated[tuple[int, ...], Range(1), LENGTH] = ()
    """Bins to use, by their upper ends: 8192 16384 ... 1048576. Default: all that fit."""
    max_new_tokens: Annotated[int, Range(1), LENGTH] = 1024
    """Largest number of tokens of an answer. If the expected answer is longer, there is room for
    it."""


@dataclasses.dataclass(frozen=True)
class BinsConfig(FitConfig):
    """Questions that are told apart by their length, as it is counted here."""

    length_tokenizer: str = ""
    """Folder of the tokenizer that counts the tokens for the bins. That of upstream is o200k_base,
    which gpt-oss has; default: the checkpoint's own."""


@dataclasses.dataclass(frozen=True)
class MrcrConfig(BinsConfig):
    """OpenAI's MRCR from a local copy: repeat the answer to one of several equal requests."""

    TASKS = ("2needle", "4needle", "8needle")

    data: Annotated[str, Required("upstream's files, or the folder with them")] = ""
    """Parquet or JSONL file with upstream's columns, or a folder of them: 2needle.parquet,
    2needle/2needle_0.parquet."""
    tasks: tuple[str, ...] = TASKS
    """Numbers of needles; default: all three."""
    max_new_tokens: Annotated[int, Range(1), LENGTH] = 2048
    """Largest number of tokens of an answer. If the expected answer is longer, there is room for
    it."""


@dataclasses.dataclass(frozen=True)
class GraphWalksConfig(BinsConfig):
    """OpenAI's GraphWalks, from a local copy or generated: nodes at a depth, and parents."""

    TASKS = ("bfs", "parents")

    data: str = ""
    """Parquet or JSONL file with upstream's columns, or a folder of them. Default: graphs are
    generated, by the lengths and the seed."""
    tasks: tuple[str, ...] = TASKS
    """Operations; default: both."""
    lengths: Annotated[tuple[int, ...], Range(1), LENGTH] = ()
    """Of generated graphs: tokens of prompt and answer together. Of files: bins to use, by their
    upper ends; default: all that fit."""
    num_samples: Annotated[int, Range(0)] = 100
    """Questions per task and length; 0: all of the files."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Seed of generated graphs."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        super().check()
        if self.data:
            return
        if not self.num_samples:
            raise InputError("num_samples must be at least 1 where graphs are generated")
        check_different("token counts, such as --lengths 4096 131072", lengths=self.lengths)


RULER2_TASKS = tuple(
    f"{kind}_{level}"
    for kind in ("mk_niah", "mv_niah", "qa")
    for level in ("basic", "easy", "medium", "hard")
)


@dataclasses.dataclass(frozen=True)
class Ruler2Config(FitConfig):
    """RULER v2 from the files that upstream's script makes."""

    TASKS = RULER2_TASKS

    data: Annotated[str, Required("the folder with mk_niah_basic/test.jsonl and the others")] = ""
    """Folder that `ns prepare_data ruler2` fills for one length: mk_niah_basic/test.jsonl and the
    other eleven. Let its --max_seq_length leave room for the answer."""
    tasks: tuple[str, ...] = RULER2_TASKS
    """Tasks to use; default: all twelve."""
    max_new_tokens: Annotated[int, Range(1), LENGTH] = 1024
    """Largest number of tokens of an answer. If the expected answer is longer, there is room for
    it. Upstream allows 16,384, for models that reason."""


NEEDLE_SETS = (
    *("needle_set", "needle_set_hard", "needle_set_MC", "needle_set_ONLYDirect"),
    *("needle_set_w_CoT", "needle_set_w_Distractor"),
)
NoLiMaMetric = Literal["contains", "EM", "lastline_contains", "lastline_EM"]


@dataclasses.dataclass(frozen=True)
class NoLiMaConfig(MessagesConfig):
    """NoLiMa from a local copy: needles that share no words with their questions."""

    DIFFERENT: ClassVar = {"lengths": "token counts"}

    data: Annotated[str, Required("the folder with upstream's needlesets/ and haystack/")] = ""
    """Folder as upstream's script fills it: needlesets/needle_set.json and
    haystack/rand_shuffle/rand_book_1.txt to 5."""
    needle_set: str = NEEDLE_SETS[0]
    """File of needlesets/, without its suffix."""
    lengths: Annotated[tuple[int, ...], Range(1), LENGTH] = tuple(250 * 2**k for k in range(8))
    """Tokens of the book around the needle; the prompt has about 150 more."""
    num_depths: Annotated[int, Range(1, 10_000)] = 26
    """Places of the needle in each book, evenly from its start to its end."""
    num_haystacks: Annotated[int, Range(0)] = 0
    """Books to use, from the first; 0: all."""
    num_samples: Annotated[int, Range(0)] = 0
    """Needles to use of every kind of question, from the first; 0: all."""
    metric: NoLiMaMetric = "contains"
    """contains: the answer contains the name. EM: it is the name. lastline: only its last line
    counts."""
    max_new_tokens: Annotated[int, Range(1), LENGTH] = 192
    """Largest number of tokens of an answer."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        super().check()
        check_tasks((self.needle_set,), NEEDLE_SETS)


@dataclasses.dataclass(frozen=True)
class LongBenchV2Config(CutConfig, MessagesConfig):
    """LongBench v2 from a local copy: questions with four choices, answered in writing."""

    data: Annotated[str, Required("the file of questions, in parquet or JSON")] = ""
    """Parquet, JSONL or JSON file with upstream's columns, as upstream's data.json."""
    max_new_tokens: Annotated[int, Range(1), LENGTH] = 128
    """Largest number of tokens of an answer."""

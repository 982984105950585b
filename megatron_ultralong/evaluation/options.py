"""Options of the evaluations; flags are generated from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import UINT32, Range, check_ranges
from megatron_ultralong.program.not_known import not_known
from megatron_ultralong.program.required import Required, check_required
from megatron_ultralong.sequence.documents import DocumentMask


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """What an evaluation may cost."""

    max_cost: Annotated[float, Range(0, 1e12)] = 0.0
    """GPU-hours (on a CPU: hours of a rank) that the estimate may not exceed; 0: no limit."""
    estimated_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """TFLOP/s of one GPU that the estimate assumes; 0: 40 % of the device's dense bf16 peak, and
    0.03 on a CPU."""


@dataclasses.dataclass(frozen=True)
class ModelsConfig:
    """What is evaluated, and in which layout."""

    load: Annotated[
        tuple[str, ...], Required("a Megatron checkpoint or a Hugging Face folder")
    ] = ()
    """Megatron checkpoints, or Hugging Face folders (judged by transformers, in one process).
    NAME=FOLDER gives one a name in tables and pictures."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Weights and activations of Megatron checkpoints; Hugging Face folders run in fp32."""
    verify_checksums: bool = True
    """Compare the bytes of Megatron checkpoints with their checksums.json."""
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Loss and perplexity by position on held-out rows; several models in one picture."""

    data_path: Annotated[str, Required("a folder written by `ultralong prepare`")] = ""
    """Folder written by `ultralong prepare`."""
    split: Literal["valid", "train"] = "valid"
    """Rows to evaluate on."""
    seq_length: Annotated[int, Range(2, or_zero=True, rule="a token, and its label")] = 0
    """Tokens of each row to use, from its start; 0 uses whole rows."""
    num_samples: Annotated[int, Range(0)] = 0
    """Rows to use, the first ones of the split; 0 uses all."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Rows in one forward pass."""
    smallest_bin: Annotated[int, Range(1)] = 128
    """Positions in the first bin; the edges after it double."""
    document_mask: DocumentMask = "none"
    """block: leave out the predictions of a document's first token."""
    beyond_trained_positions: bool = False
    """Allow rows longer than a checkpoint was trained for, to see how it breaks."""
    output: str = ""
    """New folder for loss.json and loss.png; empty: print only."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        check_required(self)
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Retrieval of something hidden in a text, by length and depth."""

    lengths: Annotated[
        tuple[int, ...], Range(1), Required("token counts, such as --lengths 512 1024 2048")
    ] = ()
    """Tokens of prompt and answer together; one column of the map each."""
    depths: Annotated[tuple[float, ...], Range(0, 100)] = (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
    """Where the answer is hidden, in per cent of the text; one line of the map each."""
    num_samples: Annotated[int, Range(1)] = 10
    """Prompts at every length and depth."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Determines what is hidden, and the text where it is made up."""
    by: Literal["argmax", "decoding"] = "argmax"
    """argmax: one forward pass over prompt and answer; decoding: the answer is written token by
    token. Both find the same."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Prompts in one forward pass."""
    beyond_trained_positions: bool = False
    """Allow lengths beyond those the checkpoint was trained for, to see how it breaks."""
    output: str = ""
    """New folder for passkey.json and passkey.png, or for needle.json and needle.png; empty: print
    only. A killed evaluation goes on from .OUTPUT.partial."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        check_required(self)
        check_different("numbers", lengths=self.lengths, depths=self.depths)
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class PasskeyConfig(GridConfig):
    """Retrieval of a number hidden in a long text, by length and depth."""

    haystack: str = ""
    """Text file to hide the number in; empty: InfiniteBench's noise line."""


MOST_DISTRACTORS = 20
"""Sentences of a needle's form beside it."""


@dataclasses.dataclass(frozen=True)
class NeedleConfig(GridConfig):
    """Retrieval of a sentence hidden in running text, by length and depth."""

    haystack: tuple[str, ...] = ()
    """Text files to hide the needle in, from a different place each time; empty: sentences made
    up at random."""
    num_distractors: Annotated[
        int, Range(0, MOST_DISTRACTORS, rule="every one is about a city of its own")
    ] = 3
    """Sentences of the needle's form about other cities, at random places."""


def check_different(what: str, **flags: Sequence[Any]) -> None:
    """Raise InputError where a flag has no values, or one twice; ``what`` they are."""
    for name, values in flags.items():
        if not values or len(set(values)) != len(values):
            raise InputError(f"{name} must be different {what}, not {list(values)}")


def check_num_samples(num_samples: int, available: int, what: str, other_way: str = "") -> None:
    """Raise InputError where more samples are asked for than there are; ``what`` names these."""
    if num_samples > available:
        raise InputError(
            f"num_samples ({num_samples}) is more than the {available} {what}: ask for at most "
            f"{available}{other_way}"
        )


def check_tasks(tasks: Sequence[str], known: Collection[str]) -> None:
    """Raise InputError where a task is not known, or given twice, or there is none."""
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise InputError(not_known("task", unknown[0], known))
    check_different("values", tasks=tasks)


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """Held-out conversations: the assistant's turns that the model would write word for word."""

    data_path: Annotated[str, Required("a folder written by `ultralong prepare chat`")] = ""
    """Folder written by `ultralong prepare chat`."""
    split: Literal["valid", "train"] = "valid"
    """Conversations to evaluate on."""
    num_samples: Annotated[int, Range(0)] = 0
    """Conversations to use, the first ones of the split; 0: all."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Conversations in one forward pass."""
    beyond_trained_positions: bool = False
    """Allow conversations longer than the checkpoint was trained for."""
    output: str = ""
    """New folder for chat.json, chat.png and every turn; empty: print only. A killed evaluation
    goes on from .OUTPUT.partial."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        check_required(self)
        check_ranges(self)


ChoiceStyle = Literal["letters", "texts"]


@dataclasses.dataclass(frozen=True)
class ChoicesConfig:
    """Multiple-choice questions answered by likelihood: whether short-context skill stayed."""

    data: Annotated[
        tuple[str, ...], Required("files of questions, such as MMLU's test folder")
    ] = ()
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
        check_required(self)
        check_ranges(self)
        if self.num_fewshot and not self.fewshot_data:
            raise InputError(
                f"num_fewshot ({self.num_fewshot}) needs solved questions: give the folder with "
                "them by --fewshot-data"
            )


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Gather results of several checkpoints into one page: pictures, tables with checkpoints side
    by side and the better figure marked, the paper's figures beside those that they can be compared
    with, and the conditions of every figure.

    `ultralong evaluate report before/ after/ --output report` takes what
    `ultralong evaluate loss|passkey|needle|ruler|... --output` wrote into those folders, however
    deep. Checkpoints are known by the names they had (--load NAME=FOLDER). Results of one
    checkpoint and benchmark under different conditions are all shown, and what differs is said.
    Evaluations that are not finished (.OUTPUT.partial) are left out, and named.
    """

    runs: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="RUN [RUN ...]"),
        Required("folders that `ultralong evaluate ... --output` wrote, or files in them"),
    ] = ()
    """Folders to search for results, or result files."""
    output: str = ""
    """New folder for index.html, which needs no other file, the pictures and report.json; empty:
    print only."""
    title: str = ""
    """Headline of the page; empty: from the checkpoints' names."""

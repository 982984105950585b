"""Options of the evaluations; flags are generated from them."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.program.errors import InputError, not_known
from megatron_ultralong.program.fields import TEXT, UINT32, Range, Required, check_fields
from megatron_ultralong.program.quantity import LENGTH
from megatron_ultralong.sequence.document_mask import DocumentMask


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """Limit of the cost."""

    max_cost: Annotated[float, Range(0, 1e12)] = 0.0
    """Largest estimate in GPU-hours (on a CPU: hours of a rank); 0: no limit."""
    estimated_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """TFLOP/s of one GPU for the estimate; 0: 40 % of the device's dense bf16 peak, and 0.03 on a
    CPU."""


@dataclasses.dataclass(frozen=True)
class ModelsConfig:
    """Models to evaluate, and their layout."""

    load: Annotated[
        tuple[str, ...], Required("a Megatron checkpoint or a Hugging Face folder")
    ] = ()
    """Megatron checkpoints, or Hugging Face folders (run by transformers in one process).
    NAME=FOLDER sets the name in tables and pictures. Several are evaluated one after the other;
    `loss` holds all of them in memory, for one table."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Type of weights and activations of Megatron checkpoints; Hugging Face folders run in fp32."""
    verify_checksums: bool = True
    """Compare Megatron checkpoints with their checksums.json."""
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)


@dataclasses.dataclass(frozen=True)
class AskingConfig:
    """How samples are put to a model, and where the answers go."""

    TASKS: ClassVar[tuple[str, ...]] = ()
    """Those that the field ``tasks`` can name, where there is one."""
    DIFFERENT: ClassVar[Mapping[str, str]] = {}
    """Fields of which each value may stand once, and what the values are."""

    micro_batch_size: Annotated[int, Range(1)] = 1
    """Prompts in one forward pass, or continued together."""
    beyond_trained_positions: bool = False
    """Allow lengths beyond the positions the checkpoint was trained for, to see how it fails."""
    output: str = ""
    """New folder for the result, a picture and every answer; default: print only. A killed
    evaluation resumes from .OUTPUT.partial."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        check_fields(self)
        if self.TASKS:
            check_tasks(vars(self)["tasks"], self.TASKS)
        for name, what in self.DIFFERENT.items():
            check_different(what, **{name: getattr(self, name)})


@dataclasses.dataclass(frozen=True)
class LossConfig(AskingConfig):
    """Loss and perplexity by position on held-out rows, with all models in one picture."""

    data_path: Annotated[str, Required("a folder written by `ultralong prepare`")] = ""
    """Folder written by `ultralong prepare`."""
    split: Literal["valid", "train"] = "valid"
    """Rows to evaluate on."""
    seq_length: Annotated[int, Range(2, or_zero=True, rule="a token, and its label"), LENGTH] = 0
    """Tokens to use from the start of each row; 0: whole rows."""
    num_samples: Annotated[int, Range(0)] = 0
    """Rows to use, from the start of the split; 0: all."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Rows in one forward pass."""
    smallest_bin: Annotated[int, Range(1), LENGTH] = 128
    """Positions in the first bin; each following edge doubles."""
    document_mask: DocumentMask = "none"
    """block: do not count predictions of a document's first token."""
    beyond_trained_positions: bool = False
    """Allow rows longer than a checkpoint was trained for, to see how it fails."""
    output: str = ""
    """New folder for loss.json and loss.png; default: print only."""


@dataclasses.dataclass(frozen=True)
class GridConfig(AskingConfig):
    """Retrieval of something hidden in a text, by length and depth."""

    DIFFERENT: ClassVar = {"lengths": "numbers", "depths": "numbers"}

    lengths: Annotated[
        tuple[int, ...], Range(1), LENGTH, Required("token counts, such as --lengths 512 1K 2K")
    ] = ()
    """Tokens of prompt and answer together; one column of the map for each."""
    depths: Annotated[tuple[float, ...], Range(0, 100)] = (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
    """Positions of the answer, in per cent of the text; one row of the map for each."""
    num_samples: Annotated[int, Range(1)] = 10
    """Prompts per length and depth."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Seed of what is hidden, and of random text."""
    by: Literal["argmax", "decoding"] = "argmax"
    """argmax: one forward pass over prompt and answer. decoding: generate the answer token by
    token. Both give the same result."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range, or depths are shares of 1."""
        super().check()
        if max(self.depths) <= 1 and any(depth % 1 for depth in self.depths):
            given, meant = (
                " ".join(f"{depth * factor:g}" for depth in self.depths) for factor in (1, 100)
            )
            raise InputError(
                f"depths {given} would all be in the first per cent of the text: depths are in per "
                f"cent, 0 to 100; use --depths {meant}"
            )


@dataclasses.dataclass(frozen=True)
class PasskeyConfig(GridConfig):
    """Retrieval of a number hidden in a long text, by length and depth."""

    haystack: str = ""
    """Text file to hide the number in; default: InfiniteBench's noise line."""


MOST_DISTRACTORS = 20
"""Sentences of a needle's form beside it."""


@dataclasses.dataclass(frozen=True)
class NeedleConfig(GridConfig):
    """Retrieval of a sentence hidden in running text, by length and depth."""

    haystack: tuple[str, ...] = ()
    """Text files to hide the needle in, starting at a different place each time; default: random
    sentences."""
    num_distractors: Annotated[
        int, Range(0, MOST_DISTRACTORS, rule="every one is about a city of its own")
    ] = 3
    """Sentences like the needle, but about other cities, at random places."""


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
class ChatConfig(AskingConfig):
    """Held-out conversations: which of the assistant's turns the model would write word for
    word.
    """

    data_path: Annotated[str, Required("a folder written by `ultralong prepare chat`")] = ""
    """Folder written by `ultralong prepare chat`."""
    split: Literal["valid", "train"] = "valid"
    """Conversations to use."""
    num_samples: Annotated[int, Range(0)] = 0
    """Conversations to use, from the start of the split; 0: all."""


WITHOUT_TEMPLATE = "leave --apply-chat-template out"
"""The fix where there is no chat template."""


@dataclasses.dataclass(frozen=True)
class HarnessConfig(AskingConfig):
    """Tasks of lm-evaluation-harness, in the training layout and without a network.

    The harness makes prompts, filters and scores. A task file can name Python functions
    (!function), and this program runs them: include only task files whose code you would run.
    """

    DIFFERENT: ClassVar = {"tasks": "names"}

    tasks: Annotated[tuple[str, ...], Required("names of tasks, such as mmlu gsm8k")] = ()
    """Names of tasks, groups or tags, patterns (mmlu_*), or task files (*.yaml)."""
    include_path: str = ""
    """Folder with more task files."""
    data: str = ""
    """Folder with copies of data sets under the names that they have on the hub (cais/mmlu), and of
    metrics (code_eval), which are Python and need confirm_run_unsafe_code. Tasks whose files are
    named in full do not need it."""
    num_fewshot: Annotated[int, Range(-1)] = -1
    """Solved examples before each question; -1: as each task says."""
    limit: Annotated[int, Range(0)] = 0
    """Questions to use from the start of every task; 0: all."""
    apply_chat_template: bool = False
    """Put prompts into the chat template of the checkpoint's tokenizer, solved examples as turns of
    their own."""
    system_instruction: Annotated[str, TEXT] = ""
    """System message before every prompt."""
    gen_kwargs: Annotated[tuple[str, ...], TEXT] = ()
    """KEY=VALUE options of generation that replace those of the tasks, such as max_gen_toks=512; a
    list is JSON."""
    max_length: Annotated[int, Range(2, or_zero=True, rule="a token, and its label"), LENGTH] = 0
    """Largest number of tokens of prompt and answer together; longer prompts lose their beginning,
    and texts are cut into windows. 0: the positions the checkpoint was trained for."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Seed for choosing solved examples, if a task draws them."""
    confirm_run_unsafe_code: bool = False
    """Run what the model writes, for tasks that test its programs (humaneval, mbpp), and the Python
    of metrics in data, as this user on this machine."""
    micro_batch_size: Annotated[int, Range(1)] = 8
    """Rows of a replica in one forward pass."""
    beyond_trained_positions: bool = False
    """Allow a max_length beyond the positions the checkpoint was trained for."""
    output: str = ""
    """New folder for harness.json, harness.png, every answer, and lm_eval/ with what the harness
    itself writes; default: print only. A killed evaluation resumes from .OUTPUT.partial."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        super().check()
        for option in self.gen_kwargs:
            if not option.partition("=")[2]:
                raise InputError(
                    f"--gen-kwargs {option} has no value: give KEY=VALUE, such as max_gen_toks=512"
                )


RULER_THRESHOLD = 85.6
"""Of 100: what Llama-2-7B reaches at 4K (arXiv 2404.06654, section 4)."""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Gather results of several checkpoints on one page: pictures, tables with checkpoints side by
    side, effective lengths, the paper's figures next to comparable ones, and the conditions of
    every figure. Differences within the noise are not highlighted.

    Folders are searched for results of `ultralong evaluate loss|passkey|needle|ruler|... --output`.
    Checkpoints have the names of their evaluation (--load NAME=FOLDER). If a checkpoint has several
    results for one benchmark, all are shown with their differences. Unfinished evaluations
    (.OUTPUT.partial) are skipped and named.
    """

    runs: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="RUN [RUN ...]"),
        Required("folders that `ultralong evaluate ... --output` wrote, or files in them"),
    ] = ()
    """Folders to search for results, or result files."""
    output: str = ""
    """New folder for index.html (which needs no other file), the pictures and report.json; default:
    print only."""
    title: Annotated[str, TEXT] = ""
    """Title of the page; default: the checkpoints' names."""
    threshold: Annotated[float, Range(0, 100)] = RULER_THRESHOLD
    """Score, of 100, for the effective length: the longest length up to which the scores of a
    benchmark are above it. The default is that of RULER: Llama-2-7B at 4K."""

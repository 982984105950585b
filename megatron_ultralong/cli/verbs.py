"""The table of verbs: what each is for, where its options are and where what it does.

A new verb is a line here. Nothing that a line names is imported before the verb is called, and only
its options are until they are read: `--help` and a mistyped flag are answered without torch.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

_ARROW = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Arrow reads it when it is imported: its own pool takes addresses ahead of any limit."""
_HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""torch reads it once. Huge pages for its large tensors: a third of a conversion's processor time
went into finding and clearing small ones."""


_OFFLINE = dict.fromkeys(
    ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TQDM_DISABLE"), "1"
)
"""Hugging Face's libraries read them when they are imported; progress is shown once."""


def load(place: str) -> Any:
    """What ``module:name`` of this package names: ``load("config.recipes:SFT_RECIPES")``."""
    module, name = place.split(":")
    return getattr(importlib.import_module(f"megatron_ultralong.{module}"), name)


@dataclasses.dataclass(frozen=True)
class Verb:
    """One line of the table; places are ``module:name`` below this package."""

    help: str
    """What it is for, in a line."""
    options: str
    """Dataclass whose fields are the flags; its module imports no torch."""
    run: str
    """Called with the options."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables that libraries read when they are imported, where the user has not set them."""
    takes_words: bool = False
    """``run`` is called with the words of the command line, and reads them itself."""
    recipes: str = ""
    """Table of functions that give the options of a recipe, for a verb that begins with one."""
    is_for_ranks: bool = False
    """Works on ranks, of torchrun or ``--ranks``, which are silent while they import."""
    check_early: str = ""
    """Called with the options and the number of ranks, before seconds of imports. True: the verb
    ends here, as there is nothing to do; of a training it is not asked."""
    default_of: str = ""
    """Called with the words: the options that its flags change, or None."""


@dataclasses.dataclass(frozen=True)
class TrainingVerb(Verb):
    """A verb that begins with a recipe or the file of an earlier run, and knows ``--dry-run``."""

    check: str = ""
    """As ``check_early``, for a dry run: gives what it shows."""


def _prepare(options: str, run: str, text: str, default_of: str = "") -> Verb:
    return Verb(
        text, f"data.options:{options}", f"data.prepare.{run}", _ARROW, default_of=default_of
    )


def _convert(options: str, run: str, check: str, text: str) -> Verb:
    places = f"config.convert:{options}", f"checkpoint.convert.{run}"
    check = f"checkpoint.convert.early_checks:{check}"
    return Verb(text, *places, _HUGE_PAGES, check_early=check)


def _training(
    options: str, recipes: str, check_early: str, run: str, check: str, text: str
) -> TrainingVerb:
    return TrainingVerb(
        text,
        f"config.training:{options}",
        f"training.{run}",
        recipes=f"config.recipes:{recipes}",
        is_for_ranks=True,
        check_early=f"training.early_checks:{check_early}",
        check=f"training.{check}",
    )


def _evaluate(options: str, text: str) -> Verb:
    places = f"evaluation.commands:{options}", "evaluation.run_command:run"
    check = "evaluation.early_checks:check_command"
    return Verb(text, *places, is_for_ranks=True, check_early=check)


VERBS: dict[str, Verb] = {
    "prepare": _prepare(
        *("PrepareConfig", "documents:prepare"),
        "pack documents into rows of exactly --seq-length tokens",
        "data.options:of_existing_rows",
    ),
    "prepare chat": _prepare(
        *("PrepareChatConfig", "chats:prepare_chat"),
        "pack conversations into rows, with masks of the tokens to train on",
    ),
    "convert import": _convert(
        *("ImportConfig", "verbs:import_checkpoint", "check_import"),
        "convert a Hugging Face or Meta folder to a Megatron checkpoint",
    ),
    "convert export": _convert(
        *("ExportConfig", "verbs:export_checkpoint", "check_export"),
        "convert a Megatron checkpoint to a Hugging Face or Meta folder, or a GGUF file",
    ),
    "convert verify": _convert(
        *("VerifyConfig", "verbs:verify", "check_verify"),
        "compare two models bit by bit, or by logits",
    ),
    "convert inspect": _convert(
        *("InspectConfig", "report:inspect", "check_inspect"),
        "show the contents of a folder or checkpoint",
    ),
    "pretrain": _training(
        *("PretrainConfig", "FOR_PRETRAIN", "check_packed_run"),
        *("verbs:pretrain", "verbs:check_run"),
        "extend the context of a model (--ranks N for several on this machine)",
    ),
    "sft": _training(
        *("SftConfig", "SFT_RECIPES", "check_chat_run"),
        *("verbs:sft", "verbs:check_sft"),
        "tune on conversations (--ranks N for several on this machine)",
    ),
    "plan": Verb(
        "plan memory, time and layout of a run, without a GPU",
        options="plan.options:PlanConfig",
        run="cli.plan:plan",
        takes_words=True,
        recipes="config.recipes:RECIPES",
    ),
    "evaluate loss": _evaluate("LossCommand", "measure the loss by position on held-out rows"),
    "evaluate passkey": _evaluate(
        "PasskeyCommand", "measure passkey retrieval by length and depth"
    ),
    "evaluate needle": _evaluate(
        "NeedleCommand", "measure retrieval of a sentence, by length and depth"
    ),
    "evaluate ruler": _evaluate("RulerCommand", "run RULER's tasks by length"),
    "evaluate harness": dataclasses.replace(
        _evaluate("HarnessCommand", "run any task of lm-evaluation-harness"),
        environment=_OFFLINE,
    ),
    "evaluate chat": _evaluate(
        "ChatCommand", "score the assistant's turns of held-out conversations"
    ),
    "evaluate lv-eval": _evaluate("LvEvalCommand", "run LV-Eval's sets from a local copy"),
    "evaluate infinitebench": _evaluate(
        "InfiniteBenchCommand", "run InfiniteBench's tasks from a local copy"
    ),
    "evaluate mrcr": _evaluate(
        "MrcrCommand", "run OpenAI's MRCR (2, 4, 8 needles) from a local copy"
    ),
    "evaluate graphwalks": _evaluate(
        "GraphWalksCommand",
        "run OpenAI's GraphWalks from a local copy, or generated at any length",
    ),
    "evaluate ruler2": _evaluate(
        "Ruler2Command", "run RULER v2's tasks from files of its own script"
    ),
    "evaluate nolima": _evaluate(
        "NoLiMaCommand", "run NoLiMa, by length and depth, from a local copy"
    ),
    "evaluate longbench-v2": _evaluate("LongBenchV2Command", "run LongBench v2 from a local copy"),
    "evaluate report": Verb(
        "gather results of several checkpoints on one page",
        options="evaluation.options:ReportConfig",
        run="evaluation.report.page:evaluate_report",
    ),
    "generate": Verb(
        "continue prompts with a checkpoint, in any layout",
        options="config.generate:GenerateConfig",
        run="generation.generate:generate",
        is_for_ranks=True,
        check_early="generation.early_checks:check_generation",
    ),
    "doctor": Verb(
        "check this machine and job, and say what to fix",
        options="doctor.diagnosis:DoctorConfig",
        run="doctor.diagnosis:doctor",
        takes_words=True,
    ),
}
"""What users type; in the order of `ultralong --help`."""

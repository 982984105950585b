"""The table of verbs: what each is for, where its options are and where what it does.

A new verb is a line here. Nothing that a line names is imported before the verb is called, and only
its options are until they are read: `--help` and a mistyped flag are answered without torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

_ARROW = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Arrow reads it when it is imported: its own pool takes addresses ahead of any limit."""
_HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""torch reads it once. Huge pages for its large tensors: a third of a conversion's processor time
went into finding and clearing small ones."""


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


@dataclasses.dataclass(frozen=True)
class TrainingVerb(Verb):
    """A verb that begins with a recipe or the file of an earlier run, and knows ``--dry-run``."""

    recipes: str = ""
    """Table of functions that give the options of a recipe."""
    check_early: str = ""
    """Called with the options and the number of ranks, before seconds of imports."""
    check: str = ""
    """The same, for a dry run: gives what it shows."""


def _convert(text: str, options: str, run: str) -> Verb:
    return Verb(text, options, run, _HUGE_PAGES)


def _evaluate(text: str, options: str, run: str) -> Verb:
    return Verb(text, f"evaluation.commands:{options}", f"evaluation.{run}")


VERBS: dict[str, Verb] = {
    "prepare": Verb(
        "documents to packed rows of exactly --seq-length tokens",
        options="data.options:PrepareConfig",
        run="data.prepare.documents:prepare",
        environment=_ARROW,
    ),
    "prepare chat": Verb(
        "conversations to packed rows, and what of them is learnt",
        options="data.options:PrepareChatConfig",
        run="data.prepare.chats:prepare_chat",
        environment=_ARROW,
    ),
    "convert import": _convert(
        "a Hugging Face or Meta folder to a Megatron checkpoint",
        *("config.convert:ImportConfig", "checkpoint.convert.verbs:import_checkpoint"),
    ),
    "convert export": _convert(
        "a Megatron checkpoint to a Hugging Face or Meta folder",
        *("config.convert:ExportConfig", "checkpoint.convert.verbs:export_checkpoint"),
    ),
    "convert verify": _convert(
        "compare two models bit by bit, and by logits",
        *("config.convert:VerifyConfig", "checkpoint.convert.verbs:verify"),
    ),
    "convert inspect": _convert(
        "what a folder or checkpoint holds",
        *("config.convert:InspectConfig", "checkpoint.convert.report:inspect"),
    ),
    "pretrain": TrainingVerb(
        "extend the context; under torchrun for several ranks",
        options="config.training:PretrainConfig",
        run="training.verbs:pretrain",
        recipes="config.recipes:PRETRAIN_RECIPES",
        check_early="training.early_checks:check_packed_run",
        check="training.verbs:check_run",
    ),
    "sft": TrainingVerb(
        "instruction tuning on conversations; under torchrun for several ranks",
        options="config.sft:SftConfig",
        run="training.verbs:sft",
        recipes="config.recipes:SFT_RECIPES",
        check_early="training.early_checks:check_chat_run",
        check="training.verbs:check_sft",
    ),
    "plan": Verb(
        "memory, time and the layout of a run, before a GPU is taken",
        options="plan.command:PlanConfig",
        run="cli.plan:plan",
        takes_words=True,
    ),
    "evaluate loss": _evaluate(
        "loss by position on held-out rows",
        *("LossCommand", "run_command:run_loss"),
    ),
    "evaluate passkey": _evaluate(
        "passkey retrieval by length and depth",
        *("PasskeyCommand", "run_command:run_passkey"),
    ),
    "evaluate needle": _evaluate(
        "a sentence in running text, by length and depth",
        *("NeedleCommand", "run_command:run_needle"),
    ),
    "evaluate ruler": _evaluate(
        "RULER's tasks by length",
        *("RulerCommand", "run_command:run_ruler"),
    ),
    "evaluate choices": _evaluate(
        "multiple-choice questions by likelihood",
        *("ChoicesCommand", "run_command:run_choices"),
    ),
    "evaluate chat": _evaluate(
        "assistant's turns of held-out conversations",
        *("ChatCommand", "run_command:run_chat"),
    ),
    "evaluate lv-eval": _evaluate(
        "LV-Eval's sets from a local copy",
        *("LvEvalCommand", "run_command:run_lv_eval"),
    ),
    "evaluate infinitebench": _evaluate(
        "InfiniteBench's tasks from a local copy",
        *("InfiniteBenchCommand", "run_command:run_infinitebench"),
    ),
    "evaluate report": Verb(
        "results of several checkpoints on one page, beside the paper's",
        options="evaluation.options:ReportConfig",
        run="evaluation.report.page:evaluate_report",
    ),
    "generate": Verb(
        "continue prompts with a checkpoint, in any layout",
        options="config.generate:GenerateConfig",
        run="generation.generate:generate",
    ),
    "doctor": Verb(
        "whether this machine and job can run the rest, and what to fix",
        options="doctor.diagnosis:DoctorConfig",
        run="doctor.diagnosis:doctor",
        takes_words=True,
    ),
}
"""What users type; in the order of `ultralong --help`."""

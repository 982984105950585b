"""The command line: ``ultralong VERB ...``.

A verb's module is imported when the verb is called, so that ``--help`` is quick and converting
needs nothing of the trainer.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.ending import PROGRAM, ends_with_message
from megatron_ultralong.errors import InputError
from megatron_ultralong.log_format import PrintableFormatter
from megatron_ultralong.ranks import world_size


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; bad input ends with one message and exit status 2, docs/running.md has more."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=os.environ.get("ULTRALONG_LOG", "WARNING"), handlers=[handler])
    _quiet_upstream()
    with ends_with_message():
        try:
            _run(words)
        except ImportError as error:
            if os.environ.get("ULTRALONG_LOG") == "DEBUG":
                raise
            raise InputError(
                f"{type(error).__name__}: {error}; a library is missing or broken: `{PROGRAM} "
                "doctor` says which and what to do, ULTRALONG_LOG=DEBUG where"
            ) from error


def _quiet_upstream() -> None:
    """Leave out what libraries warn of and no user of this program can act on.

    Megatron-Core warns at import, on every rank, that Apex and Transformer Engine are absent, and
    calls functions that torch has deprecated. ``ULTRALONG_LOG=DEBUG`` or ``PYTHONWARNINGS`` shows
    them.
    """
    if sys.warnoptions or os.environ.get("ULTRALONG_LOG") == "DEBUG":
        return
    warnings.filterwarnings("ignore", module=r"megatron\.core|torch\.distributed")
    warnings.filterwarnings("ignore", module=r"megatron_ultralong\.mcore\.cpu")  # their calls
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return
    if words[0] == "--version":
        from megatron_ultralong import __version__

        sys.stdout.write(f"{PROGRAM} {__version__}\n")
        return
    for width in (2, 1):
        verb = " ".join(words[:width])
        if verb in _VERBS:
            _VERBS[verb][1](verb, words[width:])
            return
    verb = words[0]
    known = [name for name in _VERBS if name.split()[0] == verb]
    if known:
        rest = [word for word in words[1:] if not word.startswith("-")]
        if not rest:
            sys.stdout.write(_usage(verb))
            return
        raise InputError(f"{verb} {rest[0]!r} is not known; known: {', '.join(known)}")
    near = difflib.get_close_matches(verb, [name.split()[0] for name in _VERBS], n=1)
    perhaps = f"; perhaps `{PROGRAM} {near[0]}`" if near else ""
    raise InputError(
        f"verb {verb!r} is not known; known: {', '.join(dict.fromkeys(_VERBS))}{perhaps}; "
        f"see `{PROGRAM} --help`"
    )


def _usage(only: str | None = None) -> str:
    lines = [f"usage: {PROGRAM} VERB ...", ""]
    lines += ["Extend Llama 3.1 models to contexts of 1M-4M tokens.", ""]
    lines += [
        f"  {verb:22} {text}"
        for verb, (text, _) in _VERBS.items()
        if only is None or verb.split()[0] == only
    ]
    lines += ["", f"`{PROGRAM} VERB --help` lists the flags of a verb.", ""]
    return "\n".join(lines)


def _parse(config_class: Any, verb: str, words: list[str], default: Any = None) -> Any:
    """The config of ``verb``, with one flag for each field, in Megatron-LM's spelling."""
    from megatron_ultralong.command_line import parse

    return parse(config_class, f"{PROGRAM} {verb}", words, default)


def _keep_to_limits_of_memory() -> None:
    """Arrow reads it when it is imported: its own pool takes addresses ahead of any limit."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def _run_prepare(verb: str, words: list[str]) -> None:
    _keep_to_limits_of_memory()
    from megatron_ultralong.data.prepare import PrepareConfig, prepare

    prepare(_parse(PrepareConfig, verb, words))


def _run_prepare_chat(verb: str, words: list[str]) -> None:
    _keep_to_limits_of_memory()
    from megatron_ultralong.data.prepare_chat import PrepareChatConfig, prepare_chat

    prepare_chat(_parse(PrepareChatConfig, verb, words))


def _run_convert(verb: str, words: list[str]) -> None:
    # torch reads it once. Huge pages for its large tensors: a third of a conversion's processor
    # time went into finding and clearing small ones.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from megatron_ultralong.checkpoint import convert, inspection

    programs: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "convert import": (convert.ImportConfig, convert.import_checkpoint),
        "convert export": (convert.ExportConfig, convert.export_checkpoint),
        "convert verify": (convert.VerifyConfig, convert.verify),
        "convert inspect": (inspection.InspectConfig, inspection.inspect),
    }
    config_class, run = programs[verb]
    run(_parse(config_class, verb, words))


def _run_pretrain(verb: str, words: list[str]) -> None:
    from megatron_ultralong.config import PretrainConfig
    from megatron_ultralong.recipes import PRETRAIN_RECIPES

    def run(config: PretrainConfig) -> None:
        from megatron_ultralong.training.pretrain import pretrain

        pretrain(config)

    def check(config: PretrainConfig) -> Any:
        from megatron_ultralong.training.pretrain import check_run

        return check_run(config, world_size())

    def check_early(config: PretrainConfig) -> None:
        from megatron_ultralong.training.early_checks import check_packed_run

        check_packed_run(config, world_size())

    _run_training(verb, words, PretrainConfig, PRETRAIN_RECIPES, check_early, check, run)


def _run_sft(verb: str, words: list[str]) -> None:
    from megatron_ultralong.recipes import SFT_RECIPES
    from megatron_ultralong.sft_config import SftConfig

    def run(config: SftConfig) -> None:
        from megatron_ultralong.training.sft import sft

        sft(config)

    def check(config: SftConfig) -> Any:
        from megatron_ultralong.training.sft import check_sft

        return check_sft(config, world_size())

    def check_early(config: SftConfig) -> None:
        from megatron_ultralong.training.early_checks import check_chat_run

        check_chat_run(config, world_size())

    _run_training(verb, words, SftConfig, SFT_RECIPES, check_early, check, run)


def _run_training(
    verb: str,
    words: list[str],
    config_class: Any,
    recipes: Mapping[str, Callable[[], Any]],
    check_early: Callable[[Any], None],
    check: Callable[[Any], Any],
    run: Callable[[Any], None],
) -> None:
    """Take a recipe or a file of an earlier run, its flags, and run it or show what it would do."""
    usage = f"usage: {PROGRAM} {verb} RECIPE|--config FILE [flags]; recipes: " + ", ".join(recipes)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(f"{usage}\n`{PROGRAM} {verb} RECIPE --help` lists the flags.\n")
        return
    if words[0] == "--config":
        from megatron_ultralong.training.config_file import load_config

        if len(words) < 2:
            raise InputError(f"--config needs a file; {usage}")
        default, rest = load_config(Path(words[1]), config_class), words[2:]
    elif words[0] in recipes:
        default, rest = recipes[words[0]](), words[1:]
    else:
        raise InputError(f"recipe {words[0]!r} is not known; {usage}")
    config = _parse(config_class, verb, [word for word in rest if word != "--dry-run"], default)
    check_early(config)  # before seconds of imports
    if "--dry-run" in rest:
        from megatron_ultralong.training.dry_run import dry_run

        sys.stdout.write(dry_run(check(config)))
        return
    run(config)


def _run_plan(verb: str, words: list[str]) -> None:
    from megatron_ultralong.plan_inputs import plan

    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(
            f"usage: {PROGRAM} {verb} RECIPE|--config FILE --gpus N --gpu NAME [flags, also those "
            f"of pretrain and sft]\n`{PROGRAM} {verb} RECIPE --help` lists the flags.\n"
        )
        return
    plan(words, lambda kind, rest, default: _parse(kind, verb, rest, default))


def _run_evaluate_loss(verb: str, words: list[str]) -> None:
    from megatron_ultralong.data.manifest import load_manifest
    from megatron_ultralong.evaluation.commands import LossCommand
    from megatron_ultralong.evaluation.models import model_facts, open_scorers
    from megatron_ultralong.evaluation.position_loss import evaluate_loss

    command = _parse(LossCommand, verb, words)
    command.loss.check()
    separator_ids = load_manifest(command.loss.data_path).separator_ids
    with open_scorers(command.models) as scorers:
        records = [
            model_facts(load, command.models.precision).record for load in command.models.load
        ]
        evaluate_loss(command.loss, scorers, separator_ids, records)


def _run_evaluate_passkey(verb: str, words: list[str]) -> None:
    from megatron_ultralong.evaluation.commands import PasskeyCommand
    from megatron_ultralong.evaluation.passkey import evaluate_passkey

    _run_retrieval(verb, words, PasskeyCommand, "passkey", evaluate_passkey)


def _run_evaluate_needle(verb: str, words: list[str]) -> None:
    from megatron_ultralong.evaluation.commands import NeedleCommand
    from megatron_ultralong.evaluation.needle import evaluate_needle

    _run_retrieval(verb, words, NeedleCommand, "needle", evaluate_needle)


def _run_retrieval(
    verb: str, words: list[str], command_class: Any, part: str, run: Callable[..., Any]
) -> None:
    """A grid of prompts put to one model, which scores them or writes the answers."""

    def run_grid(config: Any, model: Any, facts: Any, tokenizer: Any, cost: Any) -> None:
        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer.encode(text).tolist()
            return ids

        run(config, model, facts, encode, tokenizer.sha256, cost)

    _run_benchmark(verb, words, command_class, part, run_grid)


def _run_evaluate_ruler(verb: str, words: list[str]) -> None:
    from megatron_ultralong.evaluation.commands import RulerCommand
    from megatron_ultralong.evaluation.ruler.evaluation import evaluate_ruler

    _run_benchmark(verb, words, RulerCommand, "ruler", evaluate_ruler)


def _run_evaluate_lv_eval(verb: str, words: list[str]) -> None:
    from megatron_ultralong.evaluation.commands import LvEvalCommand
    from megatron_ultralong.evaluation.local_benchmarks import evaluate_lv_eval

    _run_benchmark(verb, words, LvEvalCommand, "lv_eval", evaluate_lv_eval)


def _run_evaluate_infinitebench(verb: str, words: list[str]) -> None:
    from megatron_ultralong.evaluation.commands import InfiniteBenchCommand
    from megatron_ultralong.evaluation.local_benchmarks import evaluate_infinitebench

    _run_benchmark(verb, words, InfiniteBenchCommand, "infinitebench", evaluate_infinitebench)


def _run_benchmark(
    verb: str, words: list[str], command_class: Any, part: str, run: Callable[..., Any]
) -> None:
    """A benchmark of one model, which scores rows or writes its answers."""
    from megatron_ultralong.evaluation import models
    from megatron_ultralong.evaluation.prompt_tokenizer import PromptTokenizer

    command = _parse(command_class, verb, words)
    config = getattr(command, part)
    config.check()
    command.cost.check()
    if len(command.models.load) != 1:
        raise InputError(f"{verb} takes one --load, not {len(command.models.load)}")
    (load,) = command.models.load
    facts = models.model_facts(load, command.models.precision)
    tokenizer = PromptTokenizer(models.tokenizer_folder(load))
    is_scored = part in ("choices", "chat") or getattr(config, "by", "decoding") == "argmax"
    opened: Any = models.open_scorers if is_scored else models.open_generators
    with opened(command.models) as (model,):
        run(config, model, facts, tokenizer, command.cost)


def _run_evaluate_choices(verb: str, words: list[str]) -> None:
    from megatron_ultralong.evaluation.choices.evaluation import evaluate_choices
    from megatron_ultralong.evaluation.commands import ChoicesCommand

    _run_benchmark(verb, words, ChoicesCommand, "choices", evaluate_choices)


def _run_evaluate_report(verb: str, words: list[str]) -> None:
    from megatron_ultralong.evaluation.report.command import ReportConfig, evaluate_report

    evaluate_report(_parse(ReportConfig, verb, words))


def _run_evaluate_chat(verb: str, words: list[str]) -> None:
    from megatron_ultralong.evaluation.chat.evaluation import evaluate_chat
    from megatron_ultralong.evaluation.commands import ChatCommand

    _run_benchmark(verb, words, ChatCommand, "chat", evaluate_chat)


def _run_generate(verb: str, words: list[str]) -> None:
    from megatron_ultralong.evaluation.generate import generate
    from megatron_ultralong.generation.config import GenerateConfig

    generate(_parse(GenerateConfig, verb, words))


def _run_doctor(verb: str, words: list[str]) -> None:
    from megatron_ultralong.doctor.diagnosis import diagnose, parse

    if status := diagnose(parse(words)):
        sys.exit(status)


_VERBS: dict[str, tuple[str, Callable[[str, list[str]], None]]] = {
    "prepare": ("documents to packed rows of exactly --seq-length tokens", _run_prepare),
    "prepare chat": ("conversations to packed rows, and what of them is learnt", _run_prepare_chat),
    "convert import": ("a Hugging Face or Meta folder to a Megatron checkpoint", _run_convert),
    "convert export": ("a Megatron checkpoint to a Hugging Face or Meta folder", _run_convert),
    "convert verify": ("compare two models bit by bit, and by logits", _run_convert),
    "convert inspect": ("what a folder or checkpoint holds", _run_convert),
    "pretrain": ("extend the context; under torchrun for several ranks", _run_pretrain),
    "sft": ("instruction tuning on conversations; under torchrun for several ranks", _run_sft),
    "plan": ("memory, time and the layout of a run, before a GPU is taken", _run_plan),
    "evaluate loss": ("loss by position on held-out rows", _run_evaluate_loss),
    "evaluate passkey": ("passkey retrieval by length and depth", _run_evaluate_passkey),
    "evaluate needle": ("a sentence in running text, by length and depth", _run_evaluate_needle),
    "evaluate ruler": ("RULER's tasks by length", _run_evaluate_ruler),
    "evaluate choices": ("multiple-choice questions by likelihood", _run_evaluate_choices),
    "evaluate chat": ("assistant's turns of held-out conversations", _run_evaluate_chat),
    "evaluate lv-eval": ("LV-Eval's sets from a local copy", _run_evaluate_lv_eval),
    "evaluate infinitebench": (
        "InfiniteBench's tasks from a local copy",
        _run_evaluate_infinitebench,
    ),
    "evaluate report": (
        "results of several checkpoints on one page, beside the paper's",
        _run_evaluate_report,
    ),
    "generate": ("continue prompts with a checkpoint, in any layout", _run_generate),
    "doctor": ("whether this machine and job can run the rest, and what to fix", _run_doctor),
}
"""What users type, what it does, and what runs."""

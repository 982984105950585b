"""``ultralong VERB ...``: find the verb, read its options, run it."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.cli.verbs import VERBS, TrainingVerb, Verb, load
from megatron_ultralong.program.ending import PROGRAM, ends_with_message
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import world_size
from megatron_ultralong.program.terminal import PrintableFormatter


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
        name = " ".join(words[:width])
        if name in VERBS:
            run_verb(name, VERBS[name], words[width:])
            return
    first = words[0]
    known = [name for name in VERBS if name.split()[0] == first]
    if known:
        rest = [word for word in words[1:] if not word.startswith("-")]
        if not rest:
            sys.stdout.write(_usage(first))
            return
        raise InputError(f"{first} {rest[0]!r} is not known; known: {', '.join(known)}")
    near = difflib.get_close_matches(first, [name.split()[0] for name in VERBS], n=1)
    perhaps = f"; perhaps `{PROGRAM} {near[0]}`" if near else ""
    raise InputError(
        f"verb {first!r} is not known; known: {', '.join(VERBS)}{perhaps}; see `{PROGRAM} --help`"
    )


def _usage(only: str | None = None) -> str:
    lines = [f"usage: {PROGRAM} VERB ...", ""]
    lines += ["Extend Llama 3.1 models to contexts of 1M-4M tokens.", ""]
    lines += [
        f"  {name:22} {verb.help}"
        for name, verb in VERBS.items()
        if only is None or name.split()[0] == only
    ]
    lines += ["", f"`{PROGRAM} VERB --help` lists the flags of a verb.", ""]
    return "\n".join(lines)


def run_verb(name: str, verb: Verb, words: list[str]) -> None:
    """Read the options of a verb from the words behind it, then import and run it.

    Raises:
        InputError: bad input; SystemExit: help was asked for, or a flag is unknown.
    """
    for variable, value in verb.environment.items():
        os.environ.setdefault(variable, value)
    if verb.takes_words:
        load(verb.run)(words)
    elif isinstance(verb, TrainingVerb):
        _run_training(name, verb, words)
    else:
        options = _parse(verb, name, words)
        load(verb.run)(options)


def _parse(verb: Verb, name: str, words: list[str], default: Any = None) -> Any:
    """The options of a verb, with one flag for each field, in Megatron-LM's spelling."""
    options_class = load(verb.options)
    from megatron_ultralong.config.command_line import parse

    return parse(options_class, f"{PROGRAM} {name}", words, default)


def begin(
    name: str,
    words: list[str],
    recipes: Mapping[str, Callable[[], Any]],
    kind: type[Any],
    flags: str,
) -> tuple[Any, list[str]] | None:
    """What the flags of a run change: a recipe, or ``--config`` and the file of an earlier run.

    Args:
        name: of the verb.
        words: behind it.
        recipes: by name.
        kind: class of configurations that a file may hold.
        flags: of the verb, for its usage.

    Returns:
        A configuration and the words that follow; None: usage was asked for, and is printed.

    Raises:
        InputError: no such recipe, or no such file.
    """
    usage = f"usage: {PROGRAM} {name} RECIPE|--config FILE {flags}; recipes: {', '.join(recipes)}"
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(f"{usage}\n`{PROGRAM} {name} RECIPE --help` lists the flags.\n")
        return None
    if words[0] == "--config":
        from megatron_ultralong.training.config_file import load_config

        if len(words) < 2:
            raise InputError(f"--config needs a file; {usage}")
        return load_config(Path(words[1]), kind), words[2:]
    if words[0] not in recipes:
        raise InputError(f"recipe {words[0]!r} is not known; {usage}")
    return recipes[words[0]](), words[1:]


def _run_training(name: str, verb: TrainingVerb, words: list[str]) -> None:
    """Run what a command line asks for, or show what it would do."""
    beginning = begin(name, words, load(verb.recipes), load(verb.options), "[flags]")
    if beginning is None:
        return
    default, rest = beginning
    options = _parse(verb, name, [word for word in rest if word != "--dry-run"], default)
    load(verb.check_early)(options, world_size())
    if "--dry-run" in rest:
        from megatron_ultralong.training.verbs import dry_run

        sys.stdout.write(dry_run(load(verb.check)(options, world_size())))
        return
    load(verb.run)(options)

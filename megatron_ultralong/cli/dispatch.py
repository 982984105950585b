"""``ultralong VERB ...``: find the verb, read its options, run it."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from megatron_ultralong.cli.meant_verb import (
    kind_comes_first,
    meant_conversion,
    meant_verb,
    verb_comes_first,
)
from megatron_ultralong.cli.start_of_run import (
    HELP_FLAGS,
    begin,
    fields_typed,
    says_who_set,
    with_shorter_warm_up,
    with_start_first,
)
from megatron_ultralong.cli.verbs import VERBS, TrainingVerb, Verb, load
from megatron_ultralong.program import open_files, own_variables, upstream
from megatron_ultralong.program.ending import PROGRAM, ends_with_message, tell
from megatron_ultralong.program.errors import InputError, counted, not_known
from megatron_ultralong.program.exit_status import status_of_start
from megatron_ultralong.program.launch import run_ranks, take_ranks
from megatron_ultralong.program.libraries import lacking
from megatron_ultralong.program.ranks import (
    as_job_of,
    check_current_folder,
    check_start,
    check_variables,
    is_launched,
    is_told_world_size,
    under_torchrun,
    world_size,
)
from megatron_ultralong.program.starting import say_loaded, warn_of_gpus
from megatron_ultralong.program.streams import PrintableFormatter
from megatron_ultralong.program.temporary import check_temporary_folder

FIRST_STEPS = (
    *("doctor", "plan", "prepare", "convert import", "pretrain", "evaluate", "convert export"),
)
"""Verbs in the order that a new user calls them."""
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; bad input ends with one message and exit status 2, docs/running.md has more."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with ends_with_message(), status_of_start() if _starts_ranks(words) else nullcontext():
        level = os.environ.get("ULTRALONG_LOG") or "WARNING"
        if level not in _LEVELS:
            raise InputError(
                f"ULTRALONG_LOG is {level!r} in the environment: use {' or '.join(_LEVELS)}"
            )
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter("%(message)s"))
        logging.basicConfig(level=level, handlers=[handler])
        if not sys.warnoptions and level != "DEBUG":
            upstream.leave_out(handler)
        for line in own_variables.misspelt() if not is_launched() else ():
            tell(line)
        try:
            _run(words)
        except ImportError as error:
            if os.environ.get("ULTRALONG_LOG") == "DEBUG":
                raise
            raise InputError(open_files.told(error) or lacking(error)) from error


def _starts_ranks(words: Sequence[str]) -> bool:
    """Whether these words ask for a job on ranks of this machine, right or wrong."""
    is_asked = any(word.partition("=")[0] == "--ranks" for word in words)
    return is_asked and not {"help", "--dry-run", *HELP_FLAGS} & set(words)


def _run(words: list[str]) -> None:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if asked := [word for word in words if word in HELP_FLAGS]:  # --help prepare, prepare -h chat
        words = [*(word for word in words if word not in HELP_FLAGS), asked[0]]
    if not words or words[0] in HELP_FLAGS:
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
    if first.startswith("-"):
        raise InputError(verb_comes_first(words))
    known = [name for name in VERBS if name.split()[0] == first]
    if known:
        rest = [word for word in words[1:] if not word.startswith("-")]
        if not rest:
            sys.stdout.write(_usage(first))
            return
        kinds = [name.split()[1] for name in known]
        if words[1].startswith("-"):
            raise InputError(kind_comes_first(words, kinds))
        if meant := meant_conversion(words):
            raise InputError(meant)
        raise InputError(not_known(first, rest[0], kinds))
    what = not_known("verb", first, VERBS, meant_verb(words))
    raise InputError(f"{what}; see `{PROGRAM} --help`")


def _usage(only: str | None = None) -> str:
    lines = [f"usage: {PROGRAM} {f'{only} ' if only else ''}VERB ...", ""]
    if only is None:
        lines += ["Extend Llama 3.1 models to contexts of 1M-4M tokens.", ""]
    lines += [
        f"  {name:22} {verb.help}"
        for name, verb in VERBS.items()
        if only is None or name.split()[0] == only
    ]
    if only is None:
        lines += ["", f"first steps: {', '.join(FIRST_STEPS)}"]
    lines += ["", f"`{PROGRAM} help VERB` shows the examples and flags of a verb.", ""]
    return "\n".join(lines)


def run_verb(name: str, verb: Verb, words: list[str]) -> None:
    """Read the options of a verb from the words behind it, then import and run it.

    Raises:
        InputError: bad input; SystemExit: a flag is unknown.
    """
    if verb.recipes:
        words = with_start_first(name, verb, words)
    if any(word in HELP_FLAGS for word in words) or (verb.recipes and not words):
        _write_help(name, verb, words)
        return
    check_current_folder()
    if verb.is_for_ranks:
        _check_environment()
    for variable, value in verb.environment.items():
        os.environ.setdefault(variable, value)
    if verb.takes_words:
        load(verb.run)(words)
        return
    check_temporary_folder()
    ranks, words = take_ranks(words) if verb.is_for_ranks else (None, words)
    is_told = bool(ranks) or "--dry-run" in words or not verb.is_for_ranks
    with nullcontext() if is_told else _says_stale_size(), as_job_of(ranks):
        options = _checked(name, verb, words)
    if options is None:
        return
    if ranks:
        saves = isinstance(verb, TrainingVerb)
        way_on = (lambda: load("training.earlier_start:way_on")(options.save)) if saves else str
        if status := run_ranks([*name.split(), *words], ranks, saves=saves, way_on=way_on):
            sys.exit(status)
        return
    if verb.is_for_ranks:
        check_start()
        if under_torchrun():  # until their first other line, half a minute later
            ranks_there = counted(world_size(), "rank")
            tell(f"{PROGRAM}: starting {ranks_there}: loading libraries ...")
    run = _load_run(verb)
    say_loaded()
    if verb.is_for_ranks and (torch := sys.modules.get("torch")):
        warn_of_gpus(torch.cuda.device_count())
    run(options)


def _check_environment() -> None:
    """Check the variables and the limit of files of a job; tell of what chooses how it computes."""
    check_variables()
    open_files.raise_limit()
    open_files.check_limit()
    if not is_launched():
        for line in (*own_variables.kernel_asked(), *own_variables.products_rounded()):
            tell(line)


@contextmanager
def _says_stale_size() -> Iterator[None]:
    """Add to a message that what it refuses was checked for ranks that nothing has started."""
    try:
        yield
    except InputError as error:
        if world_size() == 1 or under_torchrun():
            raise
        raise InputError(
            f"{error}; this is checked for {counted(world_size(), 'rank')}, by WORLD_SIZE in the "
            "environment: `unset WORLD_SIZE` if no launcher has set it"
        ) from error


def _load_run(verb: Verb) -> Any:
    """What a verb runs, imported."""
    if not verb.is_for_ranks:
        return load(verb.run)
    from megatron_ultralong.mcore.cpu import compile_at_first_call

    with compile_at_first_call():
        return load(verb.run)


def _checked(name: str, verb: Verb, words: list[str]) -> Any:
    """The options of a verb, checked as far as files and flags tell; None: all is said."""
    if not isinstance(verb, TrainingVerb):
        options = _parse(
            verb, name, words, load(verb.default_of)(words) if verb.default_of else None
        )
        check = load(verb.check_early) if verb.check_early else lambda options, num_ranks: None
        return None if check(options, world_size()) is True else options
    options, default, num_ranks, how = read_training(name, verb, words)
    with says_who_set(words, default):
        run = load(verb.check_early)(options, num_ranks)
    # Before ranks are started: one that ends by itself would leave the others waiting for it.
    if options.save and not under_torchrun():
        save = Path(options.save)
        load("program.owner:check_not_owned")(save, f"--save {save}", is_patient=False)
    if how and not is_launched():  # there it was told before the ranks were started
        tell(how)
    if "--dry-run" not in words:
        ends_here = load("training.saving.finished:ends_here")
        return None if not is_launched() and ends_here(run) else options
    from megatron_ultralong.training.verbs import dry_run

    sys.stdout.write(dry_run(load(verb.check)(options, num_ranks), num_ranks))
    return None


def _parse(verb: Verb, name: str, words: list[str], default: Any = None) -> Any:
    """The options of a verb, with one flag for each field, in Megatron-LM's spelling."""
    options_class = load(verb.options)
    from megatron_ultralong.config.command_line import parse

    return parse(options_class, f"{PROGRAM} {name}", words, default)


def _write_help(name: str, verb: Verb, words: list[str]) -> None:
    """Write the help; the values of a recipe or a file are its defaults where one is named."""
    from megatron_ultralong.cli.help import help_text

    options = load(verb.options)
    recipes = load(verb.recipes) if verb.recipes else {}
    default = None
    if recipes and words and (words[0] == "--config" or not words[0].startswith("-")):
        default, _ = begin(name, words, recipes, load("config.training:TrainingConfig"))
        if not isinstance(default, options):
            default = options(default)
    runs = [recipe() for recipe in recipes.values()] if default is None else []
    runs = [run if isinstance(run, options) else options(run) for run in runs]
    text = help_text(name, options, default, recipes, runs, with_all="--help-all" in words)
    sys.stdout.write(text)


def read_training(name: str, verb: TrainingVerb, words: list[str]) -> tuple[Any, Any, int, str]:
    """The options of a training, what its flags have changed, and the ranks to check it for.

    Last how a recipe came to values that it does not have as they are, a line; or empty.

    Raises:
        InputError: bad input.
    """
    default, rest = begin(name, words, load(verb.recipes), load(verb.options))
    flags = [word for word in rest if word != "--dry-run"]
    options = _parse(verb, name, flags, default)
    num_ranks = world_size()
    if "--dry-run" in rest and not is_told_world_size():
        replica, log = options.parallel.model_parallel_size, options.log
        least = max(log.profile_ranks, default=0) + 1 if log.profile else 1
        num_ranks = replica * -(-least // replica)  # the fewest possible; it says so
    how = ""
    if words[0] in load("config.recipes:EXTENSIONS"):
        from megatron_ultralong.cli.extension import Source, derived

        found = load("training.earlier_start:load_source")(options)
        source = Source(options.load, found.model, found.rope_scaling)
        default, told = derived(words[0], options, fields_typed(words), num_ranks, source)
        options = _parse(verb, name, flags, default)
        how = told(options)
    elif words[0] != "--config":
        total = load("training.early_checks:planned_iterations")(options)
        options, how = with_shorter_warm_up(words, options, total)
    return options, default, num_ranks, how

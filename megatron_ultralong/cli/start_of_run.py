"""What a run starts from: a recipe, or ``--config FILE``, wherever it stands in a command."""

import itertools
import re
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.cli.origin import fields_typed
from megatron_ultralong.cli.verbs import VERBS, TrainingVerb, Verb, load
from megatron_ultralong.config.flags import check_dashes, flags_of, given_flags
from megatron_ultralong.config.parser_errors import unknown_flag
from megatron_ultralong.config.plain_values import with_fields
from megatron_ultralong.program.ending import PROGRAM
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.names import with_home
from megatron_ultralong.program.not_known import not_known

HELP_FLAGS = ("-h", "--help", "--help-all")
_NO_VALUE = ("--dry-run", *HELP_FLAGS)


def with_start_first(verb: str, its: Verb, words: Sequence[str]) -> list[str]:
    """A command line whose recipe, or ``--config FILE``, stands before the flags.

    Of the words that no flag takes the recipe is the one that is a recipe's name, or the first.

    Raises:
        InputError: several starts are given; there is none, and a flag is misspelt.
    """
    flags = {name: flag.usage for flag in flags_of(load(its.options)) for name in flag.names}
    check_dashes(words, flags)
    free, files, rest = _parted(words, flags)
    starts = [word for word in free if word in load("config.recipes:RECIPES")]
    starts += [f"--config {file}" for file in files]
    if len(starts) > 1:
        raise InputError(
            f"{' and '.join(starts)} each say what the run starts from: give one recipe, or one "
            f"--config FILE, as in `{PROGRAM} {verb} {starts[0]} ...`"
        )
    if files:
        return ["--config", *(file for file in files if file), *free, *rest]
    if free:
        first = starts[0] if starts else free[0]
        free.remove(first)
        return [first, *free, *rest]
    known = [*flags, "--config", "--dry-run", "--ranks"]
    unknown = [flag for flag in given_flags(words) if flag.replace("_", "-") not in known]
    if unknown and isinstance(its, TrainingVerb) and not {*words} & {*HELP_FLAGS}:
        texts = "; ".join(unknown_flag(flag, known) for flag in unknown)
        raise InputError(f"{texts}; see `{PROGRAM} {verb} --help`")
    return rest


def _parted(
    words: Sequence[str], usages: Mapping[str, str]
) -> tuple[list[str], list[str], list[str]]:
    """Words that no flag takes, files of ``--config`` (empty: it has none), and the others."""
    recipes, left = load("config.recipes:RECIPES"), deque(words)
    free: list[str] = []
    files: list[str] = []
    rest: list[str] = []
    while left:
        word = left.popleft()
        flag, is_joined, value = word.partition("=")
        flag = flag.replace("_", "-")
        if not word.startswith("--") and word not in HELP_FLAGS:
            free.append(word)
        elif flag == "--config":
            has_one = not is_joined and left and not left[0].startswith("--")
            files.append(left.popleft() if has_one else value)
        else:
            rest.append(word)
            usage = usages.get(flag, "")
            is_alone = is_joined or flag in _NO_VALUE or usage.count("--") > 1
            most, taken = 0 if is_alone else len(left) if usage.endswith("...") else 1, 0
            while taken < most and left and not left[0].startswith("--"):
                if left[0] in recipes and (taken or not usage):
                    break  # no further value, and none of a flag that is not known
                rest.append(left.popleft())
                taken += 1
    return free, files, rest


def begin(
    verb: str, words: list[str], recipes: Mapping[str, Callable[[], Any]], kind: type[Any]
) -> tuple[Any, list[str]]:
    """What the flags of a run change: a recipe, or ``--config`` and the file of an earlier run.

    A file may hold a configuration of class ``kind``.

    Returns:
        A configuration and the words that follow.

    Raises:
        InputError: no such recipe, or no such file; two flags say how long the run is.
    """
    if words[0] == "--config":
        from megatron_ultralong.training.config_file import load_config

        if len(words) < 2 or words[1].startswith("--"):
            raise InputError("--config needs a file: the config.yaml of an earlier run")
        run = _with_typed_end(load_config(Path(with_home(words[1])), kind), words[2:])
        if run.train_iters and run.train_tokens and "train_tokens" not in fields_typed(words):
            raise InputError(
                f"{words[1]}: train_iters ({run.train_iters}) and train_tokens "
                f"({run.train_tokens:,.9g}) both set the length of the run: set one of them to 0"
            )
        return run, words[2:]
    if words[0] not in recipes:
        raise InputError(_no_recipe(verb, words[0], recipes))
    return _with_typed_end(recipes[words[0]](), words[1:]), words[1:]


def _with_typed_end(run: Any, flags: Sequence[str]) -> Any:
    """A run that ends where a flag says so, whatever its recipe or file says of iterations.

    Raises:
        InputError: two flags do.
    """
    typed = {}
    for word, behind in itertools.pairwise([*flags, ""]):
        flag, is_one, value = word.partition("=")
        if flag.startswith("--"):
            typed[flag[2:].replace("-", "_")] = value if is_one else behind
    ends = [  # of the verb's own; 0 says that another does
        name
        for name in ("train_iters", "train_tokens", "num_epochs")
        if hasattr(run, name) and typed.get(name, "").strip("0.")
    ]
    if len(ends) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in ends[:2])
        raise InputError(f"{first} and {second} both set the length of the run: give one of them")
    if "num_epochs" in ends:
        return with_fields(run, train_iters=0, train_tokens=0.0)
    if ends and hasattr(run, "num_epochs"):
        run = with_fields(run, num_epochs=type(run).num_epochs)
    return with_fields(run, train_tokens=0.0) if "train_iters" in ends else run


def _no_recipe(verb: str, word: str, recipes: Iterable[str]) -> str:
    """What is wrong with a word that stands where a recipe should."""
    if word.startswith("-"):
        return (
            f"no recipe given: write `{PROGRAM} {verb} RECIPE {word} ...`, or `{PROGRAM} {verb} "
            f"--config FILE ...`; recipes: {', '.join(recipes)}"
        )
    for other, its in VERBS.items():
        if isinstance(its, TrainingVerb) and word in load(its.recipes):
            return (
                f"{word} is a recipe of `{PROGRAM} {other}`, not of `{PROGRAM} {verb}`, whose "
                f"recipes are: {', '.join(recipes)}"
            )
    if verb == "plan" and word in load("model.shape:MODELS"):
        return f"{word} is a model, and no recipe: write `{PROGRAM} plan extend --model {word} ...`"
    if Path(word).exists():
        flag = "--config" if Path(word).is_file() else "--model" if verb == "plan" else "--load"
        usage = "RECIPE " * (flag != "--config") + f"{flag} {shlex.quote(word)}"
        return (
            f"{word} is not a recipe but a {'file' if flag == '--config' else 'folder'}: write "
            f"`{PROGRAM} {verb} {usage} ...`; recipes: {', '.join(recipes)}"
        )
    what = not_known("recipe", word, recipes)
    if (length := re.search(r"(?<![\w.])\d+[KMkm]$", word)) and "extend" in recipes:
        what += (
            f"; for rows of any length: `{PROGRAM} {verb} extend --seq-length {length[0].upper()}`"
        )
    return f"{what}; or --config FILE"

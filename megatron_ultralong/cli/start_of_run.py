"""What a run starts from: a recipe, or ``--config FILE``; and what a message says it has set."""

import contextlib
import dataclasses
import itertools
import re
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.cli.verbs import VERBS, TrainingVerb, Verb, load
from megatron_ultralong.config import parser_errors, plain_values, recipes
from megatron_ultralong.config.flags import check_dashes, check_one_folder, flags_of, given_flags
from megatron_ultralong.program.ending import PROGRAM
from megatron_ultralong.program.errors import InputError, not_known, shown
from megatron_ultralong.program.names import with_home

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
    check_one_folder(words, "--data-path", load("config.recipes:RECIPES"))
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
        texts = "; ".join(parser_errors.unknown_flag(flag, known) for flag in unknown)
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
        return plain_values.with_fields(run, train_iters=0, train_tokens=0.0)
    if ends and hasattr(run, "num_epochs"):
        run = plain_values.with_fields(run, num_epochs=type(run).num_epochs)
    return plain_values.with_fields(run, train_tokens=0.0) if "train_iters" in ends else run


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


_FOLDERS = ("load", "save", "data_path")
"""A message that names them has the path."""
_WORKED_OUT = {
    "context_parallel_size": "all ranks (--ranks, --gpus) over tensor and pipeline parallel sizes",
    "seq_length": "of the rows, or --seq-length",
    "global_batch_size": "rows over iterations, a multiple of the ranks'",
    "sequence_parallel": "on with tensor parallelism",
}
"""Where a recipe of any length has a value from that it does not set itself."""


@contextlib.contextmanager
def says_who_set(words: Sequence[str], start: Any) -> Iterator[None]:
    """Add to a message which of its fields a recipe or a file set, and no flag.

    ``num_attention_heads (4) must be divisible by tensor_model_parallel_size (8): ...; the recipe
    llama3.1-8b-1m sets tensor_model_parallel_size 8``.

    ``words`` are behind the verb; the flags among them change ``start``.

    Raises:
        InputError: as it was raised inside, with more text.
    """
    try:
        yield
    except InputError as error:
        typed, text, is_any = fields_typed(words), str(error), words[0] in recipes.EXTENSIONS
        found = [
            f"{name} {value if isinstance(value, str) else shown(value)}"
            + (f" ({_WORKED_OUT[name]})" if is_any and name in _WORKED_OUT else "")
            for name, value in _set_by(start).items()
            if name not in typed and name not in _FOLDERS and _names(text, name)
        ]
        if not found:
            raise
        who = words[1] if words[0] == "--config" else f"the recipe {words[0]}"
        told = ", ".join(found)
        if is_any:
            raise InputError(f"{error}; {who} works out {told}") from error
        raise InputError(f"{error}; {who} sets {told}") from error


def _names(text: str, field: str) -> bool:
    """Whether a message names a field: ``lr (3)``, ``seq_length``, ``--seq-length``, not "save"."""
    flag = re.escape("--" + field.replace("_", "-"))
    name = re.escape(field) + ("" if "_" in field else r"(?= [('])")
    return re.search(rf"(?<![\w-])(?:{flag}(?![\w-])|{name}(?!\w))", text) is not None


def fields_typed(words: Sequence[str]) -> frozenset[str]:
    """Fields that a command line has flags for: ``--seq-length=4 -> seq_length``."""
    typed = {flag[2:].replace("-", "_") for flag in given_flags(words)}
    return frozenset(typed | {name.removeprefix("no_") for name in typed})


def with_shorter_warm_up(words: Sequence[str], config: Any, total: int) -> tuple[Any, str]:
    """``config``, whose warm-up is half of a run that is not longer than its recipe's.

    So a trial needs ``--train-iters`` or ``--train-tokens`` alone. A warm-up that was typed stays,
    and may be refused.

    ``total`` are iterations of its run; 0: not known.

    Returns:
        The configuration, and a line that says so; empty where nothing had to give way.
    """
    warm_up = config.optimizer.lr_warmup_iters
    if not 0 < total <= warm_up or "lr_warmup_iters" in fields_typed(words):
        return config, ""
    optimizer = dataclasses.replace(config.optimizer, lr_warmup_iters=total // 2)
    text = f"half of train_iters ({total}), where the recipe {words[0]} has {warm_up}"
    config = dataclasses.replace(config, optimizer=optimizer)
    return config, f"lr_warmup_iters is {total // 2}, {text}"


def _set_by(start: Any) -> dict[str, Any]:
    """What a recipe or a file has that is not its class's default, by the name of the field."""
    plain = type(start)()
    found: dict[str, Any] = {}
    for field in dataclasses.fields(start):
        value, default = getattr(start, field.name), getattr(plain, field.name)
        if dataclasses.is_dataclass(value):
            found |= _set_by(value)
        elif value != default:
            found[field.name] = value
    return found

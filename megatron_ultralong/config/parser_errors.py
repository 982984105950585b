"""What the parser of flags refuses, as one message of this program.

tyro draws boxes of many lines. Newer releases (1.0.17 does) tell a hook what is wrong before
they do; the module is private, so it is probed, and without it the boxes stay.
"""

import ast
import contextlib
import importlib
import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from megatron_ultralong.config.flags import Flag, given_flags
from megatron_ultralong.program.errors import InputError, nearest, not_known, shown

ELSEWHERE: dict[str, tuple[str, ...]] = {
    other: flags
    for flags, others in (
        (("--tensor-model-parallel-size",), "--tp --tp-size --tensor-parallel-size"),
        (("--pipeline-model-parallel-size",), "--pp --pp-size --pipeline-parallel-size"),
        (("--context-parallel-size",), "--cp --cp-size --cp-degree"),
        (
            ("--gpus", "--ranks"),
            "--nproc --nproc-per-node --num-gpus --n-gpus --gpus --ranks --num-processes",
        ),
        (
            ("--seq-length", "--lengths"),
            "--context-length --max-length --max-seq-length --max-seq-len",
        ),
        (("--train-iters",), "--iters --steps --max-steps --num-steps --train-steps"),
        (("--num-epochs", "--train-tokens"), "--epochs --num-train-epochs"),
        (("--lr",), "--learning-rate"),
        (("--lr-warmup-iters",), "--warmup-steps --warmup-iters"),
        (("--global-batch-size", "--max-batch-size"), "--batch-size --train-batch-size"),
        (("--micro-batch-size",), "--per-device-train-batch-size"),
        (("--precision", "--dtype"), "--bf16 --fp32 --dtype --torch-dtype"),
        (("--save", "--output"), "--output --output-dir --out --save-dir"),
        (("--load", "--model"), "--model --model-path --model-name-or-path --checkpoint --ckpt"),
        (("--data-path", "--source"), "--data --dataset --input --data-dir --train-data"),
        (("--max-new-tokens", "--train-tokens"), "--max-tokens --num-tokens"),
    )
    for other in others.split()
}
"""What other programs call a flag, and what it may be here: the first that the verb has."""
_BLENDS = (
    "several sources are written to the rows of one folder by `ultralong prepare`, with one "
    "--source for each; --data-path takes that folder"
)
_TOKENIZER = "the tokenizer is that of the rows and of the checkpoint"
INSTEAD = {
    "--split": "`ultralong prepare` divides the documents, by --valid-fraction and --test-fraction",
    **dict.fromkeys(
        ("--train-data-path", "--valid-data-path", "--test-data-path"),
        "the folder of --data-path has the rows of all splits, as `ultralong prepare` wrote them",
    ),
    **dict.fromkeys(("--data-args-path", "--per-split-data-args-path"), _BLENDS),
    "--data-cache-path": "rows are read as they were prepared, and need no cache",
    **dict.fromkeys(("--tokenizer-type", "--tokenizer-model", "--vocab-file"), _TOKENIZER),
}
"""What is done instead of an argument of Megatron-LM's data sets, which no verb of training has."""
_NUMBERS = {
    "invalid literal for int() with base 10: ": "a whole number",
    "could not convert string to float: ": "a number",
}
"""Beginnings of what Python says of a text, and what was wanted."""
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_LIST = re.compile(rf"\[{_QUOTED}(?:, {_QUOTED})*\]")
"""A list of texts as Python shows it; the texts may have brackets: ``['[8192]']``."""
_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "INT": ("whole number", int),
    "FLOAT": ("number", float),
}
"""Kinds of values, by the word that the help has for them."""


@contextlib.contextmanager
def parser_errors(flags: Iterable[Flag], program: str, words: Sequence[str]) -> Iterator[None]:
    """Raise what tyro refuses inside as an InputError.

    Raises:
        InputError: a flag is unknown, missing, or has no value of its kind.
    """

    def refuse(event: Any) -> None:
        known = {name: flag.description for flag in flags for name in flag.names}
        given = given_flags(words)
        unknown = [flag for flag in given if flag.replace("_", "-") not in known]
        text = _text(event, known, unknown, given)
        if not unknown and type(event).__name__ == "UnrecognizedArgs":
            text = _expanded(event.tokens, words) or text
        if text:
            raise InputError(f"{text}; see `{program} --help`")

    with _hooked(refuse):
        yield


def _hooked(hook: Callable[[Any], None]) -> contextlib.AbstractContextManager[Any]:
    try:
        register = importlib.import_module("tyro._errors").on_parse_error
    except (ImportError, AttributeError):
        return contextlib.nullcontext()
    return cast(contextlib.AbstractContextManager[Any], register(hook))


def _text(event: Any, flags: dict[str, str], unknown: Sequence[str], given: Sequence[str]) -> str:
    """Of an event of tyro; empty for one that is not known here, which tyro then tells."""
    kind, parts = type(event).__name__, [unknown_flag(flag, flags) for flag in unknown]
    if kind == "UnrecognizedArgs" and not parts:
        parts = [_stray(event.tokens, [one for one in flags if one not in given])]
    elif kind == "MissingArgs":
        names = [_name(one.arg) for one in event.missing_arguments]
        parts += [f"{name} is needed{_what(flags.get(name))}" for name in names]
    elif kind == "InvalidChoice":
        name, meant = _name(event.argument), _CHATML.get(event.value.lower())
        is_template = name == "--chat-template" and meant in event.choices
        text = not_known(name, event.value, event.choices, meant if is_template else None)
        parts.append(f"{text}{_CHATML_TOKENS}" if is_template else text)
    elif kind == "BadValue":
        name, value = _name(event.argument), event.offending_value
        needs = "needs a value" if name.startswith("-") else "is needed"
        rule = f"{needs}{_what(flags.get(name))}"
        parts.append(f"{name} {rule if value is None else f'takes no value, not {shown(value)}'}")
    elif kind == "InstantiationFailure" and event.argument is not None:
        message = " ".join(str(event.message).split())
        parts.append(_name(event.argument) + _no_value(message, event.argument.lowered.metavar))
    return "; ".join(parts)


_CHATML = {"chat-ml": "chatml", "chat_ml": "chatml", "im_start": "chatml", "qwen": "qwen2.5"}
"""What other programs call a chat template, and its name here."""
_CHATML_TOKENS = (
    "; chatml and qwen2.5 are for a tokenizer that has <|im_start|> and <|im_end|>; plain "
    "is for one without tokens of turns"
)
_HELP = ("--help", "--help-all")
_FIRST_FLAGS = ("--prompt", "--source", "--load")
"""What a word without a flag was probably meant for, where a verb has one of them."""


def _stray(words: Sequence[str], flags: Iterable[str]) -> str:
    """What is said of words that none of the flags takes, those left that are not there: a folder
    is a model, other text a prompt.
    """
    known = [one for one in _FIRST_FLAGS if one in flags]
    flag = known[-1 if os.path.isdir(words[0]) else 0] if known else ""
    value = words[0]
    if flag == "--source" and "=" not in value:
        value = f"{Path(value).name.split('.')[0] or 'data'}={value}"
    meant = f"; perhaps you meant {flag} {value}" if flag else ""
    return f"{' '.join(map(shown, words))}: no flag takes it{meant}"


_MOST_NAMES = 3
"""Of a list of files in a message."""


def _expanded(strays: Sequence[str], words: Sequence[str]) -> str:
    """What is said of files behind the value of ``--source``: they were one pattern; else empty."""
    files = [Path(word) for word in itertools.takewhile(os.path.exists, strays)]
    place = next((i for i, word in enumerate(words) if word == "--source"), len(words))
    behind = words[place + 2 : place + 2 + len(files)]
    if not files or [*map(str, files)] != [*map(str, map(Path, behind))]:
        return ""
    files.insert(0, Path(words[place + 1]))
    folders, suffixes = ({str(getattr(f, part)) for f in files} for part in ("parent", "suffix"))
    pattern = f"*{suffixes.pop()}" if len(suffixes) == 1 else "*"
    if len(folders) == 1:
        pattern = str(Path(folders.pop()) / pattern)
    named = ", ".join(shown(str(file)) for file in files[:_MOST_NAMES])
    rest = f" and {len(files) - _MOST_NAMES:,} more" if len(files) > _MOST_NAMES else ""
    return (
        f"--source takes one value, not {len(files):,} ({named}{rest}), which the shell made of a "
        f"pattern without quotes: --source own={shlex.quote(pattern)}"
    )


_OF_BARE = ("--load", "--model", "--input", "--source", "--src", "--run", "--runs", "--results")
"""What may be typed before an argument that has no flag."""


def unknown_flag(flag: str, flags: Iterable[str]) -> str:
    """What is said of a flag that is none of ``flags``."""
    flags = list(flags)
    plain = flag.replace("_", "-")
    if plain in INSTEAD and "--data-path" in flags:
        return f"{flag} is not known: {INSTEAD[plain]}"
    near = _nearest_flag(flag, flags)
    bare = next((one for one in flags if not one.startswith("-")), "")
    if bare and flag in _OF_BARE:
        return f"{flag} is not known; {bare} stands without a flag"
    return f"{flag} is not known" + (f"; perhaps you meant {near}" if near else "")


def _nearest_flag(flag: str, flags: Iterable[str]) -> str | None:
    """Also what other programs call it, and one that it is a part of: ``--iters``."""
    known = {*flags, *_HELP}
    if "--load" in known:  # taken before the others
        known.add("--ranks")
    plain = flag.lower().replace("_", "-")
    if meant := [one for one in ELSEWHERE.get(plain, ()) if one in known]:
        return meant[0]
    return nearest(plain, sorted(known))


def _no_value(reason: str, metavar: str) -> str:
    """What is said of a text that is no value of a flag, in plain words."""
    given = _LIST.search(reason)  # of several values, or of one of several kinds
    kinds = [kind for kind in _READERS if kind in metavar]
    if given and kinds:
        is_several = "..." in metavar
        wanted = [_READERS[kind][0] for kind in kinds]
        wanted = [f"{one}s" if is_several else f"a {one}" for one in wanted]
        wanted += [one for one in re.findall(r"\{(.*?)\}", metavar) if one != "None"]
        values = ast.literal_eval(given[0])
        wrong = next((one for one in values if not _is_read(one, kinds)), values[0])
        is_list = any(bracket in wrong for bracket in "[]()")
        spaces = ": spaces stand between several" + ", without brackets" * is_list
        spaces *= is_several and (is_list or "," in wrong)
        return f" must be {' or '.join(wanted)}, not {shown(wrong)}{spaces}"
    for begin, number in _NUMBERS.items():
        if reason.startswith(begin):
            return f" must be {number}, not {reason.removeprefix(begin)}"
    return f": {reason}"


def _is_read(text: str, kinds: Sequence[str]) -> bool:
    for kind in kinds:
        with contextlib.suppress(ValueError):
            _READERS[kind][1](text)
            return True
    return False


def _name(argument: Any) -> str:
    """Of tyro's description of an argument: its flag, or the word in its place."""
    if argument.is_positional():
        return str(argument.lowered.metavar)
    return str(max(argument.lowered.name_or_flags, key=len))


def _what(text: str | None) -> str:
    """The first sentence of a flag's description, behind a colon."""
    sentence = (text or "").split(". ")[0].rstrip(".")
    return f": {sentence}" if sentence else ""

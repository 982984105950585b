"""Commands of our programs in shell text, and the flags that the programs have."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import re
import shlex

from megatron_ultralong import cli
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES, SFT_RECIPES
from megatron_ultralong.dropin.arguments import DropInConfig
from tests.docs.blocks import ROOT

FLAG = re.compile(r"--[a-z][a-z0-9_-]*[a-z0-9]")
_ENDS = {"|", "||", "&&", ";", "&", ">", ">>", "2>", "<", "do", "done", "then", "fi", ")", "}"}


@dataclasses.dataclass(frozen=True)
class Command:
    """One call of a program of this project: ``("convert import", ["--no-verify"])``."""

    verb: str
    """The verb, ``torchrun``, or a script of this repository."""
    flags: tuple[str, ...]


def commands(text: str) -> list[Command]:
    """The calls of our programs in shell text."""
    found: list[Command] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        found += _line_commands(_split(line))
    return found


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:  # a quote that continues in the next line
        words = line.split()
    return [word for part in words for word in part.strip("()`").split() or [""]]


def _line_commands(words: list[str]) -> list[Command]:
    found = []
    for place, word in enumerate(words):
        rest = words[place + 1 :]
        if word.split("/")[-1] == "ultralong" or (
            word == "megatron_ultralong" and words[place - 1] == "-m"
        ):
            found.append(_verb_command(rest))
        elif word.split("/")[-1] == "torchrun":
            program = (at for at, its in enumerate(rest) if its == "-m" or its.endswith(".py"))
            stop = next(program, len(rest))
            found.append(Command("torchrun", _flags(rest[:stop])))
        elif re.fullmatch(r"(tools|examples|benchmarks)/[\w/.-]+\.py", word):
            arguments = _until_end(rest)
            if word in _TOOLS and not (arguments and arguments[0].startswith("-")):
                found.append(_verb_command([*_TOOLS[word], *rest]))
            else:
                its = _flags(rest)
                if word in _INSIDE_MEGATRON_LM:
                    its = tuple(flag for flag in its if flag.startswith("--ultralong-"))
                found.append(Command(word, its))
    return [command for command in found if command is not None]


_INSIDE_MEGATRON_LM = {"examples/pretrain_gpt.py", "examples/pretrain_gpt_ultralong.py"}
"""Their other flags are Megatron-LM's, which tests/dropin/test_page.py runs."""
_TOOLS = {
    "tools/preprocess_data.py": ["prepare"],
    "tools/convert_checkpoint.py": ["convert"],
    "tools/evaluate.py": ["evaluate"],
}


def _verb_command(words: list[str]) -> Command | None:
    arguments = _until_end(words)
    for width in (2, 1):
        verb = " ".join(arguments[:width])
        if verb in cli.VERBS:
            return Command(verb, _flags(arguments))
    first = arguments[0] if arguments else ""
    known = {name.split()[0] for name in cli.VERBS}
    if re.fullmatch(r"[a-z]+", first) and first not in known:
        return Command(first, ())  # no verb: the test says so
    return None


def _until_end(words: list[str]) -> list[str]:
    ends = [place for place, word in enumerate(words) if word in _ENDS or word.startswith("#")]
    return words[: min(ends, default=len(words))]


def _flags(words: list[str]) -> tuple[str, ...]:
    return tuple(
        match.group() for word in _until_end(words) if (match := FLAG.match(word)) is not None
    )


@functools.cache
def known_flags(verb: str) -> frozenset[str]:
    """Flags of a verb, of ``torchrun`` or of a script of this project, as their help has them."""
    if verb == "torchrun":
        from torch.distributed.run import get_args_parser

        return frozenset(
            option for action in get_args_parser()._actions for option in action.option_strings
        )
    if verb.endswith(".py"):
        return _script_flags(verb)
    words = [*verb.split(), *_RECIPES.get(verb, ()), "--help"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        cli.main(words)
    return frozenset(FLAG.findall(shown.getvalue())) | {
        "--help",
        *_OF_THE_COMMAND_LINE.get(verb, ()),
    }


_RECIPES = {verb: [next(iter(PRETRAIN_RECIPES))] for verb in ("pretrain", "plan")}
_RECIPES["sft"] = [next(iter(SFT_RECIPES))]
"""Verbs whose flags are shown once a recipe is named."""
_OF_THE_COMMAND_LINE: dict[str, tuple[str, ...]] = {
    "plan": ("--config",),
    **{verb: ("--config", "--dry-run") for verb in ("pretrain", "sft")},
}
"""Flags that ``cli`` takes before the configuration's."""


def _script_flags(script: str) -> frozenset[str]:
    """Strings that look like flags in the script, and in packages beside it that it imports."""
    path = ROOT / script
    assert path.is_file(), f"{script} does not exist"
    if script in _INSIDE_MEGATRON_LM:
        names = [field.name for field in dataclasses.fields(DropInConfig)]
        return frozenset("--ultralong-" + name.replace("_", "-") for name in names)
    texts = [path.read_text(encoding="utf-8")]
    for package in set(re.findall(r"^from (\w+)", texts[0], flags=re.MULTILINE)):
        texts += [part.read_text(encoding="utf-8") for part in (path.parent / package).glob("*.py")]
    return frozenset(re.findall(r'"(--[a-z][a-z0-9-]*)"', "".join(texts))) | {"--help"}

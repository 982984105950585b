"""What verb was meant by words that are none."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from megatron_ultralong.cli.verbs import VERBS
from megatron_ultralong.program.ending import PROGRAM
from megatron_ultralong.program.errors import nearest

ELSEWHERE = {
    "chat": "generate --chat",
    **dict.fromkeys(("infer", "inference", "complete", "sample"), "generate"),
    **dict.fromkeys(("train", "extend", "continue"), "pretrain"),
    **dict.fromkeys(("finetune", "fine-tune", "tune", "instruct"), "sft"),
    **dict.fromkeys(("tokenize", "preprocess", "pack", "data"), "prepare"),
    **dict.fromkeys(("benchmark", "bench", "test"), "evaluate"),
    **dict.fromkeys(("check", "env", "version"), "doctor"),
    **dict.fromkeys(("estimate", "memory"), "plan"),
}
"""What other programs call these verbs, where no name is near."""


def meant_verb(words: Sequence[str]) -> str | None:
    """The verb that unknown words stand for: ``eval loss -> evaluate loss``; None: not known."""
    first, second = words[0], next((w for w in words[1:2] if not w.startswith("-")), "")
    by_group: dict[str, list[str]] = {}
    for name in VERBS:
        head, *tail = name.split(maxsplit=1)
        by_group.setdefault(head, []).extend(tail)
    if first in ELSEWHERE:
        return ELSEWHERE[first]
    whole = [name for name in VERBS if first == name.split()[-1]]
    if whole:  # passkey: the second word alone
        return whole[0]
    near = nearest(first, by_group)
    if near is None or not second:
        return near
    last = nearest(second, by_group[near])
    return f"{near} {last}" if last else near


def verb_comes_first(words: Sequence[str]) -> str:
    """What a message says of flags before the verb: ``--load b pretrain small``."""
    flags = f"{words[0]} stands before the verb, which comes first: write `{PROGRAM}"
    for place in range(1, len(words)):
        for width in (2, 1):
            verb = " ".join(words[place : place + width])
            if verb in VERBS:
                rest = shlex.join([*words[place + width :], *words[:place]])
                return f"{flags} {verb} {rest}`"
    return f"{flags} VERB {words[0]} ...`; see `{PROGRAM} --help`"


def kind_comes_first(words: Sequence[str], kinds: Sequence[str]) -> str:
    """What a message says of flags before the second word of a verb: ``evaluate --load b``."""
    place = next((place for place, word in enumerate(words) if word in kinds), 0)
    kind = words[place] if place else "KIND"
    rest = [*words[1:place], *words[place + 1 :]] if place else words[1:]
    return (
        f"{words[1]} stands before the kind, which comes first: write `{PROGRAM} {words[0]} {kind} "
        f"{shlex.join(rest)}`; kinds: {', '.join(kinds)}"
    )


def meant_conversion(words: Sequence[str]) -> str:
    """What a message says of ``convert`` with a model where the kind should be; empty: another.

    One model is inspected, of two the first is exported if it is a checkpoint of this project.
    """
    if words[0] != "convert" or not Path(words[1]).exists():
        return ""
    from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME

    kind = "export" if (Path(words[1]) / FILE_NAME).is_file() else "import"
    if len(words) == 2 or words[2].startswith("-"):
        kind = "inspect"
    return (
        f"convert {words[1]} lacks its kind, import, export, verify or inspect: write `{PROGRAM} "
        f"convert {kind} {shlex.join(words[1:])}`"
    )

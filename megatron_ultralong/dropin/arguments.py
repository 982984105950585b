"""The ``--ultralong-...`` arguments in Megatron-LM's parser, and what a command line asks of it."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

from megatron_ultralong.dropin.config import DropInConfig
from megatron_ultralong.dropin.cpu import set_cpu_defaults
from megatron_ultralong.program.fields import field_docstrings


class Asked:
    """The arguments that a parser knew when :meth:`remember` was called, and those given."""

    def __init__(self) -> None:
        self._parser: argparse.ArgumentParser | None = None
        self._theirs: dict[str, str] = {}

    def remember(self, parser: argparse.ArgumentParser) -> None:
        """Take ``parser`` for Megatron-LM's: all it knows by now are arguments of Megatron-LM."""
        if parser is self._parser:
            return
        self._parser = parser
        self._theirs = {}
        for action in parser._actions:
            if action.option_strings and action.dest != "help":
                self._theirs.setdefault(action.dest, max(action.option_strings, key=len))

    def flag(self, name: str) -> str:
        """What an argument is called on the command line; of a field, its own name."""
        return self._theirs.get(name, name)

    def given(self, words: Sequence[str] | None = None) -> set[str]:
        """Names of Megatron-LM's arguments that stand on the command line, by whatever value.

        Args:
            words: of the command line; this process's.
        """
        if self._parser is None:
            return set()
        # Defaults that suppress: what is left in the namespace was given.
        silent = copy.copy(self._parser)
        silent._actions = [copy.copy(action) for action in self._parser._actions]
        silent._option_string_actions = {
            word: action for action in silent._actions for word in action.option_strings
        }
        silent._defaults = {}
        for action in silent._actions:
            action.default = argparse.SUPPRESS
            action.required = False
        namespace, _ = silent.parse_known_args(sys.argv[1:] if words is None else list(words))
        return set(vars(namespace)) & set(self._theirs)


ASKED = Asked()
"""Of this process."""


PREFIX = "ultralong_"


def add_ultralong_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add our arguments; an ``extra_args_provider`` of Megatron-LM. Twice is as once.

    Two defaults of Megatron-LM's own change: no attention mask of S x S is made, and on a machine
    without CUDA nothing is asked for that a CPU lacks.
    """
    if any(action.dest.startswith(PREFIX) for action in parser._actions):
        return parser
    parser.set_defaults(create_attention_mask_in_dataloader=False)
    set_cpu_defaults(parser)
    group = parser.add_argument_group("ultralong", "Long context by megatron-ultralong.")
    hints = typing.get_type_hints(DropInConfig)
    helps = field_docstrings(DropInConfig)
    for field in dataclasses.fields(DropInConfig):
        convert, choices = _kind(hints[field.name])
        group.add_argument(
            "--" + (PREFIX + field.name).replace("_", "-"),
            default=field.default,
            type=convert,
            choices=choices,
            help=helps[field.name].replace("%", "%%"),
            action=_PackedRowsAction if field.name == "data_path" else "store",
        )
    return parser


def with_ultralong_args(
    provider: Callable[[argparse.ArgumentParser], argparse.ArgumentParser] | None,
) -> Callable[[argparse.ArgumentParser], argparse.ArgumentParser]:
    """An ``extra_args_provider`` that adds the arguments of ``provider``, then ours."""

    def add(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        ASKED.remember(parser)
        return add_ultralong_args(provider(parser) if provider else parser)

    return add


def drop_in_config(args: Any) -> DropInConfig:
    """Our part of Megatron-LM's parsed arguments."""
    names = [field.name for field in dataclasses.fields(DropInConfig)]
    return DropInConfig(**{name: getattr(args, PREFIX + name) for name in names})


class _PackedRowsAction(argparse.Action):
    """Our rows come from an iterator of ours, with their own mask and a loss over tokens.

    ``calculate_per_token_loss``: gradients are sums over the tokens of the global batch divided
    once, the same on every layout and with every mask.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        if values:
            namespace.dataloader_type = "external"
            namespace.calculate_per_token_loss = True
            namespace.create_attention_mask_in_dataloader = False


def _kind(hint: Any) -> tuple[Callable[[str], Any], list[str] | None]:
    """How the text of an argument is read, and what it may be."""
    if hint in (int, float, str):
        return hint, None
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return str, list(options)
    words = [word for option in options for word in typing.get_args(option)]
    assert float in options, f"an argument cannot be a {hint}"

    def number_or_word(text: str) -> float | str:
        return text if text in words else float(text)

    return number_or_word, None

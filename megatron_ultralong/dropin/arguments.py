"""The ``--ultralong-...`` arguments, for the parser of Megatron-LM."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

from megatron_ultralong.dropin.asked import ASKED
from megatron_ultralong.dropin.config import DropInConfig
from megatron_ultralong.dropin.cpu import set_cpu_defaults
from megatron_ultralong.program.field_docs import field_docstrings

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

"""The ``--ultralong-...`` arguments: what they may be, in Megatron-LM's parser, and those given."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from megatron_ultralong.config import rope, run
from megatron_ultralong.config.flags import check_dashes, check_one_folder
from megatron_ultralong.dropin.cpu import set_cpu_defaults
from megatron_ultralong.model.shape import MOST_POSITIONS
from megatron_ultralong.model.yarn import RopeScaling, YarnConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range, check_ranges, field_docstrings, numbers_of
from megatron_ultralong.program.names import whole_names
from megatron_ultralong.program.quantity import LENGTH, Unit
from megatron_ultralong.sequence.document_mask import DocumentMask


@dataclasses.dataclass(frozen=True)
class DropInConfig(rope.RopeConfig):
    """Rotary embedding, rows and memory; every field is an argument with ``ultralong`` before it.

    Megatron-LM has words of its own for much of this, with other meanings and defaults
    (``--rope-scaling-factor``, ``--recompute-granularity``), hence the prefix.
    """

    prefix: ClassVar[str] = "ultralong-"

    rope_scaling: Literal["yarn", "ntk", "linear", "none", "keep"] = "keep"
    """Scaling of the rotary frequencies: yarn (the recipe), ntk, linear or none; keep takes the one
    in the ultralong.json of --load, and leaves Megatron-LM's own embedding where there is none."""
    original_max_position_embeddings: Annotated[
        int, Range(1, MOST_POSITIONS, or_zero=True, rule="rotations are counted over it"), LENGTH
    ] = 0
    """L: the original context, over which YaRN counts rotations; 0: that of the checkpoint of
    --load before any scaling."""
    data_path: str = ""
    """Folder written by `ultralong prepare`: train and validate on its rows, instead of
    --data-path. Every rank reads its own chunks of a row, and the documents reach the attention."""
    document_mask: DocumentMask = "none"
    """For rows of this project. none: documents attend to each other (the paper's recipe); block:
    they do not."""
    cp_assignment: Literal["zigzag", "balanced"] = "zigzag"
    """Which context-parallel rank holds which chunks of those rows. balanced: even work with
    document mask block."""
    recompute_granularity: run.RecomputeGranularity = "none"
    """keep_attention: the backward pass recomputes everything in a layer except attention; full:
    attention too; none: Megatron-LM's own --recompute-granularity decides."""
    sequence_tile_size: Annotated[int, Range(0), LENGTH] = 16384
    """Tokens that go through embedding, projections and MLP of a recomputed layer at a time; 0:
    all."""
    loss_tile_size: Annotated[int, Range(0), LENGTH] = 0
    """Tokens that go through the output layer and the loss at a time, so that full logits never
    exist (2048 is good); 0 leaves both to Megatron-LM."""

    verify_checksums: Literal["yes", "no"] = "yes"
    """Whether a checkpoint of --load is compared with its checksums, if it has any."""
    accept: str = ""
    """Names of Megatron-LM's arguments, separated by commas, that this version does not know, but
    that you know to concern only parts of the model that are not replaced."""

    @property
    def accepted(self) -> set[str]:
        """Names of :attr:`accept`."""
        return {name.strip().lstrip("-").replace("-", "_") for name in self.accept.split(",")}

    def check(self, micro_batch_size: int) -> None:
        """Raise InputError where the fields do not fit together."""
        check_ranges(self, "ultralong_")
        is_block = self.document_mask == "block"
        if is_block and not self.data_path:
            raise InputError(
                "--ultralong-document-mask block needs --ultralong-data-path: the documents are "
                "those of the rows that `ultralong prepare` wrote"
            )
        if is_block and micro_batch_size != 1:
            raise InputError(
                f"--ultralong-document-mask block needs --micro-batch-size 1, not "
                f"{micro_batch_size}: every row has documents of its own; raise "
                "--global-batch-size instead"
            )
        if self.cp_assignment == "balanced" and not is_block:
            raise InputError(
                f"--ultralong-cp-assignment balanced needs --ultralong-document-mask block, not "
                f"{self.document_mask}: without it every row has one area, and zigzag shares it "
                "evenly"
            )

    def over(
        self, context: int | None, weights: Path | None, args: Any
    ) -> tuple[DropInConfig, tuple[str, ...]]:
        """The same, with the original context of the weights where none is given; a line says so.

        Args:
            context: that the weights had before any scaling; None: they do not say.
            weights: their folder, if there is one.
            args: Megatron-LM's.

        Raises:
            InputError: YaRN has none to count over.
        """
        if self.rope_scaling != "yarn" or self.original_max_position_embeddings:
            return self, ()
        flag, positions = self.flag("original_max_position_embeddings"), args.seq_length
        if context is None:
            why = f"{weights} does not say it" if weights else "there is no checkpoint that says it"
            raise InputError(
                f"{flag} is not given, and {why}: YaRN counts rotations over the context before "
                f"any scaling; add {flag} {math.ceil(positions / self.rope_scaling_factor)} "
                f"(--seq-length {positions} / {self.rope_scaling_factor:g}), or what it is"
            )
        note = (
            f"original context: {context:,}, that of the checkpoint in {weights} before any "
            f"scaling ({flag} is not given)"
        )
        config = dataclasses.replace(self, original_max_position_embeddings=context)
        return config, (note,) if context else ()

    def check_scaling(self, kept: RopeScaling) -> None:
        """Refuse numbers of a scaling that is not asked for; the kept one may be said again.

        Raises:
            InputError: a number is given that nothing uses.
        """
        if self.rope_scaling == "keep" and isinstance(kept, YarnConfig):
            original = self.original_max_position_embeddings
            original = original or kept.original_max_position_embeddings
            again = dataclasses.replace(
                self, rope_scaling="yarn", original_max_position_embeddings=original
            )
            if kept == again.scaling(None):
                return
        for name in self.without_effect():
            flag = self.flag(name)
            raise InputError(
                f"{flag} is {getattr(self, name)}, and --ultralong-rope-scaling "
                f"{self.rope_scaling} does not use it (the checkpoint's is {kept}): add "
                f"--ultralong-rope-scaling yarn (the recipe), or leave {flag} out"
            )


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

        ``words`` are those of this process by default.
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
    add_own_group(parser)
    make_printable(parser)
    sys.argv[1:] = checked_words(parser, sys.argv[1:])
    return parser


def checked_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The command line, with ``~`` in names of files and folders as the home folder.

    Raises:
        InputError: such a name is empty, a flag was copied with other dashes, which would be one
            more value of the flag before it, or rows are blended as Megatron-LM's data sets are.
    """
    known = parser._option_string_actions
    check_dashes(words, known)
    check_one_folder(words, DropInConfig.flag(DropInConfig(), "data_path"))
    names = {flag.replace("_", "-") for flag, action in known.items() if _is_of_names(action)}
    return whole_names(words, names.__contains__, takes_urls=True)  # Megatron-LM reads stores


_OF_NAMES = re.compile("(?:.*_)?(?:save|load|checkpoint|dir|file|model|path)")
"""Arguments whose values are files and folders."""


def _is_of_names(action: argparse.Action) -> bool:
    """Whether its values name something: an empty one is as none to Megatron-LM."""
    is_text = action.type in (None, str) and action.nargs != 0
    return is_text and action.default != "" and bool(_OF_NAMES.fullmatch(action.dest))


def make_printable(parser: argparse.ArgumentParser) -> None:
    """Let ``--help`` print every text as it is that has a bare ``%``, as some of Megatron-LM's."""
    for action in parser._actions:
        if not isinstance(action.help, str) or action.help == argparse.SUPPRESS:
            continue
        try:
            _ = action.help % {**vars(action), "prog": parser.prog}
        except (ValueError, TypeError, KeyError):
            action.help = action.help.replace("%", "%%")


_METAVARS: dict[Any, str] = {int: "N", str: "TEXT"}


def add_own_group(parser: argparse.ArgumentParser) -> None:
    """Add our arguments, and change nothing else."""
    group = parser.add_argument_group("ultralong", "Long context by megatron-ultralong.")
    hints = get_type_hints(DropInConfig)
    helps = field_docstrings(DropInConfig)
    units = {number.name: number.unit for number in numbers_of(DropInConfig)}
    for field in dataclasses.fields(DropInConfig):
        convert, choices = _kind(hints[field.name])
        group.add_argument(
            "--" + (PREFIX + field.name).replace("_", "-"),
            default=field.default,
            type=_reader(convert, units.get(field.name)),
            choices=choices,
            metavar=None if choices else _METAVARS.get(convert, "X"),
            help=helps[field.name].replace("%", "%%"),
            action=_PackedRowsAction if field.name == "data_path" else "store",
        )


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
    """Our rows come from an iterator of this project, with their own mask and a loss over tokens.

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


def _reader(convert: Callable[[str], Any], unit: Unit | None) -> Callable[[str], Any]:
    """The same for texts with letters and commas, where the field has a unit."""
    if unit is None:
        return convert
    return lambda text: convert(unit.plain(text, "the value"))


def _kind(hint: Any) -> tuple[Callable[[str], Any], list[str] | None]:
    """How the text of an argument is read, and what it may be."""
    if hint in (int, float, str):
        return hint, None
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return str, list(options)
    words = [word for option in options for word in get_args(option)]
    assert float in options, f"an argument cannot be a {hint}"

    def number_or_word(text: str) -> float | str:
        return text if text in words else float(text)

    return number_or_word, None


_USAGE = "torchrun ... -m megatron_ultralong.dropin SCRIPT --spec megatron_ultralong.spec SPEC ..."
_AFTER = (
    "SCRIPT is a Megatron-LM script such as pretrain_gpt.py; SPEC is ring_te_spec (Transformer "
    "Engine) or ring_local_spec. All other arguments are those of SCRIPT: `SCRIPT --help` in the "
    "same place lists them too. docs/dropin.md has whole commands."
)


def own_parser() -> argparse.ArgumentParser:
    """Of ``python -m megatron_ultralong.dropin --help``: the arguments of this project alone."""
    parser = argparse.ArgumentParser(
        prog="megatron_ultralong.dropin", usage=_USAGE, epilog=_AFTER, add_help=False
    )
    add_own_group(parser)
    return parser

"""Rotary embedding of the extended model, over that of the checkpoint."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.quantity import LENGTH

PAPER_FACTOR = 512
"""The largest scaling factor of the paper (arXiv:2504.06214): 8,192 positions to 4,194,304."""
AnglePrecision = Literal["exact", "float32"]
OF_YARN = (
    "rope_scaling_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "ramp",
    "attention_factor",
)
"""Fields of :class:`RopeConfig` that YaRN looks at; linear and ntk at the first alone."""


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of the extended model."""

    prefix: ClassVar[str] = ""
    """Of the flags of its fields, as a command line has them."""

    rope_scaling: Literal["yarn", "ntk", "linear", "none", "keep"] = "keep"
    """Scaling of the rotary embedding. keep: the checkpoint's own. The others replace it, over the
    context that the checkpoint had before its scaling: yarn (the recipe), ntk, linear, none."""
    rope_scaling_factor: yarn.ScalingFactor = 1.0
    """s: extended context / original context. 128, 256 and 512 for 1M, 2M and 4M over 8192."""
    original_max_position_embeddings: Annotated[yarn.ContextLength, LENGTH] = 8192
    """L: the original context, over which YaRN counts rotations."""
    beta_fast: yarn.Rotations = 4.0
    """YaRN: dimensions with more rotations than this over L keep their frequency."""
    beta_slow: yarn.Rotations = 1.0
    """YaRN: dimensions with fewer rotations than this over L are divided by s."""
    ramp: yarn.Ramp = "rotations"
    """YaRN: interpolate over rotations (the paper; exported as llama3) or over dimensions (exported
    as yarn)."""
    attention_factor: Annotated[float | Literal["yarn"], yarn.TEMPERATURES] = 1.0
    """YaRN's temperature: a number, or yarn for 0.1 ln(s) + 1. Values other than 1 need ramp
    dimensions for the export."""
    angle_precision: AnglePrecision = "exact"
    """exact: angles in float64, wrapped. float32: as in engines with float32 tables."""

    def scaling(self, checkpoint: yarn.RopeScaling) -> yarn.RopeScaling:
        """The scaling to train with, given the one that the checkpoint carries."""
        if self.rope_scaling == "keep":
            return checkpoint
        if self.rope_scaling == "none":
            return None
        if self.rope_scaling == "ntk":
            return yarn.NtkConfig(self.rope_scaling_factor)
        if self.rope_scaling == "linear":
            return yarn.LinearConfig(self.rope_scaling_factor)
        factor = self.attention_factor
        return yarn.YarnConfig(
            self.rope_scaling_factor,
            self.original_max_position_embeddings,
            self.beta_fast,
            self.beta_slow,
            self.ramp,
            yarn.yarn_attention_factor(self.rope_scaling_factor) if factor == "yarn" else factor,
        )

    def max_positions(self, positions: int, scaling: yarn.RopeScaling) -> int:
        """Positions that the extended model is made for: the checkpoint's, if nothing changes.

        Args:
            positions: that the checkpoint is made for.
            scaling: the checkpoint's own. What replaces it scales the raw context below it:
                linear x4 over a checkpoint of 512 positions, made by llama3 x8 over 64, is 256.
        """
        if self.scaling(scaling) == scaling:
            return positions
        if self.rope_scaling == "yarn":
            return math.floor(self.rope_scaling_factor * self.original_max_position_embeddings)
        context = yarn.raw_context(scaling, positions)
        if self.rope_scaling == "none":
            return context
        return math.floor(self.rope_scaling_factor * context)

    def flag(self, name: str) -> str:
        """What a field is called on the command line: ``--rope-scaling-factor``."""
        return f"--{self.prefix}{name.replace('_', '-')}"

    def described(self) -> str:
        """What messages call it: ``rope_scaling 'yarn' (rope_scaling_factor 2 over ...)``."""
        text = f"rope_scaling '{self.rope_scaling}'"
        if self.rope_scaling == "yarn":
            original = self.original_max_position_embeddings
            text += f" (rope_scaling_factor {self.rope_scaling_factor:g} over "
            text += f"original_max_position_embeddings {original})"
        return text

    def flags_for(self, length: int, positions: int, scaling: yarn.RopeScaling) -> str:
        """Flags that change this to one with room for ``length`` tokens.

        The checkpoint was made for ``positions``, with ``scaling``. YaRN counts over the raw
        context below it.
        """
        if length <= positions:
            return f"{self.flag('rope_scaling')} keep"
        context = yarn.raw_context(scaling, positions)
        new = dataclasses.replace(
            self, rope_scaling="yarn", original_max_position_embeddings=context
        )
        if self.rope_scaling_factor * context < length:
            new = dataclasses.replace(new, rope_scaling_factor=math.ceil(length / context))
        if new.max_positions(positions, scaling) < length:  # the checkpoint's, for fewer positions
            new = dataclasses.replace(new, rope_scaling_factor=new.rope_scaling_factor + 1)
        return " ".join(
            f"{self.flag(name)} {getattr(new, name)}"
            for name in ("rope_scaling", *OF_YARN)
            if getattr(new, name) != getattr(self, name)
        )

    def check_extension(self, length: int, positions: int, scaling: yarn.RopeScaling) -> None:
        """Check what it makes of a checkpoint.

        ``length`` is that of a row; 0: they are not of one length.

        Raises:
            InputError: rows are longer than the positions that it is made for, or it could not be
                exported, and would be trained for hours in vain.
        """
        yarn.hf_rope_scaling(self.scaling(scaling))
        limit = self.max_positions(positions, scaling)
        if length > limit:
            raise InputError(
                f"seq_length ({length}) is beyond the {limit} positions of {self.described()}: "
                f"rows must fit the rotary embedding; prepare rows of {limit}, or give "
                f"{self.flags_for(length, positions, scaling)}"
            )

    @property
    def beyond_paper(self) -> tuple[str, ...]:
        """A line of a factor beyond those of the paper."""
        factor, original = self.rope_scaling_factor, self.original_max_position_embeddings
        if self.rope_scaling != "yarn" or factor <= PAPER_FACTOR:
            return ()
        return (
            f"warning: {self.flag('rope_scaling_factor')} {factor:,.9g} is beyond {PAPER_FACTOR}, "
            "the largest of the paper (arXiv:2504.06214: 8,192 positions to 4M): nothing says that "
            f"such a model learns; rows of up to {PAPER_FACTOR * original:,} tokens are within it",
        )

    def warnings(self, positions: int, scaling: yarn.RopeScaling) -> tuple[str, ...]:
        """What may not have been meant, given the checkpoint's positions and scaling."""
        return (*self._not_meant(positions, scaling), *self.beyond_paper)

    def _not_meant(self, positions: int, scaling: yarn.RopeScaling) -> tuple[str, ...]:
        context = yarn.raw_context(scaling, positions)
        original = self.original_max_position_embeddings
        if self.rope_scaling == "yarn" and original != context:
            return (
                f"warning: original_max_position_embeddings is {original:,}, and the checkpoint's "
                f"context before any scaling is {context:,}: rotations and positions are counted "
                f"over the first; {self.flag('original_max_position_embeddings')} {context} is the "
                "checkpoint's",
            )
        without_effect = [f"{name} {getattr(self, name)}" for name in self.without_effect()]
        if not without_effect:
            return ()
        return (
            f"warning: {', '.join(without_effect)}: without effect under rope_scaling "
            f"'{self.rope_scaling}'; {self.flag('rope_scaling')} yarn takes them",
        )

    def without_effect(self) -> list[str]:
        """Fields of a scaling that are given, and that this one does not look at."""
        default = type(self)()
        return [
            name
            for name in OF_YARN
            if name not in self.read_fields and getattr(self, name) != getattr(default, name)
        ]

    @property
    def read_fields(self) -> tuple[str, ...]:
        """Fields of a scaling that this one looks at."""
        all_of = {"keep": (), "none": (), "yarn": OF_YARN}
        return all_of.get(self.rope_scaling, OF_YARN[:1])

    @staticmethod
    def check_block(block: Any, where: str) -> None:
        """Check the rope block of a configuration file, before its defaults are filled in.

        Raises:
            InputError: it has figures of a scaling, and does not say which scaling.
        """
        figures = [name for name in OF_YARN if isinstance(block, Mapping) and name in block]
        if figures and "rope_scaling" not in block:
            raise InputError(
                f"{where}: rope has {', '.join(figures)}, and no rope_scaling, which would be "
                "'keep' and ignore them: write rope_scaling: yarn there, or take them out"
            )

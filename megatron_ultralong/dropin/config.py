"""What a Megatron-LM run may ask of this project: its ``--ultralong-...`` arguments."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from megatron_ultralong.config.rope import AnglePrecision, RopeConfig
from megatron_ultralong.config.run import RecomputeGranularity
from megatron_ultralong.model.yarn import Ramp, RopeScaling
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range, check_ranges
from megatron_ultralong.sequence.documents import DocumentMask

_OF_YARN = (
    "rope_scaling_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "ramp",
    "attention_factor",
)


@dataclasses.dataclass(frozen=True)
class DropInConfig:
    """Rotary embedding, rows and memory; every field is an argument with ``ultralong`` before it.

    Megatron-LM has words of its own for much of this, with other meanings and defaults
    (``--rope-scaling-factor``, ``--recompute-granularity``), hence the prefix.
    """

    rope_scaling: Literal["yarn", "ntk", "linear", "none", "keep"] = "keep"
    """Scaling of the rotary frequencies: yarn (the recipe), ntk, linear or none; keep takes the one
    in the ultralong.json of --load, and leaves Megatron-LM's own embedding where there is none."""
    rope_scaling_factor: Annotated[float, Range(1, 1_000_000)] = 1.0
    """s: extended context / original context; 128, 256, 512 for 1M, 2M, 4M over 8192."""
    original_max_position_embeddings: Annotated[int, Range(1)] = 8192
    """L: the context over which YaRN counts rotations."""
    beta_fast: Annotated[float, Range(1e-6, 1_000_000)] = 4.0
    """YaRN: dimensions with more rotations over L keep their frequency."""
    beta_slow: Annotated[float, Range(1e-6, 1_000_000)] = 1.0
    """YaRN: dimensions with fewer rotations over L are divided by s."""
    ramp: Ramp = "rotations"
    """YaRN: mix by rotations (the paper) or by dimensions."""
    attention_factor: Annotated[float | Literal["yarn"], Range(0.01, 100)] = 1.0
    """YaRN's temperature: a number, or yarn for 0.1 ln(s) + 1 (needs ramp dimensions to export)."""
    angle_precision: AnglePrecision = "exact"
    """exact: angles in float64, wrapped; float32: as engines with float32 tables have them."""
    data_path: str = ""
    """Folder written by `ultralong prepare`: train and validate on its rows, instead of
    --data-path. Every rank reads its own chunks of a row, and the documents reach the attention."""
    document_mask: DocumentMask = "none"
    """Of those rows. none: documents attend to each other (the paper's recipe); block: not."""
    cp_assignment: Literal["zigzag", "balanced"] = "zigzag"
    """Which context-parallel rank holds which chunks of those rows; balanced is even under
    document mask block."""
    recompute_granularity: RecomputeGranularity = "none"
    """keep_attention: backward makes everything of a layer again but the attention; full: that too;
    none: Megatron-LM's own --recompute-granularity decides."""
    sequence_tile_size: Annotated[int, Range(0)] = 16384
    """Tokens that go through embedding, projections and MLP of such a layer at a time; 0: all."""
    loss_tile_size: Annotated[int, Range(0)] = 0
    """Tokens that go through the output layer and the loss at a time, so that full logits never
    exist (2048 is good); 0 leaves both to Megatron-LM."""

    verify_checksums: Literal["yes", "no"] = "yes"
    """Whether a checkpoint of --load is compared with its checksums, where it has some."""
    accept: str = ""
    """Arguments of Megatron-LM that this version does not know and you have found to concern other
    parts of the model than ours: their names, with commas between."""

    @property
    def accepted(self) -> set[str]:
        """Names of :attr:`accept`."""
        return {name.strip().lstrip("-").replace("-", "_") for name in self.accept.split(",")}

    def rope(self) -> RopeConfig:
        """The rotary fields, as our own programs have them."""
        names = {field.name for field in dataclasses.fields(RopeConfig)}
        values = {name: getattr(self, name) for name in names}
        return RopeConfig(**values)

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

    def check_scaling(self, kept: RopeScaling) -> None:
        """Refuse numbers of a scaling that is not asked for; the kept one may be said again.

        Args:
            kept: scaling of the checkpoint.

        Raises:
            InputError: a number is given that nothing uses.
        """
        if self.rope_scaling == "keep" and kept == self._as_yarn().scaling(None):
            return
        used = {"yarn": _OF_YARN, "ntk": _OF_YARN[:1], "linear": _OF_YARN[:1]}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in _OF_YARN:
            is_used = name in used.get(self.rope_scaling, ())
            if not is_used and getattr(self, name) != defaults[name]:
                flag = f"--ultralong-{name}".replace("_", "-")
                raise InputError(
                    f"{flag} is {getattr(self, name)}, and --ultralong-rope-scaling "
                    f"{self.rope_scaling} does not use it (the checkpoint's is {kept}): add "
                    f"--ultralong-rope-scaling yarn (the recipe), or leave {flag} out"
                )

    def _as_yarn(self) -> RopeConfig:
        return dataclasses.replace(self.rope(), rope_scaling="yarn")

"""What a Megatron-LM run may ask of this project: its ``--ultralong-...`` arguments."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.run import RecomputeGranularity
from megatron_ultralong.model.yarn import RopeScaling
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range, check_ranges
from megatron_ultralong.sequence.documents import DocumentMask


@dataclasses.dataclass(frozen=True)
class DropInConfig(RopeConfig):
    """Rotary embedding, rows and memory; every field is an argument with ``ultralong`` before it.

    Megatron-LM has words of its own for much of this, with other meanings and defaults
    (``--rope-scaling-factor``, ``--recompute-granularity``), hence the prefix.
    """

    rope_scaling: Literal["yarn", "ntk", "linear", "none", "keep"] = "keep"
    """Scaling of the rotary frequencies: yarn (the recipe), ntk, linear or none; keep takes the one
    in the ultralong.json of --load, and leaves Megatron-LM's own embedding where there is none."""
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
        as_yarn = dataclasses.replace(self, rope_scaling="yarn")
        if self.rope_scaling == "keep" and kept == as_yarn.scaling(None):
            return
        for name in self.without_effect():
            flag = f"--ultralong-{name}".replace("_", "-")
            raise InputError(
                f"{flag} is {getattr(self, name)}, and --ultralong-rope-scaling "
                f"{self.rope_scaling} does not use it (the checkpoint's is {kept}): add "
                f"--ultralong-rope-scaling yarn (the recipe), or leave {flag} out"
            )

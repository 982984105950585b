"""Whose modules a layer is made of, and which precision its matrices have."""

from __future__ import annotations

import dataclasses
from typing import Literal

from megatron_ultralong.config.run import RecomputeGranularity
from megatron_ultralong.program.errors import InputError

TransformerImpl = Literal["local", "transformer_engine"]
AttentionImpl = Literal["ring", "te"]
Fp8Format = Literal["none", "e4m3", "hybrid"]
Fp8Recipe = Literal["delayed", "tensorwise", "blockwise", "mxfp8"]

FP8_TOKENS: dict[Fp8Recipe, int] = {
    "delayed": 16,
    "tensorwise": 16,
    "blockwise": 128,
    "mxfp8": 32,
}
"""What the tokens of a matrix product must be a multiple of, for Transformer Engine's kernels."""


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """Megatron-Core's own modules or Transformer Engine's; checkpoints of both are the same."""

    transformer_impl: TransformerImpl = "local"
    """Linear layers and norms: local (Megatron-Core and torch), or transformer_engine, which has
    to be installed."""
    attention: AttentionImpl = "ring"
    """ring: this project's, for any documents at any context parallel size; te: Transformer
    Engine's own, with document_mask none only."""
    fp8_format: Fp8Format = "none"
    """Linear layers in FP8: hybrid (e4m3 forward, e5m2 gradients) or e4m3; needs Transformer
    Engine. Attention, norms and the output layer keep the run's precision."""
    fp8_recipe: Fp8Recipe = "tensorwise"
    """How FP8 is scaled: tensorwise (current maxima), blockwise (Hopper and later), mxfp8
    (Blackwell), delayed (maxima of earlier iterations; not with recomputed layers)."""
    apply_rope_fusion: bool = False
    """Rotary embedding by Transformer Engine's fused kernel. YaRN's temperature is in the softmax
    scale here, so the kernel cannot lose it."""

    @property
    def needs_transformer_engine(self) -> bool:
        """Whether anything of it is Transformer Engine's."""
        return self.transformer_impl == "transformer_engine"

    def check(
        self,
        *,
        document_mask: str,
        precision: str,
        recompute_granularity: RecomputeGranularity,
        local_tokens: int,
        tile_size: int,
    ) -> None:
        """Check the rules between these fields and others of a run.

        Args:
            document_mask: none or block.
            precision: bf16 or fp32.
            recompute_granularity: what recomputed layers keep.
            local_tokens: of a row that one rank holds between layers; 0 if not known yet.
            tile_size: of those that go through a recomputed layer at a time; 0: all.

        Raises:
            InputError: a rule is broken.
        """
        if self.transformer_impl == "local":
            for flag, value, off in (
                ("attention", self.attention, "ring"),
                ("fp8_format", self.fp8_format, "none"),
                ("apply_rope_fusion", self.apply_rope_fusion, False),
            ):
                if value != off:
                    raise InputError(
                        f"{flag} {value} is Transformer Engine's, and transformer_impl is 'local': "
                        "add --transformer-impl transformer_engine"
                    )
        if self.attention == "te":
            self._check_te_attention(document_mask, recompute_granularity)
        if self.fp8_format != "none":
            self._check_fp8(precision, recompute_granularity, local_tokens, tile_size)

    def _check_te_attention(
        self, document_mask: str, recompute_granularity: RecomputeGranularity
    ) -> None:
        if document_mask == "block":
            raise InputError(
                "attention 'te' cannot have document_mask 'block': Transformer Engine wants every "
                "document padded to a multiple of 2 * context_parallel_size and cut on its own, "
                "and rows here are packed without padding and cut as a whole, so documents would "
                "see each other; use --attention ring, or --document-mask none"
            )
        if recompute_granularity == "keep_attention":
            raise InputError(
                "attention 'te' cannot have recompute_granularity 'keep_attention': Transformer "
                "Engine does not hand out what its backward pass needs; use "
                "--recompute-granularity full, or --attention ring"
            )

    def _check_fp8(
        self,
        precision: str,
        recompute_granularity: RecomputeGranularity,
        local_tokens: int,
        tile_size: int,
    ) -> None:
        if precision != "bf16":
            raise InputError(
                f"fp8_format {self.fp8_format!r} needs precision 'bf16', not {precision!r}: FP8 "
                "products are summed into bf16 activations"
            )
        if self.fp8_recipe == "delayed" and recompute_granularity != "none":
            raise InputError(
                f"fp8_recipe 'delayed' cannot have recompute_granularity "
                f"'{recompute_granularity}': a layer that is computed twice would count its maxima "
                "twice; use --fp8-recipe tensorwise, or --recompute-granularity none"
            )
        unit = FP8_TOKENS[self.fp8_recipe]
        for name, tokens in (("tokens of a rank", local_tokens), ("sequence_tile_size", tile_size)):
            if tokens % unit:
                raise InputError(
                    f"fp8_recipe {self.fp8_recipe!r} needs {name} ({tokens}) to be a multiple of "
                    f"{unit}: its kernels take whole blocks; use {-(-tokens // unit) * unit}"
                )


LOCAL_LAYERS = LayerConfig()
"""Megatron-Core's own modules, with our attention: what runs everywhere."""

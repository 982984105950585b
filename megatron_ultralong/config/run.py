"""Options of a run that are about how it is done: memory, layers, saving, stopping, telling."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import YEAR, Range, check_ranges

RecomputeGranularity = Literal["none", "full", "keep_attention"]


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """What a run keeps in memory, where, and how much of a row is worked on at a time."""

    recompute_granularity: RecomputeGranularity = "keep_attention"
    """full: keep layer inputs only, and recompute the rest in backward; keep_attention: keep
    attention's output too, which at 1M tokens and more is nearly all of the work; none: keep
    everything."""
    sequence_tile_size: Annotated[int, Range(0)] = 16384
    """Tokens that go through embedding, projections and MLP of a recomputed layer at a time, so
    that the MLP's wide tensors never are as long as the row; 0: all tokens."""
    loss_tile_size: Annotated[int, Range(0)] = 2048
    """Tokens that go through the output layer and the loss at a time, so that full logits never
    exist; 0 leaves both to Megatron-Core."""
    offload_activations: bool = False
    """Keep what recomputed layers keep in pinned host memory; copied while others compute."""
    max_host_memory_gib: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Host memory that one rank may take for it; 0: 80 % of what the machine has available,
    shared by its ranks."""

    def check(self) -> None:
        """Raise InputError where the fields do not fit together."""
        check_ranges(self)
        if self.offload_activations and self.recompute_granularity == "none":
            raise InputError(
                "offload_activations needs recompute_granularity 'keep_attention' or 'full', not "
                "'none': what recomputed layers keep is offloaded, and none keeps every tensor "
                "inside the layers"
            )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How checkpoints are written and which are kept."""

    async_save: bool = True
    """Write checkpoints in the background: training waits only while tensors are copied."""
    save_retain_last: Annotated[int, Range(0)] = 2
    """Newest checkpoints to keep; 0 keeps all."""
    save_retain_interval: Annotated[int, Range(0)] = 0
    """Keep the checkpoints of every so many iterations too; 0: none but the newest."""
    max_save_failures: Annotated[int, Range(0)] = 5
    """Checkpoints that may fail one after another before the run ends; 0: any number."""
    verify_checksums: bool = True
    """Compare the bytes of --load with its checksums.json before the first step."""


@dataclasses.dataclass(frozen=True)
class FaultConfig:
    """When a run stops, and what it does about bad numbers."""

    exit_duration_in_mins: Annotated[float, Range(0, YEAR)] = 0.0
    """Save and end with status 75 after so many minutes; 0: no limit."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop saves the state before that step and ends with
    status 65; skip leaves the step out and goes on."""
    max_skipped_iters: Annotated[int, Range(0)] = 10
    """Steps that skip may leave out one after another before the run saves and ends with status 65
    all the same; 0: any number."""
    loss_spike_deviations: Annotated[float, Range(0, 1_000_000)] = 6.0
    """Warn of a loss so many standard deviations above the last 32; 0: never."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What a run tells beside its lines and `log.jsonl`."""

    tensorboard: bool = True
    """Write TensorBoard's events into the folder `tensorboard` of the run."""
    wandb_project: str = ""
    """Log to this project of Weights & Biases too (pip install wandb)."""
    peak_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Peak of one device in TFLOP/s, for MFU; 0 takes the dense bf16 peak by the device's name."""
    profile: bool = False
    """Write a torch trace of some iterations into the folder `profile` of the run."""
    profile_step_start: Annotated[int, Range(1)] = 10
    """First iteration of the trace."""
    profile_step_end: Annotated[int, Range(2)] = 12
    """Iteration before which the trace ends."""
    profile_ranks: Annotated[tuple[int, ...], Range(0)] = (0,)
    """Ranks that write one."""

    def check(self) -> None:
        """Raise InputError where the fields do not fit together."""
        check_ranges(self)
        if self.profile and self.profile_step_start >= self.profile_step_end:
            raise InputError(
                f"profile_step_start ({self.profile_step_start}) must be below profile_step_end "
                f"({self.profile_step_end}): the last iteration is not traced; use "
                f"--profile-step-end {self.profile_step_start + 1} or more"
            )


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


LOCAL_LAYERS = LayerConfig()
"""Megatron-Core's own modules, with our attention: what runs everywhere."""

"""Options of a run that are about how it is done: memory, layers, saving, stopping, telling."""

import dataclasses
from typing import Annotated, Literal

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import TEXT, YEAR, Range, check_ranges
from megatron_ultralong.program.quantity import LENGTH

RecomputeGranularity = Literal["none", "full", "keep_attention"]


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """What a run keeps in memory, and how much of a row it processes at a time."""

    recompute_granularity: RecomputeGranularity = "keep_attention"
    """What is recomputed in the backward pass. full: keep only layer inputs. keep_attention: also
    keep attention's output, which at 1M tokens and more saves nearly all of the recomputation.
    none: keep everything."""
    sequence_tile_size: Annotated[int, Range(0), LENGTH] = 16384
    """Tokens that pass through embedding, projections and MLP of a recomputed layer at a time, so
    the MLP's wide tensors are never as long as the row; 0: all tokens."""
    loss_tile_size: Annotated[int, Range(0), LENGTH] = 2048
    """Tokens that pass through the output layer and the loss at a time, so full logits never exist;
    0: Megatron-Core's own output layer and loss."""
    offload_activations: bool = False
    """Move what recomputed layers keep to pinned host memory, overlapped with computation."""
    max_host_memory_gib: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Host memory that one rank may use for offload_activations; 0: 80 % of the available memory,
    shared by the machine's ranks."""

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
    """Write checkpoints in the background. Training waits only while tensors are copied."""
    save_retain_last: Annotated[int, Range(0)] = 2
    """Newest checkpoints to keep; 0: all."""
    save_retain_interval: Annotated[int, Range(0)] = 0
    """Also keep every checkpoint at a multiple of this many iterations; 0: keep only the newest."""
    max_save_failures: Annotated[int, Range(0)] = 5
    """Failed checkpoints in a row that end the run; 0: never."""
    verify_checksums: bool = True
    """Compare --load with its checksums.json before the first step."""


@dataclasses.dataclass(frozen=True)
class FaultConfig:
    """When a run stops, and what it does if numbers are not finite."""

    exit_duration_in_mins: Annotated[float, Range(0, YEAR)] = 0.0
    """Save and exit with status 75 after this many minutes; 0: no limit."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What to do if a loss or gradient is not finite. stop: save the state before that step and
    exit with status 65. skip: skip the step and continue."""
    max_skipped_iters: Annotated[int, Range(0)] = 10
    """Skipped steps in a row after which the run saves and exits with status 65; 0: no limit."""
    loss_spike_deviations: Annotated[float, Range(0, 1_000_000)] = 6.0
    """Warn of a loss this many standard deviations above the last 32; 0: never."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Logging, besides log lines and `log.jsonl`."""

    tensorboard: bool = True
    """Write TensorBoard events to the folder `tensorboard` of the run."""
    wandb_project: Annotated[str, TEXT] = ""
    """Also log to this project of Weights & Biases (pip install wandb)."""
    peak_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Peak of one device in TFLOP/s, for MFU; 0: the dense bf16 peak for the device's name."""
    profile: bool = False
    """Write a torch trace of some iterations to the folder `profile` of the run."""
    profile_step_start: Annotated[int, Range(1)] = 10
    """First iteration of the trace."""
    profile_step_end: Annotated[int, Range(2)] = 12
    """First iteration that is not in the trace."""
    profile_ranks: Annotated[tuple[int, ...], Range(0)] = (0,)
    """Ranks that write a trace."""

    def check(self) -> None:
        """Raise InputError where the fields do not fit together."""
        check_ranges(self)
        if self.profile and self.profile_step_start >= self.profile_step_end:
            raise InputError(
                f"profile_step_start ({self.profile_step_start}) must be below profile_step_end "
                f"({self.profile_step_end}): the last iteration is not traced; use "
                f"--profile-step-end {self.profile_step_start + 1} or more"
            )

    def check_ranks(self, world_size: int) -> None:
        """Raise InputError where a rank is to write a trace that the job has not."""
        most = max(self.profile_ranks, default=0)
        if self.profile and most >= world_size:
            raise InputError(
                f"profile_ranks ({most}) must be below the number of ranks ({world_size}): ranks "
                f"count from 0; use --profile-ranks {world_size - 1} or less"
            )


TransformerImpl = Literal["local", "transformer_engine"]
AttentionImpl = Literal["ring", "te"]
ElementwiseKernel = Literal["auto", "compiled", "torch"]
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
    """Implementation of linear layers and norms. local: Megatron-Core and torch.
    transformer_engine: Transformer Engine, which must be installed."""
    attention: AttentionImpl = "ring"
    """ring: this project's attention, for any documents and context-parallel size. te: Transformer
    Engine's own, only with document_mask none."""
    fp8_format: Fp8Format = "none"
    """Run linear layers in FP8. hybrid: e4m3 forward, e5m2 gradients. e4m3: everywhere. Needs
    Transformer Engine. Attention, norms and the output layer keep the run's precision."""
    fp8_recipe: Fp8Recipe = "tensorwise"
    """Scaling of FP8. tensorwise: current maxima. blockwise: Hopper and later. mxfp8: Blackwell.
    delayed: maxima of earlier iterations; not with recomputed layers."""
    apply_rope_fusion: bool = False
    """Use Transformer Engine's fused kernel for the rotary embedding. YaRN's temperature is in the
    softmax scale, so it is kept."""
    elementwise_kernel: ElementwiseKernel = "auto"
    """Rotary embedding and SwiGLU of recomputed layers. compiled: torch.compile makes one GPU
    kernel of each. torch: one operation at a time. auto: compiled on a GPU if the compiler works,
    else torch. The first lines of a run say which."""

    @property
    def needs_transformer_engine(self) -> bool:
        """Whether anything of it is Transformer Engine's."""
        return self.transformer_impl == "transformer_engine"


LOCAL_LAYERS = LayerConfig()
"""Megatron-Core's own modules, with our attention: what runs everywhere."""

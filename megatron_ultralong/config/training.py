"""Configurations of runs: frozen dataclasses, with every rule between fields in one place.

The command line is generated from these classes; flags keep Megatron-LM's spelling. Docstrings
under the fields are the flags' help.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, ClassVar, Literal, TypeVar

from megatron_ultralong.config import run
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.model.yarn import RopeScaling
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.fields import UINT32, Range, Required, check_fields
from megatron_ultralong.program.quantity import LENGTH, TOKENS
from megatron_ultralong.sequence.document_mask import DocumentMask

Self = TypeVar("Self", bound="TrainingConfig")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Training data."""

    data_path: Annotated[
        str, Required("a folder written by `ultralong prepare`, or for sft by `prepare chat`")
    ] = ""
    """Folder written by `ultralong prepare`; for sft, by `ultralong prepare chat`."""
    seq_length: Annotated[int, Range(2, or_zero=True, rule="a token, and its label"), LENGTH] = 0
    """Tokens per row; 0: the row length of the data folder."""
    document_mask: DocumentMask = "none"
    """none: documents of a row attend to each other (the paper's recipe). block: they do not."""
    reset_position_ids: bool = False
    """Restart positions at 0 with every document; needs document_mask block."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Seed of the order of the rows."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Options of pretrain and sft."""

    verb: ClassVar[str]
    """Of the command line."""

    load: Annotated[str, Required("a Megatron checkpoint (`ultralong convert import`)")] = ""
    """Megatron checkpoint to start from (`ultralong convert import`)."""
    save: str = ""
    """Folder for checkpoints. If it holds checkpoints of this run, the run resumes."""
    save_interval: Annotated[int, Range(0)] = 0
    """Iterations between checkpoints; 0: save only at the end."""
    train_iters: Annotated[int, Range(0)] = 0
    """Iterations (optimizer steps) of the whole run; 0: set by train_tokens, or for sft by
    num_epochs."""
    train_tokens: Annotated[float, Range(0, 1e18), TOKENS] = 0.0
    """Tokens of the whole run, instead of train_iters; rounded up to whole iterations."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Rows in one forward pass of a replica."""
    global_batch_size: Annotated[int, Range(1)] = 1
    """Rows in one iteration, over all replicas."""
    eval_interval: Annotated[int, Range(0)] = 0
    """Iterations between validation losses; 0: no validation."""
    eval_iters: Annotated[int, Range(1)] = 4
    """Global batches per validation."""
    log_interval: Annotated[int, Range(1)] = 1
    """Iterations between log lines."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Type of weights and activations. Master weights, sums and gradients are float32 in both."""
    deterministic_mode: bool = False
    """Make repeated runs bit-equal on GPUs too; attention's backward pass gets slower."""
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    layers: run.LayerConfig = dataclasses.field(default_factory=run.LayerConfig)
    memory: run.MemoryConfig = dataclasses.field(default_factory=run.MemoryConfig)
    checkpoint: run.CheckpointConfig = dataclasses.field(default_factory=run.CheckpointConfig)
    faults: run.FaultConfig = dataclasses.field(default_factory=run.FaultConfig)
    log: run.LogConfig = dataclasses.field(default_factory=run.LogConfig)

    @property
    def length_flag(self) -> str:
        """What says how long the run is, before that is worked out."""
        return "--train-tokens" if self.train_tokens else "--train-iters"

    def as_said(self: Self, length_flag: str) -> Self:
        """The same as its file states it: the length of the run by ``length_flag`` alone."""
        return self

    def with_budget(self: Self, seq_length: int) -> Self:
        """The same with the iterations that hold ``train_tokens``, where those are given."""
        if not self.train_tokens:
            return self
        tokens = max(self.global_batch_size * seq_length, 1)
        iterations = math.ceil(self.train_tokens / tokens)
        return dataclasses.replace(self, train_iters=iterations, train_tokens=0.0)

    def check(self, world_size: int) -> None:
        """Check the rules that need neither checkpoint nor data.

        Raises:
            InputError: a rule between fields, or between them and the ranks, is broken.
        """
        self.check_fields()
        self.num_microbatches(world_size)

    def check_fields(self) -> None:
        """The same for any number of ranks.

        Raises:
            InputError: a rule between fields is broken.
        """
        check_fields(self)
        if not self.train_iters:
            raise InputError(
                "train_iters must be at least 1, not 0, where no train_tokens are given: use "
                "--train-iters, or --train-tokens"
            )
        if self.optimizer.lr_warmup_iters >= self.train_iters:
            raise InputError(
                f"lr_warmup_iters ({self.optimizer.lr_warmup_iters}) must be below train_iters "
                f"({self.train_iters}): the warm-up is part of the run; use --lr-warmup-iters "
                f"{max(self.train_iters - 1, 0)} or less, or a longer run"
            )
        if self.data.document_mask == "block" and self.micro_batch_size != 1:
            raise InputError(
                f"document_mask 'block' needs micro_batch_size 1, not {self.micro_batch_size}: "
                "every row has documents of its own; raise global_batch_size instead"
            )
        if self.data.reset_position_ids and self.data.document_mask != "block":
            raise InputError(
                f"reset_position_ids needs document_mask 'block', not '{self.data.document_mask}': "
                "tokens that see other documents would have the same positions"
            )
        if self.parallel.cp_assignment == "balanced" and self.data.document_mask != "block":
            raise InputError(
                f"cp_assignment 'balanced' needs document_mask 'block', not "
                f"'{self.data.document_mask}': without it every row has one area, and zigzag "
                "shares it evenly"
            )
        self.memory.check()
        self.log.check()
        self.check_layers()
        self.optimizer.check(self.precision)

    def check_layers(self) -> None:
        """Raise InputError where layers of that kind cannot work on such a row."""
        layers, memory = self.layers, self.memory
        if layers.transformer_impl == "local":
            for name in ("attention", "fp8_format", "apply_rope_fusion"):
                value = getattr(layers, name)
                if value != getattr(run.LOCAL_LAYERS, name):
                    raise InputError(
                        f"{name} {value} is Transformer Engine's, and transformer_impl is 'local': "
                        "add --transformer-impl transformer_engine"
                    )
        if layers.attention == "te" and self.data.document_mask == "block":
            raise InputError(
                "attention 'te' cannot have document_mask 'block': Transformer Engine wants every "
                "document padded to a multiple of 2 * context_parallel_size and cut on its own, "
                "and rows here are packed without padding and cut as a whole, so documents would "
                "see each other; use --attention ring, or --document-mask none"
            )
        if layers.attention == "te" and memory.recompute_granularity == "keep_attention":
            raise InputError(
                "attention 'te' cannot have recompute_granularity 'keep_attention': Transformer "
                "Engine does not hand out what its backward pass needs; use "
                "--recompute-granularity full, or --attention ring"
            )
        if layers.fp8_format != "none":
            self._check_fp8()

    def _check_fp8(self) -> None:
        layers, parallel, memory = self.layers, self.parallel, self.memory
        recompute = memory.recompute_granularity
        if self.precision != "bf16":
            raise InputError(
                f"fp8_format {layers.fp8_format!r} needs precision 'bf16', not "
                f"{self.precision!r}: FP8 products are summed into bf16 activations"
            )
        if layers.fp8_recipe == "delayed" and recompute != "none":
            raise InputError(
                f"fp8_recipe 'delayed' cannot have recompute_granularity '{recompute}': a layer "
                "that is computed twice would count its maxima twice; use --fp8-recipe "
                "tensorwise, or --recompute-granularity none"
            )
        unit = run.FP8_TOKENS[layers.fp8_recipe]
        runs = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
        # Of a row, between layers; 0 where its length is not known yet.
        local = self.data.seq_length // parallel.context_parallel_size // runs
        tile = memory.sequence_tile_size // runs if recompute != "none" else 0
        for name, tokens in (("tokens of a rank", local), ("sequence_tile_size", tile)):
            if tokens % unit:
                raise InputError(
                    f"fp8_recipe {layers.fp8_recipe!r} needs {name} ({tokens}) to be a multiple of "
                    f"{unit}: its kernels take whole blocks; use {-(-tokens // unit) * unit}"
                )

    def num_microbatches(self, world_size: int) -> int:
        """Forward passes of one replica in an iteration.

        Raises:
            InputError: the global batch does not divide into them.
        """
        replicas = self.parallel.data_parallel_size(world_size)
        rows = self.micro_batch_size * replicas
        if self.global_batch_size % rows:
            raise InputError(
                f"global_batch_size ({self.global_batch_size}) must be divisible by "
                f"micro_batch_size x data-parallel size ({self.micro_batch_size} x {replicas} = "
                f"{rows}): use {math.ceil(self.global_batch_size / rows) * rows}"
            )
        num_microbatches = self.global_batch_size // rows
        self.parallel.check_microbatches(num_microbatches)
        return num_microbatches

    def check_ranks(self, model: ModelConfig, world_size: int) -> None:
        """Raise InputError where ``model`` or the batch cannot be split over the ranks."""
        self.log.check_ranks(world_size)
        self.num_microbatches(world_size)
        self.parallel.check_model(model)

    def check_layout(self, model: ModelConfig, world_size: int) -> None:
        """Check the rules between layout, model, ranks and the length of the rows.

        Raises:
            InputError: one is broken.
        """
        self.check_ranks(model, world_size)
        self.parallel.check_seq_length(self.data.seq_length, is_fixed=bool(self.data.data_path))
        self.memory.check()
        self.check_layers()

    def check_run(
        self, model: ModelConfig, scaling: RopeScaling, world_size: int, longest: int | None = None
    ) -> None:
        """Check what `pretrain --dry-run` and `plan` both know: the layout and the positions.

        Args:
            model: shape of the checkpoint that the run starts from.
            scaling: the checkpoint's own.
            world_size: ranks of the job.
            longest: tokens of the longest conversation; None: not known.

        Raises:
            InputError: a rule is broken, or the rotary embedding could not be exported.
        """
        self.check_layout(model, world_size)
        positions = model.max_position_embeddings
        self.rope.check_extension(0, positions, scaling)
        if not isinstance(self, SftConfig):
            self.check_positions(positions, scaling)
        elif longest is not None or not self.data.reset_position_ids:
            self.check_conversations(positions, scaling, longest or 0)

    def check_positions(self, checkpoint_positions: int, checkpoint_scaling: RopeScaling) -> None:
        """Raise InputError where rows are longer than the positions the model is made for."""
        self.rope.check_extension(self.data.seq_length, checkpoint_positions, checkpoint_scaling)


@dataclasses.dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """Continued pretraining at an extended context."""

    verb = "pretrain"


@dataclasses.dataclass(frozen=True)
class SftConfig(TrainingConfig):
    """Instruction tuning on conversations. The loss counts only the assistant's turns."""

    verb = "sft"

    num_epochs: Annotated[float, Range(above=0, most=1_000_000)] = 1.0
    """Passes over the rows, instead of train_iters. The paper does not state it."""
    data: DataConfig = dataclasses.field(
        default_factory=lambda: DataConfig(document_mask="block", reset_position_ids=True)
    )

    @property
    def length_flag(self) -> str:
        """What says how long the run is, before that is worked out."""
        return super().length_flag if self.train_tokens or self.train_iters else "--num-epochs"

    def as_said(self, length_flag: str) -> SftConfig:
        """See :class:`TrainingConfig`: passes stay passes for other rows, or another batch."""
        if length_flag == "--num-epochs":
            return dataclasses.replace(self, train_iters=0)
        return dataclasses.replace(self, num_epochs=SftConfig.num_epochs)

    def with_iterations(self, num_rows: int) -> SftConfig:
        """The same with ``train_iters`` set: the last one may begin another pass.

        Raises:
            InputError: ``num_epochs`` makes no iteration, or others than are given.
        """
        iterations = math.ceil(self.num_epochs * num_rows / max(self.global_batch_size, 1))
        if self.train_iters:
            if self.num_epochs != SftConfig.num_epochs and iterations != self.train_iters:
                raise InputError(
                    f"train_iters ({self.train_iters}) and num_epochs ({self.num_epochs:g}, which "
                    f"is {counted(iterations, 'iteration')} of {self.global_batch_size} of "
                    f"{counted(num_rows, 'row')}) "
                    "both set the length of the run: remove one from the file, or give "
                    "--num-epochs or --train-iters"
                )
            return self
        if iterations < 1:
            raise InputError(
                f"num_epochs ({self.num_epochs:g}) must be above 0, or train_iters at least 1"
            )
        return dataclasses.replace(self, train_iters=iterations)

    def check_conversations(
        self, checkpoint_positions: int, checkpoint_scaling: RopeScaling, longest: int
    ) -> None:
        """Raise InputError where positions are beyond those that the model is made for.

        Args:
            checkpoint_positions: of the checkpoint that the run starts from.
            checkpoint_scaling: the checkpoint's own.
            longest: tokens of the longest conversation: all that counts where positions restart.
        """
        if not self.data.reset_position_ids:
            self.check_positions(checkpoint_positions, checkpoint_scaling)
            return
        limit = self.rope.max_positions(checkpoint_positions, checkpoint_scaling)
        if longest > limit:
            flags = self.rope.flags_for(longest, checkpoint_positions, checkpoint_scaling)
            raise InputError(
                f"the longest conversation has {longest} tokens, beyond the {limit} positions of "
                f"{self.rope.described()}: prepare them with --max-length {limit}, start from a "
                f"checkpoint of a longer context, or give {flags}"
            )

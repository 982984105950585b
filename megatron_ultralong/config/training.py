"""Configuration of a run: frozen dataclasses, with every rule between fields in one place.

The command line is generated from these classes; flags keep Megatron-LM's spelling. Docstrings
under the fields are the flags' help.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, ClassVar, Literal

from megatron_ultralong.config.layers import LayerConfig
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.run import CheckpointConfig, FaultConfig, LogConfig, MemoryConfig
from megatron_ultralong.model.yarn import RopeScaling
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import UINT32, Range, check_ranges
from megatron_ultralong.sequence.documents import DocumentMask


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    data_path: str = ""
    """Folder written by `ultralong prepare`; for sft, by `ultralong prepare chat`."""
    seq_length: Annotated[int, Range(2, or_zero=True, rule="a token, and its label")] = 0
    """Tokens in a row; 0 takes the folder's own."""
    document_mask: DocumentMask = "none"
    """none: documents of a row attend to each other (the paper's recipe); block: they do not."""
    reset_position_ids: bool = False
    """Positions start again at 0 with every document; needs document_mask block."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Order of the rows."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What all training has in common."""

    verb: ClassVar[str]
    """Of the command line."""

    load: str = ""
    """Megatron checkpoint to start from (`ultralong convert import`)."""
    save: str = ""
    """Folder for checkpoints; one that holds this run's checkpoints is resumed."""
    save_interval: Annotated[int, Range(0)] = 0
    """Iterations between checkpoints; 0 saves at the end only."""
    train_iters: Annotated[int, Range(1)] = 0
    """Iterations (optimizer steps) of the whole run."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Rows in one forward pass of a replica."""
    global_batch_size: Annotated[int, Range(1)] = 1
    """Rows in one iteration, over all replicas."""
    eval_interval: Annotated[int, Range(0)] = 0
    """Iterations between validation losses; 0: none."""
    eval_iters: Annotated[int, Range(1)] = 4
    """Global batches in one validation."""
    log_interval: Annotated[int, Range(1)] = 1
    """Iterations between log lines."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Weights and activations; master weights, sums and gradients are float32 in both."""
    deterministic_mode: bool = False
    """Two runs are bit-equal on GPUs too, at a cost in attention's backward pass."""
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    layers: LayerConfig = dataclasses.field(default_factory=LayerConfig)
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    faults: FaultConfig = dataclasses.field(default_factory=FaultConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def check(self, world_size: int) -> None:
        """Check the rules that need neither checkpoint nor data.

        Raises:
            InputError: a rule between fields is broken.
        """
        for name, value in (("--load", self.load), ("--data-path", self.data.data_path)):
            if not value:
                raise InputError(f"{name} is needed: see `ultralong {self.verb} --help`")
        check_ranges(self)
        if self.optimizer.lr_warmup_iters >= self.train_iters:
            raise InputError(
                f"lr_warmup_iters ({self.optimizer.lr_warmup_iters}) must be below train_iters "
                f"({self.train_iters}): the warm-up is part of the run; use --lr-warmup-iters "
                f"{max(self.train_iters - 1, 0)} or less, or more --train-iters"
            )
        if self.data.document_mask == "block" and self.micro_batch_size != 1:
            raise InputError(
                f"document_mask 'block' needs micro_batch_size 1, not {self.micro_batch_size}: "
                "every row has documents of its own; raise global_batch_size instead"
            )
        if self.data.reset_position_ids and self.data.document_mask != "block":
            raise InputError(
                f"reset_position_ids needs document_mask 'block', not '{self.data.document_mask}': "
                "tokens that see other documents would stand at one position with theirs"
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
        self.num_microbatches(world_size)

    def check_layers(self) -> None:
        """Raise InputError where layers of that kind cannot work on such a row."""
        parallel, memory = self.parallel, self.memory
        runs = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
        tiled = memory.recompute_granularity != "none"
        self.layers.check(
            document_mask=self.data.document_mask,
            precision=self.precision,
            recompute_granularity=memory.recompute_granularity,
            local_tokens=self.data.seq_length // parallel.context_parallel_size // runs,
            tile_size=memory.sequence_tile_size // runs if tiled else 0,
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

    def check_positions(self, checkpoint_positions: int, checkpoint_scaling: RopeScaling) -> None:
        """Raise InputError where rows are longer than the positions the model is made for."""
        limit = self.rope.max_positions(checkpoint_positions, checkpoint_scaling)
        if self.data.seq_length > limit:
            original = self.rope.original_max_position_embeddings
            raise InputError(
                f"seq_length ({self.data.seq_length}) is beyond the {limit} positions of "
                f"rope_scaling '{self.rope.rope_scaling}': rows must fit the rotary embedding; "
                f"use rows of {limit}, or rope_scaling yarn with a rope_scaling_factor of at "
                f"least {math.ceil(self.data.seq_length / original)} over "
                f"original_max_position_embeddings {original}"
            )


@dataclasses.dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """Continued pretraining at an extended context."""

    verb = "pretrain"

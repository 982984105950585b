"""Configuration of a run: frozen dataclasses, with every rule between fields in one place.

The command line is generated from these classes; flags keep Megatron-LM's spelling. Docstrings
under the fields are the flags' help.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from megatron_ultralong.documents import DocumentMask
from megatron_ultralong.errors import InputError
from megatron_ultralong.layer_config import LayerConfig
from megatron_ultralong.model_config import ModelConfig
from megatron_ultralong.optimizer_config import OptimizerConfig
from megatron_ultralong.parallel_config import ParallelConfig
from megatron_ultralong.run_config import CheckpointConfig, FaultConfig, LogConfig, MemoryConfig
from megatron_ultralong.yarn import (
    LinearConfig,
    NtkConfig,
    Ramp,
    RopeScaling,
    YarnConfig,
    yarn_attention_factor,
)

__all__ = [
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PretrainConfig",
    "RopeConfig",
    "TrainingConfig",
    "from_dict",
    "to_dict",
]

AnglePrecision = Literal["exact", "float32"]
Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of the extended model."""

    rope_scaling: Literal["yarn", "ntk", "linear", "none", "keep"] = "yarn"
    """Replaces the checkpoint's own scaling: yarn (the recipe), ntk, linear or none (ablations);
    keep leaves the checkpoint's."""
    rope_scaling_factor: float = 1.0
    """s: extended context / original context; 128, 256, 512 for 1M, 2M, 4M over 8192."""
    original_max_position_embeddings: int = 8192
    """L: the context over which YaRN counts rotations."""
    beta_fast: float = 4.0
    """YaRN: dimensions with more rotations over L keep their frequency."""
    beta_slow: float = 1.0
    """YaRN: dimensions with fewer rotations over L are divided by s."""
    ramp: Ramp = "rotations"
    """YaRN: mix by rotations (the paper; exports as llama3) or by dimensions (exports as yarn)."""
    attention_factor: float | Literal["yarn"] = 1.0
    """YaRN's temperature: a number, or yarn for 0.1 ln(s) + 1 (needs ramp dimensions to export)."""
    angle_precision: AnglePrecision = "exact"
    """exact: angles in float64, wrapped; float32: as engines with float32 tables have them."""

    def scaling(self, checkpoint: RopeScaling) -> RopeScaling:
        """The scaling to train with, given the one that the checkpoint carries."""
        if self.rope_scaling == "keep":
            return checkpoint
        if self.rope_scaling == "none":
            return None
        if self.rope_scaling == "ntk":
            return NtkConfig(self.rope_scaling_factor)
        if self.rope_scaling == "linear":
            return LinearConfig(self.rope_scaling_factor)
        factor = self.attention_factor
        return YarnConfig(
            self.rope_scaling_factor,
            self.original_max_position_embeddings,
            self.beta_fast,
            self.beta_slow,
            self.ramp,
            yarn_attention_factor(self.rope_scaling_factor) if factor == "yarn" else factor,
        )

    def max_positions(self, checkpoint_positions: int) -> int:
        """Positions that the extended model is made for, given those of the checkpoint."""
        if self.rope_scaling in ("keep", "none"):
            return checkpoint_positions
        if self.rope_scaling == "yarn":
            return math.floor(self.rope_scaling_factor * self.original_max_position_embeddings)
        return math.floor(self.rope_scaling_factor * checkpoint_positions)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    data_path: str = ""
    """Folder written by `ultralong prepare`; for sft, by `ultralong prepare chat`."""
    seq_length: int = 0
    """Tokens in a row; 0 takes the folder's own."""
    document_mask: DocumentMask = "none"
    """none: documents of a row attend to each other (the paper's recipe); block: they do not."""
    reset_position_ids: bool = False
    """Positions start again at 0 with every document; needs document_mask block."""
    seed: int = 1234
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
    save_interval: int = 0
    """Iterations between checkpoints; 0 saves at the end only."""
    train_iters: int = 0
    """Iterations (optimizer steps) of the whole run."""
    micro_batch_size: int = 1
    """Rows in one forward pass of a replica."""
    global_batch_size: int = 1
    """Rows in one iteration, over all replicas."""
    eval_interval: int = 0
    """Iterations between validation losses; 0: none."""
    eval_iters: int = 4
    """Global batches in one validation."""
    log_interval: int = 1
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
        for field, least in (
            ("train_iters", 1),
            ("micro_batch_size", 1),
            ("global_batch_size", 1),
            ("save_interval", 0),
            ("eval_interval", 0),
            ("eval_iters", 1),
            ("log_interval", 1),
        ):
            if getattr(self, field) < least:
                raise InputError(f"{field} must be at least {least}, not {getattr(self, field)}")
        if not 0 <= self.optimizer.lr_warmup_iters < self.train_iters:
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
        for part in (self.memory, self.checkpoint, self.faults, self.log):
            part.check()
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

    def check_positions(self, checkpoint_positions: int) -> None:
        """Raise InputError where rows are longer than the positions the model is made for."""
        limit = self.rope.max_positions(checkpoint_positions)
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


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain nested dicts, as they are written to YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(config_class: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A config from plain nested dicts; fields that are absent keep their default.

    Raises:
        InputError: a key that the class does not have, or a field without default is missing.
    """
    hints = typing.get_type_hints(config_class)
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - names)
    if unknown:
        raise InputError(
            f"{where or config_class.__name__}: unknown keys {unknown}; known are {sorted(names)}"
        )
    arguments = {
        key: from_dict(hints[key], value, f"{where}.{key}".lstrip("."))
        if dataclasses.is_dataclass(hints[key])
        else tuple(value)  # YAML and JSON have lists alone
        if isinstance(value, list)
        else value
        for key, value in values.items()
    }
    try:
        return config_class(**arguments)
    except TypeError as error:
        raise InputError(f"{where or config_class.__name__}: {error}") from error

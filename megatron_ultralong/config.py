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
from megatron_ultralong.run_config import CheckpointConfig, FaultConfig, LogConfig, MemoryConfig
from megatron_ultralong.yarn import (
    LinearConfig,
    NtkConfig,
    Ramp,
    RopeScaling,
    YarnConfig,
    yarn_attention_factor,
)

AnglePrecision = Literal["exact", "float32"]
Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama model, in Megatron-LM's words; read from a checkpoint, never typed."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    """Key and value heads."""
    kv_channels: int
    """Size of one head."""
    vocab_size: int
    """Rows of the embedding, not padded."""
    norm_epsilon: float
    rotary_base: float
    max_position_embeddings: int
    """Positions that the weights were trained for."""
    untie_embeddings_and_output_weights: bool


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
class ParallelConfig:
    """How the work is spread over ranks."""

    tensor_model_parallel_size: int = 1
    """Ranks that split every weight matrix and the heads."""
    pipeline_model_parallel_size: int = 1
    """Ranks that split the layers."""
    context_parallel_size: int = 1
    """Ranks that split every row of tokens."""
    cp_comm_type: Literal["p2p", "all_gather"] = "p2p"
    """How keys and values travel: p2p, a ring hidden behind the kernels; all_gather, one gather a
    layer, which document_mask block with cp_assignment balanced prefers."""
    cp_assignment: Literal["zigzag", "balanced"] = "zigzag"
    """Which rank holds which chunks of a row: zigzag is even under document_mask none; balanced is
    computed from each row's documents, and is even under block."""
    sequence_parallel: bool = False
    """Split norms and residuals over the tensor-parallel ranks, along the sequence."""
    distributed_timeout_minutes: float = 10.0
    """A collective that takes longer ends the run."""
    num_layers_in_first_pipeline_stage: int = 0
    """Layers of the first stage, which has the embedding too; 0: as many as the others."""
    num_layers_in_last_pipeline_stage: int = 0
    """Layers of the last stage, which has the output layer and the loss too; 0: as many as the
    others."""

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one replica of the model and one row."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    def data_parallel_size(self, world_size: int) -> int:
        """Replicas in ``world_size`` ranks.

        Raises:
            InputError: the ranks do not divide into replicas.
        """
        if world_size % self.model_parallel_size:
            raise InputError(
                f"world_size ({world_size}) must be divisible by tensor x pipeline x context "
                f"parallel size ({self.tensor_model_parallel_size} x "
                f"{self.pipeline_model_parallel_size} x {self.context_parallel_size} = "
                f"{self.model_parallel_size}): start a multiple of {self.model_parallel_size} "
                "ranks (torchrun --nproc-per-node), or change the sizes"
            )
        return world_size // self.model_parallel_size

    def check_model(self, model: ModelConfig) -> None:
        """Raise InputError where ``model`` cannot be split this way."""
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise InputError(
                "sequence_parallel splits the sequence over tensor-parallel ranks, and "
                "tensor_model_parallel_size is 1: use --no-sequence-parallel, or more ranks"
            )
        for name, heads in (
            ("num_attention_heads", model.num_attention_heads),
            ("num_query_groups", model.num_query_groups),
        ):
            _check_divisible(
                name,
                heads,
                "tensor_model_parallel_size",
                self.tensor_model_parallel_size,
                "every rank holds whole heads",
            )
        for name, size, part in (
            ("ffn_hidden_size", model.ffn_hidden_size, "MLP"),
            ("vocab_size", model.vocab_size, "vocabulary"),
        ):
            _check_divisible(
                name,
                size,
                "tensor_model_parallel_size",
                self.tensor_model_parallel_size,
                f"every rank holds an equal part of the {part}",
            )
        self.stage_layers(model.num_layers)

    def stage_layers(self, num_layers: int) -> list[int]:
        """Layers of every pipeline stage: 32 over 4, with 6 in the first and 8 in the last,
        ``[6, 9, 9, 8]``.

        Raises:
            InputError: the stages in between do not hold as many layers each.
        """
        stages = self.pipeline_model_parallel_size
        ends = (self.num_layers_in_first_pipeline_stage, self.num_layers_in_last_pipeline_stage)
        if min(ends) < 0 or (stages == 1 and any(ends)):
            raise InputError(
                f"num_layers_in_first_pipeline_stage ({ends[0]}) and "
                f"num_layers_in_last_pipeline_stage ({ends[1]}) are layers of the stages of a "
                f"pipeline, and pipeline_model_parallel_size is {stages}: leave them 0, or raise it"
            )
        between = stages - sum(end > 0 for end in ends)
        rest = num_layers - sum(ends)
        if rest < between or (between == 0 and rest) or (between and rest % between):
            if not any(ends):
                _check_divisible(
                    "num_layers",
                    num_layers,
                    "pipeline_model_parallel_size",
                    stages,
                    "every stage holds as many layers, but for the first and the last with "
                    "num_layers_in_first_pipeline_stage and num_layers_in_last_pipeline_stage",
                )
            raise InputError(
                f"num_layers ({num_layers}) less num_layers_in_first_pipeline_stage ({ends[0]}) "
                f"and num_layers_in_last_pipeline_stage ({ends[1]}) leaves {rest} layers for "
                f"{between} stages: every stage in between holds as many, at least one"
            )
        middle = rest // between if between else 0
        layers = [middle] * stages
        layers[0] = ends[0] or middle
        layers[-1] = ends[1] or middle
        return layers

    def check_seq_length(self, seq_length: int) -> None:
        """Raise InputError where rows of ``seq_length`` tokens cannot be split this way."""
        unit = 2 * self.context_parallel_size
        rule = "zigzag gives each rank one early and one late chunk"
        if self.sequence_parallel:
            unit *= self.tensor_model_parallel_size
            rule += ", and sequence parallelism splits them over tensor-parallel ranks"
        if seq_length < unit or seq_length % unit:
            below = seq_length // unit * unit
            nearest = f"{below} or {below + unit}" if below else f"{unit}"
            factors = "2 * context_parallel_size" + (
                " * tensor_model_parallel_size" if self.sequence_parallel else ""
            )
            raise InputError(
                f"seq_length ({seq_length}) must be divisible by {factors} ({unit}): "
                f"{rule}; use {nearest}"
            )


def _check_divisible(name: str, value: int, by_name: str, by: int, rule: str) -> None:
    if value % by:
        options = ", ".join(str(n) for n in range(1, min(value, 64) + 1) if value % n == 0)
        raise InputError(
            f"{name} ({value}) must be divisible by {by_name} ({by}): {rule}; "
            f"{by_name} can be {options}"
        )


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
class OptimizerConfig:
    """Adam, its schedule and gradient clipping."""

    lr: float = 3e-5
    """Peak learning rate (the paper's 3e-5)."""
    min_lr: float = 0.0
    """The rate that a decaying schedule ends at."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule after the warm-up; the paper does not state its own."""
    lr_warmup_iters: int = 0
    """Iterations of linear warm-up."""
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_grad: float = 1.0
    """Largest gradient norm; 0 does not clip."""


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
                f"({self.train_iters}): the warm-up is part of the run"
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
        return self.global_batch_size // rows

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

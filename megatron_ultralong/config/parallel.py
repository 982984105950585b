"""How the work is spread over ranks, and what can be spread that way."""

import dataclasses
import math
from typing import Annotated, Literal

from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError, counted, either
from megatron_ultralong.program.fields import YEAR, Range
from megatron_ultralong.sequence.head_exchange import check_heads

OF_TRAINING = (
    "cp_assignment",
    "num_virtual_stages_per_pipeline_rank",
    "microbatch_group_size_per_virtual_pipeline_stage",
)
"""Fields of :class:`ParallelConfig` that a forward pass alone does not look at."""


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How the work is split over ranks."""

    tensor_model_parallel_size: Annotated[int, Range(1)] = 1
    """Ranks that split every weight matrix and the heads."""
    pipeline_model_parallel_size: Annotated[int, Range(1)] = 1
    """Ranks that split the layers."""
    context_parallel_size: Annotated[int, Range(1)] = 1
    """Ranks that split every row of tokens."""
    cp_comm_type: Literal["p2p", "all_gather", "a2a", "a2a+p2p"] = "p2p"
    """What the ranks of a row exchange. p2p: keys and values in a ring whose traffic is hidden
    behind the kernels. all_gather: keys and values, one gather per layer; better with document_mask
    block and cp_assignment balanced. a2a: tokens for heads (Ulysses), between at most as many ranks
    as a rank has key heads. a2a+p2p: a2a among neighbours, and a ring between these groups."""
    hierarchical_context_parallel_sizes: Annotated[tuple[int, ...], Range(1)] = ()
    """For a2a+p2p: ranks that exchange heads, and groups of them in the ring, such as 4 8; their
    product is context_parallel_size."""
    cp_assignment: Literal["zigzag", "balanced"] = "zigzag"
    """Which chunks of a row each rank holds. zigzag: even work with document_mask none. balanced:
    computed from the documents of each row, even work with document_mask block."""
    sequence_parallel: bool = False
    """Split norms and residuals over the tensor-parallel ranks, along the sequence."""
    distributed_timeout_minutes: Annotated[float, Range(0.01, YEAR)] = 10.0
    """Longest time of a collective; a longer one ends the run."""
    num_layers_in_first_pipeline_stage: Annotated[int, Range(0)] = 0
    """Layers of the first stage, which also has the embedding; 0: as many as the others."""
    num_layers_in_last_pipeline_stage: Annotated[int, Range(0)] = 0
    """Layers of the last stage, which also has the output layer and the loss; 0: as many as the
    others."""
    num_virtual_stages_per_pipeline_rank: Annotated[int, Range(1)] = 1
    """Model chunks per pipeline rank (interleaved schedule). More chunks make the pipeline bubble
    smaller and the traffic larger; 1: no interleaving."""
    microbatch_group_size_per_virtual_pipeline_stage: Annotated[int, Range(0)] = 0
    """Micro-batches that pass through a model chunk before the next chunk runs; 0: the number of
    pipeline ranks."""

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one replica of the model and one row."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    @property
    def head_ranks(self) -> int:
        """Context-parallel ranks that exchange heads."""
        if self.cp_comm_type == "a2a+p2p":
            return self.hierarchical_context_parallel_sizes[0]
        return self.context_parallel_size if self.cp_comm_type == "a2a" else 1

    @property
    def ring_ranks(self) -> int:
        """Ranks, or groups of them that exchange heads, among which keys and values travel."""
        return self.context_parallel_size // self.head_ranks

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
                "ranks (--ranks, or torchrun --nproc-per-node), or change "
                "--tensor-model-parallel-size, --pipeline-model-parallel-size or "
                "--context-parallel-size"
            )
        return world_size // self.model_parallel_size

    def check_model(self, model: ModelConfig) -> None:
        """Raise InputError where ``model`` cannot be split this way."""
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise InputError(
                "sequence_parallel splits the sequence over tensor-parallel ranks, and "
                "tensor_model_parallel_size is 1: use --no-sequence-parallel, or more ranks"
            )
        for name, part in (
            ("num_attention_heads", "whole heads"),
            ("num_query_groups", "whole heads"),
            ("ffn_hidden_size", "an equal part of the MLP"),
            ("vocab_size", "an equal part of the vocabulary"),
        ):
            rule = f"every rank holds {part}"
            self._check_divides("tensor_model_parallel_size", name, getattr(model, name), rule)
        self._check_head_ranks(model)
        self.stage_layers(model.num_layers)

    def _check_head_ranks(self, model: ModelConfig) -> None:
        """Raise InputError where ranks cannot exchange heads this way."""
        sizes, is_two = self.hierarchical_context_parallel_sizes, self.cp_comm_type == "a2a+p2p"
        cp = self.context_parallel_size
        if bool(sizes) != is_two or (is_two and (len(sizes) != 2 or math.prod(sizes) != cp)):
            raise InputError(
                f"hierarchical_context_parallel_sizes ({' '.join(map(str, sizes)) or 'none'}) must "
                f"be two numbers whose product is context_parallel_size ({cp}) with cp_comm_type "
                f"a2a+p2p, and be left out with others; it is {self.cp_comm_type}"
            )
        check_heads(
            model.num_query_groups // self.tensor_model_parallel_size,
            *(self.head_ranks, cp, f"cp_comm_type {self.cp_comm_type}"),
        )

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
                rule = (
                    "every stage holds as many layers, except for the first and the last with "
                    "num_layers_in_first_pipeline_stage and num_layers_in_last_pipeline_stage"
                )
                self._check_divides("pipeline_model_parallel_size", "num_layers", num_layers, rule)
            raise InputError(
                f"num_layers ({num_layers}) less num_layers_in_first_pipeline_stage ({ends[0]}) "
                f"and num_layers_in_last_pipeline_stage ({ends[1]}) leaves "
                f"{counted(rest, 'layer')} for "
                f"{between} stages: every stage in between holds as many, at least one"
            )
        middle = rest // between if between else 0
        layers = [middle] * stages
        layers[0] = ends[0] or middle
        layers[-1] = ends[1] or middle
        chunks = self.num_virtual_stages_per_pipeline_rank
        if chunks < 1 or (stages == 1 and chunks > 1):
            raise InputError(
                f"num_virtual_stages_per_pipeline_rank ({chunks}) are the model chunks on a rank "
                f"of a pipeline, and pipeline_model_parallel_size is {stages}: leave it 1, or "
                "raise that"
            )
        if any(number % chunks for number in layers):
            raise InputError(
                f"the layers of the pipeline stages ({', '.join(map(str, layers))}) must be "
                f"divisible by num_virtual_stages_per_pipeline_rank ({chunks}): the chunks of a "
                "stage hold as many layers each; use a common divisor of them"
            )
        return layers

    def check_forward_only(self) -> None:
        """Raise InputError for what evaluations and generation, without a backward pass, have not.

        They run stages as a whole, one micro-batch at a time, and rows without documents.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in OF_TRAINING and value != field.default:
                raise InputError(
                    f"{field.name} {value} is of training alone: a checkpoint is evaluated, and "
                    "continues prompts, without it, however it was trained; leave --"
                    f"{field.name.replace('_', '-')} out"
                )

    def check_microbatches(self, num_microbatches: int) -> None:
        """Raise InputError where the pipeline's schedule cannot run so many micro-batches."""
        if self.num_virtual_stages_per_pipeline_rank == 1:
            if self.microbatch_group_size_per_virtual_pipeline_stage:
                raise InputError(
                    "microbatch_group_size_per_virtual_pipeline_stage "
                    f"({self.microbatch_group_size_per_virtual_pipeline_stage}) needs "
                    "num_virtual_stages_per_pipeline_rank of at least 2: it says when the next "
                    "model chunk of a rank has its turn"
                )
            return
        stages, group = self.pipeline_model_parallel_size, self.microbatch_group_size
        rest = num_microbatches % group if group else 0
        if not stages <= group <= num_microbatches or 0 < rest < stages:
            raise InputError(
                f"micro-batches of a replica ({num_microbatches}) do not fit the interleaved "
                f"schedule: they go through the model chunks in groups of {group} "
                "(microbatch_group_size_per_virtual_pipeline_stage), which must be at least "
                f"pipeline_model_parallel_size ({stages}) and at most all of them, and so many "
                "must be in the last group too; raise global_batch_size, or use "
                "num_virtual_stages_per_pipeline_rank 1"
            )

    @property
    def microbatch_group_size(self) -> int:
        """Micro-batches that go through a model chunk before the next chunk has its turn."""
        return (
            self.microbatch_group_size_per_virtual_pipeline_stage
            or self.pipeline_model_parallel_size
        )

    def passes_under_way(self, stage: int, num_microbatches: int) -> int:
        """Passes of a stage's model chunks that wait for their backward pass at the most.

        A pass holds ``1 / num_virtual_stages_per_pipeline_rank`` of the stage's layers. One
        forward, one backward: stage 1 of 4 has 3 micro-batches under way. Interleaved, as
        Megatron-Core's schedule warms up: with 2 chunks and groups of 4, ``2 * 2 + 4 + 1 = 9``.
        """
        behind = self.pipeline_model_parallel_size - stage - 1
        chunks = self.num_virtual_stages_per_pipeline_rank
        warm_up = behind if chunks == 1 else 2 * behind + (chunks - 1) * self.microbatch_group_size
        return min(warm_up + 1, chunks * num_microbatches)

    def check_seq_length(self, seq_length: int, *, is_fixed: bool = False) -> None:
        """Raise InputError where rows of ``seq_length`` tokens cannot be split this way.

        Args:
            seq_length: tokens of a row.
            is_fixed: rows are prepared: the layout is easier to change than they are.
        """
        factors, rules = [], []
        if self.context_parallel_size > 1:  # a rank alone takes rows of any length
            factors.append("2 * context_parallel_size")
            rules.append("zigzag gives each rank one early and one late chunk")
        if self.sequence_parallel:
            factors.append("tensor_model_parallel_size")
            rules.append("sequence parallelism splits them over tensor-parallel ranks")
        unit = self._row_unit(self.context_parallel_size)
        if seq_length < unit or seq_length % unit:
            below = seq_length // unit * unit
            nearest = f"{below} or {below + unit}" if below else f"{unit}"
            use = f"use {nearest}"
            if is_fixed:
                sizes = [n for n in range(1, 65) if seq_length % self._row_unit(n) == 0]
                use = f"prepare rows of {nearest}, or use --no-sequence-parallel"
                if sizes:
                    use = (
                        f"use --context-parallel-size {either(sizes)}, with a multiple of as many "
                        f"ranks, or prepare rows of {nearest}"
                    )
            raise InputError(
                f"seq_length ({seq_length}) must be divisible by {' * '.join(factors)} ({unit}): "
                f"{', and '.join(rules)}; {use}"
            )

    def _row_unit(self, context_parallel_size: int) -> int:
        """What the length of a row has to be a multiple of, for so many context-parallel ranks."""
        unit = 2 * context_parallel_size if context_parallel_size > 1 else 1
        return unit * self.tensor_model_parallel_size if self.sequence_parallel else unit

    def _check_divides(self, by_name: str, name: str, value: int, rule: str) -> None:
        by = getattr(self, by_name)
        if value % by:
            choice = either([n for n in range(1, min(value, 64) + 1) if value % n == 0])
            raise InputError(
                f"{name} ({value}) must be divisible by {by_name} ({by}): {rule}; "
                f"use --{by_name.replace('_', '-')} {choice}"
            )

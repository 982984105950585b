"""A job as its plan sees it: a model, a configuration, a number of GPUs, and their sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.plain_values import with_fields
from megatron_ultralong.config.run import LOCAL_LAYERS, MemoryConfig
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig, num_parameters, part_parameters
from megatron_ultralong.plan.area import DocumentRows

GIB = 2**30
LSE_BYTES = 4
"""Of one log-sum-exp; float32 beside bf16 and float32 activations."""


PAGE_BYTES = 4096


def in_pages(size: int) -> int:
    """Bytes of host memory behind a buffer."""
    return max(1, -(-size // PAGE_BYTES)) * PAGE_BYTES


def pinned_bytes(size: int) -> int:
    """The same of a buffer of Megatron-Core's optimizer: torch rounds up to a power of two."""
    return 1 << (size - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class Job:
    """What is planned. Nothing in it has been checked: :func:`check` does."""

    model: ModelConfig
    config: TrainingConfig
    num_gpus: int
    mean_area: float
    """Pairs of query and key that attend, of a mean row."""
    documents: DocumentRows | None = None
    """Of some rows, where they are masked and known: ranks share these unevenly."""
    pinned: frozenset[str] = frozenset()
    """Fields of the configuration that were typed: no search changes them."""

    @property
    def parallel(self) -> ParallelConfig:
        """How it is spread over ranks."""
        return self.config.parallel

    @property
    def memory(self) -> MemoryConfig:
        """What is kept, and where."""
        return self.config.memory

    @property
    def seq_length(self) -> int:
        """Tokens of a row."""
        return self.config.data.seq_length

    @property
    def data_parallel_size(self) -> int:
        """Replicas."""
        return self.parallel.data_parallel_size(self.num_gpus)

    @property
    def model_parameters(self) -> int:
        """Weights of the whole model."""
        return num_parameters(self.model)

    @property
    def num_shards(self) -> int:
        """Ranks over which the optimizer's states are spread."""
        return self.data_parallel_size * self.parallel.context_parallel_size

    @property
    def num_microbatches(self) -> int:
        """Forward passes of a replica in an iteration."""
        return self.config.num_microbatches(self.num_gpus)

    @property
    def slowest_over_mean(self) -> float:
        """What attention takes longer by ranks of unequal work; 1 without documents."""
        return 1.0 if self.documents is None else self.documents.slowest_over_mean(self.parallel)

    @property
    def stages(self) -> list[int]:
        """The pipeline stages that differ: the first, the second, which is as those behind it but
        has more micro-batches under way, and the last.
        """
        last = self.parallel.pipeline_model_parallel_size - 1
        return sorted({0, min(1, last), last})

    @property
    def tokens_per_iteration(self) -> int:
        """Of the global batch."""
        return self.config.global_batch_size * self.seq_length

    def with_flags(self, **flags: Any) -> Job:
        """The same with other values of the configuration, by name of their flags."""
        return dataclasses.replace(self, config=with_fields(self.config, **flags))

    def check(self) -> None:
        """Raise InputError where the layout cannot run, whatever the memory."""
        self.config.check_layout(self.model, self.num_gpus)

    def check_flags(self) -> None:
        """Raise InputError for what `pretrain` and `sft` refuse in any layout.

        The layout itself is left out, and what a plan can do without: checkpoint, rows and the
        number of iterations.
        """
        config = self.config.with_budget(self.seq_length)
        layout = ("cp_assignment", "distributed_timeout_minutes")
        parallel = ParallelConfig(**{name: getattr(self.parallel, name) for name in layout})
        warm_up = config.optimizer.lr_warmup_iters
        with_fields(
            config,
            load=config.load or "any",
            data_path=config.data.data_path or "any",
            train_iters=config.train_iters or max(warm_up, 0) + 1,
            parallel=parallel,
            # Against kinds of memory and layers each layout is checked.
            offload_activations=False,
            layers=LOCAL_LAYERS,
        ).check(1)

    def kept(self) -> list[int]:
        """Bytes of each tensor that a recomputed layer keeps of one micro-batch, for backward.

        Its input, [s, b, h] (under sequence parallelism a tensor-parallel rank's run of it); output
        [s, b, heads, d] and log-sum-exp [b, heads, s] of its attention, if that is kept.
        """
        its, keeps = self.sizes, self.memory.recompute_granularity == "keep_attention"
        return [its.hidden, its.queries, its.lse] if keeps else [its.hidden]

    @property
    def sizes(self) -> RankSizes:
        """Sizes of one rank's tensors."""
        model, parallel, config = self.model, self.parallel, self.config
        tp, rows = parallel.tensor_model_parallel_size, config.micro_batch_size
        element = 4 if config.precision == "fp32" else 2
        row_tokens = self.seq_length // parallel.context_parallel_size
        runs = tp if parallel.sequence_parallel else 1
        tokens = row_tokens * rows
        heads, kv_heads = model.num_attention_heads // tp, model.num_query_groups // tp

        def tile(size: int) -> int:
            most = max(1, size // runs) * runs if size else row_tokens
            return rows * min(row_tokens, most)

        recomputes = config.memory.recompute_granularity != "none"
        return RankSizes(
            element=element,
            tokens=tokens,
            row_tokens=row_tokens,
            runs=runs,
            hidden_size=model.hidden_size,
            ffn=model.ffn_hidden_size // tp,
            vocab=model.vocab_size // tp,
            queries=tokens * heads * model.kv_channels * element,
            keys=tokens * kv_heads * model.kv_channels * element,
            lse=tokens * heads * LSE_BYTES,
            head_dim=model.kv_channels,
            tile=tile(config.memory.sequence_tile_size if recomputes else 0),
            loss_tile=tile(config.memory.loss_tile_size),
        )


@dataclasses.dataclass(frozen=True)
class RankSizes:
    """Sizes of a rank's tensors of one micro-batch; in bytes unless they say otherwise."""

    element: int
    """Of an activation or weight."""
    tokens: int
    """Local tokens, of all rows of the micro-batch."""
    row_tokens: int
    """Local tokens of one row."""
    runs: int
    """Tensor-parallel ranks that split hidden states along the sequence, or 1."""
    hidden_size: int
    ffn: int
    """Channels of the MLP on this rank."""
    vocab: int
    """Words on this rank."""
    queries: int
    """A tensor of all queries; attention's output is as large."""
    keys: int
    """A tensor of all keys; values are as large."""
    lse: int
    head_dim: int
    tile: int
    """Tokens that go through projections and MLP at a time, all runs and rows."""
    loss_tile: int

    @property
    def hidden(self) -> int:
        """Hidden states of this rank: its run of them under sequence parallelism."""
        return self.tokens // self.runs * self.hidden_size * self.element

    @property
    def angles(self) -> int:
        """Rotary angles of the local positions, float32."""
        return self.row_tokens * self.head_dim * 4

    @property
    def queries_keys_values(self) -> int:
        """All three."""
        return self.queries + 2 * self.keys

    def of_tile(self, size: int) -> int:
        """Part of a tensor over all tokens that one tile has."""
        return size * self.tile // self.tokens


def stage_parameters(model: ModelConfig, parallel: ParallelConfig, stage: int) -> int:
    """Weights of a rank of pipeline stage ``stage``, its part of the vocabulary included."""
    return part_parameters(
        model,
        parallel.stage_layers(model.num_layers)[stage],
        parallel.tensor_model_parallel_size,
        is_first=stage == 0,
        is_last=stage == parallel.pipeline_model_parallel_size - 1,
    )

"""A training step of one rank: the program's own model, optimizer and step, with random weights."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.sequence.documents import Row
from megatron_ultralong.training.early_checks import RunInputs
from megatron_ultralong.training.row_source import RowSource
from megatron_ultralong.training.state import TrainingState
from megatron_ultralong.training.step import LanguageModelStep, microbatches, replica_samples
from megatron_ultralong.training.telling.phases import Clock, PhaseTimers
from rank_benchmark import lone_group


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One iteration of one rank."""

    seconds: float
    phases: dict[str, float]
    """Seconds by phase."""
    loss: float
    peak_allocated_gib: float
    peak_reserved_gib: float
    start_gib: float
    """Allocated before the iteration: weights, gradients, optimizer."""
    host_gib: float
    """Pinned for offloaded activations."""
    sent_bytes: Counter[tuple[str, int]]
    """By (operation, ranks of the group)."""


class _RandomState(TrainingState):
    """Weights are drawn, not loaded."""

    def load_weights(self, chunks: Sequence[GPTModel]) -> None:
        # By name: layers of Transformer Engine have the same matrices in another order.
        parameters = [its for chunk in chunks for its in sorted(chunk.named_parameters())]
        generator = torch.Generator(parameters[0][1].device).manual_seed(0)
        for _, parameter in parameters:
            if parameter.ndim == 1:  # of a norm
                torch.nn.init.ones_(parameter)
            else:
                torch.nn.init.normal_(parameter, std=0.02, generator=generator)


class RankJob:
    """One rank's part of a job."""

    def __init__(
        self,
        config: PretrainConfig,
        model: ModelConfig,
        groups: ProcessGroupCollection,
        rows: RowSource | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Build model and optimizer; ``rows``: of one document and random tokens if None."""
        self.config, self.model = config, model
        self.rows = rows
        self.timers = PhaseTimers(clock)
        self.groups = groups
        metadata = CheckpointMetadata(model, config.rope.scaling(None), "random weights")
        source = rows or _RandomRows(config.data.seq_length, model.vocab_size)
        inputs = RunInputs(config, metadata, metadata, source, None, {})
        self.state = _RandomState(inputs, groups, None, self.timers)

    def iteration(self, seq_length: int) -> Measurement:
        """One iteration over rows of ``seq_length``: forward, backward, optimizer."""
        data = dataclasses.replace(self.config.data, seq_length=seq_length)
        config = dataclasses.replace(self.config, data=data)
        step = LanguageModelStep(self.state.chunks, self.groups, self.timers, config)
        rows = microbatches(
            self.rows or _RandomRows(seq_length, self.model.vocab_size),
            replica_samples(config, self.groups.dp, 0),
        )
        cuda = torch.cuda.is_available()
        lone_group.sent.clear()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else 0
        _synchronize()
        self.timers.take()
        start = time.perf_counter()
        for chunk in self.state.chunks:
            chunk.zero_grad_buffer()
        self.state.optimizer.zero_grad()
        result = step(rows, forward_only=False)
        _synchronize()
        with self.timers.phase("optimizer"):
            self.state.optimizer.step()
            _synchronize()
        seconds = time.perf_counter() - start
        store = self.state.recomputation.store if self.state.recomputation else None
        return Measurement(
            seconds=seconds,
            phases={name: ms / 1000 for name, ms in self.timers.take().items() if ms},
            loss=result.loss,
            peak_allocated_gib=torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
            peak_reserved_gib=torch.cuda.max_memory_reserved() / 2**30 if cuda else 0.0,
            start_gib=before / 2**30,
            host_gib=getattr(store, "num_bytes", 0) / 2**30,
            sent_bytes=Counter(lone_group.sent),
        )


@dataclasses.dataclass(frozen=True)
class _RandomRows:
    """Rows of one document, with random tokens."""

    seq_length: int
    vocab_size: int

    def row(self, sample: int) -> Row:
        generator = np.random.default_rng(sample)
        edges = np.asarray([0, self.seq_length], dtype=np.int32)
        tokens = generator.integers(self.vocab_size, size=self.seq_length)
        return Row(tokens, edges, self.seq_length)

    def name(self, sample: int) -> str:
        return f"random[{sample}]"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

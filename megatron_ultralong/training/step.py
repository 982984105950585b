"""One step: its rows, a global batch through the model by Megatron's schedules, bad numbers."""

import collections
import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.mcore import cpu, parallel
from megatron_ultralong.mcore.batch import Batch, DocumentRow, LossTerms, local_batch, token_loss
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.rank_values import every_rank
from megatron_ultralong.sequence.documents import causal_area
from megatron_ultralong.training.row_source import RowSource
from megatron_ultralong.training.telling.phases import PhaseTimers


def check_rows(sources: Sequence[tuple[RowSource | None, range]]) -> None:
    """Read all rows that a run will read, before its first step: every rank a part of them.

    A model has no embedding for an id beyond its vocabulary, and a rank that finds that out in
    the middle of a step leaves the others waiting. Rows are read thousands of times as fast as
    they are trained on.

    Raises:
        InputError: on every rank the same, naming file, row and what is wrong.
    """
    ready = dist.is_initialized()
    part, parts = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
    problem = None
    try:
        for source, samples in sources:
            if source is not None:
                source.check(samples, part, parts)
    except InputError as error:
        problem = str(error)
    found = [each for each in every_rank(problem) if each is not None]
    if found:
        raise InputError(found[0])


def replica_samples(
    config: TrainingConfig, dp_group: dist.ProcessGroup, iteration: int
) -> list[range]:
    """Sample numbers of the micro-batches of one replica in one iteration.

    The global batch of an iteration is the same samples whatever the layout; a replica takes its
    own from every stride of ``micro_batch_size * dp_size``: in iteration 1, of batches of 8, the
    second of two replicas that take 2 at a time has ``[range(10, 12), range(14, 16)]``.
    """
    first, size = iteration * config.global_batch_size, config.micro_batch_size
    last, stride = first + config.global_batch_size, size * dp_group.size()
    starts = range(first + dp_group.rank() * size, last, stride)
    return [range(start, start + size) for start in starts]


def microbatches(source: RowSource, samples: list[range]) -> Iterator[list[DocumentRow]]:
    """The rows of :func:`replica_samples`, micro-batch by micro-batch."""
    for numbers in samples:
        yield [source.row(number) for number in numbers]


LossFunction = Callable[[Batch, torch.Tensor], LossTerms]


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Figures of one global batch; all but the last are the same on every rank."""

    loss: float
    """Mean nats over the tokens that count."""
    attention_area: float
    """Pairs of query and key, summed over the rows; padding counts nothing."""
    num_real_tokens: float
    """Tokens of the rows without their padding."""
    num_loss_tokens: float
    """Tokens that the loss is the mean of."""
    bad_microbatches: tuple[int, ...]
    """Micro-batches of this rank whose own loss is not finite."""


@dataclasses.dataclass
class LanguageModelStep:
    """Forward, and backward if asked, over the micro-batches of this replica."""

    chunks: Sequence[Any]
    groups: ProcessGroupCollection
    timers: PhaseTimers
    config: TrainingConfig

    def __post_init__(self) -> None:
        self._schedule = get_forward_backward_func()
        self._area = self._num_real_tokens = 0

    def __call__(self, rows: Iterator[list[DocumentRow]], *, forward_only: bool) -> StepResult:
        """Run the rows through the model.

        ``rows`` are the micro-batches of this replica, micro_batch_size rows each.
        """
        self._area = self._num_real_tokens = 0
        reports = self._run(rows, _mean_terms, forward_only)
        totals = [report["lm loss"] for report in reports]  # empty but on the last stage
        sums = torch.zeros(4, dtype=torch.float64, device=cpu.device())
        for total in totals:
            sums[:2] += total
        if self.groups.cp.rank() == 0:  # the other ranks of the group read the same rows
            sums[2], sums[3] = self._area, self._num_real_tokens
        total, count, area, num_real_tokens = self._everywhere(sums).tolist()
        bad: tuple[int, ...] = ()
        if not math.isfinite(total):
            bad = tuple(i for i, own in enumerate(totals) if not math.isfinite(own[0].item()))
        return StepResult(total / max(count, 1.0), area, num_real_tokens, count, bad)

    def position_sums(
        self, rows: Iterator[list[DocumentRow]], edges: Sequence[int]
    ) -> torch.Tensor:
        """Sums of the losses and their number by position, [2, num_bins] in float64 on the CPU.

        Args:
            rows: as for a step; no gradients are made.
            edges: of the bins, from :func:`megatron_ultralong.sequence.position_bins.bin_edges`.
        """
        terms = functools.partial(_position_terms, torch.tensor(edges[1:-1], device=cpu.device()))
        reports = self._run(rows, terms, True)
        sums = torch.zeros(2, len(edges) - 1, dtype=torch.float64, device=cpu.device())
        for report in reports:
            sums += report["bins"]
        return self._everywhere(sums).cpu()

    def _run(
        self, rows: Iterator[list[DocumentRow]], loss: LossFunction, forward_only: bool
    ) -> list[dict[str, torch.Tensor]]:
        reports: list[dict[str, torch.Tensor]] = self._schedule(
            forward_step_func=functools.partial(_forward_step, loss),
            # Every chunk of the model sees every micro-batch, each in its turn.
            data_iterator=list(itertools.tee(self._batches(rows), len(self.chunks))),
            model=list(self.chunks),
            num_microbatches=self.config.num_microbatches(dist.get_world_size()),
            # Megatron divides by the context and, under sequence parallelism, tensor parallel
            # size itself.
            seq_length=self.config.data.seq_length,
            micro_batch_size=self.config.micro_batch_size,
            forward_only=forward_only,
        )
        return reports

    def _batches(self, rows: Iterator[list[DocumentRow]]) -> Iterator[Batch]:
        while True:
            with self.timers.phase("data"):
                micro_batch = next(rows, None)
                if micro_batch is None:
                    return
                self._area += sum(self._row_area(row) for row in micro_batch)
                self._num_real_tokens += sum(row.num_real_tokens for row in micro_batch)
                batch = local_batch(
                    micro_batch,
                    document_mask=self.config.data.document_mask,
                    cp_group=self.groups.cp,
                    device=cpu.device(),
                    cp_assignment=self.config.parallel.cp_assignment,
                    reset_position_ids=self.config.data.reset_position_ids,
                )
            yield batch

    def _row_area(self, row: DocumentRow) -> int:
        is_whole = self.config.data.document_mask == "none"
        edges = [0, row.seq_length] if is_whole else row.cu_seqlens
        return causal_area(np.minimum(edges, row.num_real_tokens))

    def _everywhere(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums over data and context parallel ranks of the last stage, on every rank."""
        with self.timers.phase("communication"):
            dist.all_reduce(sums, group=self.groups.dp_cp)
            return parallel.broadcast(sums, self.groups.pp, -1)


def _forward_step(
    loss: LossFunction, batches: Iterator[Batch], model: Any
) -> tuple[torch.Tensor, Callable[[torch.Tensor], LossTerms]]:
    batch = next(batches)
    return batch.losses(model), functools.partial(loss, batch)


def _mean_terms(batch: Batch, losses: torch.Tensor) -> LossTerms:
    return token_loss(batch.loss_mask, losses)


def _position_terms(inner_edges: torch.Tensor, batch: Batch, losses: torch.Tensor) -> LossTerms:
    total, count, report = token_loss(batch.loss_mask, losses)
    place = torch.bucketize(batch.position_ids, inner_edges, right=True).flatten()
    values = torch.stack(((losses * batch.loss_mask).double(), batch.loss_mask.double()))
    sums = torch.zeros(2, len(inner_edges) + 1, dtype=torch.float64, device=losses.device)
    sums.index_add_(1, place, values.flatten(1))
    return total, count, {**report, "bins": sums}


NOT_FINITE = 65
"""Exit status of a run that stopped at such a number (EX_DATAERR)."""


class NotFiniteError(Exception):
    """The norm of the gradients is not finite; raised before any weight is changed."""


class FiniteGuard:
    """Keeps a step whose numbers are not finite from the weights, and finds where they came from.

    Gradients are looked at twice: on every rank before they are summed, to tell whose they are,
    and as their norm, which all ranks share, before the optimizer takes them.
    """

    def __init__(
        self, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer
    ) -> None:
        config = chunks[0].config  # the schedule takes the first chunk's for all of them
        self._chunks = chunks
        self._gradient_sums: list[torch.Tensor] = []
        self._finalize = config.finalize_model_grads_func
        self._norm = optimizer.get_grad_norm
        self._optimizer = optimizer
        config.finalize_model_grads_func = self._look_and_finalize
        optimizer.get_grad_norm = self._finite_norm

    def step(self) -> float:
        """The optimizer's step; returns the norm of the gradients.

        Raises:
            NotFiniteError: on every rank.
        """
        succeeded, norm, _ = self._optimizer.step()
        if not succeeded:
            raise NotFiniteError("the optimizer found gradients that are not finite")
        return float(norm)

    def describe(
        self, bad_microbatches: Sequence[int], samples: Sequence[range], source: RowSource
    ) -> str:
        """Ranks and rows of the last step's bad numbers; every rank calls it."""
        rows = [source.name(n) for index in bad_microbatches for n in samples[index]]
        batch = [source.name(n) for numbers in samples for n in numbers]
        is_good = all(bool(torch.isfinite(total)) for total in self._gradient_sums)
        bad = {"loss": rows, "gradients": [] if is_good else batch}
        findings = every_rank((bad, batch))
        for what in bad:
            ranks = [
                f"rank {rank} (rows {', '.join(found[what])})"
                for rank, (found, _) in enumerate(findings)
                if found[what]
            ]
            if ranks:
                return f"{what} not finite on {'; '.join(ranks)}"
        every_row = sorted({name for _, names in findings for name in names})
        return (
            "the sum over ranks is not finite, though every rank's own loss and gradients are "
            f"(rows {', '.join(every_row)})"
        )

    def _look_and_finalize(self, *args: Any, **kwargs: Any) -> Any:
        sums = [
            buffer.grad_data.sum()
            for chunk in self._chunks
            for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
        ]
        # Not looked at here: the schedule has not ended, and a GPU would be waited for.
        self._gradient_sums = sums
        return self._finalize(*args, **kwargs)

    def _finite_norm(self) -> Any:
        norm = self._norm()
        if norm is not None and not math.isfinite(norm):
            raise NotFiniteError(f"the norm of the gradients is {float(norm)}")
        return norm


_WINDOW, _FEWEST = 32, 8
"""Losses that the next one is compared with, at the most and at least."""


class SpikeDetector:
    """Tells a loss that lies far above the ones before it."""

    def __init__(self, deviations: float) -> None:
        self._deviations = deviations
        self._losses: collections.deque[float] = collections.deque(maxlen=_WINDOW)

    def check(self, loss: float) -> str | None:
        """A sentence about ``loss`` if it is a spike; it counts for the next ones in any case."""
        text = None
        if self._deviations and len(self._losses) >= _FEWEST:
            mean, deviation = statistics.mean(self._losses), statistics.pstdev(self._losses)
            # Losses that are all but equal make no scale: at least a thousandth of the loss.
            limit = mean + self._deviations * max(deviation, 1e-3 * abs(mean))
            if loss > limit:
                text = (
                    f"loss {loss:.4f} is above {limit:.4f}, {self._deviations:g} standard "
                    f"deviations over the last {len(self._losses)} (mean {mean:.4f})"
                )
        self._losses.append(loss)
        return text

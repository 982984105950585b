"""Numbers gone bad: losses and gradients that are not finite, and losses that jump."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_ultralong.program.rank_values import every_rank
from megatron_ultralong.training.rows import RowSource

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


class SpikeDetector:
    """Tells a loss that lies far above the ones before it."""

    def __init__(self, deviations: float, window: int = 32, fewest: int = 8) -> None:
        """Compare with the last ``window`` losses, once there are ``fewest``."""
        self._deviations = deviations
        self._fewest = fewest
        self._losses: collections.deque[float] = collections.deque(maxlen=window)

    def check(self, loss: float) -> str | None:
        """A sentence about ``loss`` if it is a spike; it counts for the next ones in any case."""
        text = None
        if self._deviations and len(self._losses) >= self._fewest:
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

"""A step of decoding whose shapes never change, and its replay as one CUDA graph.

In the 8B's shape the kernels of a token behind 131,072 take an H200 11 ms, and the host takes 41 ms
to start all 1,487. A graph starts them at once. It is of one cache: it holds the cache, and is
dropped with it, so that no graph writes into memory that belongs to somebody else by now.
"""

import functools
import logging
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from megatron_ultralong.attention.decoding import NextTokens
from megatron_ultralong.attention.kernels import block_attention

logger = logging.getLogger(__name__)

StepForm = Literal["auto", "eager", "static", "graph"]
"""How a decoder steps. ``eager``: over the rows and lengths that there are; ``static``: in shapes
that never change, kernel by kernel; ``graph``: the same as one graph, or ``static`` again where the
capture fails; ``auto``: ``graph`` if it can be had, else ``eager``."""
WARM_UP = 2
"""Steps before the capture: libraries and ranks prepare themselves, what cannot be captured."""
_WAITS = "called a synchronizing"
"""What PyTorch says, as it was told to, where the host waits for the device."""


def graph_refusal(
    dtype: torch.dtype, head_dim: int, num_stages: int, device: torch.device
) -> str | None:
    """Why steps cannot be CUDA graphs; None: they can."""
    if device.type != "cuda":
        return f"graphs are for a GPU, not for {device.type}"
    if num_stages > 1:
        return f"{num_stages} pipeline stages wait for each other's messages"
    return block_attention.rows_refusal(dtype, head_dim, device)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace for every stream that it saw."""
    return torch.cuda.Stream(device)


def drop_graphs() -> None:
    """Forget every graph of this process, before its process groups go.

    NCCL waits with the end of a communicator until no graph has its operations.
    """
    for step in list(_captured):
        step.drop()


class StaticStep:
    """One more token of each row of a cache.

    All rows of the cache are columns of every step, those that have ended idle ones: the work is
    the same, since the weights are read once for all columns, and no graph has to be made again.
    """

    def __init__(
        self,
        next_tokens: NextTokens,
        head_dim: int,
        logits: Callable[[NextTokens, torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        captures: bool,
    ) -> None:
        """Make room for what changes from step to step.

        Args:
            next_tokens: of the cache.
            head_dim: size of a head.
            logits: the model, from ``next_tokens``, token ids [rows, 1] and angles [1, rows, 1,
                head_dim] to [rows, vocabulary]; it reads nothing back from the device.
            captures: whether steps become a graph.
        """
        device, num_rows = next_tokens.cache.device, len(next_tokens.cache.lengths)
        self._next, self._model, self._captures = next_tokens, logits, captures
        self._tokens = torch.zeros((num_rows, 1), dtype=torch.int64, device=device)
        self._angles = torch.zeros((1, num_rows, 1, head_dim), dtype=torch.float32, device=device)
        self._logits: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self.failure = ""
        """Why it is no graph though it was to be one."""
        self._num_steps = 0
        self._stream = _capture_stream(device) if captures else None

    def __call__(
        self,
        rows: Sequence[int],
        tokens: npt.NDArray[np.int64],
        angles_SBHD: torch.Tensor,
        kept: Sequence[bool],
    ) -> torch.Tensor:
        """Logits of the token after it, [rows, vocabulary], which stay what they are.

        Args:
            rows: numbers of the rows that have not ended.
            tokens: ids of their tokens, one each.
            angles_SBHD: radians of all rows of the cache, [1, rows of the cache, 1, head_dim].
            kept: of each of ``rows`` whether this rank keeps the token's keys.
        """
        every = np.zeros((len(self._tokens), 1), np.int64)
        every[list(rows), 0] = tokens
        self._tokens.copy_(torch.from_numpy(every))
        self._angles.copy_(angles_SBHD)
        self._next.place(rows, kept)
        return self._run()[list(rows)]

    @torch.no_grad()
    def _run(self) -> torch.Tensor:
        """Logits of all rows, which the next step may overwrite."""
        self._num_steps += 1
        if self._captures and self._graph is None and self._num_steps > WARM_UP:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
            assert self._logits is not None
            return self._logits
        if self._stream is None:
            return self._forward()
        # On the stream of the capture: libraries keep memory for each.
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            is_last = self._captures and self._num_steps == WARM_UP
            logits = self._try() if is_last else self._forward()
        current.wait_stream(self._stream)
        return logits

    def _forward(self) -> torch.Tensor:
        return self._model(self._next, self._tokens, self._angles)

    def _try(self) -> torch.Tensor:
        """The step, to find out whether the host waits for the device in it.

        PyTorch 2.11 does not forget a capture that failed half-way, so none is begun then. Where it
        waits, it does so on all ranks, and they do the step again; any other error is of this rank.

        Raises:
            RuntimeError: it failed otherwise; done again, its messages would meet those that the
                other ranks sent for later layers.
        """
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            return self._forward()
        except RuntimeError as error:
            if _WAITS not in str(error):
                raise
            self._fail(error)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        return self._forward()

    def _capture(self) -> None:
        """Record the step, which runs nothing; what is recorded works on this object's tensors."""
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer context leaves the stream where entering or leaving the inner one fails.
            # thread_local: NCCL's watchdog may ask for its events meanwhile.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                self._logits = self._forward()
        except RuntimeError as error:
            self._fail(error)
            return
        self._graph = graph
        _captured.add(self)

    def _fail(self, error: RuntimeError) -> None:
        """Stay without a graph, and say so."""
        self._captures = False
        first, *_ = (str(error).strip() or "no message").splitlines()
        self.failure = f"it cannot be captured, {type(error).__name__}: {first}"
        logger.warning(
            "steps of decoding run kernel by kernel, several times slower than as one CUDA graph: "
            "%s",
            self.failure,
        )

    def drop(self) -> None:
        """Forget the graph; the step does not become another one."""
        self._graph = self._logits = None
        self._captures = False


_captured: weakref.WeakSet[StaticStep] = weakref.WeakSet()

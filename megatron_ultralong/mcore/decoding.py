"""Forward passes that continue rows: a prompt in chunks, then a token at a time.

The model is the one that trains, with a cache behind its attention. A prompt is read in chunks that
the context-parallel ranks share by zigzag, so that memory for activations depends on the chunk
alone; what does not divide, at least its last token, all ranks read together, and so they do every
token after it.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ultralong.attention import decoding
from megatron_ultralong.mcore import parallel, projection
from megatron_ultralong.mcore.core_attention import CachedCoreAttention, GivenPositions, Pass
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.mcore.static_step import StaticStep, StepForm, graph_refusal
from megatron_ultralong.program import rank_values, ranks
from megatron_ultralong.program.available_memory import available_memory
from megatron_ultralong.sequence.assignment import zigzag

logger = logging.getLogger(__name__)
Tokens = Sequence[int] | npt.NDArray[np.integer]


class Decoder:
    """The part of a model on this rank that reads and continues rows.

    Every rank makes the same calls with the same tokens, and gets the same logits.
    """

    def __init__(self, model: GPTModel, groups: ProcessGroupCollection) -> None:
        """Put a cache behind the attention of ``model``.

        Args:
            model: from ``build_model`` with a ``loss_tile_size``, weights loaded, without sequence
                parallelism (a step has fewer tokens than ranks); it cannot train any more.
            groups: Megatron's process groups.
        """
        config = model.config
        assert not config.sequence_parallel, "steps of one token cannot be split over ranks"
        self._model = model.eval()
        self._groups = groups
        self._rotary = model.rotary_pos_emb
        self._positions = GivenPositions()
        model.rotary_pos_emb = self._positions
        self._attentions: list[CachedCoreAttention] = []
        for number, layer in enumerate(model.decoder.layers):
            attention = CachedCoreAttention(layer.self_attention.core_attention, number)
            layer.self_attention.core_attention = attention
            self._attentions.append(attention)
        self._cp_size, self._cp_rank = groups.cp.size(), groups.cp.rank()
        self._static: StaticStep | None = None
        """Of the cache that is there, and gone with it; None: steps are eager."""
        self._cache: decoding.KeyValueCache | None = None
        self.num_starts = 0
        """Counts up when what was read is forgotten, so that who reads on can see it."""
        self._lengths: list[int] = []
        self._owners: list[list[npt.NDArray[np.int32]]] = []
        """Of every row, the context-parallel rank that keeps each of its tokens, by passes."""
        self.set_steps("auto")
        self._says = ranks.is_main_rank()

    def set_steps(self, steps: StepForm) -> None:
        """How tokens are written from now on; for tests and measurements."""
        config = self._model.config
        # One that ran otherwise would wait for messages of other shapes.
        refusals = rank_values.every_rank(
            graph_refusal(config.params_dtype, config.kv_channels, self._groups.pp.size(), device())
        )
        why = next((text for text in refusals if text), None)
        assert steps != "graph" or why is None, why
        self._steps = steps if steps != "auto" else "eager" if why else "graph"
        self.step_form = "each token one CUDA graph"
        """How they are, and why, in words."""
        if self._steps != "graph":
            self.step_form = _kernel_by_kernel(why or steps)
        is_slow = steps == "auto" and why is not None and device().type == "cuda"
        self._level = logging.WARNING if is_slow else logging.INFO
        self._make_static()

    def _make_static(self) -> None:
        config, self._static = self._model.config, None
        if self._cache is not None and self._steps != "eager":
            self._static = StaticStep(
                decoding.NextTokens(self._cache),
                config.kv_channels,
                self._next_logits,
                captures=self._steps == "graph",
            )

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values of the rows now held."""
        return 0 if self._cache is None else self._cache.num_bytes

    def most_cached_tokens(self) -> int:
        """Tokens whose keys and values the free memory of every rank holds."""
        self._forget()
        config = self._model.config
        kv_heads = config.num_query_groups // self._groups.tp.size()
        numbers = 2 * len(self._attentions) * kv_heads * config.kv_channels
        per_token = numbers * config.params_dtype.itemsize / self._cp_size
        return most_tokens(per_token, self._groups)

    @contextlib.contextmanager
    def whole_rows(self) -> Iterator[GPTModel]:
        """The model as it was: what it is given meanwhile are whole rows, as in training."""
        for attention in self._attentions:
            attention.current = None
        self._model.rotary_pos_emb = self._rotary
        try:
            yield self._model
        finally:
            self._model.rotary_pos_emb = self._positions

    def start(self, lengths: Sequence[tuple[int, int]], spare: int = 0) -> None:
        """Forget what was read, and make room for rows of (prompt, new) tokens each.

        ``spare`` are tokens that a rank can keep beside its even share, see :meth:`rewind`.
        """
        config = self._model.config
        self._forget()  # before the next one is there
        self._cache = decoding.KeyValueCache(
            len(self._attentions),
            len(lengths),
            spare
            + max(decoding.local_capacity(prompt, new, self._cp_size) for prompt, new in lengths),
            config.num_query_groups // self._groups.tp.size(),
            config.kv_channels,
            dtype=config.params_dtype,
            device=device(),
        )
        self._lengths = [0] * len(lengths)
        self._owners = [[] for _ in lengths]
        self._make_static()

    def _forget(self) -> None:
        self._cache = self._static = None
        for attention in self._attentions:  # the last pass holds the cache, too
            attention.current = None
        self.num_starts += 1

    def rewind(self, row: int, length: int, num_more: int) -> int:
        """Forget a row behind its first ``length`` tokens, and return how many are kept.

        None are where a rank would have no room for its share of ``num_more`` tokens: a part of a
        chunk that zigzag has spread is not even over the ranks.
        """
        assert self._cache is not None, "start comes first"
        owners = np.concatenate([*self._owners[row], np.zeros(0, np.int32)])[:length]
        kept = np.bincount(owners, minlength=self._cp_size)
        if kept.max() + -(-num_more // self._cp_size) + 1 > self._cache.capacity:
            owners, kept = owners[:0], np.zeros_like(kept)
        self._owners[row], self._lengths[row] = [owners], owners.size
        self._cache.lengths[row] = int(kept[self._cp_rank])
        return owners.size

    def read(
        self,
        row: int,
        prompt: Tokens,
        chunk_size: int,
        advance: Callable[[float], None] = lambda amount: None,
    ) -> Tensor:
        """Read the prompt of a row; logits of the token after it, float32 [vocabulary].

        Args:
            row: number of the row.
            prompt: token ids, at least one; they follow what was read of the row.
            chunk_size: tokens of one forward pass over all ranks, rounded to what they can share.
            advance: is told how many tokens were read.
        """
        rest = self._read_spread(row, np.asarray(prompt, np.int64), 1, chunk_size, advance)
        logits = self._last_logits(self._read_shared([row], rest[None]), 1)
        advance(rest.size)
        return logits[0]

    @torch.no_grad()
    def score(
        self, row: int, tokens: Tokens, labels_KN: npt.NDArray[np.int64], chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        """Read tokens of a row, and see what it says of those after its last ones.

        Args:
            row: number of the row.
            tokens: ids, at least ``n``; they follow what was read of the row.
            labels_KN: ids, each row of them a way in which the last ``n`` predictions may go.
            chunk_size: as in :meth:`read`.

        Returns:
            Losses in nats, and whether the argmax is the label, float32 [2, k, n] on the CPU.
        """
        num_ways, num_last = labels_KN.shape
        rest = self._read_spread(row, np.asarray(tokens, np.int64), num_last, chunk_size)
        hidden_BSH = self._read_shared([row], rest[None])
        scores_2KN = torch.empty((2, num_ways, num_last), device=device())
        if hidden_BSH is not None:
            labels = torch.from_numpy(labels_KN).to(device())
            last_KNH = hidden_BSH[:, -num_last:].expand(num_ways, -1, -1)
            scores_2KN[0], scores_2KN[1] = self._model.tiled_loss.scores(labels, last_KNH)
        loss_KN, correct_KN = parallel.broadcast(scores_2KN, self._groups.pp, -1).cpu().unbind()
        return loss_KN, correct_KN

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Read one more token of each of ``rows``; logits of the next, float32 [rows, vocabulary].

        Args:
            rows: numbers of the rows, ascending.
            tokens: their token ids.
        """
        if self._says:
            logger.log(self._level, "%s", self.step_form)
            self._says = False
        ids = np.asarray(tokens, dtype=np.int64)
        if self._static is None:
            return self._last_logits(self._read_shared(rows, ids[:, None]), len(rows))
        assert self._cache is not None, "start comes first"
        owners = np.array([self._lengths[row] for row in rows], np.int32) % self._cp_size
        kept = (owners == self._cp_rank).tolist()
        angles = self._rotary.angles_at(torch.tensor([self._lengths]))
        logits = self._static(rows, ids, angles, kept)
        if self._static.failure:
            self._steps, self.step_form = "static", _kernel_by_kernel(self._static.failure)
        self._cache.advance(rows, [range(is_kept) for is_kept in kept])
        self._count(rows, owners[None])
        return logits

    def _next_logits(self, tokens: decoding.NextTokens, ids_B1: Tensor, angles: Tensor) -> Tensor:
        """The model, for :class:`StaticStep`."""
        for attention in self._attentions:
            attention.current = tokens
        self._positions.angles = projection.CosSin.of(angles, self._model.config.params_dtype)
        hidden_BSH = self._model(ids_B1, torch.zeros_like(ids_B1), None)
        return self._last_logits(hidden_BSH, len(ids_B1))

    def _count(self, rows: Sequence[int], owners_SB: npt.NDArray[np.int32]) -> None:
        """Note what was read of some rows, and which ranks keep it."""
        for column, row in enumerate(rows):
            self._owners[row].append(owners_SB[:, column])
            self._lengths[row] += len(owners_SB)

    def _read_spread(
        self,
        row: int,
        tokens: npt.NDArray[np.int64],
        num_last: int,
        chunk_size: int,
        advance: Callable[[float], None] = lambda amount: None,
    ) -> npt.NDArray[np.int64]:
        """Chunks of one row, of which this rank works on its zigzag share; what is left of it.

        At least ``num_last`` tokens are.
        """
        num_spread = decoding.spread_length(len(tokens) - num_last + 1, self._cp_size)
        unit, assignment = 2 * self._cp_size, zigzag(self._cp_size)
        step = max(unit, chunk_size // unit * unit)
        for start in range(0, num_spread, step):
            chunk = tokens[start : min(start + step, num_spread)]
            places = [assignment.positions(rank, chunk.size) for rank in range(self._cp_size)]
            owners = np.empty(chunk.size, np.int32)
            for rank, place in enumerate(places):
                owners[place.numpy()] = rank
            local = places[self._cp_rank]
            self._forward(
                [row],
                torch.from_numpy(chunk)[local][None],
                (local + self._lengths[row])[:, None],
                [range(len(local))],
                is_spread=True,
            )
            self._count([row], owners[:, None])
            advance(chunk.size)
        return tokens[num_spread:]

    def _read_shared(self, rows: Sequence[int], tokens: npt.NDArray[np.int64]) -> Tensor | None:
        """Tokens [b, s] of some rows on all ranks; hidden states as :meth:`_forward` has them."""
        starts = torch.tensor([self._lengths[row] for row in rows])
        positions_SB = torch.arange(tokens.shape[1])[:, None] + starts
        owners_SB = (positions_SB % self._cp_size).numpy().astype(np.int32)
        kept = [
            tuple(np.flatnonzero(owners_SB[:, column] == self._cp_rank).tolist())
            for column in range(len(rows))
        ]
        hidden_BSH = self._forward(
            rows, torch.from_numpy(tokens), positions_SB, kept, is_spread=False
        )
        self._count(rows, owners_SB)
        return hidden_BSH

    def _forward(
        self,
        rows: Sequence[int],
        tokens_BS: Tensor,
        positions_SB: Tensor,
        kept: Sequence[range | tuple[int, ...]],
        *,
        is_spread: bool,
    ) -> Tensor | None:
        """Hidden states [b, s, h] behind the last layer, on the last pipeline stage."""
        cache = self._cache
        assert cache is not None, "start comes first"
        now = Pass(
            cache,
            tuple(rows),
            tuple(kept),
            cache.place(rows, kept),
            is_spread,
            is_first=not any(self._lengths[row] for row in rows),
        )
        for attention in self._attentions:
            attention.current = now
        self._positions.angles = self._rotary.angles_at(positions_SB)
        tokens_BS = tokens_BS.to(device())  # positions: see GivenPositions
        hidden_BSH = parallel.last_stage_output(
            self._model, tokens_BS, torch.zeros_like(tokens_BS), self._cp_size
        )
        cache.advance(rows, kept)
        return hidden_BSH

    @torch.no_grad()
    def _last_logits(self, hidden_BSH: Tensor | None, num_rows: int) -> Tensor:
        """Logits [b, vocabulary] of the last token, on all ranks."""
        if hidden_BSH is not None:
            logits: Tensor = self._model.tiled_loss.logits(hidden_BSH[:, -1:])[:, 0].contiguous()
        else:
            dtype = self._model.config.params_dtype
            logits = torch.empty(
                (num_rows, self._model.vocab_size),
                dtype=dtype if dtype == torch.float64 else torch.float32,
                device=device(),
            )
        return parallel.broadcast(logits, self._groups.pp, -1)

    def agree(self, values: Tensor) -> Tensor:
        """The ``values`` of the first rank that holds this replica, on every rank of it.

        Ranks compute the same; this makes a token the same where the last bit of a logit is not.
        """
        for group in (self._groups.tp, self._groups.cp, self._groups.pp):
            parallel.broadcast(values, group, 0)
        return values


def _kernel_by_kernel(why: str) -> str:
    return f"each token kernel by kernel ({why})"


def most_tokens(bytes_per_token: float, groups: ProcessGroupCollection) -> int:
    """Tokens that the free memory of every rank of a replica holds; all of them call it.

    A tenth of a device's memory is left to activations, and a fifth of what the host has
    available, which its ranks share.
    """
    tokens = torch.tensor(int(_free_bytes() / bytes_per_token), device=device())
    for group in (groups.tp, groups.cp, groups.pp):
        dist.all_reduce(tokens, op=dist.ReduceOp.MIN, group=group)
    return int(tokens)


def _free_bytes() -> int:
    """Memory that keys and values may take on this rank."""
    if device().type != "cuda":
        local_ranks = ranks.local_world_size()
        return int(0.8 * available_memory() / local_ranks)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return max(0, free - total // 10)

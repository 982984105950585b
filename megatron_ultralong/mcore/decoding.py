"""Forward passes that continue rows: a prompt in chunks, then a token at a time.

The model is the one that trains, with a cache behind its attention. A prompt is read in chunks that
the context-parallel ranks share by zigzag, so that memory for activations depends on the chunk
alone; what does not divide, at least its last token, all ranks read together, and so they do every
token after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import psutil
import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ultralong.attention.decoding import KeyValueCache, local_capacity, spread_length
from megatron_ultralong.mcore.core_attention import CachedCoreAttention, GivenPositions, Pass
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.mcore.parallel import broadcast, last_stage_output
from megatron_ultralong.sequence.assignment import zigzag

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
        self._cache: KeyValueCache | None = None
        self._lengths: list[int] = []

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values of the rows now held."""
        return 0 if self._cache is None else self._cache.num_bytes

    def most_cached_tokens(self) -> int:
        """Tokens whose keys and values the free memory of every rank holds.

        A tenth of a device's memory is left to activations, and a fifth of what the host has
        available, which its ranks share.
        """
        self._cache = None
        config = self._model.config
        kv_heads = config.num_query_groups // self._groups.tp.size()
        numbers = 2 * len(self._attentions) * kv_heads * config.kv_channels
        per_token = numbers * config.params_dtype.itemsize / self._cp_size
        tokens = torch.tensor(int(_free_bytes() / per_token), device=device())
        for group in (self._groups.tp, self._groups.cp, self._groups.pp):
            dist.all_reduce(tokens, op=dist.ReduceOp.MIN, group=group)
        return int(tokens)

    def start(self, lengths: Sequence[tuple[int, int]]) -> None:
        """Forget what was read, and make room for rows of (prompt, new) tokens each."""
        config = self._model.config
        self._cache = None  # before the next one is there
        self._cache = KeyValueCache(
            len(self._attentions),
            len(lengths),
            max(local_capacity(prompt, new, self._cp_size) for prompt, new in lengths),
            config.num_query_groups // self._groups.tp.size(),
            config.kv_channels,
            dtype=config.params_dtype,
            device=device(),
        )
        self._lengths = [0] * len(lengths)

    def read(
        self,
        row: int,
        prompt: Tokens,
        chunk_size: int,
        advance: Callable[[float], None] = lambda amount: None,
    ) -> Tensor:
        """Read the prompt of a row; logits of the token after it, float32 [vocabulary].

        Args:
            row: number of the row, which is empty.
            prompt: token ids, at least one.
            chunk_size: tokens of one forward pass over all ranks, rounded to what they can share.
            advance: is told how many tokens were read.
        """
        assert self._lengths[row] == 0, f"row {row} has been read"
        num_spread = spread_length(len(prompt), self._cp_size)
        unit = 2 * self._cp_size
        step = max(unit, chunk_size // unit * unit)
        for start in range(0, num_spread, step):
            chunk = prompt[start : min(start + step, num_spread)]
            self._read_spread(row, np.asarray(chunk, dtype=np.int64))
            advance(len(chunk))
        rest = prompt[num_spread:]
        logits = self._read_shared([row], np.asarray(rest, dtype=np.int64)[None])
        advance(len(rest))
        return logits[0]

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Read one more token of each of ``rows``; logits of the next, float32 [rows, vocabulary].

        Args:
            rows: numbers of the rows, ascending.
            tokens: their token ids.
        """
        return self._read_shared(rows, np.asarray(tokens, dtype=np.int64)[:, None])

    def _read_spread(self, row: int, chunk: npt.NDArray[np.int64]) -> None:
        """A chunk of one row, of which this rank works on its zigzag share."""
        local = zigzag(self._cp_size).positions(self._cp_rank, len(chunk))
        tokens_BS = torch.from_numpy(chunk)[local][None]
        self._forward(
            [row],
            tokens_BS,
            (local + self._lengths[row])[:, None],
            [range(len(local))],
            is_spread=True,
        )
        self._lengths[row] += len(chunk)

    def _read_shared(self, rows: Sequence[int], tokens: npt.NDArray[np.int64]) -> Tensor:
        """Tokens [b, s] of some rows on all ranks; logits behind their last, [b, vocabulary]."""
        starts = torch.tensor([self._lengths[row] for row in rows])
        positions_SB = torch.arange(tokens.shape[1])[:, None] + starts
        kept = [
            tuple(
                token
                for token in range(tokens.shape[1])
                if (self._lengths[row] + token) % self._cp_size == self._cp_rank
            )
            for row in rows
        ]
        hidden_BSH = self._forward(
            rows, torch.from_numpy(tokens), positions_SB, kept, is_spread=False
        )
        for row in rows:
            self._lengths[row] += tokens.shape[1]
        return self._last_logits(hidden_BSH, len(rows))

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
        hidden_BSH = last_stage_output(
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
        return broadcast(logits, self._groups.pp, -1)

    def agree(self, values: Tensor) -> Tensor:
        """The ``values`` of the first rank that holds this replica, on every rank of it.

        Ranks compute the same; this makes a token the same where the last bit of a logit is not.
        """
        for group in (self._groups.tp, self._groups.cp, self._groups.pp):
            broadcast(values, group, 0)
        return values


def _free_bytes() -> int:
    """Memory that keys and values may take on this rank."""
    if device().type != "cuda":
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return int(0.8 * psutil.virtual_memory().available / local_ranks)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return max(0, free - total // 10)

"""What attention takes beyond its inputs and results, as ``attention/`` runs it.

Sizes follow the code: the ring's buffers and float32 sums (``attention/ring/ring.py``), the
gathered keys (``attention/ring/gather.py``), and what kernels take inside, as
benchmarks/attention.md measured.
"""

from __future__ import annotations

import dataclasses

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.job import RankSizes
from megatron_ultralong.plan.ledger import Ledger

MAX_ELEMENTS = 2**31 - 1
"""Of one tensor in a kernel; more query heads are split
(``attention/kernels/block_attention.py``)."""
MERGED_TOKENS = 16_384
"""Whose float32 copy exists while a partial result is added."""
MIN_PIECES, MAX_PIECES, PIECE_BYTES = 8, 64, 4 << 20
"""Pieces of a travelling sum (``attention/ring/gradient_sum.py``)."""


@dataclasses.dataclass(frozen=True)
class AttentionMemory:
    """Attention of one layer on one rank."""

    sizes: RankSizes
    parallel: ParallelConfig
    kernel: str
    """fa4, fa3, cudnn or fa2; cpu for a CPU's, whose inside no count of tensors sees."""
    has_groups: bool
    """Whether several query heads share a key head."""
    num_splits: int = 1
    """Float32 sums of dq that a deterministic backward pass of FlashAttention 2 keeps apart; cuDNN
    has none of its own."""

    @property
    def _ranks(self) -> int:
        return self.parallel.context_parallel_size

    @property
    def _wide(self) -> int:
        """Factor from an activation's bytes to a float32 sum's."""
        return 4 // self.sizes.element

    @property
    def _widens(self) -> bool:
        """Whether the kernel gets float32 copies of a ring's blocks."""
        return self.kernel == "cpu" and self._ranks > 1 and self._wide > 1

    def forward(self, ledger: Ledger) -> None:
        """Walk through the forward pass; queries, keys and values are held by the caller."""
        its = self.sizes
        if self._ranks == 1:
            with ledger.hold("attention", its.queries, its.lse):
                return
        with ledger.hold("ring and gather buffers", self._keys_here()):
            copies = self._copies(its.queries, its.keys)
            with ledger.hold("attention", copies, self._result(its.queries), its.lse):
                if not self._widens:
                    ledger.take("attention", self._sum())
                    ledger.give("attention", self._sum())
            with ledger.hold("attention", its.queries * self._wide, 2 * its.lse):
                for queries, keys in self._rectangles():
                    part = self._result(queries) + its.lse
                    with ledger.hold("attention", part):
                        ledger.touch("attention", self._copies(queries, keys))
                        ledger.touch("attention", self._merged(), 2 * its.lse)
        if self._wide > 1:
            ledger.touch("attention", its.queries * self._wide, its.queries, its.lse)

    def backward(self, ledger: Ledger) -> None:
        """Walk through the backward pass; its inputs are held by the caller, not its results."""
        its = self.sizes
        if self._ranks == 1:
            self._kernel_backward(ledger, its.queries, its.keys)
            return
        wide_queries, sums = its.queries * self._wide, 2 * its.keys * self._wide
        with ledger.hold("attention", wide_queries):
            if self.parallel.cp_comm_type == "all_gather":
                self._gathered_backward(ledger, sums)
            else:
                with ledger.hold("ring and gather buffers", sums + self._piece(sums)):
                    with ledger.hold("ring and gather buffers", self._keys_here()):
                        for queries, keys in self._rectangles():
                            self._kernel_backward(ledger, queries, keys)
                    self._kernel_backward(ledger, its.queries, its.keys)
                    ledger.touch("attention", its.queries_keys_values)

    def _gathered_backward(self, ledger: Ledger, sums: int) -> None:
        """Gradients of all ranks' keys in float32, twice while they are cut for their owners."""
        its = self.sizes
        with ledger.hold("ring and gather buffers", self._keys_here()):
            self._kernel_backward(ledger, its.queries, its.keys)
            with ledger.hold("ring and gather buffers", sums, self._ranks * sums):
                self._kernel_backward(ledger, its.queries, its.keys * self._ranks)
                ledger.touch("ring and gather buffers", self._ranks * sums)

    def _keys_here(self) -> int:
        """Keys and values of other ranks: two hops' in a ring, everybody's twice where gathered."""
        pair = 2 * self.sizes.keys
        if self.parallel.cp_comm_type == "all_gather":
            return pair + 2 * self._ranks * pair
        return min(2, self._ranks - 1) * pair

    def _rectangles(self) -> list[tuple[int, int]]:
        """(queries, keys) of the blocks of a hop: all queries or the late half of them."""
        its = self.sizes
        if self.parallel.cp_comm_type == "all_gather":
            return [(its.queries // 2, its.keys * (2 * self._ranks - 1) // 2)]
        return [(its.queries, its.keys // 2), (its.queries // 2, its.keys)]

    def _kernel_backward(self, ledger: Ledger, queries: int, keys: int) -> None:
        """Results of one block and the kernel's workspace."""
        elements = queries // self.sizes.element
        groups = max(1, -(-elements // MAX_ELEMENTS))
        part = queries // groups
        with ledger.hold("attention", self._copies(3 * queries, keys)):
            if groups == 1:
                with ledger.hold(
                    "attention",
                    self._result(queries),
                    2 * self._result(keys),
                    self._workspace(queries, keys),
                ):
                    return
            shared = 2 * keys * self._wide
            workspace = self._workspace(part, keys)
            ledger.touch("attention", queries, shared, part, 2 * keys, workspace)

    def _workspace(self, queries: int, keys: int) -> int:
        """Inside a backward kernel: float32 sums of dq, and of dk and dv of several heads."""
        wide = self._wide
        if self.kernel == "cpu":
            return 0
        if self.num_splits > 1:
            heads_of_keys = self.sizes.queries // self.sizes.keys
            return self.num_splits * wide * queries + 2 * keys * heads_of_keys
        if not self.has_groups:
            return wide * queries
        if self.kernel in ("fa4", "fa3"):
            return wide * (queries + 2 * keys)
        # dk and dv of every query head, in the dtype of the inputs.
        heads_of_keys = self.sizes.queries // self.sizes.keys
        return wide * queries + 2 * keys * heads_of_keys

    def _result(self, size: int) -> int:
        return size * self._wide if self._widens else size

    def _copies(self, queries: int, keys: int) -> int:
        return (queries + 2 * keys) * self._wide if self._widens else 0

    def _sum(self) -> int:
        return self.sizes.queries * self._wide if self._wide > 1 else 0

    def _merged(self) -> int:
        tokens = min(MERGED_TOKENS, self.sizes.row_tokens)
        return self.sizes.queries * self._wide * tokens // self.sizes.row_tokens

    def _piece(self, sums: int) -> int:
        return sums // max(MIN_PIECES, min(MAX_PIECES, sums // PIECE_BYTES))


GIB = 2**30
HELD_AT_ONCE = 2
"""Matrices together at least: the masked one is made beside the one that it comes from."""


def score_matrix_bytes(config: TrainingConfig, model: ModelConfig) -> int:
    """Bytes of one float32 matrix [b, heads, s, s] of a rank's block: the longest it may meet.

    With ``document_mask`` block that is one document over the whole block.
    """
    parallel = config.parallel
    heads = model.num_attention_heads // parallel.tensor_model_parallel_size
    block = config.data.seq_length // parallel.context_parallel_size
    return 4 * config.micro_batch_size * heads * block**2


def score_matrix_note(config: TrainingConfig, model: ModelConfig, why: str) -> str:
    """A line about it: ``why`` no other kernel serves."""
    parallel = config.parallel
    heads = model.num_attention_heads // parallel.tensor_model_parallel_size
    block = config.data.seq_length // parallel.context_parallel_size
    upto = "up to " if config.data.document_mask == "block" else ""
    shape = f"{config.micro_batch_size} x {heads} heads x {upto}{block:,} x {block:,}"
    size = f"{score_matrix_bytes(config, model) / GIB:,.2f} GiB"
    return (
        f"warning: {why} has no fused attention kernel on a GPU: plain formulas hold matrices of "
        f"scores, {shape} in float32 = {size} each, at least {HELD_AT_ONCE} at once"
    )


def fp32_notes(config: TrainingConfig, model: ModelConfig) -> list[str]:
    """The line that fp32 calls for on every GPU, before one is there to be asked."""
    return (
        [score_matrix_note(config, model, "precision 'fp32'")] if config.precision == "fp32" else []
    )

"""What a layer takes beyond what it keeps: norms, projections and MLP by tiles, and attention.

Sizes follow the code: the ring's buffers and float32 sums (``attention/ring/ring.py``), the
gathered keys (``attention/ring/gather.py``), and what kernels take inside, as
benchmarks/attention.md measured.
"""

import dataclasses

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.job import GIB, RankSizes
from megatron_ultralong.plan.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class TileMemory:
    """Bytes at the peak of a part of a layer, results that are kept elsewhere not counted."""

    model: ModelConfig
    sizes: RankSizes
    on_cpu: bool
    """There a norm is several operations in float32; on a GPU it is one kernel."""
    is_fused: bool
    """Rotary embedding and SwiGLU are compiled kernels, with nothing between operations."""

    @property
    def hidden(self) -> int:
        """Hidden states of all tokens of a tile, as projections take them."""
        return self.sizes.tile * self.sizes.hidden_size * self.sizes.element

    @property
    def hidden_here(self) -> int:
        """The run of them that is on this rank."""
        return self.hidden // self.sizes.runs

    @property
    def _gathered(self) -> int:
        """Gathered gradients; gathered inputs are in Megatron's own buffer."""
        return self.hidden if self.sizes.runs > 1 else 0

    def norm_saves(self, hidden: int) -> int:
        """For backward, of ``hidden`` bytes of hidden states: the input; on a CPU the product too.

        Both in float32 there.
        """
        return 2 * self._wide(hidden) if self.on_cpu else hidden

    def norm_backward(self, hidden: int) -> int:
        """What it saved, and gradients; of both sides, or six float32 tensors."""
        return 6 * self._wide(hidden) if self.on_cpu else 3 * hidden

    def projection_forward(self) -> int:
        """Norm, queries, keys and values of a tile in one, and rotary embedding."""
        mixed, queries = self._mixed, self.sizes.of_tile(self.sizes.queries)
        rotary = 0 if self.is_fused else 4 * queries
        return self.hidden_here + mixed + rotary + self._norms_of_heads(queries, self._keys)

    def projection_backward(self) -> int:
        """The same with its gradients."""
        mixed, queries = self._mixed, self.sizes.of_tile(self.sizes.queries)
        weight = self.sizes.hidden_size * self._mixed // self.sizes.tile
        saved = self.norm_saves(self.hidden_here) + self.hidden_here
        saved += self._norms_of_heads(queries, self._keys)
        rotary = 0 if self.is_fused else 3 * queries
        return saved + self._gathered + 2 * mixed + rotary + weight

    def mlp_forward(self) -> int:
        """Attention's projection, residual, norm, MLP."""
        wide = self._ffn
        inside = max((3 if self.is_fused else 5) * wide, wide + self.hidden + self.hidden_here)
        return self._attended + 2 * self.hidden_here + inside

    def mlp_backward(self) -> int:
        """The same with its gradients.

        Saved for it: gate and up (2 of the MLP's width), silu of one and an offset copy of the
        other, their product; seven once the gradients of the last two are there. Fused, gate, up
        and product; without the product, and with the gradients of all three, five.
        """
        its = self.sizes
        weight = its.hidden_size * its.ffn * its.element
        saved = self._attended + self.norm_saves(self.hidden_here) + 2 * self.hidden_here
        most, before = (5, 4) if self.is_fused else (7, 6)
        return saved + self._gathered + max(most * self._ffn, before * self._ffn + weight)

    def _norms_of_heads(self, queries: int, keys: int) -> int:
        """What norms of queries and keys save: a copy of queries, keys in the tensor of all three.

        That one is counted elsewhere.
        """
        if not self.model.family.qk_layernorm:
            return 0
        return self.norm_saves(queries) + self.norm_saves(keys) - keys

    @property
    def _keys(self) -> int:
        return self.sizes.of_tile(self.sizes.keys)

    @property
    def _ffn(self) -> int:
        return self.sizes.tile * self.sizes.ffn * self.sizes.element

    @property
    def _mixed(self) -> int:
        """Queries, keys and values as one tensor."""
        return self.sizes.of_tile(self.sizes.queries_keys_values)

    @property
    def _attended(self) -> int:
        """Copy of attention's output where a tile is a piece of every run."""
        return self.sizes.of_tile(self.sizes.queries) if self.sizes.runs > 1 else 0

    def _wide(self, size: int) -> int:
        return size * 4 // self.sizes.element

    def layer_saves(self) -> int:
        """What autograd saves of Megatron's own layer, where nothing is recomputed.

        Inputs of both norms and of what follows them; queries, keys, values; output and
        log-sum-exps; cosines and sines of queries and of keys; the MLP's as in a tile.
        """
        its = self.sizes
        rotary = 4 * its.row_tokens * its.head_dim * its.element
        attention = its.queries_keys_values + its.queries + its.lse + rotary
        if self.model.family.qk_layernorm:
            attention += its.queries_keys_values + self._norms_of_heads(its.queries, its.keys)
        return 2 * self.norm_saves(its.hidden) + 2 * its.hidden + attention + self.mlp_saves()

    def mlp_saves(self) -> int:
        """Of that, of the MLP's width."""
        wide = self.sizes.tokens * self.sizes.ffn * self.sizes.element
        return (3 if self.is_fused else 5) * wide


MAX_ELEMENTS = 2**31 - 1
"""Of one tensor in a kernel; more query heads are split
(``attention/kernels/block_attention.py``)."""
MERGED_TOKENS = 16_384
"""Whose float32 copy exists while a partial result is added."""
EXCHANGED = 2
"""Copies of a tensor while ranks exchange its heads: cut by rank and received, or received and in
the order of the row (``attention/heads.py``)."""
MAX_PIECES, PIECE_BYTES = 64, 16 << 20
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
        return self.parallel.ring_ranks

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
        if self.parallel.head_ranks == 1:
            self._forward(ledger)
            return
        self._exchange_heads(ledger)
        with ledger.hold("attention", its.queries_keys_values):
            self._forward(ledger)
            with ledger.hold("attention", its.queries, its.lse):
                ledger.touch("ring and gather buffers", EXCHANGED * its.queries)

    def _exchange_heads(self, ledger: Ledger) -> None:
        """Queries, keys and values, one after the other; what is exchanged before is there."""
        its = self.sizes
        ledger.touch("ring and gather buffers", EXCHANGED * its.queries)
        ledger.touch("ring and gather buffers", its.queries + its.keys + EXCHANGED * its.keys)

    def _forward(self, ledger: Ledger) -> None:
        """By the ranks of the ring."""
        its = self.sizes
        if self._ranks == 1:
            with ledger.hold("attention", its.queries, its.lse):
                return
        with ledger.hold("ring and gather buffers", self._keys_here()):
            copies = self._copies(its.queries, its.keys)
            with ledger.hold("attention", copies, self._output(its.queries), its.lse):
                if not self._widens and self.kernel != "fa4":
                    ledger.take("attention", self._sum())
                    ledger.give("attention", self._sum())
            with ledger.hold("attention", its.queries * self._wide, 2 * its.lse):
                for queries, keys in self._rectangles():
                    part = self._output(queries) + its.lse
                    with ledger.hold("attention", part):
                        ledger.touch("attention", self._copies(queries, keys))
                        ledger.touch("attention", self._merged(), 2 * its.lse)
        if self._wide > 1:
            ledger.touch("attention", its.queries * self._wide, its.queries, its.lse)

    def backward(self, ledger: Ledger) -> None:
        """Walk through the backward pass; its inputs are held by the caller, not its results."""
        its = self.sizes
        if self.parallel.head_ranks == 1:
            self._backward(ledger)
            return
        ledger.touch("ring and gather buffers", EXCHANGED * its.queries)
        # Exchanged copies of the inputs, the output and its gradient.
        with ledger.hold("ring and gather buffers", its.queries_keys_values + 2 * its.queries):
            self._backward(ledger)
            with ledger.hold("attention", its.queries_keys_values):
                ledger.touch("ring and gather buffers", EXCHANGED * its.queries)

    def _backward(self, ledger: Ledger) -> None:
        """By the ranks of the ring."""
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
        if self.kernel == "cpu":
            return 0
        sums = self.num_splits * self._wide * queries
        if self.num_splits == 1 and not self.has_groups:
            return sums
        if self.num_splits == 1 and self.kernel in ("fa4", "fa3"):
            return sums + 2 * keys * self._wide
        # dk and dv of every query head, in the dtype of the inputs.
        return sums + 2 * keys * (self.sizes.queries // self.sizes.keys)

    def _output(self, size: int) -> int:
        """Output of a block; fa4 makes a float32 one of numbers and their residuals."""
        return 2 * size * self._wide if self.kernel == "fa4" else self._result(size)

    def _result(self, size: int) -> int:
        return size * self._wide if self._widens else size

    def _copies(self, queries: int, keys: int) -> int:
        return (queries + 2 * keys) * self._wide if self._widens else 0

    def _sum(self) -> int:
        return self.sizes.queries * self._wide if self._wide > 1 else 0

    def _merged(self) -> int:
        row_tokens = self.sizes.row_tokens * self.parallel.head_ranks
        tokens = min(MERGED_TOKENS, row_tokens)
        return self.sizes.queries * self._wide * tokens // row_tokens

    def _piece(self, sums: int) -> int:
        return sums // max(1, min(MAX_PIECES, sums // PIECE_BYTES))


FP32_HEAD_DIM_MULTIPLE = 4
"""Channels of a head that the float32 kernel of a GPU takes (`attention/kernels/efficient.py`)."""
HELD_AT_ONCE = 2
"""Matrices together at least: the masked one is made beside the one that it comes from."""


def score_matrix_shape(config: TrainingConfig, model: ModelConfig) -> tuple[int, int, int]:
    """[b, heads, s] of a matrix of scores [b, heads, s, s] of a rank's block, the longest there is.

    With ``document_mask`` block that is one document over the whole block.
    """
    parallel = config.parallel
    heads = model.num_attention_heads // parallel.tensor_model_parallel_size
    return config.micro_batch_size, heads, config.data.seq_length // parallel.context_parallel_size


def score_matrix_bytes(config: TrainingConfig, model: ModelConfig) -> int:
    """Bytes of such a matrix."""
    rows, heads, block = score_matrix_shape(config, model)
    return 4 * rows * heads * block**2


def score_matrix_note(config: TrainingConfig, model: ModelConfig, why: str) -> str:
    """A line about it: ``why`` no other kernel serves."""
    rows, heads, block = score_matrix_shape(config, model)
    upto = "up to " if config.data.document_mask == "block" else ""
    shape = f"{rows} x {heads} heads x {upto}{block:,} x {block:,}"
    size = f"{score_matrix_bytes(config, model) / GIB:,.2f} GiB"
    return (
        f"warning: {why} has no fused attention kernel on a GPU: plain formulas hold matrices of "
        f"scores, {shape} in float32 = {size} each, at least {HELD_AT_ONCE} at once"
    )


def fp32_notes(config: TrainingConfig, model: ModelConfig) -> list[str]:
    """The line that fp32 calls for on every GPU, before one is there to be asked."""
    if config.precision != "fp32" or model.kv_channels % FP32_HEAD_DIM_MULTIPLE == 0:
        return []
    why = f"precision 'fp32' with {model.kv_channels} channels a head"
    return [score_matrix_note(config, model, why)]

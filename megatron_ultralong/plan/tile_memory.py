"""What norms, projections and MLP take inside a layer, for the tokens that go through at a time."""

from __future__ import annotations

import dataclasses

from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.job import RankSizes


@dataclasses.dataclass(frozen=True)
class TileMemory:
    """Bytes at the peak of a part of a layer, results that are kept elsewhere not counted."""

    model: ModelConfig
    sizes: RankSizes
    on_cpu: bool
    """There a norm is several operations in float32; on a GPU it is one kernel."""

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
        return self.hidden_here + mixed + 4 * queries

    def projection_backward(self) -> int:
        """The same with its gradients."""
        mixed, queries = self._mixed, self.sizes.of_tile(self.sizes.queries)
        weight = self.sizes.hidden_size * self._mixed // self.sizes.tile
        saved = self.norm_saves(self.hidden_here) + self.hidden_here
        return saved + self._gathered + 2 * mixed + 3 * queries + weight

    def mlp_forward(self) -> int:
        """Attention's projection, residual, norm, MLP."""
        wide = self._ffn
        inside = max(5 * wide, wide + self.hidden + self.hidden_here)
        return self._attended + 2 * self.hidden_here + inside

    def mlp_backward(self) -> int:
        """The same with its gradients.

        Saved for it: gate and up (2 of the MLP's width), silu of one and an offset copy of the
        other, their product; seven once the gradients of the last two are there.
        """
        its = self.sizes
        weight = its.hidden_size * its.ffn * its.element
        saved = self._attended + self.norm_saves(self.hidden_here) + 2 * self.hidden_here
        return saved + self._gathered + max(7 * self._ffn, 6 * self._ffn + weight)

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
        wide = its.tokens * its.ffn * its.element
        rotary = 4 * its.row_tokens * its.head_dim * its.element
        attention = its.queries_keys_values + its.queries + its.lse + rotary
        return 2 * self.norm_saves(its.hidden) + 2 * its.hidden + attention + 5 * wide

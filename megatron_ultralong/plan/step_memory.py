"""Memory of a rank's training step, walked through tensor by tensor.

The walk follows ``mcore/`` and ``training/``: what is alive at every moment of forward, backward
and optimizer, in the order in which the program makes and drops it. A stage's last layer counts:
everything the others keep is there, too. ``tools/benchmark_plan.py`` holds it against live tensors.
"""

import dataclasses
import math

from megatron_ultralong.model.shape import layer_matrices
from megatron_ultralong.plan.job import LSE_BYTES, Job, in_pages, stage_parameters
from megatron_ultralong.plan.layer_memory import AttentionMemory, TileMemory
from megatron_ultralong.plan.ledger import Ledger, Peak
from megatron_ultralong.plan.optimizer_memory import OptimizerMemory, optimizer_memory


@dataclasses.dataclass(frozen=True)
class StageMemory:
    """One pipeline stage's rank."""

    stage: int
    peaks: dict[str, Peak]
    """By moment of the step."""
    host: int
    """Bytes of pinned host memory for offloaded activations."""
    optimizer: OptimizerMemory
    """Of which some may be in host memory too."""

    @property
    def pinned(self) -> int:
        """Bytes of host memory that have to be pinned before the first step is done."""
        return self.host + self.optimizer.pinned

    @property
    def peak(self) -> Peak:
        """The largest."""
        return max(self.peaks.values(), key=lambda peak: peak.total)


TOKEN_BYTES = 8 + 8 + 4 + 8
"""Of one token of a batch: id, label, weight of its loss, position."""
FP8_WEIGHT_BYTES = 2
"""Transformer Engine keeps a matrix and its transpose in FP8 from one micro-batch to the next,
beside the bf16 weights: 1.65 GiB were measured of four layers of Llama 3.1 8B, 1.62 computed."""


def step_memory(job: Job, kernel: str, multiprocessors: int = 132) -> list[StageMemory]:
    """Of the pipeline stages of a job that can need the most.

    A deterministic backward kernel has a sum for each of the GPU's ``multiprocessors``.
    """
    return [_StageWalk(job, stage, kernel, multiprocessors).run() for stage in job.stages]


class _StageWalk:
    """One step of one rank."""

    def __init__(self, job: Job, stage: int, kernel: str, multiprocessors: int) -> None:
        self.job, self.stage, self.kernel = job, stage, kernel
        self.sizes = job.sizes
        self.kept = job.kept()
        stages = job.parallel.pipeline_model_parallel_size
        self.layers = job.parallel.stage_layers(job.model.num_layers)[stage]
        self.is_first, self.is_last = stage == 0, stage == stages - 1
        # So many micro-batches are under way at once, counted by their layers: in chunks, in part.
        passes = job.parallel.passes_under_way(stage, job.num_microbatches)
        self.under_way = math.ceil(passes / job.parallel.num_virtual_stages_per_pipeline_rank)
        self.parameters = stage_parameters(job.model, job.parallel, stage)
        self.optimizer = optimizer_memory(job, stage)
        heads = job.model.num_attention_heads // job.parallel.tensor_model_parallel_size
        is_split = job.config.deterministic_mode and kernel in ("cudnn", "fa2")
        self.attention = AttentionMemory(
            self.sizes,
            job.parallel,
            kernel,
            job.model.num_attention_heads > job.model.num_query_groups,
            -(-multiprocessors // (heads * job.config.micro_batch_size)) if is_split else 1,
        )
        on_cpu = kernel == "cpu"
        is_fused = not on_cpu and job.config.layers.elementwise_kernel != "torch"
        self.tile = TileMemory(job.model, self.sizes, on_cpu, is_fused)
        self.ledger = Ledger()

    def run(self) -> StageMemory:
        """Walk, and give the peaks."""
        its, ledger, offload = self.sizes, self.ledger, self.job.memory.offload_activations
        self._static()
        with ledger.moment("between steps"):
            ledger.touch("weights", 0)
        ledger.take("tokens and angles", its.angles + self.under_way * its.tokens * TOKEN_BYTES)
        is_plain = self.job.memory.recompute_granularity == "none"
        # What one layer keeps on the device from forward to backward.
        on_device = self.tile.layer_saves() if is_plain else sum(self.kept)
        on_device = 0 if offload else on_device
        ledger.take("saved activations", (self.under_way - 1) * self.layers * on_device)
        if self.is_first:
            with ledger.moment("embedding"):
                self._embedding()
        ledger.take("saved activations", (self.layers - 1) * on_device)
        host = self.under_way * self.layers * sum(map(in_pages, self.kept)) if offload else 0
        if is_plain:
            self._plain_layer()
        else:
            self._layer_forward()
            ledger.take("saved activations", on_device)
            if self.is_last:
                self._loss()
            self._layer_backward(on_device)
        ledger.give_all("saved activations")
        with ledger.moment("optimizer step"):
            self._optimizer()
        return StageMemory(self.stage, ledger.peaks, host, self.optimizer)

    def _static(self) -> None:
        its, job = self.sizes, self.job
        self.ledger.take("weights", self.parameters * its.element)
        if job.config.layers.fp8_format != "none":
            matrices = sum(layer_matrices(job.model, job.parallel.tensor_model_parallel_size))
            self.ledger.take("FP8 weights", self.layers * matrices * FP8_WEIGHT_BYTES)
        self.ledger.take("gradients", self.optimizer.gradients)
        self.ledger.take("optimizer", self.optimizer.states)
        if its.runs > 1:  # Megatron's buffer for gathered tiles, made once
            self.ledger.take("projection and MLP tile", self.tile.hidden)

    def _tile(self, size: int) -> None:
        self.ledger.touch("projection and MLP tile", size)

    def _embedding(self) -> None:
        """Vectors of one tile, and all of this rank."""
        its, ledger = self.sizes, self.ledger
        with ledger.hold("embedding", its.hidden):
            copies = 2 if self.job.parallel.tensor_model_parallel_size > 1 else 1
            ledger.touch("embedding", copies * self.tile.hidden)
            if its.runs == 1 and its.tokens > its.row_tokens:  # [b, s, h] to [s, b, h]
                ledger.touch("embedding", its.hidden)

    def _layer_forward(self) -> None:
        its, ledger = self.sizes, self.ledger
        with ledger.hold("hidden states", its.hidden):
            whole = its.queries_keys_values if its.tile == its.tokens else 0
            with (
                ledger.moment("attention, forward"),
                ledger.hold("queries, keys, values", its.queries_keys_values, whole),
            ):
                self._tile(self.tile.projection_forward())
                self.attention.forward(ledger)
            with (
                ledger.moment("MLP, forward"),
                ledger.hold("attention", its.queries, its.lse),
                ledger.hold("hidden states", its.hidden),
            ):
                self._tile(self.tile.mlp_forward())

    def _layer_backward(self, on_device: int) -> None:
        its, ledger, memory = self.sizes, self.ledger, self.job.memory
        fetched = sum(self.kept) if memory.offload_activations else 0
        attends_again = memory.recompute_granularity == "full"
        ledger.take("hidden states", its.hidden)  # the gradient of the result
        ledger.take("saved activations", fetched)
        # Of one tile, values are a view of all three in one tensor; attention copies them.
        whole = its.queries_keys_values if its.tile == its.tokens else 0
        with ledger.hold("queries, keys, values", its.queries_keys_values, whole):
            with ledger.moment("queries, keys, values again"):
                self._tile(self.tile.projection_forward())
            if attends_again:
                with ledger.moment("attention again"):
                    self.attention.forward(ledger)
            with (
                ledger.hold("attention", its.queries + its.lse if attends_again else 0),
                ledger.hold("hidden states", its.hidden),  # gradient of the input
                ledger.hold("attention", its.queries),  # gradient of attention's output
            ):
                with ledger.moment("MLP, backward"):
                    self._tile(self.tile.mlp_backward())
                with ledger.moment("attention, backward"):
                    self.attention.backward(ledger)
        # Attention's output is gone, its gradients are there; the layer before is fetched.
        ledger.give("saved activations", (fetched or on_device) - its.hidden)
        with (
            ledger.moment("projections, backward"),
            ledger.hold("hidden states", its.hidden),
            ledger.hold("queries, keys, values", its.queries_keys_values),
            ledger.hold("saved activations", fetched),
        ):
            self._tile(self.tile.projection_backward())
        ledger.give("saved activations", its.hidden)
        ledger.give("hidden states", its.hidden)

    def _loss(self) -> None:
        its, ledger = self.sizes, self.ledger
        # What the final norm saves, and its result, which the output layer saves.
        with ledger.hold("hidden states", self.tile.norm_saves(its.hidden)):
            with ledger.hold("hidden states", its.hidden):
                if self.job.memory.loss_tile_size:
                    self._tiled_loss()
                else:
                    self._plain_loss()
            with ledger.moment("final norm, backward"):
                gradients = self.tile.norm_backward(its.hidden) - self.tile.norm_saves(its.hidden)
                ledger.touch("hidden states", gradients)

    def _tiled_loss(self) -> None:
        its, ledger, tile = self.sizes, self.ledger, self.sizes.loss_tile
        gathered = tile * its.hidden_size * its.element if its.runs > 1 else 0
        logits = tile * its.vocab * (4 + (its.element if its.element < 4 else 0))
        weight = its.vocab * its.hidden_size
        losses = its.tokens * LSE_BYTES * 3
        ledger.take("loss", losses)
        with ledger.moment("loss, forward"):
            ledger.touch("loss", gathered, logits)
        with (
            ledger.moment("loss, backward"),
            ledger.hold("hidden states", its.hidden),
            ledger.hold("loss", weight * 4),
        ):
            narrow = tile * its.vocab * its.element + weight * its.element
            ledger.touch("loss", gathered, max(logits, narrow))
            if its.element < 4:
                ledger.touch("loss", weight * its.element)
        ledger.give("loss", losses)

    def _plain_loss(self) -> None:
        """Megatron's cross entropy: logits, and their softmax in float32 until backward."""
        its, ledger = self.sizes, self.ledger
        logits = its.tokens * its.vocab * its.element
        softmax = its.tokens * its.vocab * 4
        gathered = its.tokens * its.hidden_size * its.element if its.runs > 1 else 0
        with ledger.moment("loss"):
            ledger.touch("loss", gathered, logits, softmax)

    def _plain_layer(self) -> None:
        its, ledger = self.sizes, self.ledger
        wide = its.tokens * its.ffn * its.element
        keeps, of_mlp = self.tile.layer_saves(), self.tile.mlp_saves()
        ledger.take("saved activations", keeps)
        if self.is_last:
            self._loss()
        with ledger.moment("MLP, backward"), ledger.hold("hidden states", 2 * its.hidden):
            ledger.touch("projection and MLP tile", 2 * wide)
        ledger.give("saved activations", of_mlp)
        with ledger.moment("attention, backward"), ledger.hold("hidden states", 3 * its.hidden):
            self.attention.backward(ledger)
        ledger.give("saved activations", keeps - of_mlp)

    def _optimizer(self) -> None:
        """Adam's temporary tensors."""
        ledger, temporary = self.ledger, self.optimizer.temporary
        if self.kernel == "cpu" and temporary:  # parameter by parameter
            largest = max(
                self.sizes.vocab * self.sizes.hidden_size,
                2 * self.sizes.ffn * self.sizes.hidden_size,
            )
            temporary = 2 * 4 * min(largest, -(-self.parameters // self.job.num_shards))
        ledger.touch("optimizer", temporary)

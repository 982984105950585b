"""Time of a step: work at the hardware's rates, exposed communication, the bubble."""

import dataclasses

from megatron_ultralong.config.run import Fp8Recipe
from megatron_ultralong.model.flops import training_flops
from megatron_ultralong.plan import work
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import Job, stage_parameters
from megatron_ultralong.plan.optimizer_memory import optimizer_bytes, optimizer_memory

FP8_SPEEDUP: dict[Fp8Recipe, float] = {
    "tensorwise": 1.55,
    "delayed": 1.55,
    "blockwise": 1.35,
    "mxfp8": 1.55,
}
"""Products of layers over those in bf16, casts included: four layers of Llama 3.1 8B at 32,768
tokens took 0.126 s (tensorwise) and 0.092 s (blockwise) less of the 0.35 s that their products are
planned to take (benchmarks/transformer_engine.md). The other two as tensorwise; not measured."""
DETERMINISTIC_BACKWARD = {"fa4": 1.70, "cudnn": 1.97, "fa2": 1.18}
"""Attention's backward pass under ``deterministic_mode`` over the usual one, by kernel; cuDNN has
none and hands over to FlashAttention 2 (benchmarks/attention.md)."""
SMALL_HEAD, SMALL_HEAD_TIME = 64, 1.22
"""Attention over heads up to that size takes so many times as long as its FLOPs at the rates of
size 128: softmax is the same for half of the products. One job, by cuDNN, on one H200: Llama 3.2 1B
at 131,072 tokens (benchmarks/training.md); other kernels as that one."""


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step of the slowest rank, part by part."""

    attention: float
    products: float
    """Projections, MLP, output layer; recomputed ones too."""
    elementwise: float
    offloading: float
    """Copies of activations to and from host memory that kernels do not hide."""
    optimizer: float
    """On the GPU."""
    host_optimizer: float
    """Of offloaded states: their gradients to the host, Adam there, and weights back."""
    bubble: float
    """Of the pipeline."""
    traffic: tuple[work.Traffic, ...]
    model_tflop: float
    """Of one GPU, without recomputation."""
    forward: float
    """Of the total: forward passes of all micro-batches, with a third of the bubble; what a
    validation over as many rows takes."""

    @property
    def communication(self) -> float:
        """Its exposed part."""
        return sum(each.exposed_seconds for each in self.traffic)

    @property
    def compute(self) -> float:
        """All kernels of the GPU."""
        return self.attention + self.products + self.elementwise + self.optimizer

    @property
    def total(self) -> float:
        """The step."""
        waits = self.offloading + self.host_optimizer + self.communication + self.bubble
        return self.compute + waits


def step_time(job: Job, hardware: Hardware) -> StepTime:
    """The step of ``job``, by the slowest pipeline stage and the bubble that others wait."""
    last = job.parallel.pipeline_model_parallel_size - 1
    stages = [_Stage(job, hardware, stage) for stage in job.stages]
    slowest = max(stages, key=lambda stage: stage.microbatch_seconds)
    microbatches = job.num_microbatches
    waited = sum(stage.microbatch_seconds for stage in stages) - slowest.microbatch_seconds
    if last > 2:  # those behind the second are like it
        waited += (last - 2) * stages[1].microbatch_seconds
    total_flops = training_flops(
        job.model, job.tokens_per_iteration, job.config.global_batch_size * job.mean_area
    ).total
    bubble = waited / job.parallel.num_virtual_stages_per_pipeline_rank
    return StepTime(
        attention=microbatches * slowest.attention,
        products=microbatches * slowest.products,
        elementwise=microbatches * slowest.elementwise,
        offloading=microbatches * slowest.offloading,
        optimizer=max(stage.optimizer for stage in stages),
        host_optimizer=max(stage.host_optimizer for stage in stages),
        bubble=bubble,
        traffic=slowest.traffic(microbatches),
        model_tflop=total_flops / job.num_gpus / 1e12,
        forward=microbatches * slowest.forward + bubble / 3,
    )


class _Stage:
    """Seconds of one micro-batch in one pipeline stage."""

    def __init__(self, job: Job, hardware: Hardware, stage: int) -> None:
        self.job, self.hardware, self.stage = job, hardware, stage
        self.layers = job.parallel.stage_layers(job.model.num_layers)[stage]
        self.links = work.links(job, hardware)
        self.work = work.layer_work(job)
        self._attention(self.work.attention_forward)
        self.attention = self.layers * (
            self.work.num_attention_forwards * self.attention_forward + self.attention_backward
        )
        layers = job.config.layers
        faster = FP8_SPEEDUP[layers.fp8_recipe] if layers.fp8_format != "none" else 1.0
        products, moved = self.layers * self.work.products / faster, self.layers * self.work.moved
        if stage == job.parallel.pipeline_model_parallel_size - 1:
            loss_products, loss_moved = work.loss_work(job)
            products, moved = products + loss_products, moved + loss_moved
        self.products = products / hardware.matmul_tflops / 1e12
        self.elementwise = moved / hardware.hbm_gb_per_second / 1e9
        self.offloading = self._offloading()
        self.tensor = sum(work.tensor_parallel_bytes(job, stage))
        self.heads = self.layers * work.head_bytes(job)
        self.ring = self._ring()
        self.optimizer, self.host_optimizer = self._optimizer()

    def _attention(self, flop: float) -> None:
        """Seconds of one layer's passes, and of what one hop of the ring computes.

        A rank has the square of its own queries and keys once, half of which counts, and blocks of
        as much work for every other rank of the ring: of R, 1 / R of the work is on the diagonal.
        """
        hardware, ranks = self.hardware, self.job.parallel.ring_ranks
        slower = 1.0
        if self.job.model.kv_channels <= SMALL_HEAD:
            flop *= SMALL_HEAD_TIME
        if self.job.config.deterministic_mode:
            slower = DETERMINISTIC_BACKWARD.get(hardware.attention_kernel, 1.0)
        hop = flop / ranks / 1e12
        self.hop_forward = hop / hardware.attention_forward_tflops
        self.hop_backward = (
            slower * work.ATTENTION_BACKWARD * hop / hardware.attention_backward_tflops
        )
        diagonal = hop / hardware.diagonal_forward_tflops
        self.attention_forward = diagonal + (ranks - 1) * self.hop_forward
        self.attention_backward = ranks * self.hop_backward

    @property
    def forward(self) -> float:
        """Of one micro-batch: a third of the passes that are not attention's, and one of it."""
        passes = 3 if self.job.memory.recompute_granularity == "none" else 4
        link = work.rate(self.hardware, self.links["tensor"])
        others = self.products + self.elementwise + self.tensor / link
        return self.layers * self.attention_forward + others / passes

    @property
    def microbatch_seconds(self) -> float:
        """Forward and backward of one micro-batch, with exposed communication."""
        tensor = self.tensor / work.rate(self.hardware, self.links["tensor"])
        kernels = self.attention + self.products + self.elementwise
        exchanged = self.heads / work.rate(self.hardware, self.links["heads"])
        return kernels + self.offloading + tensor + exchanged + self.ring.exposed_seconds

    def _ring(self) -> work.Traffic:
        """One micro-batch; a hop travels beside the kernels of the hop before."""
        job, link = self.job, self.links["context"]
        forward, backward = work.ring_bytes(job)
        per_second = work.rate(self.hardware, link)
        passes = [(forward, self.hop_forward)] * self.work.num_attention_forwards
        passes.append((backward, self.hop_backward))
        seconds = sum(num_bytes for num_bytes, _ in passes) / per_second
        exposed = seconds
        if job.parallel.cp_comm_type != "all_gather":
            hops = max(1, job.parallel.ring_ranks - 1)
            exposed = sum(
                hops * max(0.0, num_bytes / hops / per_second - kernel)
                for num_bytes, kernel in passes
            )
        total = sum(num_bytes for num_bytes, _ in passes)
        name = "context parallel: keys, values and their gradients"
        return work.Traffic(name, total, link, seconds, seconds - exposed).times(self.layers)

    def _offloading(self) -> float:
        """Copies of a layer go beside the kernels of the next one, each way."""
        job = self.job
        if not job.memory.offload_activations:
            return 0.0
        copy = sum(job.kept()) / self.hardware.host_gb_per_second / 1e9
        return self.layers * (
            max(0.0, copy - self.attention_forward) + max(0.0, copy - self.attention_backward)
        )

    def _optimizer(self) -> tuple[float, float]:
        """Seconds of Adam on the GPU, and on the host with its copies.

        On the GPU gradients are read four times or written (norm, clipping, Adam), states read and
        written once, weights written. The host gets float32 gradients and gives back weights.
        """
        job, hardware = self.job, self.hardware
        each, share = optimizer_bytes(job), job.config.optimizer.offloaded_share
        shard = stage_parameters(job.model, job.parallel, self.stage) / job.num_shards
        moved = 4 * each.gradient + (1 - share) * (2 * each.states + job.sizes.element)
        on_device = shard * moved / hardware.hbm_gb_per_second / 1e9
        offloaded = optimizer_memory(job, self.stage).num_offloaded
        update = offloaded / hardware.host_adam_billion_per_second / 1e9
        copies = offloaded * (4 + job.sizes.element) / hardware.host_gb_per_second / 1e9
        if job.config.optimizer.overlap_cpu_optimizer_d2h_h2d:
            return on_device, max(update, copies)
        return on_device, update + copies

    def traffic(self, microbatches: int) -> tuple[work.Traffic, ...]:
        """All communication of a step."""
        job, links_, hardware = self.job, self.links, self.hardware
        found = []

        def add(name: str, num_bytes: float, group: str) -> None:
            if num_bytes:
                link = links_[group]
                seconds = num_bytes / work.rate(hardware, link)
                found.append(work.Traffic(name, num_bytes, link, seconds))

        add("tensor parallel: hidden states", microbatches * self.tensor, "tensor")
        add("context parallel: tokens for heads", microbatches * self.heads, "heads")
        if self.ring.num_bytes:
            found.append(self.ring.times(microbatches))
        gradients, weights = work.data_parallel_bytes(job, self.stage)
        add("data x context parallel: gradients", gradients, "data")
        add("data x context parallel: weights", weights, "data")
        if job.parallel.pipeline_model_parallel_size > 1:
            passes = microbatches * job.parallel.num_virtual_stages_per_pipeline_rank
            add("pipeline parallel", 2.0 * passes * job.sizes.hidden, "pipeline")
        return tuple(found)

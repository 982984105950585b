"""Time of a step: work at the hardware's rates, communication that is not hidden, the bubble."""

from __future__ import annotations

import dataclasses

from megatron_ultralong.flops import training_flops
from megatron_ultralong.plan.communication import (
    Traffic,
    data_parallel_bytes,
    links,
    rate,
    ring_bytes,
    tensor_parallel_bytes,
)
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import Job, stage_parameters
from megatron_ultralong.plan.work import ATTENTION_BACKWARD, layer_work, loss_work

OPTIMIZER_BYTES = 40
"""Read and written for one weight of a shard: gradient, master weight, two states, weight."""


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step of the slowest rank, part by part."""

    attention: float
    products: float
    """Projections, MLP, output layer; recomputed ones too."""
    elementwise: float
    offloading: float
    """Copies to and from host memory that kernels do not hide."""
    optimizer: float
    bubble: float
    """Of the pipeline."""
    traffic: tuple[Traffic, ...]
    model_tflop: float
    """Of one GPU, without recomputation."""

    @property
    def communication(self) -> float:
        """What is not hidden of it."""
        return sum(each.exposed_seconds for each in self.traffic)

    @property
    def compute(self) -> float:
        """All kernels."""
        return self.attention + self.products + self.elementwise + self.optimizer

    @property
    def total(self) -> float:
        """The step."""
        return self.compute + self.offloading + self.communication + self.bubble

    def mfu(self, hardware: Hardware) -> float:
        """Model FLOPs over the peak's, no recomputation counted."""
        return self.model_tflop / self.total / hardware.peak_tflops


def step_time(job: Job, hardware: Hardware) -> StepTime:
    """The step of ``job``, by the slowest pipeline stage and the bubble that others wait."""
    stages = [
        _Stage(job, hardware, stage) for stage in range(job.parallel.pipeline_model_parallel_size)
    ]
    slowest = max(stages, key=lambda stage: stage.microbatch_seconds)
    microbatches = job.num_microbatches
    waited = sum(stage.microbatch_seconds for stage in stages) - slowest.microbatch_seconds
    total_flops = training_flops(
        job.model, job.tokens_per_iteration, job.config.global_batch_size * job.mean_area
    ).total
    return StepTime(
        attention=microbatches * slowest.attention,
        products=microbatches * slowest.products,
        elementwise=microbatches * slowest.elementwise,
        offloading=microbatches * slowest.offloading,
        optimizer=max(stage.optimizer for stage in stages),
        bubble=waited / job.parallel.num_virtual_stages_per_pipeline_rank,
        traffic=slowest.traffic(microbatches),
        model_tflop=total_flops / job.num_gpus / 1e12,
    )


class _Stage:
    """Seconds of one micro-batch in one pipeline stage."""

    def __init__(self, job: Job, hardware: Hardware, stage: int) -> None:
        self.job, self.hardware, self.stage = job, hardware, stage
        self.layers = job.parallel.stage_layers(job.model.num_layers)[stage]
        self.links = links(job, hardware)
        work = layer_work(job)
        flop = work.attention_forward
        self.attention_forward = flop / hardware.attention_forward_tflops / 1e12
        self.attention_backward = (
            ATTENTION_BACKWARD * flop / hardware.attention_backward_tflops / 1e12
        )
        self.attention = self.layers * (
            work.num_attention_forwards * self.attention_forward + self.attention_backward
        )
        self.num_attention_forwards = work.num_attention_forwards
        products, moved = self.layers * work.products, self.layers * work.moved
        if stage == job.parallel.pipeline_model_parallel_size - 1:
            loss = loss_work(job)
            products, moved = products + loss.products, moved + loss.moved
        self.products = products / hardware.matmul_tflops / 1e12
        self.elementwise = moved / hardware.hbm_gb_per_second / 1e9
        self.offloading = self._offloading()
        self.tensor = tensor_parallel_bytes(job, stage).total
        self.ring = self._ring()
        self.optimizer = self._optimizer()

    @property
    def microbatch_seconds(self) -> float:
        """Forward and backward of one micro-batch, with what is not hidden."""
        tensor = self.tensor / rate(self.hardware, self.links["tensor"])
        kernels = self.attention + self.products + self.elementwise
        return kernels + self.offloading + tensor + self.ring.exposed_seconds

    def _ring(self) -> Traffic:
        """One micro-batch; a hop travels beside the kernels of the hop before."""
        job, link = self.job, self.links["context"]
        forward, backward = ring_bytes(job)
        per_second = rate(self.hardware, link)
        passes = [(forward, self.attention_forward)] * self.num_attention_forwards
        passes.append((backward, self.attention_backward))
        seconds = sum(num_bytes for num_bytes, _ in passes) / per_second
        exposed = seconds
        if job.parallel.cp_comm_type == "p2p":
            hops = max(1, job.parallel.context_parallel_size - 1)
            ranks = job.parallel.context_parallel_size
            exposed = sum(
                hops * max(0.0, num_bytes / hops / per_second - kernel / ranks)
                for num_bytes, kernel in passes
            )
        total = sum(num_bytes for num_bytes, _ in passes)
        return Traffic(
            "context parallel: keys, values and their gradients",
            self.layers * total,
            link,
            self.layers * seconds,
            self.layers * (seconds - exposed),
        )

    def _offloading(self) -> float:
        """Copies of a layer go beside the kernels of the next one, each way."""
        job = self.job
        if not job.memory.offload_activations:
            return 0.0
        copy = job.kept().on_device / self.hardware.host_gb_per_second / 1e9
        return self.layers * (
            max(0.0, copy - self.attention_forward) + max(0.0, copy - self.attention_backward)
        )

    def _optimizer(self) -> float:
        job = self.job
        shards = job.data_parallel_size * job.parallel.context_parallel_size
        parameters = stage_parameters(job.model, job.parallel, self.stage) / shards
        return OPTIMIZER_BYTES * parameters / self.hardware.hbm_gb_per_second / 1e9

    def traffic(self, microbatches: int) -> tuple[Traffic, ...]:
        """All communication of a step."""
        job, links_, hardware = self.job, self.links, self.hardware
        found = []

        def add(name: str, num_bytes: float, group: str) -> None:
            if num_bytes:
                link = links_[group]
                found.append(Traffic(name, num_bytes, link, num_bytes / rate(hardware, link)))

        add("tensor parallel: hidden states", microbatches * self.tensor, "tensor")
        if self.ring.num_bytes:
            found.append(
                dataclasses.replace(
                    self.ring,
                    num_bytes=microbatches * self.ring.num_bytes,
                    seconds=microbatches * self.ring.seconds,
                    hidden_seconds=microbatches * self.ring.hidden_seconds,
                )
            )
        gradients, weights = data_parallel_bytes(job, self.stage)
        add("data x context parallel: gradients", gradients, "data")
        add("data x context parallel: weights", weights, "data")
        if job.parallel.pipeline_model_parallel_size > 1:
            passes = microbatches * job.parallel.num_virtual_stages_per_pipeline_rank
            add("pipeline parallel", 2.0 * passes * job.sizes.hidden, "pipeline")
        return tuple(found)

"""Model, optimizer and learning-rate schedule of a run, on this rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_weights
from megatron_ultralong.mcore.host_memory import HostMemory, Store
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.recomputed_layer import Recomputation
from megatron_ultralong.program.ranks import world_size
from megatron_ultralong.training import optimizer
from megatron_ultralong.training.inputs import RunInputs, check_offloading
from megatron_ultralong.training.saving.state_dict import load_checkpoint
from megatron_ultralong.training.telling.phases import PhaseTimers


class TrainingState:
    """Everything that an iteration changes and a checkpoint keeps."""

    def __init__(
        self,
        inputs: RunInputs,
        groups: ProcessGroupCollection,
        resumed: Path | None,
        timers: PhaseTimers,
    ) -> None:
        """Build it all, and load the weights, or the checkpoint ``resumed`` with its position.

        Megatron's schedules report to ``timers``.
        """
        config = inputs.config
        self.inputs = inputs
        self.recomputation = _recomputation(inputs)
        dtype = optimizer.DTYPES[config.precision]
        megatron_config = transformer_config(
            inputs.source.model,
            config.parallel,
            params_dtype=dtype,
            rope_scaling=inputs.result.rope_scaling,
            deterministic=config.deterministic_mode,
            layers=config.layers,
        )
        megatron_config.timers = timers
        num_chunks = megatron_config.virtual_pipeline_model_parallel_size
        chunks = [
            build_model(
                inputs.source.model,
                megatron_config,
                groups,
                seq_length=config.data.seq_length,
                rope_scaling=inputs.result.rope_scaling,
                angle_precision=config.rope.angle_precision,
                recomputation=self.recomputation,
                loss_tile_size=config.memory.loss_tile_size,
                layers=config.layers,
                vp_stage=vp_stage,
            )
            for vp_stage in (range(num_chunks) if num_chunks else (None,))
        ]
        for chunk in chunks:
            chunk.to(dtype)
        if resumed is None:
            # Before the optimizer is built: it copies the weights into its float32 masters.
            self.load_weights(chunks)
        self.chunks = optimizer.wrap_model(chunks, config.optimizer)
        """This rank's part of the model: one module, or one for each of its virtual stages."""
        self.optimizer = optimizer.build_optimizer(self.chunks, config.optimizer, dtype)
        self.scheduler = optimizer.build_scheduler(
            self.optimizer, config.optimizer, config.train_iters
        )
        self.iteration = 0
        """Iterations done."""
        if resumed is not None:
            position = load_checkpoint(resumed, self.chunks, self.optimizer, self.scheduler)
            self.iteration = int(position["iteration"])
        self.scheduler.step(increment=0)

    def load_weights(self, chunks: Sequence[GPTModel]) -> None:
        """Load the weights that a run begins with."""
        config = self.inputs.config
        checkpoint = MegatronCheckpoint(
            config.load, verify_checksums=config.checkpoint.verify_checksums
        )
        load_weights(chunks, checkpoint)


def _recomputation(inputs: RunInputs) -> Recomputation | None:
    memory = inputs.config.memory
    if memory.recompute_granularity == "none":
        return None
    store = Store()
    if memory.offload_activations:
        store = HostMemory(check_offloading(inputs.config, inputs.source.model, world_size()))
    return Recomputation(
        keep_attention=memory.recompute_granularity == "keep_attention",
        tile_size=memory.sequence_tile_size,
        store=store,
    )

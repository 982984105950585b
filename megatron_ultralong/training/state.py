"""The state of a run on this rank, when it is saved, and when the run ends before its time."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.checkpoint.disk.folder import iteration_folders
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_weights
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.mcore import cpu, elementwise, host_memory, model, recomputed_layer
from megatron_ultralong.plan.job import in_pages
from megatron_ultralong.program import rank_values, ranks
from megatron_ultralong.program.errors import InputError, RunStopped, counted
from megatron_ultralong.program.progress import progress
from megatron_ultralong.training import config_file, optimizer
from megatron_ultralong.training.early_checks import RunInputs
from megatron_ultralong.training.inputs import check_offloading, host_buffers
from megatron_ultralong.training.saving import run_folder, state_dict
from megatron_ultralong.training.saving.checkpoint_writer import CheckpointWriter
from megatron_ultralong.training.saving.state_dict import load_checkpoint
from megatron_ultralong.training.telling.heartbeat import is_lost_peer
from megatron_ultralong.training.telling.phases import PhaseTimers
from megatron_ultralong.training.telling.stop import STOPPED, StopRequests


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
        dtype = optimizer.DTYPES[config.precision]
        kernels = elementwise.choose(config.layers.elementwise_kernel, dtype, cpu.device())
        self.recomputation = _recomputation(inputs, kernels.is_compiled, groups.pp.rank())
        megatron_config = model.transformer_config(
            inputs.source.model,
            config.parallel,
            params_dtype=dtype,
            rope_scaling=inputs.result.rope_scaling,
            deterministic=config.deterministic_mode,
            layers=config.layers,
            compiled=kernels.is_compiled,
        )
        megatron_config.timers = timers
        num_chunks = megatron_config.virtual_pipeline_model_parallel_size
        chunks = [
            model.build_model(
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


def _recomputation(
    inputs: RunInputs, fused: bool, stage: int
) -> recomputed_layer.Recomputation | None:
    memory = inputs.config.memory
    if memory.recompute_granularity == "none":
        return None
    store = host_memory.Store()
    if memory.offload_activations:
        what = (inputs.config, inputs.source.model, ranks.world_size())
        store = host_memory.HostMemory(check_offloading(*what))
        _reserve(store, host_buffers(*what)[stage])
    return recomputed_layer.Recomputation(
        keep_attention=memory.recompute_granularity == "keep_attention",
        tile_size=memory.sequence_tile_size,
        fused=fused and not inputs.config.layers.apply_rope_fusion,
        store=store,
    )


_SHOWN_BYTES = 4 * 2**30
"""From which on the pinning of host memory shows its progress."""


def _reserve(store: host_memory.HostMemory, sizes: list[int]) -> None:
    """Pin what the layers will be offloaded into, once, before the first step; on every rank."""
    total, error = sum(map(in_pages, sizes)), None
    is_shown = ranks.is_main_rank() and total >= _SHOWN_BYTES
    nothing = contextlib.nullcontext()
    with progress("pinning host memory", total, "B") if is_shown else nothing as bar:
        try:
            store.memory.reserve(sizes, bar.advance if bar else lambda num_bytes: None)
        except InputError as failed:
            error = f"rank {dist.get_rank()}: {failed}"
    first = next((one for one in rank_values.every_rank(error) if one), None)
    if first:
        raise InputError(first)


CANNOT_SAVE = 74
"""Exit status of a run that cannot write checkpoints (EX_IOERR)."""
_TRIES_AT_THE_END = 5
_RETRY_SECONDS = 2.0
"""Before the last checkpoint is tried again: a full disk or a lost folder may come back."""


@dataclasses.dataclass
class Saving:
    """What every rank does between two iterations; all of them come to the same decisions."""

    config: TrainingConfig
    folder: run_folder.RunFolder
    state: TrainingState
    stop: StopRequests
    timers: PhaseTimers
    damaged: frozenset[int]
    """Iterations whose checkpoints were refused."""

    def __post_init__(self) -> None:
        folder = self.folder
        self._writer: CheckpointWriter | None = None
        if folder.root is not None:
            # Later ones are of a run that was set back: this one goes another way.
            later = {i for i in iteration_folders(folder.root) if i > folder.resumed_iteration}
            damaged = {*self.damaged, *later}
            timeout = 60.0 * self.config.parallel.distributed_timeout_minutes
            self._writer = CheckpointWriter(folder, self.config.checkpoint, damaged, timeout)

    def at_boundary(self) -> None:
        """After an iteration: take up what was written, save if it is time, end if told to.

        Raises:
            RunStopped: told to end, too many saves failed, or another job has the folder.
        """
        writer, iteration = self._writer, self.state.iteration
        with self.timers.phase("checkpoint"):
            is_writing = writer is not None and writer.is_writing
            flags = torch.tensor(
                [
                    self.stop.signal_number,
                    ranks.is_main_rank() and self.stop.is_late,
                    is_writing,
                    ranks.is_main_rank() and not self.folder.is_mine(),
                ],
                dtype=torch.int64,
                device=cpu.device(),
            )
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            number, is_late, someone_writes, is_taken_over = flags.tolist()
            if is_taken_over:
                self.folder.end_taken_over()
            if writer is not None:
                interval = self.config.save_interval
                is_due = bool(interval) and iteration % interval == 0
                if is_due or not someone_writes:
                    writer.finish()
                self._check_failures(writer)  # before the next begins: its thread would outlive us
                if is_due:
                    self._start(writer)
                    self._check_failures(writer)
        if iteration == self.config.train_iters:
            return
        if number:
            self.save_and_stop(STOPPED, f"{signal.Signals(number).name} came")
        if is_late:
            minutes = self.config.faults.exit_duration_in_mins
            self.save_and_stop(STOPPED, f"exit_duration_in_mins ({minutes:g}) is over")

    def finish_run(self) -> None:
        """After the last iteration: the last checkpoint.

        Raises:
            RunStopped: it cannot be written.
        """
        self._save_now()
        self.folder.write_status(0)

    def save_and_stop(self, status: int, reason: str) -> NoReturn:
        """Save the state as it is, and end the run.

        Raises:
            RunStopped: always.
        """
        self._save_now()
        self.folder.write_status(status)
        iteration = self.state.iteration
        saved = f"the checkpoint of iteration {iteration} is written" if self._writer else ""
        if not self._writer:
            saved = "nothing is saved: the run has no --save"
        elif not iteration:
            saved = "nothing is saved: no iteration was done"
        raise RunStopped(status, f"{reason}; {saved}")

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Where the body ends in an error, the checkpoint that is being written is not lost.

        A rank that misses another one has no time for it: torchrun ends them all.
        """
        try:
            yield
        except BaseException as error:
            if self._writer is not None and not is_lost_peer(error):
                is_over = isinstance(error, RunStopped) and error.status == run_folder.TAKEN_OVER
                self._writer.close(drops=is_over)
            raise

    def figures(self) -> tuple[int, int, str]:
        """Checkpoints written and failed, and where the last one is, for the summary."""
        if self._writer is None:
            return 0, 0, "no --save"
        last = self._writer.last_iteration
        place = (
            f"the last is iteration {last} in {self.folder.root}"
            if last
            else "no checkpoint was written"
        )
        return self._writer.num_written, self._writer.total_failures, place

    def _start(self, writer: CheckpointWriter, *, waits: bool = False) -> None:
        state, config = self.state, self.config
        if not state.scheduler.num_steps:  # all steps so far were skipped
            optimizer.make_states(state.chunks, state.optimizer)
        position = {
            "iteration": state.iteration,
            "consumed_samples": state.iteration * config.global_batch_size,
        }
        writer.start(
            state.iteration,
            lambda: state_dict.checkpoint_state(
                *(state.chunks, state.optimizer, state.scheduler, position),
                state.inputs.result.model,
            ),
            {config_file.CONFIG_FILE: config_file.config_text(state.inputs.said)},
            waits=waits,
        )

    def _save_now(self) -> None:
        """Write the checkpoint of this iteration, unless it is there, and wait for it."""
        writer, iteration = self._writer, self.state.iteration
        if writer is None or iteration in (0, self.folder.resumed_iteration):
            return
        limit = self.config.checkpoint.max_save_failures
        if not limit:  # failures before this one do not count
            limit = writer.num_failures + _TRIES_AT_THE_END
        with self.timers.phase("checkpoint"):
            while True:
                if writer.iteration != iteration:
                    self._start(writer, waits=True)
                if writer.finish():
                    return
                if writer.num_failures >= limit:
                    self._give_up(writer)
                time.sleep(_RETRY_SECONDS)

    def _check_failures(self, writer: CheckpointWriter) -> None:
        """Raise RunStopped after too many failures in a row; no checkpoint is being written."""
        limit = self.config.checkpoint.max_save_failures
        if limit and writer.num_failures >= limit:
            self._give_up(writer)

    def _give_up(self, writer: CheckpointWriter) -> NoReturn:
        self.folder.write_status(CANNOT_SAVE)
        raise RunStopped(
            CANNOT_SAVE,
            f"{counted(writer.num_failures, 'checkpoint')} in a row could not be written to "
            f"{self.folder.root} (max_save_failures): make room there, or name another --save; "
            "older checkpoints are kept",
        )

"""The iterations of a run, whatever its rows are."""

import contextlib
import dataclasses
import functools
import gc
import math
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.config.plain_values import flat_fields
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.model.flops import peak_tflops, training_flops
from megatron_ultralong.plan.hardware import hardware_in_use
from megatron_ultralong.program.progress import ProgressBar, progress
from megatron_ultralong.program.quantity import quantity
from megatron_ultralong.program.rank_values import check_agreement, every_rank
from megatron_ultralong.program.ranks import is_main_rank
from megatron_ultralong.training import optimizer, step, validation
from megatron_ultralong.training.early_checks import RunInputs
from megatron_ultralong.training.inputs import check_weights, chosen_kernels, code_version
from megatron_ultralong.training.saving.run_folder import RunFolder
from megatron_ultralong.training.state import Saving, TrainingState
from megatron_ultralong.training.step import (
    LanguageModelStep,
    StepResult,
    check_rows,
    microbatches,
    replica_samples,
)
from megatron_ultralong.training.telling import log as run_log
from megatron_ultralong.training.telling.beside_plan import BesidePlan
from megatron_ultralong.training.telling.heartbeat import Heartbeat
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.telling.phases import PhaseTimers, Profile, run_summary
from megatron_ultralong.training.telling.shared_gpus import gpu_of_this_rank, shared_gpus
from megatron_ultralong.training.telling.stop import StopRequests


def train(inputs: RunInputs) -> list[IterationRecord]:
    """Train; returns the records of the iterations done, none if the run was complete.

    Every rank of the job calls it. A run whose ``--save`` holds its checkpoints is resumed.

    Raises:
        InputError: the ranks disagree, or the folder of the run does not fit.
        RunStopped: the run was told to end, or cannot continue; every rank raises it.
    """
    config = inputs.config
    stop = StopRequests(config.faults.exit_duration_in_mins)
    with stop.listen(), parallel_groups(config.parallel, config.data.seed) as groups:
        timers = PhaseTimers()
        place = {"iteration": 0}
        timeout = 60.0 * config.parallel.distributed_timeout_minutes
        with Heartbeat(timeout, lambda: (place["iteration"], timers.current)).beat():
            kernels, lines = chosen_kernels(config, inputs.source.model)
            check_agreement(
                {
                    **code_version(),
                    **kernels,
                    **flat_fields(config),
                    **flat_fields(inputs.source, "checkpoint"),
                    **inputs.agreed,
                }
            )
            folder = RunFolder(
                *(config, inputs.result, inputs.agreed, inputs.template),
                each_iteration=inputs.each_iteration,
            )
            with contextlib.closing(folder):
                shared = shared_gpus(every_rank(gpu_of_this_rank()))
                inputs = dataclasses.replace(inputs, remarks=(*shared, *lines, *inputs.remarks))
                kernel = kernels["attention kernel"]
                return _Run(inputs, groups, stop, timers, place, folder, kernel).train()


@functools.cache
def is_frozen() -> bool:
    """Whether objects are frozen; asked once, since each one of them is counted."""
    return gc.get_freeze_count() > 0


@contextlib.contextmanager
def _few_objects_to_collect() -> Iterator[None]:
    """Megatron collects garbage twice in a save: let it not visit all that imports have made.

    That is 0.2 s each time on a CPU. Where the caller has done so already, it is left as it is.
    """
    is_ours = not is_frozen()
    if is_ours:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()


@dataclasses.dataclass
class _Run:
    """A run between its start and its end, on this rank."""

    inputs: RunInputs
    groups: ProcessGroupCollection
    stop: StopRequests
    timers: PhaseTimers
    place: dict[str, int]
    """The iteration that it is in."""
    folder: RunFolder
    kernel: str
    """That computes attention."""

    def __post_init__(self) -> None:
        inputs, groups, timers = self.inputs, self.groups, self.timers
        self.config = config = inputs.config
        resumed = self.folder.open(dist.get_rank(), dist.get_world_size())
        self.state = state = TrainingState(inputs, groups, resumed.folder, timers)
        check_weights(state.chunks, groups)
        batch, last = config.global_batch_size, config.train_iters
        check_rows(
            [
                (inputs.train_rows, range(state.iteration * batch, last * batch)),
                (inputs.valid_rows, range(config.eval_iters * batch)),
            ]
        )
        self.step = LanguageModelStep(state.chunks, groups, timers, config)
        self.guard = step.FiniteGuard(state.chunks, state.optimizer)
        self.spikes = step.SpikeDetector(config.faults.loss_spike_deviations)
        self.saving = Saving(config, self.folder, state, self.stop, timers, resumed.damaged)
        self.profile = Profile(config.log, self.folder.root, dist.get_rank())
        self.validation = validation.Validation(inputs, self.step, groups)
        self.peak_tflops: float | None = config.log.peak_tflops or None
        """Of a rank's device; None: not known."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        self.peak_tflops = self.peak_tflops or peak_tflops(device)
        self.area = 0.0
        """Pairs of query and key of the last iteration's rows."""
        self.beside_plan = BesidePlan(
            *(config, inputs.source.model, dist.get_world_size()),
            hardware_in_use(device, self.kernel),
        )
        self.num_skipped = self.num_skipped_in_a_row = 0
        self.num_tokens = batch * config.data.seq_length
        """Of an iteration."""
        self.records: list[IterationRecord] = []
        self.mark = time.perf_counter()

    def train(self) -> list[IterationRecord]:
        """Iterate to ``train_iters``, saving as asked."""
        with _few_objects_to_collect(), self._log() as (log, bar), self.saving.kept():
            self.mark = time.perf_counter()
            self.timers.take()
            self.stop.is_training = True
            while self.state.iteration < self.config.train_iters:
                record = self._iterate()
                self.records.append(record)
                if log and bar and self.folder.is_mine():
                    last = self.state.iteration == self.config.train_iters
                    due = self.state.iteration % self.config.log_interval == 0 or last
                    log.write(record, to_terminal=due)
                    rate = record.tokens_per_second_per_rank * dist.get_world_size()
                    if note := self.beside_plan.note(record, self.area):
                        bar.print(note)
                    bar.advance(status=f"loss {record.lm_loss:.4f}, {quantity(rate, 'tokens')}/s")
                self.saving.at_boundary()
            self.profile.finish()
            self.saving.finish_run()
        return self.records

    @contextlib.contextmanager
    def _log(self) -> Iterator[tuple[run_log.RunLog | None, ProgressBar | None]]:
        """The log and the progress bar, on the main rank; the summary at the end, in any case."""
        if not is_main_rank():
            yield None, None
            return
        done = self.state.iteration
        total = self.config.train_iters
        with progress("training", total, "iterations", before=done) as bar:
            nothing_left = self.folder.nothing_left
            sinks = [] if nothing_left else run_log.open_sinks(self.config, done)
            log = run_log.RunLog(self.folder.root, total, bar, sinks)
            bar.print(optimizer.describe_optimizer(self.config.optimizer, self.groups.dp_cp.size()))
            for note in (
                *self.inputs.notes(done),
                *self.inputs.remarks,
                *validation.validation_notes(self.inputs),
            ):
                bar.print(note)
            if done:
                bar.print(nothing_left or f"resumed at iteration {done} of {total}")
            elif self.folder.root:
                bar.print(f"a new run in {self.folder.root}")
            if self.folder.what_is_saved:
                bar.print(self.folder.what_is_saved)
            for change in self.folder.changes:
                bar.print(f"changed since the start before: {change}")
            try:
                yield log, bar
            finally:
                log.close()
                saved = self.saving.figures()
                bar.print(run_summary(self.records, self.num_tokens, dist.get_world_size(), *saved))

    def _iterate(self) -> IterationRecord:
        state, config = self.state, self.config
        iteration = state.iteration + 1
        self.place["iteration"] = iteration
        self.profile.before(iteration)
        learning_rate = state.optimizer.param_groups[0]["lr"]
        samples = replica_samples(config, self.groups.dp, state.iteration)
        for chunk in state.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        state.optimizer.zero_grad()
        result = self.step(microbatches(self.inputs.train_rows, samples), forward_only=False)
        self.area = result.attention_area
        grad_norm, warning = self._update(result, samples)
        skipped = grad_norm is None
        state.iteration = iteration
        phases = self.timers.take()  # waits for a GPU to have done what was counted
        now = time.perf_counter()
        seconds = now - self.mark
        found = self.validation.run(iteration, state.chunks)
        if found:
            self.timers.take()
        self.mark += seconds + (time.perf_counter() - now if found else 0.0)
        flops = training_flops(
            self.inputs.source.model, result.num_real_tokens, result.attention_area
        )
        tflops = flops.total / seconds / dist.get_world_size() / 1e12
        self.num_skipped += skipped
        return IterationRecord(
            iteration=iteration,
            consumed_samples=iteration * config.global_batch_size,
            consumed_tokens=iteration * self.num_tokens,
            lm_loss=result.loss,
            grad_norm=float("nan") if grad_norm is None else grad_norm,
            learning_rate=learning_rate,
            elapsed_ms=1000.0 * seconds,
            num_real_tokens=int(result.num_real_tokens),
            num_loss_tokens=int(result.num_loss_tokens),
            tokens_per_second_per_rank=result.num_real_tokens / seconds / dist.get_world_size(),
            tflops_per_rank=tflops,
            mfu=tflops / self.peak_tflops if self.peak_tflops else None,
            peak_memory_gib=run_log.peak_memory_gib(),
            phases_ms=phases,
            skipped=skipped,
            num_skipped=self.num_skipped,
            warning=warning,
            validation_loss=found[0] if found else None,
            validation_bins=found[1] if found else (),
        )

    def _update(self, result: StepResult, samples: list[range]) -> tuple[float | None, str | None]:
        """Take the optimizer's step; returns the gradients' norm, None if it was left out.

        Raises:
            RunStopped: the numbers are not finite, and ``on_nan`` is stop, or too many were not.
        """
        state = self.state
        with self.timers.phase("optimizer"):
            try:
                if not math.isfinite(result.loss):
                    raise step.NotFiniteError(f"the loss is {result.loss}")
                norm = self.guard.step()
            except step.NotFiniteError as error:
                rows = self.inputs.train_rows
                found = self.guard.describe(result.bad_microbatches, samples, rows)
                text = f"iteration {state.iteration + 1}: {error}; {found}"
                self._end_if_too_bad(text)
                return None, f"skipped {text}"
            state.scheduler.step(increment=1)
        self.num_skipped_in_a_row = 0
        return norm, self.spikes.check(result.loss)

    def _end_if_too_bad(self, text: str) -> None:
        """Count a step whose numbers are not finite, and end the run unless it is to be skipped."""
        faults = self.config.faults
        self.num_skipped_in_a_row += 1
        if faults.on_nan == "stop":
            self.saving.save_and_stop(
                step.NOT_FINITE,
                f"{text}; continue without this step with --on-nan skip, after a look at the rows",
            )
        if self.num_skipped_in_a_row == faults.max_skipped_iters:
            self.saving.save_and_stop(
                step.NOT_FINITE,
                f"{text}; that is step {faults.max_skipped_iters} in a row that had to be skipped "
                "(max_skipped_iters), so it is not one bad row: look at the rows, the learning "
                "rate and the checkpoint, or allow more with --max-skipped-iters",
            )

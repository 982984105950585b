"""The iterations of a run, whatever its rows are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.mcore.parallel import (
    check_agreement,
    flat_fields,
    is_main_rank,
    parallel_groups,
)
from megatron_ultralong.progress import progress
from megatron_ultralong.training import run_folder
from megatron_ultralong.training.checkpointing import save_checkpoint
from megatron_ultralong.training.inputs import RunInputs
from megatron_ultralong.training.log import IterationRecord, RunLog, peak_memory_gib
from megatron_ultralong.training.rows import RowSource, microbatches, replica_samples
from megatron_ultralong.training.state import TrainingState
from megatron_ultralong.training.step import LanguageModelStep, StepResult


def train(inputs: RunInputs) -> list[IterationRecord]:
    """Train; returns the records of the iterations done, none if the run was complete.

    Every rank of the job calls it. A run whose ``--save`` holds its checkpoints is resumed.

    Raises:
        InputError: the ranks disagree, or the folder of the run does not fit.
    """
    config = inputs.config
    with parallel_groups(config.parallel, config.data.seed) as groups:
        check_agreement(
            {
                **flat_fields(config),
                **flat_fields(inputs.source, "checkpoint"),
                **inputs.agreed,
            }
        )
        return _Run(inputs, groups).train()


class _Run:
    """A run between its start and its end, on this rank."""

    def __init__(self, inputs: RunInputs, groups: ProcessGroupCollection) -> None:
        self.inputs = inputs
        self.config = config = inputs.config
        self.groups = groups
        self.num_microbatches = config.num_microbatches(dist.get_world_size())
        self.save_root = Path(config.save) if config.save else None
        resumed = run_folder.open_run(self.save_root, config, inputs.result)
        self.state = TrainingState(inputs, groups, resumed)
        self.step = LanguageModelStep(
            self.state.model,
            groups,
            document_mask=config.data.document_mask,
            seq_length=config.data.seq_length,
            micro_batch_size=config.micro_batch_size,
            cp_assignment=config.parallel.cp_assignment,
        )

    def train(self) -> list[IterationRecord]:
        """Iterate to ``train_iters``, saving as asked."""
        records = []
        with self._log() as (log, bar):
            while self.state.iteration < self.config.train_iters:
                record = self._iterate()
                records.append(record)
                if log and bar:
                    last = self.state.iteration == self.config.train_iters
                    due = self.state.iteration % self.config.log_interval == 0 or last
                    log.write(record, to_terminal=due)
                    bar.advance()
                self._save_if_due()
        return records

    @contextlib.contextmanager
    def _log(self) -> Iterator[tuple[RunLog | None, Any]]:
        if not is_main_rank():
            yield None, None
            return
        remaining = self.config.train_iters - self.state.iteration
        with progress("pretrain", remaining) as bar:
            log = RunLog(self.save_root, self.config.train_iters, bar)
            try:
                yield log, bar
            finally:
                log.close()

    def _iterate(self) -> IterationRecord:
        start = time.monotonic()
        state = self.state
        learning_rate = state.optimizer.param_groups[0]["lr"]
        state.model.train()
        state.model.zero_grad_buffer()
        state.optimizer.zero_grad()
        result = self._pass(self.inputs.train_rows, state.iteration, forward_only=False)
        succeeded, grad_norm, _ = state.optimizer.step()
        if succeeded:
            state.scheduler.step(increment=1)
        state.iteration += 1
        validation_loss = None
        if self.config.eval_interval and state.iteration % self.config.eval_interval == 0:
            validation_loss = self._validate()
        elapsed = time.monotonic() - start
        samples = state.iteration * self.config.global_batch_size
        batch_tokens = self.config.global_batch_size * self.config.data.seq_length
        return IterationRecord(
            iteration=state.iteration,
            consumed_samples=samples,
            consumed_tokens=samples * self.config.data.seq_length,
            lm_loss=result.loss,
            grad_norm=float(grad_norm) if grad_norm is not None else float("nan"),
            learning_rate=learning_rate,
            elapsed_ms=1000.0 * elapsed,
            tokens_per_second_per_rank=batch_tokens / elapsed / dist.get_world_size(),
            peak_memory_gib=peak_memory_gib(),
            skipped=not succeeded,
            validation_loss=validation_loss,
        )

    def _pass(self, source: RowSource, iteration: int, *, forward_only: bool) -> StepResult:
        samples = replica_samples(
            iteration=iteration,
            global_batch_size=self.config.global_batch_size,
            micro_batch_size=self.config.micro_batch_size,
            dp_rank=self.groups.dp.rank(),
            dp_size=self.groups.dp.size(),
        )
        rows = microbatches(source, samples)
        return self.step(rows, self.num_microbatches, forward_only=forward_only)

    def _validate(self) -> float:
        """Mean loss over the same held-out rows every time."""
        rows = self.inputs.valid_rows
        assert rows is not None
        self.state.model.eval()
        with torch.no_grad():
            losses = [
                self._pass(rows, batch, forward_only=True).loss
                for batch in range(self.config.eval_iters)
            ]
        return sum(losses) / len(losses)

    def _save_if_due(self) -> None:
        if self.save_root is None:
            return
        state, interval = self.state, self.config.save_interval
        last = state.iteration == self.config.train_iters
        if last or (interval and state.iteration % interval == 0):
            save_checkpoint(
                self.save_root,
                state.iteration,
                state.model,
                state.optimizer,
                state.scheduler,
                {"consumed_samples": state.iteration * self.config.global_batch_size},
            )

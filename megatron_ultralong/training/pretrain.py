"""Continued pretraining at an extended context."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong import yarn
from megatron_ultralong.checkpoint.folder import resolve
from megatron_ultralong.checkpoint.metadata import CheckpointMetadata, load_metadata
from megatron_ultralong.checkpoint.model_state import load_weights
from megatron_ultralong.config import PretrainConfig
from megatron_ultralong.data.manifest import Manifest, load_manifest
from megatron_ultralong.data.rows import PackedRows
from megatron_ultralong.errors import InputError
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.parallel import (
    check_agreement,
    flat_fields,
    is_main_rank,
    parallel_groups,
    world_size,
)
from megatron_ultralong.progress import progress
from megatron_ultralong.training import run_folder
from megatron_ultralong.training.checkpointing import load_checkpoint, save_checkpoint
from megatron_ultralong.training.log import IterationRecord, RunLog, peak_memory_gib
from megatron_ultralong.training.optimizer import build_optimizer, build_scheduler, wrap_model
from megatron_ultralong.training.rows import microbatch_rows
from megatron_ultralong.training.step import LanguageModelStep

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """A run that has been checked: what it reads, and what its checkpoints will say."""

    config: PretrainConfig
    source: CheckpointMetadata
    manifest: Manifest
    rope_scaling: yarn.RopeScaling
    train_rows: PackedRows
    valid_rows: PackedRows | None

    @property
    def result(self) -> CheckpointMetadata:
        """Metadata of the checkpoints that this run writes."""
        positions = self.config.rope.max_positions(self.source.model.max_position_embeddings)
        return dataclasses.replace(
            self.source,
            model=dataclasses.replace(self.source.model, max_position_embeddings=positions),
            rope_scaling=self.rope_scaling,
            separator_ids=tuple(self.manifest.separator_ids),
            angle_precision=self.config.rope.angle_precision,
        )


def check_run(config: PretrainConfig, num_ranks: int) -> RunInputs:
    """Check everything that can be known before a rank is started.

    Raises:
        InputError: a rule between configuration, checkpoint and data is broken.
    """
    config.check(num_ranks)
    source = load_metadata(Path(config.load))
    resolve(config.load)
    config.parallel.check_model(source.model)
    data = Path(config.data.data_path)
    manifest = load_manifest(data)
    train_rows = PackedRows(data / "train")
    length = config.data.seq_length or train_rows.seq_length
    if length != train_rows.seq_length:
        raise InputError(
            f"seq_length ({length}) is not the length of the rows in {data} "
            f"({train_rows.seq_length}): leave --seq-length out, or prepare rows of {length}"
        )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_length=length))
    config.parallel.check_seq_length(length)
    config.check_positions(source.model.max_position_embeddings)
    _check_tokenizer(config, source, manifest)
    rope_scaling = config.rope.scaling(source.rope_scaling)
    yarn.hf_rope_scaling(rope_scaling)  # what could not be exported is not trained for hours
    if config.data.document_mask == "block" and not manifest.separator_ids:
        raise InputError(
            f"document_mask 'block' needs a separator, but {data} was prepared without one: "
            "its documents cannot be told apart; prepare it again with --separator"
        )
    return RunInputs(
        config=config,
        source=source,
        manifest=manifest,
        rope_scaling=rope_scaling,
        train_rows=train_rows,
        valid_rows=PackedRows(data / "valid") if config.eval_interval else None,
    )


def _check_tokenizer(
    config: PretrainConfig, source: CheckpointMetadata, manifest: Manifest
) -> None:
    if manifest.vocab_size > source.model.vocab_size:
        raise InputError(
            f"the tokenizer of {config.data.data_path} has {manifest.vocab_size} ids, the model "
            f"in {config.load} has {source.model.vocab_size} embeddings: prepare the data with "
            f"the model's own tokenizer ({config.load}/huggingface)"
        )
    if source.tokenizer_sha256 and manifest.tokenizer_sha256 != source.tokenizer_sha256:
        raise InputError(
            f"the tokenizer of {config.data.data_path} (sha256 {manifest.tokenizer_sha256[:12]}) "
            f"is not that of {config.load} (sha256 {source.tokenizer_sha256[:12]}): the same "
            "ids would mean other text; prepare the data with the model's own tokenizer "
            f"({config.load}/huggingface)"
        )


def pretrain(config: PretrainConfig) -> list[IterationRecord]:
    """Train; returns the records of the iterations done, none if the run was complete.

    Raises:
        InputError: bad input; see :func:`check_run`.
    """
    inputs = check_run(config, world_size())
    with parallel_groups(inputs.config.parallel, inputs.config.data.seed) as groups:
        check_agreement(
            {
                **flat_fields(inputs.config),
                **flat_fields(inputs.source, "checkpoint"),
                **flat_fields(inputs.manifest, "data manifest"),
            }
        )
        return _Run(inputs, groups).train()


class _Run:
    """Model, optimizer and position of a run."""

    def __init__(self, inputs: RunInputs, groups: ProcessGroupCollection) -> None:
        self.inputs = inputs
        self.config = config = inputs.config
        self.groups = groups
        self.num_microbatches = config.num_microbatches(dist.get_world_size())
        self.save_root = Path(config.save) if config.save else None
        resumed = run_folder.open_run(self.save_root, config, inputs.result)

        dtype = _DTYPES[config.precision]
        megatron_config = transformer_config(
            inputs.source.model,
            config.parallel,
            params_dtype=dtype,
            rope_scaling=inputs.rope_scaling,
            recompute=config.recompute_granularity != "none",
            deterministic=config.deterministic_mode,
        )
        gpt = build_model(
            inputs.source.model,
            megatron_config,
            groups,
            seq_length=config.data.seq_length,
            rope_scaling=inputs.rope_scaling,
            angle_precision=config.rope.angle_precision,
            keep_attention=config.recompute_granularity == "keep_attention",
            loss_tile_size=config.loss_tile_size,
        ).to(dtype)
        if resumed is None:
            # Before the optimizer is built: it copies the weights into its float32 masters.
            load_weights(gpt, resolve(config.load)[0])
        self.model = wrap_model(gpt)
        self.optimizer = build_optimizer(self.model, config.optimizer, dtype)
        self.scheduler = build_scheduler(self.optimizer, config.optimizer, config.train_iters)
        self.iteration = 0
        if resumed is not None:
            position = load_checkpoint(resumed, self.model, self.optimizer, self.scheduler)
            self.iteration = int(position["iteration"])
        self.scheduler.step(increment=0)
        self.step = LanguageModelStep(
            self.model,
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
            while self.iteration < self.config.train_iters:
                record = self._iterate()
                records.append(record)
                if log and bar:
                    last = self.iteration == self.config.train_iters
                    due = self.iteration % self.config.log_interval == 0 or last
                    log.write(record, to_terminal=due)
                    bar.advance()
                self._save_if_due()
        return records

    @contextlib.contextmanager
    def _log(self) -> Iterator[tuple[RunLog | None, Any]]:
        if not is_main_rank():
            yield None, None
            return
        remaining = self.config.train_iters - self.iteration
        with progress("pretrain", remaining) as bar:
            log = RunLog(self.save_root, self.config.train_iters, bar)
            try:
                yield log, bar
            finally:
                log.close()

    def _iterate(self) -> IterationRecord:
        start = time.monotonic()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.model.train()
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        rows = self._rows(self.inputs.train_rows, self.iteration)
        loss = self.step(rows, self.num_microbatches, forward_only=False)
        succeeded, grad_norm, _ = self.optimizer.step()
        if succeeded:
            self.scheduler.step(increment=1)
        self.iteration += 1
        validation_loss = None
        if self.config.eval_interval and self.iteration % self.config.eval_interval == 0:
            validation_loss = self._validate()
        elapsed = time.monotonic() - start
        samples = self.iteration * self.config.global_batch_size
        batch_tokens = self.config.global_batch_size * self.config.data.seq_length
        return IterationRecord(
            iteration=self.iteration,
            consumed_samples=samples,
            consumed_tokens=samples * self.config.data.seq_length,
            lm_loss=loss,
            grad_norm=float(grad_norm) if grad_norm is not None else float("nan"),
            learning_rate=learning_rate,
            elapsed_ms=1000.0 * elapsed,
            tokens_per_second_per_rank=batch_tokens / elapsed / dist.get_world_size(),
            peak_memory_gib=peak_memory_gib(),
            skipped=not succeeded,
            validation_loss=validation_loss,
        )

    def _rows(self, rows: PackedRows, iteration: int) -> Iterator[Any]:
        return microbatch_rows(
            rows,
            iteration=iteration,
            global_batch_size=self.config.global_batch_size,
            micro_batch_size=self.config.micro_batch_size,
            dp_rank=self.groups.dp.rank(),
            dp_size=self.groups.dp.size(),
            seed=self.config.data.seed,
            separator_ids=self.inputs.manifest.separator_ids,
        )

    def _validate(self) -> float:
        """Mean loss over the same held-out rows every time."""
        rows = self.inputs.valid_rows
        assert rows is not None
        self.model.eval()
        with torch.no_grad():
            losses = [
                self.step(self._rows(rows, batch), self.num_microbatches, forward_only=True)
                for batch in range(self.config.eval_iters)
            ]
        return sum(losses) / len(losses)

    def _save_if_due(self) -> None:
        if self.save_root is None:
            return
        interval = self.config.save_interval
        last = self.iteration == self.config.train_iters
        if last or (interval and self.iteration % interval == 0):
            save_checkpoint(
                self.save_root,
                self.iteration,
                self.model,
                self.optimizer,
                self.scheduler,
                {"consumed_samples": self.iteration * self.config.global_batch_size},
            )

"""What a run reports: a line per iteration, JSON lines, and other sinks."""

import dataclasses
import datetime
import json
import os
import secrets
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from megatron_ultralong.config import training
from megatron_ultralong.program.aside import write_aside
from megatron_ultralong.program.errors import InputError, PassingError
from megatron_ultralong.program.optional import check_optional_package, optional_package
from megatron_ultralong.program.progress import ProgressBar
from megatron_ultralong.training.earlier_start import LOG_FILE

WIDEST = 200
"""Columns of a line on the terminal."""


@dataclasses.dataclass(frozen=True)
class PositionBin:
    """Validation loss of the predictions made at positions ``[start, stop)``."""

    start: int
    stop: int
    lm_loss: float
    """Mean nats a token."""


@dataclasses.dataclass(frozen=True)
class IterationRecord:
    """Figures of one iteration."""

    iteration: int
    consumed_samples: int
    consumed_tokens: int
    lm_loss: float
    """Mean nats a token over the global batch."""
    grad_norm: float
    learning_rate: float
    elapsed_ms: float
    """Wall time since the iteration before was done, validation left out, in milliseconds."""
    num_real_tokens: int
    """Of its rows, without their padding."""
    num_loss_tokens: int
    """Of them, tokens that the loss counts: of conversations, the assistant's turns."""
    tokens_per_second_per_rank: float
    """Real tokens: padding counts nothing, here and in the FLOPs."""
    tflops_per_rank: float
    """Model FLOPs (:mod:`megatron_ultralong.model.flops`), without recomputation, in TFLOP/s."""
    mfu: float | None
    """Their share of the device's peak; None where the peak is not known."""
    peak_memory_gib: float
    """Peak of the device's allocations; on a CPU the resident memory of the process."""
    phases_ms: dict[str, float]
    """Elapsed time by phase (``training/telling/phases.py``), in milliseconds."""
    skipped: bool = False
    """Loss or gradients were not finite, and the weights were left as they are."""
    num_skipped: int = 0
    """Iterations skipped since the run was started."""
    warning: str | None = None
    """A loss spike, or where the numbers went bad."""
    validation_loss: float | None = None
    validation_bins: tuple[PositionBin, ...] = ()


class Sink(NamedTuple):
    """Another place for records."""

    name: str
    """What it is, for messages."""
    write: Callable[[IterationRecord], None]
    """Take one record."""
    close: Callable[[], None]
    """Finish."""


def peak_memory_gib() -> float:
    """Memory of this rank so far, in GiB: see :class:`IterationRecord`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


class RunLog:
    """Writes records to the terminal, to ``log.jsonl`` and to sinks; made on the main rank only.

    A disk that is full or gone costs lines of the log, never the run; a sink that fails ends.
    """

    def __init__(
        self, folder: Path | None, train_iters: int, bar: ProgressBar, sinks: Sequence[Sink] = ()
    ) -> None:
        self._file = (folder / LOG_FILE).open("a", encoding="utf-8") if folder else None
        self._train_iters = train_iters
        self._bar = bar
        self._sinks = list(sinks)
        self._has_warned = False

    def write(self, record: IterationRecord, *, to_terminal: bool) -> None:
        """Append one record."""
        self._attempt(lambda: self._append(record))
        for sink in list(self._sinks):
            self._attempt_sink(sink, lambda sink=sink: sink.write(record))  # type: ignore[misc]
        if to_terminal or record.warning:
            for line in self.lines(record):
                self._bar.print(line)

    def close(self) -> None:
        """Close the file and the sinks."""
        if self._file:
            self._attempt(self._file.close)
        for sink in list(self._sinks):
            self._attempt_sink(sink, sink.close)

    def lines(self, record: IterationRecord) -> list[str]:
        """One line of at most 200 columns; more for a validation and for a warning."""
        lines = [self._line(record)]
        if record.validation_loss is not None:
            text = f"  validation loss: {record.validation_loss:.6f}"
            if record.validation_bins:
                text += ", by position:"
            text += "".join(f" <{part.stop}: {part.lm_loss:.4f}" for part in record.validation_bins)
            lines += textwrap.wrap(text, WIDEST, subsequent_indent="    ", break_on_hyphens=False)
        if record.warning:
            lines.append(f"  WARNING: {record.warning}")
        return lines

    def _line(self, record: IterationRecord) -> str:
        now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        width = len(str(self._train_iters))
        parts = [
            f"[{now}] iteration {record.iteration:{width}d}/{self._train_iters}",
            f"lm loss: {record.lm_loss:.6f}",
            f"grad norm: {record.grad_norm:.3f}",
            f"learning rate: {record.learning_rate:.3E}",
            f"time (ms): {record.elapsed_ms:.1f}",
            f"tokens/s/GPU: {record.tokens_per_second_per_rank:,.0f}",
            f"TFLOP/s/GPU: {record.tflops_per_rank:.3g}",
        ]
        if record.mfu is not None:
            parts.append(f"MFU: {100 * record.mfu:.1f} %")
        parts.append(f"peak GiB: {record.peak_memory_gib:.2f}")
        if record.num_skipped:
            parts.append(f"skipped: {record.num_skipped}")
        return " | ".join(parts)

    def _append(self, record: IterationRecord) -> None:
        if self._file:
            self._file.write(json.dumps(dataclasses.asdict(record)) + "\n")
            self._file.flush()

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                sys.stderr.write(
                    f"WARNING: the log cannot be written ({error}); the run continues\n"
                )

    def _attempt_sink(self, sink: Sink, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of a library, which may have its own
            self._sinks.remove(sink)
            sys.stderr.write(
                f"WARNING: {sink.name} ends here, a record cannot be written ({error}); the run "
                "continues, and one that is resumed writes records again\n"
            )


_WANDB_FILE = "wandb_run_id"


def check_sinks(config: training.TrainingConfig) -> None:
    """Raise InputError where a package that was asked for is not installed."""
    if name := config.log.wandb_project:
        check_optional_package("wandb", f"--wandb-project {name}", "leave the flag out")


def open_sinks(config: training.TrainingConfig, iteration: int) -> list[Sink]:
    """The sinks that were asked for; on the main rank only.

    What TensorBoard had of later iterations than ``iteration`` is dropped.
    """
    sinks: list[Sink] = []
    if config.log.tensorboard and config.save:
        sinks.append(_tensorboard(Path(config.save) / "tensorboard", iteration))
    if config.log.wandb_project:
        sinks.append(_wandb(config))
    return sinks


def scalars(record: IterationRecord) -> dict[str, float]:
    """Figures of a record by name, groups before a slash."""
    values: dict[str, float] = {
        "train/lm loss": record.lm_loss,
        "train/grad norm": record.grad_norm,
        "train/learning rate": record.learning_rate,
        "train/skipped iterations": float(record.num_skipped),
        "train/consumed tokens": float(record.consumed_tokens),
        "train/real tokens": float(record.num_real_tokens),
        "train/loss tokens": float(record.num_loss_tokens),
        "speed/iteration (ms)": record.elapsed_ms,
        "speed/tokens per second per GPU": record.tokens_per_second_per_rank,
        "speed/TFLOP per second per GPU": record.tflops_per_rank,
        "speed/peak memory (GiB)": record.peak_memory_gib,
        **{f"time (ms)/{phase}": value for phase, value in record.phases_ms.items()},
    }
    if record.mfu is not None:
        values["speed/MFU"] = record.mfu
    if record.validation_loss is not None:
        values["validation/lm loss"] = record.validation_loss
    for part in record.validation_bins:
        values[f"validation by position/{part.start}-{part.stop}"] = part.lm_loss
    return values


def _tensorboard(folder: Path, iteration: int) -> Sink:
    """Event files in a folder."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    threading.excepthook = _trace_of_thread
    writer: Any = SummaryWriter(str(folder), purge_step=iteration + 1)

    def write(record: IterationRecord) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record.iteration)

    return Sink(f"TensorBoard's file in {folder}", write, writer.close)


def _trace_of_thread(ended: threading.ExceptHookArgs) -> None:
    """As Python; but what TensorBoard's thread says is raised by its next record, and told once."""
    if not type(ended.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(ended)


def _wandb(config: training.TrainingConfig) -> Sink:
    """A run of Weights & Biases; one that is resumed continues.

    Raises:
        InputError: its server cannot be reached, or takes no records from this user.
    """
    wandb = optional_package("wandb", "--wandb-project")
    folder = Path(config.save) if config.save else None
    try:
        run: Any = wandb.init(
            project=config.log.wandb_project,
            name=folder.name if folder else None,
            id=_identity(folder / _WANDB_FILE) if folder else None,
            dir=os.environ.get("WANDB_DIR") or (str(folder) if folder else None),
            resume="allow",
            config=dataclasses.asdict(config),
        )
    except wandb.Error as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        kind = PassingError if isinstance(error, wandb.errors.CommError) else InputError
        raise kind(
            f"--wandb-project {config.log.wandb_project}: Weights & Biases cannot be used from "
            f"this machine ({first.rstrip('.')}): with WANDB_MODE=offline the records are kept "
            "for `wandb sync`; or leave the flag out"
        ) from error
    name = f"the run {run.name} of Weights & Biases"
    return Sink(name, lambda record: run.log(scalars(record), step=record.iteration), run.finish)


def _identity(path: Path) -> str:
    """Of the run at Weights & Biases: made once, and kept in the run's folder."""
    if not path.is_file():
        write_aside(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8")

"""TensorBoard and Weights & Biases, as places for a run's records."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.config.plain_values import to_dict
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.telling.log import IterationRecord, Sink

_WANDB_FILE = "wandb_run_id"


def check_sinks(config: TrainingConfig) -> None:
    """Raise InputError where a package that was asked for is not installed."""
    if config.log.wandb_project and importlib.util.find_spec("wandb") is None:
        raise InputError(
            f"--wandb-project {config.log.wandb_project} needs the package wandb, which is not "
            "installed: pip install wandb, or leave the flag out"
        )


def open_sinks(config: TrainingConfig, iteration: int) -> list[Sink]:
    """The sinks that were asked for; on the main rank only.

    Args:
        config: of the run.
        iteration: iterations done; what TensorBoard had of later ones is dropped.
    """
    sinks: list[Sink] = []
    if config.log.tensorboard and config.save:
        sinks.append(TensorBoardSink(Path(config.save) / "tensorboard", iteration))
    if config.log.wandb_project:
        sinks.append(WandbSink(config.log.wandb_project, config))
    return sinks


def scalars(record: IterationRecord) -> dict[str, float]:
    """Figures of a record by name, groups before a slash."""
    values: dict[str, float] = {
        "train/lm loss": record.lm_loss,
        "train/grad norm": record.grad_norm,
        "train/learning rate": record.learning_rate,
        "train/skipped iterations": float(record.num_skipped),
        "train/consumed tokens": float(record.consumed_tokens),
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


class TensorBoardSink:
    """Event files in a folder."""

    def __init__(self, folder: Path, iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer: Any = SummaryWriter(str(folder), purge_step=iteration + 1)

    def write(self, record: IterationRecord) -> None:
        """Take one record."""
        _add(self._writer, scalars(record), record.iteration)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def _add(writer: Any, values: Mapping[str, float], iteration: int) -> None:
    for name, value in values.items():
        writer.add_scalar(name, value, iteration)


def _identity(path: Path) -> str:
    """Of the run at Weights & Biases: made once, and kept in the run's folder."""
    if not path.is_file():
        aside = path.with_name(path.name + ".partial")
        aside.write_text(secrets.token_hex(8), encoding="utf-8")
        os.replace(aside, path)
    return path.read_text(encoding="utf-8")


class WandbSink:
    """A run of Weights & Biases; one that is resumed goes on."""

    def __init__(self, project: str, config: TrainingConfig) -> None:
        import wandb  # optional

        folder = Path(config.save) if config.save else None
        self._run: Any = wandb.init(
            project=project,
            name=folder.name if folder else None,
            id=_identity(folder / _WANDB_FILE) if folder else None,
            resume="allow",
            config=to_dict(config),
        )

    def write(self, record: IterationRecord) -> None:
        """Take one record."""
        self._run.log(scalars(record), step=record.iteration)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()

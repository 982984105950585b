"""Options of a run that do not change what it computes: saving, stopping, telling."""

from __future__ import annotations

import dataclasses
from typing import Literal

from megatron_ultralong.errors import InputError


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How checkpoints are written and which are kept."""

    async_save: bool = True
    """Write checkpoints in the background: training waits only while tensors are copied."""
    save_retain_last: int = 2
    """Newest checkpoints to keep; 0 keeps all."""
    save_retain_interval: int = 0
    """Keep the checkpoints of every so many iterations too; 0: none but the newest."""
    max_save_failures: int = 5
    """Checkpoints that may fail one after another before the run ends; 0: any number."""

    def check(self) -> None:
        """Raise InputError where a number is out of its range."""
        for field in ("save_retain_last", "save_retain_interval", "max_save_failures"):
            if getattr(self, field) < 0:
                raise InputError(f"{field} must be at least 0, not {getattr(self, field)}")


@dataclasses.dataclass(frozen=True)
class FaultConfig:
    """When a run stops, and what it does about bad numbers."""

    exit_duration_in_mins: float = 0.0
    """Save and end with status 75 after so many minutes; 0: no limit."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop saves the state before that step and ends with
    status 65; skip leaves the step out and goes on."""
    loss_spike_deviations: float = 6.0
    """Warn of a loss so many standard deviations above the last 32; 0: never."""

    def check(self) -> None:
        """Raise InputError where a number is out of its range."""
        for field in ("exit_duration_in_mins", "loss_spike_deviations"):
            if not getattr(self, field) >= 0:
                raise InputError(f"{field} must be at least 0, not {getattr(self, field)}")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What a run tells beside its lines and `log.jsonl`."""

    tensorboard: bool = True
    """Write TensorBoard's events into the folder `tensorboard` of the run."""
    wandb_project: str = ""
    """Log to this project of Weights & Biases too (pip install wandb)."""
    peak_tflops: float = 0.0
    """Peak of one device in TFLOP/s, for MFU; 0 takes the dense bf16 peak by the device's name."""
    profile: bool = False
    """Write a torch trace of some iterations into the folder `profile` of the run."""
    profile_step_start: int = 10
    """First iteration of the trace."""
    profile_step_end: int = 12
    """Iteration before which the trace ends."""
    profile_ranks: tuple[int, ...] = (0,)
    """Ranks that write one."""

    def check(self) -> None:
        """Raise InputError where the fields do not fit together."""
        if self.profile and not 1 <= self.profile_step_start < self.profile_step_end:
            raise InputError(
                f"profile_step_start ({self.profile_step_start}) must be at least 1 and below "
                f"profile_step_end ({self.profile_step_end}): iterations count from 1, and the "
                "last one is not traced"
            )

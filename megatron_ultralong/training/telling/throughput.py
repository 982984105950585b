"""Model FLOPs a second, and their share of the device's peak."""

from __future__ import annotations

import torch

from megatron_ultralong.model.flops import peak_tflops
from megatron_ultralong.model.shape import ModelConfig


class Throughput:
    """Speed of the ranks of a job."""

    def __init__(self, model: ModelConfig, peak: float, world_size: int) -> None:
        """Take the peak in TFLOP/s as given; 0 looks the device up."""
        self.model = model
        self.peak: float | None = peak or None
        if not peak and torch.cuda.is_available():
            self.peak = peak_tflops(torch.cuda.get_device_name())
        self._world_size = world_size

    def of(self, flops: float, seconds: float) -> tuple[float, float | None]:
        """TFLOP/s of one rank and MFU, of ``flops`` that all ranks did in ``seconds``."""
        tflops = flops / seconds / self._world_size / 1e12
        return tflops, tflops / self.peak if self.peak else None

"""Clock and power of this rank's GPU while something runs."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable
from statistics import mean
from typing import NamedTuple, TypeVar

import torch

SECONDS = 0.25  # between two looks

Found = TypeVar("Found")


class Clocks(NamedTuple):
    """Means over some seconds; NaN where nothing tells them."""

    sm_mhz: float
    watts: float

    def __str__(self) -> str:
        return " ".join(
            f"{value:.0f} {unit}" if value == value else "-"
            for value, unit in zip(self, ("MHz", "W"), strict=True)
        )


NO_CLOCKS = Clocks(float("nan"), float("nan"))


def watched(run: Callable[[], Found]) -> tuple[Found, Clocks]:
    """What ``run()`` returns, and the means of the clocks meanwhile."""
    look = _look()
    if look is None:
        return run(), NO_CLOCKS
    seen: list[Clocks] = []
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(SECONDS):
            its = look()
            if its is not None and not is_done.is_set():
                seen.append(its)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        found = run()
    finally:
        is_done.set()
        thread.join()
    return found, Clocks(*map(mean, zip(*seen, strict=True))) if seen else NO_CLOCKS


def _look() -> Callable[[], Clocks | None] | None:
    """A function that tells clock and power now; None if there is none."""
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.current_device()
    try:
        torch.cuda.clock_rate(device)
        return lambda: Clocks(torch.cuda.clock_rate(device), torch.cuda.power_draw(device) / 1000)
    except Exception:  # without its package, or without the right to ask
        program = shutil.which("nvidia-smi")
    if program is None:
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    words = [program, "-i", uuid, "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits"]  # fmt: skip  # noqa: E501
    return lambda: _asked(words)


def _asked(words: list[str]) -> Clocks | None:
    """What ``nvidia-smi`` says: ``1665, 694.12``."""
    try:
        run = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
        clock, power = run.stdout.strip().split(",")
        return Clocks(float(clock), float(power))
    except (subprocess.SubprocessError, OSError, ValueError):
        return None

"""A torch trace of some iterations, for ``--profile``."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from megatron_ultralong.config.run import LogConfig

_log = logging.getLogger(__name__)


class Profile:
    """Traces iterations ``[profile_step_start, profile_step_end)`` on the ranks asked for."""

    def __init__(self, config: LogConfig, folder: Path | None, rank: int) -> None:
        self._start, self._end = config.profile_step_start, config.profile_step_end
        name = f"rank{rank}-steps{self._start}-{self._end - 1}.json.gz"
        self._path = (folder or Path(".")) / "profile" / name
        self._wanted = config.profile and rank in config.profile_ranks
        self._profiler: torch.profiler.profile | None = None

    def before(self, iteration: int) -> None:
        """Iteration number ``iteration``, counted from 1, is about to begin."""
        if not self._wanted:
            return
        if self._profiler is None and self._start <= iteration < self._end:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
        elif iteration >= self._end:
            self.finish()

    def finish(self) -> None:
        """Write the trace if one is being taken: open it in Perfetto or chrome://tracing."""
        if self._profiler is None:
            return
        self._profiler.stop()
        profiler, self._profiler, self._wanted = self._profiler, None, False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside = self._path.with_name("." + self._path.name)
            profiler.export_chrome_trace(str(aside))
            os.replace(aside, self._path)
        except OSError as error:
            _log.warning("WARNING: the trace %s cannot be written: %s", self._path, error)

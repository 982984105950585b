"""Trainings of one CPU rank, each in a fork of a process that has imported Megatron-LM once."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import os
import pickle
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

Mode = Literal["plain", "drop-in"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    losses: tuple[float, ...]
    """Of its iterations, in order."""
    error: str = ""
    """Empty: it ended well. Else the last line of what it raised."""
    is_refusal: bool = False
    """An ``InputError`` of this project."""
    trace: str = ""
    """Of what was raised."""
    imported: tuple[str, ...] = ()
    """Modules that the run has imported by itself."""


def run(mode: Mode, script: Path, words: list[str], *, seconds: float = 120) -> Outcome:
    """Train in a fork of this process, and wait for it.

    Args:
        mode: Megatron-LM alone (on the CPU), or with the drop-in.
        script: a Megatron-LM script.
        words: of its command line.
        seconds: after which it is ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _child(mode, script, words, path)
                status = 0
            finally:
                os._exit(status)
        deadline = time.monotonic() + seconds
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Outcome((), f"not over after {seconds:.0f} s")
            time.sleep(0.01)
        result = path / "outcome"
        if not result.exists():
            return Outcome((), f"the process ended with status {ended[1]}")
        outcome: Outcome = pickle.loads(result.read_bytes())
        return outcome


def _child(mode: Mode, script: Path, words: list[str], folder: Path) -> None:
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    with (folder / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    (folder / "files").mkdir()
    losses: list[float] = []
    before = set(sys.modules)
    try:
        store = dist.FileStore(str(folder / "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="1")
        os.environ.update(NCCL_ALGO="Ring", CUBLAS_WORKSPACE_CONFIG=":4096:8")
        sys.argv = [
            str(script),
            *(word.replace("{folder}", str(folder / "files")) for word in words),
        ]
        train(mode, script, losses)
        outcome = Outcome(tuple(losses))
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            outcome = Outcome(tuple(losses))
        else:
            said = f"{type(error).__name__}: {error}".strip().splitlines()
            kinds = [kind.__name__ for kind in type(error).__mro__]
            outcome = Outcome(
                *(tuple(losses), said[0] + (f" ... {said[-1]}" if len(said) > 1 else "")),
                *("InputError" in kinds, traceback.format_exc()),
            )
    outcome = dataclasses.replace(outcome, imported=tuple(set(sys.modules) - before))
    (folder / "outcome").write_bytes(pickle.dumps(outcome))


def train(mode: Mode, script: Path, losses: list[float]) -> None:
    """Run ``script`` with ``sys.argv``; the losses of its iterations are added to ``losses``."""
    from megatron_ultralong.dropin.__main__ import extend
    from megatron_ultralong.dropin.cpu import (
        keep_compiled_helpers,
        set_cpu_defaults,
        training_on_cpu,
    )

    with training_on_cpu(), contextlib.ExitStack() as stack:
        from megatron.training import arguments, training

        train_step = training.train_step
        stack.callback(setattr, training, "train_step", train_step)

        def noting(*given: Any, **keywords: Any) -> Any:
            result = train_step(*given, **keywords)
            if "lm loss" in result[0]:
                losses.append(float(result[0]["lm loss"]))
            return result

        training.train_step = noting
        if mode == "drop-in":
            extend()
        else:
            keep_compiled_helpers()
            expected = arguments.add_megatron_arguments

            def add(parser: Any) -> Any:
                set_cpu_defaults(parser := expected(parser))
                return parser

            arguments.add_megatron_arguments = add
        sys.path[0] = str(script.parent)
        runpy.run_path(str(script), run_name="__main__")


def import_too(names: Iterable[str]) -> None:
    """Import what a run has imported by itself, so that the next one need not."""
    from megatron_ultralong.dropin.cpu import training_on_cpu

    with training_on_cpu():
        for name in sorted(names):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def warm(script: Path) -> argparse.ArgumentParser:
    """Import what ``script`` imports, once for all runs; Megatron-LM's parser."""
    from megatron_ultralong.dropin.cpu import training_on_cpu

    sys.path.insert(0, str(script.parent))
    # Most of a short run goes into the help texts of the parser, read from the sources each time.
    inspect.getsourcelines = functools.cache(inspect.getsourcelines)
    ast.parse = functools.cache(ast.parse)
    with training_on_cpu():
        importlib.import_module("megatron_ultralong.dropin.extension")
        importlib.import_module("megatron_ultralong.spec")
        runpy.run_path(str(script), run_name="imported")
        from megatron.training import arguments

        expected = argparse.ArgumentParser(allow_abbrev=False)
        parser: argparse.ArgumentParser = arguments.add_megatron_arguments(expected)
        return parser

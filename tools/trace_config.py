"""Trace the way of a configuration from ``pretrain`` to the first call of an attention kernel.

::

    python -m tools.trace_config            # one CPU, about half a minute

One iteration of the demo's model runs here. A file of the package is *entered* when one of its
functions is called with a configuration: a dataclass of ``megatron_ultralong.config`` among its
arguments, ``self`` included. Files are printed in the order in which they are entered
first. A *climb* is a file that calls one of a higher layer with a configuration, by the layers of
``pyproject.toml``; each pair of files counts once. Calls that go through Megatron-Core or torch
count from the last file of the package before them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import itertools
import json
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.plain_values import with_fields
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.training.verbs import pretrain
from tools.draw_house import PACKAGE, ROOT, layers

FOLDER = ROOT / PACKAGE
KERNELS = "attention/kernels/"
MOST_FILES, MOST_CLIMBS = 25, 8
SEQ_LENGTH = 256


class Trace:
    """What a profile function sees until a kernel's ``forward`` is called."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        """Files in the order of entry, and the function that was called first."""
        self.carriers: dict[str, str] = {}
        """The same of files whose arguments are configurations or have one as an attribute."""
        self.calls: dict[tuple[str, str], str] = {}
        """Pairs of caller and called file, and the function that was called first."""
        self.is_over = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """A profile function."""
        if self.is_over or event != "call":
            return
        there = place(frame)
        if there is None:
            return
        name = frame.f_code.co_name
        if there.startswith(KERNELS) and name == "forward":
            self.is_over = True
            return
        given = arguments(frame)
        if any(carries(value) for value in given):
            self.carriers.setdefault(there, name)
        if any(is_configuration(value) for value in given):
            self.files.setdefault(there, name)
            caller = frame.f_back
            while caller is not None and place(caller) is None:
                caller = caller.f_back
            here = None if caller is None else place(caller)
            if here is not None and here != there:
                self.calls.setdefault((here, there), name)

    def steps_up(self) -> int:
        """Files that lie in a higher layer than the one that was entered before them."""
        levels = [level(file) for file in self.files]
        return sum(before < here for before, here in itertools.pairwise(levels))

    def climbs(self) -> dict[tuple[str, str], str]:
        """Calls from a file to one of a higher layer."""
        return {pair: name for pair, name in self.calls.items() if level(pair[0]) < level(pair[1])}


def place(frame: FrameType) -> str | None:
    """A frame's file below the package, None outside of it."""
    path = frame.f_code.co_filename
    return path[len(str(FOLDER)) + 1 :] if path.startswith(f"{FOLDER}/") else None


def arguments(frame: FrameType) -> list[Any]:
    """What a function was called with."""
    names, rest, keywords, values = inspect.getargvalues(frame)
    found = [values[name] for name in names if name in values]
    if rest:
        found += values[rest]
    if keywords:
        found += values[keywords].values()
    return found


def is_configuration(value: Any) -> bool:
    """Whether it is one, or a part of one."""
    return dataclasses.is_dataclass(value) and type(value).__module__.startswith(
        f"{PACKAGE}.config."
    )


def carries(value: Any) -> bool:
    """Whether it is one, or an object of the package that has one as an attribute."""
    if is_configuration(value):
        return True
    if isinstance(value, type) or not type(value).__module__.startswith(PACKAGE):
        return False
    return any(map(is_configuration, getattr(value, "__dict__", {}).values()))


def level(file: str) -> int:
    """Number of its layer, the lowest 0."""
    room = file.split("/", 1)[0].removesuffix(".py")
    rows = layers()[::-1]
    return next((number for number, row in enumerate(rows) if room in row), len(rows))


def tiny_run(folder: Path) -> PretrainConfig:
    """One iteration of the demo's model on one rank, over a row of made-up text."""
    import_checkpoint(ImportConfig(ROOT / "examples" / "demo" / "base", folder / "base"))
    texts = (f"Line {n} of a text that is as long as a few rows. " * 40 for n in range(8))
    documents = folder / "documents.jsonl"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(
        PrepareConfig(
            source=(f"text={documents}",),
            tokenizer=ROOT / "examples" / "demo" / "base",
            output=folder / "rows",
            seq_length=SEQ_LENGTH,
        )
    )
    return with_fields(
        PRETRAIN_RECIPES["demo-cpu"](),
        load=str(folder / "base"),
        save=str(folder / "run"),
        data_path=str(folder / "rows"),
        seq_length=0,
        train_iters=1,
        lr_warmup_iters=0,
        context_parallel_size=1,
        memory=MemoryConfig(),
        tensorboard=False,
    )


def traced(config: PretrainConfig) -> Trace:
    """The trace of a run."""
    trace = Trace()
    sys.setprofile(trace)
    try:
        pretrain(config)
    finally:
        sys.setprofile(None)
    assert trace.is_over, "no kernel was called"
    return trace


def main() -> None:
    """Print the way, and what was asked of it."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trace = traced(tiny_run(Path(folder)))
    for number, (file, function) in enumerate(trace.files.items(), 1):
        sys.stdout.write(f"{number:3} {file:45} {function}\n")
    climbs = trace.climbs()
    for (caller, called), function in climbs.items():
        sys.stdout.write(f"climb: {caller} -> {called} ({function})\n")
    others = [file for file in trace.carriers if file not in trace.files]
    sys.stdout.write(f"called with an object that has one: {', '.join(others)}\n")
    sys.stdout.write(f"{len(trace.files)} files (asked: at most {MOST_FILES}), ")
    sys.stdout.write(f"{len(climbs)} climbs (asked: at most {MOST_CLIMBS}); ")
    sys.stdout.write(f"in the order of entry {trace.steps_up()} steps lead to a higher layer\n")


if __name__ == "__main__":
    main()

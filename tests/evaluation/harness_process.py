"""Processes that have lm-evaluation-harness, from the environment of its own (make harness)."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import multiprocessing
import os
import pickle
import site
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.ranks import start_forkserver

SITES = [str(path) for path in (Path(sys.prefix) / "harness").glob("lib/python*/site-packages")]
IS_HERE = importlib.util.find_spec("lm_eval") is not None


def add_harness() -> None:
    """Make the harness importable here, without a network."""
    for folder in () if IS_HERE else SITES:
        site.addsitedir(folder)
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TQDM_DISABLE")
    os.environ.update(dict.fromkeys(names, "1"))
    from lm_eval.tasks import manager

    # Thousands of task files are listed in seconds, every time: here once. What stands in a later
    # folder replaces what an earlier one has, as there.
    build = manager.TaskIndex.build

    @functools.cache
    def listed(folder: Path) -> dict[str, Any]:
        if "lm_eval" not in folder.parts:
            return dict(build([folder]))
        kept = Path(os.environ["HF_HOME"], "tasks.pickle")
        kept.parent.mkdir(exist_ok=True)
        with kept.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not file.tell():
                pickle.dump(dict(build([folder])), file)
            file.seek(0)
            return dict(pickle.load(file))

    manager.TaskIndex.build = staticmethod(
        lambda folders: {k: v for folder in folders for k, v in listed(folder).items()}
    )


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns in a process of its own, which has the harness."""
    start_forkserver()
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe()
    process = context.Process(target=_tell, args=(sender, dict(os.environ), work, arguments))
    process.start()
    sender.close()
    is_right, value = receiver.recv()
    process.join()
    assert is_right, value
    return value


def _tell(
    connection: Any, environment: dict[str, str], work: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    add_harness()
    try:
        connection.send((True, work(*arguments)))
    except BaseException:
        connection.send((False, traceback.format_exc()))

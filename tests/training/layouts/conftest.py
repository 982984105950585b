"""A model and rows for all layouts, and the runs that a file of tests asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from tests.models import TEXT, prepare_rows, write_llama
from tests.ranks import run_on_ranks
from tests.training.layouts.runs import LAYOUTS, MASKS, RUNS, SEQ_LENGTH, Logs, reference, train_all


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model, and rows of several short documents each."""
    folder = tmp_path_factory.mktemp("layouts")
    for name, tied in (("untied", False), ("tied", True)):
        write_llama(folder / f"hf-{name}", tie_word_embeddings=tied)
        import_checkpoint(ImportConfig(folder / f"hf-{name}", folder / name))
    prepare_rows(
        folder, (TEXT * (1 + n % 7) + str(n) for n in range(300)), folder / "hf-tied", SEQ_LENGTH
    )
    return folder


@pytest.fixture(scope="module")
def logs(inputs: Path, request: pytest.FixtureRequest) -> Logs:
    """Records of the layouts and masks that tests of a file name, the same on every rank."""
    asked: set[Any] = {
        (item.callspec.params["layout"], item.callspec.params["mask"])
        for item in request.session.items
        if item.path == request.path
        and isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
    }
    asked |= {(reference(layout), mask) for layout, mask in asked} | {("one", m) for m in MASKS}
    logs: Logs = {}
    for ranks in (1, 2, 4):
        runs = [run for run in RUNS if LAYOUTS[run[0]][0] == ranks and run in asked]
        if not runs:
            continue
        results = run_on_ranks(ranks, train_all, inputs, runs)
        for run, records in results[0].items():
            losses = [record.lm_loss for record in records]
            assert all([r.lm_loss for r in other[run]] == losses for other in results)
            logs[run] = records
    return logs

"""The oracles: local layers in float32 and in bf16, from the same checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.transformer_engine.comparison import distance
from tests.transformer_engine.wide import Log, logits, make_run, of_mask, train, write_wide


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    write_wide(folder)
    return folder


@pytest.fixture(scope="session")
def trained(wide: Path) -> Path:
    """A checkpoint of a run of local layers, which has a temperature."""
    train(make_run(wide, save=str(wide / "trained")))
    return wide / "trained"


@pytest.fixture(scope="session")
def exact(trained: Path) -> torch.Tensor:
    return logits(trained, dtype=torch.float32)


@pytest.fixture(scope="session")
def rounding(trained: Path, exact: torch.Tensor) -> float:
    """How far bf16 takes the logits of local layers."""
    return distance("local layers", logits(trained), exact)


@pytest.fixture(scope="session")
def local(wide: Path) -> dict[str, Log]:
    """Runs of local layers, by mask."""
    return {mask: train(of_mask(make_run(wide), mask)) for mask in ("none", "block")}

"""Scores of a Megatron checkpoint are those of transformers, on every layout."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.evaluation.models.facts import model_facts
from megatron_ultralong.evaluation.models.interface import Scores
from megatron_ultralong.evaluation.models.language_models import (
    HuggingFaceModel,
    open_language_models,
    open_scorers,
)
from megatron_ultralong.evaluation.options import ModelsConfig
from tests.models import SCALED, write_llama
from tests.ranks import run_on_ranks

ROPES = {"default": {"rope_type": "default", "rope_theta": 10_000.0}, **SCALED}
LAYOUTS = {
    1: [ParallelConfig()],
    2: [
        ParallelConfig(tensor_model_parallel_size=2),
        ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
        ParallelConfig(pipeline_model_parallel_size=2),
        ParallelConfig(context_parallel_size=2),
    ],
}
ROWS = np.random.default_rng(0).integers(0, 320, (2, 301))  # a length that no layout divides


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer")
    for name, rope in ROPES.items():
        write_llama(folder / f"hf-{name}", rope_parameters=rope, max_position_embeddings=512)
        import_checkpoint(ImportConfig(folder / f"hf-{name}", folder / name))
    return folder


def score_all(folder: Path, layouts: list[ParallelConfig]) -> list[list[Scores]]:
    """Run on every rank: scores by layout and checkpoint."""
    results = []
    for parallel in layouts:
        config = ModelsConfig(tuple(str(folder / name) for name in ROPES), "fp32", parallel)
        with open_scorers(config) as scorers:
            results.append([scorer.score(ROWS) for scorer in scorers])
    return results


@pytest.mark.parametrize("ranks", LAYOUTS)
def test_scores_are_those_of_transformers(folder: Path, ranks: int) -> None:
    expected = [HuggingFaceModel(folder / f"hf-{name}").score(ROWS) for name in ROPES]
    for of_rank in run_on_ranks(ranks, score_all, folder, LAYOUTS[ranks]):
        for of_layout in of_rank:
            for actual, reference in zip(of_layout, expected, strict=True):
                assert actual.loss.shape == reference.loss.shape == (2, 300)
                # float32 on both sides, and angles that transformers rounds at every position.
                np.testing.assert_allclose(actual.loss, reference.loss, atol=2e-4, rtol=0)
                assert (actual.correct == reference.correct).mean() > 0.998


def positions(load: str) -> list[int]:
    """What scorer, generator and facts of a checkpoint say that it was trained for."""
    config = ModelsConfig((load,), "fp32")
    with open_scorers(config) as [scorer]:
        found = [scorer.max_positions]
    with open_language_models(config) as [generator]:
        found.append(generator.max_positions)
    return [*found, model_facts(load, "fp32").max_positions]


def test_a_checkpoint_is_trained_for_no_more_than_its_rows(folder: Path, tmp_path: Path) -> None:
    """Whatever its rotary embedding was made for."""
    shutil.copytree(folder / "yarn", tmp_path / "run")
    metadata = load_metadata(tmp_path / "run")
    assert metadata.trained_positions == 512
    save_metadata(tmp_path / "run", dataclasses.replace(metadata, trained_seq_length=128))
    assert run_on_ranks(1, positions, str(tmp_path / "run")) == [[128] * 3]

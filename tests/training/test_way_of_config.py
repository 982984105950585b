"""How far a configuration is handed on before anything is computed."""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.config.training import PretrainConfig
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig
from tools.trace_config import MOST_CLIMBS, MOST_FILES, traced


def _way(config: PretrainConfig) -> tuple[list[str], int, int]:
    trace = traced(config)
    return list(trace.files), len(trace.climbs()), trace.steps_up()


def test_few_files_see_the_configuration_before_the_first_kernel(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(tmp_path / "run", train_iters=3)
    ((files, climbs, steps_up),) = run_on_ranks(1, _way, config)
    assert files[0] == "training/verbs.py"
    assert "mcore/layer_spec.py" in files, "the trace reaches the model"
    assert len(files) <= MOST_FILES, files
    assert max(climbs, steps_up) <= MOST_CLIMBS

"""A tiny converted model, rows for it, and the configuration of a run over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.run import CheckpointConfig, LogConfig, MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.sequence.document_mask import DocumentMask
from tests.models import TEXT, prepare_rows, write_llama
from tests.patience import patience

MakeConfig = Callable[..., PretrainConfig]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` of two layers, ``deep`` of four, and ``rows`` of several documents each."""
    folder = tmp_path_factory.mktemp("tiny")
    for name, hf, layers in (("base", "hf", 2), ("deep", "hf-deep", 4)):
        write_llama(folder / hf, num_hidden_layers=layers, num_key_value_heads=4)
        import_checkpoint(ImportConfig(folder / hf, folder / name))
    prepare_rows(folder, (TEXT * (1 + n % 7) + str(n) for n in range(300)), folder / "hf", 128)
    return folder


@pytest.fixture(scope="session")
def make_config(tiny: Path) -> MakeConfig:
    """A configuration over that model, by layout and mask."""

    def make(
        save: Path | None,
        layout: tuple[int, int] = (1, 1),
        mask: DocumentMask = "none",
        *,
        train_iters: int = 20,
        save_interval: int = 3,
        model: str = "base",
        timeout_seconds: float = 60.0,
    ) -> PretrainConfig:
        return PretrainConfig(
            load=str(tiny / model),
            save=str(save or ""),
            save_interval=save_interval,
            train_iters=train_iters,
            global_batch_size=2,
            precision="fp32",
            memory=MemoryConfig(recompute_granularity="none", loss_tile_size=0),
            rope=RopeConfig(
                rope_scaling="yarn", rope_scaling_factor=2.0, original_max_position_embeddings=64
            ),
            parallel=ParallelConfig(
                tensor_model_parallel_size=layout[0],
                context_parallel_size=layout[1],
                distributed_timeout_minutes=patience(timeout_seconds) / 60.0,
            ),
            data=DataConfig(str(tiny / "rows"), document_mask=mask),
            optimizer=OptimizerConfig(lr=1e-3, lr_warmup_iters=2),
            checkpoint=CheckpointConfig(max_save_failures=2),
            log=LogConfig(tensorboard=False),
        )

    return make

"""A model wide enough for FP8's kernels, rows for it, and runs over them on a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_weights
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.run import (
    LOCAL_LAYERS,
    CheckpointConfig,
    LayerConfig,
    LogConfig,
    MemoryConfig,
)
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.training.verbs import pretrain
from tests.models import TEXT, prepare_rows, write_llama

SEQ_LENGTH, STEPS = 1024, 4
ONE = ParallelConfig()
TE = LayerConfig(transformer_impl="transformer_engine")
FULL = MemoryConfig(recompute_granularity="full", sequence_tile_size=0, loss_tile_size=0)
TILES = MemoryConfig(
    recompute_granularity="keep_attention", sequence_tile_size=256, loss_tile_size=256
)
TENSORWISE = dataclasses.replace(TE, fp8_format="hybrid", fp8_recipe="tensorwise")
BLOCKWISE = dataclasses.replace(TE, fp8_format="e4m3", fp8_recipe="blockwise")
DELAYED = dataclasses.replace(TE, fp8_format="hybrid", fp8_recipe="delayed")
TE_ATTENTION = dataclasses.replace(TE, attention="te")
FUSED_ROPE = dataclasses.replace(TE, apply_rope_fusion=True)
KEEP_ALL = MemoryConfig(recompute_granularity="none", loss_tile_size=0)
"""Layers as Megatron-Core runs them."""
_PRECISE = OptimizerConfig(lr=1e-4, lr_warmup_iters=1, use_precision_aware_optimizer=True)
LOWER = {
    "bf16": dataclasses.replace(
        _PRECISE, main_grads_dtype="bf16", exp_avg_dtype="bf16", exp_avg_sq_dtype="bf16"
    ),
    "fp8": dataclasses.replace(
        _PRECISE, main_params_dtype="fp16", exp_avg_dtype="fp8", exp_avg_sq_dtype="fp16"
    ),
}
ROPE = RopeConfig(
    "yarn",
    rope_scaling_factor=4.0,
    original_max_position_embeddings=256,
    ramp="dimensions",
    attention_factor=1.2,
)
"""YaRN with a temperature, so that one that is lost shows."""
Log = list[tuple[float, float]]
"""Loss and gradient norm of every iteration."""


def write_wide(folder: Path) -> None:
    """``base``, two layers whose sizes are multiples of 128, and ``rows`` of many documents."""
    write_llama(
        folder / "hf",
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=384,
        max_position_embeddings=256,
        initializer_range=0.08,  # outputs of a matrix as large as its inputs
    )
    import_checkpoint(ImportConfig(folder / "hf", folder / "base"))
    prepare_rows(
        folder, (TEXT * (1 + n % 17) + str(n) for n in range(400)), folder / "hf", SEQ_LENGTH
    )


def make_run(folder: Path, layers: LayerConfig = LOCAL_LAYERS, **changes: Any) -> PretrainConfig:
    """A run over them in bf16."""
    config = PretrainConfig(
        load=str(folder / "base"),
        train_iters=STEPS,
        global_batch_size=2,
        memory=KEEP_ALL,
        rope=ROPE,
        layers=layers,
        data=DataConfig(str(folder / "rows")),
        optimizer=OptimizerConfig(lr=1e-4, lr_warmup_iters=1),
        checkpoint=CheckpointConfig(async_save=False, max_save_failures=2),
        log=LogConfig(tensorboard=False),
    )
    return dataclasses.replace(config, **changes)


def of_mask(config: PretrainConfig, mask: Any) -> PretrainConfig:
    """The run under another document mask."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, document_mask=mask))


def train(config: PretrainConfig) -> Log:
    """What a run on this rank sees."""
    if config.layers.fp8_format != "none":
        from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

        FP8GlobalStateManager.reset()  # maxima of an earlier run, whose groups are gone
    return [(record.lm_loss, record.grad_norm) for record in pretrain(config)]


def train_all(configs: dict[str, PretrainConfig]) -> dict[str, Log]:
    """Run on every rank: one run after the other."""
    return {name: train(config) for name, config in configs.items()}


def logits(
    checkpoint: Path,
    layers: LayerConfig = LOCAL_LAYERS,
    dtype: torch.dtype = torch.bfloat16,
    parallel: ParallelConfig = ONE,
) -> torch.Tensor:
    """Logits of a row of random tokens, float32 [S, vocabulary], on the CPU of every rank."""
    metadata = load_metadata(checkpoint)
    generator = torch.Generator().manual_seed(5)
    row = torch.randint(metadata.model.vocab_size, (1, SEQ_LENGTH), generator=generator)
    with parallel_groups(parallel, seed=1) as groups:
        model = build_model(
            metadata.model,
            transformer_config(
                metadata.model,
                parallel,
                params_dtype=dtype,
                rope_scaling=metadata.rope_scaling,
                layers=layers,
            ),
            groups,
            seq_length=SEQ_LENGTH,
            rope_scaling=metadata.rope_scaling,
            layers=layers,
        ).to(dtype)
        load_weights([model], MegatronCheckpoint(checkpoint))
        with torch.no_grad():
            local = model.eval()(row.cuda(), None, None).contiguous()
        parts = [torch.empty_like(local) for _ in range(groups.tp.size())]
        dist.all_gather(parts, local, group=groups.tp)
        return torch.cat(parts, dim=-1)[0].float().cpu()


def weights(checkpoint: Path, layers: LayerConfig) -> dict[str, torch.Tensor]:
    """Every weight by the name that local layers have for it, as a model in bf16 loads it."""
    metadata = load_metadata(checkpoint)
    with parallel_groups(ONE, seed=1) as groups:
        config = transformer_config(metadata.model, ONE, params_dtype=torch.bfloat16, layers=layers)
        model = build_model(
            metadata.model,
            config,
            groups,
            seq_length=SEQ_LENGTH,
            rope_scaling=None,
            layers=layers,
        )
        load_weights([model], MegatronCheckpoint(checkpoint))
        return {
            name.replace(
                "self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"
            ).replace("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"): value.cpu()
            for name, value in model.named_parameters()
        }

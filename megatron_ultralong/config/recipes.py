"""Published and ready-made runs: one function each, returning a frozen configuration.

What arXiv 2504.06214 states is marked "paper"; the rest is a documented default of this project.
"""

from collections.abc import Callable

from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig, SftConfig

_ORIGINAL = 8192


def _llama3_1_8b(
    seq_length: int, context_parallel_size: int, global_batch_size: int
) -> PretrainConfig:
    return PretrainConfig(
        train_iters=150,
        global_batch_size=global_batch_size,
        save_interval=25,
        precision="bf16",
        rope=RopeConfig(
            rope_scaling="yarn",  # paper: YaRN over the raw base, alpha 1, beta 4
            rope_scaling_factor=seq_length / _ORIGINAL,  # paper: 128, 256, 512
            original_max_position_embeddings=_ORIGINAL,
            beta_fast=4.0,
            beta_slow=1.0,
            ramp="rotations",
            attention_factor=1.0,
        ),
        parallel=ParallelConfig(
            tensor_model_parallel_size=8,  # paper
            context_parallel_size=context_parallel_size,  # paper: 4 at 1M, 16 at 2M and 4M
            sequence_parallel=True,
        ),
        data=DataConfig(seq_length=seq_length, document_mask="none"),  # paper: no document mask
        optimizer=OptimizerConfig(lr=3e-5, lr_warmup_iters=10),  # paper: 3e-5
    )


def llama3_1_8b_1m() -> PretrainConfig:
    """Llama-3.1-8B to 1,048,576 tokens: 8 rows an iteration keep the tokens of the 4M run."""
    return _llama3_1_8b(1_048_576, context_parallel_size=4, global_batch_size=8)


def llama3_1_8b_2m() -> PretrainConfig:
    """Llama-3.1-8B to 2,097,152 tokens: 4 rows an iteration keep the tokens of the 4M run."""
    return _llama3_1_8b(2_097_152, context_parallel_size=16, global_batch_size=4)


def llama3_1_8b_4m() -> PretrainConfig:
    """Llama-3.1-8B to 4,194,304 tokens: 150 iterations of 2 rows (paper), 1.26B tokens."""
    return _llama3_1_8b(4_194_304, context_parallel_size=16, global_batch_size=2)


def demo_cpu() -> PretrainConfig:
    """The committed demo model from 512 to 4,096 tokens, on two CPU ranks.

    With YaRN's temperature: so small a model loses retrieval without it (docs/log.md).
    """
    return PretrainConfig(
        train_iters=150,
        global_batch_size=1,
        log_interval=10,
        precision="fp32",
        # 2,048 local tokens of 4,096 logits are small, and two cores slow.
        memory=MemoryConfig(recompute_granularity="none", loss_tile_size=0),
        rope=RopeConfig(
            rope_scaling="yarn",
            rope_scaling_factor=8.0,
            original_max_position_embeddings=512,
            ramp="dimensions",
            attention_factor="yarn",
        ),
        parallel=ParallelConfig(context_parallel_size=2),
        data=DataConfig(seq_length=4096),
        optimizer=OptimizerConfig(lr=3e-4, lr_warmup_iters=6, lr_decay_style="linear"),
    )


def llama3_1_8b_sft() -> SftConfig:
    """Instruction tuning of an extended Llama-3.1-8B: batch 128, lr 5e-6 (paper), one pass.

    The paper's examples are all under 8K tokens; epochs and packing it does not state. Here 128
    are rows of 8,192 tokens with as many conversations as fit; `prepare chat --packing none` makes
    it 128 conversations.
    """
    return SftConfig(
        global_batch_size=128,  # paper
        save_interval=50,
        precision="bf16",
        num_epochs=1.0,
        parallel=ParallelConfig(tensor_model_parallel_size=8, sequence_parallel=True),
        optimizer=OptimizerConfig(lr=5e-6, lr_warmup_iters=10),  # paper: 5e-6
    )


def demo_sft_cpu() -> SftConfig:
    """The demo's extended model on conversations, on two CPU ranks.

    At twice the rate it learns faster, and loses retrieval at 4,096 tokens (docs/log.md).
    """
    return SftConfig(
        train_iters=80,
        global_batch_size=1,
        log_interval=10,
        precision="fp32",
        memory=MemoryConfig(recompute_granularity="none", loss_tile_size=0),
        parallel=ParallelConfig(context_parallel_size=2, cp_assignment="balanced"),
        optimizer=OptimizerConfig(lr=1.2e-4, lr_warmup_iters=5, lr_decay_style="linear"),
    )


SFT_RECIPES: dict[str, Callable[[], SftConfig]] = {
    "llama3.1-8b-sft": llama3_1_8b_sft,
    "demo-sft-cpu": demo_sft_cpu,
}
"""Recipes by the name that ``ultralong sft`` takes."""

PRETRAIN_RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "llama3.1-8b-1m": llama3_1_8b_1m,
    "llama3.1-8b-2m": llama3_1_8b_2m,
    "llama3.1-8b-4m": llama3_1_8b_4m,
    "demo-cpu": demo_cpu,
}
"""Recipes by the name that ``ultralong pretrain`` takes."""

RECIPES: dict[str, Callable[[], PretrainConfig] | Callable[[], SftConfig]] = {
    **PRETRAIN_RECIPES,
    **SFT_RECIPES,
}
"""Recipes of both, as ``ultralong plan`` takes them."""

"""Published and ready-made runs: one function each, returning a frozen configuration.

What arXiv 2504.06214 states is marked "paper"; the rest is a documented default of this project.
"""

import functools
import math
from collections.abc import Callable

from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.plain_values import with_fields
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig, SftConfig

ITERATION_TOKENS = 8_388_608
"""Of an iteration at every length (paper: 2 rows of 4,194,304)."""
NUM_ITERATIONS = 150
"""Of a run, 1.26B tokens (paper)."""

FEWEST_ITERATIONS = 100
"""Of a run, where fewer rows than the paper's would make fewer: iterations get smaller first."""


def extend(seq_length: int, original: int) -> PretrainConfig:
    """The paper's recipe: YaRN from the context before any scaling to ``seq_length`` in one step.

    Args:
        seq_length: tokens of a row; 0: not known yet, and nothing that follows from it.
        original: context before any scaling; 0: the rotary embedding is kept.
    """
    return PretrainConfig(
        train_iters=NUM_ITERATIONS,
        global_batch_size=max(1, round(ITERATION_TOKENS / seq_length)) if seq_length else 1,
        save_interval=25,
        precision="bf16",
        # paper: YaRN over the raw base, alpha 1, beta 4; 128, 256, 512 over 8,192
        rope=_yarn(seq_length, original, ramp="rotations", attention_factor=1.0),
        data=DataConfig(seq_length=seq_length, document_mask="none"),  # paper: no document mask
        optimizer=OptimizerConfig(lr=3e-5, lr_warmup_iters=10),  # paper: 3e-5
    )


def small(seq_length: int, original: int) -> PretrainConfig:
    """The same for a model of millions of parameters, on a CPU.

    With YaRN's temperature and a higher rate: so small a model loses retrieval without the first,
    and learns little at the paper's rate (docs/log.md).
    """
    return PretrainConfig(
        train_iters=NUM_ITERATIONS,
        global_batch_size=1,
        save_interval=25,  # less than a second each
        log_interval=10,
        precision="fp32",
        # Local tokens of 4,096 logits are small, and two cores slow.
        memory=MemoryConfig(recompute_granularity="none", loss_tile_size=0),
        rope=_yarn(seq_length, original, ramp="dimensions", attention_factor="yarn"),
        parallel=ParallelConfig(),
        data=DataConfig(seq_length=seq_length),
        optimizer=OptimizerConfig(lr=3e-4, lr_warmup_iters=6, lr_decay_style="linear"),
    )


def batch_for(usual: int, num_rows: int) -> int:
    """Rows of an iteration: half of the usual ones, again and again, where rows are few."""
    while usual > 1 and num_rows // usual < FEWEST_ITERATIONS:
        usual //= 2
    return usual


def _yarn(seq_length: int, original: int, **others: object) -> RopeConfig:
    if not seq_length or not original:
        return RopeConfig()
    return RopeConfig("yarn", scaling_factor(seq_length, original), original, 4.0, 1.0, **others)  # type: ignore[arg-type]


def scaling_factor(seq_length: int, original: int) -> float:
    """``seq_length / original``, as the float whose product with ``original`` holds the row."""
    factor = max(1.0, seq_length / original)
    while math.floor(factor * original) < seq_length:
        factor = math.nextafter(factor, math.inf)
    return factor


def _llama3_1_8b(seq_length: int, context_parallel_size: int) -> PretrainConfig:
    """A layout of 256 H100 (paper); rows an iteration by length, so that all have its tokens."""
    return with_fields(
        extend(seq_length, original=8192),
        tensor_model_parallel_size=8,  # paper
        context_parallel_size=context_parallel_size,  # paper: 4 at 1M, 16 at 2M and 4M
        sequence_parallel=True,
    )


def llama3_1_8b_1m() -> PretrainConfig:
    """Llama-3.1-8B to 1,048,576 tokens: 8 rows an iteration keep the tokens of the 4M run."""
    return _llama3_1_8b(1_048_576, context_parallel_size=4)


def llama3_1_8b_2m() -> PretrainConfig:
    """Llama-3.1-8B to 2,097,152 tokens: 4 rows an iteration keep the tokens of the 4M run."""
    return _llama3_1_8b(2_097_152, context_parallel_size=16)


def llama3_1_8b_4m() -> PretrainConfig:
    """Llama-3.1-8B to 4,194,304 tokens: 150 iterations of 2 rows (paper), 1.26B tokens."""
    return _llama3_1_8b(4_194_304, context_parallel_size=16)


def demo_cpu() -> PretrainConfig:
    """The committed demo model from 512 to 4,096 tokens, on two CPU ranks."""
    return with_fields(small(4096, original=512), context_parallel_size=2)


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
        save_interval=25,
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
"""Recipes of one model and length, by the name that ``ultralong pretrain`` takes."""

EXTENSIONS: dict[str, Callable[[int, int], PretrainConfig]] = {"extend": extend, "small": small}
"""Recipes of any length, given the length of the rows and the context before any scaling."""

FOR_PRETRAIN: dict[str, Callable[[], PretrainConfig]] = {
    **{name: functools.partial(recipe, 0, 0) for name, recipe in EXTENSIONS.items()},
    **PRETRAIN_RECIPES,
}
"""All that ``ultralong pretrain`` takes; those of any length as they are before it is known."""

RECIPES: dict[str, Callable[[], PretrainConfig] | Callable[[], SftConfig]] = {
    **FOR_PRETRAIN,
    **SFT_RECIPES,
}
"""Recipes of both, as ``ultralong plan`` takes them."""

FOR_WHOM: dict[str, str] = {
    "extend": "any model to any length on GPUs: the paper's recipe, adapted to both",
    "small": "the same for a model of millions of parameters, on a CPU",
    "llama3.1-8b-1m": "Llama-3.1-8B to 1M tokens in the paper's layout, from 32 GPUs of 80 GB on",
    "llama3.1-8b-2m": "to 2M tokens, from 128 GPUs on",
    "llama3.1-8b-4m": "to 4M tokens, from 128 GPUs on",
    "demo-cpu": "the demo's model from 512 to 4,096 tokens, on two CPU ranks",
    "llama3.1-8b-sft": "the paper's recipe for an extended Llama-3.1-8B, on 8 GPUs or more; for "
    "other models with another --tensor-model-parallel-size",
    "demo-sft-cpu": "the demo's model, or another of millions of parameters, on two CPU ranks",
}
"""Whom each recipe is for, in the words of the help."""

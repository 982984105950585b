"""What `extend` and `small` work out from a checkpoint and its rows: factor, batch, schedule."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from megatron_ultralong.config.plain_values import with_fields
from megatron_ultralong.config.recipes import EXTENSIONS, FEWEST_ITERATIONS, batch_for
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.model import yarn
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError, counted


class Source(NamedTuple):
    """What a run starts from, as far as a name or a folder tells."""

    name: str
    model: ModelConfig
    scaling: yarn.RopeScaling


def derived(
    recipe: str,
    typed: PretrainConfig,
    fields: frozenset[str],
    num_ranks: int,
    source: Source,
) -> tuple[PretrainConfig, Callable[[PretrainConfig], str]]:
    """A recipe of any length for the rows and the checkpoint of a command line.

    ``typed`` has the flags of the command line, with nothing worked out; ``fields`` have one there.

    Returns:
        The configuration that the same flags change, and how what they made of it came about, in
        a line.

    Raises:
        InputError: the length is not known, or the data folder is none.
    """
    length, num_rows = _rows(typed)
    original, text = _original(source, typed, fields, length)
    config = EXTENSIONS[recipe](length, original)
    if typed.rope.rope_scaling in ("linear", "ntk", "none"):  # they do not look at YaRN's figures
        factor = 1.0 if typed.rope.rope_scaling == "none" else config.rope.rope_scaling_factor
        config = dataclasses.replace(config, rope=RopeConfig(rope_scaling_factor=factor))
    parallel = typed.parallel
    others = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    if "context_parallel_size" not in fields and num_ranks % others == 0:
        parallel = dataclasses.replace(parallel, context_parallel_size=num_ranks // others)
    unit = typed.micro_batch_size * max(1, num_ranks // parallel.model_parallel_size)
    usual = config.train_iters
    rows = int(typed.train_tokens // length) or num_rows or usual * config.global_batch_size
    batch = typed.global_batch_size
    if "global_batch_size" not in fields:
        batch = -(-batch_for(config.global_batch_size, rows) // unit) * unit
    iterations = typed.train_iters
    if "train_iters" not in fields:
        iterations = min(usual, rows // batch) if rows // batch >= FEWEST_ITERATIONS else usual
    config = with_fields(
        config,
        train_iters=iterations,
        train_tokens=typed.train_tokens,
        global_batch_size=batch,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.tensor_model_parallel_size > 1,
    ).with_budget(length)
    warm_up = config.optimizer.lr_warmup_iters
    warm_up = min(warm_up, warm_up * config.train_iters // usual)
    config = with_fields(config, lr_warmup_iters=warm_up)
    return config, lambda changed: f"{recipe}: {text}{_schedule(changed, num_rows)}"


def _rows(typed: PretrainConfig) -> tuple[int, int]:
    """Tokens of a row, and rows of the data folder; 0 where there is none."""
    length = typed.data.seq_length
    if not typed.data.data_path:
        if not length:
            raise InputError(
                "--seq-length is needed: the context to extend to, such as --seq-length 512K; or "
                "a --data-path, whose rows have it"
            )
        return length, 0
    from megatron_ultralong.data.rows.manifest import load_manifest

    manifest = load_manifest(Path(typed.data.data_path))
    train = manifest.splits.get("train")
    return length or manifest.seq_length, train.num_rows if train else 0


def _original(
    source: Source, typed: PretrainConfig, fields: frozenset[str], length: int
) -> tuple[int, str]:
    """The context that is scaled, 0 to keep the embedding, and how that was found."""
    scaling, positions = source.scaling, source.model.max_position_embeddings
    its = f"{source.name} is {yarn.describe(scaling, positions)}"
    if length <= positions and typed.rope.rope_scaling == "keep":
        return 0, f"{its}, enough for rows of {length:,}: its rotary embedding is kept; "
    original = yarn.raw_context(scaling, positions)
    if "original_max_position_embeddings" in fields:
        original = typed.rope.original_max_position_embeddings
    before = "" if scaling is None else " before that"
    text = f"{its}; rows of {length:,} are {length / original:.6g} x the {original:,}{before}; "
    return original, text


def _schedule(config: PretrainConfig, num_rows: int) -> str:
    rows, optimizer = config.train_iters * config.global_batch_size, config.optimizer
    passes = ""
    if num_rows:
        one = f"; --train-tokens {num_rows * config.data.seq_length} is one" * (rows > num_rows)
        passes = (
            f", {counted(f'{rows / num_rows:.3g}', 'pass')} over {counted(num_rows, 'row')}{one}"
        )
    return (
        f"{counted(config.train_iters, 'iteration')} of {counted(config.global_batch_size, 'row')} "
        f"({rows * config.data.seq_length:,} tokens{passes}), lr {optimizer.lr:g} "
        f"({optimizer.lr_decay_style}, warm-up {optimizer.lr_warmup_iters}), CP "
        f"{config.parallel.context_parallel_size}"
    )

"""Megatron-LM runs on real gloo ranks: its arguments, and what its loop finds."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.dropin.cpu import import_kernels_without_triton
from tools.dropin_flags import data, variants
from tools.dropin_flags.enumeration import OWN_SCRIPT, end_of_document
from tools.dropin_flags.runs import train


def needs_megatron_lm() -> None:
    """Leave a file of tests out where there is no ``megatron.training``.

    It is in the wheels from 0.17 on; with 0.16 a source tree goes first on ``PYTHONPATH``.
    """
    if importlib.util.find_spec("megatron.training") is None:
        pytest.skip("the wheel of Megatron-Core 0.16 has no Megatron-LM", allow_module_level=True)
    import_kernels_without_triton()


EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrain_gpt_ultralong.py"
_FLAGS = """
    --use-checkpoint-args --auto-detect-ckpt-format
    --tokenizer-type NullTokenizer --vocab-size 319
    --log-interval 1 --eval-iters 0 --eval-interval 1000
    --use-distributed-optimizer --ckpt-format torch_dist --norm-epsilon 1e-6
"""


LOCAL = "--spec megatron_ultralong.spec ring_local_spec"
# Its fusions as they are by default, except for the one that needs Apex.
TRANSFORMER_ENGINE = "--spec megatron_ultralong.spec ring_te_spec --no-gradient-accumulation-fusion"


def flags(config: PretrainConfig, layers: str = LOCAL) -> list[str]:
    """Megatron-LM's words for a run of this project, our rows and rotary embedding included.

    Args:
        config: our run.
        layers: words that choose them.
    """
    optimizer, parallel, rope = config.optimizer, config.parallel, config.rope
    values = {
        "load": config.load,
        "train-iters": config.train_iters,
        "micro-batch-size": config.micro_batch_size,
        "global-batch-size": config.global_batch_size,
        "seq-length": 128,
        "max-position-embeddings": 128,
        "seed": config.data.seed,
        "tensor-model-parallel-size": parallel.tensor_model_parallel_size,
        "context-parallel-size": parallel.context_parallel_size,
        "lr": optimizer.lr,
        "min-lr": optimizer.min_lr,
        "lr-decay-style": optimizer.lr_decay_style,
        "lr-warmup-iters": optimizer.lr_warmup_iters,
        "weight-decay": optimizer.weight_decay,
        "adam-beta1": optimizer.adam_beta1,
        "adam-beta2": optimizer.adam_beta2,
        "adam-eps": optimizer.adam_eps,
        "clip-grad": optimizer.clip_grad,
        "ultralong-rope-scaling": rope.rope_scaling,
        "ultralong-rope-scaling-factor": rope.rope_scaling_factor,
        "ultralong-original-max-position-embeddings": rope.original_max_position_embeddings,
    }
    if config.data.data_path:
        values["ultralong-data-path"] = config.data.data_path
        values["ultralong-document-mask"] = config.data.document_mask
        values["ultralong-cp-assignment"] = parallel.cp_assignment
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    saving = ["--save", config.save, "--save-interval", str(config.train_iters)]
    return [*_FLAGS.split(), *layers.split(), *words, *(saving if config.save else [])]


def run(script: Path, words: list[str], output: Path) -> list[float]:
    """Run a script on this rank, by our launcher; losses of its iterations, as its loop has them.

    What it prints goes to ``output``; there the loss of the second iteration is the mean of two.
    """
    from megatron.training import training

    from megatron_ultralong.dropin import __main__ as launcher

    found: list[float] = []
    train_step = training.train_step

    def noting(*args: Any, **keywords: Any) -> Any:
        result = train_step(*args, **keywords)
        found.append(float(result[0]["lm loss"]))
        return result

    training.train_step = noting
    sys.argv = ["dropin", str(script), *words]
    with output.open("w") as file, contextlib.redirect_stdout(file):
        try:
            launcher.main()
        except SystemExit as end:  # --exit-interval
            if end.code:
                raise
    return found


def message(script: Path, words: list[str], folder: Path) -> str:
    """Run on every rank: the message that a run ends with before it trains, and no trace."""
    errors = folder / f"errors-{dist.get_rank()}"
    with (
        errors.open("w") as file,
        contextlib.redirect_stderr(file),
        pytest.raises(SystemExit) as end,
    ):
        run(script, words, folder / f"said-{dist.get_rank()}")
    assert end.value.code == 2
    assert "Traceback" not in errors.read_text()
    return errors.read_text()


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A run of Megatron-LM's own script over its own kind of data set."""

    folder: Path
    """For the data set, and what the ranks print."""
    words: tuple[str, ...] = ()
    """Beside :data:`tools.dropin_flags.variants.BASE`."""
    plain: bool = False
    """Without the drop-in."""


def tiny_run(tiny: Tiny) -> list[float]:
    """Run on every rank: losses of the iterations."""
    _write_data(tiny.folder)
    sys.argv = [str(OWN_SCRIPT), *tiny_words(tiny.folder), *tiny.words]
    losses: list[float] = []
    output = tiny.folder / f"said-{dist.get_rank()}"
    with output.open("w") as file, contextlib.redirect_stdout(file):
        try:
            train("plain" if tiny.plain else "drop-in", OWN_SCRIPT, losses)
        except SystemExit as end:  # --exit-interval
            if end.code:
                raise
    return losses


def tiny_words(folder: Path) -> list[str]:
    """The common part of the command line."""
    return variants.base("", str(folder / "documents"))


def _write_data(folder: Path) -> None:
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        data.write(folder, end_of_document())
    dist.barrier()


def tiny_message(tiny: Tiny) -> str:
    """Run on every rank: the message that the drop-in ends with, by its launcher, and no trace."""
    from megatron_ultralong.dropin import __main__ as launcher

    _write_data(tiny.folder)
    sys.argv = ["dropin", str(OWN_SCRIPT), *tiny_words(tiny.folder), *tiny.words]
    output, errors = (tiny.folder / f"{name}-{dist.get_rank()}" for name in ("said", "errors"))
    with (
        output.open("w") as file,
        contextlib.redirect_stdout(file),
        errors.open("w") as error_file,
        contextlib.redirect_stderr(error_file),
        pytest.raises(SystemExit) as end,
    ):
        launcher.main()
    assert end.value.code == 2
    assert "iteration        1/" not in output.read_text()
    return errors.read_text()

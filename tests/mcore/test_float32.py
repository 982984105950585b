"""No product of float32 is made of TF32, whatever the environment or a program asks torch for."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.modules import module

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel
from megatron_ultralong.mcore.float32 import whole_products
from tests.command_line import pretrain_words, write_inputs
from tests.models import write_llama


@pytest.fixture
def precisions() -> Iterator[set[str]]:
    """What the modules that are called would let products be made of; torch lets them be TF32."""
    found: set[str] = set()
    hook = module.register_module_forward_pre_hook(
        lambda *_: found.add(torch.get_float32_matmul_precision())
    )
    torch.set_float32_matmul_precision("high")
    yield found
    assert torch.get_float32_matmul_precision() == "high", "it is not set back"
    torch.set_float32_matmul_precision("highest")
    hook.remove()


def test_the_variable_of_nvidias_images_lets_torch_take_tf32() -> None:
    """If this fails, torch does not read it any more, and the tests below set what nobody sets."""
    program = "import torch; print(torch.get_float32_matmul_precision())"
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    words = [sys.executable, "-c", program]
    assert subprocess.check_output(words, env=environment, text=True).strip() == "high"


def test_it_is_set_back_after_an_error(precisions: set[str]) -> None:
    @whole_products()
    def failing() -> None:
        assert torch.get_float32_matmul_precision() == "highest"
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        failing()
    assert not precisions


def test_models_in_transformers(precisions: set[str], tmp_path: Path) -> None:
    write_llama(tmp_path / "hf", num_hidden_layers=1)
    model = HuggingFaceModel(tmp_path / "hf")
    precisions.clear()
    model.score(np.arange(8)[None])
    assert precisions == {"highest"}
    precisions.clear()
    model.generate([[1, 2, 3]], max_new_tokens=2)
    assert precisions == {"highest"}


@pytest.mark.parametrize("method", ["whole", "layers"])
def test_logits_that_are_compared(precisions: set[str], tmp_path: Path, method: str) -> None:
    write_llama(tmp_path / "hf", num_hidden_layers=1)
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "megatron"))
    words = ("convert", "verify", str(tmp_path / "hf"), str(tmp_path / "megatron"), "--logits")
    precisions.clear()
    cli.main([*words, "--logits-method", method])
    assert precisions == {"highest"}


def test_ranks(precisions: set[str], tmp_path: Path) -> None:
    write_inputs(tmp_path)
    cli.main([*pretrain_words(tmp_path, "--context-parallel-size", "1", "--train-iters", "1")])
    assert precisions == {"highest"}
    precisions.clear()
    load = ("--load", str(tmp_path / "saved"))
    rows = ("--data-path", str(tmp_path / "rows"), "--split", "train", "--num-samples", "1")
    cli.main(["evaluate", "loss", *load, *rows, "--output", str(tmp_path / "loss")])
    cli.main(["generate", *load, "--prompt", "def f", "--max-new-tokens", "2"])
    assert precisions == {"highest"}


def test_torchs_newer_setting_is_kept_too(tmp_path: Path) -> None:
    """A process of its own: the two kinds of settings do not mix in one."""
    program = (
        "import torch; from megatron_ultralong.mcore.float32 import whole_products as whole;"
        "matmul = torch.backends.cuda.matmul; matmul.fp32_precision = 'tf32';\n"
        "with whole(): print(matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)\n"
        "print(matmul.fp32_precision)"
    )
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch has the one setting")
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["ieee", "ieee", "tf32"]

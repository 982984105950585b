"""What passes for rounding: amplified in a deep model it does, one permuted head does not."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.logits import check
from megatron_ultralong.checkpoint.logits.comparison import compare_logits, rounding_bound
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import save_llama

DEEP = {
    "num_hidden_layers": 30,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.1,
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deep, narrow model whose attention is so sharp that it amplifies float32 rounding."""
    folder = tmp_path_factory.mktemp("deep")
    rope = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256}
    block = {**rope, "rope_theta": 100000.0}
    save_llama(folder / "hf", rope_parameters=block, tied=True, tokenizer=False, **DEEP)
    change(folder / "hf", lambda name, weight: weight * 8 if "q_proj" in name else weight)
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron", tokenizer=False))
    return folder


def change(folder: Path, new: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: new(name, weight) for name, weight in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def test_amplified_rounding_is_judged_in_float64(deep: Path) -> None:
    models = HuggingFaceFolder(deep / "hf"), MegatronCheckpoint(deep / "megatron")
    found = check.check_logits(models, 256)
    # 1.5e-3 in float32, 56 times its bound; 7e-12 in float64, for logits up to 2.6
    assert found.float32_difference is not None
    assert found.float32_difference > 1e-4
    assert (found.dtype, found.max_difference < 1e-10) == ("fp64", True)
    assert found.max_difference < found.bound


@pytest.mark.parametrize(
    ("layer", "head", "kind"),
    [
        (0, 2, "rows of a head"),
        (14, 0, "two heads"),
        (29, 1, "rows of a head"),
        pytest.param(0, 2, "two heads", marks=pytest.mark.slow),
        pytest.param(14, 0, "rows of a head", marks=pytest.mark.slow),
        pytest.param(29, 1, "two heads", marks=pytest.mark.slow),
    ],
)
def test_a_permuted_head_of_one_layer_is_seen(
    deep: Path, tmp_path: Path, layer: int, head: int, kind: str
) -> None:
    shutil.copytree(deep / "hf", tmp_path / "hf")

    def permuted(name: str, weight: torch.Tensor) -> torch.Tensor:
        if name != f"model.layers.{layer}.self_attn.q_proj.weight":
            return weight
        heads = weight.unflatten(0, (3, 16)).clone()
        if kind == "two heads":
            other = (head + 1) % 3
            heads[[head, other]] = heads[[other, head]]
        else:
            heads[head] = heads[head].roll(1, 0)
        return heads.flatten(0, 1)

    change(tmp_path / "hf", permuted)
    models = HuggingFaceFolder(tmp_path / "hf"), MegatronCheckpoint(deep / "megatron")
    with pytest.raises(InputError, match="in fp64 the largest difference is") as refused:
        check.check_logits(models, 64, method="layers")
    assert f"the hidden states part in layer {layer}, by" in str(refused.value)


def test_bounds_grow_with_logits_and_depth() -> None:
    bound = rounding_bound("fp32", 4, 2.0)
    assert rounding_bound("fp32", 4, 20.0) == pytest.approx(10 * bound)
    assert rounding_bound("fp32", 16, 2.0) == pytest.approx(2 * bound)
    # float64 rounds 2^29 times more finely, and may be amplified 2^16 times more
    assert rounding_bound("fp64", 4, 2.0) == pytest.approx(bound / 2**13)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tile", [0, 1])
def test_logits_that_are_no_numbers_are_never_equal(value: float, tile: int) -> None:
    a_SV = torch.zeros(300, 4)
    a_SV[299 * tile, 2] = value
    found = compare_logits(a_SV, a_SV.clone())
    assert not dataclasses.replace(found, bound=1e9).equal


def test_a_model_of_infinite_weights_is_refused(deep: Path, tmp_path: Path) -> None:
    shutil.copytree(deep / "hf", tmp_path / "hf")
    change(tmp_path / "hf", lambda name, w: w / 0 if "layers.3.mlp.down" in name else w)
    models = HuggingFaceFolder(tmp_path / "hf"), HuggingFaceFolder(tmp_path / "hf")
    with pytest.raises(InputError, match=r"logits that are no finite numbers; .* in layer 3, by"):
        check.check_logits(models, 32, method="layers")

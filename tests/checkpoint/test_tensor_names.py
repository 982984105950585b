"""Which tensor of a Llama a stored one is: tied weights, wrappers, prefixes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.models import open_model
from megatron_ultralong.checkpoint.logits.transformers_model import transformers_model
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import save_llama

SINGLE, NORM = "model.safetensors", "model.norm.weight"
TOKENS = torch.arange(40)[None] * 7 % 130


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    save_llama(folder / "new", num_hidden_layers=1, tokenizer=False)
    save_llama(folder / "tied", num_hidden_layers=1, tokenizer=False, tied=True)
    return folder


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors: tensors.update({OUTPUT: tensors.pop(EMBEDDING)}),
        lambda tensors: tensors.update({OUTPUT: tensors[EMBEDDING].clone()}),
        lambda tensors: tensors.update({OUTPUT: tensors[EMBEDDING].double()}),
        lambda tensors: None,
    ],
    ids=["output alone", "both", "both, in two dtypes", "embedding alone"],
)
def test_tied_weights_are_read_as_transformers_reads_them(
    originals: Path, tmp_path: Path, edit: Callable[..., object]
) -> None:
    shutil.copytree(originals / "tied", tmp_path / "hf")
    change(tmp_path / "hf", edit)
    with torch.no_grad():
        actual = transformers_model(HuggingFaceFolder(tmp_path / "hf"))(TOKENS).logits
        judge = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
        assert torch.equal(actual, judge(TOKENS).logits)


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda t: t.update({OUTPUT: t[EMBEDDING] + 1}), r"float32 \[130, 72\] and float32"),
        (lambda t: t.update({OUTPUT: t[EMBEDDING][:-2].clone()}), r"\[128, 72\] and .*\[130, 72\]"),
        (lambda t: t.update({OUTPUT: t[EMBEDDING].bfloat16()}), "bfloat16 .* and float32"),
    ],
)
def test_tied_weights_that_differ_are_refused(
    originals: Path, tmp_path: Path, edit: Callable[..., object], fact: str
) -> None:
    shutil.copytree(originals / "tied", tmp_path / "hf")
    change(tmp_path / "hf", edit)
    with pytest.raises(
        InputError, match=rf"{OUTPUT} differs from {EMBEDDING} .*{fact}.*tie_word_embeddings false"
    ):
        open_model(tmp_path / "hf")


def rename(folder: Path, to: Callable[[str], str]) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        renamed = {to(name): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    change(folder, edit)


LAYER = "model.layers.0."
PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "language_model.", "a.b.c.")
READ: dict[str, tuple[Callable[[str], str], str]] = {
    **{
        prefix: (lambda name, prefix=prefix: prefix + name, f"all 12 names begin with '{prefix}'")  # type: ignore[misc]
        for prefix in PREFIXES
    },
    "base model": (lambda name: name.removeprefix("model."), r"11 of 12 names are changed"),
    "model.model.": (lambda name: "model." + name, r"12 of 12 names are changed"),
    "base_model.model.": (lambda name: "base_model.model." + name, "begin with 'base_model.'"),
    "inside": (
        lambda name: name.replace(LAYER, LAYER + "_checkpoint_wrapped_module."),
        f"{LAYER}_checkpoint_wrapped_module.input_layernorm.weight is read as {LAYER}input_layer",
    ),
    "both": (
        lambda name: "module." + name.replace(LAYER, LAYER + "_orig_mod."),
        r"begin with 'module\.' \(of DataParallel or DeepSpeed\): read without it",
    ),
}


@pytest.mark.parametrize(("to", "said"), READ.values(), ids=READ)
def test_names_under_wrappers_are_read_and_that_is_said(
    originals: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    to: Callable[[str], str],
    said: str,
) -> None:
    shutil.copytree(originals / "new", tmp_path / "hf")
    rename(tmp_path / "hf", to)
    found, wanted = (
        HuggingFaceFolder(path).tensors for path in (tmp_path / "hf", originals / "new")
    )
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].read(), wanted[name].read()) for name in wanted)
    assert re.search(said, capsys.readouterr().err)


REFUSED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "half": (
        lambda t: t.update({f"module.{n}": t.pop(n) for n in list(t) if "layers" in n}),
        r"3 of the model's 12 tensors are there; 9 of 12 tensors have the prefix 'module\.'",
    ),
    "two models": (
        lambda t: t.update({f"ema.{n}": t[n] + 1 for n in list(t)}),
        r"12 tensors that .* no place for.*12 of 24 tensors have the prefix 'ema\.'",
    ),
    "two prefixes": (
        lambda t: t.update({("a." if "layers" in n else "b.") + n: t.pop(n) for n in list(t)}),
        r"0 of the model's 12 tensors are there; 9 of 12 tensors have the prefix 'a\.'",
    ),
    "two names": (
        lambda t: t.update({"norm.weight": t[NORM] + 1}),
        r"model\.norm\.weight and norm\.weight, and both are model\.norm\.weight: remove one",
    ),
    "adapter": (
        lambda t: t.update({LAYER + "self_attn.q_proj.lora_A.weight": torch.ones(2, 72)}),
        r"1 of 13 tensors are an adapter's .*merge it into its model first",
    ),
    "quantised": (
        lambda t: t.update({LAYER + "mlp.up_proj.qweight": t.pop(LAYER + "mlp.up_proj.weight")}),
        r"1 of 12 tensors are a quantized model's .*dequantize it first",
    ),
    "flat": (
        lambda t: t.update({"_fsdp_wrapped_module._flat_param": t.pop(NORM)}),
        r"_flat_param is what FSDP keeps many tensors in: save the model's full state dict",
    ),
    "prefix, and one is missing": (
        lambda t: (t.pop(NORM), t.update({f"module.{n}": t.pop(n) for n in list(t)})),
        r"holds no tensor model\.norm\.weight .*; 11 of the model's 12 tensors are there",
    ),
}


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED)
def test_names_that_are_not_clear_are_refused_with_the_reason(
    originals: Path, tmp_path: Path, edit: Callable[..., object], message: str
) -> None:
    shutil.copytree(originals / "new", tmp_path / "hf")
    change(tmp_path / "hf", edit)
    with pytest.raises(InputError, match=message) as refused:
        open_model(tmp_path / "hf")
    assert "download" not in str(refused.value)

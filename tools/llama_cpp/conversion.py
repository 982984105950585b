"""One Hugging Face folder, converted by llama.cpp and by this project, and compared."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gguf import GGUFReader

CONVERT = """
import runpy, sys
folder, name = sys.argv.pop(1), sys.argv.pop(1)
sys.path[:0] = [folder, folder + "/gguf-py"]
import conversion.base as base
of_llama_cpp = base.TextModel.get_vocab_base_pre
def get_vocab_base_pre(self, tokenizer):
    try:
        return of_llama_cpp(self, tokenizer)
    except NotImplementedError:
        print("UNKNOWN VOCABULARY")
        return name
base.TextModel.get_vocab_base_pre = get_vocab_base_pre
runpy.run_path(folder + "/convert_hf_to_gguf.py", run_name="__main__")
"""
"""The converter, told the name of the pre-tokenizer where its list has no such vocabulary."""

OWN = {
    "rope.scaling.attn_factor": "the temperature that llama.cpp honours",
    "tokenizer.ggml.add_bos_token": "the converter leaves it to defaults by pre-tokenizer",
    "tokenizer.ggml.add_eos_token": "the same",
}
"""Keys that may be in our file alone, and why."""
AS_DIVISORS = "llama.rope.scaling."
"""Keys that the converter writes and llama.cpp does not honour, where ours has divisors."""
DIVISORS = "rope_freqs.weight"
LABELS = ("general.name", "general.basename", "general.finetune", "general.version")
"""What the converter guesses from the name of the folder."""


@dataclasses.dataclass
class Compared:
    """Two GGUF files."""

    num_tensors: int
    """Of the converter's file."""
    num_keys: int
    ours_alone: list[str]
    theirs_alone: list[str]
    different: list[str]
    """Tensors and keys in both files that are not equal."""
    unexpected: list[str]
    """Of all these, what has no reason."""
    is_known: bool
    """Whether the converter's list has the vocabulary."""


def convert(llama_cpp: Path, folder: Path, output: Path, dtype: str, pre: str) -> bool:
    """Run llama.cpp's converter; whether it knew the vocabulary."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", CONVERT, str(llama_cpp), pre, str(folder)),
            *("--outfile", str(output), "--outtype", dtype),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_LOCAL_GGUF": "1", "PYTHONPATH": ""},
    )
    if done.returncode:
        raise RuntimeError(f"{done.stdout}\n{done.stderr}")
    return "UNKNOWN VOCABULARY" not in done.stdout


def compare(actual: Path, expected: Path, *, is_known: bool) -> Compared:
    """Compare all tensors bit by bit, and all keys but labels."""
    ours_file, theirs_file = GGUFReader(actual), GGUFReader(expected)
    tensors = [{one.name: one for one in file.tensors} for file in (ours_file, theirs_file)]
    keys = [_values(file) for file in (ours_file, theirs_file)]
    different = [
        name
        for name in tensors[0].keys() & tensors[1].keys()
        if not _same(tensors[0][name], tensors[1][name])
    ]
    different += [key for key in keys[0].keys() & keys[1].keys() if keys[0][key] != keys[1][key]]
    alone = [
        sorted(
            (tensors[one].keys() - tensors[other].keys()) | (keys[one].keys() - keys[other].keys())
        )
        for one, other in ((0, 1), (1, 0))
    ]
    has_divisors = DIVISORS in alone[0]
    plain = {name: name.partition(".")[2] for name in alone[0]}  # without the architecture
    known = {*OWN, DIVISORS}
    unexpected = [name for name in alone[0] if not known & {name, plain[name]}]
    unexpected += [n for n in alone[1] if not (has_divisors and n.startswith(AS_DIVISORS))]
    return Compared(
        len(tensors[1]), len(keys[1]), *alone, different, [*unexpected, *different], is_known
    )


def _values(file: GGUFReader) -> dict[str, Any]:
    return {
        key: (field.types, field.contents())
        for key, field in file.fields.items()
        if not key.startswith("GGUF.") and key not in LABELS
    }


def _same(a: Any, b: Any) -> bool:
    return bool(
        a.tensor_type == b.tensor_type
        and a.shape.tolist() == b.shape.tolist()
        and a.data.tobytes() == b.data.tobytes()
    )

"""Whether two Hugging Face folders are one model: bit-equal weights, the same greedy text.

::

    python same_model.py BEFORE AFTER --max-new-tokens 64
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that reverses a list.",
    "Explain why the sky is blue.",
)


def main() -> None:
    """Compare; exit status 1 where they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    folders = arguments.before, arguments.after
    before, after = map(tensors, folders)
    if before.keys() != after.keys():
        sys.exit(f"other tensors: {sorted(before.keys() ^ after.keys())}")
    differing = [name for name in before if not torch.equal(before[name], after[name])]
    if differing:
        sys.exit(f"{len(differing)} tensors differ, the first {differing[0]}")
    texts = [greedy_texts(folder, arguments.max_new_tokens) for folder in folders]
    if texts[0] != texts[1]:
        sys.exit(f"other texts:\n{texts[0]}\n{texts[1]}")
    print(f"{len(before)} tensors, {len(PROMPTS)} prompts: the same weights, the same text")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder by name, as bits."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                found[name] = tensor.view(getattr(torch, f"int{8 * tensor.element_size()}"))
    if not found:
        sys.exit(f"{folder} has no .safetensors")
    return found


def greedy_texts(folder: Path, max_new_tokens: int) -> list[str]:
    """What the model answers, in its chat template, the likeliest token each time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True, return_tensors="pt", return_dict=True,
        )["input_ids"]  # fmt: skip
        written = model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)
        texts.append(tokenizer.decode(written[0, ids.shape[1] :]))
    return texts


if __name__ == "__main__":
    main()

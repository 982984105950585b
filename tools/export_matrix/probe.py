"""Runs in the environment of one release: what it reads in exports, as JSON.

::

    python probe.py OUTPUT EXPORT...

Writes ``OUTPUT/found.json``: for each export ids, decoded text, special tokens, rendered chat
templates and the generation config, and in ``OUTPUT/NAME.npy`` its logits; or the error instead.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

TEXTS = (
    "def attention(query, key):\n    return query @ key.T  # 1,048,576 tokens\n",
    "  two spaces, a tab\t, <|eot|>naïve café — 数万 tokens 🙂🙃\r\n\n\nend <|tool|> ",
    "<|begin|>user<|eot|> don't won't I'M 12345678 ﬁ \u0301 \u00a0 \u200b",
    "",
)
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2? <b>\"'&"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Ünïcode 数?"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
LENGTH = 96


def main() -> None:
    """Probe every export; an error in one part does not keep the others from being tried."""
    output = Path(sys.argv[1])
    found = {}
    for export in map(Path, sys.argv[2:]):
        found[export.name] = {
            "model": attempt(model, export, output),
            "tokenizer": attempt(tokenizer, export),
            "template": attempt(template, export),
            "generation": attempt(generation, export),
        }
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    (output / "found.json").write_text(json.dumps({"versions": versions, "exports": found}))


def attempt(part, *arguments):
    """What ``part`` finds, or the error's text."""
    try:
        return part(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


@torch.no_grad()
def model(export, output):
    """Logits in float32 at positions far apart; what the configuration says of the model."""
    found = transformers.AutoModelForCausalLM.from_pretrained(export, torch_dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(min(found.config.vocab_size, 200), (1, LENGTH), generator=generator)
    logits = found.eval()(tokens).logits[0]
    np.save(output / f"{export.name}.npy", logits.numpy())
    return {
        "dtype": str(logits.dtype),
        "positions": found.config.max_position_embeddings,
        "tied": found.config.tie_word_embeddings,
        "parameters": sum(p.numel() for p in found.parameters()),
    }


def tokenizer(export):
    """Ids, with and without special tokens, the text back, and what is special."""
    found = transformers.AutoTokenizer.from_pretrained(export)
    plain = [found.encode(text, add_special_tokens=False) for text in TEXTS]
    specials = {}
    for name in ("bos", "eos", "pad", "unk"):
        specials[name] = [getattr(found, f"{name}_token"), getattr(found, f"{name}_token_id")]
    return {
        "plain": plain,
        "with_specials": [found.encode(text) for text in TEXTS],
        "decoded": [found.decode(ids, clean_up_tokenization_spaces=False) for ids in plain],
        "without_specials": [
            found.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids in plain
        ],
        "specials": specials,
        "length": len(found),
        "model_max_length": found.model_max_length,
        "vocabulary": sorted(found.get_vocab().items(), key=lambda item: (item[1], item[0])),
    }


def template(export):
    """The conversation as every template renders it; None without a template."""
    found = transformers.AutoTokenizer.from_pretrained(export)
    if not found.chat_template:
        return None
    names = list(found.chat_template) if isinstance(found.chat_template, dict) else [None]
    rendered = {}
    for name in sorted(names, key=str):
        rendered[str(name)] = found.apply_chat_template(
            MESSAGES, chat_template=name, tools=TOOLS, tokenize=False, add_generation_prompt=True
        )
    return rendered


def generation(export):
    """What stands in generation_config.json, as the release understands it."""
    if not (export / "generation_config.json").is_file():
        return None
    found = transformers.GenerationConfig.from_pretrained(export)
    asked = json.loads((export / "generation_config.json").read_text())
    return {key: getattr(found, key, None) for key in asked if key != "transformers_version"}


if __name__ == "__main__":
    main()

"""Runs in the environment of one release: frequencies and temperature of rope blocks.

::

    python rope_probe.py CONFIGS.json OUTPUT.json

For each configuration ``[inverse frequencies, temperature]``, or null where the release does not
run such a model.
"""

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    """Read all of them."""
    logging.disable(logging.CRITICAL)
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    configs, output = map(Path, sys.argv[1:])
    found = []
    for values in json.loads(configs.read_text()):
        try:
            rotary = LlamaRotaryEmbedding(config=LlamaConfig.from_dict(values))
            found.append([rotary.inv_freq.double().tolist(), float(rotary.attention_scaling)])
        except Exception:  # of any kind
            found.append(None)
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

"""Bytes of the keys and values of one row, on each of the GPUs that share the heads.

::

    python3 cache_bytes.py EXPORT TOKENS NUM_GPUS bfloat16

On standard output what to give vLLM: the row and a block that it keeps for itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NUM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
BLOCK = 256
"""Tokens; vLLM's blocks have 16 on a GPU, 128 on a CPU."""
GIB = 2**30


def cache_bytes(config: dict[str, int], num_tokens: int, num_gpus: int, dtype: str) -> int:
    """Of a ``config.json``: a key and a value in every layer; a GPU has a head at least."""
    heads = max(1, config["num_key_value_heads"] // num_gpus)
    numbers = 2 * config["num_hidden_layers"] * heads * config["head_dim"]
    return numbers * NUM_BYTES[dtype] * num_tokens


def main() -> None:
    """Print them, and in words on standard error."""
    folder, num_tokens, num_gpus, dtype = sys.argv[1:]
    config = json.loads(Path(folder, "config.json").read_text())
    tokens, gpus = int(num_tokens), int(num_gpus)
    whole, each = (cache_bytes(config, tokens, count, dtype) for count in (1, gpus))
    print(
        f"keys and values of {tokens:,} tokens in {dtype}: {whole:,} bytes ({whole / GIB:.4g} "
        f"GiB), on each of {gpus} GPUs {each:,} ({each / GIB:.4g} GiB)",
        file=sys.stderr,
    )
    print(cache_bytes(config, tokens + BLOCK, gpus, dtype))


if __name__ == "__main__":
    main()

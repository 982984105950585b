"""Bytes of the keys and values of one row, on each of the GPUs that share the heads.

::

    python3 cache_bytes.py EXPORT TOKENS NUM_GPUS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BYTES = 2
"""Of a number: engines keep them in bfloat16 or float16 unless told otherwise."""
GIB = 2**30


def cache_bytes(config: dict[str, int], num_tokens: int, num_gpus: int) -> int:
    """Of a ``config.json``: a key and a value in every layer; a GPU has a head at least."""
    heads = max(1, config["num_key_value_heads"] // num_gpus)
    return 2 * config["num_hidden_layers"] * heads * config["head_dim"] * BYTES * num_tokens


def main() -> None:
    """Print them, and in words on standard error."""
    folder, num_tokens, num_gpus = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    config = json.loads((folder / "config.json").read_text())
    whole, each = (cache_bytes(config, num_tokens, count) for count in (1, num_gpus))
    print(
        f"keys and values of {num_tokens:,} tokens: {whole:,} bytes ({whole / GIB:.4g} GiB), on "
        f"each of {num_gpus} GPUs {each:,} ({each / GIB:.4g} GiB)",
        file=sys.stderr,
    )
    print(each)


if __name__ == "__main__":
    main()

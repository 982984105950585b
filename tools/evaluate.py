"""`python tools/evaluate.py loss|passkey ...` is `ultralong evaluate loss|passkey ...`."""

from __future__ import annotations

import sys

from megatron_ultralong.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])

"""`ultralong prepare` under the name that Megatron users look for; `--help` lists the options."""

from __future__ import annotations

import sys

from megatron_ultralong.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))

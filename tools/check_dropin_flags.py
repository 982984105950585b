"""Every argument of a Megatron-LM, with the drop-in and without: the same losses, or refused.

::

    python tools/check_dropin_flags.py --megatron-lm ~/Megatron-LM      # a checkout
    python tools/check_dropin_flags.py                                  # the wheel's, 0.17-0.19
    python tools/check_dropin_flags.py --only window_size,moe_          # names, or their beginnings
    python tools/check_dropin_flags.py --write table.json               # all that came out

Each argument of the parser of ``megatron.training`` trains a tiny model for three steps on one CPU
rank, by ``pretrain_gpt.py`` of the checkout, or by that of this project if there is only a wheel.
Exit status 1 if an argument does something else than without the drop-in and is not refused by its
name, or if it is new to ``megatron_ultralong/dropin/known_arguments.py``.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Try the arguments; print a line for each and the counts."""
    words = argparse.ArgumentParser(description="Arguments of Megatron-LM through the drop-in.")
    words.add_argument("--megatron-lm", type=Path, help="checkout; else the installed wheel's")
    words.add_argument("--only", default="", help="names or their beginnings, with commas between")
    words.add_argument("--write", type=Path, help="JSON file for the table")
    words.add_argument("--quiet", action="store_true", help="print no line for what is the same")
    asked = words.parse_args()
    if asked.megatron_lm:
        if not (asked.megatron_lm / "pretrain_gpt.py").is_file():
            words.error(f"--megatron-lm {asked.megatron_lm} is no checkout: no pretrain_gpt.py")
        sys.path.insert(0, str(asked.megatron_lm.resolve()))
    from megatron_ultralong.program.ending import ends_with_message
    from megatron_ultralong.program.optional import check_megatron_lm

    with ends_with_message():
        check_megatron_lm()
    from tools.dropin_flags import enumeration

    with tempfile.TemporaryDirectory() as folder:
        found = enumeration.Enumeration(asked.megatron_lm, Path(folder))
        only = tuple(name for name in asked.only.split(",") if name)
        table = []
        for comparison in found.compare_all(only):
            table.append(comparison)
            if not (asked.quiet and comparison.kind == "same"):
                print(enumeration.line(comparison), flush=True)
    if asked.write:
        asked.write.write_text(json.dumps([dataclasses.asdict(row) for row in table], indent=1))
    counts = collections.Counter(row.kind for row in table)
    print(", ".join(f"{kind} {counts[kind]}" for kind in ("same", "refused", "left", "other")))
    if found.new:
        print(f"new, and in no table: {', '.join(found.new)}")
    sys.exit(1 if counts["other"] or found.new else 0)


if __name__ == "__main__":
    main()

"""The commands of docs/your-own-model.md for a laptop, as they stand there, and their verdict.

::

    python tools/own_model.py --output own-model

Exit status 1 if the base finds a passkey beyond its context, if the extended model does not, or if
all of it took longer than the limit that is given.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.output import check_output

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "your-own-model.md"
AT_MOST_BEFORE = 10.0
"""Per cent of passkeys that the base may find beyond its context."""
AT_LEAST_AFTER = 80.0
"""Per cent that the extended model has to find at the greatest length, as the demo's."""
MINUTES = 10.0
"""That the commands may take on an idle laptop; ``--no-limit`` for a busy machine."""


def blocks() -> list[str]:
    """The commands of the page's first part: the inputs, then the six."""
    text = PAGE.read_text(encoding="utf-8").split("### Tune it")[0]
    return re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)


def main() -> None:
    """Run them in a new folder, and judge what they have written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("own-model"), help="new folder")
    parser.add_argument("--no-limit", action="store_true", help="the time is not judged")
    arguments = parser.parse_args()
    folder: Path = arguments.output
    try:
        check_output(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except (InputError, OSError) as error:
        parser.error(str(error))
    (folder / "examples").symlink_to(ROOT / "examples")
    inputs, commands = blocks()
    number = len(re.findall(r"^ultralong ", commands, flags=re.MULTILINE))
    begin = time.monotonic()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for text in (inputs, commands):
        command = ["bash", "-euo", "pipefail", "-c", text]
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PATH": path})
    minutes = (time.monotonic() - begin) / 60
    before, after = (read_result(folder / when / "passkey.json") for when in ("before", "after"))
    longest = after.lengths[-1]
    found_before, found_after = (each.retrieved([longest]) or 0.0 for each in (before, after))
    print(
        f"{number} commands, {minutes:.1f} minutes: passkey at {longest:,} tokens, beyond the "
        f"base's {before.max_positions:,}: {found_before:.0f} % before, {found_after:.0f} % after"
    )
    is_quick = arguments.no_limit or minutes <= MINUTES
    is_right = found_before <= AT_MOST_BEFORE and found_after >= AT_LEAST_AFTER
    sys.exit(0 if number == 6 and is_right and is_quick else 1)


if __name__ == "__main__":
    main()

"""``python -m tests.data.run_commands FOLDER``: command lines, one after the other in one process.

Those of ``FOLDER/commands.json``; what became of each goes to ``FOLDER/outcomes.json``: its exit
status, its messages, the most memory that was held and the processor time. Imports nothing that
the program does not import by itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path

from megatron_ultralong.cli import main as program


def peak() -> int:
    """The most bytes that this process has held since :func:`forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    folder = Path(sys.argv[1])
    outcomes = []
    for words in json.loads((folder / "commands.json").read_text()):
        forget_peak()
        start, said, status = time.process_time(), io.StringIO(), 0
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                program(words)
            except SystemExit as end:
                status = end.code
        seconds = time.process_time() - start
        outcomes.append([status, said.getvalue(), peak(), seconds])
        (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()

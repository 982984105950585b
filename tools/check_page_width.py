"""Look at pages in a real browser: whether they have to be moved sideways.

::

    mkdocs build && python tools/check_page_width.py build/site demo-output/report

Every `*.html` below the folders is opened by a headless Chromium (Debian's `chromium`) in a frame
of 1,280 and of 390 pixels; nothing is asked of another machine. Exit status 1 where a page is wider
than its screen, or where a table of a wide screen has to be scrolled.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from page_width.browser import BrowserError, measure
from page_width.verdict import PHONE, SCREEN, summary, wrong


def main() -> None:
    """Measure, say what is too wide, end with 1 where anything is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=300)
    arguments = parser.parse_args()
    folders = {f"{number}-{path.name}": path for number, path in enumerate(arguments.folders)}
    try:
        found = measure(folders, (SCREEN, PHONE), arguments.seconds)
    except BrowserError as error:
        sys.exit(f"not run: {error}")
    print("\n".join([*wrong(found), summary(found)]))
    sys.exit(bool(wrong(found)))


if __name__ == "__main__":
    main()

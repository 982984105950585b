"""Pictures: a name in them is text, and one that cannot be drawn ends nothing.

``tests/test_picture.py`` sees to it that no other module makes a figure of matplotlib's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron_ultralong.program.ending import PROGRAM, tell

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A figure of so many inches. matplotlib takes what stands between two ``$`` for mathematics;
    here it is what a user called a file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False
    return Figure(figsize=(width, height), layout="constrained", **options)


def legend_name(name: str) -> str:
    """``_base -> " _base"``: matplotlib leaves out of legends what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


@contextlib.contextmanager
def drawing(what: str) -> Iterator[None]:
    """Draw ``what`` inside the block; where that fails, say so and continue.

    A picture is made of what was measured and written: hours of it must not be lost for a font.
    """
    try:
        yield
    except Exception as error:  # whatever matplotlib raises
        reason = str(error).strip() or type(error).__name__
        tell(f"{PROGRAM}: warning: {what} was not drawn ({reason}); everything else is written")

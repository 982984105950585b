"""Pictures: a name in them is text, and one that cannot be drawn ends nothing.

``tests/test_picture.py`` sees to it that no other module makes a figure of matplotlib's own.
"""

from __future__ import annotations

import contextlib
import functools
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron_ultralong.program.ending import PROGRAM, tell
from megatron_ultralong.program.errors import escaped

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


def shown_name(name: str, width: int = 40, lines: int = 2) -> str:
    """A name as pictures show it: of a long one beginning and end, in a few lines of a width.

    Newlines, control characters and those that the font does not have are written out.
    """
    known = _characters()
    text = "".join(c if ord(c) in known else ascii(c)[1:-1] for c in escaped(name))
    if len(text) > width * lines:
        text = f"{text[: width * lines // 2 - 2]}...{text[1 - width * lines // 2 :]}"
    return "\n".join(textwrap.wrap(text, width)) or text


def legend_name(name: str, width: int = 40) -> str:
    """``_base -> " _base"``: matplotlib leaves out of legends what begins with an underscore."""
    text = shown_name(name, width)
    return f" {text}" if text.startswith("_") else text


@functools.cache
def _characters() -> frozenset[int]:
    """Those that matplotlib's font has."""
    from matplotlib import font_manager

    path = font_manager.findfont(font_manager.FontProperties())
    return frozenset(font_manager.get_font(path).get_charmap()) - {ord("\n"), ord("\t")}


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

"""The style of pictures: colours, axes, titles, legends."""

import contextlib
import contextvars
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.figure import Figure

from megatron_ultralong.evaluation.results.interval import Estimate
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.program.picture import legend_name, new_figure, shown_name

LINE_COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#0e7490", "#a16207")
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))
INK, FAINT, SHADE = "#1f2937", "#9ca3af", "#f3f4f6"
DPI = 160
BAND = 0.15
"""Opacity of the band of an interval."""


def line_style(number: int) -> tuple[str, Any]:
    """Colour and dashes of line ``number``; they repeat after eighteen."""
    turn, place = divmod(number, len(LINE_COLOURS))
    return LINE_COLOURS[place], _DASHES[turn % len(_DASHES)]


_WIDTH = contextvars.ContextVar("_WIDTH", default=8.0)


@contextlib.contextmanager
def narrow() -> Iterator[None]:
    """Pictures that are drawn in the block are as wide as a phone can show."""
    token = _WIDTH.set(4.4)
    try:
        yield
    finally:
        _WIDTH.reset(token)


def width() -> float:
    """Of pictures, in inches."""
    return _WIDTH.get()


def is_narrow() -> bool:
    """Whether they are for a phone."""
    return width() < 8


def short(name: str) -> str:
    """A name in lines that leave room for the rest of the picture."""
    return shown_name(name, int(5 * width()))


def label(name: str) -> str:
    """The same in a legend."""
    return legend_name(name, int(5 * width()))


def new_picture(height: float, *, grid: str = "y") -> tuple[Figure, Any]:
    """A figure of so many inches and its axes, with lines across ``grid``."""
    figure = new_figure(width(), height, dpi=DPI)
    axes = figure.subplots()
    finish_axes(axes, grid)
    return figure, axes


def finish_axes(axes: Any, grid: str = "y") -> None:
    """Faint axes, and lines across ``grid``."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=9, length=0, labelcolor=INK)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="#e5e7eb", linewidth=0.8)


def set_title(axes: Any, text: str, *, inches: float = 0.0, pad: int = 12) -> None:
    """A title at the left of a figure; of one of several axes that are ``inches`` wide, a smaller
    one ``pad`` points above.
    """
    figure, size = axes.figure, 11 if inches else 12
    points = 72 * (inches or figure.get_figwidth())
    text = textwrap.fill(text, width=int(points / (0.68 * size)))
    if inches:
        axes.set_title(text, fontsize=size, fontweight="bold", color=INK, loc="left", pad=pad)
    else:
        figure.suptitle(text, fontsize=size, fontweight="bold", color=INK, x=0.01, ha="left")


def add_legend(figure: Figure, axes: Any) -> None:
    """What lines, bars and bands are, below the axes."""
    labels = axes.get_legend_handles_labels()[1]
    figure.legend(
        loc="outside lower left",
        fontsize=9,
        frameon=False,
        labelcolor=INK,
        ncols=2 if max(map(len, labels)) < 52 and not is_narrow() else 1,
    )


def draw_line(
    axes: Any,
    result: Result,
    places: Sequence[float],
    found: Sequence[Estimate],
    colour: str,
    dashes: Any,
    **marks: Any,
) -> None:
    """A line of a checkpoint with the band of its intervals, at ``places`` of the axis."""
    low, high = ([getattr(one, end) for one in found] for end in ("low", "high"))
    axes.fill_between(places, low, high, color=colour, alpha=BAND, linewidth=0)
    name = f"{label(result.checkpoint)} (trained for {result.max_positions:,} positions)"
    line = {"color": colour, "linestyle": dashes, "linewidth": 2.0, "label": name}
    axes.plot(places, [one.value for one in found], **line, **marks)


def name_axes(axes: Any, x: str, y: str = "") -> None:
    """What stands along an axis, with its unit."""
    axes.set_xlabel(x, fontsize=10, color=INK)
    if y:
        axes.set_ylabel(y, fontsize=10, color=INK)


def finish(figure: Figure, axes: Any, title: str, path: Path | BinaryIO) -> None:
    """Title, legend, file."""
    set_title(axes, title)
    add_legend(figure, axes)
    save(figure, path)


def save(figure: Figure, path: Path | BinaryIO) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, format="png", facecolor="white")


def name_band(axes: Any, text: str) -> None:
    """Say in the legend what bands are."""
    axes.fill_between([], [], [], color=FAINT, alpha=0.4, linewidth=0, label=f"band: {text}")


def length_unit(columns: Sequence[str]) -> str:
    """The axis of columns that are lengths; those of LV-Eval, ``16k``, are of words."""
    return "length (words)" if any("k" in column for column in columns) else "length (tokens)"

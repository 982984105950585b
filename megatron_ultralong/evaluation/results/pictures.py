"""Results as pictures: loss by position, maps of scores in the field's colours."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from megatron_ultralong.evaluation.results import style
from megatron_ultralong.evaluation.results.interval import Estimate, cell_estimate
from megatron_ultralong.evaluation.results.result import LOWER_DIGITS, LOWER_IS_BETTER, Result
from megatron_ultralong.evaluation.results.tables import column_title, token_count
from megatron_ultralong.program.aside import whole
from megatron_ultralong.program.errors import counted
from megatron_ultralong.program.picture import drawing, new_figure, shown_name

NOT_MEASURED = "#d1d5db"
MOST_LABELLED_CELLS = 150
"""Maps with more cells than this carry no numbers in them."""
_MAPS_IN_A_ROW = 3


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw results of one benchmark beside their file, which is final; a warning if it fails."""
    with drawing(path.name), whole(path) as aside:
        rows = results[0].kind.rows
        if rows == "tasks":
            task_picture(results[0], aside)
        else:
            (loss_picture if rows == "positions" else retrieval_picture)(results, aside)


def loss_picture(results: Sequence[Result], path: Path | BinaryIO) -> None:
    """Loss by position as PNG: a line for every checkpoint, the first one being the base."""
    base = results[0]
    longest = max(results, key=lambda result: result.num_positions)
    seq_length = longest.num_positions
    figure, axes = style.new_picture(4.6)
    _position_axis(axes, sorted({0, *(stop for one in results for _, stop in one.bins)}))
    if base.max_positions < seq_length:
        axes.axvspan(base.max_positions, seq_length, color=style.SHADE, zorder=0)
        axes.axvline(base.max_positions, color=style.INK, linewidth=1.0, linestyle=(0, (4, 3)))
        name = shown_name(base.checkpoint, int(3.5 * style.width()), lines=1)
        text = f" trained context of {name}: {base.max_positions:,} "
        first, last = axes.get_xlim()
        side = "left" if base.max_positions**2 < first * last else "right"
        place = axes.get_xlim()[side == "right"] if style.is_narrow() else base.max_positions
        _text_above(axes, place, text, 4, fontsize=9, ha=side)
    reference = base.mean_loss(0, base.max_positions)
    if reference is not None:
        label = f"{style.label(base.checkpoint)}, mean inside its context: {reference:.3f}"
        axes.axhline(reference, color=style.FAINT, linewidth=1.0, label=label)
    for k, result in enumerate(results):
        colour, dashes = style.line_style(k)
        _loss_line(axes, result, colour, dashes)
        if base.max_positions < result.max_positions < seq_length:
            dotted = {"color": colour, "linewidth": 1.0, "linestyle": (0, (1, 2))}
            axes.axvline(result.max_positions, **dotted)
    style.name_band(axes, "95 % interval, 1.96 standard errors over rows")
    style.name_axes(axes, "position in the row (tokens of context)", "loss (nats per token)")
    title = f"Loss by position, {counted(longest.num_packed_rows, 'row')} of {seq_length:,} tokens"
    style.finish(figure, axes, title, path)


def _loss_line(axes: Any, result: Result, colour: str, dashes: Any) -> None:
    """Mean and its interval at the geometric centre of every bin."""
    known = [(place, cell) for place in result.bins if (cell := result.loss(place))]
    centres = [math.sqrt(max(start, stop / 2) * stop) for (start, stop), _ in known]
    found = [estimate for _, cell in known if (estimate := cell_estimate(cell))]
    found = [one if math.isfinite(one.low) else Estimate(*[one.value] * 3) for one in found]
    style.draw_line(axes, result, centres, found, colour, dashes, marker="o", markersize=5)


def _position_axis(axes: Any, edges: Sequence[int]) -> None:
    """A log-2 axis whose ticks are the doubling edges."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(edges[1] / 2, edges[-1])
    shown = edges[1:]
    step = -(-len(shown) // int(1.5 * style.width()))  # 128 to 4M has sixteen
    shown = shown[::-1][::step]
    axes.xaxis.set_major_locator(FixedLocator(list(shown)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(shown), [token_count(edge) for edge in shown])


def retrieval_picture(results: Sequence[Result], path: Path | BinaryIO) -> None:
    """Maps of retrieval side by side as PNG: x context length, y depth, red 0 % to green 100 %.

    All maps have the lengths of all, so that columns stand alike; grey is where nothing was asked.
    A thick line stands at the length that a map's checkpoint was trained for, a dashed one at the
    shortest of all, the original context.
    """
    lengths = sorted({length for result in results for length in result.lengths})
    shortest = min(results, key=lambda result: result.max_positions)
    num_columns = min(len(results), 1 if style.is_narrow() else _MAPS_IN_A_ROW)
    num_rows = -(-len(results) // num_columns)
    deepest = max(len(result.depths) for result in results)
    width = min(max((0.62 if num_columns == 1 else 0.5) * len(lengths) + 0.9, 4.2), 12.0)
    width = min(width, style.width() - 0.8) if style.is_narrow() else width
    height = min(max(0.36 * deepest + 1.4, 3.2), 8.0)
    size = (width * num_columns + 0.8, height * num_rows)
    figure = new_figure(*size, dpi=style.DPI)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    images = [
        _retrieval_map(axes, result, lengths, shortest, width)
        for axes, result in zip(grid.flat, results, strict=False)
    ]
    for axes in grid.flat[len(results) :]:
        axes.set_visible(False)
    for k, axes in enumerate(grid.flat):
        first_of_row = k % num_columns == 0
        style.name_axes(axes, "context length (tokens)", "depth of the key (%)" * first_of_row)
    _colour_bar(figure, images[0], list(grid.flat), "prompts retrieved (%)")
    style.save(figure, path)


def _retrieval_map(
    axes: Any, result: Result, lengths: Sequence[int], shortest: Result, width: float
) -> Any:
    """One map, ``width`` inches wide."""
    depths = result.depths
    shares = [[result.score(depth, str(length)) for length in lengths] for depth in depths]
    is_labelled = len(lengths) * len(depths) <= MOST_LABELLED_CELLS and width > 0.35 * len(lengths)
    image = _score_map(axes, shares, NOT_MEASURED, digits=0 if is_labelled else None)
    style.finish_axes(axes)
    axes.spines[:].set_visible(False)
    step = -(-len(lengths) // 16)
    shown = range(0, len(lengths), step)
    names = [token_count(lengths[k]) for k in shown]
    axes.set_xticks([k + 0.5 for k in shown], names, rotation=45 if len(shown) > 8 else 0)
    names = [f"{float(depth):g}" for depth in depths]
    axes.set_yticks([k + 0.5 for k in range(len(depths))], names)
    style.set_title(
        axes,
        f"{shown_name(result.checkpoint, lines=1)}: trained for {result.max_positions:,} positions",
        inches=width,
        pad=32 if shortest.max_positions < result.max_positions < lengths[-1] else 20,
    )
    height = 4
    if shortest.max_positions < result.max_positions:
        text = f"original context: {shortest.max_positions:,}"
        thin = {"linewidth": 1.5, "linestyle": (0, (4, 2))}
        _context_line(axes, lengths, shortest.max_positions, text, height, **thin)
        height = 16
    text = f"trained for {result.max_positions:,}"
    _context_line(axes, lengths, result.max_positions, text, height, linewidth=2.5)
    return image


def task_picture(result: Result, path: Path | BinaryIO) -> None:
    """Scores as a map, PNG: x length, y task and the mean below, red 0 to green 100.

    What is not of 100, and better when lower, has no colour.
    """
    columns, tasks = result.columns, result.rows
    lower = {x for x, column in enumerate(columns) if column in LOWER_IS_BETTER}
    scores = [[result.score(task, column) for column in columns] for task in tasks]
    scores.append([result.mean(column) for column in columns])
    size = (min(max(0.75 * len(columns) + 2.6, 5.0), 14.0), 0.36 * len(scores) + 1.3)
    figure = new_figure(*size, dpi=style.DPI)
    axes: Any = figure.subplots()
    image = _score_map(axes, scores, "#e5e7eb", digits=1, uncoloured=lower)
    axes.spines[:].set_visible(False)
    axes.tick_params(labelsize=9, length=0, labelcolor=style.INK)
    axes.set_xticks(
        [k + 0.5 for k in range(len(columns))], [shown_name(column_title(c), 20) for c in columns]
    )
    axes.set_yticks([k + 0.5 for k in range(len(scores))], [*map(style.short, tasks), "mean"])
    axes.axhline(len(tasks), color=style.INK, linewidth=1.5)
    if result.kind.columns != "scores":
        style.name_axes(axes, style.length_unit(columns))
    title = f"{shown_name(result.kind.title)} of {shown_name(result.checkpoint, lines=1)}"
    inside = sum(not result.is_beyond(column) for column in columns)
    if 0 < inside < len(columns):
        axes.axvline(inside, color="black", linewidth=2.5)
        title += f"; line: trained for {result.max_positions:,} positions"
    if lower:
        title += "; grey: not of 100, better when lower"
    style.set_title(axes, title)
    if len(lower) < len(columns):
        _colour_bar(figure, image, axes, "score (of 100)")
    style.save(figure, path)


def _score_map(
    axes: Any,
    scores: Sequence[Sequence[float | None]],
    nothing: str,
    digits: int | None,
    uncoloured: Collection[int] = (),
) -> Any:
    """Cells from red 0 to green 100, with their scores in them; ``digits`` None: without.

    Columns with the numbers ``uncoloured`` have the colour ``nothing``, as has what was not asked.
    """
    values = [
        [math.nan if score is None or x in uncoloured else score for x, score in enumerate(line)]
        for line in scores
    ]
    axes.set_facecolor(nothing)  # where there is no score
    colours = {"cmap": matplotlib.colormaps["RdYlGn"], "vmin": 0, "vmax": 100}
    image = axes.pcolormesh(values, edgecolors="white", linewidth=1.0, **colours)
    axes.invert_yaxis()
    for y, line in enumerate(scores if digits is not None else ()):
        for x, score in enumerate(line):
            if score is not None:
                # the ends of the colour map need white ink
                dark = x not in uncoloured and (score < 12 or score > 92)
                ink = {"fontsize": 8, "color": "white" if dark else style.INK}
                middle = {"ha": "center", "va": "center"}
                text = f"{score:.{LOWER_DIGITS if x in uncoloured else digits}f}"
                axes.text(x + 0.5, y + 0.5, text, **middle, **ink)
    return image


def _colour_bar(figure: Figure, image: Any, axes: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02, aspect=30)
    bar.ax.tick_params(labelsize=8, length=0, labelcolor=style.INK)
    bar.set_label(label, fontsize=9, color=style.INK)
    bar.outline.set_visible(False)


def _context_line(
    axes: Any, lengths: Sequence[int], positions: int, text: str, height: int, **line: Any
) -> None:
    """A line between the lengths within ``positions`` and those beyond, where there are both.

    Its text stands ``height`` points above the map.
    """
    inside = sum(length <= positions for length in lengths)
    if 0 < inside < len(lengths):
        axes.axvline(inside, color="black", **line)
        side = "center" if inside > 1 else "left"
        _text_above(axes, inside, text, height, fontsize=8.5, ha=side)


def _text_above(axes: Any, place: float, text: str, height: int, **options: Any) -> None:
    axes.annotate(
        text,
        (place, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, height),
        textcoords="offset points",
        color=style.INK,
        **options,
    )

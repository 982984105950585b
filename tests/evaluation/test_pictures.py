"""Pictures: no text is cut, axes have units, bands are what the legend says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from megatron_ultralong.evaluation.report.measurement import Measurement
from megatron_ultralong.evaluation.report.sections import sections
from megatron_ultralong.evaluation.results import pictures
from megatron_ultralong.evaluation.results.interval import Z, column_estimate
from megatron_ultralong.evaluation.results.result import Result
from tests.evaluation.results import loss_results, needle_result, passkey_result, task_result

NAMES = ("n" * 500, "$\\frac{<script>alert(1)</script>", "\u202eevil\nname\u901a")
MORE_NAMES = (("before", "after", "tuned"), ("a word " * 70, "_" * 60, "__init__"))
GRID = {512: 10, 1024: 7, 2048: 1}
RULER = {(t, n): 60.0 + len(t) % 40 for t in ("vt", "t" * 80) for n in ("4096", "8192", "16384")}
LV_EVAL = {("hotpotwikiqa_mixup", n): 40.0 for n in ("16k", "32k")}
ACCURACY = {(task, "accuracy"): 50.0 for task in ("mmlu", "arc " * 40)}


def of_three(names: tuple[str, ...]) -> list[list[Result]]:
    """Three checkpoints on every sort of benchmark."""
    loss = loss_results()
    losses = [dataclasses.replace(loss[k > 0], checkpoint=name) for k, name in enumerate(names)]
    made: list[Callable[[str, int], Result]] = [
        lambda name, positions: passkey_result(name, positions, GRID),
        lambda name, positions: needle_result(name, positions, {512: 3}),
        lambda name, positions: task_result("ruler", name, 8 * positions, RULER),
        lambda name, positions: task_result("lv_eval", name, positions, LV_EVAL),
        lambda name, positions: task_result("choices", name, positions, ACCURACY),
    ]
    pairs = list(zip(names, (512, 2048, 2048), strict=True))
    return [losses, *([make(*pair) for pair in pairs] for make in made)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn from here on, as it was saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *arguments: Any, **options: Any) -> None:
        save(figure, *arguments, **options)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures


def draw_all(results: list[Result]) -> None:
    """The pictures of a report, and those of the verbs."""
    found = [Measurement(one.checkpoint, one, Path("x.json")) for one in results]
    (section,) = sections(found)
    assert section.pictures


def texts_of(figure: Figure) -> Iterator[Text]:
    """Texts that are seen: not the ticks beyond an axis's ends."""
    unseen = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and id(text) not in unseen:
            yield text


def check_no_text_is_cut(figure: Figure) -> None:
    for text in texts_of(figure):
        box = text.get_window_extent()
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.width + 1, text
        assert box.y1 <= figure.bbox.height + 1, text


UNITS = {
    "",  # names of tasks, of scores, and maps beside the first
    "position in the row (tokens of context)",
    "loss (nats per token)",
    "context length (tokens)",
    "depth of the key (%)",
    "prompts retrieved (%)",
    "length (tokens)",
    "length (words)",
    "mean score (of 100)",
    "score (of 100)",
}


@pytest.mark.parametrize(
    "names", [NAMES, *(pytest.param(names, marks=pytest.mark.slow) for names in MORE_NAMES)]
)
def test_no_text_is_cut_and_axes_have_units(
    names: tuple[str, ...], drawn: list[Figure], tmp_path: Path
) -> None:
    for results in of_three(names):
        draw_all(results)
        if results[0].kind.rows == "tasks":
            pictures.draw(results[:1], tmp_path / "one.png")
    assert len(drawn) == 15  # six for a screen and a phone, three of the verbs
    for figure in drawn:
        check_no_text_is_cut(figure)
    labels = [
        {label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel())}
        for figure in drawn
    ]
    assert set().union(*labels) == UNITS
    assert all(found - {""} for found in labels)


@pytest.mark.parametrize("positions", [300, 2000])
def test_the_trained_context_is_named_on_either_side(positions: int, drawn: list[Figure]) -> None:
    draw_all([dataclasses.replace(loss_results()[0], checkpoint="n" * 99, max_positions=positions)])
    check_no_text_is_cut(drawn[0])


def band_at(collection: Any, x: float) -> tuple[float, float]:
    """Lower and upper end of a filled band at one of its points."""
    (path,) = collection.get_paths()
    ends = path.vertices[np.isclose(path.vertices[:, 0], x), 1]
    return float(ends.min()), float(ends.max())


def named_bands(figure: Figure) -> tuple[list[Any], list[str]]:
    """Bands, those of the checkpoints in their order, and what the legend says of bands."""
    axes = figure.axes[0]
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    bands = [one for one in axes.collections if one.get_label().startswith("_")]
    return bands, [label for label in labels if label.startswith("band")]


def test_the_band_of_losses_is_what_the_legend_says(drawn: list[Figure]) -> None:
    results = loss_results()
    draw_all(results)
    bands, said = named_bands(drawn[0])
    assert said == [f"band: 95 % interval, {Z:.2f} standard errors over rows"]
    for result, band in zip(results, bands, strict=True):
        for (start, stop), cell in zip(result.bins, result.cells, strict=True):
            low, high = band_at(band, (max(start, stop / 2) * stop) ** 0.5)
            assert (low, high) == pytest.approx((cell.score - 0.01 * Z, cell.score + 0.01 * Z))


def test_the_band_of_scores_is_what_the_legend_says(drawn: list[Figure]) -> None:
    results = of_three(NAMES)[3]
    draw_all(results)
    bands, said = named_bands(drawn[0])
    assert said == ["band: 95 % interval of the mean"]
    for result, band in zip(results, bands, strict=True):
        for x, column in enumerate(result.columns):
            expected = column_estimate(result, column)
            assert expected is not None
            assert band_at(band, x) == pytest.approx((expected.low, expected.high))

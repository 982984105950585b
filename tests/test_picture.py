"""Pictures: names are text, and one that fails ends nothing; only one module makes figures."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

import megatron_ultralong
from megatron_ultralong.evaluation.results import pictures
from megatron_ultralong.evaluation.results.file import read_results
from megatron_ultralong.program.picture import drawing, legend_name, new_figure
from tests.warm.programs import ROOT

NAMES = ("$\\frac{", "a$b$c", "$x_{$", "_base", "__", r"\alpha", "a&b<c>", "{", "%s", "100 %")


def written(figure) -> list[str]:
    """Texts of a figure once it is drawn."""
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(match=lambda o: hasattr(o, "get_text"))]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_as_it_is_and_stands_in_the_legend(name: str) -> None:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=legend_name(name))
    axes.set_title(name, loc="left")
    axes.set_yticks([0], [name])
    axes.legend()
    texts = written(figure)
    assert texts.count(name) + texts.count(f" {name}") >= 3


def test_results_of_models_with_odd_names_are_drawn(tmp_path: Path) -> None:
    kept = ROOT / "docs" / "demo"
    results = [
        one
        for file in sorted((ROOT / "tests" / "evaluation" / "format_1").rglob("*.json"))
        if json.loads(file.read_text()).get("kind") != "choices"
        for one in read_results(file)
    ]
    assert results
    assert kept.is_dir()
    for k, result in enumerate(results):
        odd = dataclasses.replace(result, checkpoint=NAMES[k % len(NAMES)])
        file = tmp_path / f"{k}.png"
        pictures.draw([odd], file)
        assert file.read_bytes()[1:4] == b"PNG"


def test_a_picture_that_fails_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with drawing("loss.png"):
        raise RuntimeError("no such font")
    with drawing("b.png"):
        raise MemoryError
    told = capsys.readouterr().err
    assert "warning: loss.png was not drawn (no such font)" in told
    assert "warning: b.png was not drawn (MemoryError)" in told


def test_one_module_makes_figures() -> None:
    package = Path(megatron_ultralong.__file__).parent
    makes = re.compile(r"pyplot|\bFigure\(|FigureCanvas")
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if makes.search(file.read_text())
    }
    assert found == {"program/picture.py"}

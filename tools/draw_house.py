"""Draw the package: its folders by layer, what is in each, and who imports whom.

::

    python tools/draw_house.py docs/house.svg

The layers are those of the contract in ``pyproject.toml`` that `make lint` checks, the imports
those of the code. An arrow that follows from others is left out: where ``training`` imports
``mcore`` and ``mcore`` imports ``config``, none is drawn from ``training`` to ``config``.
"""

from __future__ import annotations

import argparse
import html
import textwrap
from pathlib import Path

import grimp
from importlinter.api import read_configuration

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "megatron_ultralong"
CONTRACT = "Imports point down"
NOT_DRAWN = {"__main__"}

WIDTH, MARGIN, GAP = 760, 12, 10
"""Of a box, around the picture, and between boxes, in pixels."""
LINE, TITLE = 15, 22
LANE = 12
"""Between two arrows that run side by side."""
CHARACTER = 6.1
"""Width of a letter of 11 pixels."""
STYLE = (
    "text{font:11px sans-serif;fill:#222}.name{font-weight:bold;font-size:13px}"
    "rect{fill:#f4f7fb;stroke:#5b7aa5}path{stroke:#7c93b2;fill:none;marker-end:url(#arrow)}"
)


def layers() -> list[list[str]]:
    """Folders of every layer, the highest first: ``[["dropin"], ["cli"], ...]``."""
    options = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    (contract,) = (each for each in options if each["name"] == CONTRACT)
    rows = ([name.strip() for name in row.split("|")] for row in contract["layers"])
    return [[name for name in row if name not in NOT_DRAWN] for row in rows]


def imports(names: list[str]) -> dict[str, set[str]]:
    """Which of the folders each imports, itself left out."""
    graph = grimp.build_graph(PACKAGE)
    found: dict[str, set[str]] = {name: set() for name in names}
    for module in graph.modules:
        parts = module.split(".")
        if len(parts) < 2 or parts[1] not in found:
            continue
        for other in graph.find_modules_directly_imported_by(module):
            there = other.split(".")
            if len(there) > 1 and there[1] in found and there[1] != parts[1]:
                found[parts[1]].add(there[1])
    return found


def without_shortcuts(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The transitive reduction of an acyclic graph."""

    def below(name: str) -> set[str]:
        return edges[name].union(*(below(other) for other in edges[name]))

    return {
        name: others - set().union(*(below(other) for other in others))
        for name, others in edges.items()
    }


def rooms(name: str) -> list[str]:
    """What stands in a folder: its folders with the number of their files, then its own files."""
    folder = ROOT / PACKAGE / name
    if not folder.is_dir():
        return [f"{name}.py"]
    folders = sorted(path for path in folder.iterdir() if (path / "__init__.py").is_file())
    inner = [f"{path.name}/ ({len(list(path.rglob('*.py'))) - 1})" for path in folders]
    files = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    return inner + files


def lanes(spans: list[tuple[int, int]]) -> list[int]:
    """A lane for each span so that none meets another: the short ones nearest to the boxes."""
    taken: list[list[tuple[int, int]]] = []
    found = {}
    for start, stop in sorted(spans, key=lambda span: (span[1] - span[0], span)):
        free = (
            number
            for number, others in enumerate(taken)
            if all(stop <= other[0] or start >= other[1] for other in others)
        )
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((start, stop))
        found[start, stop] = lane
    return [found[span] for span in spans]


def picture() -> str:
    """The whole SVG: a box for each folder, the highest first, and arrows at their right."""
    names = [name for row in layers() for name in row]
    edges = without_shortcuts(imports(names))
    place = {name: number for number, name in enumerate(names)}
    boxes, parts, top = [], [], MARGIN
    for name in names:
        lines = textwrap.wrap(", ".join(rooms(name)), int((WIDTH - 16) / CHARACTER))
        height = TITLE + LINE * len(lines) + 6
        boxes.append((top, height))
        parts.append(f'<rect x="{MARGIN}" y="{top}" width="{WIDTH}" height="{height}"/>')
        parts.append(f'<text class="name" x="{MARGIN + 8}" y="{top + 16}">{name}</text>')
        for number, text in enumerate(lines):
            y = top + TITLE + LINE * number + 11
            parts.append(f'<text x="{MARGIN + 8}" y="{y}">{html.escape(text)}</text>')
        top += height + GAP
    spans = [(place[name], place[other]) for name in names for other in sorted(edges[name])]
    right = MARGIN + WIDTH
    chosen = lanes(spans)
    for (above, below), lane in zip(spans, chosen, strict=True):
        x = right + LANE * (lane + 2)
        y = boxes[above][0] + boxes[above][1] - 8
        y_below = boxes[below][0] + 10
        parts.append(f'<path d="M{right} {y}H{x}V{y_below}H{right}"/>')
    width, height = right + LANE * (max(chosen) + 3), top - GAP + MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
    marker = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" '
        'style="fill:#7c93b2;stroke:none;marker-end:none"/></marker></defs>'
    )
    ground = f'<rect width="{width}" height="{height}" style="fill:#fff;stroke:none"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", marker, ground, *parts, "</svg>", ""])


def main() -> None:
    """Write the picture, or say whether the one that is there is today's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="SVG to write")
    parser.add_argument("--check", action="store_true", help="end with 1 where it would change")
    arguments = parser.parse_args()
    new = picture()
    if not arguments.check:
        arguments.output.write_text(new)
    elif arguments.output.read_text() != new:
        raise SystemExit(f"{arguments.output} is not the code's picture: run `make picture`")


if __name__ == "__main__":
    main()

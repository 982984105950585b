"""Draw the badges of the README out of what setup.py says: nothing is asked of another server.

::

    python tools/draw_badges.py         # into docs/badges/
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "badges"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
"""Those of tools/version_matrix."""
_WIDTH = 6.6
"""Of a letter of 11 pixels, as wide as any of the usual fonts."""
_SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="20" role="img" \
aria-label="{left}: {right}">
<title>{left}: {right}</title>
<rect width="{width:.0f}" height="20" rx="3" fill="#3a5a8c"/>
<path d="M3 0h{cut:.0f}v20h-{cut:.0f}a3 3 0 0 1-3-3v-14a3 3 0 0 1 3-3z" fill="#444"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="8" y="14">{left}</text>
<text x="{start:.0f}" y="14">{right}</text>
</g>
</svg>
"""


def given(name: str) -> str | list[str]:
    """What setup.py gives for a keyword."""
    call = next(
        node.value
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )
    (value,) = (each.value for each in call.keywords if each.arg == name)
    found: str | list[str] = ast.literal_eval(value)
    return found


def badges() -> dict[str, str]:
    """File name and content of each."""
    requires = given("install_requires")
    core = next(text for text in requires if text.startswith("megatron-core"))
    oldest, newest = core.removeprefix("megatron-core>=").split(",<0.")
    texts = {
        "python": ("Python", f"{PYTHONS[0]}-{PYTHONS[-1]}"),
        "megatron_core": ("Megatron-Core", f"{oldest.rpartition('.')[0]}-0.{int(newest) - 1}"),
        "licence": ("licence", str(given("license"))),
    }
    return {f"{name}.svg": draw(*both) for name, both in texts.items()}


def draw(left: str, right: str) -> str:
    """A badge of two texts."""
    first, second = (len(text) * _WIDTH + 16 for text in (left, right))
    return _SVG.format(
        left=escape(left),
        right=escape(right),
        width=first + second,
        cut=first - 3,
        start=first + 8,
    )


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in badges().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Tables in pages of docs/ that programs write: between two comments, the rest is people's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

END = "<!-- end -->"


def begin(tool: str) -> str:
    """The comment above a table that ``tools/<tool>.py`` writes."""
    return f"<!-- tools/{tool}.py: begin -->"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def page_with(text: str, tool: str, new: str) -> str:
    """The page with ``new`` in the place of what ``tools/<tool>.py`` wrote before."""
    before, rest = text.split(begin(tool))
    _, after = rest.split(END, 1)
    return f"{before}{begin(tool)}\n{new}\n{END}{after}"

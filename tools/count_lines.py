"""Lines of the package by folder, and how many of them import: ``python -m tools.count_lines``."""

from __future__ import annotations

import ast
from collections import Counter

from tools.draw_house import PACKAGE, ROOT


def main() -> None:
    """Print a line a folder, those of most lines last, and one of all."""
    num_files, num_lines, num_imports = Counter[str](), Counter[str](), Counter[str]()
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        text = path.read_text()
        for folder in (path.relative_to(ROOT / PACKAGE).parts[0], "all"):
            num_files[folder] += 1
            num_lines[folder] += text.count("\n")
            num_imports[folder] += sum(
                (node.end_lineno or node.lineno) - node.lineno + 1
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.Import | ast.ImportFrom)
            )
    for folder, lines in reversed(num_lines.most_common()):
        imports = num_imports[folder]
        share = f"imports {imports:5,} ({imports / max(lines, 1):.1%})"
        print(f"{folder:16} {num_files[folder]:4} files {lines:7,} lines, {share}")


if __name__ == "__main__":
    main()

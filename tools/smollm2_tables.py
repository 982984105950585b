"""The tables of docs/results.md, out of the results in docs/smollm2.

::

    python -m tools.smollm2_tables          # write them into the page
"""

from __future__ import annotations

import math
import runpy
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.evaluation.results.file import read_results
from megatron_ultralong.evaluation.results.result import Result
from tools.page_tables import page_with, table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "docs" / "smollm2"
KINDS = ("passkey", "needle")
_Z = 1.96
"""Standard deviations to either side that hold 95 % of a normal distribution."""


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, per cent: 24 of 40 are 44.6 to 73.7."""
    share, spread = right / asked, _Z**2 / asked
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def counts(result: Result, length: int) -> tuple[int, int]:
    """Prompts answered and asked at one length, over all depths."""
    cells = [cell for cell in result.cells if cell.column == str(length)]
    right = sum((cell.score or 0.0) * cell.num_samples / 100 for cell in cells)
    return round(right), sum(cell.num_samples for cell in cells)


def retrieval() -> Iterator[tuple[str, ...]]:
    """Lengths, before and after."""
    found = [result for kind in KINDS for result in read_results(RESULTS / f"{kind}.json", kind)]
    for length in found[0].lengths:
        yield f"{length:,}", *(_share(*counts(result, length)) for result in found)


def losses() -> Iterator[tuple[str, ...]]:
    """Positions, before and after, each with its error."""
    before, after = read_results(RESULTS / "loss.json", "position_loss")
    for old, new in zip(before.cells, after.cells, strict=True):
        assert old.row == new.row, "both have the same bins"
        assert old.score is not None, "no bin is empty"
        assert new.score is not None, "no bin is empty"
        start, stop = map(int, old.row.split("-"))
        yield (
            f"{start:,}-{stop:,}",
            f"{old.score:.3f} ± {old.error:.3f}",
            f"{new.score:.3f} ± {new.error:.3f}",
            f"{new.score - old.score:+.3f}",
        )


def rates() -> Iterator[tuple[str, ...]]:
    """Learning rates on the prompts that they were chosen by."""
    found = [read_results(RESULTS / "validation" / f"{kind}.json", kind) for kind in KINDS]
    for results in zip(*found, strict=True):
        scores = [cell.score or 0.0 for result in results for cell in result.cells]
        cells = [
            f"{100 * right / asked:.0f}"
            for result in results
            for length in result.lengths
            for right, asked in (counts(result, length),)
        ]
        yield results[0].checkpoint, *cells, f"{sum(scores) / len(scores):.1f}"


def second_run() -> Iterator[tuple[str, ...]]:
    """Lengths, passkeys of the first and second run, and after its tuning."""
    files = ("passkey.json", "second/passkey.json", "second/tuned.json")
    first, second, tuned = (read_results(RESULTS / file, "passkey")[-1] for file in files)
    for length in second.lengths:
        shares = (_share(*counts(result, length)) for result in (first, second, tuned))
        yield f"{length:,}", *shares


def ruler() -> Iterator[tuple[str, ...]]:
    """Tasks of RULER and their mean, of the original model."""
    (before,) = read_results(RESULTS / "ruler.json", "ruler")
    cells = {(cell.row, cell.column): cell for cell in before.cells}
    for task in dict.fromkeys(cell.row for cell in before.cells):
        its = [cells[task, str(length)] for length in before.lengths]
        yield task, *(f"{cell.score:.1f} ± {cell.error:.1f}" for cell in its)
    yield "mean", *(f"{before.mean(str(length)):.1f}" for length in before.lengths)


def tables() -> str:
    """All of them, each under its caption."""
    lengths = ("8,192", "32,768", "65,536")
    ablations = runpy.run_path(str(ROOT / "examples" / "smollm2" / "ablations.py"))
    captions = (
        "Retrieval, per cent of prompts over ten depths, with Wilson's 95 % interval and counts:",
        "Loss by position on eight held-out rows, nats per token ± one standard error over rows:",
        "Passkeys of the run above, of a second run, and of this run tuned on short chats:",
        "RULER of the original model, 20 questions a cell ± one standard error:",
        "Rates, 25 iterations each, per cent of ten prompts of seed 99 a length:",
        "Ablations at 65,536 tokens, 32 rows each: the mean of the seeds, and each seed:",
    )
    made = (
        table(
            ("length", *(f"{kind} {when}" for kind in KINDS for when in ("before", "after"))),
            retrieval(),
        ),
        table(("positions", "before", "after", "difference"), losses()),
        table(("length", "first run", "second run", "second run, tuned"), second_run()),
        table(("task", "4,096", "8,192"), ruler()),
        table(
            ("rate", *(f"{kind} {length}" for kind in KINDS for length in lengths), "mean"),
            rates(),
        ),
        "\n".join(ablations["table"](RESULTS)),
    )
    return "\n\n".join(f"{caption}\n\n{one}" for caption, one in zip(captions, made, strict=True))


def page(text: str) -> str:
    """The page with the tables of the results in it."""
    return page_with(text, "smollm2_tables", f"\n{tables()}\n")


def _share(right: int, asked: int) -> str:
    low, high = interval(right, asked)
    return f"{100 * right / asked:g} % ({low:.0f}-{high:.0f}), {right} of {asked}"


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The tables of docs/results.md, out of the results in docs/smollm2.

::

    python -m tools.smollm2_tables          # write them into the page
"""

from __future__ import annotations

import math
import runpy
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_ultralong.evaluation.results.file import read_results
from megatron_ultralong.evaluation.results.result import Result
from tools.page_tables import page_with, table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "docs" / "smollm2"
FIRST, FOURTH, LATER = RESULTS / "first", RESULTS / "fourth", RESULTS / "later"
KINDS = ("passkey", "needle")
POSITIONS = 8192
"""That the model was trained for."""
_Z = 1.96
"""Standard deviations to either side that hold 95 % of a normal distribution."""


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, per cent: 24 of 40 are 44.6 to 73.7."""
    share, spread = right / asked, _Z**2 / asked
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def counts(result: Result, length: int, start: float = 0, stop: float = 101) -> tuple[int, int]:
    """Prompts answered and asked at one length, over depths (per cent) from ``start`` to below
    ``stop``.
    """
    at_length = [cell for cell in result.cells if cell.column == str(length)]
    cells = [cell for cell in at_length if start <= float(cell.row) < stop]
    right = sum((cell.score or 0.0) * cell.num_samples / 100 for cell in cells)
    return round(right), sum(cell.num_samples for cell in cells)


def arms(name: str, work: Path = RESULTS) -> Path:
    """The folder of an arm's passkeys."""
    return work / "ablations" / "results" / name / "passkey"


def runs() -> Iterator[tuple[str, ...]]:
    """Passkeys at the full length of the runs, with their factors."""
    files = (
        (arms("recipe-1"), "8", 65_536, "32 rows (ablation)"),
        (arms("twice-factor-1", LATER), "16", 65_536, "32 rows (ablation)"),
        (RESULTS / "target", "16", 131_072, "130 iterations of short rows, 85 rows"),
        (RESULTS / "second", "16", 131_072, "34 iterations of short rows, 140 rows"),
        (RESULTS / "target", "32", 131_072, "100 iterations of short rows, 85 rows"),
        (FOURTH, "64", 131_072, "100 iterations of short rows, 85 rows"),
        (RESULTS / "target", "64", 262_144, "60 iterations of short rows, 40 rows"),
    )
    words = {1: "", 2: "twice ", 4: "four times "}
    for folder, factor, length, trained in files:
        found = read_results(folder / "passkey.json", "passkey")
        if folder == RESULTS / "target":
            (one,) = (result for result in found if result.checkpoint == f"factor {factor}")
        elif folder == FOURTH:
            (one,) = (result for result in found if result.checkpoint == "after")
        else:
            one = found[-1]
        yield (
            f"{length:,}",
            f"{factor}, {words[int(factor) // (length // POSITIONS)]}what it needs",
            trained,
            _share(*counts(one, length)),
        )


def by_length(found: list[Result]) -> Iterator[tuple[str, ...]]:
    """Lengths, and what each result has of their prompts."""
    for length in found[0].lengths:
        yield f"{length:,}", *(_share(*counts(result, length)) for result in found)


def retrieval() -> Iterator[tuple[str, ...]]:
    """Lengths, before and after the first run."""
    return by_length([r for kind in KINDS for r in read_results(FIRST / f"{kind}.json", kind)])


def needles() -> Iterator[tuple[str, ...]]:
    """Needles in 131,072 tokens, of the models that were asked."""
    before, first = read_results(FIRST / "needle.json", "needle")
    (second,) = read_results(RESULTS / "second" / "needle.json", "needle")[-1:]
    (tuned,) = read_results(RESULTS / "target" / "needle-tuned.json", "needle")
    length = 131_072
    for name, result in (
        ("the original model", before),
        ("first run, factor 16", first),
        ("second run, factor 16", second),
        ("third run, factor 32, tuned with questions on short texts", tuned),
    ):
        halves = [counts(result, length, *depths) for depths in ((0, 50), (50, 101))]
        yield name, _share(*counts(result, length)), *(_share(*half) for half in halves)


def losses(file: str) -> Iterator[tuple[str, ...]]:
    """Positions, before and after, each with its error."""
    before, after = read_results(RESULTS / "target" / file, "position_loss")
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
    """Lengths, passkeys of the second run, and after its tuning."""
    files = [RESULTS / "second" / file for file in ("passkey.json", "tuned.json")]
    return by_length([read_results(file, "passkey")[-1] for file in files])


def fourth_run() -> Iterator[tuple[str, ...]]:
    """Lengths, passkeys of the original model, of the fourth run, and of this run tuned."""
    return by_length([*read_results(FOURTH / "passkey.json", "passkey")])


def choices() -> Iterator[tuple[str, ...]]:
    """The measures of the multiple choice, of the same models and one tuned on fewer questions."""
    found = read_results(RESULTS / "choices.json", "harness")
    for cells in zip(*(result.cells for result in found), strict=True):
        yield cells[0].column, *(f"{cell.score:.1f} ± {cell.error:.1f}" for cell in cells)


def ruler() -> Iterator[tuple[str, ...]]:
    """Tasks of RULER and their mean, of the original model and of the third run."""
    found = read_results(RESULTS / "ruler.json", "ruler")
    places = [(result, str(length)) for length in found[0].lengths for result in found]
    cells = [{(cell.row, cell.column): cell for cell in result.cells} for result in found]
    for task in dict.fromkeys(cell.row for cell in found[0].cells):
        its = [cells[found.index(result)][task, length] for result, length in places]
        yield task, *(f"{cell.score:.1f} ± {cell.error:.1f}" for cell in its)
    yield "mean", *(f"{result.mean(length):.1f}" for result, length in places)


def tables() -> str:
    """All of them, each under its caption."""
    lengths = ("8,192", "32,768", "65,536")
    ablations = runpy.run_path(str(ROOT / "examples" / "smollm2" / "ablations.py"))
    before_and_after = ("positions", "before", "after", "difference")
    captioned = (
        (
            "Passkeys at the full length of every run, 95 % intervals (Wilson) and counts:",
            table(("rows and prompts", "factor", "trained on", "passkeys"), runs()),
        ),
        (
            "Loss by position, third run, eight held-out rows of 131,072 tokens, nats per token "
            "± one standard error over rows:",
            table(before_and_after, losses("loss.json")),
        ),
        (
            "The same, run of 262,144 tokens, four held-out rows:",
            table(before_and_after, losses("loss-256k.json")),
        ),
        (
            "Needles in 131,072 tokens, and by the half of the row that they stand in:",
            table(("model", "needles", "first half", "last half"), needles()),
        ),
        (
            "RULER of the original model and of the third run, 20 questions a cell ± one standard "
            "error:",
            table(
                (
                    "task",
                    *(
                        f"{length}, {when}"
                        for length in ("4,096", "8,192")
                        for when in ("before", "after")
                    ),
                ),
                ruler(),
            ),
        ),
        (
            "Retrieval of the original model and of the first run, at all lengths:",
            table(
                ("length", *(f"{kind} {when}" for kind in KINDS for when in ("before", "after"))),
                retrieval(),
            ),
        ),
        (
            "Passkeys of the second run, and of this run tuned on short chats:",
            table(("length", "second run", "second run, tuned"), second_run()),
        ),
        (
            "Passkeys of the original model, of the fourth run, and of this run tuned on short "
            "conversations:",
            table(("length", "before", "fourth run", "fourth run, tuned"), fourth_run()),
        ),
        (
            "Multiple choice, the same models, and tuned on 190 questions instead of 12,000; 500 "
            "questions with four choices, per cent ± one standard error:",
            table(("measure", "before", "fourth run", "fourth run, tuned", "on 190"), choices()),
        ),
        (
            "Rates, 25 iterations each, per cent of ten prompts of seed 99 a length:",
            table(
                ("rate", *(f"{kind} {length}" for kind in KINDS for length in lengths), "mean"),
                rates(),
            ),
        ),
        (
            "Ablations at 65,536 tokens, 32 rows each: the mean of the seeds, and each seed:",
            _that_ran(ablations["table"](RESULTS)),
        ),
        (
            "The same on 30 November, on rows with newer manuals:",
            _that_ran(ablations["table"](LATER)),
        ),
    )
    return "\n\n".join(f"{caption}\n\n{one}" for caption, one in captioned)


def _that_ran(rows: Iterable[str]) -> str:
    """The rows of a table that have a result."""
    return "\n".join(row for row in rows if not row.endswith(4 * " not run |"))


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

"""The tables of docs/results.md, out of the results in docs/smollm2.

::

    python -m tools.smollm2_tables          # write them into the page
"""

from __future__ import annotations

import math
import runpy
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megatron_ultralong.evaluation.results.file import read_results
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.program.errors import InputError
from tools.page_tables import page_with, table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "docs" / "smollm2"
FIRST, FOURTH, FIFTH, SIXTH, MILLION = (
    RESULTS / name for name in ("first", "fourth", "fifth", "sixth", "million")
)
LATER = RESULTS / "later"
"""Of ablations on rows that were prepared again."""
ABLATIONS = runpy.run_path(str(ROOT / "examples" / "smollm2" / "ablations.py"))
COMPARED = {
    **dict.fromkeys(("short-eos", "short-none", "short-mask"), "short"),
    "mixed-sampling": "mixed",
}
"""Arms that are compared with another one than the recipe."""
KINDS = ("passkey", "needle")
OF_FIFTH = ("before", "after", "tuned", "tuned, longer passages")
"""Models of the fifth run."""
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


def read(file: Path, kind: str, *checkpoints: str) -> list[Result]:
    """The results of a file, those of these checkpoints, in this order: captions say which.

    Raises:
        InputError: it has others.
    """
    found = {result.checkpoint: result for result in read_results(file, kind)}
    if {*found} != {*checkpoints}:
        raise InputError(
            f"{file} has results of {', '.join(found)}, and its table is of "
            f"{', '.join(checkpoints)}: restore the file, or change the table"
        )
    return [found[name] for name in checkpoints]


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
        (FIFTH, "32", 131_072, "the same, again"),
        (FOURTH, "64", 131_072, "100 iterations of short rows, 85 rows"),
        (RESULTS / "target", "64", 262_144, "60 iterations of short rows, 40 rows"),
        (SIXTH, "64", 262_144, "the same, again, then tuned"),
        (MILLION, "256", 1_048_576, "the same, tuned, then three rows"),
    )
    words = {1: "", 2: "twice ", 4: "four times "}
    for folder, factor, length, trained in files:
        found = read_results(folder / "passkey.json", "passkey")
        if folder == RESULTS / "target":
            (one,) = (result for result in found if result.checkpoint == f"factor {factor}")
        elif folder in (FOURTH, FIFTH):
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
    return by_length(
        [r for kind in KINDS for r in read(FIRST / f"{kind}.json", kind, "before", "after")]
    )


def needles() -> Iterator[tuple[str, ...]]:
    """Needles at the full length of the runs, of the models that were asked."""
    before, first = read(FIRST / "needle.json", "needle", "before", "after")
    (second,) = read(RESULTS / "second" / "needle.json", "needle", "after")
    (tuned,) = read(RESULTS / "target" / "needle-tuned.json", "needle", "tuned")
    _, fifth, far, farther = read(FIFTH / "needle.json", "needle", *OF_FIFTH)
    (sixth,) = read(SIXTH / "needle.json", "needle", "tuned")
    (million,) = read(MILLION / "needle.json", "needle", "after")
    for name, result in (
        ("the original model", before),
        ("first run, factor 16", first),
        ("second run, factor 16", second),
        ("third run, factor 32, tuned with questions on short texts", tuned),
        ("fifth run, factor 32, not tuned", fifth),
        ("fifth run, tuned with questions on 64 long texts too", far),
        ("fifth run, tuned with questions on 96 longer texts", farther),
        ("sixth run, 262,144 tokens, factor 64, tuned with questions on 48 long texts", sixth),
        ("the same, then three rows of 1,048,576 tokens, factor 256", million),
    ):
        length = max(result.lengths)
        halves = [counts(result, length, *depths) for depths in ((0, 50), (50, 101))]
        yield name, _share(*counts(result, length)), *(_share(*half) for half in halves)


def fifth_run(kind: str) -> Iterator[tuple[str, ...]]:
    """Lengths, and what the models of the fifth run have found of the prompts."""
    found = read(FIFTH / f"{kind}.json", kind, *OF_FIFTH)
    for length in found[0].lengths:
        every = (counts(result, length) for result in found)
        yield f"{length:,}", *(_share(*one) for one in every)


def fifth_losses() -> Iterator[tuple[str, ...]]:
    """Positions, and the losses of the models of the fifth run."""
    found = read(FIFTH / "loss.json", "position_loss", *OF_FIFTH)
    for cells in zip(*(result.cells for result in found), strict=True):
        start, stop = map(int, cells[0].row.split("-"))
        yield f"{start:,}-{stop:,}", *(f"{cell.score:.3f} ± {cell.error:.3f}" for cell in cells)


def long_ruler() -> Iterator[tuple[str, ...]]:
    """Tasks of RULER and their mean, of the fifth run beyond 8,192 tokens."""
    found = sorted(read_results(FIFTH / "ruler.json", "ruler"), key=lambda result: result.lengths)
    for cells in zip(*(result.cells for result in found), strict=True):
        yield cells[0].row, *(f"{cell.score:.1f} ± {cell.error:.1f}" for cell in cells)
    yield "mean", *(f"{result.mean(result.cells[0].column):.1f}" for result in found)


def differences() -> Iterator[tuple[str, ...]]:
    """Arms, what they are compared with, and their figures less its, of the same rows and seed;
    passkeys of both.
    """
    baselines = {"recipe", *COMPARED.values()}
    for arm in ABLATIONS["ARMS"]:
        if arm in baselines:
            continue
        other = COMPARED.get(arm, "recipe")
        pairs = [
            [ABLATIONS["figures"](work / "ablations" / "results" / f"{name}-{seed}")
             for name in (arm, other)]
            for work in (RESULTS, LATER)
            for seed in ABLATIONS["SEEDS"]
            if all((arms(f"{name}-{seed}", work).parent / "loss").exists() for name in (arm, other))
        ]  # fmt: skip
        if not pairs:
            continue
        losses = [[own[k] - base[k] for own, base in pairs] for k in (0, 1)]
        asked = [(own[3], base[3]) for own, base in pairs if None not in (own[3], base[3])]
        keys = ", ".join(f"{own:.0f} and {base:.0f}" for own, base in asked)
        yield arm, other, *map(_each, losses), keys or "not run"


def _each(values: Sequence[float]) -> str:
    """The mean of differences, and each."""
    mean, *each = (
        f"{value:+.3f}".replace("-0.000", "+0.000") for value in (statistics.fmean(values), *values)
    )
    return f"{mean} ({', '.join(each)})" if len(each) > 1 else mean


def losses(file: str) -> Iterator[tuple[str, ...]]:
    """Positions, before and after, each with its error."""
    before, after = read(RESULTS / "target" / file, "position_loss", "before", "after")
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
    chosen = ("2e-4", "5e-4", "1e-3", "2e-3")
    found = [read(RESULTS / "validation" / f"{kind}.json", kind, *chosen) for kind in KINDS]
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
    files = (("passkey.json", "after"), ("tuned.json", "tuned"))
    return by_length(
        [r for file, name in files for r in read(RESULTS / "second" / file, "passkey", name)]
    )


def fourth_run() -> Iterator[tuple[str, ...]]:
    """Lengths, passkeys of the original model, of the fourth run, and of this run tuned."""
    return by_length(read(FOURTH / "passkey.json", "passkey", "before", "after", "tuned"))


def choices() -> Iterator[tuple[str, ...]]:
    """Models, and the measures of their multiple choice."""
    for result in read_results(RESULTS / "choices.json", "harness"):
        yield result.checkpoint, *(f"{cell.score:.1f} ± {cell.error:.1f}" for cell in result.cells)


def ruler() -> Iterator[tuple[str, ...]]:
    """Tasks of RULER and their mean, of the original model and of the third run."""
    found = read(RESULTS / "ruler.json", "ruler", "before", "after")
    places = [(result, str(length)) for length in found[0].lengths for result in found]
    cells = [{(cell.row, cell.column): cell for cell in result.cells} for result in found]
    for task in dict.fromkeys(cell.row for cell in found[0].cells):
        its = [cells[found.index(result)][task, length] for result, length in places]
        yield task, *(f"{cell.score:.1f} ± {cell.error:.1f}" for cell in its)
    yield "mean", *(f"{result.mean(length):.1f}" for result, length in places)


def tables() -> str:
    """All of them, each under its caption."""
    lengths = ("8,192", "32,768", "65,536")
    of_fifth = ("before", "extended", "tuned, 64 long texts", "tuned, 96 longer texts")
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
            "Needles in 131,072 tokens, in the last two lines in 262,144 and 1,048,576, and by the "
            "half of the row that they stand in:",
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
            "RULER of the fifth run, extended and not tuned, 10 questions a cell:",
            table(("task", "16,384", "32,768", "65,536"), long_ruler()),
        ),
        (
            "Passkeys of the fifth run: the original model, extended, and tuned on questions on 64 "
            "long texts or on 96 longer ones (prompts of seed 22, as all of this run):",
            table(("length", *of_fifth), fifth_run("passkey")),
        ),
        ("Needles of the same models:", table(("length", *of_fifth), fifth_run("needle"))),
        (
            "Loss by position of the same models, eight held-out rows:",
            table(("positions", *of_fifth), fifth_losses()),
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
            "Multiple choice, models of the fourth, fifth and sixth run; 500 questions with four "
            "choices, per cent ± one standard error:",
            table(("model", "acc", "acc_norm"), choices()),
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
            _that_ran(ABLATIONS["table"](RESULTS)),
        ),
        (
            "The same on 30 November, on rows with newer manuals:",
            _that_ran(ABLATIONS["table"](LATER)),
        ),
        (
            "Each arm less the one that it is compared with, of the same rows and seed: the mean, "
            "and each pair; passkeys at 65,536 of both:",
            table(
                (
                    "arm",
                    "compared with",
                    "loss, first 8,192",
                    "loss, 32,768-65,536",
                    "passkeys, %",
                ),
                differences(),
            ),
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
    if not asked:
        return "not run"
    low, high = interval(right, asked)
    return f"{100 * right / asked:.3g} % ({low:.0f}-{high:.0f}), {right} of {asked}"


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

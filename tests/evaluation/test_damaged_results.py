"""Damaged, hand-edited and reordered results: shown as they are, or refused by one message.

A message names the file, the field, what stands there and the rule. Nothing impossible is shown,
and nothing is left out without a word.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_ultralong import cli
from megatron_ultralong.evaluation.report.page import print_report, report_page
from megatron_ultralong.evaluation.report.report import Report, gather_report
from megatron_ultralong.evaluation.results.tables import loss_table, score_table
from megatron_ultralong.program.errors import InputError
from tests.evaluation.results import loss_results, saved
from tests.evaluation.test_results import examples

FORMAT_1 = Path(__file__).parent / "format_1"
NUM_FILES = 15
"""Of four kinds as they are written today, and those of format 1."""
STRANGE = (
    *(None, -1, 0, 585, 1e300, 100.5, "", "x", "7", [], {}, [None], {"row": 1}, True, "9" * 30),
    *("3-1", "-4096", "\u0663", 10**40, "n" * 2000, [[[[1]]]]),
)
Json = dict[str, Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of every kind, in both formats."""
    root = tmp_path_factory.mktemp("files")
    written = [saved(results, root / f"{results[0].kind.name}.json") for results in examples()]
    return [*written, *sorted(FORMAT_1.rglob("*.json"))]


def file_of(files: list[Path], kind: str) -> Json:
    return json.loads(next(file for file in files if file.stem == kind).read_text())


def put(place: str, value: Any) -> Callable[[Json], None]:
    """Write ``value`` at ``results.0.cells.1.score``."""

    def change(values: Any) -> None:
        *outer, last = place.split(".")
        for key in outer:
            values = values[int(key) if isinstance(values, list) else key]
        values[int(last) if isinstance(values, list) else last] = value

    return change


def twice(values: Json) -> None:
    cells = values["results"][0]["cells"]
    cells.append(copy.deepcopy(cells[0]))


CELL = "results.0.cells.0"
DAMAGES = {
    # kind, what is changed, what the message has to say beside the file's name
    "585 %": ("ruler", put(f"{CELL}.score", 585), f"{CELL}: score is 585, not from 0 to 100"),
    "below 0": ("passkey", put(f"{CELL}.score", -3), f"{CELL}: score is -3, not from 0 to 100"),
    "no hits": ("passkey", put(f"{CELL}.score", 33.3), "33.3 % of 10 prompts is 3.33 hits"),
    "text": ("ruler", put(f"{CELL}.score", "90"), f"{CELL}.score: .*a valid number, not '90'"),
    "truth": ("ruler", put(f"{CELL}.score", True), f"{CELL}.score: .*a valid number, not True"),
    "no score": ("ruler", put(f"{CELL}.score", None), "score None of 100 samples"),
    "no samples": ("ruler", put(f"{CELL}.num_samples", 0), "score 90.0 of 0 samples"),
    "-1 samples": ("ruler", put(f"{CELL}.num_samples", -1), "num_samples: .*equal to 0, not -1"),
    "a depth": ("passkey", put("results.0.config.depths", 1), "row is .*, its flag has 1: "),
    "error": ("ruler", put(f"{CELL}.error", 51), "error is 51, not from 0 to 50"),
    "truncated": (
        "ruler",
        put(f"{CELL}.figures", {"num_truncated": 101}),
        "num_truncated is 101, not from 0 to 100",
    ),
    "accuracy": (
        "passkey",
        put(f"{CELL}.figures", {"token_accuracy": 7}),
        "token_accuracy is 7, not from 0 to 1",
    ),
    "loss": ("position_loss", put(f"{CELL[:-1]}1.score", -1), "score is -1, not from 0 to 1e.06"),
    "perplexity": (
        "position_loss",
        put(f"{CELL[:-1]}1.figures", {"perplexity": 7}),
        "perplexity is 7.0, not 20.08",
    ),
    "-4096": ("ruler", put(f"{CELL}.column", "-4096"), "column '-4096' is not a length"),
    "0 tokens": ("ruler", put(f"{CELL}.column", "0"), "column '0' is not a length"),
    "not asked": ("passkey", put(f"{CELL}.row", "7"), f"{CELL}: row is 7, its flag has 0, 50"),
    "more than asked": (
        "passkey",
        put(CELL, {"row": "0", "column": "512", "num_samples": 20, "score": 30.0}),
        f"{CELL}: num_samples is 20, its flag has 10",
    ),
    "cell twice": ("ruler", twice, "two cells of one row and column, 'vt' and '4096'"),
    "depth twice": ("passkey", put("results.0.cells.1.row", "0.0"), "row '0.0' is not a depth"),
    "positions twice": (
        "position_loss",
        put(f"{CELL}.row", "0-512"),
        "row '256-512' is not of positions from 512 on",
    ),
    "mean": (
        "ruler",
        put("results.0.means.4096", 12.0),
        "means.4096 is 12.0, the mean of its cells is 70.0",
    ),
    "means of others": ("ruler", put("results.0.means.7", 1), "means must be of the columns 4096"),
    "positions": ("ruler", put("results.0.max_positions", -1), "max_positions: .*to 1, not -1"),
    "parameters": ("ruler", put("results.0.model.num_parameters", 0), "num_parameters.*1, not 0"),
    "flag": ("ruler", put("results.0.config.num_samples", -5), "num_samples must be at least 1"),
    "by": ("passkey", put("results.0.config.by", "x"), "flag 'by' is 'x', not argmax or decoding"),
    "date": ("ruler", put("results.0.date", "today"), "results.0: .*'today'"),
    "no name": ("ruler", put("results.0.checkpoint", ""), "checkpoint: .*at least 1 character"),
    "megabyte": ("ruler", put("results.0.checkpoint", "n" * 10**6), "at most 1000 characters"),
    "key": ("ruler", put("results.0.colour", 1), "results.0.colour: Unexpected"),
    "key of all": ("ruler", put("colour", 1), "key colour is not known"),
    "rows": ("ruler", put("results.0.kind.rows", "depths"), "flag 'by' is None|kind.rows is"),
    "kind": ("ruler", put("kind", "passkey"), "kind.name is 'ruler', the file's kind is 'passkey'"),
    "kind 5": ("ruler", put("kind", 5), "kind is 5, it must be a string"),
    "report": ("ruler", put("kind", "report"), "the file's kind is 'report'"),
    "version": ("ruler", put("format_version", 3), "format_version 3, this version reads 2"),
    "version 2.0": (
        "ruler",
        put("format_version", 2.0),
        "format_version is 2.0, it must be an int",
    ),
    "no version": (
        "ruler",
        lambda values: values.pop("format_version"),
        "format_version is missing",
    ),
    "no kind": ("ruler", lambda values: values.pop("kind"), "key kind is missing"),
    "nothing": ("ruler", put("results", []), "results is empty"),
    "deep": ("ruler", put("results.0.notes", json.loads("[" * 80 + "]" * 80)), "nested too deeply"),
}
TEXTS = {
    "cut": (lambda text: text[:-50], "is not JSON .*line 1 column"),
    "NaN": (lambda text: text.replace("90.0", "NaN", 1), "NaN is not a JSON number"),
    "1e999": (lambda text: text.replace("90.0", "1e999", 1), "1e999.* is beyond a number's range"),
    "key twice": (
        lambda text: text.replace('"score": 90.0', '"score": 90.0, "score": 9.0', 1),
        "key 'score' stands there twice",
    ),
    "kind twice": (lambda text: text.replace("{", '{"kind": "ruler", ', 1), "key 'kind' stands"),
    "half a character": (
        lambda text: text.replace('"a"', '"\\ud800"', 1),
        "is not JSON .*surrogate",
    ),
    "byte order": (lambda text: f"\ufeff{text}", "is not JSON .*BOM"),
}


def refused(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of ``evaluate report`` on a folder in which one file holds ``text``."""
    saved(loss_results(), folder / "loss.json")
    file = folder / "mine.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", "report", str(folder)])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count(str(file)) == err.count("\n") == 1, err
    assert len(err) < 700
    return err


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_by_one_message(
    name: str, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, change, said = DAMAGES[name]
    values = file_of(files, kind)
    change(values)
    assert re.search(said, refused(json.dumps(values), tmp_path, capsys))


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_is_no_json_is_refused_by_one_message(
    name: str, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = TEXTS[name]
    text = json.dumps(file_of(files, "ruler"))
    assert change(text) != text
    assert re.search(said, refused(change(text), tmp_path, capsys))


def shuffled(value: Any, rng: random.Random) -> Any:
    """The same JSON with its keys in another order."""
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: shuffled(one, rng) for key, one in items}
    return [shuffled(one, rng) for one in value] if isinstance(value, list) else value


def test_the_order_of_keys_says_nothing(files: list[Path], tmp_path: Path) -> None:
    for seed, path in enumerate(files):
        values = json.loads(path.read_text())
        for changed in (
            json.loads(json.dumps(values, sort_keys=True)),  # as jq -S writes it
            shuffled(values, random.Random(seed)),
        ):
            (tmp_path / "mine.json").write_text(json.dumps(changed))
            found = gather_report([tmp_path], command="").gathered
            expected = gather_report([path], command="").gathered
            assert found.notices == ()
            found_results, results = (
                sorted((one.result for one in each.measurements), key=lambda r: r.checkpoint)
                for each in (found, expected)
            )
            assert [one.cells for one in found_results] == [one.cells for one in results]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        yield (*path, key)
        if isinstance(one, dict | list):
            yield from places(one, (*path, key))


def damaged(values: Json, rng: random.Random) -> str:
    """A copy, as text, in which one value is strange, gone or doubled, a key has another name, or
    the end is missing.
    """
    values = copy.deepcopy(values)
    *outer, last = rng.choice(list(places(values)))
    home: Any = values
    for key in outer:
        home = home[key]
    how = rng.random()
    if how < 0.25:
        del home[last]
    elif how < 0.35:
        if isinstance(home, list):
            home.append(copy.deepcopy(home[last]))
        else:
            home[f"{last}_"] = home.pop(last)
    elif how < 0.4:
        text = json.dumps(values)
        return text[: rng.randrange(len(text) // 4, len(text))]
    elif how < 0.6 and isinstance(home[last], int | float):
        home[last] = home[last] * rng.choice((-1, 10, 1000, 0.3)) + rng.choice((0, 1))
    else:
        home[last] = rng.choice(STRANGE)
    return json.dumps(shuffled(values, rng) if rng.random() < 0.3 else values)


def check_plausible(report: Report) -> None:
    """Raise AssertionError where the tables have a figure that cannot be."""
    for section in report.sections:
        is_loss = section.title.startswith("Loss")
        for table in section.tables:
            for row in (*table.rows, *table.footer):
                cells = [one.text for place, one in enumerate(row) if table.holds_figures(place)]
                text = " ".join(cells).replace(",", "")
                assert not re.search(r"nan|inf|(?<![\w.])-\d", text), row
                numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
                assert is_loss or all(number <= 100 for number in numbers), row


def damage_and_show(path: Path, folder: Path, number: int) -> int:
    """How many of ``number`` damages were refused; what was not is shown, and said to be."""
    rng = random.Random(f"{path.parent.name}/{path.name}")
    values = json.loads(path.read_text())
    file, messages = folder / "mine.json", []
    saved(loss_results(), folder / "loss.json")
    console = Console(file=open("/dev/null", "w"))  # noqa: SIM115
    for _ in range(number):
        file.write_text(damaged(values, rng))
        try:
            report = gather_report([folder], command="")
        except InputError as error:
            messages.append(str(error))
            continue
        found = [one for one in report.gathered.measurements if one.source == file]
        assert found or any(str(file) in notice for notice in report.gathered.notices)
        check_plausible(report)
        print_report(report, console)
        for one in found:
            is_loss = one.result.kind.rows == "positions"
            console.print(loss_table([one.result]) if is_loss else score_table(one.result))
    assert all(text.count(str(file)) == 1 and "\n" not in text for text in messages)
    return len(messages)


def test_a_damaged_file_is_refused_or_shown(files: list[Path], tmp_path: Path) -> None:
    numbers = [damage_and_show(path, tmp_path, 8) for path in files]
    assert all(1 < number <= 8 for number in numbers)  # else they would all be of one sort
    assert sum(numbers) < 8 * len(files) - 5


@pytest.mark.slow
@pytest.mark.parametrize("number", range(NUM_FILES))
def test_every_damaged_file_is_refused_or_shown(
    files: list[Path], number: int, tmp_path: Path
) -> None:
    assert len(files) == NUM_FILES
    damage_and_show(files[number], tmp_path, 100)


NAMES = (
    "$\\frac{",
    "<script>document.title='run'</script>",
    "\u202etxt.evil\u2066",
    "n" * 500,
    "a\nb\tc\x1b[2J",
    "\u901a\u4e49 \U0001f600",
    "' onerror='x",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_text(name: str, files: list[Path], tmp_path: Path) -> None:
    values = file_of(files, "ruler")
    task = values["results"][0]["cells"][0]["row"]
    text = json.dumps(values).replace(json.dumps(task), json.dumps(name))
    values = json.loads(text)
    values["results"][0]["checkpoint"] = name
    values["results"][0]["kind"]["title"] = name
    values["results"][1]["kind"]["title"] = name
    (tmp_path / "mine.json").write_text(json.dumps(values))
    report = gather_report([tmp_path], command="")
    page = report_page(report)
    assert len(report.sections[0].pictures) == 1
    assert "<script" not in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b]", page)
    console = Console(record=True, width=3000, file=open("/dev/null", "w"))  # noqa: SIM115
    print_report(report, console)

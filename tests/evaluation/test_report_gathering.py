"""What is found under folders, how checkpoints are told apart, and what bad input is told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.evaluation.report.measurement import conditions
from megatron_ultralong.evaluation.report.report import gather, load_results
from megatron_ultralong.evaluation.report.sections import sections
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import open_journal
from tests.evaluation.results import (
    loss_of,
    loss_results,
    passkey_result,
    record,
    saved,
    task_result,
)

GRID = {512: 10, 1024: 5}


def passkey(name: str = "after", folder: str = "", **flags: object) -> Result:
    return passkey_result(name, 2048, GRID, model=record(name, folder=folder), **flags)


def killed_evaluation(output: Path) -> None:
    """RULER that is stopped after two samples; it leaves ``.OUTPUT.partial``."""
    with open_journal(output, "ruler", {"checkpoint": "after"}, is_main=True) as journal:
        assert journal.folder is not None
        saved(passkey("half"), journal.folder / "passkey.json")
        journal.add("a", {"score": 1.0})
        journal.add("b", {"score": 0.0})
        raise KeyboardInterrupt


def labels(folder: Path) -> list[str]:
    return [one.label for one in gather([folder]).measurements]


def test_results_are_found_whatever_their_names_and_in_order(tmp_path):
    saved(passkey_result("b", 4096, GRID), tmp_path / "deep" / "er" / "of b.json")
    saved(passkey_result("a", 8192, GRID), tmp_path / "a.json")
    saved(loss_results(), tmp_path / "z" / "loss.json")
    found = gather([tmp_path / "a.json", tmp_path, tmp_path / "z"])  # nothing is taken twice
    assert [(one.result.kind.name, one.label) for one in found.measurements] == [
        ("position_loss", "before"),
        ("position_loss", "after"),
        ("passkey", "b"),
        ("passkey", "a"),
    ]
    assert found.notices == ()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "manifest.json").write_text("{}")
    found = gather([tmp_path / "a.json", tmp_path / "rows"])
    assert found.notices == (f"{tmp_path / 'rows'} holds no results of an evaluation",)


def test_other_files_are_left_alone(tmp_path):
    saved(passkey(), tmp_path / "passkey.json")
    (tmp_path / "loss.json").write_text('{"loss": [1.5, 1.25]}')  # of another program
    (tmp_path / "tokenizer.json").write_text("{ not JSON")
    (tmp_path / "evaluation.json").write_text('{"kind": "passkey", "checkpoint": "after"}')
    (tmp_path / "report.json").write_text('{"kind": "report", "format_version": 1}')
    (tmp_path / "later.json").write_text('{"kind": "riddles", "format_version": 1}')
    found = gather([tmp_path])
    assert len(found.measurements) == 1
    assert found.notices == (
        f"{tmp_path}/later.json holds 'riddles', which this version does not know: left out",
        f"{tmp_path}/tokenizer.json cannot be read as JSON: left out",
    )


def test_an_unfinished_evaluation_is_left_out_and_named(tmp_path):
    saved(passkey("done"), tmp_path / "passkey" / "passkey.json")
    with pytest.raises(KeyboardInterrupt):
        killed_evaluation(tmp_path / "r")
    found = gather([tmp_path])
    assert [one.label for one in found.measurements] == ["done"]
    (notice,) = found.notices
    assert f"{tmp_path}/.r.partial is not finished (ruler of 'after', 2 samples noted)" in notice
    assert "the command that started it continues there" in notice
    for run in (tmp_path / ".r.partial", tmp_path / ".r.partial" / "passkey.json"):
        with pytest.raises(InputError, match=r"\.r\.partial.* belongs to an unfinished evaluation"):
            gather([run])
    shutil.rmtree(tmp_path / "passkey")
    with pytest.raises(InputError, match=r"no results in .*; .*\.r\.partial is not finished"):
        gather([tmp_path])


def test_two_results_of_one_checkpoint_are_both_shown(tmp_path):
    saved(passkey(), tmp_path / "first" / "passkey.json")
    saved(passkey(seed=7), tmp_path / "second" / "passkey.json")
    found = gather([tmp_path])
    assert [one.label for one in found.measurements] == ["after · first", "after · second"]
    (notice,) = found.notices
    assert "two results of 'after' on passkey retrieval" in notice
    assert str(tmp_path / "second" / "passkey.json") in notice
    assert notice.endswith("both are shown; --seed: 1234 and 7")
    # Other numbers were hidden: they are not held against each other.
    one, other = sections(found.measurements)
    assert one.title == "Passkey retrieval, conditions 1 of 2"
    assert "seed: 1234 and 7" in one.remarks[0]
    assert "seed: 7 and 1234" in other.remarks[0]
    assert one.pictures[0].name != other.pictures[0].name


def test_more_samples_of_the_same_questions_stand_in_one_table(tmp_path):
    scores = {("vt", "4096"): 60.0, ("cwe", "4096"): 80.0}
    few = task_result("ruler", "after", 4096, scores, num_samples=50, seed=42)
    saved(few, tmp_path / "few" / "ruler.json")
    scores = {("vt", "4096"): 91.0, ("vt", "8192"): 85.0}
    saved(task_result("ruler", "after", 4096, scores, seed=42), tmp_path / "many" / "ruler.json")
    found = gather([tmp_path])
    assert "num-samples: 50 and 100" in found.notices[0]
    assert "--tasks: vt, cwe and vt" in found.notices[0]
    (section,) = sections(found.measurements)
    means, by_task = section.tables
    assert "50 or 100 questions a cell" in by_task.note
    marked = [cell.text for row in by_task.rows for cell in row if cell.is_best]
    assert marked == ["91.0"]
    # 70.0 and 91.0 are the means, of two tasks and of one: neither is better.
    assert not any(cell.is_best for row in means.rows for cell in row)
    assert "Of different tasks, 2, 1 of them" in means.note


def test_copies_are_shown_once(tmp_path):
    first = saved(passkey(), tmp_path / "a" / "passkey.json")
    (tmp_path / "b").mkdir()
    copy = shutil.copy(first, tmp_path / "b" / "passkey.json")
    (tmp_path / "b" / "link.json").symlink_to(first)
    found = gather([tmp_path])
    assert [one.label for one in found.measurements] == ["after"]
    assert found.notices == (f"{copy} holds the result of {first}: shown once",)


@pytest.mark.parametrize(
    ("folders", "positions", "shown"),
    [
        (("runs/a", "runs/b"), (2048, 2048), ["run (runs/a)", "run (runs/b)"]),
        (("run", "run"), (2048, 4096), ["run (trained for 2,048)", "run (trained for 4,096)"]),
        (("run", "run"), (2048, 2048), ["run (weights {0})", "run (weights {1})"]),
    ],
)
def test_checkpoints_of_one_name_are_told_apart(tmp_path, folders, positions, shown):
    models = [
        dataclasses.replace(record("run", folder=folder), weights=weights * 16)
        for folder, weights in zip(folders, "ab", strict=True)
    ]
    for number, (model, max_positions) in enumerate(zip(models, positions, strict=True)):
        result = passkey_result("run", max_positions, GRID, model=model)
        saved(result, tmp_path / f"{number}" / "passkey.json")
        scores = {("vt", "4096"): 90.0}
        result = task_result("ruler", "run", max_positions, scores)
        result = dataclasses.replace(result, model=model)
        saved(result, tmp_path / f"{number}" / "ruler.json")
    found = gather([tmp_path])
    expected = [text.format("a" * 8, "b" * 8) for text in shown]
    assert [one.label for one in found.measurements] == [*expected, *expected]
    (notice,) = found.notices
    assert notice.startswith("2 checkpoints are called 'run': they are shown as '")
    assert "--load NAME=FOLDER" in notice


def test_the_same_weights_under_two_names_are_one_checkpoint(tmp_path):
    first = dataclasses.replace(record("a"), digest="d" * 64)
    moved = dataclasses.replace(first, weights="of other times", folder="elsewhere")
    saved(passkey_result("a", 2048, GRID, model=first), tmp_path / "a" / "passkey.json")
    saved(passkey_result("b", 2048, GRID, model=moved, seed=7), tmp_path / "b" / "passkey.json")
    ruler = task_result("ruler", "b", 2048, {("vt", "512"): 1.0})
    old = dataclasses.replace(ruler, model=dataclasses.replace(moved, digest=""))
    saved(old, tmp_path / "ruler.json")  # from before results stated what the files hold
    found = gather([tmp_path])
    assert [one.label for one in found.measurements] == ["a = b · a", "a = b · b", "a = b"]
    assert found.notices[0] == (
        f"'a' and 'b' are the same weights ({'d' * 16}): they are one checkpoint, 'a = b'"
    )
    assert "two results of 'a' on passkey retrieval" in found.notices[1]
    other = dataclasses.replace(first, digest="e" * 64)
    saved(passkey_result("c", 2048, GRID, model=other), tmp_path / "c" / "passkey.json")
    assert "c" in labels(tmp_path)


def test_the_same_weights_with_another_rotary_embedding_are_another_checkpoint(tmp_path):
    first = dataclasses.replace(record("a"), digest="d" * 64, rotary="not scaled")
    scaled = dataclasses.replace(first, folder="elsewhere", rotary="yarn x4")
    saved(passkey_result("a", 2048, GRID, model=first), tmp_path / "a" / "passkey.json")
    old = dataclasses.replace(first, rotary="")  # from before results stated it
    ruler = task_result("ruler", "a", 2048, {("vt", "512"): 1.0})
    saved(dataclasses.replace(ruler, model=old), tmp_path / "ruler.json")
    assert labels(tmp_path) == ["a", "a"]
    saved(passkey_result("b", 2048, GRID, model=scaled), tmp_path / "b" / "passkey.json")
    found = gather([tmp_path])
    assert [one.label for one in found.measurements[:2]] == ["a", "b"]
    assert not any("same weights" in notice for notice in found.notices)
    stated = [conditions(one).get("rotary embedding") for one in found.measurements]
    assert stated == ["not scaled", "yarn x4", None]


def test_a_result_that_states_no_model_is_of_the_one_checkpoint_of_its_name(tmp_path):
    saved(passkey("run"), tmp_path / "passkey.json")
    old = dataclasses.replace(task_result("ruler", "run", 2048, {("vt", "512"): 1.0}), model=None)
    saved(old, tmp_path / "ruler.json")
    assert labels(tmp_path) == ["run", "run"]


def test_losses_on_other_rows_are_not_compared(tmp_path):
    saved(loss_results(), tmp_path / "one" / "loss.json")
    saved(loss_of("long", 4096, (3, 3, 3, 3), "other rows"), tmp_path / "two" / "loss.json")
    # The rows of "one" under another path: their manifest is the same.
    moved = dataclasses.replace(
        loss_of("moved", 8192, (3.5, 3.5, 3.5, 3.5), "other rows"),
        material=loss_results()[0].material,
    )
    saved(moved, tmp_path / "three" / "loss.json")
    first, second = sections(gather([tmp_path]).measurements)
    assert [name.split(",")[0] for name in first.tables[0].header[1:]] == [
        "before",
        "after",
        "moved",
    ]
    assert [name.split(",")[0] for name in second.tables[0].header[1:]] == ["long"]
    assert "manifest.json: of rows and of other rows" in first.remarks[0]


@pytest.mark.parametrize("kind", ["ruler", "harness", "nolima", "infinitebench"])
def test_a_task_measured_in_two_ways_is_not_compared(tmp_path, kind):
    """The table names one metric a row: a harness has other versions and examples of its tasks."""
    scores = {("t", "512"): 50.0, ("u", "512"): 60.0}
    for name, metric in (("a", "0-shot, version 1"), ("b", "5-shot, version 1"), ("c", "")):
        one = task_result(kind, name, 2048, scores if metric else {("u", "512"): 60.0})
        metrics = {**one.metrics, **({"t": metric} if metric else {})}
        result = dataclasses.replace(one, metrics=metrics)
        saved(result, tmp_path / name / f"{kind}.json")
    first, second = sections(gather([tmp_path]).measurements)
    names = [name.split(",")[0] for one in (first, second) for name in one.tables[-1].header]
    assert [name for name in names if name in ("a", "b", "c")] == ["a", "c", "b"]
    assert "(t: 0-shot, version 1 and 5-shot, version 1)" in first.remarks[0]
    assert [table.tables[-1].rows[0][1].text for table in (first, second)] == [
        "0-shot, version 1",
        "5-shot, version 1",
    ]


def test_rows_are_called_by_their_split(tmp_path):
    """Rows of a data set made for evaluation alone stand in ``train``: nobody trained on them."""
    one = loss_results()[0]
    saved(dataclasses.replace(one, config={**one.config, "split": "train"}), tmp_path / "loss.json")
    (section,) = sections(gather([tmp_path]).measurements)
    assert "over 8 rows of 2,048 tokens (split 'train')" in section.tables[0].note
    assert "training" not in section.tables[0].note


def test_losses_in_other_bins_stand_in_one_table(tmp_path):
    saved(loss_results(), tmp_path / "one" / "loss.json")
    one = loss_of("third", 1024, (3.0, 3.0, 3.0, 3.0))
    halves = (*one.cells[:3], dataclasses.replace(one.cells[3], row="1024-1536"))
    third = dataclasses.replace(one, cells=halves)
    saved(third, tmp_path / "two" / "loss.json")
    (section,) = sections(gather([tmp_path]).measurements)
    rows = [[cell.text for cell in row] for row in section.tables[0].rows]
    assert [row[0] for row in rows][-2:] == ["1,024 – 1,536", "1,024 – 2,048"]  # noqa: RUF001
    assert rows[-2][1:] == ["–", "3.000 ± 0.010 (20.1)", "–"]  # noqa: RUF001


def test_bad_input_gets_one_message(tmp_path):
    good = saved(passkey(), tmp_path / "passkey.json")
    with pytest.raises(InputError, match=r"^RUN is needed: folders that"):
        gather([])
    with pytest.raises(InputError, match=r"RUN .*nowhere does not exist"):
        gather([tmp_path, tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^no results in .*empty: name folders that `ultralong"):
        gather([tmp_path / "empty"])
    torn = tmp_path / "torn" / "of_after.json"
    torn.parent.mkdir()
    torn.write_text(good.read_text()[:-40])
    with pytest.raises(InputError, match=r"of_after\.json is not JSON \(.*line 91.*evaluate again"):
        gather([tmp_path])
    torn.unlink()
    (tmp_path / "torn" / "ruler.json").write_text("")  # a name of this project, and nothing in it
    with pytest.raises(InputError, match=r"ruler\.json is not JSON .*evaluate again, or restore"):
        gather([tmp_path])
    values = json.loads(good.read_text())
    good.write_text(json.dumps({**values, "format_version": 9}, indent=2))
    with pytest.raises(InputError, match=r"'passkey' of format_version 9, this version reads 2"):
        gather([good])
    del values["results"][0]["cells"]
    good.write_text(json.dumps(values, indent=2))
    with pytest.raises(InputError, match=r"passkey\.json: results\.0\.cells: Field required"):
        gather([good])
    plan = tmp_path / "plan.json"
    plan.write_text('{"kind": "plan", "format_version": 1}')
    with pytest.raises(InputError, match=r"plan\.json holds 'plan', not a result of an evaluation"):
        load_results(plan)
    plan.write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"plan\.json holds other JSON, not a result of an"):
        gather([plan])


def test_the_verb_prints_tables_and_writes_the_page(tmp_path, capsys):
    saved(loss_results(), tmp_path / "in" / "loss.json")
    output = tmp_path / "page"
    words = ["evaluate", "report", str(tmp_path / "in"), "--output", str(output)]
    cli.main([*words, "--title", "Before & after"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Before & after" in shown
    assert f"report: {output}/index.html" in shown
    assert sorted(path.name for path in output.iterdir()) == [
        "index.html",
        "loss.png",
        "report.json",
    ]
    assert json.loads((output / "report.json").read_text())["command"].startswith(
        f"ultralong evaluate report {tmp_path}/in --output"
    )
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert "holds 3 entries, index.html among them" in capsys.readouterr().err

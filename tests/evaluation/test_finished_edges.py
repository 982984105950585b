"""Finished evaluations: copies, pages beside the weights, versions of prompts, two at once."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.evaluation import commands, finished, loss
from megatron_ultralong.evaluation.models.facts import model_facts
from megatron_ultralong.evaluation.options import ModelsConfig
from megatron_ultralong.evaluation.results.asked_file import Asked, write_asked
from megatron_ultralong.program.errors import InputError
from tests.evaluation.test_finished import PASSKEY, change_weights, command, here, inputs, said

__all__ = ["here", "inputs"]

DONE = "already evaluated, see out/one\n"


@pytest.mark.parametrize("model", ["hf", "base"])
def test_a_copy_of_a_checkpoint_is_the_same(here: Path, model: str) -> None:
    line = f"{PASSKEY} one={model} --output out/one"
    said(line)
    copy = here / "out" / model
    shutil.copytree(here / model, copy, copy_function=shutil.copyfile)
    of_copy = line.replace(f"={model}", f"=out/{model}")
    assert said(of_copy) == f"one: {DONE}"
    files = [*copy.rglob("*.safetensors"), *copy.rglob("*.distcp")]
    for file in files:
        change_weights(file)
    refusal = said(of_copy, 2)
    words = f"--load one=out/{model} holds other weights than at that time ('"
    assert f"--output out/one holds another evaluation: {words}" in refusal


def test_pages_beside_the_weights_are_no_weights(here: Path) -> None:
    shutil.copytree(here / "hf", here / "out" / "hf")
    models = ModelsConfig(load=(str(here / "out" / "hf"),))
    first = finished.asked(commands.PasskeyCommand(models))
    for name in ("README.md", "notes.txt", "picture.png"):
        (here / "out" / "hf" / name).write_text("x")
    assert finished.asked(commands.PasskeyCommand(models)) == first
    os.utime(here / "out" / "hf" / "model.safetensors", ns=(0, 0))
    assert finished.asked(commands.PasskeyCommand(models)) != first


def test_a_copy_does_not_hide_another_difference(here: Path) -> None:
    said(f"{PASSKEY} one=hf --output out/one")
    shutil.copytree(here / "hf", here / "out" / "hf", copy_function=shutil.copyfile)
    refusal = said(f"{PASSKEY} one=out/hf --seed 7 --output out/one", 2)
    assert "--seed was 1234, now it is 7" in refusal


@pytest.mark.parametrize("name", [*{*commands.FLAGS} - {"chat", "harness", "loss"}])
def test_prompts_that_are_made_here_state_a_version(name: str) -> None:
    """Those of the others are in rows, or made by the harness, whose version is stated."""
    assert finished.question(name, commands.FLAGS[name]())["version of prompts"] >= 1


def test_a_finished_one_is_told_before_what_decides_no_figure(here: Path) -> None:
    line = f"{PASSKEY} one=hf --beyond-trained-positions --output out/one".replace("256", "4608")
    said(line)
    assert said(line.replace(" --beyond-trained-positions", "")) == f"one: {DONE}"


def test_a_long_name_in_a_result_is_shortened(here: Path) -> None:
    line = f"{PASSKEY} one=hf --output out/one"
    said(line)
    file = here / "out" / "one" / "passkey.json"
    values = json.loads(file.read_text())
    asked = values["results"][0]["asked"]
    for hostile in ({"k" * 100_000: 1}, {"seed": {"k" * 100_000: 1}}, {"k": "v" * 100_000}):
        values["results"][0]["asked"] = asked | hostile
        file.write_text(json.dumps(values))
        assert len(said(line, 2)) < 1_500


@pytest.mark.parametrize("is_same", [True, False])
def test_losses_that_finish_meanwhile_are_compared(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_same: bool
) -> None:
    """The same command twice at once: the later one finds the answer where it would write it."""
    line = command("loss", "one=hf")
    evaluate = loss.evaluate_loss
    measure = loss.measure_position_loss

    def twice(config: Any, scorers: Any, *others: Any) -> Any:
        monkeypatch.setattr(loss, "measure_position_loss", first_other)
        return evaluate(config, scorers, *others)

    def first_other(*arguments: Any) -> Any:
        monkeypatch.setattr(loss, "measure_position_loss", measure)
        monkeypatch.setattr(loss, "evaluate_loss", evaluate)
        said(line if is_same else f"{line} --num-samples 1")
        return measure(*arguments)

    monkeypatch.setattr(loss, "evaluate_loss", twice)
    text = said(line, 0 if is_same else 2)
    if is_same:
        assert text.endswith("one: already evaluated, see out/loss\n")
    else:
        assert "--output out/loss holds another evaluation: --num-samples was 1, now it" in text


def test_an_evaluation_that_has_no_result_is_finished_too(here: Path) -> None:
    """One of the harness whose scores are none that a result could hold: it was refused."""
    folder = here / "out" / "two" / "one"
    folder.mkdir(parents=True)
    models = ModelsConfig(load=("one=hf", "other=base"))
    config = commands.FLAGS["harness"](tasks=("own",), output="out/two")
    line = commands.HarnessCommand(models, config)
    asked = finished.asked(line)["one"]
    write_asked(folder, Asked("one", asked, model_facts("one=hf", "bf16").record.digest))
    assert finished.unfinished(line) == ("other=base",)
    os.utime(here / "hf" / "model.safetensors", ns=(0, 0))
    assert finished.unfinished(line) == ("other=base",), "weights of the same contents"
    other = dataclasses.replace(line, harness=dataclasses.replace(config, limit=3))
    with pytest.raises(InputError, match="holds another evaluation: --limit was 0, now it is 3"):
        finished.unfinished(other)
    (folder / "asked.json").write_text("{}")
    with pytest.raises(InputError, match=r"asked\.json: key checkpoint is missing: restore the"):
        finished.unfinished(line)
    with pytest.raises(InputError, match="holds 1 entries"):  # it is of the harness alone
        finished.unfinished(
            commands.PasskeyCommand(models, commands.FLAGS["passkey"](output="out/two"))
        )

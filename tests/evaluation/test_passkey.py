from __future__ import annotations

import dataclasses
import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.evaluation.models.interface import Scores
from megatron_ultralong.evaluation.models.language_models import (
    HuggingFaceModel,
    open_language_models,
    open_scorers,
)
from megatron_ultralong.evaluation.options import ModelsConfig, PasskeyConfig
from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.evaluation.retrieval.grid import evaluate_grid, passkey_grid
from megatron_ultralong.program.errors import InputError
from tests.evaluation.results import subject_of

from .conftest import make_llama

CONFIG = PasskeyConfig(lengths=(136, 160), depths=(0.0, 100.0), num_samples=5, micro_batch_size=4)
MANY = dataclasses.replace(CONFIG, num_samples=50, micro_batch_size=25)


def measure_passkey(config: PasskeyConfig, model, encode) -> Result:
    return evaluate_grid(passkey_grid(config, encode), subject_of(model))


class Recorder:
    """A scorer that keeps the rows it was given, and whether their last five ids are hits."""

    def __init__(self, scorer: HuggingFaceModel) -> None:
        self.scorer = scorer
        self.name, self.max_positions = scorer.name, scorer.max_positions
        self.vocab_size, self.is_main = scorer.vocab_size, scorer.is_main
        self.rows: list[np.ndarray] = []
        self.retrieved: list[bool] = []

    def score(self, tokens: np.ndarray) -> Scores:
        scores = self.scorer.score(tokens)
        self.rows.extend(tokens)
        self.retrieved.extend(scores.correct[:, -5:].all(axis=1).tolist())
        return scores


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> HuggingFaceModel:
    folder = tmp_path_factory.mktemp("llama") / "untrained"
    make_llama(max_positions=192).save_pretrained(folder)
    return scorer_of(folder)


def scorer_of(folder: Path) -> HuggingFaceModel:
    scorer = HuggingFaceModel(folder)
    scorer.folder = folder
    return scorer


@pytest.fixture(scope="module")
def half_trained(scorer, encode, tmp_path_factory) -> HuggingFaceModel:
    """A model that has learnt every second prompt of the grid by heart."""
    recorder = Recorder(scorer)
    measure_passkey(MANY, recorder, encode)
    model = make_llama(max_positions=192)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    groups = [
        torch.from_numpy(np.stack([row for row in recorder.rows[::2] if row.size == length]))
        for length in MANY.lengths
    ]
    for _ in range(40):
        for tokens in groups:
            logits = model(input_ids=tokens).logits[:, -6:-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, -5:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("llama") / "half-trained"
    model.save_pretrained(folder)
    return scorer_of(folder)


@pytest.mark.slow
def test_argmax_of_one_forward_equals_greedy_decoding(half_trained, encode):
    recorder = Recorder(half_trained)
    result = measure_passkey(MANY, recorder, encode)
    decoded = []
    for row in recorder.rows:
        prompt, answer = torch.from_numpy(row[None, :-5]), row[-5:]
        written = half_trained._model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False
        )
        decoded.append(np.array_equal(written[0, -5:].numpy(), answer))
    assert len(decoded) == 200
    assert decoded == recorder.retrieved
    by_cell = np.asarray(decoded).reshape(len(result.cells), MANY.num_samples).sum(axis=1)
    assert [cell.score for cell in result.cells] == (2.0 * by_cell).tolist()  # of fifty
    # Otherwise the comparison would not see hits and misses.
    assert 20 <= sum(decoded) <= 180
    assert any(100 * cell.figures["token_accuracy"] > cell.score for cell in result.cells)


def test_a_cell_is_the_same_in_every_grid_and_batch(scorer, encode):
    recorders = Recorder(scorer), Recorder(scorer)
    measure_passkey(CONFIG, recorders[0], encode)
    alone = PasskeyConfig(lengths=(160,), depths=(100.0,), num_samples=3, micro_batch_size=1)
    measure_passkey(alone, recorders[1], encode)
    # The last cell of the grid, and the first three of its five prompts.
    np.testing.assert_array_equal(recorders[0].rows[-5:-2], recorders[1].rows)
    keys = {tuple(row[-5:]) for row in recorders[0].rows}
    assert len(keys) == 20


def test_another_seed_gives_other_keys_and_a_haystack_other_text(scorer, encode, tmp_path):
    (tmp_path / "haystack.txt").write_text("The sky is sun and moon. " * 40)
    ways = [
        CONFIG,
        dataclasses.replace(CONFIG, seed=1),
        dataclasses.replace(CONFIG, haystack=str(tmp_path / "haystack.txt")),
    ]
    plain, seeded, own = (Recorder(scorer) for _ in ways)
    for way, recorder in zip(ways, (plain, seeded, own), strict=True):
        measure_passkey(way, recorder, encode)
    assert not np.array_equal(plain.rows[0][-5:], seeded.rows[0][-5:])
    np.testing.assert_array_equal(plain.rows[0][-5:], own.rows[0][-5:])
    assert not np.array_equal(plain.rows[0], own.rows[0])


@pytest.mark.slow  # test_needle.py has the same in little
def test_decoding_in_the_training_layout_finds_what_argmax_finds(half_trained, encode, tmp_path):
    import_checkpoint(ImportConfig(half_trained.folder, tmp_path / "megatron", tokenizer=False))
    models = ModelsConfig((str(tmp_path / "megatron"),), "fp32")
    found = {}
    for by, opened in (("argmax", open_scorers), ("decoding", open_language_models)):
        with opened(models) as (model,):
            measure_passkey(
                dataclasses.replace(MANY, by=by, output=str(tmp_path / by)), model, encode
            )
        lines = sorted(
            map(json.loads, (tmp_path / by / "samples.jsonl").open()),
            key=lambda x: (x["length"], x["depth"], x["number"]),
        )
        found[by] = [(line["is_retrieved"], line["first_wrong"]) for line in lines]
    assert len(found["argmax"]) == 200
    assert found["argmax"] == found["decoding"]
    # Otherwise the comparison would not see hits and misses.
    assert 20 <= sum(is_retrieved for is_retrieved, _ in found["argmax"]) <= 180


def evaluate(config: PasskeyConfig, model, encode, **limits: float) -> Result:
    subject = subject_of(model, model.folder, **limits)
    return evaluate_grid(passkey_grid(config, encode, "sha"), subject)


def test_files_are_written_and_read_back(scorer, encode, tmp_path, capsys):
    output = tmp_path / "passkey"
    config = dataclasses.replace(CONFIG, output=str(output))
    result = evaluate(config, scorer, encode)
    names = ["evaluation.json", "passkey.json", "passkey.png", "samples.jsonl"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert read_result(output / "passkey.json", "passkey") == result
    weights = LlamaForCausalLM.from_pretrained(scorer.folder).parameters()
    assert result.model is not None
    assert result.model.num_parameters == sum(weight.numel() for weight in weights)
    assert (result.model.engine, result.model.precision) == ("transformers", "fp32")
    values = json.loads((output / "passkey.json").read_text())
    (written,) = values["results"]
    assert [cell["score"] for cell in written["cells"]] == [c.score for c in result.cells]
    assert written["means"] == {column: result.mean(column) for column in ("136", "160")}
    png = (output / "passkey.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">2I", png[16:24]) == (800, 512)
    captured = capsys.readouterr()
    assert "Passkey retrieval of untrained" in captured.out
    assert "20 samples, 2,960 tokens" in captured.err
    with pytest.raises(InputError, match="holds 4 entries"):
        evaluate(config, scorer, encode)


def test_a_killed_evaluation_goes_on(half_trained, encode, tmp_path):
    class Mortal(Recorder):
        folder, lives = half_trained.folder, 3

        def score(self, tokens: np.ndarray) -> Scores:
            if self.lives == 0:
                raise KeyboardInterrupt
            self.lives -= 1
            return super().score(tokens)

    config = dataclasses.replace(CONFIG, output=str(tmp_path / "passkey"))
    mortal = Mortal(half_trained)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, mortal, encode)
    assert len(mortal.rows) == 10  # of the 10 of 136 tokens: 4, 4 and 2
    mortal.lives = 100
    more = dataclasses.replace(config, num_samples=6)
    resumed = evaluate(more, mortal, encode)
    assert len(mortal.rows) == 24
    whole = measure_passkey(dataclasses.replace(more, output=""), half_trained, encode)
    assert resumed.cells == whole.cells
    mortal.lives = 1
    config = dataclasses.replace(config, output=str(tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, mortal, encode)
    with pytest.raises(InputError, match="its seed was 1234, now it is 5"):
        evaluate(dataclasses.replace(config, seed=5), mortal, encode)


def test_what_costs_too_much_is_refused(scorer, encode):
    with pytest.raises(InputError, match=r"above --max-cost 1e-09: .* lower --num-samples"):
        evaluate(CONFIG, scorer, encode, max_cost=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "--lengths is needed"),
        ({"lengths": (160, 160)}, r"lengths must be different numbers, not \[160, 160\]"),
        ({"lengths": (8, 160)}, r"length \(8\) is too short for a passkey prompt"),
        ({"lengths": (160, 256)}, r"length 256 is beyond the 192 .*--beyond-trained-positions"),
        ({"depths": (50.0, 101.0)}, "depths must be between 0 and 100, not 101"),
        ({"depths": (0.5,)}, r"depths 0.5 would all .* are in per cent, 0 to 100; use --depths 50"),
        ({"depths": (0.0, 0.29, 1.0)}, "use --depths 0 29 100"),
        ({"num_samples": 0}, "num_samples must be at least 1, not 0"),
        ({"haystack": "absent.txt"}, r"haystack absent\.txt does not exist"),
    ],
)
def test_bad_input_is_refused(scorer, encode, changes, message):
    with pytest.raises(InputError, match=message):
        measure_passkey(dataclasses.replace(CONFIG, **changes), scorer, encode)


def test_a_length_that_some_keys_do_not_fit_is_refused_before_any_is_asked(
    scorer, encode, monkeypatch
):
    def uneven(text):
        return [*encode(text), *encode(text)[:1] * text.count("7")]

    def fits(length, number):
        config = dataclasses.replace(CONFIG, lengths=(length,), depths=(0.0,))
        try:
            passkey_grid(config, uneven).prompt(length, 0.0, number)
        except InputError:
            return False
        return True

    tight = next(length for length in itertools.count(20) if fits(length, 0))
    assert not all(fits(tight, number) for number in range(9))
    config = dataclasses.replace(CONFIG, lengths=(tight, 160), depths=(0.0,), num_samples=9)
    monkeypatch.setattr(scorer, "score", lambda *_: pytest.fail("one is asked"))
    with pytest.raises(InputError, match=rf"length \({tight}\) is too short"):
        measure_passkey(config, scorer, uneven)


def test_lengths_beyond_the_trained_positions_run_when_asked_for(scorer, encode, capsys):
    config = PasskeyConfig(
        lengths=(200,), depths=(50.0,), num_samples=1, beyond_trained_positions=True
    )
    assert measure_passkey(config, scorer, encode).lengths == (200,)
    told = capsys.readouterr().err
    assert "length 200 is beyond the 192 positions that checkpoint 'untrained'" in told
    assert "retrieval to fall to chance" in told


def test_a_haystack_that_is_too_short_is_refused(scorer, encode, tmp_path):
    (tmp_path / "short.txt").write_text("The sky is blue.")
    config = dataclasses.replace(CONFIG, haystack=str(tmp_path / "short.txt"))
    with pytest.raises(InputError, match=r"haystack \(\d+ tokens\) is too short"):
        measure_passkey(config, scorer, encode)


def test_a_tokenizer_that_does_not_fit_is_refused(encode, tmp_path):
    make_llama(max_positions=192, vocab_size=12).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"knows ids 0 to 11 \(vocab_size 12\): the tokenizer"):
        measure_passkey(CONFIG, HuggingFaceModel(tmp_path), encode)

from __future__ import annotations

import dataclasses
import json
import math
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.data.rows.indexed import IndexedWriter, token_dtype
from megatron_ultralong.evaluation import early_checks
from megatron_ultralong.evaluation.commands import LossCommand
from megatron_ultralong.evaluation.loss import evaluate_loss, measure_position_loss
from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel
from megatron_ultralong.evaluation.options import LossConfig, ModelsConfig
from megatron_ultralong.evaluation.results import pictures
from megatron_ultralong.evaluation.results.file import read_results
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.program.errors import InputError
from tests.evaluation.results import record
from tests.models import TEXT, prepare_rows, write_llama, write_tokenizer

from .conftest import SEPARATOR, VOCAB_SIZE, make_llama


@pytest.fixture(scope="module")
def config(data_folder) -> LossConfig:
    return LossConfig(data_path=str(data_folder), smallest_bin=8, micro_batch_size=2)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> HuggingFaceModel:
    folder = tmp_path_factory.mktemp("llama") / "other"
    make_llama(max_positions=24, seed=1).save_pretrained(folder)
    return HuggingFaceModel(folder)


def edges(result: Result) -> tuple[int, ...]:
    return (0, *(stop for _, stop in result.bins))


def test_the_mean_is_the_loss_that_transformers_computes(config, scorer, rows):
    (result,) = measure_position_loss(config, [scorer])
    model = make_llama(max_positions=64).eval()
    tokens = torch.from_numpy(rows)
    with torch.no_grad():
        expected = model(input_ids=tokens, labels=tokens).loss.item()
    # float32 on the other side too.
    assert result.mean_loss() == pytest.approx(expected, abs=1e-5)
    assert result.num_packed_rows == 5
    assert edges(result) == (0, 8, 16, 32, 64)


def test_bins_errors_and_accuracy_by_hand(config, scorer, rows):
    part = measure_position_loss(config, [scorer])[0].cells[-1]
    scores = scorer.score(rows)
    loss = scores.loss[:, 32:63].astype(np.float64)
    assert (part.row, part.num_samples) == ("32-64", 5 * 31)
    # The scorer saw the rows two at a time here, and five at a time there.
    assert part.score == pytest.approx(loss.mean(), abs=1e-5)
    # With equally many predictions in every row it is the standard error of the row means.
    assert part.error == pytest.approx(loss.mean(axis=1).std(ddof=1) / math.sqrt(5), abs=1e-5)
    assert part.figures["accuracy"] == scores.correct[:, 32:63].mean()
    assert part.figures["perplexity"] == math.exp(part.score)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_the_batch_does_not_matter(config, scorer, micro_batch_size):
    (expected,) = measure_position_loss(config, [scorer])
    config = dataclasses.replace(config, micro_batch_size=micro_batch_size)
    for actual, reference in zip(
        measure_position_loss(config, [scorer])[0].cells, expected.cells, strict=True
    ):
        # Matrix products of other shapes sum in another order.
        assert actual.score == pytest.approx(reference.score, abs=1e-5)


def test_block_leaves_out_the_first_token_of_every_document(config, scorer, rows):
    config = dataclasses.replace(config, document_mask="block", smallest_bin=64, num_samples=1)
    (result,) = measure_position_loss(config, [scorer], SEPARATOR)
    # Row 0 has separators at 11, 12 and 40, 41: the predictions made at 12 and 41 do not count.
    loss = np.delete(scorer.score(rows[:1]).loss[0].astype(np.float64), [12, 41])
    (part,) = result.cells
    assert part.num_samples == 61
    assert part.score == pytest.approx(loss.mean(), abs=1e-5)  # float32 forward
    assert part.error is None
    with pytest.raises(InputError, match="'block' needs the ids that separate documents"):
        measure_position_loss(config, [scorer])


def test_truncated_rows_give_the_same_loss_where_they_are(config, scorer):
    (short,) = measure_position_loss(dataclasses.replace(config, seq_length=32), [scorer])
    (whole,) = measure_position_loss(config, [scorer])
    assert edges(short) == (0, 8, 16, 32)
    for actual, reference in zip(short.cells[:2], whole.cells, strict=False):
        # Causal: the rest of the row changes nothing but the order of sums.
        assert actual.score == pytest.approx(reference.score, abs=1e-5)


def test_files_are_written_and_read_back(config, scorer, other, tmp_path, capsys):
    output = tmp_path / "new" / "loss"
    config = dataclasses.replace(config, output=str(output), beyond_trained_positions=True)
    records = [record("other"), record("base")]
    results = evaluate_loss(config, [other, scorer], records=records)
    assert [result.model for result in results] == records
    assert sorted(path.name for path in output.iterdir()) == ["loss.json", "loss.png"]
    assert [path.name for path in output.parent.iterdir()] == ["loss"]
    assert read_results(output / "loss.json") == tuple(results)
    assert {edges(result) for result in results} == {(0, 8, 16, 24, 32, 64)}
    values = json.loads((output / "loss.json").read_text())
    assert (values["kind"], values["format_version"]) == ("position_loss", 2)
    entry = values["results"][1]
    assert entry["config"]["data_path"] == config.data_path
    assert entry["cells"][0]["figures"]["perplexity"] == math.exp(entry["cells"][0]["score"])
    png = (output / "loss.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">2I", png[16:24]) == (1280, 736)
    printed = capsys.readouterr().out
    assert "Loss by position: 5 rows of 64 tokens" in printed
    assert f"{results[0].cells[0].score:.4f}" in printed
    with pytest.raises(InputError, match=r"holds 2 entries, loss\.json among them"):
        evaluate_loss(config, [other, scorer])


def test_losses_are_final_before_their_picture(config, scorer, tmp_path, monkeypatch):
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "loss_picture", killed)
    output = tmp_path / "loss"
    with pytest.raises(KeyboardInterrupt):
        evaluate_loss(dataclasses.replace(config, output=str(output)), [scorer])
    assert [path.name for path in output.iterdir()] == ["loss.json"]


def test_only_the_main_rank_prints_and_writes(config, llama_folder, tmp_path, capsys):
    scorer = HuggingFaceModel(llama_folder)
    scorer.is_main = False
    capsys.readouterr()  # transformers shows its own progress while it loads
    evaluate_loss(dataclasses.replace(config, output=str(tmp_path / "loss")), [scorer])
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 9}, r"num_samples \(9\) is more than the 5 rows of .*: ask for at most 5"),
        ({"seq_length": 128}, r"seq_length \(128\) must be between 2 and the 64 tokens"),
        ({"seq_length": 1}, "seq_length must be 0, or at least 2, not 1"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1, not 0"),
        ({"data_path": ""}, "--data-path is needed"),
        ({"split": "train"}, r"cannot read .*train\.idx"),
    ],
)
def test_bad_input_is_refused(config, scorer, changes, message):
    with pytest.raises(InputError, match=message):
        measure_position_loss(dataclasses.replace(config, **changes), [scorer])


def test_rows_beyond_the_trained_positions_need_a_flag(config, other):
    with pytest.raises(
        InputError, match=r"length 64 is beyond the 24 positions .*--beyond-trained-positions"
    ):
        measure_position_loss(config, [other])
    config = dataclasses.replace(config, beyond_trained_positions=True)
    assert measure_position_loss(config, [other])[0].max_positions == 24


def test_a_tokenizer_that_does_not_fit_is_refused(config, tmp_path):
    make_llama(max_positions=64, vocab_size=50).save_pretrained(tmp_path)
    wanted = (
        r"\.bin: row 0 has at position \d+ token id \d\d, .* knows ids 0 to 49 \(vocab_size 50\)"
    )
    with pytest.raises(InputError, match=wanted):
        measure_position_loss(config, [HuggingFaceModel(tmp_path)])


def test_weights_that_are_not_finite_are_reported(config, tmp_path):
    model = make_llama(max_positions=64)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="row 0 of 64 tokens has loss nan at position 0"):
        measure_position_loss(config, [HuggingFaceModel(tmp_path)])


def test_a_split_without_rows_is_refused(scorer, tmp_path):
    with IndexedWriter(tmp_path / "valid", token_dtype(VOCAB_SIZE)):
        pass
    with pytest.raises(InputError, match="holds no rows"):
        measure_position_loss(LossConfig(data_path=str(tmp_path)), [scorer])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("{", "evaluate again, or restore"),
        ('{"kind": "passkey", "format_version": 1}', "holds 'passkey', not 'position_loss'"),
        (
            '{"kind": "position_loss", "format_version": 7}',
            "of format_version 7, this version reads 2",
        ),
        ('{"kind": "position_loss", "format_version": 1}', "evaluate again, or restore"),
    ],
)
def test_a_file_that_holds_no_losses_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "loss.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_results(tmp_path / "loss.json", "position_loss")


def test_what_is_told_before_a_loss_is_measured(tmp_path, monkeypatch):
    for name in ("one", "other"):
        make_llama(max_positions=64).save_pretrained(tmp_path / name / "run")
    paths = [str(tmp_path / name / "run") for name in ("one", "other")]

    def check(*load: str, split: str = "train") -> None:
        loss = LossConfig(data_path="rows", split=split)
        early_checks.check_command(LossCommand(ModelsConfig(load=load), loss), 1)

    splits = SimpleNamespace(splits={"train": None}, tokenizer_sha256="0", seq_length=64)
    monkeypatch.setitem(early_checks._MANIFESTS, "loss", lambda path: splits)
    check(paths[0], f"after={paths[1]}")
    for load in (paths, [f"a={path}" for path in paths]):
        with pytest.raises(InputError, match=r"two models of --load are called '(run|a)'"):
            check(*load)
    with pytest.raises(InputError, match=r"rows has no split 'valid', only train: .* --split, or"):
        check(paths[0], split="valid")
    splits.seq_length = 65
    with pytest.raises(InputError, match="length 65 is beyond the 64 positions that checkpoint 'r"):
        check(paths[0])


@pytest.mark.parametrize("is_imported", [False, True])
def test_rows_of_another_tokenizer_are_refused(tmp_path, is_imported):
    """Their ids mean other text: the losses were those of noise."""
    write_llama(tmp_path / "hf", num_hidden_layers=1)
    texts = [TEXT * (1 + n) + str(n) for n in range(60)]
    prepare_rows(tmp_path, texts, tmp_path / "hf", 64, valid_fraction=0.0)
    write_tokenizer(tmp_path / "others", TEXT[::-1])
    prepare_rows(tmp_path, texts, tmp_path / "others", 64, "other-rows", valid_fraction=0.0)
    # written otherwise, and the same tokens
    tokenizer = tmp_path / "hf" / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()), indent=3))
    model = tmp_path / "hf"
    if is_imported:
        model = tmp_path / "base"
        import_checkpoint(ImportConfig(tmp_path / "hf", model))

    def check(rows: str) -> None:
        loss = LossConfig(data_path=str(tmp_path / rows), split="train")
        early_checks.check_command(LossCommand(ModelsConfig(load=(str(model),)), loss), 1)

    check("rows")
    with pytest.raises(InputError, match=r"were made by another tokenizer .* with another vocab"):
        check("other-rows")

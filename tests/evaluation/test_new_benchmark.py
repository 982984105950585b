"""A new benchmark is one file of questions and a scorer: asked, resumed, written, reported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_ultralong.evaluation.models.facts import model_facts
from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel, Subject
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.evaluation.report.report import gather_report
from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from tests.evaluation import ten_sums
from tests.evaluation.ten_sums import QUESTIONS, SumsConfig, evaluate_sums
from tests.evaluation.test_benchmark import Mortal
from tests.models import write_llama

COST = CostConfig(estimated_tflops=0.01)


def test_ten_questions_take_at_most_sixty_lines() -> None:
    assert len(QUESTIONS) == 10
    assert len(Path(ten_sums.__file__).read_text().splitlines()) <= 60


def test_it_is_asked_resumed_written_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tiny"
    write_llama(folder, num_hidden_layers=1, max_position_embeddings=64)
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.5}')
    generator, tokenizer = HuggingFaceModel(folder, name="tiny"), PromptTokenizer(folder)
    facts = model_facts(str(folder), "bf16")
    config = SumsConfig(output=str(tmp_path / "out"))
    killed = Mortal(generator, 1)
    with pytest.raises(KeyboardInterrupt):
        evaluate_sums(config, Subject(killed, facts, tokenizer, COST))
    second = Mortal(generator)
    # A model that has never learnt to add: half of the answers are made what it writes.
    lines = (tmp_path / ".out.partial" / "finished.jsonl").read_text().splitlines()
    assert len(lines) == len(killed.prompts) == 5
    answers = [text for text, _ in QUESTIONS]
    ids = [[*tokenizer.begin_ids, *tokenizer.encode(text).tolist()] for text in answers[5:]]
    written = [tokenizer.decode(one) for one in generator.generate(ids, max_new_tokens=4)]
    known = [(text, answer.strip()) for text, answer in zip(answers[5:], written, strict=True)]
    monkeypatch.setattr(ten_sums, "QUESTIONS", [*QUESTIONS[:5], *known])
    result = evaluate_sums(config, Subject(second, facts, tokenizer, COST))
    assert len(second.prompts) == 5
    (cell,) = result.cells
    num_right = sum(json.loads(line)["score"] for line in (tmp_path / "out/samples.jsonl").open())
    assert 5 <= num_right < 10
    assert (cell.num_samples, cell.score) == (10, 10 * num_right)
    assert cell.error is not None
    assert cell.error > 0
    assert read_result(tmp_path / "out" / "ten_sums.json", "ten_sums") == result
    assert (tmp_path / "out" / "ten_sums.png").is_file()
    shown = capsys.readouterr()
    assert "Ten sums of tiny, trained for 64 positions" in shown.out
    assert "estimate: 5 samples" in shown.err
    note = "repetition_penalty 1.5 in the model's generation_config.json not applied"
    assert f"warning: {note}" in shown.err
    assert any(line.startswith(note) for line in result.notes)
    (section,) = gather_report([tmp_path / "out"], command="").sections
    assert section.title == "Ten sums"
    assert section.tables[0].rows[0][-1].text == f"{10 * num_right:.1f}"
    with pytest.raises(InputError, match="holds 4 entries"):
        evaluate_sums(config, Subject(second, facts, tokenizer, COST))
    dear = dataclasses.replace(COST, max_cost=1e-15)
    with pytest.raises(InputError, match="above --max-cost"):
        evaluate_sums(SumsConfig(), Subject(second, facts, tokenizer, dear))


def test_results_below_the_model_are_none_of_its_weights(tmp_path: Path) -> None:
    """So work into such a folder is taken up again; other bytes of a file are other weights."""
    folder = tmp_path / "tiny"
    write_llama(folder, num_hidden_layers=1, max_position_embeddings=64)
    before = model_facts(str(folder), "bf16").record
    killed = Mortal(HuggingFaceModel(folder, name="tiny"), 1)
    config, tokenizer = SumsConfig(output=str(folder / "results")), PromptTokenizer(folder)
    with pytest.raises(KeyboardInterrupt):
        evaluate_sums(config, Subject(killed, model_facts(str(folder), "bf16"), tokenizer, COST))
    assert (folder / ".results.partial" / "finished.jsonl").read_text()
    second = Mortal(HuggingFaceModel(folder, name="tiny"))
    evaluate_sums(config, Subject(second, model_facts(str(folder), "bf16"), tokenizer, COST))
    assert len(second.prompts) == 5
    assert model_facts(str(folder), "bf16").record == before
    write_llama(folder, seed=1, num_hidden_layers=1, max_position_embeddings=64)
    assert model_facts(str(folder), "bf16").record.weights != before.weights

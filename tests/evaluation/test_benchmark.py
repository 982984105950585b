"""A benchmark put to a real model: answers, files, and continuing after a kill."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.evaluation.models.facts import ModelFacts, model_facts
from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel, Subject
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.evaluation.results import pictures
from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.evaluation.ruler.evaluation import RulerSamples, evaluate_ruler
from megatron_ultralong.evaluation.ruler.parameters import RulerConfig
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.model.yarn import YarnConfig
from megatron_ultralong.program.errors import InputError
from tests.models import write_llama

CONFIG = RulerConfig(
    lengths=(1024, 1536), tasks=("niah_single_1", "fwe"), num_samples=3, micro_batch_size=2
)
COST = CostConfig(estimated_tflops=0.01)


class Mortal:
    """A real model that is killed when it has been asked so often."""

    def __init__(self, generator: HuggingFaceModel, lives: int = 1000) -> None:
        self.generator, self.lives = generator, lives
        self.name, self.is_main = generator.name, True
        self.max_positions, self.vocab_size = generator.max_positions, generator.vocab_size
        self.prompts: list[list[int]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
    ) -> list[list[int]]:
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        self.prompts += [list(prompt) for prompt in prompts]
        return self.generator.generate(prompts, max_new_tokens=max_new_tokens, stop_ids=stop_ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "tiny"
    write_llama(folder, num_hidden_layers=1, max_position_embeddings=1536)
    return folder


@pytest.fixture(scope="module")
def facts(folder: Path) -> ModelFacts:
    return model_facts(f"tiny={folder}", "bf16")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PromptTokenizer:
    return PromptTokenizer(folder)


@pytest.fixture(scope="module")
def generator(folder: Path) -> HuggingFaceModel:
    return HuggingFaceModel(folder, name="tiny")


def test_an_evaluation_goes_on_after_a_kill(generator, facts, tokenizer, tmp_path, capsys):
    config = dataclasses.replace(CONFIG, output=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_ruler(config, Subject(Mortal(generator, 2), facts, tokenizer, COST))
    assert not (tmp_path / "out").exists()
    assert "estimate: 12 samples" in capsys.readouterr().err
    second = Mortal(generator)
    result = evaluate_ruler(config, Subject(second, facts, tokenizer, COST))
    output = capsys.readouterr()
    assert "estimate: 9 samples" in output.err
    assert "RULER of tiny, trained for 1,536 positions" in output.out
    assert len(second.prompts) == 9
    whole = Mortal(generator)
    other = dataclasses.replace(config, output=str(tmp_path / "whole"))
    at_once = evaluate_ruler(other, Subject(whole, facts, tokenizer, COST))
    assert at_once.cells == result.cells
    lines = [
        sorted((tmp_path / name / "samples.jsonl").read_text().splitlines())
        for name in ("out", "whole")
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 12
    names = ["evaluation.json", "ruler.json", "ruler.png", "samples.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    loaded = read_result(tmp_path / "out" / "ruler.json", "ruler")
    assert loaded.cells == result.cells
    assert loaded.notes == result.notes
    assert loaded.model == facts.record
    assert (tmp_path / "out" / "ruler.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    samples = RulerSamples(config, tokenizer)
    expected = [
        samples.sample(task, length, index).tokens.tolist()
        for length in (1024, 1536)
        for task in ("niah_single_1", "fwe")
        for index in range(3)
    ]
    assert sorted(whole.prompts) == sorted(expected)


def test_results_are_final_before_their_picture(generator, facts, tokenizer, tmp_path, monkeypatch):
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "task_picture", killed)
    config = dataclasses.replace(CONFIG, num_samples=1, output=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_ruler(config, Subject(Mortal(generator), facts, tokenizer, COST))
    names = ["evaluation.json", "ruler.json", "samples.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert read_result(tmp_path / "out" / "ruler.json").checkpoint == "tiny"


def test_copies_of_weights_have_one_digest(folder, tmp_path):
    original = model_facts(str(folder), "fp32").record
    copied = shutil.copytree(folder, tmp_path / "copied", copy_function=shutil.copyfile)
    copy = model_facts(str(copied), "fp32").record
    assert copy.digest == original.digest != ""
    assert copy.weights != original.weights  # other times
    (weights,) = copied.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_facts(str(copied), "fp32").record.digest != original.digest


@pytest.mark.parametrize("kind", ["hugging_face", "megatron"])
def test_weights_are_another_model_by_another_rotary_embedding(folder, tmp_path, kind):
    block = {"rope_theta": 10_000.0, "factor": 2.0, "original_max_position_embeddings": 32}
    blocks = [
        {"rope_type": "default", "rope_theta": 10_000.0},
        {"rope_type": "yarn", **block},
        {"rope_type": "yarn", **block, "beta_fast": 4.0},
        {"rope_type": "yarn", **block, "attention_factor": 1.0},
        {"rope_type": "yarn", **block, "factor": 4.0},
        {"rope_type": "llama3", **block, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
    ]
    identities, digests = [], set()
    for number, rope in enumerate(blocks):
        copied = shutil.copytree(folder, tmp_path / f"{number}")
        config = json.loads((copied / "config.json").read_text())
        config["rope_parameters"] = rope
        (copied / "config.json").write_text(json.dumps(config))
        if kind == "megatron":
            import_checkpoint(ImportConfig(copied, tmp_path / f"{number}-base"))
            copied = tmp_path / f"{number}-base"
        found = model_facts(f"x={copied}", "fp32")
        assert found.identity["rotary"] == found.record.rotary
        identities.append(found.identity["rotary"])
        digests.add(found.record.digest)
    assert len(digests) == 1  # the weights are the same
    assert len(set(identities)) == len(blocks)


def test_a_model_is_another_one_by_what_its_metadata_says(folder, tmp_path):
    """A result that is there counts as done if its model is still the same one."""
    base = tmp_path / "base"
    import_checkpoint(ImportConfig(folder, base))
    before = model_facts(str(base), "fp32")
    metadata = load_metadata(base)
    scaling = YarnConfig(2.0, original_max_position_embeddings=768)
    save_metadata(base, dataclasses.replace(metadata, rope_scaling=scaling))
    after = model_facts(str(base), "fp32", with_digest=False)
    assert after.record.weights == before.record.weights
    assert after.identity != before.identity
    assert after.record.digest == ""


def test_the_same_output_is_refused_to_other_flags_and_models(
    generator, facts, tokenizer, tmp_path, folder
):
    config = dataclasses.replace(CONFIG, output=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_ruler(config, Subject(Mortal(generator, 1), facts, tokenizer, COST))
    for changes, message in (
        ({"seed": 7}, "its seed was 42, now it is 7"),
        ({"prompt_template": "chat"}, "chat needs the marks of turns"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_ruler(
                dataclasses.replace(config, **changes),
                Subject(Mortal(generator), facts, tokenizer, COST),
            )
    (folder / "notes.bin").write_text("other weights, to all appearances")
    with pytest.raises(InputError, match="its weights was '"):
        evaluate_ruler(
            config,
            Subject(Mortal(generator), model_facts(f"tiny={folder}", "bf16"), tokenizer, COST),
        )
    (folder / "notes.bin").unlink()
    # More samples and lengths are the same evaluation, and what is done is not done again.
    more = dataclasses.replace(config, num_samples=4, lengths=(1024,))
    asked = Mortal(generator)
    evaluate_ruler(more, Subject(asked, facts, tokenizer, COST))
    assert len(asked.prompts) == 8 - 2


def test_what_costs_too_much_or_is_too_long_is_refused(
    generator, facts, tokenizer, tmp_path, capsys
):
    untouched = Mortal(generator)
    dear = CostConfig(max_cost=1e-9, estimated_tflops=0.01)
    config = dataclasses.replace(CONFIG, output=str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"above --max-cost 1e-09: .* lower --num-samples"):
        evaluate_ruler(config, Subject(untouched, facts, tokenizer, dear))
    with pytest.raises(
        InputError, match=r"length 2048 \(2048 tokens\) is beyond the 1536 positions .*--beyond"
    ):
        evaluate_ruler(
            dataclasses.replace(CONFIG, lengths=(2048,)), Subject(untouched, facts, tokenizer, COST)
        )
    assert untouched.prompts == []
    beyond = dataclasses.replace(
        CONFIG, lengths=(2048,), tasks=("fwe",), num_samples=1, beyond_trained_positions=True
    )
    result = evaluate_ruler(beyond, Subject(untouched, facts, tokenizer, COST))
    assert result.columns == ("2048",)
    told = capsys.readouterr().err
    assert "warning: length 2048 (2048 tokens) is beyond the 1536 positions" in told
    assert "retrieval to fall to chance" in told
    assert "1 of RULER's 13 tasks" in result.notes[2]


@pytest.mark.parametrize("damage", ["{", '{"kind": "ruler", "format_version": 1}'])
def test_a_damaged_result_is_refused(tmp_path, damage):
    (tmp_path / "ruler.json").write_text(damage)
    with pytest.raises(InputError, match="evaluate again, or restore"):
        read_result(tmp_path / "ruler.json", "ruler")
    (tmp_path / "ruler.json").write_text(json.dumps({"kind": "passkey", "format_version": 1}))
    with pytest.raises(InputError, match=r"holds 'passkey', not 'ruler'"):
        read_result(tmp_path / "ruler.json", "ruler")

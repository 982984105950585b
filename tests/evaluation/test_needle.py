"""The needle prompt, its haystacks, and retrieval from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel
from megatron_ultralong.evaluation.options import NeedleConfig
from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.evaluation.retrieval.grid import evaluate_grid, needle_grid
from megatron_ultralong.evaluation.retrieval.needle_prompt import (
    CITIES,
    INTRODUCTION,
    NEEDLE,
    QUESTION,
    made_up,
    needle_prompt,
    of_files,
)
from megatron_ultralong.program.errors import InputError
from tests.evaluation.results import subject_of
from tests.models import write_llama

CONFIG = NeedleConfig(lengths=(700, 900), depths=(0.0, 50.0), num_samples=3, micro_batch_size=4)
STORY = "".join(f"Line {n} of the story is about {n * n}. Then came rain!\n" for n in range(300))


def measure_needle(config: NeedleConfig, model, encode) -> Result:
    return evaluate_grid(needle_grid(config, encode), subject_of(model))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("needle") / "tiny"
    write_llama(folder, num_hidden_layers=1, max_position_embeddings=1024)
    (folder.parent / "story.txt").write_text(STORY)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def encode(tokenizer: Tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def haystacks(folder: Path, encode):
    return made_up(encode, 1), of_files(encode, [str(folder.parent / "story.txt")])


@given(
    length=st.integers(560, 2000),
    depth=st.floats(0, 1),
    index=st.integers(0, 10_000),
    own=st.booleans(),
    num_distractors=st.integers(0, 4),
)
def test_a_prompt_is_exact_and_says_what_it_asks(
    encode, tokenizer, haystacks, length, depth, index, own, num_distractors
):
    def prompt():
        return needle_prompt(
            encode,
            length,
            depth,
            seed=7,
            index=index,
            haystack=haystacks[own],
            num_distractors=num_distractors,
        )

    made = prompt()
    np.testing.assert_array_equal(made.tokens, prompt().tokens)
    assert made.tokens.shape == (length,)
    text = tokenizer.decode(made.tokens.tolist())
    assert text.startswith(INTRODUCTION)
    assert text.endswith(made.key)
    (city,) = [c for c in CITIES if text.endswith(QUESTION.format(city=c) + f" {made.key}")]
    needle = NEEDLE.format(city=city, code=made.key)
    assert text.count(needle) == 1
    assert tokenizer.decode(made.tokens[made.needle_start :].tolist()).startswith(needle)
    assert text.count(f"The door code of the city hall in {city} is") == 2
    assert text.count("The door code of the city hall in") == num_distractors + 2
    assert text.count(made.key) == 2, "only the needle and the answer have the code"
    # Whole sentences stand around the needle, and it is near its depth.
    before = text[: text.index(needle)]
    assert before == INTRODUCTION or before[-1] in "\n "
    body = length - len(encode(INTRODUCTION)) - len(encode(QUESTION.format(city=city)))
    others = (num_distractors + 1) * 60
    place = made.needle_start - len(encode(INTRODUCTION))
    assert abs(place - depth * body) <= others + 120


def test_depth_moves_the_needle_alone(encode, haystacks):
    starts = [
        needle_prompt(encode, 1500, depth, seed=7, index=3, haystack=haystacks[0]).needle_start
        for depth in (0.0, 0.3, 0.6, 1.0)
    ]
    assert starts == sorted(starts)
    assert len(set(starts)) == 4


def test_haystacks_differ_from_sample_to_sample(haystacks, encode, tokenizer):
    for haystack in haystacks:
        stretches = [haystack.stretch(300, np.random.default_rng(n)).tokens for n in range(6)]
        assert len({stretch.tobytes() for stretch in stretches}) == 6
    # Text of one's own continues in its order, and from the first sentence after the last.
    text = tokenizer.decode(haystacks[1].stretch(2000, np.random.default_rng(0)).tokens.tolist())
    assert text in STORY + STORY


def test_argmax_and_decoding_agree_on_a_model_that_knows_some(folder, encode, tmp_path):
    """A model that has learnt every second prompt by heart."""
    from transformers import LlamaForCausalLM

    config = dataclasses.replace(CONFIG, lengths=(560,), num_samples=4, num_distractors=1)
    rows = []

    class Recorder(HuggingFaceModel):
        def score(self, tokens):
            rows.extend(tokens)
            return super().score(tokens)

    measure_needle(config, Recorder(folder), encode)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    tokens = torch.from_numpy(np.stack(rows[::2]))
    size = len(encode(" 12345"))
    for _ in range(20):
        logits = model(input_ids=tokens).logits[:, -size - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, -size:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "learnt")
    found = {}
    for by in ("argmax", "decoding"):
        asked = dataclasses.replace(config, by=by, output=str(tmp_path / by))
        measured = measure_needle(asked, HuggingFaceModel(tmp_path / "learnt"), encode)
        lines = map(json.loads, (tmp_path / by / "samples.jsonl").open())
        # Up to its first wrong token, decoding writes what argmax reads.
        found[by] = sorted(
            (line["depth"], line["number"], str(line["first_wrong"])) for line in lines
        )
        assert 0 < measured.pooled() < 100
    assert found["argmax"] == found["decoding"]


def test_files_are_written_and_read_back(folder, encode, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Tea is made of leaves and of water. Leaves grow on bushes. " * 100)
    output = str(tmp_path / "needle")
    config = dataclasses.replace(CONFIG, output=output, haystack=(str(text),))
    subject = subject_of(HuggingFaceModel(folder), folder)
    result = evaluate_grid(needle_grid(config, encode, "sha"), subject)
    assert read_result(tmp_path / "needle" / "needle.json", "needle") == result
    assert result.material == {"haystack 1": hashlib.sha256(text.read_bytes()).hexdigest()}
    assert result.model == subject.facts.record
    names = sorted(path.name for path in (tmp_path / "needle").iterdir())
    assert names == ["evaluation.json", "needle.json", "needle.png", "samples.jsonl"]
    out = " ".join(capsys.readouterr().out.split())
    assert "Needle retrieval of tiny" in out
    assert "a code in running text, by argmax" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": (50, 700)}, r"length \(50\) is too short for a needle prompt"),
        ({"lengths": (700, 2048)}, r"length 2048 is beyond the 1024 .*--beyond-trained-positions"),
        ({"num_distractors": 21}, "num_distractors must be between 0 and 20, not 21"),
        ({"haystack": ("absent.txt",)}, r"haystack absent\.txt does not exist"),
        ({"haystack": ("SHORT",)}, r"has \d+ tokens, and a prompt leaves \d+"),
        ({"haystack": ("EMPTY",)}, "has no text"),
        ({"lengths": ()}, "--lengths is needed"),
    ],
)
def test_bad_input_is_refused(folder, encode, tmp_path, changes, message):
    for name, text in (("SHORT", "One sentence. Another."), ("EMPTY", "")):
        (tmp_path / name).write_text(text)
        if changes.get("haystack") == (name,):
            changes = {"haystack": (str(tmp_path / name),)}
    with pytest.raises(InputError, match=message):
        measure_needle(dataclasses.replace(CONFIG, **changes), HuggingFaceModel(folder), encode)

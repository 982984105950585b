"""What RULER's tests share: tokenizers, and material of their own making."""

from __future__ import annotations

import json
import random
from pathlib import Path

import llama_models
import pytest

from megatron_ultralong.evaluation.ruler.evaluation import RulerSamples
from megatron_ultralong.evaluation.ruler.parameters import RulerConfig
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from tests.models import write_tokenizer

BASE = Path(__file__).parents[3] / "examples" / "demo" / "base"
TEXT = (
    "It was late. Nobody spoke! Was Mr. Hill there? He said (as always) that the rain, e.g. in "
    'May, would end. "It will." So they waited, and 12 people left. Then J. R. Smith came in. '
)


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer(BASE)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RulerConfig:
    """Essays, SQuAD and HotpotQA of their own making, in upstream's formats."""
    folder = tmp_path_factory.mktemp("ruler")
    rng = random.Random(0)

    def words(count: int) -> str:
        return " ".join(rng.choice(("def", "return", "for", "class", "self")) for _ in range(count))

    (folder / "essays.json").write_text(json.dumps({"text": TEXT * 40}))
    articles = []
    for a in range(8):
        paragraphs = []
        for p in range(5):
            answer = {"text": f"answer {a} {p}", "answer_start": 0}
            good = {"question": f"Which {a} {p}?", "answers": [answer], "is_impossible": False}
            bad = {"question": "None?", "answers": [], "is_impossible": True}
            paragraphs.append({"context": f"Paragraph {a} {p} {words(40)}", "qas": [bad, good]})
        articles.append({"title": f"t{a}", "paragraphs": paragraphs})
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    hotpot = [
        {
            "question": f"Who {k}?",
            "answer": "yes",
            "context": [[f"Title {k} {j}", [words(9) + ". ", words(7) + "."]] for j in range(10)],
        }
        for k in range(12)
    ]
    (folder / "hotpot.json").write_text(json.dumps(hotpot))
    return RulerConfig(
        lengths=(4096,),
        essays=str(folder / "essays.json"),
        squad=str(folder / "squad.json"),
        hotpotqa=str(folder / "hotpot.json"),
    )


@pytest.fixture(scope="module")
def samples(config: RulerConfig, tokenizer: PromptTokenizer) -> RulerSamples:
    return RulerSamples(config, tokenizer)


def text_of(samples: RulerSamples, task: str, length: int, index: int) -> str:
    """The prompt of a sample as text."""
    sample = samples.sample(task, length, index)
    turns = samples.builder(task, length, index).turns(sample.num_units)
    return "".join(map("".join, turns))


@pytest.fixture(scope="module")
def by_tokenizer(
    config: RulerConfig, tokenizer: PromptTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[RulerSamples, PromptTokenizer]]:
    """Makers of samples: code's vocabulary, one of little more than bytes, Llama 3's own."""
    folder = tmp_path_factory.mktemp("bytes")
    write_tokenizer(folder)
    llama3 = Path(llama_models.__file__).parent / "llama3"
    found = {"code": tokenizer, "bytes": PromptTokenizer(folder), "llama3": PromptTokenizer(llama3)}
    return {name: (RulerSamples(config, one), one) for name, one in found.items()}

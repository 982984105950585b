"""Odd requests, seeded: answered as the harness's own model answers them, or refused.

Contexts of spaces and of special tokens, longer than the model, empty and repeated stop strings,
under tokenizers with a BOS, without one, and with one token for both ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.evaluation.models import language_models
from megatron_ultralong.evaluation.models.facts import model_facts, tokenizer_folder
from megatron_ultralong.evaluation.options import CostConfig, HarnessConfig, ModelsConfig
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from tests.evaluation.harness_process import IS_HERE, SITES, apart
from tests.families.shapes import write

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not SITES and not IS_HERE, reason="no lm-evaluation-harness: make harness"),
]

TEXT = "The cat sat.\n\nQuestion: what is 2+2? Answer: 4\n naïve café 日本 🙂  two \t x </s>"
ENDS = {"llama": ("<|begin|>", "<|end|>"), "qwen3": ("", "<|im_end|>"), "qwen2": ("<|end|>",) * 2}
PIECES = (
    *("The", " cat", "\n", "\n\n", "Question:", " what", "  ", " ", "é", "日本", "🙂", "\t", "x"),
    *("\u2028", "\u00a0", "\u0085", "\x00", "</s>", "<|begin|>", "<|end|>", "<|im_end|>", "\r\n"),
)
STOPS: tuple[Any, ...] = (
    *([], ["\n"], "\n\n", [""], ["", " "], ["Question:", "\n\n"], ["é"], ["🙂"], [" "], ["\ufffd"]),
    *(["e", "t"], ["zzz"], ["<|im_end|>"]),
)

WRONG = ({"until": [1]}, {"do_sample": "maybe"}, {"num_beams": 2}, {"max_gen_toks": 10**9})

OF_HF = AssertionError, RuntimeError, TypeError, ValueError
OPTIONS = ("do_sample", "until", "temperature", "top_k", "top_p", "max_tokens")
ABSENT = [{"max_gen_toks": 5, name: None} for name in OPTIONS]
"""What a task leaves open by null; of some the ``hf`` model makes an error."""


def write_both(folder: Path, family: str) -> None:
    """A small model of ``family`` in ``run`` and ``exported``."""
    write(folder / "hf", family, "plain", vocab_size=300, num_hidden_layers=2)
    begin, end = ENDS[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(filter(None, (begin, end))))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, **options)
    tokenizer.train_from_iterator([TEXT * 3], trainer)
    names = {"eos_token": end, "tokenizer_class": "PreTrainedTokenizerFast"}
    if begin:
        names["bos_token"] = begin
    if family == "llama":
        first = [(begin, tokenizer.token_to_id(begin))]
        tokenizer.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=first)
    tokenizer.save(str(folder / "hf" / "tokenizer.json"))
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps(names))
    ids = {"eos_token_id": tokenizer.token_to_id(end)}
    (folder / "hf" / "generation_config.json").write_text(json.dumps(ids))
    import_checkpoint(ImportConfig(folder / "hf", folder / "run"))
    export_checkpoint(ExportConfig(folder / "run", folder / "exported"))


def requests(rng: random.Random, length: int) -> list[tuple[str, tuple[Any, ...]]]:
    def text(most: int) -> str:
        return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, most)))

    found: list[tuple[str, tuple[Any, ...]]] = [("loglikelihood", (" \n", "x"))]
    found += [("generate_until", ("x", wrong)) for wrong in WRONG]
    found += [("generate_until", ("x", nulls)) for nulls in ABSENT]
    for _ in range(14):
        context = rng.choice(["", " ", "\n", "<|end|>", text(5), text(5), text(2 * length)])
        found.append(("loglikelihood", (context, text(rng.choice([1, 3, length])))))
        found.append(("loglikelihood_rolling", (rng.choice(["", text(5), text(3 * length)]),)))
        options = {"until": rng.choice(STOPS), "max_gen_toks": rng.choice([1, 2, 5, 12])}
        found.append(("generate_until", (rng.choice([" ", text(6), text(2 * length)]), options)))
    return found


def answers(
    model: Any, asked: list[tuple[str, tuple[Any, ...]]], *errors: type[Exception]
) -> list[Any]:
    """Of every request by itself; None: it is refused, or ends in one of ``errors``."""
    from lm_eval.api.instance import Instance

    found = []
    for number, (kind, arguments) in enumerate(asked):
        instance = Instance(kind, {}, arguments, number, ("task", number, 1))
        try:
            found += getattr(model, kind)([instance])
        except (InputError, *errors):
            found.append(None)
    return found


def pairs(folder: Path, family: str) -> list[tuple[Any, Any, Any]]:
    """Run in a process that has the harness: requests, our answers and those of ``hf``."""
    from lm_eval.models.huggingface import HFLM

    from megatron_ultralong.evaluation.harness.command import harness_model

    write_both(folder, family)
    run, found = str(folder / "run"), []
    tokenizer = PromptTokenizer(tokenizer_folder(run))
    reference = AutoModelForCausalLM.from_pretrained(folder / "exported", dtype=torch.float32)
    models_config = ModelsConfig((run,), "fp32")
    with language_models.open_language_models(models_config) as in_turn, torch.no_grad():
        subject = language_models.Subject(
            next(in_turn), model_facts(run, "fp32"), tokenizer, CostConfig()
        )
        for length in (16, 64):
            asked = requests(random.Random(length), length)
            config = HarnessConfig(tasks=("-",), max_length=length, micro_batch_size=3)
            with (
                harness_model(config, subject) as opened,
                contextlib.redirect_stderr(io.StringIO()),
            ):
                assert opened is not None
                own = answers(opened[0], asked)
                path = str(folder / "exported")
                hf = HFLM(reference, tokenizer=path, max_length=length, batch_size=1)
                found += list(zip(asked, own, answers(hf, asked, *OF_HF), strict=True))
    return found


@pytest.mark.parametrize("family", ENDS)
def test_odd_requests(tmp_path: Path, family: str) -> None:
    found = apart(pairs, tmp_path, family)
    compared = [one for one in found if one[2] is not None]
    assert len(compared) > 60
    for request, own, expected in compared:
        if isinstance(expected, str):
            assert own == expected, request
        elif isinstance(expected, int | float):
            assert own == pytest.approx(expected, rel=1e-4, abs=1e-4), request
        else:
            assert own[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-4), request
            assert own[1] == expected[1], request
    assert all(
        own is None for (_, arguments), own, _ in found if arguments[1:] and arguments[1] in WRONG
    )
    written = [own for (_, arguments), own, _ in found if arguments[1:] and arguments[1] in ABSENT]
    assert len(written) == 2 * len(ABSENT)
    assert all(isinstance(own, str) for own in written)
    # a token behind spaces alone has a likelihood, whatever stands before it
    assert all(own[0] < 0 for (kind, _), own, _ in found if kind == "loglikelihood" and own)

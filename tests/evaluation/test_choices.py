"""Multiple choice by likelihood: against transformers, on every layout, and bad files."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.evaluation.choices import evaluate_choices, read_questions
from megatron_ultralong.evaluation.models.facts import model_facts, tokenizer_folder
from megatron_ultralong.evaluation.models.opening import Subject, open_scorers
from megatron_ultralong.evaluation.options import ChoicesConfig, CostConfig, ModelsConfig
from megatron_ultralong.evaluation.report.report import load_results
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from tests.models import write_llama
from tests.ranks import run_on_ranks

COST = CostConfig(estimated_tflops=0.01)
WORDS = ("def", "return", "class", "pass", "x + 1", "A:", "f(x)", "self")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in both formats, and 40 questions of two to five choices of one to four words."""
    folder = tmp_path_factory.mktemp("choices")
    write_llama(folder / "hf", max_position_embeddings=400)
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron"))
    write_questions(folder / "code_test.jsonl", 40)
    write_questions(folder / "dev" / "code_dev.jsonl", 5, seed=1)
    return folder


def write_questions(file: Path, count: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    file.parent.mkdir(exist_ok=True)
    lines = []
    for number in range(count):
        choices = [
            " ".join(rng.choices(WORDS, k=rng.randint(1, 4))) + f" {k}"
            for k in range(rng.randint(2, 5))
        ]
        answer: int | str = rng.randrange(len(choices))
        if number % 3 == 1:
            answer = "ABCDE"[int(answer)]
        elif number % 3 == 2:
            answer = choices[int(answer)]
        question = " ".join(rng.choices(WORDS, k=6))
        lines.append(json.dumps({"question": question, "choices": choices, "answer": answer}))
    file.write_text("\n".join(lines) + "\n")


def run(load: str, config: ChoicesConfig, parallel: ParallelConfig | None = None) -> Result:
    models = ModelsConfig((load,), "fp32", parallel or ParallelConfig())
    with open_scorers(models) as scorers:
        facts, tokenizer = model_facts(load, "fp32"), PromptTokenizer(tokenizer_folder(load))
        return evaluate_choices(config, Subject(scorers[0], facts, tokenizer, COST))


def losses(output: Path) -> dict[tuple[str, int], list[float]]:
    entries = map(json.loads, (output / "samples.jsonl").read_text().splitlines())
    return {(entry["task"], entry["index"]): entry["losses"] for entry in entries}


@pytest.mark.parametrize("style", ["letters", "texts"])
def test_likelihoods_are_those_of_transformers(folder: Path, tmp_path: Path, style: str) -> None:
    """Each choice alone, unpadded, its tokens found by the reference tokenizer."""
    from tokenizers import Tokenizer

    data = (str(folder / "code_test.jsonl"),)
    config = ChoicesConfig(data=data, choice_style=style, output=str(tmp_path / "out"))
    result = run(str(folder / "hf"), config)
    model = LlamaForCausalLM.from_pretrained(folder / "hf", dtype=torch.float64).eval()
    tokenizer = Tokenizer.from_file(str(folder / "hf" / "tokenizer.json"))
    found = losses(tmp_path / "out")
    hits = {"sum": 0, "by character": 0}
    questions = read_questions(folder / "code_test.jsonl")
    for index, question in enumerate(questions):
        if style == "letters":
            listed = [f"{'ABCDE'[k]}. {text}\n" for k, text in enumerate(question.choices)]
            subject = "The following are multiple choice questions (with answers) about code.\n\n"
            context = f"{subject}{question.question}\n{''.join(listed)}Answer:"
            endings = list("ABCDE"[: len(question.choices)])
        else:
            context, endings = f"Question: {question.question}\nAnswer:", [*question.choices]
        expected = []
        for ending in endings:
            start = len(tokenizer.encode(context).ids)
            ids = torch.tensor([tokenizer.encode(f"{context} {ending}").ids])
            with torch.no_grad():
                logs = model(input_ids=ids).logits.log_softmax(2)[0, :-1]
            picked = logs.gather(1, ids[0, 1:, None]).squeeze(1)
            expected.append(-float(picked[start - 1 :].sum()))
        # Float32 sums of up to a dozen losses of magnitude 10.
        assert found[("code", index)] == pytest.approx(expected, abs=1e-3)
        hits["sum"] += expected.index(min(expected)) == question.answer
        shares = [loss / len(ending) for loss, ending in zip(expected, endings, strict=True)]
        hits["by character"] += shares.index(min(shares)) == question.answer
    cells = {cell.column: cell.score for cell in result.cells}
    assert cells["accuracy"] == pytest.approx(100 * hits["sum"] / 40)
    if style == "texts":
        assert cells["accuracy by character"] == pytest.approx(100 * hits["by character"] / 40)
        assert hits["sum"] != hits["by character"]  # else the test would not tell them apart
    assert 0 < hits["sum"] < 40


def score_layouts(folder: Path, output: Path) -> None:
    """Run on every rank: the questions in two layouts."""
    data = (str(folder / "code_test.jsonl"),)
    for name, parallel in (
        ("cp", ParallelConfig(context_parallel_size=2)),
        ("tp", ParallelConfig(tensor_model_parallel_size=2)),
    ):
        config = ChoicesConfig(
            data=data, choice_style="texts", num_fewshot=2, fewshot_data=str(folder / "dev"),
            num_samples=8, output=str(output / name),
        )  # fmt: skip
        run(str(folder / "megatron"), config, parallel)


def test_megatron_checkpoints_score_as_transformers_do(folder: Path, tmp_path: Path) -> None:
    run_on_ranks(2, score_layouts, folder, tmp_path)
    config = ChoicesConfig(
        data=(str(folder / "code_test.jsonl"),), choice_style="texts", num_fewshot=2,
        fewshot_data=str(folder / "dev"), num_samples=8, output=str(tmp_path / "hf"),
    )  # fmt: skip
    result = run(str(folder / "hf"), config)
    expected = losses(tmp_path / "hf")
    assert len(expected) == 8
    for name in ("cp", "tp"):
        found = losses(tmp_path / name)
        for key, of_question in expected.items():
            # float32 on both sides, and angles that transformers rounds.
            assert found[key] == pytest.approx(of_question, abs=2e-3)
    assert any(name.startswith("few-shot") for name in result.material)
    names = ["choices.json", "choices.png", "evaluation.json", "samples.jsonl"]
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == names


def test_several_models_are_asked_in_turn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        *("evaluate", "choices", "--load", f"a={folder / 'hf'}", f"b={folder / 'megatron'}"),
        *("--data", str(folder / "code_test.jsonl"), "--num-samples", "4", "--precision", "fp32"),
        *("--output", str(tmp_path / "both"), "--estimated-tflops", "0.01"),
    )
    cli.main(words)
    scores = []
    for name in ("a", "b"):
        (result,) = load_results(tmp_path / "both" / name / "choices.json")
        assert result.checkpoint == name
        scores.append([cell.score for cell in result.cells])
    assert scores[0] == scores[1]

    shutil.rmtree(tmp_path / "both" / "b")
    before = (tmp_path / "both" / "a" / "choices.json").stat().st_mtime_ns
    cli.main(words)
    assert "a: already evaluated" in capsys.readouterr().err
    assert (tmp_path / "both" / "a" / "choices.json").stat().st_mtime_ns == before
    assert (tmp_path / "both" / "b" / "choices.json").is_file()

    for changed, message in (
        ((*words[:-1], "0.02", "--num-samples", "3"), "nothing is written over"),
        (tuple(word.replace("b=", "a=") for word in words), "two models of --load are called 'a'"),
        (tuple(word.replace("b=", "x/y=") for word in words), "x/y=...: with several models"),
    ):
        with pytest.raises(SystemExit):
            cli.main(changed)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        '"Is it, so?",yes,no,A\nAnd?,"a ""b""",c,B\n',
        'question,A,B,answer\n"Is it, so?",yes,no,A\nAnd?,"a ""b""",c,B\n',
        'subject,question,A,B,answer\nx,"Is it, so?",yes,no,0\nx,And?,"a ""b""",c,1\n',
    ],
)
def test_csv_is_read_with_and_without_a_header(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.csv").write_text(text)
    first, second = read_questions(tmp_path / "q.csv")
    assert (first.question, first.choices, first.answer) == ("Is it, so?", ("yes", "no"), 0)
    assert (second.question, second.choices, second.answer) == ("And?", ('a "b"', "c"), 1)


GOOD = '{"question": "q", "choices": ["a", "b"], "answer": 0}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.jsonl", "{", r"q.jsonl:1: not JSON"),
        ("q.jsonl", "[]", r"q.jsonl:1: a list, where one JSON object a line"),
        ("q.jsonl", '{"question": "q"}', r"q.jsonl:1 has no 'choices', only \['question'\]"),
        ("q.jsonl", GOOD.replace("0}", "2}"), r"has the answer 2, and 2 choices: give a number"),
        ("q.jsonl", GOOD.replace("0}", '"C"}'), r"the answer 'C', .* a letter from A to B"),
        ("q.jsonl", GOOD.replace("0}", "true}"), "the answer True"),
        ("q.jsonl", GOOD.replace('"a", "b"', '"a"'), "must have a list of 2 to 26 choices"),
        ("q.jsonl", "\n", "holds no questions"),
        ("q.csv", "q,a,b\n", "question 1 has 3 columns"),
        ("q.txt", GOOD, r"holds no \.jsonl or \.csv file"),
    ],
)
def test_bad_files_are_refused(folder: Path, tmp_path: Path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        run(str(folder / "hf"), ChoicesConfig(data=(str(tmp_path),)))


def test_bad_flags_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ChoicesConfig(data=(str(folder / "code_test.jsonl"),))
    (tmp_path / "code_val.jsonl").write_text(GOOD)
    for changes, message in (
        ({"data": ()}, "--data is needed"),
        ({"num_fewshot": 2}, r"num_fewshot \(2\) needs solved questions"),
        ({"num_fewshot": 6, "fewshot_data": str(folder / "dev")}, "has 5 questions, fewer than"),
        ({"data": (*config.data, str(tmp_path / "code_val.jsonl"))}, "two files of task 'code'"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1, not 0"),
        (
            {"num_fewshot": 5, "fewshot_data": str(folder / "dev"), "choice_style": "letters"},
            r"a question of \d+ tokens is beyond the 400 positions",
        ),
    ):
        changed = dataclasses.replace(config, **changes)
        with pytest.raises(InputError, match=message):
            run(str(folder / "hf"), changed)
    capsys.readouterr()
    run(
        str(folder / "hf"),
        dataclasses.replace(changed, num_samples=2, beyond_trained_positions=True),
    )
    assert "warning: a question of" in capsys.readouterr().err

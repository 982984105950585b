"""Small data in the schemas of MMLU, MMLU-Pro, MATH, GSM-8K and HumanEval, and tasks of every kind.

The data sets of the five benchmarks have the files, columns and types that they have on the hub;
their questions are made here. Beside them stand task files over JSON Lines for what the five do not
have: perplexity of texts, and multiple choice by the text of each choice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parent.parent
SUBJECTS = ("anatomy", "virology")
FIVE = (
    *(f"mmlu_{subject}" for subject in SUBJECTS),
    *("mmlu_pro_law", "gsm8k", "hendrycks_math_algebra", "humaneval"),
)
"""The harness's own tasks over the data of :func:`write_five`; ``hendrycks_math_algebra`` is MATH
without the packages that ``minerva_math_algebra`` needs."""
KINDS = ("words_perplexity", "choices_texts", "answers")
"""Tasks of :func:`write_tasks`: rolling, multiple choice, and generation with stop strings."""

_Split = Sequence[dict[str, Any]]


def write_set(folder: Path, name: str, configs: dict[str, dict[str, _Split]]) -> None:
    """A data set as the hub has it: parquet files by configuration and split, and their list."""
    listed = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            path = folder / name / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
            files.append({"split": split, "path": f"{config}/{split}-*"})
        listed.append({"config_name": config, "data_files": files})
    header = yaml.safe_dump({"configs": listed})
    (folder / name / "README.md").write_text(f"---\n{header}---\n")


def write_five(folder: Path) -> None:
    """The five data sets, a few questions each, and the metric of HumanEval."""
    write_set(
        folder,
        "cais/mmlu",
        {s: {"test": _mmlu(s, 6, 0), "dev": _mmlu(s, 5, 50)} for s in SUBJECTS},
    )
    write_set(folder, "openai/gsm8k", {"main": {"train": _gsm8k(9, 20), "test": _gsm8k(4, 0)}})
    pro = {"test": _mmlu_pro(3, 0), "validation": _mmlu_pro(5, 70)}
    write_set(folder, "TIGER-Lab/MMLU-Pro", {"default": pro})
    math = {"train": _math(4, 30), "test": _math(4, 0)}
    write_set(folder, "EleutherAI/hendrycks_math", {"algebra": math})
    write_set(folder, "openai/openai_humaneval", {"openai_humaneval": {"test": _programs()}})
    shutil.copytree(ROOT / "examples" / "harness" / "code_eval", folder / "code_eval")


def _mmlu(subject: str, count: int, first: int) -> _Split:
    return [
        {
            "question": f"Which number follows {n} where one counts the words of {subject}?",
            "subject": subject,
            "choices": [str(n + k) for k in (3, 1, 7, 2)],
            "answer": n % 4,
        }
        for n in range(first, first + count)
    ]


def _mmlu_pro(count: int, first: int) -> _Split:
    return [
        {
            "question_id": n,
            "question": f"A court hears {n} cases, and then one more. How many does it hear?",
            "options": [str(n + k) for k in range(10)],
            "answer": "B",
            "answer_index": 1,
            "cot_content": f"A: Let's think step by step. {n} and one are {n + 1}. The answer is "
            "(B).",
            "category": "law",
            "src": "made here",
        }
        for n in range(first, first + count)
    ]


def _gsm8k(count: int, first: int) -> _Split:
    return [
        {
            "question": f"Ann has {n} apples and buys {n + 2} more. How many has she now?",
            "answer": f"She has {n} + {n + 2} = <<{n}+{n + 2}={2 * n + 2}>>{2 * n + 2} apples.\n"
            f"#### {2 * n + 2}",
        }
        for n in range(first, first + count)
    ]


def _math(count: int, first: int) -> _Split:
    return [
        {
            "problem": f"Find $x$ where $x - {n} = 4$.",
            "level": "Level 1",
            "type": "Algebra",
            "solution": f"Adding ${n}$ to both sides gives $x = \\boxed{{{n + 4}}}$.",
        }
        for n in range(first, first + count)
    ]


def _programs() -> _Split:
    """The second passes whatever is written behind it, as long as that is a comment."""
    return [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f'def add{n}(x):\n    """Return x + {n}."""\n{body}',
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(2) == {n + 2}\n",
            "entry_point": f"add{n}",
        }
        for n, body in enumerate(("", "    return x + 1  #", ""))
    ]


def write_tasks(folder: Path) -> None:
    """Task files over the texts and questions of this repository's examples."""
    source = ROOT / "examples" / "harness"
    questions = [json.loads(line) for line in (source / "python_test.jsonl").open()]
    texts = [
        " ".join(one["question"] for one in questions[start : start + 8])
        for start in range(0, len(questions), 8)
    ]
    folder.mkdir(parents=True)
    lines = [json.dumps({"page": text}) for text in (*texts, "A word.", "")]
    (folder / "pages.jsonl").write_text("\n".join(lines) + "\n")
    files = {"test": str(source / "python_test.jsonl"), "dev": str(source / "python_dev.jsonl")}
    shared = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1.0}}
    asked = {
        "dataset_kwargs": {"data_files": files},
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "Question: {{question.strip()}}\nAnswer:",
    }
    metrics: dict[str, list[str]] = {
        "words_perplexity": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
        "choices_texts": ["acc", "acc_norm"],
        "answers": ["exact_match"],
    }
    tasks: dict[str, dict[str, Any]] = {
        "words_perplexity": {
            "dataset_kwargs": {"data_files": {"test": str(folder / "pages.jsonl")}},
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{page}}",
        },
        "choices_texts": {
            **asked,
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
        },
        "answers": {
            **asked,
            "output_type": "generate_until",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n\n", ".", " the"], "max_gen_toks": 24},
        },
    }
    for name, task in tasks.items():
        listed = [{"metric": metric} for metric in metrics[name]]
        text = yaml.safe_dump({"task": name, **shared, **task, "metric_list": listed})
        (folder / f"{name}.yaml").write_text(text)

"""Rows in upstream's columns, and what a model is asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_ultralong.evaluation.models.language_models import Subject
from megatron_ultralong.evaluation.options import CostConfig
from tests.evaluation.test_benchmark import Mortal

COST = CostConfig(estimated_tflops=0.01)
SEPARATORS = "\u2028 \u2029 \x85"
"""Ends of lines to :meth:`str.splitlines`, and to nobody else."""


def asked(subject: Subject) -> tuple[Subject, list[str]]:
    """The same model, and the texts of all prompts that it is asked from now on."""
    mortal = Mortal(subject.model)
    own = Tokenizer.from_file(str(subject.tokenizer.folder / "tokenizer.json"))
    texts: list[str] = []
    generate, mortal.rooms = mortal.generate, []  # type: ignore[attr-defined]

    def noting(prompts: Any, **options: Any) -> list[list[int]]:
        mortal.rooms.append(options["max_new_tokens"])  # type: ignore[attr-defined]
        texts.extend(own.decode(list(ids), skip_special_tokens=False) for ids in prompts)
        return generate(prompts, **options)

    mortal.generate = noting  # type: ignore[method-assign]
    return dataclasses.replace(subject, model=mortal), texts


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def mrcr_row(needles: int, words: int, prefix: str = "aY0o", answer: str = "") -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "Write a poem about tapirs"},
        {"role": "assistant", "content": f"tapir {SEPARATORS} " * words},
        {"role": "user", "content": f"Prepend {prefix} to the 2nd (1 indexed) poem about tapirs."},
    ]
    return {
        "prompt": json.dumps(messages),
        "answer": prefix + (answer or "A tapir."),
        "random_string_to_prepend": prefix,
        "n_needles": needles,
        "desired_msg_index": 1,
        "total_messages": 3,
        "n_chars": 10,
        "date_added": "12-05-2025",
    }


NEEDLES = [
    {
        "id": "0401",
        "reasoning_type": "world_knowledge",
        "system_prompt": "",
        "needle": "Actually, {CHAR} lives next to {1}.",
        "questions": {
            "onehop": "Which character has been to {2}?",
            "twohop": "Which character has been to {3}?",
        },
        "character_set": ["Yuki", "Stuart", "Veronica"],
        "tests": {
            "T1": {"input_args": ["the Semper Opera House", "Dresden", "Saxony"]},
            "T2": {"input_args": ["the Kiasma museum", "Helsinki", "Uusimaa"]},
        },
    }
]


def nolima_data(folder: Path, needles: Any = None, name: str = "needle_set") -> Path:
    (folder / "needlesets").mkdir(parents=True, exist_ok=True)
    (folder / "needlesets" / f"{name}.json").write_text(json.dumps(needles or NEEDLES))
    books = folder / "haystack" / "rand_shuffle"
    books.mkdir(parents=True, exist_ok=True)
    for number in (1, 2, 10):
        lines = (f"Line {k} of {number} {SEPARATORS} sails." for k in range(400))
        (books / f"rand_book_{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def question(**changes: Any) -> dict[str, Any]:
    row = {"_id": "1", "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short"}
    row |= {"question": " Which? ", "answer": "B", "context": f" A text {SEPARATORS} here. \n"}
    return row | {f"choice_{letter}": f" choice {letter} " for letter in "ABCD"} | changes

"""The scores of the long benchmarks of 2025 and 2026 beside those of upstream's own code.

::

    python -m tools.compare_long_benchmarks \
        --mrcr MRCR_README.md --graphwalks GRAPHWALKS_README.md \
        --nolima NoLiMa --longbench LongBench --skills Skills --tokenizer TOKENIZER

Upstream's code is read from what is given: the cards of the data sets openai/mrcr and
openai/graphwalks (or any Python file with the same function, such as NVIDIA-NeMo/Skills'
``nemo_skills/evaluation/evaluator/mrcr.py`` and lm-evaluation-harness'
``lm_eval/tasks/graphwalks/utils.py``), and clones of adobe-research/NoLiMa, THUDM/LongBench and
NVIDIA-NeMo/Skills (branch chsieh/ruler2).
What is left out is not compared. It runs in this process: look at it before.

Each scorer is put to 50 answers, odd ones among them. Beside the scores, NoLiMa's prompts (needle,
place, distractor and drawn name) and LongBench v2's prompt and table are compared.

The card of GraphWalks has two slips, which published figures do not have: the first node keeps
``Final Answer: [``, and an answer without a right node gets 1 (formerly 0 where nothing was the
right answer). Its code is run as printed and with both put right; the second is what counts.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import random
import re
import runpy
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_ultralong.evaluation.local import longbench_v2, ruler2
from megatron_ultralong.evaluation.local.graphwalks import graphwalks_score
from megatron_ultralong.evaluation.local.mrcr import mrcr_score
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer

from .long_benchmarks.comparison import ODD, Comparison, compare
from .long_benchmarks.nolima import nolima_prompts, nolima_scores
from .long_benchmarks.upstream_code import function, inner_functions, sources


def mrcr(path: Path) -> list[Comparison]:
    """Answers to MRCR: good, changed, cut, without prefix, odd."""
    draw = random.Random(0)
    prefix, body = "aYooSG8CQg", "The tapir walks.\n\nThe river sings \u2028 of leaves.\n" * 5
    whole = prefix + body
    answers = [whole, body, prefix, f" {whole}", f"\n{whole}", prefix * 2 + body, prefix.lower()]
    answers += [whole[:k] for k in range(0, len(whole), 29)]
    answers += [prefix + odd for odd in ODD] + [odd + whole for odd in ODD]
    answers += [prefix + "".join(draw.sample(body, len(body))) for _ in range(10)]
    answers += [f"**{whole}**", f"[{whole}]", f"{whole}\n{whole}", prefix + body.upper()]
    grade = function(sources(path), "grade", SequenceMatcher=difflib.SequenceMatcher)
    cases = [(text, reference) for text in answers for reference in (whole, body)]
    return [
        compare(
            "MRCR: score",
            cases,
            lambda text, answer: mrcr_score(text, {"prefix": prefix, "answer": answer}),
            lambda text, answer: grade(text, answer, prefix),
        )
    ]


def graphwalks(path: Path) -> list[Comparison]:
    """Answers to GraphWalks: lists of nodes, right and wrong, and what is none."""
    draw, nodes = random.Random(0), [f"{k:010x}" for k in range(8)]
    lists = [nodes[:k] for k in range(5)] + [draw.sample(nodes, 4) for _ in range(8)]
    answers = [f"Final Answer: [{', '.join(names)}]" for names in lists]
    answers += [f"so\n\n{text}" for text in answers[:4]] + [f"{text}\n" for text in answers[:3]]
    forms = ["Final Answer:[{}]", "Final Answer:  [{}]", "final answer: [{}]", "Answer: [{}]"]
    forms += ["**Final Answer: [{}]**", "Final Answer: [[{}]]", "Final Answer: {}", "[{}]"]
    forms += ["Final Answer: [{},]", "Final Answer: ['{}']", "Final Answer: [{}]\x85", "{}"]
    forms += ["Final Answer: [{}] Final Answer: [x]", "Final Answer: [{}\n]", "Final Answer: [{}"]
    answers += [form.format(", ".join(nodes[:3])) for form in forms]
    answers += [f"Final Answer: [{odd}]" for odd in ODD] + list(ODD)
    truths: list[list[str]] = [nodes[:3], nodes[:1], []]
    cases = [(text, truth) for text in answers for truth in truths]
    texts = sources(path)
    if path.suffix == ".py":  # lm-evaluation-harness'
        own = {"re": re, "List": list, "Tuple": tuple}
        for name in ("extract_answer_list", "extract_answer_list_flexible"):
            own[name] = function(texts, name, **own)
        process = function(texts, "process_results", **own)
        return [
            compare(
                "GraphWalks: score, as this file's",
                cases,
                graphwalks_score,
                lambda text, truth: process({"answer_nodes": truth}, [text])["f1"],
                "no upstream: more lenient about ends of lines and quotes",
            )
        ]
    (formula,) = [text for text in texts if "n_overlap" in text]
    right = [text.replace("group(0)", 'group(0)[list_part.group(0).index("["):]') for text in texts]
    empty = "else float(n_golden == 0 and n_sampled == 0)"
    return [
        compare(
            f"GraphWalks: score, {label}",
            cases,
            graphwalks_score,
            _graded(function(parts, "get_list", re=re), last),
            note,
        )
        for label, parts, last, note in (
            ("the card's code put right", right, re.sub(r"else [01]\s*$", empty, formula), ""),
            ("the card's code as printed", texts, formula, "no answer is right there: see --help"),
        )
    ]


def _graded(get_list: Callable[..., Any], formula: str) -> Callable[[str, list[str]], float]:
    code = compile(formula, "card", "exec")

    def grade(text: str, truth: list[str]) -> float:
        found, is_failure = get_list(None, text)
        names: dict[str, Any] = {"sampled_set": set(found), "truth_set": set(truth)}
        names |= {"n_sampled": len(names["sampled_set"]), "n_golden": len(names["truth_set"])}
        exec(code, names)
        return 0.0 if is_failure else float(names["f1"])

    return grade


def ruler2_scores(clone: Path) -> list[Comparison]:
    """RULER v2's four scorers."""
    folder = clone / "nemo_skills" / "evaluation"
    text = (folder / "evaluator" / "ruler.py").read_text("utf-8")
    names = {"re": re, "editdistance": SimpleNamespace(eval=_edit_distance)}
    own = inner_functions(text, "eval_ruler2", **names)
    grader = (folder / "math_grader.py").read_text("utf-8")
    extract = function([grader], "extract_answer", re=re)
    text = (folder / "evaluator" / "mcq.py").read_text("utf-8")
    letter = inner_functions(text, "eval_mcq", re=re, extract_answer=extract)["extract_letter"]
    draw = random.Random(0)
    words = ["the", "Tapir", "é", "12", "a\u2028b", "Document 5:\n", "x\n\n"]
    answers = [" ".join(draw.choices(words, k=k % 9)) for k in range(60)]
    answers += [f"{a}</think>{b}" for a, b in zip(answers[:9], answers[20:29], strict=True)]
    answers += [f"{a} Answer: {b}" for a, b in zip(answers[:9], answers[30:39], strict=True)]
    answers += [f"Document {k}:\nA tapir.\nIt walks.\n\n{answers[k]}" for k in range(9)]
    answers += list(ODD)
    truths = [["12"], ["the Tapir", "é"], ["a\u2028b", "x", "the 12 Tapir é"], [" "]]
    cases = [(answer, truth) for answer in answers for truth in truths]
    boxes = [r"\boxed{#}", r"so \boxed{#}.", r"\boxed{A} \boxed{#}", r"\boxed {#}", r"\boxed{#. x}"]
    boxes += [
        r"\boxed{\text{#}}",
        r"\boxed{#",
        r"\boxed{A or #}",
        r"\boxed{} Answer: #",
        r"\fbox{#}",
    ]
    boxes += ["Answer: #", "**Answer:** #", "answer : #", "Answer: A Answer: #", "_Answer_: *#*"]
    boxes += ["Answer:\n#", "Answer: #x", "#", r"\boxed", r"} \boxed{#}"]
    chosen = [box.replace("#", one) for box in boxes for one in (*"ABJK", "b", "", "BC", "B C")]
    letters = [(text, [one]) for text in [*chosen, *ODD] for one in "AB"]
    found = []
    for match in ("all", "2steps", "part"):
        upstream, what = own[f"string_match_{match}_single"], f"RULER v2: score {match}"
        found.append(compare(what, cases, functools.partial(ruler2.ruler2_score, match), upstream))
    actual = functools.partial(ruler2.ruler2_score, "choice")
    expected = lambda text, truth: letter(text) == truth[0]  # noqa: E731
    return [*found, compare("RULER v2: score choice", letters, actual, expected)]


def _edit_distance(first: list[str], second: list[str]) -> int:
    """What upstream's package of that name computes, straight from the definition."""

    @functools.cache
    def distance(m: int, n: int) -> int:
        if not m or not n:
            return m + n
        change = distance(m - 1, n - 1) + (first[m - 1] != second[n - 1])
        return min(distance(m - 1, n) + 1, distance(m, n - 1) + 1, change)

    return distance(len(first), len(second))


def longbench(clone: Path) -> list[Comparison]:
    """The letter of an answer, the prompt, and the table of all answers."""
    text = (clone / "pred.py").read_text("utf-8")
    extract = function([text], "extract_answer", re=re)
    forms = ["The correct answer is ({})", "The correct answer is {}", "({})", "{}", ""]
    forms += ["**The correct answer is ({})**", "The correct answer is **{}**.", "is ({})"]
    forms += ["The correct answer is: ({})", "the correct answer is ({})", "The correct answer is"]
    forms += [
        "The correct answer is [{}]",
        "The correct answer is ({}",
        "The correct answer is  {}",
    ]
    forms += ["The correct answer is A. The correct answer is ({})", "The correct\nanswer is ({})"]
    forms += ["The correct answer is (insert answer here) {}", "The correct answer is ({}) or (A)"]
    answers = [form.format(letter) for form in forms for letter in (*"ABCDE", "b", "BC", "(B)")]
    answers += list(ODD) + [f"{odd}The correct answer is (B){odd}" for odd in ODD]
    cases = [(answer, letter) for answer in answers for letter in "BA"]
    prompt = (clone / "prompts" / "0shot.txt").read_text("utf-8")
    rows = [
        {
            "difficulty": longbench_v2.DIFFICULTIES[k % 2], "length": longbench_v2.LENGTHS[k % 3],
            "pred": extract(answer.strip()), "judge": extract(answer.strip()) == "B",
        }
        for k, answer in enumerate(answers)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("results").mkdir()
        Path("results/actual.json").write_text(json.dumps(rows))
        runpy.run_path(str(clone.resolve() / "result.py"))
        table = Path("result.txt").read_text().split("\n")[1].split("\t")[1:]
    own = []
    for column in longbench_v2.COLUMNS:
        scores = [
            longbench_v2.longbench_v2_score(answer, "B")
            for answer, row in zip(answers, rows, strict=True)
            if longbench_v2.counts(column, {"column": f"{row['difficulty']}/{row['length']}"})
        ]
        own.append(str(round(100 * sum(scores) / len(scores), 1)))
    return [
        compare(
            "LongBench v2: score",
            cases,
            longbench_v2.longbench_v2_score,
            lambda answer, letter: extract(answer.strip()) == letter,
        ),
        ("LongBench v2: prompt", int(prompt == longbench_v2.PROMPT), 1, ""),
        (
            "LongBench v2: table",
            sum(map(str.__eq__, own, table)),
            len(table),
            f"{len(answers)} answers",
        ),
    ]


def main() -> None:
    """Compare; exit status 1 where what counts differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mrcr", type=Path, help="card of openai/mrcr, or a file with its grade")
    parser.add_argument("--graphwalks", type=Path, help="card of openai/graphwalks, or utils.py")
    parser.add_argument("--nolima", type=Path, help="clone of adobe-research/NoLiMa")
    parser.add_argument("--longbench", type=Path, help="clone of THUDM/LongBench")
    parser.add_argument("--skills", type=Path, help="clone of NVIDIA-NeMo/Skills, chsieh/ruler2")
    parser.add_argument(
        "--tokenizer", type=Path, help="folder of a tokenizer: NoLiMa's prompts too"
    )
    arguments = parser.parse_args()
    found: list[Comparison] = []
    found += mrcr(arguments.mrcr) if arguments.mrcr else []
    found += graphwalks(arguments.graphwalks) if arguments.graphwalks else []
    found += nolima_scores(arguments.nolima) if arguments.nolima else []
    if arguments.nolima and arguments.tokenizer:
        found += nolima_prompts(arguments.nolima, PromptTokenizer(arguments.tokenizer))
    found += ruler2_scores(arguments.skills) if arguments.skills else []
    found += longbench(arguments.longbench) if arguments.longbench else []
    if not found:
        parser.error("name at least one of upstream's files")
    table = Table("what", "equal", "of", "", "")
    for what, equal, total, note in found:
        table.add_row(what, str(equal), str(total), "equal" if equal == total else "UNEQUAL", note)
    Console(width=120).print(table)
    sys.exit(any(equal < total and not note.startswith("no ") for _, equal, total, note in found))


if __name__ == "__main__":
    main()

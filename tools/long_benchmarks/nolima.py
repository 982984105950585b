"""NoLiMa: four metrics, prompts, the template."""

import ast
import importlib.util
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from megatron_ultralong.evaluation.local import nolima
from megatron_ultralong.evaluation.local.nolima import Book
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError

from .comparison import ODD, Comparison, compare
from .upstream_code import function


def nolima_scores(clone: Path) -> list[Comparison]:
    """NoLiMa's four metrics."""
    text = (clone / "evaluation" / "async_evaluate.py").read_text("utf-8")
    method = function([text], "_evaluate_response")
    names = ["Yuki", "Veronica", "Jean-Luc"]
    forms = [
        "{}",
        " {} ",
        "{}.",
        "**{}**",
        "It is {}",
        "{}\n",
        "no\n{}",
        "{}\nno",
        "no\n {}\n",
        "({})",
    ]
    forms += ["{}\u2028", "{}\x85no", "no\u2028{}", "{}?", '"{}"', "{} and {}", "{}{}"]
    answers = [form.format(name, name) for form in forms for name in (*names, "yuki", "Zoë", "")]
    cases = [(answer, gold) for answer in [*answers, *ODD] for gold in (names[:1], names[1:])]

    def upstream(metric: str) -> Callable[[str, list[str]], float]:
        own = SimpleNamespace(metric=metric, gold_answers=[])
        return lambda answer, gold: method(own, answer, gold)

    return [
        compare(
            f"NoLiMa: score {metric}",
            cases,
            lambda answer, gold, metric=metric: nolima.nolima_score(metric, answer, gold),
            upstream(metric),
        )
        for metric in ("contains", "EM", "lastline_contains", "lastline_EM")
    ]


def nolima_prompts(clone: Path, tokenizer: PromptTokenizer) -> list[Comparison]:
    """Texts around the needle, with and without distractor, and drawn names."""
    spec = importlib.util.spec_from_file_location("book", clone / "data" / "book_haystack.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    draw = random.Random(0)
    words = ["sea", "mast", "Ishmael,", "é", "whale.", "\u2028", "a", "the", "— so", "harpoon"]
    lines = [" ".join(draw.choices(words, k=draw.randint(0, 60))) for _ in range(1500)]
    equal, total, ends = {False: 0, True: 0}, {False: 0, True: 0}, 0
    names = ["Yuki", "Stuart", "Veronica", "Zoë"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "book.txt"
        file.write_text("\n".join(lines), encoding="utf-8")
        book = Book("book", file.read_text("utf-8"), tokenizer)
        haystack = module.BookHaystack(str(file))
        encode = lambda text: tokenizer.encode(text).tolist()  # noqa: E731
        for distractor in (None, "There was a museum in Dresden."):
            test = nolima.Test(
                "0401_T1_onehop", "onehop", 443, nolima.TEMPLATE, "Actually, {CHAR} lives there.",
                "Which character?", distractor, tuple(names), (),
            )  # fmt: skip
            for length in (250, 1000, 4000):
                np.random.seed(443)
                for place in nolima.placements(test, [book], length, 26):
                    name = str(np.random.choice(names))
                    needle = test.needle.replace("{CHAR}", name)
                    try:
                        expected = haystack.generate_w_needle_placement(
                            needle, len, encode, tokenizer.decode, length,
                            depth=place.depth, distractor=distractor,
                        )["text"]  # fmt: skip
                    except (IndexError, ValueError, AssertionError):
                        expected, ends = None, ends + 1  # upstream ends there
                    prompt = nolima.TEMPLATE.format(haystack=expected, question=test.question)
                    try:
                        own = place.messages()[-1][1]
                    except InputError:
                        own = nolima.TEMPLATE.format(haystack=None, question=test.question)
                    key = distractor is not None
                    total[key] += 1
                    equal[key] += own == prompt and place.answers == [name]
    template = (clone / "evaluation" / "run_tests.py").read_text("utf-8")
    assigned = [
        ast.literal_eval(node.value)
        for node in ast.parse(template).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEFAULT_TASK_TEMPLATE"
    ]
    return [
        ("NoLiMa: prompts", equal[False], total[False], "3 lengths, 26 depths"),
        ("NoLiMa: prompts with a distractor", equal[True], total[True], f"both refuse {ends}"),
        ("NoLiMa: template", int(assigned == [nolima.TEMPLATE]), 1, ""),
    ]

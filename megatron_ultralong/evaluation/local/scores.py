"""Scores of InfiniteBench and LV-Eval, one definition a task, as upstream states them.

The definitions are those of LongBench, which LV-Eval and InfiniteBench took over: F1 over the
bag of words after lower-casing and removing punctuation and articles; Chinese without spaces.
"""

import functools
import itertools
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from megatron_ultralong.evaluation.local import lv_eval
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.program.optional import optional_package

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE_PUNCTUATION = str.maketrans("", "", string.punctuation + lv_eval.PUNCTUATION_ZH)


def normalised(text: str) -> str:
    """``"The cat,  a Dog!" -> "cat dog"``."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normalised_chinese(text: str) -> str:
    """Lower case, without punctuation and without any space."""
    return "".join(text.lower().translate(_CHINESE_PUNCTUATION).split())


def f1(prediction: Sequence[str], truth: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of a bag of words; 0 where they share none."""
    same = sum((Counter(prediction) & Counter(truth)).values())
    if not same:
        return 0.0
    precision, recall = same / len(prediction), same / len(truth)
    return 2 * precision * recall / (precision + recall)


def words(text: str) -> list[str]:
    """Normalised words of an English text."""
    return normalised(text).split()


def chinese_words(text: str) -> list[str]:
    """Normalised words of a Chinese text, as jieba cuts them."""
    return [*filter(None, map(normalised_chinese, segmented(text)))]


def segmented(text: str) -> list[str]:
    """Words of a Chinese text, by jieba's exact mode."""
    jieba = optional_package("jieba", "words of Chinese answers")
    jieba.setLogLevel("WARNING")
    return list(jieba.cut(text, cut_all=False))


def rouge_l(prediction: str, truth: str) -> float:
    """ROUGE-L F of the package ``rouge``; 0 where a side has no words, as LongBench has it."""
    rouge = optional_package("rouge", "ROUGE-L").Rouge()
    try:
        scores = rouge.get_scores([prediction], [truth], avg=True)
    except (ValueError, RecursionError, ZeroDivisionError):  # an empty side; a very long one
        return 0.0
    return float(scores["rouge-l"]["f"])


def rouge_l_summary(prediction: str, truth: str) -> float:
    """ROUGE-Lsum F of the package ``rouge-score``, without stemming: lines are sentences."""
    scorer = optional_package("rouge_score.rouge_scorer", "ROUGE-Lsum")
    score = scorer.RougeScorer(["rougeLsum"], use_stemmer=False).score(truth, prediction)
    return float(score["rougeLsum"].fmeasure)


_DIGITS = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"\d+\.\d+|\d+")
MOST_DIGITS = 64
"""Of a number in JSON that is read here."""
_RETRIEVAL_MARKS = "\n:\"'.,?!{}"


def infinitebench_score(
    task: str, prediction: str, label: Any, template: PromptTemplate = "base"
) -> float:
    """Score of one answer, 0 to 1.

    Answers to upstream's chat messages for ``math_calc`` begin with the expression's first number,
    as its solved turn does: upstream drops it, and so does this.
    """
    if task == "math_calc" and template == "chat":
        prediction = _DIGITS.sub(" ", prediction, count=1)
    return float(_SCORES[task](prediction, label))


def _all(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [label]


def _first(label: Any) -> Any:
    return _all(label)[0]


def _without(text: str, marks: str | list[str]) -> str:
    for mark in marks:
        text = text.replace(mark, " ")
    return text


def _first_digits(prediction: str, label: Any) -> bool:
    """passkey, number_string: the first run of digits is the number."""
    found = _DIGITS.search(prediction)
    return bool((found[0] if found else "") == _first(label))


def _dialogue(prediction: str, label: Any) -> bool:
    """A single word of the answer is the name, in capitals."""
    found = _without(prediction.strip(), _RETRIEVAL_MARKS).split()
    return _first(label) in [word.upper() for word in found]


def _code_run(prediction: str, label: Any) -> bool:
    """The last word is the number."""
    found = _without(prediction.strip(), "\n.`'\":").split()
    try:
        return bool(found) and int(found[-1]) == _first(label)
    except ValueError:
        return False


def _whole(digits: str) -> int | None:
    """The number; None for more digits than any label has, where Python's own limit is an error."""
    return int(digits) if len(digits) <= MOST_DIGITS else None


def _math_find(prediction: str, label: Any) -> bool:
    """The first number, whole or decimal, is the one asked for."""
    wanted, found = _first(label), _NUMBER.search(prediction)
    if found is None:
        return False
    if isinstance(wanted, int):
        # Upstream's int("1.5") ends its program: such an answer is wrong.
        return found[0].isdigit() and _whole(found[0]) == wanted
    return float(found[0]) == float(wanted)


def _math_calc(prediction: str, label: Any) -> float:
    """Share of the values that are right, up to the first that is not."""
    wanted = label[0] if isinstance(label[0], list) else label
    pairs = zip(map(_whole, _DIGITS.findall(prediction)), wanted, strict=False)
    right = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return len([*right]) / len(wanted)


def _after_prefix(prediction: str, prefixes: list[str], labels: list[str]) -> bool | None:
    """Whether a label follows the first prefix that is found; None where none is."""
    for prefix in prefixes:
        place = prediction.find(prefix)
        if place < 0:
            continue
        after = prediction[place + len(prefix) + 1 :]
        return any(after.startswith(label) for label in labels)
    return None


def _squeezed(text: str) -> str:
    return re.sub(" {2,}", " ", text)


def _code_debug(prediction: str, label: Any) -> bool:
    function, letter = label
    text = prediction.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return True
    text = _squeezed(_without(text, ["\n", "`", "'", '"', "-", "*", "Option", "option"]))
    prefixes = ["answer is:", "is:", "answer:", "correct option is:"]
    return bool(_after_prefix(text, prefixes, [letter, function]))


def _choice(prediction: str, label: Any) -> bool:
    text = prediction.strip()
    if not text:
        return False
    if text[0] in "ABCD":
        return text[0] in label
    if text in label:
        return True
    text = _squeezed(_without(text, "\n\"'.,?!{}"))
    prefixes = ["answer is:", "answer:", "answer is", "option is"]
    after = _after_prefix(text, prefixes, label)
    if after is not None:
        return after
    letters = [word for word in text.split() if word in "ABCD"]
    return bool(letters) and letters[0] in label


def _best_f1(cut: Callable[[str], Sequence[str]], prediction: str, label: Any) -> float:
    return max(f1(cut(prediction), cut(truth)) for truth in _all(label))


_SCORES: dict[str, Callable[[str, Any], float]] = {
    "passkey": _first_digits,
    "number_string": _first_digits,
    "kv_retrieval": lambda prediction, label: (
        _first(label) in _without(prediction, _RETRIEVAL_MARKS).split()
    ),
    "longbook_sum_eng": lambda prediction, label: rouge_l_summary(prediction, _first(label)),
    "longbook_choice_eng": _choice,
    "longbook_qa_eng": functools.partial(_best_f1, words),
    "longbook_qa_chn": functools.partial(_best_f1, normalised_chinese),
    "longdialogue_qa_eng": _dialogue,
    "math_find": _math_find,
    "math_calc": _math_calc,
    "code_run": _code_run,
    "code_debug": _code_debug,
}


def lv_eval_score(metric: lv_eval.Metric, prediction: str, references: Mapping[str, Any]) -> float:
    """Score of one answer, 0 to 1; ``references`` are ``answer``, the first of upstream's, and
    ``keywords``, which may be None.
    """
    answer, keywords = references["answer"], references["keywords"]
    return _METRICS[metric](prediction, answer, keywords)


def _f1_keywords(prediction: str, answer: str, keywords: str | None) -> float:
    written = words(prediction)
    if keywords and _recall(written, words(keywords), lv_eval.STOP_WORDS) < lv_eval.KEYWORD_RECALL:
        return 0.0
    return f1(written, words(answer))


def _f1_keywords_zh(prediction: str, answer: str, keywords: str | None) -> float:
    written = chinese_words(prediction)
    wanted = chinese_words(keywords or answer)
    if wanted and _recall(written, wanted, lv_eval.STOP_WORDS_ZH) < lv_eval.KEYWORD_RECALL_ZH:
        return 0.0
    return f1(written, chinese_words(answer))


def _recall(written: Sequence[str], wanted: Sequence[str], without: Collection[str]) -> float:
    """Share of ``wanted`` that is written; words of ``without`` count as not found."""
    common = Counter(written) & Counter(wanted)
    found = sum(count for word, count in common.items() if word not in without)
    return found / len(wanted) if wanted else 1.0


def _rouge_l_zh(prediction: str, answer: str, keywords: str | None) -> float:
    def kept(text: str) -> str:
        # Upstream cuts, joins by spaces and cuts again: the spaces become words that are emptied.
        cut = segmented(" ".join(segmented(text)))
        return " ".join(
            word for word in map(normalised_chinese, cut) if word not in lv_eval.STOP_WORDS_ZH
        )

    return rouge_l(kept(prediction), kept(answer))


_METRICS: dict[lv_eval.Metric, Callable[[str, str, str | None], float]] = {
    "f1": lambda written, answer, _: f1(words(written), words(answer)),
    "f1_zh": lambda written, answer, _: f1(chinese_words(written), chinese_words(answer)),
    "f1_keywords": _f1_keywords,
    "f1_keywords_zh": _f1_keywords_zh,
    "rouge_l_zh": _rouge_l_zh,
}

"""Scores of written answers that benchmarks share: normalised words, F1, ROUGE.

The definitions are those of LongBench, which LV-Eval and InfiniteBench took over: F1 over the
bag of words after lower-casing and removing punctuation and articles; Chinese without spaces.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from megatron_ultralong.program.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
_CHINESE_PUNCTUATION = _PUNCTUATION | frozenset(
    "\uff01\uff1f\uff61\u3002\uff02\uff03\uff04\uff05\uff06\uff07\uff08\uff09\uff0a\uff0b\uff0c"
    "\uff0d\uff0f\uff1a\uff1b\uff1c\uff1d\uff1e\uff20\uff3b\uff3c\uff3d\uff3e\uff3f\uff40\uff5b"
    "\uff5c\uff5d\uff5e\uff5f\uff60\uff62\uff63\uff64\u3001\u3003\u300b\u300c\u300d\u300e\u300f"
    "\u3010\u3011\u3014\u3015\u3016\u3017\u3018\u3019\u301a\u301b\u301c\u301d\u301e\u301f\u3030"
    "\u303e\u303f\u2013\u2014\u2018\u2019\u201b\u201c\u201d\u201e\u201f\u2026\u2027\ufe4f."
)


def normalised(text: str) -> str:
    """``"The cat,  a Dog!" -> "cat dog"``."""
    kept = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def normalised_chinese(text: str) -> str:
    """Lower case, without punctuation and without any space."""
    kept = "".join(letter for letter in text.lower() if letter not in _CHINESE_PUNCTUATION)
    return "".join(kept.split())


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
    cut = (normalised_chinese(word) for word in segmented(text))
    return [word for word in cut if word]


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


def optional_package(name: str, what: str) -> Any:
    """A package that only some scores need.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec(name.split(".")[0]) is None:
        raise InputError(
            f"{what} need the package {name.split('.')[0]}, which is not installed: "
            "pip install -e '.[benchmarks]' in the folder of this project"
        )
    return importlib.import_module(name)

"""LV-Eval's metrics: F1 that counts only where enough of the answer's keywords are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from megatron_ultralong.evaluation.local.lv_eval import (
    KEYWORD_RECALL,
    KEYWORD_RECALL_ZH,
    STOP_WORDS,
    STOP_WORDS_ZH,
    Metric,
)
from megatron_ultralong.evaluation.local.text_scores import (
    chinese_words,
    f1,
    normalised_chinese,
    rouge_l,
    segmented,
    words,
)


def lv_eval_score(metric: Metric, prediction: str, references: Mapping[str, Any]) -> float:
    """Score of one answer, 0 to 1.

    Args:
        metric: of the data set.
        prediction: what the model wrote.
        references: ``answer``, the first of upstream's, and ``keywords``, which may be None.
    """
    answer, keywords = references["answer"], references["keywords"]
    return _METRICS[metric](prediction, answer, keywords)


def _f1(prediction: str, answer: str, keywords: str | None) -> float:
    return f1(words(prediction), words(answer))


def _f1_zh(prediction: str, answer: str, keywords: str | None) -> float:
    return f1(chinese_words(prediction), chinese_words(answer))


def _f1_keywords(prediction: str, answer: str, keywords: str | None) -> float:
    written = words(prediction)
    if keywords and _recall(written, words(keywords), STOP_WORDS) < KEYWORD_RECALL:
        return 0.0
    return f1(written, words(answer))


def _f1_keywords_zh(prediction: str, answer: str, keywords: str | None) -> float:
    written = chinese_words(prediction)
    wanted = chinese_words(keywords or answer)
    if wanted and _recall(written, wanted, STOP_WORDS_ZH) < KEYWORD_RECALL_ZH:
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
        return " ".join(word for word in map(normalised_chinese, cut) if word not in STOP_WORDS_ZH)

    return rouge_l(kept(prediction), kept(answer))


_METRICS: dict[Metric, Callable[[str, str, str | None], float]] = {
    "f1": _f1,
    "f1_zh": _f1_zh,
    "f1_keywords": _f1_keywords,
    "f1_keywords_zh": _f1_keywords_zh,
    "rouge_l_zh": _rouge_l_zh,
}

"""LV-Eval's eleven sets: prompts, metrics and lengths of answers as upstream states them.

Facts from infinigence/LVEval (MIT licence, github.com/infinigence/LVEval): ``config.py`` and
``metrics.py``. The prompts and word lists are upstream's to the letter: figures are comparable only
so.
"""

import dataclasses
from typing import Annotated, Literal

from megatron_ultralong.evaluation.local.options import CutConfig
from megatron_ultralong.evaluation.options import check_tasks
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.required import Required

Metric = Literal["f1_keywords", "f1_keywords_zh", "f1", "f1_zh", "rouge_l_zh"]
LEVELS = ("16k", "32k", "64k", "128k", "256k")


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What upstream states of a set."""

    metric: Metric
    template: str
    max_new_tokens: int = 64


def _passages(which: str) -> str:
    """The English prompt; ``which`` passages a question is about."""
    only = f"Questions and answers are only relevant to {which}. "
    short = "Only give me the answer and do not output any other explanation and evidence."
    return (
        f"Please answer the following question based on the given passages. {only}{short}\n\n"
        "Article: {context}\n\n"
        f"Please answer the following question based on the above passages. {only}{short}\n\n"
        "Question: {input}\nAnswer:"
    )


_SOME = _passages("some passages").replace(
    "Please answer the following question based on the given",
    "Answer the question based on the given",
)
_ONE = _passages("one passage")
_ONE_ARTICLE_ZH = "问题和答案只与其中一篇文章有关。"

DATA_SETS: dict[str, DataSet] = {
    "hotpotwikiqa_mixup": DataSet("f1_keywords", _SOME),
    "loogle_SD_mixup": DataSet("f1_keywords", _ONE),
    "loogle_CR_mixup": DataSet("f1_keywords", _ONE),
    "loogle_MIR_mixup": DataSet("f1_keywords", _ONE),
    "multifieldqa_en_mixup": DataSet("f1_keywords", _ONE),
    "multifieldqa_zh_mixup": DataSet(
        "f1_keywords_zh",
        f"请阅读以下文章并用中文回答问题，{_ONE_ARTICLE_ZH}只需要直接给出问题的答案，"
        "不要输出其他任何解释和证据。\n\n文章：{context}\n\n"
        f"请基于上面的文章回答下面的问题，{_ONE_ARTICLE_ZH}只需要直接给出问题的答案，"
        "不要输出其他任何解释和证据。\n\n问题：{input}\n回答：",
    ),
    "factrecall_en": DataSet(
        "f1",
        "Please answer the following questions based on the given article.\n\nArticle: {context}"
        "\n\nPlease answer the following questions based on the above article.\n\nQuestion: "
        "{input}\nAnswer:",
        16,
    ),
    "factrecall_zh": DataSet(
        "f1_zh",
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n现在请基于上述文章回答下面的问题。"
        "\n\n问题：{input}\n回答：",
        16,
    ),
    "cmrc_mixup": DataSet(
        "f1_keywords_zh",
        f"请根据下面给定的文章回答问题，{_ONE_ARTICLE_ZH}\n\n文章：{{context}}\n\n"
        f"现在请基于上述文章回答下面的问题，{_ONE_ARTICLE_ZH}\n\n问题：{{input}}\n回答：",
    ),
    "lic_mixup": DataSet(
        "f1_keywords_zh",
        f"请根据下面给定的文章回答问题，{_ONE_ARTICLE_ZH}\n\n文章：{{context}}\n\n"
        f"请现在基于上述文章回答下面的问题，{_ONE_ARTICLE_ZH}\n\n问题：{{input}}\n回答：",
    ),
    "dureader_mixup": DataSet(
        "rouge_l_zh",
        f"请根据下面给定的文章回答问题，{_ONE_ARTICLE_ZH}\n\n文章：{{context}}\n\n"
        f"现在请基于上述文章回答下面的问题，{_ONE_ARTICLE_ZH}\n\n问题：{{input}}\n回答：",
    ),
}

STOP_WORDS = frozenset(
    "and to of in her was with for it from is that his he by she they or at because be on are "
    "their what as had were about being this who but have has when which does".split()
)
"""English words that do not count among the keywords found."""

STOP_WORDS_ZH = frozenset(
    "的 和 是 等 在 年 可以 为 与 ‰ 了 或 一种 月 c 至 日 有 进行 于 不 中 × 根据 "
    "小 由 亩 也 要 指 法 会 元 主要 以及 通过 首先 对 然后 号 以 所 后 丁 包括 无 将 "
    "用 能 形 方面 因素 位于 而 从 到 一定 用于 但 使用 让 具有 并 亿元 万元 上 类 "
    "基于 才 来 地 片 其他 个 或者 变得 时 给 你 使 条 受 已经 带 度".split()
)
"""Chinese ones, and words left out before ROUGE."""
KEYWORD_RECALL, KEYWORD_RECALL_ZH = 0.2, 0.4
"""Share of an answer's keywords that has to be found, else the score is 0."""


@dataclasses.dataclass(frozen=True)
class LvEvalConfig(CutConfig):
    """LV-Eval's eleven sets from a local copy."""

    data: Annotated[str, Required("the folder with upstream's files")] = ""
    """Folder with upstream's files: hotpotwikiqa_mixup_16k.jsonl, or the same in a folder with the
    name of the set."""
    tasks: tuple[str, ...] = tuple(DATA_SETS)
    """Sets to use; default: all eleven."""
    length_levels: tuple[str, ...] = LEVELS
    """Lengths in words, as upstream names its files."""
    prompt_template: PromptTemplate = "base"
    """base: upstream's prompt. chat: the prompt as a user turn of the model's family."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        super().check()
        check_tasks(self.tasks, DATA_SETS)
        unknown = [level for level in self.length_levels if level not in LEVELS]
        if unknown or not self.length_levels:
            raise InputError(
                f"length_levels {list(self.length_levels)} must be among {', '.join(LEVELS)}"
            )

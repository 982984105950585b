"""``evaluate graphwalks``: OpenAI's GraphWalks, from a local copy or from generated graphs.

Facts from the card of the data set openai/graphwalks (MIT licence,
huggingface.co/datasets/openai/graphwalks): the columns, the prompt and the grading.
"""

import functools
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from megatron_ultralong.evaluation.asking.questions import Question
from megatron_ultralong.evaluation.local import conversation
from megatron_ultralong.evaluation.local.conversation import Row
from megatron_ultralong.evaluation.local.graph_prompt import make_graph_prompt
from megatron_ultralong.evaluation.local.options import GRAPHWALKS_TASKS, GraphWalksConfig
from megatron_ultralong.evaluation.models.interface import Generator
from megatron_ultralong.evaluation.models.opening import Subject
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.result import Result

UPSTREAM = "grading of openai/graphwalks, its card of 27 February 2026"
_LIST = re.compile(r"Final Answer: ?\[.*\]")
_KEYS = ("prompt", "answer_nodes", "problem_type")


def answer_nodes(text: str) -> list[str] | None:
    """Nodes of the list in the very last line; None where there is none.

    The card's ``strip("[]")`` leaves ``Final Answer: [`` on the first node; so read, no answer
    would ever be right. The list is what stands between the brackets.
    """
    found = _LIST.search(text.split("\n")[-1])
    if found is None:
        return None
    inner = found[0][found[0].index("[") :].strip("[]")
    return [node.strip() for node in inner.split(",") if node.strip()]


def graphwalks_score(prediction: str, references: Collection[str]) -> float:
    """F1 of the set of nodes, 0 to 1.

    Nothing found where there is nothing is 1. The card gives 1 to every answer without a right
    node, too, and gave 0 to all of them before: what is wrong is 0 here, as in published figures.
    """
    nodes = answer_nodes(prediction)
    if nodes is None:
        return 0.0
    written, truth = set(nodes), set(references)
    if not written and not truth:
        return 1.0
    num_right = len(written & truth)
    if not num_right:
        return 0.0
    recall, precision = num_right / len(truth), num_right / len(written)
    return 2 * (recall * precision) / (recall + precision)


def true_answer(nodes: Sequence[str]) -> str:
    """The line that a model has to write."""
    return f"Final Answer: [{', '.join(nodes)}]"


def rows_of(files: Mapping[Path, str]) -> Iterator[Row]:
    """Questions of files, which are given with their hashes."""
    for file, sha256 in files.items():
        for row in conversation.read_rows(file, _KEYS):
            nodes, task = row.strings("answer_nodes"), row.string("problem_type")
            if task not in GRAPHWALKS_TASKS:
                raise row.wrong("problem_type", f"one of {', '.join(GRAPHWALKS_TASKS)}")
            messages = (("user", row.string("prompt")),)
            yield Row(task, messages, true_answer(nodes), nodes, sha256)


def evaluate_graphwalks(config: GraphWalksConfig, subject: Subject[Generator]) -> Result:
    """Measure GraphWalks, print a table, write JSON, a picture and every answer.

    Every rank calls this; the main one prints and writes.

    Raises:
        InputError: a file that is missing or of another format, a length beyond the trained
            positions or without room for a graph, an output folder in use, or a cost above the
            limit.
    """
    config.check()
    subject.tokenizer.check_template(config.prompt_template)
    files: dict[Path, str] = {}
    if config.data:
        max_length = config.max_length or subject.facts.max_positions
        paths = conversation.data_files(config.data, ("graphwalks*",))
        files = {file: file_sha256(file) for file in paths}
        binned = conversation.questions_by_length(
            rows_of(files), config, subject.tokenizer, max_length, lambda task: graphwalks_score
        )
        questions, lengths = binned.questions, {max_length: "--max-length"}
        notes = conversation.bin_notes(config, max_length, binned)
    else:
        questions = _generated(config, subject)
        lengths = {length: f"length {length}" for length in config.lengths}
        notes = [
            f"graphs generated here, seed {config.seed}; prompt template {config.prompt_template}; "
            "upstream's prompt, which asks for nodes at exactly the depth; prompt and answer "
            "together fill each length and never exceed it"
        ]
    return conversation.evaluate_files(
        *(questions, subject, "graphwalks", config, UPSTREAM, files),
        lengths=lengths,
        metrics=dict.fromkeys(config.tasks, "F1 of the set"),
        notes=notes,
    )


def _generated(config: GraphWalksConfig, subject: Subject[Generator]) -> list[Question]:
    tokenizer, template = subject.tokenizer, config.prompt_template
    decides = conversation.decisive(template, tokenizer, seed=config.seed)
    questions = []
    for task, length, index in itertools.product(
        config.tasks, sorted(config.lengths), range(config.num_samples)
    ):
        room = length - config.max_new_tokens
        make = functools.partial(
            make_graph_prompt,
            tokenizer, template, task, f"{config.seed}/{task}/{length}/{index}", room,
        )  # fmt: skip
        questions.append(
            Question(
                *(task, str(length), index, room, config.max_new_tokens),
                decides=decides,
                make=make,
                score=graphwalks_score,
            )
        )
    questions[0].make()  # its length has room for a graph
    return questions

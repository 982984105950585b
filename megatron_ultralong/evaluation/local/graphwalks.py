"""``evaluate graphwalks``: OpenAI's GraphWalks, from a local copy or from generated graphs.

Facts from the card of the data set openai/graphwalks (MIT licence,
huggingface.co/datasets/openai/graphwalks): the columns, the prompt and the grading. The words of
generated graphs, in ``graphwalks.json``, are those of its first publication; what they ask of a
search is made exact, as its revision of 27 February 2026 does: nodes at the depth itself.
"""

import dataclasses
import functools
import hashlib
import itertools
import random
import re
from collections.abc import Collection
from pathlib import Path

from megatron_ultralong.evaluation.asking.questions import Question
from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.local import conversation, scores
from megatron_ultralong.evaluation.local.conversation import Row
from megatron_ultralong.evaluation.local.options import GraphWalksConfig
from megatron_ultralong.evaluation.local.prompt import PromptForm
from megatron_ultralong.evaluation.models.language_models import Answerer
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.evaluation.ruler.fitting import fit
from megatron_ultralong.generation.prompt_tokenizer import IdArray
from megatron_ultralong.program.json_file import JsonObject, read_json

UPSTREAM = "grading of openai/graphwalks, its card of 27 February 2026"
_LIST = re.compile(r"Final Answer: ?\[.*\]")
_WORDS = read_json(Path(__file__).with_suffix(".json"))
KEYS = ("prompt", "answer_nodes", "problem_type")


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
    return scores.f1([*{*nodes}], [*{*references}]) if nodes or references else 1.0


def row_of(_: Path, row: JsonObject) -> Row:
    """The question of a row."""
    nodes, task = row.strings("answer_nodes"), row.string("problem_type")
    if task not in GraphWalksConfig.TASKS:
        raise row.wrong("problem_type", f"one of {', '.join(GraphWalksConfig.TASKS)}")
    answer = f"Final Answer: [{', '.join(nodes)}]"
    return Row(task, (("user", row.string("prompt")),), answer, nodes, graphwalks_score)


OUT_DEGREE = 3
"""Edges from every node, to different ones."""
MAX_DEPTH = 3
"""Of a search: at most 27 nodes."""


def node_name(number: int) -> str:
    """Ten digits of the number's MD5, as upstream names nodes: ``0 -> cfcd208495``."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()[:10]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A directed graph, and what is asked of it."""

    edges: tuple[tuple[int, int], ...]
    """In the order of the prompt."""
    operation: str
    answer: tuple[int, ...]
    """Nodes that the operation results in, ascending."""


def random_graph(task: str, seed: str, num_nodes: int) -> Graph:
    """A graph of at least four nodes; a function of its arguments."""
    draw = random.Random(f"{seed}/{num_nodes}")
    edges = []
    for node in range(num_nodes):
        others = draw.sample(range(num_nodes - 1), OUT_DEGREE)
        edges += [(node, other + (other >= node)) for other in others]
    draw.shuffle(edges)
    node, depth = draw.randrange(num_nodes), draw.randint(1, MAX_DEPTH)
    if task == "parents":
        found = {start for start, end in edges if end == node}
    else:
        found = _at_depth(edges, node, depth)
    operation = _WORDS[task].format(node=node_name(node), depth=depth)
    return Graph(tuple(edges), operation, tuple(sorted(found)))


def _at_depth(edges: list[tuple[int, int]], node: int, depth: int) -> set[int]:
    """Nodes whose shortest way from ``node`` has so many edges."""
    seen, level = {node}, {node}
    for _ in range(depth):
        level = {end for start, end in edges if start in level} - seen
        seen |= level
    return level


def graph_text(graph: Graph) -> str:
    """The message that asks for the operation's result."""
    lines = "\n".join(f"{node_name(start)} -> {node_name(end)}" for start, end in graph.edges)
    prompt: str = _WORDS["prompt"]
    return prompt.format(edges=lines, operation=graph.operation)


def make_graph_prompt(form: PromptForm, task: str, seed: str, room: int) -> Prompt:
    """A prompt of a graph of as many nodes as ``room`` tokens hold.

    Raises:
        InputError: they do not hold the smallest graph.
    """

    def ids(num_nodes: int) -> IdArray:
        text = graph_text(random_graph(task, seed, num_nodes))
        return form.prompt((("user", text),)).tokens

    num_nodes, tokens = fit(OUT_DEGREE + 1, None, float, ids, room, f"graphwalks' {task}")
    answer = random_graph(task, seed, num_nodes).answer
    return Prompt(tokens, [node_name(node) for node in answer])


def evaluate_graphwalks(config: GraphWalksConfig, subject: Answerer) -> Result:
    """Measure GraphWalks; what is written and raised is as in :func:`evaluate_by_length`, and a
    length without room for a graph is an error, too.
    """
    config.check()
    metrics = dict.fromkeys(config.tasks, "F1 of the set")
    if config.data:
        paths = conversation.data_files(config.data, ("graphwalks*",))
        return conversation.evaluate_by_length(
            *(subject, "graphwalks", config, UPSTREAM, paths, KEYS, row_of), metrics=metrics
        )
    return conversation.evaluate_files(
        *(_generated(config, subject), subject, "graphwalks", config, UPSTREAM, {}),
        lengths={length: f"length {length}" for length in config.lengths},
        metrics=metrics,
        notes=[
            f"graphs generated here, seed {config.seed}; prompt template {config.prompt_template}; "
            "upstream's prompt, which asks for nodes at exactly the depth; prompt and answer "
            "together fill each length and never exceed it"
        ],
    )


def _generated(config: GraphWalksConfig, subject: Answerer) -> list[Question]:
    form = PromptForm(subject.tokenizer, config.prompt_template)
    decides = form.decides(seed=config.seed)
    places = itertools.product(config.tasks, sorted(config.lengths), range(config.num_samples))
    questions = []
    for task, length, index in places:
        room, seed = length - config.max_new_tokens, f"{config.seed}/{task}/{length}/{index}"
        make = functools.partial(make_graph_prompt, form, task, seed, room)
        of = (task, str(length), index, room, config.max_new_tokens)
        questions.append(Question(*of, decides, make, graphwalks_score))
    questions[0].make()  # its length has room for a graph
    return questions

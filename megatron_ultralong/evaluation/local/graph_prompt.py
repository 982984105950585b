"""Prompts of generated graphs, in the form and words of openai/graphwalks.

The words are those of the data set's first publication; what they ask of a search is made exact,
as its revision of 27 February 2026 does: nodes at the depth itself, not before it.
"""

import dataclasses
import hashlib
import random

from megatron_ultralong.evaluation.asking.samples import Prompt
from megatron_ultralong.evaluation.local.conversation import prompt_ids
from megatron_ultralong.evaluation.ruler.fitting import fit
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.generation.prompt_tokenizer import IdArray, PromptTokenizer

_HEAD = """\
You will be given a graph as a list of directed edges. All nodes are at least degree 1. \
You will also get a description of an operation to perform on the graph.
Your job is to execute the operation on the graph and return the set of nodes that the operation \
results in. If asked for a breadth-first search (BFS), only return the nodes that are both \
reachable and exactly at that depth (not nodes at intermediate depths), and do not return the \
starting node. If asked for the parents of a node, only return the nodes that have an edge leading \
to the given node, do not return the given node itself.

Here is an example:
<begin example>

The graph has the following edges:
uvwx -> alke
abcd -> uvwx
abcd -> efgh
efgh -> uvwx

Example 1:
Operation:
{search_abcd}
Final Answer: [uvwx, efgh]

Example 2:
Operation:
{search_alke}
Final Answer: []

Example 3:
Operation:
Find the parents of node uvwx.
Final Answer: [abcd, efgh]

Example 4:
Operation:
Find the parents of node abcd.
Final Answer: []

<end example>
Here is the graph to operate on:
The graph has the following edges:
"""
_TAIL = """

Operation:
{operation}

You should immediately return the set of nodes that the operation results in, with no additional \
text. Return your final answer as a list of nodes in the very last line of your response. For \
example, if the operation returns the set of nodes [node1, node2, node3], your response should be:
Final Answer: [node1, node2, node3]
If the operation returns the empty set, your response should be:
Final Answer: []"""
_SEARCH = (
    "Perform a BFS from node {node} and return only the nodes at exactly depth {depth} (not nodes "
    "at intermediate depths)."
)
_PARENTS = "Find the parents of node {node}."
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
        operation = _PARENTS.format(node=node_name(node))
        found = {start for start, end in edges if end == node}
    else:
        operation = _SEARCH.format(node=node_name(node), depth=depth)
        found = _at_depth(edges, node, depth)
    return Graph(tuple(edges), operation, tuple(sorted(found)))


def _at_depth(edges: list[tuple[int, int]], node: int, depth: int) -> set[int]:
    """Nodes whose shortest way from ``node`` has so many edges."""
    ends: dict[int, list[int]] = {}
    for start, end in edges:
        ends.setdefault(start, []).append(end)
    seen, level = {node}, {node}
    for _ in range(depth):
        level = {end for start in level for end in ends.get(start, ())} - seen
        seen |= level
    return level


def graph_text(graph: Graph) -> str:
    """The message that asks for the operation's result."""
    head = _HEAD.format(
        search_abcd=_SEARCH.format(node="abcd", depth=1),
        search_alke=_SEARCH.format(node="alke", depth=1),
    )
    lines = "\n".join(f"{node_name(start)} -> {node_name(end)}" for start, end in graph.edges)
    return head + lines + _TAIL.format(operation=graph.operation)


class _Nodes:
    """Graphs of more and more nodes, as :func:`fit` takes them."""

    least_units: int = OUT_DEGREE + 1
    most_units: int | None = None

    def estimate(self, num_units: int) -> float:
        return float(num_units)


def make_graph_prompt(
    tokenizer: PromptTokenizer, template: PromptTemplate, task: str, seed: str, room: int
) -> Prompt:
    """A prompt of a graph of as many nodes as ``room`` tokens hold.

    Raises:
        InputError: they do not hold the smallest graph.
    """

    def ids(num_nodes: int) -> IdArray:
        text = graph_text(random_graph(task, seed, num_nodes))
        return prompt_ids(tokenizer, template, (("user", text),))[0]

    num_nodes, tokens = fit(_Nodes(), ids, room, f"graphwalks' {task}")
    answer = random_graph(task, seed, num_nodes).answer
    return Prompt(tokens, [node_name(node) for node in answer])

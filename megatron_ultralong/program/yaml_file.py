"""YAML: numbers as people mean them, no key twice, and texts that are read as they were."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_ultralong.program.errors import InputError

MOST_BYTES = 2**18
"""Of a file: configurations are a few kilobytes."""
_MOST_NAMED = 2 * MOST_BYTES
"""Values and characters of a file, each as often as it is named: a text has no more, unless its
aliases multiply."""
_OF_CONSTRUCTORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What PyYAML's constructors raise, beside its own, for a text that does not fit a stated tag."""


class _Loader(yaml.SafeLoader):
    """PyYAML's, but ``1e-5`` is a number as in YAML 1.2, and ``1:30`` is text."""

    def get_single_node(self) -> Any:
        """The file's node, before anything is made of it, whatever the tags in it make."""
        node = super().get_single_node()
        _num_named(node, {})
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping without a key that stands in it twice."""
        seen = set()
        for key_node, _ in node.value:
            key = (key_node.tag, str(key_node.value))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key[1]!r} stands there twice", key_node.start_mark
                )
            seen.add(key)
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values


_FLOAT = "tag:yaml.org,2002:float"
_INT = "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] not in (_FLOAT, _INT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Function(str):
    """What stands behind the tag ``!function``: the name of a Python function."""


class _TaggedLoader(_Loader):
    """The same, of files that name functions, which are not looked up."""


_TaggedLoader.add_constructor("!function", lambda loader, node: Function(node.value))


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which puts quotes around texts that are numbers in YAML 1.2 alone (``1e-5``)."""


# The core schema of YAML 1.2.2, section 10.3.2.
_INT_TEXT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT_TEXT = re.compile(
    r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_INT, _INT_TEXT, list("-+0123456789"))
    _kind.add_implicit_resolver(_FLOAT, _FLOAT_TEXT, list("-+.0123456789"))
_Loader.add_constructor(_INT, lambda loader, node: int(node.value))  # 010 is ten, not eight


def _num_named(node: Any, known: dict[int, int]) -> int:
    """Values and characters of a node, counted where they are named.

    What is made of it, lists, pairs or mappings with others merged into them, has no more.

    Raises:
        ValueError: too many, or a node that is in itself.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1 if node is None else 1 + len(node.value)
    if id(node) not in known:
        known[id(node)] = _MOST_NAMED  # until it is known: what is in itself has no end
        inner = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_num_named(one, known) for one in inner)
    if known[id(node)] > _MOST_NAMED:
        raise ValueError(f"its aliases (*) make more than {_MOST_NAMED:,} characters of it")
    return known[id(node)]


def yaml_text(values: Mapping[str, Any]) -> str:
    """A mapping of plain values as YAML, which :func:`read_yaml` reads as the same values."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False)
    return text


def read_yaml(path: Path, what: str, *, has_functions: bool = False) -> dict[str, Any]:
    """The mapping that a file holds.

    ``what`` it is called in messages: ``configuration``. ``has_functions``: the tag ``!function``
    is allowed, and makes a :class:`Function`.

    Raises:
        InputError: no such file, or it does not hold one mapping.
    """
    if not path.is_file():
        inside = path / "config.yaml"
        if inside.is_file():
            raise InputError(f"{what} {path} is a folder: give the file in it, {inside}")
        is_there = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{what} {path} {is_there}")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(
            f"{what} {path} has {path.stat().st_size} bytes, and at most {MOST_BYTES} are read: it "
            "is another file"
        )
    try:
        values = yaml.load(
            path.read_text(encoding="utf-8"), _TaggedLoader if has_functions else _Loader
        )
    except (yaml.YAMLError, *_OF_CONSTRUCTORS) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        held = "nothing" if values is None else type(values).__name__
        raise InputError(f"{path} is not a {what}: it holds {held}, not lines of `key: value`")
    return values

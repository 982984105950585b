"""The process in which foreign chat templates are rendered: within a budget of time and memory.

A template is a program: a few characters of it are an endless loop or a string of gigabytes, and
Jinja's sandbox keeps it from Python's objects only. So it runs here, beside the program, where the
system ends what takes too much. :mod:`~megatron_ultralong.data.tokenize.folder_template` starts
this and talks to it in lines of JSON: the template, then for each rendering its variables and the
date that ``strftime_now`` writes. The answer is the text and what of it stands in ``{% generation
%}``.
"""

import datetime
import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

OLDEST_JINJA = (3, 1, 6)
"""Earlier ones have known escapes from the sandbox."""

SECONDS = 2
"""Of processor time for one conversation, which takes a millisecond; another for each megabyte."""

MEMORY = 256 << 20
"""Bytes for one conversation; another 64 for each of its own."""

OUTPUT = 1 << 20
"""Characters that a template may write for one conversation; another 4 for each of its own."""


def main() -> None:
    """Answer every line on standard input with one line: a text, or an error."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a template that is ended leaves no file
    first = sys.stdin.buffer.readline()
    rendering = Rendering()
    template: Any = None
    error = ""
    try:
        template = _compiled(first, rendering)
    except Exception as caught:
        error = _reason(caught)
    _answer({"error": error})
    for line in sys.stdin.buffer:
        try:
            _limit(len(line))
            text = rendering.render(template, line)
            _answer({"text": text, "marked": rendering.marked_spans(text)})
        except Exception as caught:
            _answer({"error": _reason(caught)})


class Rendering:
    """What a template has written so far, and what of it is marked."""

    def __init__(self) -> None:
        self._size = 0
        self._marked: list[tuple[int, str]] = []
        self._most_marks = 0
        self._now: datetime.datetime | None = None

    def render(self, template: Any, line: bytes) -> str:
        """What it writes, piece by piece, so that its length is known before it is whole."""
        asked = json.loads(line)
        parts, left = [], OUTPUT + 4 * len(line)
        self._size, self._marked, self._most_marks = 0, [], left // 16
        self._now = datetime.datetime.fromisoformat(asked["now"]) if asked["now"] else None
        for part in template.generate(asked["variables"]):
            self._size += len(part)
            if self._size > left:
                raise ValueError(f"it writes more than {left:,} characters")
            parts.append(part)
        return "".join(parts)

    def mark(self, text: str) -> None:
        """Told of the body of a ``{% generation %}``, which is written next."""
        if text:
            self._marked.append((self._size, text))
        if len(self._marked) > self._most_marks:
            raise ValueError(f"it marks more than {self._most_marks:,} pieces")

    def marked_spans(self, text: str) -> list[tuple[int, int]]:
        """Characters ``[start, stop)`` of the text that stand in ``{% generation %}``.

        Counted as transformers counts them, which is wrong inside macros, filters and each other:
        what a body wrote does not stand there then.
        """
        for start, body in self._marked:
            if text[start : start + len(body)] != body:
                raise ValueError(
                    "its {% generation %} stands in a macro, a filter or another one, where "
                    "nobody can say what it marks"
                )
        return [(start, start + len(body)) for start, body in self._marked]

    def strftime_now(self, layout: str) -> str:
        """The date that was stated, or else the day's, as transformers gives it to templates."""
        return (self._now or datetime.datetime.now()).strftime(layout)


def _compiled(line: bytes, rendering: Rendering) -> Any:
    """The template of a line, in the environment that transformers makes."""
    import importlib.metadata

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    installed = importlib.metadata.version("jinja2")
    if tuple(int(part) for part in installed.split(".")[:3] if part.isdecimal()) < OLDEST_JINJA:
        raise RuntimeError(f"jinja2 {installed} has known escapes from its sandbox: install 3.1.6")

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant says, and writes its body."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> Any:
            number = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = nodes.CallBlock(self.call_method("_body"), [], [], body)
            return call.set_lineno(number)

        def _body(self, caller: Any) -> Any:
            text = caller()
            rendering.mark(text)
            return text

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = rendering.strftime_now
    _limit(len(line))
    return environment.from_string(json.loads(line))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it stands; Jinja's own filter writes HTML's entities."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _limit(size: int) -> None:
    """Let this process take so much more, by the size of what it works on; the system sees to it.

    Memory beyond it is a MemoryError, time beyond it the end of the process.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + SECONDS + (size >> 20)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere the time alone is limited
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY + 64 * size, resource.RLIM_INFINITY))


def _reason(error: BaseException) -> str:
    """What happened, in words that are not those of Python alone."""
    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "it calls itself without an end, or is nested too deeply"
    return f"{type(error).__name__}: {' '.join(str(error)[:300].split())}"


def _answer(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()

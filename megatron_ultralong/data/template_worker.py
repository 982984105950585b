"""The process in which foreign chat templates are rendered: within a budget of time and memory.

A template is a program: a few characters of it are an endless loop or a string of gigabytes, and
Jinja's sandbox keeps it from Python's objects only. So it runs here, beside the program, where the
system ends what takes too much. :mod:`~megatron_ultralong.data.template_process` starts this and
talks to it in lines of JSON: the template, then for each rendering its variables.
"""

from __future__ import annotations

import datetime
import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

OLDEST_JINJA = (3, 1, 6)
"""Earlier ones have known ways out of the sandbox."""

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
    template: Any = None
    error = ""
    try:
        template = _compiled(first)
    except (Exception, MemoryError) as caught:
        error = _reason(caught)
    _answer({"error": error})
    for line in sys.stdin.buffer:
        try:
            _limit(len(line))
            _answer({"text": _rendered(template, line)})
        except (Exception, MemoryError) as caught:
            _answer({"error": _reason(caught)})


def _compiled(line: bytes) -> Any:
    """The template of a line, in the environment that transformers makes."""
    import importlib.metadata

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    installed = importlib.metadata.version("jinja2")
    if tuple(int(part) for part in installed.split(".")[:3] if part.isdecimal()) < OLDEST_JINJA:
        raise RuntimeError(f"jinja2 {installed} has known ways out of its sandbox: install 3.1.6")

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant says, and writes its body."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> Any:
            number = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = nodes.CallBlock(self.call_method("_body"), [], [], body)
            return call.set_lineno(number)

        def _body(self, caller: Any) -> Any:
            return caller()

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
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


def _rendered(template: Any, line: bytes) -> str:
    """What the template writes, piece by piece, so that its length is known before it is whole."""
    parts, left = [], OUTPUT + 4 * len(line)
    for part in template.generate(json.loads(line)):
        left -= len(part)
        if left < 0:
            raise ValueError(f"it writes more than {OUTPUT + 4 * len(line):,} characters")
        parts.append(part)
    return "".join(parts)


def _reason(error: BaseException) -> str:
    """What happened, in words that are not those of Python alone."""
    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "it calls itself without an end, or is nested too deeply"
    return f"{type(error).__name__}: {' '.join(str(error)[:300].split())}"


def _answer(values: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()

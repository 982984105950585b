"""A foreign chat template, rendered in a process of its own."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import weakref
from types import TracebackType
from typing import Any, NamedTuple

from megatron_ultralong.data.tokenize.template_worker import SECONDS
from megatron_ultralong.program.errors import InputError

MAX_TEMPLATE_BYTES = 1 << 20
"""Of a template; the longest known have 20 kB."""

_PROGRAM = "from megatron_ultralong.data.tokenize.template_worker import main; main()"


class Rendered(NamedTuple):
    """What a template wrote."""

    text: str
    marked: list[tuple[int, int]]
    """Characters ``[start, stop)`` that stand in ``{% generation %}``, in their order."""


class TemplateProcess:
    """Renders conversations as transformers does; what a template does cannot harm this process.

    It ends when it is closed, forgotten, or when this process ends.

    Args:
        text: the template.
        name: where it stands, for messages.
        way_out: what to do where it cannot be rendered.

    Raises:
        InputError: it is too long, or not a template.
    """

    def __init__(self, text: str, name: str, way_out: str = "put the model's own there") -> None:
        self.name, self.way_out = name, way_out
        if len(text.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
            raise self._error(f"it has {len(text):,} characters, where a template has thousands")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",  # -c looks for modules in the current folder first
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        )
        self._end = weakref.finalize(self, _end, self._process)
        self._ask(text)

    def render(self, **variables: Any) -> str:
        """What the template writes for these variables, which are values of JSON.

        Raises:
            InputError: it fails, or takes more than it may; the message names the template.
        """
        return self.render_marked(None, **variables).text

    def render_marked(self, now: datetime.date | None, **variables: Any) -> Rendered:
        """What the template writes, and what of it it marks as the assistant's.

        Args:
            now: what ``strftime_now`` gives it; None: the day's date, as transformers does.
            variables: values of JSON.

        Raises:
            InputError: as :meth:`render`.
        """
        answer = self._ask({"variables": variables, "now": now and now.isoformat()})
        return Rendered(answer["text"], [(start, stop) for start, stop in answer["marked"]])

    @property
    def is_alive(self) -> bool:
        """It has not been ended for what a template took."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._end()

    def __enter__(self) -> TemplateProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, value: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:  # it has ended before
            line = b""
        if not line:
            raise self._error(self._why_it_ended())
        answer: dict[str, Any] = json.loads(line)
        if answer.get("error"):
            raise self._error(answer["error"])
        return answer

    def _why_it_ended(self) -> str:
        status = self._process.wait()
        if status == -signal.SIGXCPU:
            return (
                f"it takes more than {SECONDS} s of processor time, where a conversation takes a "
                "thousandth"
            )
        return f"the process that renders it ended with status {status}"

    def _error(self, reason: str) -> InputError:
        return InputError(
            f"the chat template in {self.name} cannot be rendered ({reason}): {self.way_out}"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was left to write has no reader
                pipe.close()
    process.kill()
    process.wait()

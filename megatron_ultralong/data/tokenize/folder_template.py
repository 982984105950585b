"""The chat template of a tokenizer's folder, rendered in a process of its own."""

import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megatron_ultralong.data.read.conversation import Conversation, Message
from megatron_ultralong.data.tokenize import chat_template, template_worker, tokenising
from megatron_ultralong.program import aside, json_file
from megatron_ultralong.program.errors import InputError

TEMPLATE_FILE, TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"

MAX_TEMPLATE_BYTES = 1 << 20
"""Of a template; the longest known have 20 kB."""

_PROGRAM = "from megatron_ultralong.data.tokenize.template_worker import main; main()"


class Rendered(NamedTuple):
    """What a template wrote."""

    text: str
    marked: list[tuple[int, int]]
    """Characters ``[start, stop)`` that stand in ``{% generation %}``, in their order."""


class TemplateProcess(contextlib.ExitStack):
    """Renders conversations as transformers does; what a template does cannot harm this process.

    It ends when it is closed, forgotten, or when this process ends. ``name`` says in messages where
    the template stands, ``way_out`` what to do where it cannot be rendered.

    Raises:
        InputError: it is too long, or not a template.
    """

    def __init__(self, text: str, name: str, way_out: str = "put the model's own there") -> None:
        super().__init__()
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
        self.callback(weakref.finalize(self, _end, self._process))
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
        """It can be asked again: what went wrong was the conversation's doing."""
        return self._process.poll() is None

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
                f"it takes more than {template_worker.SECONDS} s of processor time, where a "
                "conversation takes a thousandth"
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


FolderDate = Literal["", "same", "fixed", "today"]
"""What date a template writes where it is given none: that of the rows, another one, or the day's;
empty: there is no template, or nobody looked."""

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_LITERAL = re.compile(
    r"'((?:[^'\\]|\\(?:.|\Z))*)(?:'|\Z)" r'|"((?:[^"\\]|\\(?:.|\Z))*)(?:"|\Z)', re.DOTALL
)
"""A text in quotes; one without its end goes to that of the template, so that each is passed once.
"""
_TAG = re.compile(rf"\{{[{{%](?:{_LITERAL.pattern}|(?![%}}]\}}).)*", re.DOTALL)
"""A tag of Jinja up to its end: quotes in the text around it pair with none of its own."""
_SIGN = re.compile(r"[^\w\s\\]")
_LEAST_CHARACTERS = 3
"""Of what a template may look for, one of them a sign; commas and quotes stand in every text."""
_PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_DAYS = (datetime.date(2001, 2, 3), datetime.date(2004, 5, 6))
_ALWAYS_GIVEN = ("bos_token", "eos_token")
_SPECIAL_TOKENS = (*_ALWAYS_GIVEN, "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class FolderTemplate(TemplateProcess):
    """Writes conversations as the template of a folder does.

    Raises:
        InputError: it is not a template.
    """

    def __init__(self, text: str, folder: Path) -> None:
        self.has_marks = _MARKS.search(text) is not None
        """What the assistant says is marked with ``{% generation %}``."""
        tags = (tag[0] for tag in _TAG.finditer(text))
        literals = {one or other for tag in tags for one, other in _LITERAL.findall(tag)}
        found = {part for literal in literals for part in re.split(r"\\.", literal)}
        self._looked_for = [
            part
            for part in found
            if _SIGN.search(part) and len("".join(part.split())) >= _LEAST_CHARACTERS
        ]
        """Texts in it, such as ``</think>``, that it may look for in contents."""
        named = tokenising.named_tokens(folder)
        tokens = {name: named.get(name, "") for name in _SPECIAL_TOKENS}
        self.eos = tokens["eos_token"]
        """Text of the folder's EOS; empty where it names none."""
        self._tokens = {
            name: token for name, token in tokens.items() if token or name in _ALWAYS_GIVEN
        }
        way_out = "put the model's own there, or give --no-check-template"
        super().__init__(text, str(folder), way_out)
        self._folder = folder
        self._of_tools: FolderTemplate | None = None
        """Writes conversations with tools, if the folder has another template for them."""

    @property
    def is_alive(self) -> bool:
        """Both can be asked again."""
        return super().is_alive and (self._of_tools is None or self._of_tools.is_alive)

    def may_treat_otherwise(self, conversation: Conversation) -> bool:
        """Whether a conversation has what two templates that write plain ones alike may not.

        Tools, or a text that this one looks for: some leave thoughts out of earlier answers.
        """
        if conversation.tools is not None or conversation.builtin_tools is not None:
            return True
        return any(
            message.tool_call is not None
            or not isinstance(message.content, str)
            or any(part in message.content for part in self._looked_for)
            for message in conversation.messages
        )

    def render_conversation(self, conversation: Conversation, date: str) -> Rendered:
        """What it writes for a conversation.

        Raises:
            InputError: it fails, or takes more than it may.
        """
        options: dict[str, Any] = {}
        if conversation.builtin_tools is not None:
            options["builtin_tools"] = list(conversation.builtin_tools)
        tools = None if conversation.tools is None else list(conversation.tools)
        messages = [_as_given(message) for message in conversation.messages]
        writer = self if tools is None else self._writer_of_tools()
        return writer.render_messages(messages, date, tools, **options)

    def _writer_of_tools(self) -> "FolderTemplate":
        """What transformers and engines take where tools are given."""
        if self._of_tools is None and (text := folder_template(self._folder, "tool_use")):
            self._of_tools = self.enter_context(FolderTemplate(text, self._folder))
        return self._of_tools or self

    def render_messages(
        self,
        messages: list[dict[str, Any]],
        date: str | None,
        tools: list[Any] | None = None,
        now: datetime.date | None = None,
        **options: Any,
    ) -> Rendered:
        """What it writes for messages; without a ``date`` the one that it has or finds, ``now``."""
        if date is not None:
            options["date_string"] = date
            now = chat_template.date_of(date)
        return self.render_marked(
            now,
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=False,
            **self._tokens,
            **options,
        )

    def own_date(self, date: str) -> FolderDate:
        """What it writes where it is given no date, beside the rows' ``date``."""
        try:
            first, second = (self.render_messages(_PROBE, None, now=day).text for day in _DAYS)
        except InputError:
            if not self.is_alive:
                raise
            return ""  # it cannot do without
        if first != second:
            return "today"
        return "same" if first == self.render_messages(_PROBE, date).text else "fixed"


def _as_given(message: Message) -> dict[str, Any]:
    """A turn as transformers gives it to templates."""
    call = message.tool_call
    if call is None:
        return {"role": message.role, "content": message.content}
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return {"role": message.role, "tool_calls": [{"type": "function", "function": function}]}


def template_files(folder: Path) -> dict[str, Path]:
    """Files of the templates in a tokenizer's folder, by the names that transformers gives them."""
    main = folder / TEMPLATE_FILE
    found = {"default": main} if main.is_file() else {}
    return found | {path.stem: path for path in aside.files_in(folder / TEMPLATE_FOLDER, "*.jinja")}


def folder_template(folder: Path, name: str = "default") -> str | None:
    """The template of a tokenizer's folder, of several that of a name; None: it has none.

    Raises:
        InputError: its file is damaged, or larger than a template is.
    """
    files = template_files(folder)
    if file := files.get(name):
        try:
            return json_file.read_bounded(file, MAX_TEMPLATE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 ({error.reason}): copy it again") from error
    value = tokenising.side_file(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        value = next((e.get("template") for e in entries if e.get("name") == name), None)
    elif name != "default":
        return None
    return value if isinstance(value, str) and "default" not in files else None

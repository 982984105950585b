"""The chat template that conversations were written with, for the model that learns them.

A model answers well in the template that it was trained with alone. Rows of ``prepare chat`` know
it, whatever else lies beside a tokenizer; a checkpoint and its exports take it from them. Its end
of an answer is a stop token, which the files of a model may not name.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from megatron_ultralong.data.rows.manifest import TOKENIZER_FOLDER, ChatManifest
from megatron_ultralong.data.tokenize import engines, refused_tokenizer, tokenising
from megatron_ultralong.data.tokenize.chat_template import END, TEMPLATES
from megatron_ultralong.data.tokenize.folder_template import (
    TEMPLATE_FILE,
    TEMPLATE_FOLDER,
    FolderTemplate,
    folder_template,
)
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer
from megatron_ultralong.program.aside import remove, write_aside
from megatron_ultralong.program.errors import InputError, counted

_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_TOKENS = ("bos_token", "eos_token")
GENERATION_FILE = "generation_config.json"
_ANSWER = "ultralong"


class TrainedTemplate(NamedTuple):
    """A template, and what it calls by another name."""

    text: str
    tokens: dict[str, str]
    """``bos_token`` and ``eos_token`` of the tokenizer, where the template writes them."""
    doubt: str = ""
    """What rows may have that it does not write, for messages."""
    ends: tuple[str, ...] = ()
    """Special tokens that end an answer."""

    @property
    def sha256(self) -> str:
        """Of the text."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()

    def lacks(self, folder: Path) -> str:
        """What the tokenizer in ``folder`` has instead, for messages; empty if it has this.

        Raises:
            InputError: a file of the folder is damaged.
        """
        found = folder_template(folder)
        if found != self.text:
            return "none" if found is None else "another one"
        for name, token in self.tokens.items():
            if (other := tokenising.named_tokens(folder).get(name, "")) != token:
                return f"it with {name} {other!r}, not {token!r}"
        return ""

    def put(self, folder: Path) -> None:
        """Make it that of the tokenizer in ``folder``, for every release of transformers.

        Others, which the folder has for some purposes, go: nothing was trained with them.

        Raises:
            InputError: a file of the folder is damaged. OSError: nothing can be written.
        """
        remove(folder / TEMPLATE_FOLDER)
        for file in _TOKEN_FILES:
            values = tokenising.side_file(folder, file)
            known = self.tokens.keys() & (values.keys() if file == _TOKEN_FILES[1] else _TOKENS)
            new = {**values, **{name: self.tokens[name] for name in known}}
            new.pop("chat_template", None)
            if new != values:
                write_aside(folder / file, json.dumps(new, indent=2, ensure_ascii=False) + "\n")
        write_aside(folder / TEMPLATE_FILE, self.text)

    def missed_ends(self, folder: Path) -> dict[str, int]:
        """Those of ``ends`` at which the model of ``folder`` does not stop, with their ids.

        A base model's files name the end of a document alone, and engines would write on behind an
        answer. Empty where the folder has no tokenizer.

        Raises:
            InputError: a file of the folder is damaged.
        """
        has_tokenizer = any((folder / name).is_file() for name in refused_tokenizer.NAMES)
        return _unnamed(folder, engines.open_reference(folder), self.ends) if has_tokenizer else {}

    def stop_at_ends(self, folder: Path) -> None:
        """Let ``generation_config.json`` name them too, from which engines take their stops.

        Raises:
            InputError: a file of the folder is damaged. OSError: nothing can be written.
        """
        if missed := self.missed_ends(folder):
            ids = [*named_stop_ids(folder), *missed.values()]
            values = {**tokenising.side_file(folder, GENERATION_FILE), "eos_token_id": ids}
            write_aside(folder / GENERATION_FILE, json.dumps(values, indent=2) + "\n")


def trained_template(rows: Path, manifest: ChatManifest) -> TrainedTemplate:
    """The template that rows were written with, whatever this program's writes by now.

    Raises:
        InputError: the text in the folder is damaged, missing or not that of the rows, the manifest
            names no template, or the rows are of a version that wrote their thoughts wrong.
    """
    found = template_of(rows, manifest)
    if expected := manifest.chat_template_sha256:
        kept = folder_template(rows / TOKENIZER_FOLDER)
        known = (found, *(_with_tokens(rows, t, found.ends) for t in [kept] if t is not None))
        if its := next((one for one in known if one.sha256 == expected), None):
            return its
        raise InputError(
            f"the rows of {rows} were written with a chat template of SHA-256 {expected[:12]}..., "
            f"and {rows / TOKENIZER_FOLDER} has one of {known[-1].sha256[:12]}...: copy the folder "
            "again, or prepare the conversations again"
        )
    named = next((t for t in TEMPLATES.values() if t.name == manifest.chat_template), None)
    if named is None or not named.has_thoughts:
        return found
    doubt = (
        f"the rows of {rows} are of a version whose template {named.name} put an empty thought "
        "before the thought of an answer; if answers have thoughts, prepare them again"
    )
    num = sum(source.num_with_reasoning for source in manifest.sources)
    if num and manifest.reasoning == "keep":
        raise InputError(f"{doubt}: so have {counted(num, 'conversation')}")
    return found._replace(doubt=doubt)


def template_of(rows: Path, manifest: ChatManifest) -> TrainedTemplate:
    """That of new rows: the one of their folder if it was compared, else ``--chat-template``.

    Raises:
        InputError: the folder's template is damaged or missing, or the manifest names none.
    """
    folder = rows / TOKENIZER_FOLDER
    text = folder_template(folder)
    named = next((t for t in TEMPLATES.values() if t.name == manifest.chat_template), None)
    if not manifest.folder_template_checked:
        if named is None:
            raise InputError(
                f"the manifest of {rows} names chat_template {manifest.chat_template!r}, and this "
                f"program has {', '.join(TEMPLATES)}: prepare the conversations again"
            )
        text = named.jinja_with(manifest.date_string)
    elif text is None:
        raise InputError(
            f"{folder} has no chat template, and the manifest beside it states that it was "
            "compared with one: copy the folder again, or prepare the conversations again"
        )
    ends = named.ends if named else ()
    texts = (
        tokenising.named_tokens(folder).get("eos_token") if end == END else end for end in ends
    )
    return _with_tokens(rows, text, tuple(filter(None, texts)))


def _with_tokens(rows: Path, text: str, ends: tuple[str, ...]) -> TrainedTemplate:
    folder = rows / TOKENIZER_FOLDER
    named = tokenising.named_tokens(folder)
    its = {name: named[name] for name in _TOKENS if name in named and name in text}
    return TrainedTemplate(tokenising.well_formed(text), its, ends=ends)


def named_stop_ids(folder: Path) -> list[int]:
    """Ids that end a text of the model in ``folder``: engines take the first file that has some."""
    files = (GENERATION_FILE, "config.json")
    named = (tokenising.side_file(folder, file).get("eos_token_id") for file in files)
    ids: Any = next((one for one in named if one is not None), [])
    return [*ids] if isinstance(ids, list) else [ids]


def _unnamed(folder: Path, tokenizer: DocumentTokenizer, texts: Iterable[str]) -> dict[str, int]:
    """Ids of special tokens, by their texts, that the model in ``folder`` does not stop at."""
    ids, known = {text: tokenizer.encode_separator(text) for text in texts}, named_stop_ids(folder)
    return {text: its[0] for text, its in ids.items() if len(its) == 1 and its[0] not in known}


def missed_end(folder: Path) -> tuple[str, int] | None:
    """Text and id of the token that ends an answer in the chat template of ``folder`` unnamed.

    Many tuned models have the files of their base, whose texts end with another token. None: a file
    names it, or it is the tokenizer's EOS, or there is no template or no tokenizer.

    Raises:
        InputError: a file of the folder is damaged.
    """
    template = folder_template(folder)
    if template is None or not any((folder / name).is_file() for name in refused_tokenizer.NAMES):
        return None
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        process = FolderTemplate(template, folder)
        with process:
            text, eos = process.render_messages(messages, None).text, process.eos
    except InputError:  # whoever renders it is told
        return None
    behind, tokenizer = text.rpartition(_ANSWER)[2].lstrip(), engines.open_reference(folder)
    ends = [one for one in tokenizer.special_texts if one != eos and behind.startswith(one)]
    end = max(ends, key=len, default="")
    return next(iter(_unnamed(folder, tokenizer, [end] if end else []).items()), None)

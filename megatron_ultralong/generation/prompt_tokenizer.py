"""The model's tokenizer, as prompts need it: special tokens by name, everything else as text."""

import functools
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from megatron_ultralong.data.tokenize.engines import choose_tokenizer
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate, folder_template
from megatron_ultralong.data.tokenize.template_comparison import check_ids, difference
from megatron_ultralong.generation.prompt_template import PromptTemplate
from megatron_ultralong.model.families import FAMILIES, llama
from megatron_ultralong.model.families.family import Turns
from megatron_ultralong.program.errors import ClosedFileError, InputError, shown
from megatron_ultralong.program.json_file import JsonObject, read_json


class Special(str):
    """The text of a special token where the token itself is meant, not its letters."""

    __slots__ = ()


Parts = Sequence["str | Special"]
"""A prompt: text, and special tokens between it."""


Turn = tuple[str, str]
"""A task's text, and its answer or the beginning of it."""


def prompt_parts(template: PromptTemplate, marks: Turns, *turns: Turn) -> Parts:
    """A task, after solved ones, in the form that a model was trained on.

    ``chat`` is upstream's ``meta-llama3`` in the ``marks`` of a family: a text is a user turn, an
    answer the assistant's turn begun, after the family's own system message, if it has one.
    """
    if template == "base":
        return [part for turn in turns for part in turn]
    parts = [*marks.begun()]
    for text, answer in turns:
        parts += [*marks.turn("user", text), *marks.before["assistant"], answer]
    return with_marks(parts, marks)


def with_marks(parts: Iterable[str], marks: Turns) -> Parts:
    """Parts in which the ``marks`` among them are special tokens, and the texts between are one."""
    found: list[str | Special] = []
    for is_mark, some in groupby(filter(None, parts), marks.marks.__contains__):
        group = list(some)
        found += map(Special, group) if is_mark else ["".join(group)]
    return found


IdArray = npt.NDArray[np.int64]


_PROBE = "How many?"
_BEGINNINGS = ("<|begin_of_text|>", "<s>")


_CHANGES = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), 1),
    **dict.fromkeys(("num_beams", "num_beam_groups"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "penalty_alpha"), 0),
    **dict.fromkeys(("min_length", "min_new_tokens", "diversity_penalty"), 0),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "suppress_tokens", "constraints")),
    **dict.fromkeys(("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")),
    **dict.fromkeys(("sequence_bias", "exponential_decay_length_penalty", "stop_strings")),
    **dict.fromkeys(("forced_decoder_ids", "dola_layers", "watermarking_config")),
}
"""Keys of ``generation_config.json`` by which transformers writes another greedy text, and values
by which it does not, beside null."""


class PromptTokenizer:
    """The tokenizer in a folder; the fast engine where its ids are those of the reference.

    Args:
        folder: with ``tokenizer.json`` or ``tokenizer.model``, and what names its stop tokens.

    Raises:
        InputError: the folder has no tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = choose_tokenizer(folder, "auto").tokenizer
        self.folder = self._tokenizer.file.parent
        self.sha256 = self._tokenizer.sha256
        self.vocab_size = self._tokenizer.vocab_size
        self._special_ids: dict[str, int] = {}
        for text in self._tokenizer.special_texts:
            ids = self._tokenizer.encode_separator(text)
            if len(ids) == 1:
                self._special_ids[text] = ids[0]
        self._not_written = frozenset(self._special_ids.values())
        self._configs = [
            self._read(self.folder / name)
            for name in ("generation_config.json", "config.json")
            if (self.folder / name).is_file()
        ]
        types = [str(values.get("model_type")) for values in self._configs]
        self._family = next((FAMILIES[name] for name in types if name in FAMILIES), None)
        """That ``config.json`` names."""
        self.begin_ids = self._begin_ids()
        """Ids that the tokenizer puts before a text of its own accord, such as its BOS."""

    @functools.cached_property
    def turns(self) -> Turns:
        """Those of its family, or of the first one whose special tokens it has, or Llama's.

        BOS and default system message are what the folder's chat template begins with, else those
        of the family that ``config.json`` names: many models of other families have Qwen's marks.
        """
        families = [*([self._family] if self._family else []), *FAMILIES.values()]
        known = self._special_ids.keys()
        fitting = (each for one in families for each in one.turns if known >= set(each.marks))
        turns = next(fitting, llama.LLAMA.turns[0])
        if self._rendered is not None and "system" in turns.before:
            before, after = ("".join(side["system"]) for side in (turns.before, turns.after))
            begin = self._rendered.partition(turns.before["user"][0])[0]
            if begin in self._special_ids:
                turns = turns._replace(begin=begin, marks=(begin, *turns.marks))
            rest = self._rendered.removeprefix(turns.begin)
            system = rest.removeprefix(before).split(after)[0] if rest.startswith(before) else ""
            return turns._replace(default_system=system)
        is_own = self._family is not None and turns in self._family.turns
        return turns if is_own else turns._replace(default_system="")

    @functools.cached_property
    def _rendered(self) -> str | None:
        """What the folder's chat template writes for :data:`_PROBE`; None: it cannot be compared.

        Llama's is not: ``chat`` is upstream's for it, without the dates of Llama 3.1.
        """
        text = folder_template(self.folder)
        if text is None or set(llama.LLAMA.turns[0].marks) <= self._special_ids.keys():
            return None
        try:
            template = FolderTemplate(text, self.folder)
            with template:
                return template.render_messages([{"role": "user", "content": _PROBE}], None).text
        except InputError:
            return None

    def decides(self, template: PromptTemplate) -> dict[str, str]:
        """What the ids of a prompt depend on."""
        system = self.turns.default_system if template == "chat" else ""
        own = {"template": template, "tokenizer": self.sha256}
        alone, behind = (self.encode("x", behind=place).tolist() for place in (False, True))
        if alone != behind:  # versions before gave all texts the ids of a first one
            own["behind"] = "without the space before a first text"
        return own | ({"system": system} if system else {})

    @property
    def has_chat_tokens(self) -> bool:
        """Whether it has the special tokens of a family's turns."""
        return self._special_ids.keys() >= set(self.turns.marks)

    def check_template(self, template: PromptTemplate) -> None:
        """Raise InputError where the model cannot know the turns that a template writes."""
        if template == "base":
            return
        lacks = "the tokenizer" if not self.has_chat_tokens else ""
        found = folder_template(self.folder)
        if not lacks and found is not None and self.turns.before["user"][0] not in found:
            lacks = "the chat template, which the model was trained with,"
        if lacks:
            raise InputError(
                "--prompt-template chat needs the marks of turns, Llama 3's <|start_header_id|> or "
                f"another family's, and {lacks} in {self.folder} has none: use --prompt-template "
                "base"
            )
        written = "".join([*self.turns.begun(), *self.turns.turn("user", _PROBE)])
        rendered = written if self._rendered is None else self._rendered
        parts = prompt_parts(template, self.turns, (f" {_PROBE}\n", "It"))
        check_ids(self._tokenizer, "".join(parts), self.encode_parts(parts))
        # Spaces around a text differ between the releases of Mistral's template.
        if "".join(written.split()) != "".join(rendered.split()):
            raise InputError(
                f"--prompt-template chat is not the chat template in {self.folder}: "
                f"{difference('chat', written, rendered)}; use --prompt-template base"
            )

    def encode(self, text: str, *, behind: bool = False) -> IdArray:
        """Ids of a text, without anything before or after it; special tokens' texts are text.

        ``behind``: it stands behind a special token.
        """
        its = self._tokenizer
        return (its.encode_behind if behind else its.encode_documents)([text])[0].astype(np.int64)

    def count(self, texts: Sequence[str]) -> IdArray:
        """Number of ids of every text, each alone."""
        return np.asarray([ids.size for ids in self._tokenizer.encode_documents(texts)], np.int64)

    def encode_parts(self, parts: Parts) -> IdArray:
        """Ids of a prompt; neighbouring texts are one text.

        Raises:
            InputError: the vocabulary has no such special token.
        """
        ids: list[IdArray] = []
        for is_special, group in groupby(parts, lambda part: isinstance(part, Special)):
            if is_special:
                ids.append(np.asarray([self._special_id(part) for part in group], np.int64))
            elif text := "".join(group):
                ids.append(self.encode(text, behind=bool(ids)))
        return np.concatenate(ids) if ids else np.zeros(0, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of what a model wrote, without special tokens."""
        return self._tokenizer.decode([int(i) for i in ids if int(i) not in self._not_written])

    def stop_ids(self, template: PromptTemplate = "base") -> frozenset[int]:
        """Ids that end an answer, as ``generation_config.json`` or ``config.json`` name them.

        Where they name none, the stop tokens of the family of ``config.json``, if it says one. Of
        ``chat`` also what ends the assistant's turn: a tuned model may have its base's files.
        """
        known, ends = self._special_ids, self.turns.after["assistant"][: template == "chat"]
        return self._named_stop_ids() | {self._special_ids[end] for end in ends if end in known}

    def _named_stop_ids(self) -> frozenset[int]:
        for values in self._configs:
            ids = values.get("eos_token_id")
            if ids is not None:
                ids = ids if isinstance(ids, list) else [ids]
                if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
                    raise values.wrong("eos_token_id", "a token id, or an array of them")
                return frozenset(ids)
        texts = self._family.stop_tokens if self._family else ()
        return frozenset(self._special_ids[text] for text in texts if text in self._special_ids)

    def not_applied(self) -> str:
        """What a warning says of the model's defaults that change greedy texts; empty: none do."""
        stated = {key: v for one in reversed(self._configs) for key, v in one.items()}
        found = [
            f"{key} {shown(stated[key])}"
            for key, neutral in _CHANGES.items()
            if stated.get(key) not in (None, neutral, [])
        ]
        where = f"{' and '.join(found)} in the model's generation_config.json"
        return f"{where} not applied: transformers writes other texts by it" if found else ""

    @staticmethod
    def _read(file: Path) -> JsonObject:
        try:
            return read_json(file)
        except ClosedFileError:
            raise
        except InputError as error:
            raise InputError(f"{file} is damaged ({error}): export the model again") from error

    def _special_id(self, text: str) -> int:
        if text not in self._special_ids:
            known = ", ".join(sorted(self._special_ids)[:8]) or "none"
            raise InputError(
                f"the chat template needs the special token {text!r}, and the tokenizer in "
                f"{self.folder} has {known}: the two do not fit; use --prompt-template base"
            )
        return self._special_ids[text]

    def _begin_ids(self) -> list[int]:
        known = [self._special_ids[text] for text in _BEGINNINGS if text in self._special_ids]
        if self._tokenizer.file.suffix != ".json":
            return known[:1]
        tokenizer = Tokenizer.from_file(str(self._tokenizer.file))
        tokenizer.no_padding()  # which a tuned model's file may keep of its training
        tokenizer.no_truncation()
        # What stands after a text (an EOS) has no place in a prompt that is to be continued.
        encoding = tokenizer.encode("x", add_special_tokens=True)
        return encoding.ids[:1] if any(encoding.special_tokens_mask[:1]) else []
